"""The export that can be resumed: rows in ranges to `sagewai_incoming`, then one last transaction.

The frozen copy is kept until the end, and the rows of the server belong to it alone. The last
transaction compares every row, creates the constraints, sets the sequences, checks that the home is
still as its copy, and moves the tables to the current schema: until it is committed, nothing there
has changed, and all that was sent stays in `sagewai_incoming` for the next run or `abandon`.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagewai_ops import __version__
from sagewai_ops.database.postgres.connection import wrap_driver
from sagewai_ops.database.sqlite.content_digest import (
    digest_copy,
    is_settled,
    read_files,
)
from sagewai_ops.database.sqlite.in_use import require_unused
from sagewai_ops.database.sqlite.read_transaction import quoted
from sagewai_ops.database.url import PostgresUrl
from sagewai_ops.errors import (
    DamagedError,
    DifferenceError,
    NotFoundError,
    OpsError,
    PermissionDeniedError,
    TargetBusyError,
    UsageError,
)
from sagewai_ops.export import incoming
from sagewai_ops.export.abandon import drop
from sagewai_ops.export.export import (
    Options,
    Work,
    copying,
    explain,
    explain_refusal,
    find_violations,
    plan_tables,
    record_server,
    run_export,
    settle_values,
    timed,
)
from sagewai_ops.export.last_transaction import (
    START_AGAIN,
    FindingsError,
    Run,
    check_target,
    digest,
    finish,
    require_unchanged_home,
)
from sagewai_ops.export.load import (
    RefusedByServerError,
    defer_indexes,
    large_tables,
    refusals_of_rows,
)
from sagewai_ops.export.mapping.findings import Finding
from sagewai_ops.export.mapping.plan import Plan, as_job, from_job
from sagewai_ops.export.mapping.source_rows import open_copy
from sagewai_ops.export.mapping.target_catalog import read_tables
from sagewai_ops.export.pipeline.sender import start_workers
from sagewai_ops.export.ranges import RangeSender, rest_of
from sagewai_ops.export.report import (
    Report,
    TableReport,
    finish_report,
    report_path,
)
from sagewai_ops.export.results import Resumable
from sagewai_ops.export.target_session import (
    MOVE,
    SCAN_SETTINGS,
    Session,
)
from sagewai_ops.export.validate.validator import FAIL
from sagewai_ops.export.workdir import directory_of, export_directory, sweep_reports
from sagewai_ops.fs import atomic, locks
from sagewai_ops.fs.tempdirs import working_directory
from sagewai_ops.fs.trust import require_trusted_directory
from sagewai_ops.home.paths import Home, require
from sagewai_ops.home.server_record import record_of
from sagewai_ops.progress import Progress
from sagewai_ops.schema import alembic_runner
from sagewai_ops.schema.revision_graph import HEAD
from sagewai_ops.swap import unfinished_export
from sagewai_ops.swap.export_journal import recording, settle
from sagewai_ops.swap.unfinished_export import COPY, TEMPORARY, Unfinished

if TYPE_CHECKING:
    import asyncpg

CONTINUE = "sagewai-ops export-to-postgres URL --resumable  # continues"


def export_resumably(
    home: Home, url: PostgresUrl, options: Options, *, progress: Progress | None = None
) -> Report:
    """Begin a resumable export, or continue the one that the home has.

    Args:
        progress: As for `export`.

    Returns:
        The report. With open findings nothing is left on the server.

    Raises:
        UsageError: The unfinished export has other options or another target.
        TargetBusyError: The home or the target is in use, the target is not empty, or the home
            has changed since its copy.
        LockedError: Another run works on the home or the target.
        DamagedError: The copy or the rows that were sent have changed.
        OpsError: As `export`; what was sent stays for the next run.
    """
    require(home)
    if not home.database.is_file():
        raise NotFoundError(
            f"home {home.root}: has no database {home.database}", hint="sagewai-ops status"
        )
    report = Report(MOVE, home.database, url.display, options.policy)
    report.resumable = Resumable()
    settle(home, url)
    require_unused(home.root, home.database)
    path = report_path(report, export_directory(home), options.report)
    parent = options.work_dir or export_directory(home)
    directory = directory_of(home, options.work_dir)
    with locks.exclusive(home.root), recording(home, is_rehearsal=False) as recorded:
        if not options.work_dir:
            atomic.make_directory(parent)
        require_trusted_directory(parent)
        sweep_reports(export_directory(home))
        copy = directory / COPY
        work = Work(home, url, options, copy, path, recorded, report, progress)
        run = Run(work, directory)
        try:
            run_export(work, lambda _work: _export(run))
        except OpsError as error:
            raise _with_next_step(run, error) from error
        finally:
            if report.committed:
                record_server(work)
                _remove_copy(run)
            finish_report(report, path)
    return report


def _remove_copy(run: Run) -> None:
    try:
        unfinished_export.remove(run.directory)
    except OpsError as error:
        run.report.warnings.append(f"frozen copy {run.directory}: not removed, {error.message}")


def _with_next_step(run: Run, error: OpsError) -> OpsError:
    """Return an error whose hint names how to continue, where that can help."""
    is_final = isinstance(error, (DamagedError, UsageError))
    if is_final or run.report.committed or not unfinished_export.exists(run.directory):
        return error
    if CONTINUE in error.hint or START_AGAIN in error.hint:
        return error
    return type(error)(error.message, hint="\n".join(filter(None, (error.hint, CONTINUE))))


async def _export(run: Run) -> None:
    """Send, and explain what the server refused; then nothing of it can be used again."""
    work, report = run.work, run.report
    try:
        is_whole = await _move(run)
        if not is_whole:
            await explain(work)
    except RefusedByServerError as error:
        await explain_refusal(work, error)
    except DifferenceError as error:
        # Perhaps a value that the server accepts and does not return unchanged.
        if work.options.policy == FAIL:
            await explain(work)
        if not report.open_findings:
            raise DamagedError(
                f"{error.message}; all rows stay in schema {incoming.SCHEMA}", hint=START_AGAIN
            ) from error
    if report.open_findings:
        async with incoming.open_server(work.url) as connection:
            await drop(work.url, connection, run.directory)


async def _move(run: Run) -> bool:
    """Send what is missing, and move the tables.

    Returns:
        False if it stopped at a value, so that there may be more findings than the report has.
    """
    work, report = run.work, run.report
    state = unfinished_export.read_state(run.directory)
    if state is not None:
        _require_same(run, state)
    async with incoming.open_server(work.url) as connection:
        state = await _resume(run, connection, state)
        if state is None:
            state = await _begin(run, connection)
            if state is None:
                return True
        plan = _restore_plan(report, state)
        async with incoming.transaction(work.url, connection):
            there = await incoming.read_progress(connection)
        resumable = run.resumable
        resumable.rows_before = sum(there.rows.values())
        resumable.ranges_before = sum(there.ranges.values())
        resumable.begun_at = state.started_at
        with open_copy(work.copy) as source:
            rest = rest_of(source, plan, there.rows)
        async with start_workers(work.copy, 2) as (reader, comparer):
            if rest.tables:
                await reader.begin(rest, stream=True)
            await comparer.begin(plan, stream=False)
            if rest.tables:
                with timed(report, "send"), refusals_of_rows():
                    sender = RangeSender(
                        work.url,
                        connection,
                        reader,
                        rest,
                        there.rows,
                        report.tables,
                        work.progress,
                    )
                    sent = await sender.send()
                resumable.ranges = sent.ranges
                if sent.findings:
                    report.findings = (*report.findings, *sent.findings)
                    report.open_findings = tuple(sent.findings)
                    return work.options.policy != FAIL
            return await finish(run, connection, comparer, plan, state)


def target_of(work: Work) -> str:
    """Return the name of the target that an unfinished export is bound to."""
    return record_of(work.url, os.environ).display


def _require_same(run: Run, state: Unfinished) -> None:
    """Check that an unfinished export was begun with the same options.

    Raises:
        UsageError: It was not; the message names the first difference.
    """
    work = run.work
    differences = (
        ("home", str(work.home.root), state.home),
        ("target", target_of(work), state.target),
        ("--on-invalid", work.options.policy, state.policy),
        ("--learnings", work.options.learnings, state.learnings),
        ("version", __version__, state.program),
    )
    for name, given, begun in differences:
        if given != begun:
            raise UsageError(
                f"home {work.home.root}: its unfinished export of {state.started_at} was begun with"
                f" {name} {begun}, not {given}",
                hint=START_AGAIN,
            )


async def _resume(
    run: Run, connection: asyncpg.Connection[asyncpg.Record], state: Unfinished | None
) -> Unfinished | None:
    """Check what an earlier run left, and return it; None if there is nothing to continue."""
    url = run.work.url
    async with incoming.transaction(url, connection):
        is_there = await incoming.find(url, connection)
        binding = await incoming.read_binding(connection) if is_there else ""
    if state is None or not is_there:
        if is_there:
            raise TargetBusyError(
                f"{url.display}: schema {incoming.SCHEMA} has an unfinished export, of which"
                f" {run.directory.parent} has no copy",
                hint="sagewai-ops export-to-postgres URL --resumable --work-dir DIR"
                f"  # as it was begun\n{START_AGAIN}",
            )
        if state is not None:
            # Killed before its first commit, or after its last: the server has nothing of it.
            unfinished_export.remove(run.directory)
        return None
    if binding != state.binding:
        raise TargetBusyError(
            f"{url.display}: schema {incoming.SCHEMA} belongs to another unfinished export",
            hint=START_AGAIN,
        )
    with timed(run.report, "freeze"):
        if await digest(run, digest_copy, run.work.copy) != state.copy_sha256:
            raise DamagedError(
                f"frozen copy {run.work.copy}: changed since {state.started_at}", hint=START_AGAIN
            )
        await require_unchanged_home(run, state)
    run.resumable.resumed = True
    return state


async def _begin(run: Run, connection: asyncpg.Connection[asyncpg.Record]) -> Unfinished | None:
    """Make the copy and the schema; return None if there are findings, and then neither is left."""
    try:
        with working_directory(run.directory.parent, TEMPORARY) as temporary:
            await _begin_in(run, connection, temporary)
    except FindingsError:
        return None
    return unfinished_export.read_state(run.directory)


async def _begin_in(
    run: Run, connection: asyncpg.Connection[asyncpg.Record], temporary: Path
) -> None:
    work, report = run.work, run.report
    files = read_files(work.home.database)
    inside = dataclasses.replace(work, copy=temporary / COPY)
    async with (
        copying(work.home.database, inside.copy, work.progress) as copied,
        incoming.transaction(work.url, connection),
    ):
        session = await _open_schema(run, connection)
        with timed(report, "freeze"):
            await copied
            home_sha256 = await digest(run, digest_copy, inside.copy)
        base = await plan_tables(inside, session)
        if work.options.policy == FAIL:
            report.findings = report.open_findings = await find_violations(inside, base, session)
            plan, copy_sha256 = base, home_sha256
        else:
            plan = await settle_values(inside, base, session, write=False)
            copy_sha256 = await digest(run, digest_copy, inside.copy)
        if report.open_findings:
            raise FindingsError
        deferred = await defer_indexes(session, plan)
        await incoming.suspend_autovacuum(connection, large_tables(plan))
        state = Unfinished(
            id=secrets.token_hex(16),
            home=str(work.home.root),
            target=target_of(work),
            policy=work.options.policy,
            learnings=work.options.learnings,
            program=__version__,
            started_at=f"{report.started_at:%Y-%m-%dT%H:%M:%SZ}",
            copy_sha256=copy_sha256,
            home_sha256=home_sha256,
            home_files=files if is_settled(files) else (),
            plan=as_job(plan),
            base=as_job(base) if plan is not base else (),
            left={table.name: table.left for table in plan.tables},
            empty=plan.empty,
            notes=report.notes,
            findings=[asdict(each) for each in report.findings],
            plan_findings=[asdict(each) for each in base.findings],
            indexes=deferred.indexes,
            foreign_keys=deferred.foreign_keys,
            searched={
                table.name: sorted(session.tables[table.name].searched) for table in plan.tables
            },
        )
        unfinished_export.write_state(temporary, state)
        await incoming.bind(connection, state.binding)
        unfinished_export.keep(temporary, run.directory)


async def _open_schema(run: Run, connection: asyncpg.Connection[asyncpg.Record]) -> Session:
    """Check the target, create the schema, and migrate it to the head."""
    url = run.work.url
    async with wrap_driver(connection) as outer:
        found = await check_target(url, outer)
        if not found.may_create_schemas:
            raise PermissionDeniedError(
                f"{url.display}: the role {found.role} may not create schemas",
                hint=f"GRANT CREATE ON DATABASE {quoted(found.name)} TO {found.role};",
            )
        await incoming.create(url, connection)
        await alembic_runner.migrate(outer, HEAD)
        await outer.commit()  # a savepoint
    await connection.execute(SCAN_SETTINGS)
    run.report.server, run.report.migrated = found.version, True
    session = Session(connection, found.version, migrated=True)
    session.tables = await read_tables(connection)
    return session


def _restore_plan(report: Report, state: Unfinished) -> Plan:
    """Return the plan of the first run, and add it to the report."""
    tables = tuple(
        dataclasses.replace(table, left=tuple(state.left.get(table.name, ())))
        for table in from_job(list(state.plan))  # type: ignore[arg-type]
    )
    plan = Plan(tables, tuple(state.empty), _findings(state.plan_findings), tuple(state.notes))
    report.tables = [
        TableReport(table.name, table.rows, left_to_default=table.left) for table in tables
    ]
    report.empty, report.notes = plan.empty, list(plan.notes)
    report.findings = _findings(state.findings)
    return plan


def _findings(listed: Any) -> tuple[Finding, ...]:
    return tuple(Finding(**{**each, "keys": tuple(each["keys"])}) for each in listed)
