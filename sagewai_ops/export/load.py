"""Load the target inside its transaction: rows, indexes, references, sequences, comparison."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sagewai_ops.database.postgres.connection import bounded, first_line, open_savepoint
from sagewai_ops.database.sqlite.read_transaction import quoted
from sagewai_ops.errors import DifferenceError
from sagewai_ops.export.compare.rows import Result
from sagewai_ops.export.mapping.plan import Plan
from sagewai_ops.export.mapping.target_catalog import with_referring
from sagewai_ops.export.pipeline.comparer import Comparison, open_comparison
from sagewai_ops.export.pipeline.deferred_indexes import (
    DEFERRED_ROWS,
    DeferredIndexes,
    drop_indexes,
)
from sagewai_ops.export.pipeline.sender import Worker, send_tables
from sagewai_ops.export.report import Report
from sagewai_ops.export.sequences import set_sequences
from sagewai_ops.export.target_session import Session
from sagewai_ops.progress import Progress

if TYPE_CHECKING:
    import asyncpg

INDEX_MEMORY = "64MB"  # of the server, for sorting a table's keys while an index is built
# For the planner's statistics: 3,000 rows of each table instead of 30,000. Autovacuum does not
# count an ANALYZE of some columns and runs a full one soon.
STATISTICS_TARGET = 10
# Classes of SQLSTATE that concern rows: data, integrity, limits, an exception in a user's trigger;
# PostgreSQL manual, appendix A.
_ROW_CLASSES = ("22", "23", "54", "P0")
_UNIQUE_VIOLATION = "23505"
# Whether no trigger can change the rows of a loaded table while other tables are loaded.
_NO_TRIGGERS = """
SELECT NOT EXISTS (SELECT 1 FROM pg_catalog.pg_trigger t
                   JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
                   JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                   WHERE NOT t.tgisinternal AND n.nspname = pg_catalog.current_schema())
   AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_event_trigger WHERE evtenabled <> 'D')
"""
_COPYING = re.compile(r"^COPY (.+), line ", re.MULTILINE)


class RefusedByServerError(Exception):
    """The server refused a row; the transaction is aborted.

    Args:
        error: Of asyncpg.
    """

    def __init__(self, error: asyncpg.PostgresError) -> None:
        copying = _COPYING.search(str(error.context or ""))
        self.table = str(error.table_name or (copying[1] if copying else ""))
        self.constraint = str(error.constraint_name or error.column_name or "")
        self.message = first_line(error)
        if error.sqlstate == _UNIQUE_VIOLATION and error.detail:
            self.message += (
                f": {bounded(error.detail)}"  # the key; for other errors it is the whole row
            )
        super().__init__(self.message)


async def load_tables(
    session: Session,
    reader: Worker,
    comparer: Worker | None,
    plan: Plan,
    report: Report,
    progress: Progress | None,
) -> None:
    """Send all tables and compare them; if the report has findings, the caller rolls back.

    Args:
        reader: Encodes the tables of the plan.
        comparer: Compares them; None omits the comparison.

    Raises:
        DifferenceError: The target differs from its source.
        RefusedByServerError: The server refused rows.
    """
    with refusals_of_rows():
        if comparer is None:
            await _load(session, reader, None, plan, report, progress)
        else:
            async with open_comparison(
                session.connection, comparer, plan, progress=progress
            ) as comparison:
                await _load(session, reader, comparison, plan, report, progress)


@contextmanager
def refusals_of_rows() -> Iterator[None]:
    """Turn the server's errors about rows inside the block into `RefusedByServerError`."""
    import asyncpg

    try:
        yield
    except asyncpg.PostgresError as error:
        if str(error.sqlstate)[:2] not in _ROW_CLASSES:
            raise
        raise RefusedByServerError(error) from error


async def _load(
    session: Session,
    reader: Worker,
    comparison: Comparison | None,
    plan: Plan,
    report: Report,
    progress: Progress | None,
) -> None:
    connection = session.connection
    started = time.monotonic()
    await connection.execute(f"SET LOCAL maintenance_work_mem = '{INDEX_MEMORY}'")
    deferred = await defer_indexes(session, plan)
    truncated = await _truncate_large(session, plan)
    # A trigger may change rows that were compared: then all are read back after the last table.
    at_once = comparison is not None and not await has_triggers(connection)
    sent = await send_tables(
        connection,
        reader,
        plan,
        deferred,
        truncated,
        after_rows=comparison.read_back if comparison and at_once else None,
        progress=progress,
    )
    report.findings = (*report.findings, *sent.findings)
    report.open_findings = tuple(sent.findings)
    by_name = {table.name: table for table in report.tables}
    for copied in sent.tables:
        table = by_name[copied.table]
        table.size_bytes, table.seconds = copied.size_bytes, copied.seconds
        table.index_seconds = copied.index_seconds
    report.stages["send"] = time.monotonic() - started
    if sent.findings:
        return
    started = time.monotonic()
    for statement in deferred.foreign_keys:
        await connection.execute(statement)
    report.sequences = await set_sequences(connection, plan, session.tables)
    report.stages["constraints"] = time.monotonic() - started
    started = time.monotonic()
    if comparison is not None:
        if not at_once:
            for planned in plan.tables:
                await comparison.read_back(planned)
        # The remaining blocks are compared without the server.
        await asyncio.gather(comparison.finish(), analyze(session, plan))
        await check_results(comparison, report, "nothing was changed")
    else:
        await analyze(session, plan)
    report.stages["compare"] = time.monotonic() - started


async def has_triggers(connection: asyncpg.Connection[asyncpg.Record]) -> bool:
    """Return whether a trigger may change the rows of a table while others are loaded."""
    return not await connection.fetchval(_NO_TRIGGERS)


async def check_results(
    comparison: Comparison, report: Report, outcome: str, *, others: Iterable[Result] = ()
) -> None:
    """Add the results of a comparison to the report, and refuse a target that differs.

    Args:
        outcome: The state of the target, for the message.
        others: Results for tables that are not in the plan.

    Raises:
        DifferenceError: With the first table that differs, and its first row.
    """
    by_name = {table.name: table for table in report.tables}
    results = await comparison.results()
    for result in results:
        by_name[result.table].compared = result
    known_broken = sum(each.count for each in report.findings if each.kind == "audit-hash")
    for result in (*results, *others):
        if not result.same:
            first = result.differences[0]
            key = f"{first.key}: " if first.key else ""
            column = f"{first.column} " if first.column else ""
            raise DifferenceError(
                f"table {result.table}: {result.count} differences in {result.rows} rows, the"
                f" first is {key}{column}{first.what}; {outcome}; the report names the others"
            )
        broken = result.audit["broken"] if result.audit else 0
        if broken > known_broken:
            raise DifferenceError(
                f"table {result.table}: {broken} events no longer verify, such as"
                f" {result.audit['keys'][0]}; {outcome}"  # type: ignore[index]
            )


async def defer_indexes(session: Session, plan: Plan) -> DeferredIndexes:
    """Drop the indexes of large tables; keep all of them if other objects depend on one."""
    import asyncpg

    large = large_tables(plan)
    if not large:
        return DeferredIndexes({}, ())
    try:
        async with open_savepoint(session.connection):
            return await drop_indexes(session.connection, large)
    except asyncpg.DependentObjectsStillExistError:
        return DeferredIndexes({}, ())


async def _truncate_large(session: Session, plan: Plan) -> frozenset[str]:
    """Truncate large tables, so that COPY can freeze their rows and stores them in order.

    Frozen rows spare the server a later vacuum of the whole table. A table that another one
    refers to can only be truncated together with it.

    Returns:
        The truncated tables; none where the server does not allow it.
    """
    names = with_referring(session.tables, large_tables(plan))
    return frozenset(names if await truncate(session.connection, names) else ())


async def truncate(connection: asyncpg.Connection[asyncpg.Record], names: Collection[str]) -> bool:
    """Truncate tables together, if the server allows it; return whether it did."""
    import asyncpg

    if not names:
        return False
    listed = ", ".join(quoted(name) for name in sorted(names))
    try:
        async with open_savepoint(connection):
            await connection.execute(f"TRUNCATE TABLE {listed}")
    except asyncpg.PostgresError:
        return False
    return True


def large_tables(plan: Plan) -> list[str]:
    """Return the tables with many rows, which are loaded without their indexes."""
    return [table.name for table in plan.tables if table.rows >= DEFERRED_ROWS]


async def analyze(session: Session, plan: Plan) -> None:
    """Analyze the columns that queries select by; autovacuum analyzes the others."""
    searched = {
        table.name: ", ".join(map(quoted, sorted(session.tables[table.name].searched)))
        for table in plan.tables
    }
    listed = ", ".join(f"{quoted(name)} ({names})" for name, names in searched.items() if names)
    if listed:
        await session.connection.execute(
            f"SET LOCAL default_statistics_target = {STATISTICS_TARGET}; ANALYZE {listed}"
        )
