"""Compare an exported database with its source again; neither is changed."""

from __future__ import annotations

import time

from sagewai_ops.database.sqlite.read_transaction import quoted
from sagewai_ops.errors import DifferenceError
from sagewai_ops.export.compare.rows import Result
from sagewai_ops.export.learnings.memory_facts import FACTS_TABLE
from sagewai_ops.export.load import check_results
from sagewai_ops.export.mapping.plan import Plan
from sagewai_ops.export.pipeline.comparer import open_comparison
from sagewai_ops.export.pipeline.sender import Worker
from sagewai_ops.export.report import Report, TableReport
from sagewai_ops.export.target_session import Session
from sagewai_ops.progress import Progress

OUTCOME = "the target or the home changed since the export"


async def verify(
    session: Session, comparer: Worker, plan: Plan, report: Report, progress: Progress | None
) -> None:
    """Compare every row of every table, and the position of the sequences.

    Tables of learnings are not in the plan; `learnings` compares them.

    Raises:
        DifferenceError: The two sides differ.
    """
    started = time.monotonic()
    connection = session.connection
    try:
        async with open_comparison(connection, comparer, plan, progress=progress) as comparison:
            for planned in plan.tables:
                await comparison.read_back(planned, sort=True)
            await comparison.finish()
            unplanned = await _check_unplanned(session, plan, report)
            await check_results(comparison, report, OUTCOME, others=unplanned)
    finally:
        report.stages["compare"] = time.monotonic() - started
    await _check_sequences(session, plan)


async def _check_unplanned(session: Session, plan: Plan, report: Report) -> list[Result]:
    """Report the tables that have rows although nothing was copied to them."""
    results = []
    planned = {table.name for table in plan.tables}
    of_learnings = {FACTS_TABLE, *(table.table for table in report.learnings.tables)}
    compared = {table.to for table in report.learnings.tables}
    for name in sorted(session.tables.keys() - planned - compared):
        count = await session.connection.fetchval(f"SELECT pg_catalog.count(*) FROM {quoted(name)}")
        if count and name in of_learnings:
            report.notes.append(
                f"table {name}: {count} rows not compared; --learnings must be that of the export"
            )
        elif count:
            result = Result(name, target_rows=count)
            result.add("", "", "extra")
            result.count = count
            report.tables.append(TableReport(name, 0, compared=result))
            results.append(result)
    return results


async def _check_sequences(session: Session, plan: Plan) -> None:
    connection = session.connection
    for planned in plan.tables:
        for column in session.tables[planned.name].columns.values():
            if not column.sequence:
                continue
            # The catalog's name is qualified and quoted.
            following = await connection.fetchval(
                f"SELECT CASE WHEN is_called THEN last_value + 1 ELSE last_value END"
                f" FROM {column.sequence}"
            )
            highest = await connection.fetchval(
                f"SELECT coalesce(pg_catalog.max({quoted(column.name)}), 0)"
                f" FROM {quoted(planned.name)}"
            )
            if following <= highest:
                raise DifferenceError(
                    f"table {planned.name}: sequence at {following}, but {highest} exists;"
                    f" {OUTCOME}"
                )
