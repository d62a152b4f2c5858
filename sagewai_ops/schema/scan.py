"""Look at every value of a home's tables once, and judge those that the filter does not clear.

One pass over each table in the order of its rows. Each row answers with a mask of the columns that
SQL does not clear, and with its texts joined; when some megabytes are together they are looked
through. Columns that are suspected are read again, for the rows of that batch alone, and judged
value by value. Memory is bounded by the batch and by twice the largest row.
"""

from __future__ import annotations

import functools
import operator
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from sagewai_ops.database.source import quoted
from sagewai_ops.schema import prefilter
from sagewai_ops.schema.findings import Kind, Tally, spelled_key
from sagewai_ops.schema.json_values import Verdict
from sagewai_ops.schema.values import Target, Text, judge, target_of

if TYPE_CHECKING:
    from sqlalchemy import Table

BATCH_BYTES = 2 * 1024 * 1024  # of joined texts; larger ones fall out of the processor's cache
_BATCH_ROWS = 20_000
_REMEMBERED = 500  # verdicts on texts of one column and batch: few differ where all are wrong
_UNSEEN = Verdict("refused", "")
# Row id, mask of the columns that SQL does not clear, and the texts of each group.
_Row: TypeAlias = tuple[int, int, bytes, bytes, bytes, bytes]


@dataclass(frozen=True, slots=True)
class Plan:
    """How one table is scanned.

    Attributes:
        columns: Those that are there, in the order of the mask's bits.
        query: Gives row id, mask, texts joined, JSON texts joined.
        key: The columns of the primary key, quoted.
    """

    table: str
    columns: tuple[tuple[str, Target], ...]
    query: str
    key: tuple[str, ...]


def plan_scan(table: Table, present: Sequence[str]) -> Plan:
    """Spell the query for one table.

    Args:
        table: Of the metadata.
        present: The columns that the home's table has.
    """
    columns = tuple(
        (column.name, target_of(column)) for column in table.columns if column.name in present
    )
    conditions = [prefilter.clears(quoted(name), target) for name, target in columns]
    bits = [
        f"(CASE WHEN {condition} THEN 0 ELSE {1 << place} END)"
        for place, condition in enumerate(conditions)  # 42 at most, and an integer has 63
    ]
    # Nearly all rows are cleared by the first half, at a lower price than by the mask.
    mask = f"CASE WHEN {' AND '.join(conditions) or '1'} THEN 0 ELSE {' | '.join(bits) or '0'} END"
    joined = [
        _joined([quoted(name) for name, target in columns if belongs(target)])
        for belongs, _ in _GROUPS
    ]
    query = (
        f"SELECT _rowid_, {mask}, {', '.join(joined)}"  # noqa: S608
        f" FROM {quoted(table.name)} NOT INDEXED"
    )
    key = tuple(
        quoted(column.name) for column in table.primary_key.columns if column.name in present
    )
    return Plan(table.name, columns, query, key or ("_rowid_",))


def scan_table(
    connection: sqlite3.Connection,
    plan: Plan,
    tally: Tally,
    scanned: Callable[[int], None] | None = None,
) -> None:
    """Judge the values of one table.

    Args:
        connection: Its texts come as `Text`: see `reading_bytes`.
        plan: From `plan_scan`.
        tally: Counts what is found.
        scanned: Told how many rows each batch had.
    """
    for batch in _batches(connection.execute(plan.query)):
        suspected = {
            name for place, (name, _) in enumerate(plan.columns) if batch.mask >> place & 1
        }
        for (belongs, clears), joined in zip(_GROUPS, batch.joined, strict=True):
            if not clears(b"\n".join(joined)):
                suspected |= {name for name, target in plan.columns if belongs(target)}
        for name, target in plan.columns:
            if name in suspected:
                _judge_column(connection, plan, name, target, batch, tally)
        if scanned:
            scanned(len(batch.joined[0]))


def reading_bytes(connection: sqlite3.Connection) -> sqlite3.Connection:
    """Have a connection give every TEXT as its bytes, whether or not they are UTF-8."""
    connection.text_factory = Text
    return connection


@dataclass(frozen=True, slots=True)
class _Batch:
    """Rows that are looked through together."""

    first: int
    last: int
    mask: int
    joined: tuple[Sequence[bytes], ...]


def _batches(rows: Iterable[_Row]) -> Iterator[_Batch]:
    batch: list[_Row] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += len(row[2]) + len(row[3])  # the other two hold little
        if size >= BATCH_BYTES or len(batch) >= _BATCH_ROWS:
            yield _batch(batch)
            batch, size = [], 0
    if batch:
        yield _batch(batch)


def _batch(rows: list[_Row]) -> _Batch:
    mask = functools.reduce(operator.or_, {row[1] for row in rows})
    joined = (
        [row[2] for row in rows],
        [row[3] for row in rows],
        [row[4] for row in rows],
        [row[5] for row in rows],
    )
    return _Batch(rows[0][0], rows[-1][0], mask, joined)


def _judge_column(
    connection: sqlite3.Connection,
    plan: Plan,
    name: str,
    target: Target,
    batch: _Batch,
    tally: Tally,
) -> None:
    statement = (
        f"SELECT _rowid_, {quoted(name)} FROM {quoted(plan.table)} NOT INDEXED"  # noqa: S608
        " WHERE _rowid_ BETWEEN ? AND ?"
    )
    memory: dict[bytes, Verdict | None] = {}
    found: dict[tuple[Kind, str], list[int]] = {}
    for number, value in connection.execute(statement, (batch.first, batch.last)):
        if type(value) is Text:  # equal numbers of two types, or a blob, are other values
            verdict = memory.get(value, _UNSEEN)
            if verdict is _UNSEEN:
                verdict = judge(target, value)
                if len(memory) < _REMEMBERED:
                    memory[value] = verdict
        else:
            verdict = judge(target, value)
        if verdict is not None:
            kind: Kind = "null" if value is None else verdict.kind
            found.setdefault((kind, verdict.reason), []).append(number)
    key = functools.partial(key_of, connection, plan)
    for (kind, reason), rows in found.items():
        tally.add(kind, plan.table, name, reason, rows, key)


def key_of(connection: sqlite3.Connection, plan: Plan, number: int) -> str:
    """Spell the primary key of the row with this row id."""
    statement = f"SELECT {', '.join(plan.key)} FROM {quoted(plan.table)} WHERE _rowid_ = ?"  # noqa: S608
    row = connection.execute(statement, (number,)).fetchone()
    return spelled_key(row) if row else str(number)


def _joined(columns: list[str]) -> str:
    """Join the texts of a row with line ends between, so that nothing grows together."""
    if not columns:
        return "x''"
    parts = [f"coalesce({column}, '')" for column in columns]
    # As a blob, because a joined text that is not UTF-8 is cut at no place.
    return f"CAST({(' || char(10) || ').join(parts)} AS BLOB)"


# The columns whose texts are looked through together, and what looks through them.
_GROUPS: tuple[tuple[Callable[[Target], bool], Callable[[bytes], bool]], ...] = (
    (prefilter.is_text, prefilter.clears_text),
    (prefilter.is_document, prefilter.clears_documents),
    (prefilter.is_list, prefilter.clears_lists),
    (prefilter.is_stamp, prefilter.clears_stamps),
)
