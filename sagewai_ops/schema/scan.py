"""Look at every value of a home's tables once, and judge those that the filter does not clear.

SQLite joins the texts of each column over some hundred rows, and counts the rows of which it clears
everything else, in one step that needs no Python, so that several tables can be scanned side by
side. What is not cleared is read again and judged, value by value. Memory is bounded by the rows
joined, which are few and short: a row that is long is read alone.
"""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sagewai_ops.database.sqlite.read_transaction import quoted
from sagewai_ops.schema import prefilter
from sagewai_ops.schema.findings import Kind, Tally, spelled_key
from sagewai_ops.schema.json_values import Verdict
from sagewai_ops.schema.postgres_head import index_entries
from sagewai_ops.schema.values import INDEX_BYTES, Target, Text, judge, target_of

if TYPE_CHECKING:
    from sqlalchemy import Table

_ROWS = 256  # joined at once; more are no faster
_LONG_BYTES = 16 * 1024  # texts without a limit of a row that is read alone, so 4 MiB together
_REMEMBERED = 500  # verdicts on texts of one column and range: few differ where all are wrong
_JUDGED_RANGES = 32  # for which a column that SQL clears nowhere is not filtered again
_UNSEEN = Verdict("refused", "")
_FIRST_ROW, _LAST_ROW = -(2**63), 2**63 - 1


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a scan.

    Attributes:
        name: As the table has it.
        target: What it is on PostgreSQL.
        condition: The SQL that clears a value of it.
        clears: What looks through its texts, joined; None if `condition` says it all.
        unlimited: A text that `condition` clears can be of any length.
    """

    name: str
    target: Target
    condition: str
    clears: Callable[[bytes], bool] | None
    unlimited: bool


@dataclass(frozen=True, slots=True, eq=False)  # equal to itself alone, so that it hashes fast
class Plan:
    """How one table is scanned.

    Attributes:
        columns: Those that are there.
        key: The columns of the primary key, quoted.
        entries: The texts that stand in an index together, for each such index.
        condition: The SQL that clears all entries of a row; empty where there are none.
    """

    table: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    entries: tuple[tuple[str, ...], ...]
    condition: str


@dataclass(frozen=True, slots=True)
class _Range:
    """Rows by their ids, both included, and how many there are."""

    first: int
    last: int
    count: int


def plan_scan(table: Table, present: Sequence[str], *, cut_at_nul: bool = False) -> Plan:
    """Plan the scan of one table.

    Args:
        table: Of the metadata.
        present: The columns that the home's table has.
        cut_at_nul: This SQLite cuts joined texts at NUL; see `cuts_at_nul`.
    """
    columns = []
    for column in table.columns:
        if column.name not in present:
            continue
        target, name = target_of(column), quoted(column.name)
        clears = prefilter.clears_joined(target)
        # The plus keeps SQLite from looking up an integer key by this condition, not by row id.
        condition = prefilter.clears(f"+{name}", target)
        if cut_at_nul and clears:
            condition = f"({condition} AND instr(ifnull({name}, ''), char(0)) = 0)"
        unlimited = clears is not None and not prefilter.is_limited(target)
        columns.append(Column(column.name, target, condition, clears, unlimited))
    key = tuple(
        quoted(column.name) for column in table.primary_key.columns if column.name in present
    )
    entries = _entries(table.name, columns)
    together = sorted({quoted(name) for entry in entries for name in entry})
    condition = prefilter.weighs_little(together) if together else ""
    return Plan(table.name, tuple(columns), key or ("_rowid_",), entries, condition)


def _entries(table: str, columns: Sequence[Column]) -> tuple[tuple[str, ...], ...]:
    texts = [one.name for one in columns if one.target.type in ("text", "character varying")]
    found = (tuple(name for name in entry if name in texts) for entry in index_entries()[table])
    return tuple(sorted({entry for entry in found if len(entry) > 1}))


def cuts_at_nul(connection: sqlite3.Connection) -> bool:
    """Tell whether this SQLite cuts joined texts at the first NUL, as those before 3.39 do."""
    statement = "SELECT length(CAST(group_concat(part, '') AS BLOB)) FROM (SELECT char(0, 65) part)"
    (length,) = connection.execute(statement).fetchone()
    return bool(length != 2)


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
    judged: dict[str, int] = {}  # columns, and for how many more ranges they are not filtered
    for rows in _ranges(connection, plan):
        cleared, suspected = _look(connection, plan, frozenset(judged), rows)
        later = {name: left - 1 for name, left in judged.items() if left > 1}
        if cleared < rows.count:
            doubts = _doubts(connection, plan, frozenset(judged), rows)
            later |= {n: _JUDGED_RANGES for n, count in doubts.items() if 2 * count >= rows.count}
            # Again without them: a row that was not cleared had no text among those joined.
            unfiltered = frozenset(judged.keys() | doubts.keys())
            cleared, suspected = _look(connection, plan, unfiltered, rows)
            if cleared < rows.count:
                suspected |= _uncleared_long(connection, plan, rows)
                _judge_entries(connection, plan, rows, tally)
            suspected |= doubts.keys()
        for column in plan.columns:
            if column.name in suspected or column.name in judged:
                _judge_column(connection, plan, column, rows, tally)
        judged = later
        if scanned:
            scanned(rows.count)


def _look(
    connection: sqlite3.Connection, plan: Plan, unfiltered: frozenset[str], rows: _Range
) -> tuple[int, set[str]]:
    """Filter these rows, leaving out some columns.

    Returns:
        How many rows are cleared but for their texts, and the columns whose texts are not.
    """
    query, joined = _query(plan, unfiltered)
    cleared, *texts = connection.execute(query, (rows.first, rows.last)).fetchone()
    return cleared, {
        column.name
        for column, text in zip(joined, texts, strict=True)
        if text is not None and column.clears and not column.clears(text)
    }


@functools.lru_cache
def _query(plan: Plan, unfiltered: frozenset[str]) -> tuple[str, tuple[Column, ...]]:
    """Spell the query for a range: how many rows are cleared, and their texts by column."""
    filtered = [column for column in plan.columns if column.name not in unfiltered]
    joined = tuple(column for column in filtered if column.clears)
    texts = "".join(f", group_concat({quoted(column.name)}, char(10))" for column in joined)
    conditions = "".join(f" AND {column.condition}" for column in filtered)
    # As a blob, its length is known; the characters of a text are counted, and only up to a NUL.
    lengths = [
        f"ifnull(length(CAST({quoted(column.name)} AS BLOB)), 0)"
        for column in joined
        if column.unlimited
    ]
    if lengths:
        conditions += f" AND {' + '.join(lengths)} <= {_LONG_BYTES}"
    if plan.condition:
        conditions += f" AND {plan.condition}"
    return f"SELECT count(*){texts} {_from(plan.table)}{conditions}", joined


def _doubts(
    connection: sqlite3.Connection, plan: Plan, unfiltered: frozenset[str], rows: _Range
) -> dict[str, int]:
    """Count the values in these rows that SQL does not clear, by column; those with any."""
    columns = [column for column in plan.columns if column.name not in unfiltered]
    sums = ", ".join(f"sum(NOT ifnull({column.condition}, 0))" for column in columns)
    counts = connection.execute(f"SELECT {sums or 0} {_from(plan.table)}", (rows.first, rows.last))
    named = zip((column.name for column in columns), counts.fetchone(), strict=False)
    return {name: count for name, count in named if count}


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
    """Name the columns with a text that is not cleared by its bytes, in these rows, one by one."""
    suspected = set()
    for column in plan.columns:
        if not column.clears:
            continue
        statement = f"SELECT {quoted(column.name)} {_from(plan.table)}"
        for (value,) in connection.execute(statement, (rows.first, rows.last)):
            if isinstance(value, bytes) and not column.clears(value):
                suspected.add(column.name)
                break
    return suspected


def _judge_column(
    connection: sqlite3.Connection,
    plan: Plan,
    column: Column,
    rows: _Range,
    tally: Tally,
) -> None:
    statement = f"SELECT _rowid_, {quoted(column.name)} {_from(plan.table)}"
    memory: dict[bytes, Verdict | None] = {}
    found: dict[tuple[Kind, str], list[int]] = {}
    for number, value in connection.execute(statement, (rows.first, rows.last)):
        if type(value) is Text:  # equal numbers of two types, or a blob, are other values
            verdict = memory.get(value, _UNSEEN)
            if verdict is _UNSEEN:
                verdict = judge(column.target, value)
                if len(memory) < _REMEMBERED:
                    memory[value] = verdict
        else:
            verdict = judge(column.target, value)
        if verdict is not None:
            kind: Kind = "null" if value is None else verdict.kind
            found.setdefault((kind, verdict.reason), []).append(number)
    key = functools.partial(key_of, connection, plan)
    for (kind, reason), numbers in found.items():
        tally.add(kind, plan.table, column.name, reason, numbers, key)


def _judge_entries(connection: sqlite3.Connection, plan: Plan, rows: _Range, tally: Tally) -> None:
    """Find the rows whose texts are too long for an index together, though none is alone."""
    key = functools.partial(key_of, connection, plan)
    for entry in plan.entries:
        names = ", ".join(quoted(name) for name in entry)
        statement = f"SELECT _rowid_, {names} {_from(plan.table)} AND NOT ({plan.condition})"
        found = []
        for number, *values in connection.execute(statement, (rows.first, rows.last)):
            lengths = [len(value) for value in values if isinstance(value, bytes)]
            if lengths and max(lengths) <= INDEX_BYTES < sum(lengths):
                found.append(number)
        if found:
            reason = (
                f"{' and '.join(entry)} are indexed together and longer than {INDEX_BYTES} bytes"
            )
            tally.add("refused", plan.table, "", reason, found, key)


def _from(table: str) -> str:
    return f"FROM {quoted(table)} NOT INDEXED WHERE _rowid_ BETWEEN ? AND ?"


def key_of(connection: sqlite3.Connection, plan: Plan, number: int) -> str:
    """Spell the primary key of the row with this row id."""
    statement = f"SELECT {', '.join(plan.key)} FROM {quoted(plan.table)} WHERE _rowid_ = ?"  # noqa: S608
    row = connection.execute(statement, (number,)).fetchone()
    return spelled_key(row) if row else str(number)
