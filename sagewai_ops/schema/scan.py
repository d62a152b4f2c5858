"""Look at every value of a home's tables once, and judge those that the filter does not clear.

SQLite joins the texts of some hundred rows and tells whether it clears everything else of them, in
one step that needs no Python, so that several tables can be scanned side by side. What is not
cleared is read again and judged, value by value. Memory is bounded by the rows joined, which are
few and short: a row that is long is read alone.
"""

from __future__ import annotations

import functools
import operator
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sagewai_ops.database.source import quoted
from sagewai_ops.schema import prefilter
from sagewai_ops.schema.findings import Kind, Tally, spelled_key
from sagewai_ops.schema.json_values import Verdict
from sagewai_ops.schema.values import Target, Text, judge, target_of

if TYPE_CHECKING:
    from sqlalchemy import Table

_ROWS = 256  # joined at once; more are no faster
_LONG_BYTES = 16 * 1024  # the joined texts of a row that is read alone, so 4 MiB together
_REMEMBERED = 500  # verdicts on texts of one column and range: few differ where all are wrong
_UNSEEN = Verdict("refused", "")
_FIRST_ROW, _LAST_ROW = -(2**63), 2**63 - 1

# The columns whose texts are looked through together, and what looks through them.
_GROUPS: tuple[tuple[Callable[[Target], bool], Callable[[bytes], bool]], ...] = (
    (prefilter.is_text, prefilter.clears_text),
    (prefilter.is_document, prefilter.clears_documents),
    (prefilter.is_list, prefilter.clears_lists),
    (prefilter.is_stamp, prefilter.clears_stamps),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """How one table is scanned.

    Attributes:
        columns: Those that are there, with what they are on PostgreSQL.
        query: Of a range of rows, leaving out the long ones: how many, whether there is one that
            SQL does not clear, and for each group the texts joined.
        query_of_masks: The same with the distinct masks of the columns that SQL does not clear,
            which costs more; for tables that are full of them.
        key: The columns of the primary key, quoted.
    """

    table: str
    columns: tuple[tuple[str, Target], ...]
    query: str
    query_of_masks: str
    key: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Range:
    """Rows by their ids, both included, and how many there are."""

    first: int
    last: int
    count: int


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
    is_doubtful = f"NOT coalesce({' AND '.join(conditions) or '1'}, 0)"
    mask = " | ".join(
        f"(CASE WHEN {condition} THEN 0 ELSE {1 << place} END)"
        for place, condition in enumerate(conditions)  # 42 at most, and an integer has 63
    )
    key = tuple(
        quoted(column.name) for column in table.primary_key.columns if column.name in present
    )
    return Plan(
        table.name,
        columns,
        _spelled(table.name, columns, is_doubtful, "max(doubts)"),
        _spelled(table.name, columns, mask or "0", "group_concat(DISTINCT doubts)"),
        key or ("_rowid_",),
    )


def _spelled(table: str, columns: Sequence[tuple[str, Target]], doubts: str, summed: str) -> str:
    """Spell the query for a range; see `Plan`."""
    groups = [f"{_joined(columns, belongs)} AS g{n}" for n, (belongs, _) in enumerate(_GROUPS)]
    texts = [
        # As a blob, because a joined text that is not UTF-8 is cut at no place.
        f"CAST(coalesce(group_concat(g{place}, char(10)), '') AS BLOB)"
        for place in range(len(_GROUPS))
    ]
    return (
        f"SELECT count(*), {summed}, {', '.join(texts)} FROM (SELECT"  # noqa: S608
        f" {doubts} AS doubts, {', '.join(groups)}"
        f" {_from(table)} LIMIT {_ROWS})"  # the limit keeps it from joining each row twice
        f" WHERE length(g0) + length(g1) <= {_LONG_BYTES}"  # the other groups hold little
    )


def _joined(columns: Sequence[tuple[str, Target]], belongs: Callable[[Target], bool]) -> str:
    """Join the texts of a row with line ends between, so that nothing grows together."""
    names = [quoted(name) for name, target in columns if belongs(target)]
    texts = " || char(10) || ".join(f"coalesce({name}, '')" for name in names)
    return f"CAST({texts} AS BLOB)" if names else "x''"


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
        scanned: Told how many rows were looked at, again and again.
    """
    query, places = plan.query, dict(enumerate(name for name, _ in plan.columns))
    for rows in _ranges(connection, plan):
        bounds = (rows.first, rows.last)
        count, doubts, *joined = connection.execute(query, bounds).fetchone()
        if doubts == 1 and query is plan.query:
            query = plan.query_of_masks
            count, doubts, *joined = connection.execute(query, bounds).fetchone()
        suspected = set()
        if query is plan.query_of_masks:
            mask = functools.reduce(operator.or_, map(int, (doubts or b"0").split(b",")))
            suspected |= {name for place, name in places.items() if mask >> place & 1}
        if count < rows.count:
            suspected |= _uncleared_long(connection, plan, rows)
        for (belongs, clears), texts in zip(_GROUPS, joined, strict=True):
            if not clears(texts):
                suspected |= {name for name, target in plan.columns if belongs(target)}
        for name, target in plan.columns:
            if name in suspected:
                _judge_column(connection, plan, name, target, rows, tally)
        if scanned:
            scanned(rows.count)


def _ranges(connection: sqlite3.Connection, plan: Plan) -> Iterator[_Range]:
    """Cut a table into ranges of at most some hundred rows."""
    statement = (
        f"SELECT count(*), min(number), max(number) FROM (SELECT _rowid_ AS number FROM"  # noqa: S608
        f" {quoted(plan.table)} NOT INDEXED WHERE _rowid_ >= ? ORDER BY _rowid_ LIMIT {_ROWS})"
    )
    following = _FIRST_ROW
    while following <= _LAST_ROW:
        count, first, last = connection.execute(statement, (following,)).fetchone()
        if not count:
            return
        yield _Range(first, last, count)
        following = last + 1


def reading_bytes(connection: sqlite3.Connection) -> sqlite3.Connection:
    """Have a connection give every TEXT as its bytes, whether or not they are UTF-8."""
    connection.text_factory = Text
    return connection


def _uncleared_long(connection: sqlite3.Connection, plan: Plan, rows: _Range) -> set[str]:
    """Name the columns with a value that is not cleared, in these rows, text by text."""
    suspected = set()
    for name, target in plan.columns:
        clears = next((clears for belongs, clears in _GROUPS if belongs(target)), None)
        statement = (
            f"SELECT {prefilter.clears(quoted(name), target)}, {quoted(name)} {_from(plan.table)}"
        )
        for is_clear, value in connection.execute(statement, (rows.first, rows.last)):
            is_text = isinstance(value, bytes)
            if not is_clear or (clears and is_text and not clears(value)):
                suspected.add(name)
                break
    return suspected


def _judge_column(
    connection: sqlite3.Connection,
    plan: Plan,
    name: str,
    target: Target,
    rows: _Range,
    tally: Tally,
) -> None:
    statement = f"SELECT _rowid_, {quoted(name)} {_from(plan.table)}"
    memory: dict[bytes, Verdict | None] = {}
    found: dict[tuple[Kind, str], list[int]] = {}
    for number, value in connection.execute(statement, (rows.first, rows.last)):
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
    for (kind, reason), numbers in found.items():
        tally.add(kind, plan.table, name, reason, numbers, key)


def _from(table: str) -> str:
    return f"FROM {quoted(table)} NOT INDEXED WHERE _rowid_ BETWEEN ? AND ?"


def key_of(connection: sqlite3.Connection, plan: Plan, number: int) -> str:
    """Spell the primary key of the row with this row id."""
    statement = f"SELECT {', '.join(plan.key)} FROM {quoted(plan.table)} WHERE _rowid_ = ?"  # noqa: S608
    row = connection.execute(statement, (number,)).fetchone()
    return spelled_key(row) if row else str(number)
