"""The comparison again, of a target that was exported before: nothing is changed on either side."""

from __future__ import annotations

import time

from sagewai_ops.database.sqlite.read_transaction import quoted
from sagewai_ops.errors import DifferenceError
from sagewai_ops.export.compare.rows import Result
from sagewai_ops.export.learnings.memory_facts import FACTS_TABLE
from sagewai_ops.export.load import check_same
from sagewai_ops.export.mapping.plan import Plan
from sagewai_ops.export.pipeline.comparer import comparing
from sagewai_ops.export.pipeline.sender import Reader
from sagewai_ops.export.report import Report, TableReport
from sagewai_ops.export.target_session import Session
from sagewai_ops.progress import Progress

OUTCOME = "the target was changed, or the home was"


async def verify(
    session: Session, comparer: Reader, plan: Plan, report: Report, progress: Progress | None
) -> None:
    """Compare every row of every table, and where the sequences stand.

    Tables that learnings go to are no tables of the home's; they are compared apart.

    Raises:
        DifferenceError: The two sides are not the same.
    """
    started = time.monotonic()
    connection = session.connection
    async with comparing(connection, comparer, plan, progress=progress) as comparison:
        for planned in plan.tables:
            await comparison.read_back(planned)
        await comparison.settle()
        results = await comparison.results()
    by_name = {table.name: table for table in report.tables}
    for result in results:
        by_name[result.table].compared = result
    carried = {planned.name for planned in plan.tables}
    learned = {FACTS_TABLE, *(table.table for table in report.learnings.tables)}
    compared = {table.to for table in report.learnings.tables}
    for name in sorted(session.tables.keys() - carried - compared):
        count = await connection.fetchval(f"SELECT count(*) FROM {quoted(name)}")
        if count and name in learned:
            report.notes.append(
                f"table {name}: its {count} rows were not compared; name the same --learnings as"
                " for the move"
            )
        elif count:
            result = Result(name, target_rows=count)
            result.add("", "", "extra")
            result.count = count
            report.tables.append(TableReport(name, 0, compared=result))
            results.append(result)
    report.stages["compare"] = time.monotonic() - started
    known = sum(each.count for each in report.findings if each.kind == "audit-hash")
    check_same(results, known, OUTCOME)
    await _check_sequences(session, plan)


async def _check_sequences(session: Session, plan: Plan) -> None:
    connection = session.connection
    for planned in plan.tables:
        for column in session.tables[planned.name].columns.values():
            if not column.sequence:
                continue
            # Qualified and quoted by the server itself.
            following = await connection.fetchval(
                f"SELECT CASE WHEN is_called THEN last_value + 1 ELSE last_value END"
                f" FROM {column.sequence}"
            )
            highest = await connection.fetchval(
                f"SELECT coalesce(max({quoted(column.name)}), 0) FROM {quoted(planned.name)}"
            )
            if following <= highest:
                raise DifferenceError(
                    f"table {planned.name}: its sequence gives {following} next, and {highest}"
                    f" is taken; {OUTCOME}"
                )
