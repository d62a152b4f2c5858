"""Compare the SQLite database of a home with the rows of the server that it was built from."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from sagewai_ops.database.sqlite.connect import open_connection
from sagewai_ops.database.sqlite.read_transaction import quoted
from sagewai_ops.errors import DifferenceError
from sagewai_ops.export.compare.normalise import differing, differing_lists
from sagewai_ops.export.convert.batch import Type
from sagewai_ops.export.mapping.plan import REWRITTEN, join_columns
from sagewai_ops.progress import Progress, byte_counter
from sagewai_ops.restore.conversion import ConversionPlan, ConvertedColumn, ConvertedTable
from sagewai_ops.restore.row_writer import seconds_for, translate_build_errors
from sagewai_ops.restore.server_rows import Block
from sagewai_ops.restore.server_texts import ServerTexts
from sagewai_ops.snapshots.server_database import StoredTable
from sagewai_ops.text import printable

# Yields the rows of some tables: in both passes the same, in the same order. Called with the bytes
# that were read since the last call.
Rows: TypeAlias = Callable[[Iterable[StoredTable], Callable[[int], None] | None], Iterator[Block]]

_MOST_NUMBER = 2**63
_LARGEST_GAP = 4  # between numbers of rows that are read together
_TEXT = Type("text")


def compare_database(
    rows: Rows,
    plan: ConversionPlan,
    database: Path,
    omitted: Mapping[str, int],
    *,
    source: str,
    progress: Progress | None = None,
) -> None:
    """Compare a home's database with the rows that it was built from, by value.

    Args:
        omitted: Rows of each table that are not in it.
        source: Of the rows, for messages.

    Raises:
        DifferenceError: SQLite returns another value.
        OpsError: The rows cannot be read again.
    """
    count = byte_counter(progress, "compare", plan.bytes)
    seconds = seconds_for(plan.bytes)
    with (
        translate_build_errors(database),
        contextlib.closing(
            open_connection(database, is_immutable=True, least_seconds=seconds)
        ) as connection,
    ):
        connection.text_factory = bytearray
        comparison = _Comparison(connection, plan, source)
        for block in rows(plan.stored, count):
            comparison.add(block)
        comparison.finish(omitted)


class _Comparison:
    """Compares the rows of a database with those of their source."""

    def __init__(self, connection: sqlite3.Connection, plan: ConversionPlan, source: str) -> None:
        self._connection = connection
        self._plan = plan
        self._source = source
        self._missing = dict.fromkeys(plan.tables, 0)
        self._texts = ServerTexts(connection)

    def add(self, block: Block) -> None:
        """Compare some rows; count those that the database does not have.

        Raises:
            DifferenceError: One differs.
        """
        table = self._plan.tables[block.table.name]
        if self._texts.are_equal(table, block):
            return
        found = [] if block.is_too_large else self._rows(table, block)
        self._missing[block.table.name] += block.count - len(found)
        if not found:
            return
        places, *sources = zip(*found, strict=True)
        for column, values in zip(table.columns, sources, strict=True):
            fields = block.column(column.place)
            if len(places) < block.count:
                fields = [fields[place] for place in places]
            different = [0]
            with contextlib.suppress(ValueError):  # not a value of that type at all
                different = _different(column, values, fields)
            if different:
                key = block.key(table.key, places[different[0]])
                raise self._error(f"{table.stored.name}.{column.name} of {key}")

    def finish(self, omitted: Mapping[str, int]) -> None:
        """Check that the database has all rows but the omitted ones, and no others.

        Raises:
            DifferenceError: It does not.
        """
        for name, table in self._plan.tables.items():
            (rows,) = self._connection.execute(f"SELECT count(*) FROM {quoted(name)}").fetchone()
            if self._missing[name] != omitted[name] or rows != table.stored.rows - omitted[name]:
                raise self._error(f"{name} with {rows} rows, of {table.stored.rows}")
        for (name, column), joined in REWRITTEN.items():
            if name in self._plan.tables:
                query = (
                    f"SELECT count(*) FROM {quoted(name)}"
                    f" WHERE {quoted(column)} IS NOT {join_columns(joined.on_sqlite)}"
                )
                if self._connection.execute(query).fetchone() != (0,):
                    raise self._error(f"{name}.{column}")

    def _rows(self, table: ConvertedTable, block: Block) -> list[tuple[Any, ...]]:
        """Return the rows that the database has, each after its place in the block, in order."""
        wanted = ", ".join(column.expression for column in table.columns)
        name = quoted(table.stored.name)
        if table.number is None:
            first = block.first + 1
            query = f"SELECT rowid - ?, {wanted} FROM {name} WHERE rowid BETWEEN ? AND ?"
            values = (first, first, first + block.count - 1)
            return self._connection.execute(f"{query} ORDER BY rowid", values).fetchall()
        query = f"SELECT rowid, {wanted} FROM {name} WHERE rowid BETWEEN ? AND ?"
        places: dict[int, int] = {}
        for place, number in enumerate(block.column(table.number)):
            with contextlib.suppress(ValueError):  # a row that was omitted
                places.setdefault(int(number), place)  # of duplicates, the first is stored
        # As one range as far as the numbers are dense.
        numbers = sorted(number for number in places if abs(number) < _MOST_NUMBER)
        starts = [
            place
            for place, number in enumerate(numbers)
            if place == 0 or number - numbers[place - 1] > _LARGEST_GAP
        ]
        found = []
        for start, end in itertools.pairwise([*starts, len(numbers)]):
            limits = (numbers[start], numbers[end - 1])
            for rowid, *row in self._connection.execute(query, limits):
                if rowid in places:
                    found.append((places[rowid], *row))
        return sorted(found, key=_place)

    def _error(self, what: str) -> DifferenceError:
        return DifferenceError(
            f"database: {printable(what)} differs from the {self._source}",
            hint="run it again, the target is unchanged\ndmesg  # is the disk damaged?",
        )


def _place(found: tuple[Any, ...]) -> int:
    place: int = found[0]
    return place


def _different(
    column: ConvertedColumn, values: Sequence[Any], fields: Sequence[bytes]
) -> list[int]:
    """Return the rows in which a column differs."""
    if column.type.name == "text[]":
        return differing_lists(values, fields)
    if column.type.name != "jsonb":
        return differing(column.type, values, fields)
    # Documents are stored as the server writes them, but for numbers.
    return [
        row
        for row in differing(_TEXT, values, fields)
        if differing(column.type, [values[row]], [fields[row]])
    ]
