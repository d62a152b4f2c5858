"""What the target's constraints would refuse: references that lead nowhere, CHECKs, last numbers.

SQLite lacked some constraints, and did not enforce others; here their offenders are looked for in
the source, so that all of them are named before anything is sent. `uniques` does the same for keys
that occur twice. Each trouble knows its rows and, where there is one, the documented repair, both
as queries on the frozen copy.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from sagewai_ops.database.sqlite.read_transaction import quoted
from sagewai_ops.export.mapping.findings import KEYS_KEPT, Finding
from sagewai_ops.export.mapping.plan import Plan, PlannedTable
from sagewai_ops.export.mapping.source_rows import UUID_FUNCTION, key_text
from sagewai_ops.export.mapping.target_catalog import Check, ForeignKey, TargetTable

if TYPE_CHECKING:
    import asyncpg

COMBINATIONS_AT_ONCE = 5000  # of values that a CHECK is asked about


@dataclass(frozen=True, slots=True)
class Trouble:
    """Rows that a constraint of the target would refuse.

    Attributes:
        rows: A query for the rowids.
        column: That the repair changes; "" where there is no repair.
        repair: A query for rowid and the value that mends it.
    """

    finding: Finding
    rows: str
    column: str = ""
    repair: str = ""


def rows_of(table: PlannedTable, columns: tuple[str, ...], *, extra: str = "") -> str:
    """Spell a subquery for rows as they are carried: `row`, then `k0`, `k1` for the columns.

    Args:
        extra: More of the table's own columns, spelled, with a comma before each.
    """
    wanted = [f"{_compared(table, name)} AS k{number}" for number, name in enumerate(columns)]
    return f"(SELECT rowid AS row, {', '.join(wanted)}{extra} FROM {table.source()})"


def orphans(
    source: sqlite3.Connection, plan: Plan, table: PlannedTable, target: TargetTable
) -> Iterator[Trouble]:
    """Look for rows whose parent is not among the rows that are carried."""
    parents = {parent.name: parent for parent in plan.tables}
    for key in target.foreign_keys:
        if not table.carries(key.columns):
            continue
        children = rows_of(table, key.columns)
        numbers = range(len(key.columns))
        rows = (
            f"SELECT c.row FROM {children} c"
            f" WHERE {' AND '.join(f'c.k{number} IS NOT NULL' for number in numbers)}"
        )
        parent = parents.get(key.parent)
        if parent is not None:
            same = " AND ".join(f"p.k{number} = c.k{number}" for number in numbers)
            there = rows_of(parent, key.parent_columns)
            rows += f" AND NOT EXISTS (SELECT 1 FROM {there} p WHERE {same})"
        trouble = _orphan(source, table, target, key, rows)
        if trouble is not None:
            yield trouble


async def refused_by_checks(
    source: sqlite3.Connection,
    table: PlannedTable,
    target: TargetTable,
    server: asyncpg.Connection[asyncpg.Record],
) -> list[Trouble]:
    """Ask the server which combinations of values its CHECKs refuse, and find their rows."""
    found = []
    for check in target.checks:
        if table.carries(check.columns):
            refused = await _refused_combinations(source, table, target, check, server)
            if refused:
                found.append(_checked(source, table, check, refused))
    return found


def last_numbers(
    source: sqlite3.Connection, table: PlannedTable, target: TargetTable
) -> Iterator[Trouble]:
    """Look for rows that have the last number of a sequence: no insert could follow them."""
    for column in target.columns.values():
        if not column.sequence or column.type is None or not table.carries((column.name,)):
            continue
        last = (1 << (column.type.size * 8 - 1)) - 1
        rows = f"SELECT row FROM {rows_of(table, (column.name,))} WHERE k0 = {last}"
        count, shown = count_and_keys(source, table, rows)
        if count:
            detail = f"{last} is the last number that its sequence can give"
            yield Trouble(
                Finding(table.name, column.name, "last-number", detail, count, shown), rows
            )


def listed(rows: Iterable[int]) -> str:
    """Spell a query for rowids that are known."""
    return f"SELECT column1 AS row FROM (VALUES {', '.join(f'({row})' for row in rows)})"


def count_and_keys(
    source: sqlite3.Connection, table: PlannedTable, rows: str
) -> tuple[int, tuple[str, ...]]:
    """Count the rows of a query for rowids, and spell the first keys."""
    count, keys = 0, []
    for (row,) in source.execute(rows):
        if count < KEYS_KEPT:
            keys.append(row)
        count += 1
    return count, tuple(key_text(source, table, row) for row in islice(keys, KEYS_KEPT))


def _compared(table: PlannedTable, name: str) -> str:
    column = next(column for column in table.columns if column.name == name)
    if column.target.type.name == "uuid":
        return f"{UUID_FUNCTION}({column.expression})"
    return column.expression


def _orphan(
    source: sqlite3.Connection,
    table: PlannedTable,
    target: TargetTable,
    key: ForeignKey,
    rows: str,
) -> Trouble | None:
    count, shown = count_and_keys(source, table, rows)
    if not count:
        return None
    finding = Finding(
        table.name,
        ", ".join(key.columns),
        "orphan",
        f"there is no such row in {key.parent}",
        count,
        shown,
    )
    loose = [name for name in key.columns if not target.columns[name].not_null]
    if not loose:
        return Trouble(finding, rows)
    return Trouble(finding, rows, loose[-1], f"SELECT row, NULL AS value FROM ({rows})")


async def _refused_combinations(
    source: sqlite3.Connection,
    table: PlannedTable,
    target: TargetTable,
    check: Check,
    server: asyncpg.Connection[asyncpg.Record],
) -> list[tuple[object, ...]]:
    keys = ", ".join(f"k{number}" for number in range(len(check.columns)))
    cursor = source.execute(f"SELECT DISTINCT {keys} FROM {rows_of(table, check.columns)}")
    arrays = ", ".join(f"${number + 1}::text[]" for number in range(len(check.columns)))
    texts = ", ".join(f"c{number}" for number in range(len(check.columns)))
    casts = ", ".join(
        f"c{number}::{target.columns[name].type_name} AS {quoted(name)}"
        for number, name in enumerate(check.columns)
    )
    query = (
        f"SELECT n FROM (SELECT n, {casts} FROM unnest({arrays}) WITH ORDINALITY AS u({texts}, n))"
        f" AS v WHERE NOT ({check.expression})"
    )
    refused = []
    while combinations := cursor.fetchmany(COMBINATIONS_AT_ONCE):
        refused += await _refused_of(combinations, query, server)
    return refused


async def _refused_of(
    combinations: list[tuple[object, ...]],
    query: str,
    server: asyncpg.Connection[asyncpg.Record],
) -> list[tuple[object, ...]]:
    """Ask about some combinations; a value that is none of its column's type is left out."""
    import asyncpg

    spelled = [[_text(value) for value in column] for column in zip(*combinations, strict=True)]
    trial = server.transaction()
    await trial.start()
    try:
        records = await server.fetch(query, *spelled)
    except asyncpg.DataError:
        if len(combinations) == 1:
            return []  # it is a finding of its own
    else:
        return [combinations[record["n"] - 1] for record in records]
    finally:
        await trial.rollback()
    return [each for one in combinations for each in await _refused_of([one], query, server)]


def _checked(
    source: sqlite3.Connection,
    table: PlannedTable,
    check: Check,
    refused: list[tuple[object, ...]],
) -> Trouble:
    # Any number of them: as a condition of SQLite they would have to be few.
    wrong = {tuple(map(_plain, values)) for values in refused}
    rows = listed(
        row
        for row, *values in source.execute(f"SELECT * FROM {rows_of(table, check.columns)}")
        if tuple(map(_plain, values)) in wrong
    )
    count, shown = count_and_keys(source, table, rows)
    met = ", ".join(_text(value) or "NULL" for value in refused[0])
    detail = f"the target's {check.name} does not allow {met}"
    finding = Finding(table.name, ", ".join(check.columns), "check", detail, count, shown)
    return Trouble(finding, rows)


def _text(value: object) -> str | None:
    if isinstance(value, (bytes, bytearray)):
        return value.decode("utf-8", "replace").replace("\0", "\ufffd")
    return None if value is None else str(value)


def _plain(value: object) -> object:
    """Give a stored value as one that can be an element of a set, texts and blobs apart."""
    return (bytes(value),) if isinstance(value, bytearray) else value
