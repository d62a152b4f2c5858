"""Find rows that the target's constraints would refuse: orphans, CHECKs, last numbers.

SQLite lacks some of the constraints and does not enforce others, so violations are searched in the
source, and all of them are reported before anything is sent; `duplicates` does so for unique keys.
A violation has its rows and, if there is one, the documented repair, both as queries on the frozen
copy.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from sagewai_ops.database.postgres.connection import open_savepoint
from sagewai_ops.database.sqlite.read_transaction import quoted
from sagewai_ops.export.mapping.findings import KEYS_KEPT, Finding
from sagewai_ops.export.mapping.plan import Plan, PlannedTable
from sagewai_ops.export.mapping.source_rows import compared_expression, read_key_text
from sagewai_ops.export.mapping.target_catalog import Check, TargetTable
from sagewai_ops.records import dataclass

if TYPE_CHECKING:
    import asyncpg

COMBINATIONS_AT_ONCE = 5000  # of values for which the server evaluates a CHECK


@dataclass(frozen=True, slots=True)
class Violation:
    """Rows that a constraint of the target would refuse.

    Attributes:
        rows: A query for the rowids.
        column: The column that the repair changes; "" without a repair.
        repair: A query for rowids and repaired values.
    """

    finding: Finding
    rows: str
    column: str = ""
    repair: str = ""


def rows_of(table: PlannedTable, columns: tuple[str, ...], *, extra: str = "") -> str:
    """Return a subquery for rows as they are exported: `row`, then `k0`, `k1` for the columns.

    Args:
        extra: More of the table's own columns, quoted, each after a comma.
    """
    keys = [
        f"{compared_expression(table.column(name))} AS k{number}"
        for number, name in enumerate(columns)
    ]
    return f"(SELECT rowid AS row, {', '.join(keys)}{extra} FROM {table.source()})"


def find_rows(
    source: sqlite3.Connection,
    table: PlannedTable,
    columns: tuple[str, ...],
    kind: str,
    detail: str,
    rows: str,
    column: str = "",
    repair: str = "",
) -> Iterator[Violation]:
    """Yield the violation of the rows that a query for rowids finds, if there are any."""
    count, first = 0, []
    for (row,) in source.execute(rows):
        if count < KEYS_KEPT:
            first.append(row)
        count += 1
    if count:
        keys = tuple(read_key_text(source, table, row) for row in first)
        names, repaired = ", ".join(columns), count if column else 0
        finding = Finding(table.name, names, kind, detail, count, keys, repaired)
        yield Violation(finding, rows, column, repair)


def find_orphans(
    source: sqlite3.Connection, plan: Plan, table: PlannedTable, target: TargetTable
) -> Iterator[Violation]:
    """Find rows whose parent is not exported."""
    parents = {parent.name: parent for parent in plan.tables}
    for key in target.foreign_keys:
        if not table.has_columns(key.columns):
            continue
        children = rows_of(table, key.columns)
        numbers = range(len(key.columns))
        rows = (
            f"SELECT c.row FROM {children} c"
            f" WHERE {' AND '.join(f'c.k{number} IS NOT NULL' for number in numbers)}"
        )
        parent = parents.get(key.parent)
        if parent is not None:
            match = " AND ".join(f"p.k{number} = c.k{number}" for number in numbers)
            parents_rows = rows_of(parent, key.parent_columns)
            rows += f" AND NOT EXISTS (SELECT 1 FROM {parents_rows} p WHERE {match})"
        nullable = [name for name in key.columns if not target.columns[name].not_null]
        repair = (nullable[-1], f"SELECT row, NULL AS value FROM ({rows})") if nullable else ()
        detail = f"no such row in {key.parent}"
        yield from find_rows(source, table, key.columns, "orphan", detail, rows, *repair)


async def find_check_violations(
    source: sqlite3.Connection,
    table: PlannedTable,
    target: TargetTable,
    server: asyncpg.Connection[asyncpg.Record],
) -> list[Violation]:
    """Have the server evaluate its CHECKs for all combinations of values, and find their rows."""
    found: list[Violation] = []
    for check in target.checks:
        if table.has_columns(check.columns):
            refused = await _refused_combinations(source, table, target, check, server)
            if refused:
                found.extend(_check_violations(source, table, check, refused))
    return found


def find_last_numbers(
    source: sqlite3.Connection, table: PlannedTable, target: TargetTable
) -> Iterator[Violation]:
    """Find rows with the last number of a sequence: no insert could follow them."""
    for column in target.columns.values():
        if not column.sequence or column.type is None or not table.has_columns((column.name,)):
            continue
        last = (1 << (column.type.size * 8 - 1)) - 1
        rows = f"SELECT row FROM {rows_of(table, (column.name,))} WHERE k0 = {last}"
        detail = f"{last} is the last number of its sequence"
        yield from find_rows(source, table, (column.name,), "last-number", detail, rows)


def query_of(rows: Iterable[int]) -> str:
    """Return a query for known rowids."""
    return f"SELECT column1 AS row FROM (VALUES {', '.join(f'({row})' for row in rows)})"


async def _refused_combinations(
    source: sqlite3.Connection,
    table: PlannedTable,
    target: TargetTable,
    check: Check,
    server: asyncpg.Connection[asyncpg.Record],
) -> list[tuple[object, ...]]:
    keys = ", ".join(f"k{number}" for number in range(len(check.columns)))
    cursor = source.execute(f"SELECT DISTINCT {keys} FROM {rows_of(table, check.columns)}")
    arrays = ", ".join(
        f"pg_catalog.unnest(${number + 1}::text[])" for number in range(len(check.columns))
    )
    texts = ", ".join(f"c{number}" for number in range(len(check.columns)))
    casts = ", ".join(
        f"c{number}::{target.columns[name].type_name} AS {quoted(name)}"
        for number, name in enumerate(check.columns)
    )
    query = (
        f"SELECT n FROM (SELECT n, {casts}"
        f" FROM ROWS FROM ({arrays}) WITH ORDINALITY AS u({texts}, n))"
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
    """Return the refused combinations; those with a value of another type are skipped."""
    import asyncpg

    arguments = [[_text(value) for value in column] for column in zip(*combinations, strict=True)]
    try:
        async with open_savepoint(server, is_trial=True):
            records = await server.fetch(query, *arguments)
    except asyncpg.DataError:
        if len(combinations) == 1:
            return []  # the value is a finding of its own
    else:
        return [combinations[record["n"] - 1] for record in records]
    return [
        refused
        for combination in combinations
        for refused in await _refused_of([combination], query, server)
    ]


def _check_violations(
    source: sqlite3.Connection,
    table: PlannedTable,
    check: Check,
    refused: list[tuple[object, ...]],
) -> Iterator[Violation]:
    # In a set: a condition of SQLite is limited in length.
    violating = {tuple(map(_hashable, values)) for values in refused}
    rows = query_of(
        row
        for row, *values in source.execute(f"SELECT * FROM {rows_of(table, check.columns)}")
        if tuple(map(_hashable, values)) in violating
    )
    values = ", ".join(_text(value) or "NULL" for value in refused[0])
    detail = f"the target's {check.name} refuses {values}"
    return find_rows(source, table, check.columns, "check", detail, rows)


def _text(value: object) -> str | None:
    if isinstance(value, (bytes, bytearray)):
        return value.decode("utf-8", "replace").replace("\0", "\ufffd")
    return None if value is None else str(value)


def _hashable(value: object) -> object:
    """Return a stored value as one that a set can contain; texts and blobs differ."""
    return (bytes(value),) if isinstance(value, bytearray) else value
