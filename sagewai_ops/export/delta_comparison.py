"""Compare the target with the later copy after a delta was applied to it.

Before, every row was compared with the earlier copy, and only this session has changed the target
since. So the rows that the delta sent are compared, a sample of the others, and the number of rows
of every table. Tables that more may have happened to are compared as a whole.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from sagewai_ops.database.sqlite.read_transaction import quoted
from sagewai_ops.errors import DifferenceError
from sagewai_ops.export.compare.audit_chain import AUDIT_TABLE, trail_of
from sagewai_ops.export.compare.normalise import differing
from sagewai_ops.export.compare.rows import Result, read_columns
from sagewai_ops.export.delta import (
    Delta,
    Row,
    has_key,
    is_changed,
    key_columns,
    key_reader,
    keys_query,
    select_rows,
)
from sagewai_ops.export.load import check_results, has_triggers
from sagewai_ops.export.mapping.plan import Plan, PlannedTable
from sagewai_ops.export.mapping.source_rows import BATCH_BYTES, BATCH_ROWS, open_copy
from sagewai_ops.export.mapping.target_catalog import TargetTable
from sagewai_ops.export.pipeline.comparer import open_comparison
from sagewai_ops.export.pipeline.sender import Worker
from sagewai_ops.export.report import Report
from sagewai_ops.export.target_session import Session
from sagewai_ops.progress import Progress
from sagewai_ops.records import dataclass

if TYPE_CHECKING:
    import asyncpg

SAMPLE_ROWS = 500  # of each table
_OUTCOME = "nothing was changed"


@dataclass(frozen=True, slots=True)
class Compared:
    """What was compared: rows that were sent, others, and tables as a whole."""

    changed: int
    sampled: int
    whole: tuple[str, ...]


async def compare_delta(
    session: Session,
    comparer: Worker,
    plan: Plan,
    delta: Delta,
    report: Report,
    earlier: Mapping[str, Result],
    progress: Progress | None,
    *,
    every_row: bool,
) -> Compared:
    """Compare the target with the later copy, and add the results to the report.

    Args:
        comparer: A worker of the later copy, that has not begun.
        plan: Of the later copy.
        earlier: The results of the comparison with the earlier copy, by table.
        every_row: Compare all tables as a whole.

    Raises:
        DifferenceError: The target differs from its source.
    """
    connection, targets = session.connection, session.tables
    whole = set(delta.uncertain)
    if delta.deleted.get(AUDIT_TABLE):
        whole.add(AUDIT_TABLE)  # its hashes are counted again
    if every_row or await has_triggers(connection):
        whole |= {table.name for table in plan.tables}
    counts = await _check_counts(connection, plan, delta, targets)
    changed = sampled = 0
    results = []
    with open_copy(comparer.copy) as source:
        for table in plan.tables:
            if table.name in whole:
                continue
            result = Result(table.name, table.rows, counts[table.name])
            if table.name in earlier:
                result.audit = earlier[table.name].audit
            if table.name in delta.sent:
                rowids = [
                    row
                    for (row,) in source.execute(
                        f"SELECT rowid FROM {quoted(table.name)} WHERE {is_changed(table.name)}"
                        " ORDER BY rowid"
                    )
                ]
                await _compare_rows(connection, source, table, targets[table.name], rowids, result)
                changed += len(rowids)
            rowids = _sample(source, table)
            unchecked = Result(table.name)  # the hashes of these were counted before
            await _compare_rows(connection, source, table, targets[table.name], rowids, unchecked)
            sampled += len(rowids)
            for difference in unchecked.differences:
                result.add(difference.key, difference.column, difference.what)
            results.append(result)
    by_name = {table.name: table for table in report.tables}
    for result in results:
        by_name[result.table].compared = result
    named = Plan(tuple(table for table in plan.tables if table.name in whole), ())
    await comparer.begin(named, stream=False)
    async with open_comparison(connection, comparer, named, progress=progress) as comparison:
        for table in named.tables:
            await comparison.read_back(table)
        await comparison.finish()
        await check_results(comparison, report, _OUTCOME, others=results)
    return Compared(changed, sampled, tuple(table.name for table in named.tables))


async def _check_counts(
    connection: asyncpg.Connection[asyncpg.Record],
    plan: Plan,
    delta: Delta,
    targets: Mapping[str, TargetTable],
) -> dict[str, int]:
    """Count the rows of every table of the target, also of those that should have none."""
    expected = {name: 0 for name in targets if name in delta.deleted}
    expected |= {name: 0 for name in plan.empty if name in targets}
    expected |= {table.name: table.rows for table in plan.tables}
    counts = {}
    for name, rows in expected.items():
        query = f"SELECT pg_catalog.count(*) FROM ONLY {quoted(name)}"
        counts[name] = int(await connection.fetchval(query))
        if counts[name] != rows:
            raise DifferenceError(
                f"table {name}: {rows} rows in the home, {counts[name]} in the target; {_OUTCOME}"
            )
    return counts


def _sample(source: sqlite3.Connection, table: PlannedTable) -> list[int]:
    """Return rowids of some rows of the source, at random, that the delta did not send."""
    others = f"NOT {is_changed(table.name)}"
    unsent = replace(table, where=f"{table.where} AND {others}" if table.where else others)
    read = f"SELECT rowid FROM {unsent.source()}"
    if table.rows <= SAMPLE_ROWS:
        return [row for (row,) in source.execute(f"{read} ORDER BY rowid")]
    lowest, highest = (
        source.execute(f"SELECT {edge}(rowid) FROM {quoted(table.name)}").fetchone()[0]
        for edge in ("min", "max")
    )
    found = set()
    for _ in range(SAMPLE_ROWS):
        start = random.randint(lowest, highest)  # noqa: S311 - a sample, no secret
        row = source.execute(f"{read} AND rowid >= ? ORDER BY rowid LIMIT 1", (start,)).fetchone()
        if row:
            found.add(row[0])
    return sorted(found)


async def _compare_rows(
    connection: asyncpg.Connection[asyncpg.Record],
    source: sqlite3.Connection,
    table: PlannedTable,
    target: TargetTable,
    rowids: list[int],
    result: Result,
) -> None:
    """Compare some rows of a table by value, and the hashes of audit events."""
    trail = trail_of(source, table)
    if trail and result.audit:
        trail.merge(result.audit)
    columns = ", ".join(read_columns(table, "t."))
    query = (
        f"SELECT k.place, {columns} FROM {keys_query(target, table.key)}"
        f" JOIN ONLY {quoted(table.name)} AS t ON {has_key(table.key)} ORDER BY k.place"
    )
    key_of = key_reader(table)
    for rows in _batches(select_rows(source, table, rowids)):
        keys = [key_of(row) for row in rows]
        pieces: list[bytes] = []

        async def receive(content: bytes, pieces: list[bytes] = pieces) -> None:
            pieces.append(content)

        await connection.copy_from_query(query, *key_columns(keys), output=receive, format="text")
        lines = [line.split(b"\t") for line in b"".join(pieces).split(b"\n")[:-1]]
        met = {int(line[0]): line[1:] for line in lines}
        for place in range(1, len(keys) + 1):
            if place not in met:
                result.add(", ".join(keys[place - 1]), "", "missing")
        if not met:
            continue
        sources = list(zip(*(rows[place - 1][:-1] for place in met), strict=True))
        values = list(zip(*met.values(), strict=True))
        places = list(met)
        for column, stored, read in zip(table.columns, sources, values, strict=True):
            for number in differing(column.target.type, stored, read):
                result.add(", ".join(keys[places[number] - 1]), column.name, "differs")
        if trail:
            trail.add(values)
    if trail:
        result.audit = trail.as_dict()


def _batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    """Collect rows into batches of a bounded size."""
    batch: list[Row] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += sum(len(field) for field in row if isinstance(field, (bytes, bytearray)))
        if len(batch) == BATCH_ROWS or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
