"""The export: copy the database, load it in one transaction, compare every row, commit.

Before the commit no other session sees a row, and any failure or difference rolls the target back.
The home's database is read once, to make the frozen copy. After the commit the home records where
its database is; nothing else is written to it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from sagewai_ops.database.postgres.transaction import (
    UnknownOutcomeError,
    current_transaction,
    is_committed,
)
from sagewai_ops.database.sqlite.in_use import require_unused
from sagewai_ops.database.sqlite.online_copy import DatabaseCopy, copy_database
from sagewai_ops.database.url import PostgresUrl
from sagewai_ops.errors import (
    DamagedError,
    DifferenceError,
    InterruptedRunError,
    NotFoundError,
    OpsError,
    RemoteError,
    TargetBusyError,
)
from sagewai_ops.export import incoming
from sagewai_ops.export.compare.audit_chain import AUDIT_TABLE
from sagewai_ops.export.learnings import learnings
from sagewai_ops.export.load import RefusedByServerError, load_tables
from sagewai_ops.export.mapping.findings import Finding
from sagewai_ops.export.mapping.plan import Plan, make_plan
from sagewai_ops.export.mapping.source_rows import open_copy
from sagewai_ops.export.pipeline.sender import Worker, start_workers
from sagewai_ops.export.report import (
    Report,
    TableReport,
    cut_over_lines,
    finish_report,
    report_path,
    write_lines,
)
from sagewai_ops.export.target_session import MOVE, PLAN, VERIFY, Session, open_session
from sagewai_ops.export.validate import repair_overlay
from sagewai_ops.export.validate.validator import FAIL, QUARANTINE, Validator
from sagewai_ops.export.verify import verify
from sagewai_ops.export.workdir import copy_directory, directory_of, export_directory
from sagewai_ops.fs.tempdirs import Keep
from sagewai_ops.home.paths import Home, require
from sagewai_ops.home.server_record import PLACE, record_of
from sagewai_ops.process.signals import run_interruptibly
from sagewai_ops.progress import Progress
from sagewai_ops.records import dataclass
from sagewai_ops.schedule.installed import find_schedules
from sagewai_ops.swap import unfinished_export
from sagewai_ops.swap.export_journal import Journal, Recording, recording, settle
from sagewai_ops.text import shell_word

Result = TypeVar("Result")

# The time of an export, as a multiple of the time that a plan takes to check; docs/export.md.
MOVE_PER_CHECK = 3.0


@dataclass(frozen=True, slots=True)
class Options:
    """The options of an export.

    Attributes:
        purpose: `move`, `plan` (check only, change nothing) or `verify` (compare again).
        policy: What happens to values that PostgreSQL refuses: one of `validator.POLICIES`.
        learnings: keep, facts or pgvector.
        allow_live: Proceed although the home is in use; writes during the export are not moved.
        report: Path of the report; None for the default path next to the home, and for
            no report of a plan.
        work_dir: Where the frozen copy is made; None for next to the home.
        keep: Keeps the copy, as in `tempdirs.kept`.
        live_first: Copy the bulk of a move while Sagewai runs, and then have it stopped.
        compare: False skips the comparison. Only the benchmarks do, to measure the copy alone.
    """

    purpose: str = MOVE
    policy: str = FAIL
    learnings: str = learnings.KEEP
    allow_live: bool = False
    report: Path | None = None
    work_dir: Path | None = None
    keep: Keep | None = None
    live_first: SecondPhase | None = None
    compare: bool = True


@dataclass(slots=True)
class Work:
    """The state of one run; its report is filled in as the run proceeds.

    Attributes:
        copy: The frozen copy; with `Options.live_first` at last the second one.
        path: Of the report; None for none.
    """

    home: Home
    url: PostgresUrl
    options: Options
    copy: Path
    path: Path | None
    recording: Recording
    report: Report
    progress: Progress | None


class SecondPhase(Protocol):
    """What an export does between the load of its tables and the commit: see `live_first`."""

    async def begin(self, work: Work, schema: Plan, plan: Plan, session: Session) -> None:
        """Check that it will be possible, before anything is sent.

        Args:
            schema: What the frozen copy has.
            plan: What is sent of it.
        """

    async def catch_up(self, work: Work, session: Session) -> None:
        """Bring the target to a later copy, which becomes that of `work`."""

    async def check(self, work: Work) -> None:
        """Check that the home did not change since then, right before the commit."""

    def end(self, work: Work) -> None:
        """End it after the commit, or after a failure."""


def export(
    home: Home, url: PostgresUrl, options: Options, *, progress: Progress | None = None
) -> Report:
    """Export a home's database to PostgreSQL, or plan or verify an export.

    Args:
        url: Includes the password if one is needed.
        progress: Called with the stages `database` in pages, `check <table>` and `copy <table>`
            in rows, `compare <table>` in bytes of an unknown total, `learnings <table>` in rows.

    Returns:
        The report. With open findings nothing was sent.

    Raises:
        NotFoundError: No home, no database in it, or no such target.
        TargetBusyError: The home or the target is in use, or the target has rows.
        SchemaBehindError, SchemaAheadError, PermissionDeniedError, UsageError, LockedError:
            The target does not meet the requirements; nothing was changed.
        DifferenceError: The target differs from its source; nothing was changed.
        RemoteError, NoSpaceError, DamagedError, InterruptedRunError, OpsError: Nothing was
            changed, unless the message states that the outcome is unknown.
    """
    require(home)
    if not home.database.is_file():
        raise NotFoundError(
            f"home {home.root}: has no database {home.database}", hint="sagewai-ops status"
        )
    report = Report(options.purpose, home.database, url.display, options.policy)
    if options.purpose == MOVE:
        settle(home, url)
        if not options.allow_live and not options.live_first:
            require_unused(home.root, home.database)
    _refuse_unfinished(report, unfinished_export.exists(directory_of(home, options.work_dir)))
    path = report_path(report, export_directory(home), options.report)
    try:
        with (
            recording(home, is_rehearsal=options.purpose != MOVE or options.allow_live) as recorded,
            copy_directory(home, options.work_dir, options.keep) as place,
        ):
            work = Work(home, url, options, place / "copy.db", path, recorded, report, progress)
            try:
                run_export(work, _export)
            finally:
                if report.committed:
                    record_server(work)
                finish_report(report, path)
    except InterruptedRunError:
        if not report.committed:
            raise
    except OpsError as error:
        if not report.committed or report.error:
            raise
        report.warnings.append(f"frozen copy {place}: not removed, {error.message}")
    return report


def _refuse_unfinished(report: Report, is_there: bool) -> None:  # noqa: FBT001
    """Refuse a move while a resumable one is unfinished; a plan reports it."""
    if is_there and report.purpose == MOVE:
        raise TargetBusyError(
            f"{report.target}: a resumable export of this home is unfinished",
            hint="sagewai-ops export-to-postgres URL --resumable  # continues it\n"
            "sagewai-ops export-to-postgres URL --abandon  # removes it",
        )
    text = "a resumable export is unfinished: --resumable continues it, --abandon removes it"
    if is_there and report.purpose == PLAN and text not in report.warnings:
        report.warnings.append(text)


def record_server(work: Work) -> None:
    """Record in the home where its database is; after a commit, a refusal is a warning."""
    try:
        work.recording.complete()
    except OpsError as error:
        work.report.warnings.append(
            f"{work.home.root / PLACE}: not written, {error.message}; sagewai-ops recover writes it"
        )


def run_export(work: Work, action: Callable[[Work], Coroutine[Any, Any, None]]) -> None:
    """Run an export, and record its error in the report.

    Raises:
        OpsError: As `export`.
    """
    report, database = work.report, work.home.database
    try:
        run_interruptibly(action, work)
    except sqlite3.Error as error:
        report.error = f"database {database}: {error}"
        raise DamagedError(report.error, hint="sagewai-ops db check") from error
    except InterruptedRunError as error:
        if not report.committed:  # else it arrived too late: the operation has completed
            report.error = error.message
            raise
    except UnknownOutcomeError as error:
        found = _find_outcome(work, error)
        report.error = found.message
        raise found from error
    except OpsError as error:
        report.error = error.message
        raise


def _find_outcome(work: Work, lost: UnknownOutcomeError) -> RemoteError:
    """Ask the server what became of the commit; return the error that states it."""
    target, committed = work.report.target, None
    reason = lost.message
    try:
        assert work.recording.journal
        committed = is_committed(work.url, work.recording.journal.transaction)
    except OpsError as error:
        reason += f", {error.message}"
    verify_command = "sagewai-ops export-to-postgres --verify-only"
    if committed is None:
        work.recording.leave()
        hint = f"sagewai-ops --home {shell_word(work.home.root)} recover --url-file FILE"
        return RemoteError(
            f"{target}: {reason}: committed or not, unknown",
            hint=verify_command if work.options.allow_live else hint,
        )
    work.report.committed = committed
    if committed:
        return RemoteError(f"{target}: {reason}; everything is committed", hint=verify_command)
    return RemoteError(f"{target}: {reason}; nothing was changed")


async def _export(work: Work) -> None:
    report, purpose = work.report, work.options.purpose
    helpers = {PLAN: 0, VERIFY: 1}.get(purpose, 1 + work.options.compare)
    session: Session | None = None
    whole = True
    async with (
        copying(work.home.database, work.copy, work.progress) as copied,
        start_workers(work.copy, helpers) as workers,
    ):
        try:
            async with open_session(work.url, purpose) as session:
                report.server, report.migrated = session.version, session.migrated
                _refuse_unfinished(report, await incoming.is_present(session.connection))
                with timed(report, "freeze"):
                    await copied
                plan = await plan_tables(work, session)
                warn(work, session)
                if purpose == PLAN:
                    await _check(work, plan, session)
                elif purpose == VERIFY:
                    await _verify(work, plan, session, workers)
                else:
                    whole = await _move(work, plan, session, workers)
                    report.cut_over = cut_over_of(work) if session.keep else ()
            if not whole:
                await explain(work)
        except RefusedByServerError as error:
            await explain_refusal(work, error)
        except DifferenceError:
            # Perhaps a value that the server accepts and does not return unchanged.
            if purpose != MOVE or work.options.policy != FAIL:
                raise
            await explain(work)
            if not report.open_findings:
                raise
        finally:
            report.committed = session is not None and session.committed
            if work.options.live_first:
                work.options.live_first.end(work)


async def _move(work: Work, plan: Plan, session: Session, workers: tuple[Worker, ...]) -> bool:
    """Send everything, or nothing.

    Returns:
        False if it stopped at a value, so that there may be more findings than the report has.
    """
    report, options = work.report, work.options
    reader, comparer = workers[0], workers[1] if options.compare else None
    schema = plan
    if options.policy != FAIL:
        plan = await settle_values(work, plan, session)
        if report.open_findings:
            return True
    await reader.begin(plan, stream=True)
    if comparer:
        await comparer.begin(plan, stream=False)
    if options.policy == FAIL:
        # The reader already encodes while the constraints are checked.
        report.findings = report.open_findings = await find_violations(work, plan, session)
        if report.open_findings:
            return True
    if options.live_first:
        await options.live_first.begin(work, schema, plan, session)
    await load_tables(session, reader, comparer, plan, report, work.progress)
    if options.live_first and not report.open_findings:
        await options.live_first.catch_up(work, session)
    if report.open_findings:
        return options.policy != FAIL
    with timed(report, "learnings"):
        report.learnings = await learnings.copy_learnings(
            work.copy, options.learnings, session.connection, progress=work.progress
        )
    if report.learnings.findings and options.policy == FAIL:
        report.findings = report.open_findings = tuple(report.learnings.findings)
        return True
    if options.live_first:
        await options.live_first.check(work)
    await begin_commit(work, session)
    session.keep = True
    return True


async def begin_commit(work: Work, session: Session, unfinished: Path | None = None) -> None:
    """Write down which transaction moves the tables, as the last step before its commit.

    Args:
        unfinished: The directory of a resumable export, which is to be removed after the commit.
    """
    transaction = await current_transaction(session.connection)
    record = record_of(work.url, os.environ)
    work.recording.write(Journal(transaction, record, str(unfinished or "")))


async def find_violations(work: Work, plan: Plan, session: Session) -> tuple[Finding, ...]:
    """Check the constraints between rows; if one is violated, check every value too.

    Otherwise single values are checked by the reading process and the server during the copy.
    """
    with timed(work.report, "check"), open_copy(work.copy) as source:
        validator = Validator(
            source, plan, session.tables, session.connection, progress=work.progress
        )
        found = [*plan.findings, *await validator.check_constraints()]
        return tuple(await validator.check_all() if found else ())


async def settle_values(work: Work, plan: Plan, session: Session, *, write: bool = True) -> Plan:
    """Repair or refuse, and write down what was: before anything is sent.

    Args:
        write: False if `write_settled` is called later.
    """
    report, policy = work.report, work.options.policy
    with timed(report, "check"), open_copy(work.copy, writable=True) as source:
        validator = Validator(
            source, plan, session.tables, session.connection, progress=work.progress
        )
        settled = await validator.settle(policy)
        report.findings, report.open_findings = settled.findings, settled.open
        report.repaired, report.refused = repair_overlay.counts(source)
        report.tables = _tables(settled.plan)
        if count := repair_overlay.refused_rows(source, AUDIT_TABLE):
            report.notes.append(
                f"table {AUDIT_TABLE}: {count} events are left out, and a chain that lacks one no"
                " longer verifies as a whole"
            )
        if write and not settled.open:
            write_settled(work, source, plan)
    return settled.plan


def write_settled(work: Work, source: sqlite3.Connection, plan: Plan) -> None:
    """Write the repaired and the quarantined values of a move next to its report.

    Args:
        source: The frozen copy.
        plan: As it was before the repairs.

    Raises:
        NoSpaceError, PermissionDeniedError, OpsError: They cannot be written.
    """
    report = work.report
    if work.path is None or report.purpose != MOVE:
        return
    if report.repaired:
        report.files["changes"] = str(work.path.with_suffix(".changes.jsonl"))
        write_lines(Path(report.files["changes"]), repair_overlay.changes(source, plan))
    if QUARANTINE in work.options.policy and report.findings:
        report.files["refused"] = str(work.path.with_suffix(".refused.jsonl"))
        lines = repair_overlay.everything_refused(source, plan)
        report.refused = write_lines(Path(report.files["refused"]), lines)


async def _check(work: Work, plan: Plan, session: Session) -> None:
    """Find all that would stop the export, rows of learnings that it would omit included."""
    if work.options.live_first:
        await work.options.live_first.begin(work, plan, plan, session)
    await _check_tables(work, plan, session)
    report, choice = work.report, work.options.learnings
    report.learnings = await learnings.check(work.copy, choice, session.connection)
    report.open_findings = (*report.open_findings, *report.learnings.findings)


async def _check_tables(work: Work, plan: Plan, session: Session) -> None:
    report = work.report
    with timed(report, "check"), open_copy(work.copy) as source:
        validator = Validator(
            source, plan, session.tables, session.connection, progress=work.progress
        )
        report.findings = report.open_findings = tuple(await validator.check_all())
    report.estimate_seconds = report.stages["check"] * MOVE_PER_CHECK


async def _verify(work: Work, plan: Plan, session: Session, workers: tuple[Worker, ...]) -> None:
    report = work.report
    report.findings = plan.findings
    if work.options.policy != FAIL:
        # The same repairs and refusals as before, so that the same rows are compared.
        plan = await settle_values(work, plan, session)
        report.open_findings = ()
    choice = work.options.learnings
    report.learnings = await learnings.verify(work.copy, choice, session.connection)
    (comparer,) = workers
    await comparer.begin(plan, stream=False)
    await verify(session, comparer, plan, report, work.progress)


async def explain(work: Work) -> None:
    """Find out which rows the server meant; it names one at most, and some it does not name."""
    compared = work.report.tables
    async with open_session(work.url, PLAN) as session:
        plan = await plan_tables(work, session)
        await _check_tables(work, plan, session)
    if not work.report.open_findings:
        work.report.tables = compared


async def explain_refusal(work: Work, error: RefusedByServerError) -> None:
    """Do so after an error of the server; what it named is the finding if there is no other."""
    report = work.report
    if work.options.policy == FAIL:
        await explain(work)
    if not report.open_findings:
        refusal = Finding(error.table, error.constraint, "server", error.message, 1)
        report.findings, report.open_findings = (*report.findings, refusal), (refusal,)


async def plan_tables(work: Work, session: Session) -> Plan:
    """Match the tables of the frozen copy with the target's, and add them to the report."""
    report = work.report
    with open_copy(work.copy) as source:
        source.text_factory = str
        plan = await make_plan(source, session.tables, session.connection)
    report.tables, report.empty, report.notes = _tables(plan), plan.empty, list(plan.notes)
    return plan


def _tables(plan: Plan) -> list[TableReport]:
    return [
        TableReport(table.name, table.rows, left_to_default=table.left) for table in plan.tables
    ]


@contextmanager
def timed(report: Report, stage: str) -> Iterator[None]:
    """Add the seconds of the block to a stage of the report."""
    started = time.monotonic()
    try:
        yield
    finally:
        report.stages[stage] = report.stages.get(stage, 0.0) + time.monotonic() - started


@asynccontextmanager
async def copying(
    database: Path, copy: Path, progress: Progress | None
) -> AsyncIterator[asyncio.Future[DatabaseCopy]]:
    """Make the frozen copy while the block runs; leaving the block early stops the copy."""

    def make_copy(report: Progress) -> DatabaseCopy:
        return copy_database(database, copy, progress=report)

    async with in_thread(make_copy, progress) as copied:
        yield copied


@asynccontextmanager
async def in_thread(
    call: Callable[[Progress], Result], progress: Progress | None
) -> AsyncIterator[asyncio.Future[Result]]:
    """Run a function in a thread during the block; leaving the block early stops it.

    Args:
        call: Ends when the callback that it gets raises an error.
    """
    stop = threading.Event()

    def report_progress(stage: str, done: int, total: int) -> None:
        if stop.is_set():
            raise InterruptedRunError(0)
        if progress:
            progress(stage, done, total)

    running = asyncio.create_task(asyncio.to_thread(call, report_progress))
    awaited = asyncio.shield(running)  # a task that is cancelled would not wait for its thread
    try:
        yield awaited
    finally:
        stop.set()
        await asyncio.wait([running])
        for each in (running, awaited):
            if each.done() and not each.cancelled():
                each.exception()  # mark as retrieved, whether or not the block awaited it


def warn(work: Work, session: Session) -> None:
    """Add warnings about a source or a target that is in use."""
    warnings = work.report.warnings
    if session.others:
        warnings.append(
            f"{len(session.others)} other sessions are connected to the target: "
            + ", ".join(session.others[:3])
        )
    if work.options.allow_live:
        warnings.append("a live home was copied: what it writes from here on is not moved")


def cut_over_of(work: Work) -> tuple[str, ...]:
    """Return the next steps after the commit."""
    count = sum(table.rows for table in work.report.learnings.tables)
    bare = dataclasses.replace(work.url, password=None)
    schedules = find_schedules(os.environ)
    return cut_over_lines(work.home.root, bare.to_string(), work.report, count, schedules)
