"""Bring the target from one frozen copy of the home to a later one, in the open transaction.

The rows that may differ, by rowid, are read from both copies as an export reads them, so with the
repairs and without the rows that a policy refused, and compared by value. What the earlier copy
alone has, or has otherwise, is deleted from the target by key; what the later one has is sent as
all other rows are. Everything is deleted before anything is sent: a unique value may have moved to
another row.
"""

from __future__ import annotations

import dataclasses
import secrets
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from sagewai_ops.database.sqlite.read_transaction import quoted, quoted_text
from sagewai_ops.errors import DifferenceError, UsageError
from sagewai_ops.export.convert import value
from sagewai_ops.export.load import refusals_of_rows
from sagewai_ops.export.mapping.plan import Plan, PlannedTable
from sagewai_ops.export.mapping.source_rows import open_copy
from sagewai_ops.export.mapping.target_catalog import TargetTable, with_referring
from sagewai_ops.export.pipeline.deferred_indexes import DeferredIndexes, drop_references
from sagewai_ops.export.pipeline.sender import SendResult, Worker, send_tables
from sagewai_ops.export.validate.repair_overlay import own_tables
from sagewai_ops.progress import Progress
from sagewai_ops.records import dataclass

if TYPE_CHECKING:
    import asyncpg

# In the later copy: the rows that are sent. The home may have tables of any name.
CHANGED = f"sagewai_ops_changed_{secrets.token_hex(8)}"
_DEFINITION = (
    f"CREATE TABLE {CHANGED} (owner TEXT, row INTEGER, PRIMARY KEY (owner, row)) WITHOUT ROWID"
)
_ROWS_AT_ONCE = 500  # of parameters; SQLite accepts 999 at least
_KEYS_AT_ONCE = 5000  # that one statement deletes

Row: TypeAlias = tuple[Any, ...]  # values of the planned columns, and the rowid
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@dataclass(slots=True)
class Delta:
    """The differences that were applied.

    Attributes:
        deleted, sent: Rows, by table.
        result: Of the rows that were sent; with findings, some are missing.
        uncertain: Tables that a delete may have changed in another way than planned.
    """

    deleted: dict[str, int] = field(default_factory=dict)
    sent: dict[str, int] = field(default_factory=dict)
    result: SendResult = field(default_factory=SendResult)
    uncertain: set[str] = field(default_factory=set)


def require_keys(plan: Plan) -> None:
    """Check that every row of the target can be found by its primary key.

    Raises:
        UsageError: A table has no primary key, or one that the home does not have.
    """
    for table in plan.tables:
        if not table.has_columns(table.key):
            raise UsageError(
                f"table {table.name}: no primary key with columns of the home, by which"
                " --live-first could replace rows",
                hint="sagewai-ops export-to-postgres  # with Sagewai stopped",
            )


async def apply_delta(
    connection: Connection,
    reader: Worker,
    before: Path,
    plans: tuple[Plan, Plan],
    rows: Mapping[str, list[int] | None],
    targets: Mapping[str, TargetTable],
    progress: Progress | None,
    *,
    is_settled: bool,
) -> Delta:
    """Delete and send the rows that differ between two copies.

    Args:
        reader: A worker of the later copy, that has not begun.
        before: The earlier copy.
        plans: Of the earlier and of the later copy.
        rows: The rows that may differ, by table; None for all. Repaired and refused rows are added.
        targets: The target's catalog.
        is_settled: The copies have tables of repairs and refusals.

    Raises:
        DifferenceError: The target has not the rows of the earlier copy.
        RefusedByServerError: The server refused rows.
    """
    delta = Delta()
    old_plan, new_plan = ({table.name: table for table in plan.tables} for plan in plans)
    dropped: list[str] = []
    with open_copy(before) as old, open_copy(reader.copy, writable=True) as new:
        new.execute(_DEFINITION)
        new.execute("BEGIN")
        await _prefer_indexes(connection)
        for name in {**old_plan, **new_plan}:
            settled = set[int]()
            if is_settled:
                settled = {*_settled_rows(old, name), *_settled_rows(new, name)}
            wanted = _united(rows.get(name), settled)
            if wanted is not None and not wanted:
                continue
            keys: list[tuple[str, ...]] = []
            key_of = key_reader(old_plan[name]) if name in old_plan else None
            for rowid, left, right in _differing(
                old, new, old_plan.get(name), new_plan.get(name), wanted
            ):
                if left is not None and key_of:
                    if not delta.deleted.get(name):
                        statements, is_certain = await drop_references(connection, name)
                        dropped += statements
                        if not is_certain:
                            delta.uncertain |= with_referring(targets, [name])
                    keys.append(key_of(left))
                    delta.deleted[name] = delta.deleted.get(name, 0) + 1
                if right is not None:
                    new.execute(f"INSERT INTO {CHANGED} VALUES (?, ?)", (name, rowid))
                    delta.sent[name] = delta.sent.get(name, 0) + 1
                if len(keys) == _KEYS_AT_ONCE:
                    await _delete(connection, targets[name], keys)
                    keys = []
            if keys:
                await _delete(connection, targets[name], keys)
        new.execute("COMMIT")
        await _prefer_indexes(connection, is_forced=False)
    sent = dataclasses.replace(
        plans[1],
        tables=tuple(
            dataclasses.replace(table, where=is_changed(table.name), rows=delta.sent[table.name])
            for table in plans[1].tables
            if table.name in delta.sent
        ),
    )
    await reader.begin(sent, stream=True)
    with refusals_of_rows():
        delta.result = await send_tables(
            connection, reader, sent, DeferredIndexes({}, ()), (), progress=progress
        )
        if not delta.result.findings:
            for statement in dropped:
                await connection.execute(statement)
    return delta


def discard_changes(copy: Path) -> None:
    """Remove the list of rows from a copy: what follows reads the tables of the home alone."""
    with open_copy(copy, writable=True) as source:
        source.execute(f"DROP TABLE IF EXISTS {CHANGED}")


def is_changed(table: str) -> str:
    """Return the condition of the rows that were sent, in SQL of SQLite."""
    wanted = f"SELECT row FROM {CHANGED} WHERE owner = {quoted_text(table)}"
    return f"{quoted(table)}.rowid IN ({wanted})"


def select_rows(
    source: sqlite3.Connection, table: PlannedTable, rowids: Sequence[int]
) -> Iterator[Row]:
    """Yield some rows of a table in the order of their rowids, which come last.

    Args:
        rowids: In order.
    """
    expressions = ", ".join(column.expression for column in table.columns)
    glue = "AND" if table.where else "WHERE"
    for first in range(0, len(rowids), _ROWS_AT_ONCE):
        chunk = rowids[first : first + _ROWS_AT_ONCE]
        places = ", ".join("?" * len(chunk))
        yield from source.execute(
            f"SELECT {expressions}, rowid FROM {table.source()} {glue} rowid IN ({places})"
            " ORDER BY rowid",
            chunk,
        )


def key_reader(table: PlannedTable) -> Callable[[Row], tuple[str, ...]]:
    """Return the function that returns the key that a row has in the target, as texts."""
    places = {column.name: place for place, column in enumerate(table.columns)}
    parts = [(places[name], table.columns[places[name]].target.type.name) for name in table.key]

    def read_key(row: Row) -> tuple[str, ...]:
        return tuple(
            str(value.uuid_of(row[place].decode()))
            if kind == "uuid"
            else value.text(row[place]).decode()
            for place, kind in parts
        )

    return read_key


def keys_query(target: TargetTable, key: Sequence[str]) -> str:
    """Return the SQL after FROM that has the keys of `key_columns` as rows of `k`.

    Their places from 1 on are its last column, `place`.
    """
    arrays, names = [], []
    for number, name in enumerate(key, 1):
        kind = target.columns[name].type_name
        # Compared with the operators of text, as a varchar is.
        kind = "text" if kind.startswith("character varying") else kind
        cast = "" if kind == "text" else f"::{kind}[]"
        arrays.append(f"pg_catalog.unnest(${number}::text[]{cast})")
        names.append(f"k{number}")
    listed = ", ".join([*names, "place"])
    return f"ROWS FROM ({', '.join(arrays)}) WITH ORDINALITY AS k({listed})"


def key_columns(keys: Sequence[tuple[str, ...]]) -> list[list[str]]:
    """Return keys as the parameters of `keys_query`."""
    return [list(column) for column in zip(*keys, strict=True)]


def has_key(key: Sequence[str]) -> str:
    """Return the condition that a row of `t` has a key of `k`."""
    return " AND ".join(
        f"t.{quoted(name)} OPERATOR(pg_catalog.=) k.k{number}" for number, name in enumerate(key, 1)
    )


async def _prefer_indexes(connection: Connection, *, is_forced: bool = True) -> None:
    """Have the server look keys up one by one, whatever it knows about the size of a table."""
    state = "off" if is_forced else "DEFAULT"
    await connection.execute(
        f"SET LOCAL enable_hashjoin = {state}; SET LOCAL enable_mergejoin = {state}"
    )


async def _delete(connection: Connection, target: TargetTable, keys: list[tuple[str, ...]]) -> None:
    status = await connection.execute(
        f"DELETE FROM ONLY {quoted(target.name)} AS t USING {keys_query(target, target.key)}"
        f" WHERE {has_key(target.key)}",
        *key_columns(keys),
    )
    count = int(status.rpartition(" ")[2])
    if count != len(keys):
        raise DifferenceError(
            f"table {target.name}: {len(keys)} rows to replace or to delete, {count} deleted"
        )


def _settled_rows(source: sqlite3.Connection, table: str) -> Iterator[int]:
    """Yield the rows of a table that were repaired or refused."""
    for overlay in own_tables(source):
        query = f"SELECT row FROM {overlay} WHERE owner = ?"
        yield from (row for (row,) in source.execute(query, (table,)))


def _united(rows: list[int] | None, others: set[int]) -> list[int] | None:
    if rows is None or not others:
        return rows
    return sorted(others.union(rows))


def _differing(
    old: sqlite3.Connection,
    new: sqlite3.Connection,
    old_table: PlannedTable | None,
    new_table: PlannedTable | None,
    rowids: list[int] | None,
) -> Iterator[tuple[int, Row | None, Row | None]]:
    """Yield the rowids whose rows differ, and both rows; None for a missing one."""
    lefts, rights = _rows(old, old_table, rowids), _rows(new, new_table, rowids)
    left, right = next(lefts, None), next(rights, None)
    while left is not None or right is not None:
        if right is None or (left is not None and left[-1] < right[-1]):
            assert left is not None
            yield left[-1], left, None
            left = next(lefts, None)
        elif left is None or right[-1] < left[-1]:
            yield right[-1], None, right
            right = next(rights, None)
        else:
            if not _is_same(left, right):
                yield left[-1], left, right
            left, right = next(lefts, None), next(rights, None)


def _rows(
    source: sqlite3.Connection, table: PlannedTable | None, rowids: list[int] | None
) -> Iterator[Row]:
    if table is None:
        return iter(())
    if rowids is None:
        return iter(source.execute(table.select()))
    return select_rows(source, table, rowids)


def _is_same(left: Row, right: Row) -> bool:
    """Return whether two rows have the same values of the same classes: 1 is not 1.0."""
    return left == right and all(
        type(mine) is type(other) and not (isinstance(mine, float) and mine.hex() != other.hex())
        for mine, other in zip(left, right, strict=True)
    )
