"""Filling the target inside its transaction: rows, indexes, references, sequences, comparison."""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING

from sagewai_ops.database.sqlite.read_transaction import quoted
from sagewai_ops.errors import DifferenceError
from sagewai_ops.export.compare.rows import Result
from sagewai_ops.export.mapping.plan import Plan
from sagewai_ops.export.pipeline.comparer import Comparison, comparing
from sagewai_ops.export.pipeline.deferred_indexes import WORTHWHILE_ROWS, Aside, set_aside
from sagewai_ops.export.pipeline.sender import Reader, send_tables
from sagewai_ops.export.report import Report
from sagewai_ops.export.sequences import set_sequences
from sagewai_ops.export.target_session import Session
from sagewai_ops.progress import Progress

if TYPE_CHECKING:
    import asyncpg

INDEX_MEMORY = "64MB"  # of the server, for sorting a table's keys while an index is built
# Of the planner's statistics: 3,000 rows of each table instead of 30,000. Autovacuum, which counts
# an ANALYZE of some columns as none, makes the full ones soon.
STATISTICS_TARGET = 10
# Classes of SQLSTATE that are about rows: data, integrity, limits, a trigger of somebody's own that
# refuses them; PostgreSQL manual, appendix A.
_ABOUT_ROWS = ("22", "23", "54", "P0")
_DOUBLED = "23505"  # unique_violation
# Whether nothing can change rows of a table that is filled already while the next ones are.
_STAYS = """
SELECT NOT EXISTS (SELECT 1 FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
                   WHERE NOT t.tgisinternal AND c.relnamespace = current_schema()::regnamespace)
   AND NOT EXISTS (SELECT 1 FROM pg_event_trigger WHERE evtenabled <> 'D')
"""
_COPYING = re.compile(r"^COPY (\w+), line ", re.MULTILINE)


class RefusedByServerError(Exception):
    """The server did not take a row; its transaction is gone.

    Args:
        error: Of asyncpg.
    """

    def __init__(self, error: asyncpg.PostgresError) -> None:
        copying = _COPYING.search(str(error.context or ""))
        self.table = str(error.table_name or (copying[1] if copying else ""))
        self.constraint = str(error.constraint_name or error.column_name or "")
        self.message = str(error.args[0] if error.args else error).splitlines()[0]
        if error.sqlstate == _DOUBLED and error.detail:
            self.message += f": {error.detail}"  # which key; of other rows it would be all columns
        super().__init__(self.message)


async def fill(
    session: Session,
    reader: Reader,
    comparer: Reader | None,
    plan: Plan,
    report: Report,
    progress: Progress | None,
) -> None:
    """Send everything and compare it; with findings in the report, the caller rolls back.

    Args:
        reader: Encodes the tables of the plan.
        comparer: Compares them; None to leave the comparison out.

    Raises:
        DifferenceError: The target is not the same as its source.
        RefusedByServerError: The server refused rows.
    """
    import asyncpg

    try:
        if comparer is None:
            await _fill(session, reader, None, plan, report, progress)
        else:
            async with comparing(
                session.connection, comparer, plan, progress=progress
            ) as comparison:
                await _fill(session, reader, comparison, plan, report, progress)
    except asyncpg.PostgresError as error:
        if str(error.sqlstate)[:2] not in _ABOUT_ROWS:
            raise
        raise RefusedByServerError(error) from error


async def _fill(
    session: Session,
    reader: Reader,
    comparison: Comparison | None,
    plan: Plan,
    report: Report,
    progress: Progress | None,
) -> None:
    connection = session.connection
    started = time.monotonic()
    await connection.execute(f"SET LOCAL maintenance_work_mem = '{INDEX_MEMORY}'")
    aside = await _make_room(session, plan)
    renewed = await _truncated(session, plan)
    # A trigger may change what was compared already: then all comes back when all is there.
    at_once = comparison is not None and await connection.fetchval(_STAYS)
    sent = await send_tables(
        connection,
        reader,
        plan,
        aside,
        renewed,
        stored=comparison.read_back if comparison and at_once else None,
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
    for statement in aside.foreign_keys:
        await connection.execute(statement)
    report.sequences = await set_sequences(connection, plan, session.tables)
    report.stages["constraints"] = time.monotonic() - started
    started = time.monotonic()
    if comparison is not None:
        if not at_once:
            for planned in plan.tables:
                await comparison.read_back(planned)
        # The server has nothing to do with what is left to compare.
        await asyncio.gather(comparison.settle(), _analyze(session, plan))
        results = await comparison.results()
        for result in results:
            by_name[result.table].compared = result
        known = sum(each.count for each in report.findings if each.kind == "audit-hash")
        check_same(results, known, "nothing was changed")
    else:
        await _analyze(session, plan)
    report.stages["compare"] = time.monotonic() - started


def check_same(results: list[Result], known_broken: int, outcome: str) -> None:
    """Refuse a target that is not the same as its source.

    Args:
        known_broken: Audit events whose hash is known not to survive.
        outcome: What that means for the target.

    Raises:
        DifferenceError: With the first table that differs, and its first row.
    """
    for result in results:
        if not result.same:
            first = result.differences[0]
            where = f"{first.key}: " if first.key else ""
            column = f"{first.column} " if first.column else ""
            raise DifferenceError(
                f"table {result.table}: {result.count} differences in {result.rows} rows, the"
                f" first is {where}{column}{first.what}; {outcome}",
                hint="see the report for the others",
            )
        broken = result.audit["broken"] if result.audit else 0
        if broken > known_broken:
            raise DifferenceError(
                f"table {result.table}: {broken} events no longer verify, {result.audit['keys'][0]}"  # type: ignore[index]
                f" is one; {outcome}"
            )


async def _make_room(session: Session, plan: Plan) -> Aside:
    """Set indexes aside where that pays; where something hangs on them, leave all in place."""
    import asyncpg

    large = _large(plan)
    if not large:
        return Aside({}, ())
    trial = session.connection.transaction()
    await trial.start()
    try:
        aside = await set_aside(session.connection, large)
    except asyncpg.DependentObjectsStillExistError:
        await trial.rollback()
        return Aside({}, ())
    await trial.commit()
    return aside


async def _truncated(session: Session, plan: Plan) -> frozenset[str]:
    """Give large tables new, empty files, so that rows lie in the order in which they came.

    Only so can they be written as old rows, which spares the server a later pass over all of them.
    A table that another one refers to can only be truncated together with it.

    Returns:
        The tables for which that was done; none where the server does not allow it.
    """
    import asyncpg

    names = set(_large(plan))
    while True:
        referring = {
            table.name
            for table in session.tables.values()
            if any(key.parent in names for key in table.foreign_keys)
        }
        if referring <= names:
            break
        names |= referring
    if not names:
        return frozenset()
    trial = session.connection.transaction()
    await trial.start()
    try:
        listed = ", ".join(quoted(name) for name in sorted(names))
        await session.connection.execute(f"TRUNCATE TABLE {listed}")
    except asyncpg.PostgresError:
        await trial.rollback()
        return frozenset()
    await trial.commit()
    return frozenset(names)


def _large(plan: Plan) -> list[str]:
    return [table.name for table in plan.tables if table.rows >= WORTHWHILE_ROWS]


async def _analyze(session: Session, plan: Plan) -> None:
    """Tell the planner about the columns that queries select by; autovacuum looks at the rest."""
    searched = {
        table.name: ", ".join(map(quoted, sorted(session.tables[table.name].searched)))
        for table in plan.tables
    }
    listed = ", ".join(f"{quoted(name)} ({names})" for name, names in searched.items() if names)
    if listed:
        await session.connection.execute(
            f"SET LOCAL default_statistics_target = {STATISTICS_TARGET}; ANALYZE {listed}"
        )
