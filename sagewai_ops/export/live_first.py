"""The second phase of an export that begins while Sagewai runs: stop, copy again, catch up.

The first frozen copy is in the target, in the open transaction, when Sagewai has to stop. Then a
second copy is made: of a duplicate of the first one, only the pages that differ are written, and
their rows are those that may differ. These are applied, and the result is compared. Sagewai is
stopped for no longer than that.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from sagewai_ops.database.postgres.transaction import UnknownOutcomeError
from sagewai_ops.database.sqlite.in_use import find_users, require_unused
from sagewai_ops.database.sqlite.online_copy import copy_database, duplicate
from sagewai_ops.database.sqlite.page_changes import PageChanges, find_page_changes
from sagewai_ops.database.sqlite.page_comparison import (
    PageComparison,
    compare_files,
    open_comparison,
)
from sagewai_ops.database.sqlite.raw_copy import FileStates, file_states
from sagewai_ops.errors import DamagedError, PermissionDeniedError, TargetBusyError
from sagewai_ops.export.delta import Delta, apply_delta, discard_changes, require_keys
from sagewai_ops.export.delta_comparison import Compared, compare_delta
from sagewai_ops.export.export import Work, in_thread, plan_tables, settle_values, timed
from sagewai_ops.export.mapping.plan import Plan
from sagewai_ops.export.mapping.source_rows import open_copy
from sagewai_ops.export.pipeline.sender import SendResult, start_workers
from sagewai_ops.export.report import Report, TableReport, discard_files
from sagewai_ops.export.results import CatchUp
from sagewai_ops.export.sequences import set_sequences
from sagewai_ops.export.target_session import PLAN, Session
from sagewai_ops.export.validate.repair_overlay import IS_OWN
from sagewai_ops.export.validate.validator import FAIL
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.home.paths import Home
from sagewai_ops.process.command_output import run_command
from sagewai_ops.progress import Progress
from sagewai_ops.records import dataclass
from sagewai_ops.schema.sqlite_revision import read_level
from sagewai_ops.text import printable, shell_word

if TYPE_CHECKING:
    import asyncpg

# The events of `LiveFirst.notify`.
STOP = "stop"  # Sagewai has to be stopped by the operator
STOPPED = "stopped"  # no process uses the home
UNCHANGED = "unchanged"  # the export failed after STOP: Sagewai can be started again

_POLL_SECONDS = 0.2
_SERVER_SECONDS = 2.0  # between two queries that show whether the connection is alive
_TIMEOUTS = ("idle_in_transaction_session_timeout", "statement_timeout", "transaction_timeout")
_LIMITS = """
SELECT s.name || ' = ' || s.setting || coalesce(s.unit, '') FROM pg_catalog.pg_settings s
WHERE s.name = ANY($1::text[]) AND s.setting <> '0' ORDER BY s.name
"""

Notify: TypeAlias = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class StopOptions:
    """How Sagewai is stopped.

    Attributes:
        command: A program and its arguments that stop it; empty for none.
        wait_seconds: From then until no process uses the home.
    """

    command: tuple[str, ...] = ()
    wait_seconds: float = 300.0


class LiveFirst:
    """The second phase of one export; pass it as `Options.live_first`.

    Args:
        notify: Called with STOP, unless there is a command, STOPPED and UNCHANGED.
        stop: How Sagewai is stopped.
        every_row: Compare every row again at the end, and not a sample of the unchanged ones.
    """

    def __init__(
        self, notify: Notify, stop: StopOptions | None = None, *, every_row: bool = False
    ) -> None:
        self._notify = notify
        self._stop = stop or StopOptions()
        self._every_row = every_row
        self._plans: tuple[Plan, Plan] = (Plan((), ()), Plan((), ()))  # as it is, as it is sent
        self._digest = ""  # of the first copy
        self._states: FileStates = ()  # of the home's database
        self._stopped_at: float | None = None
        self._is_announced = False

    async def begin(self, work: Work, schema: Plan, plan: Plan, session: Session) -> None:
        """Check that rows can be replaced, and that the server does not end a waiting session.

        Raises:
            PermissionDeniedError: It does.
            UsageError: A table has no usable primary key.
            NoSpaceError, PermissionDeniedError, OpsError: The copy cannot be duplicated.
        """
        await require_no_timeouts(session.connection, work.url.display)
        require_keys(schema)
        self._plans = (schema, plan)
        if work.report.purpose == PLAN:
            return
        first, second = work.copy, _second(work.copy)
        async with in_thread(lambda report: duplicate(first, second, report), None) as duplicated:
            self._digest = await duplicated

    async def catch_up(self, work: Work, session: Session) -> None:
        """Have Sagewai stopped, and bring the target to what the home has then.

        If it adds findings to the report, the caller rolls back.

        Raises:
            TargetBusyError: The home is in use, or its schema was changed.
            DifferenceError: The target differs from its source.
            RefusedByServerError: The server refused rows.
            DamagedError: A copy is damaged, or the first one was changed.
        """
        report, first = work.report, work.copy
        earlier = {table.name: table for table in report.tables}
        report.caught_up = caught_up = CatchUp()
        with timed(report, "wait"):
            self._is_announced = True
            self._states = await wait_until_stopped(
                work.home, self._stop, session.connection, self._notify
            )
        self._stopped_at = time.monotonic()
        self._notify(STOPPED)
        caught_up.waited_seconds = report.stages["wait"]
        work.copy = _second(first)
        try:
            await self._apply(work, first, session, caught_up, earlier)
        finally:
            with contextlib.suppress(sqlite3.Error):  # damaged, or not there yet
                discard_changes(work.copy)

    async def check(self, work: Work) -> None:
        """Check that no process uses the home, and that none has written to its database.

        Raises:
            TargetBusyError: One does, or did.
        """
        home = work.home
        await asyncio.to_thread(require_unused, home.root, home.database)
        if _states(home) != self._states:
            raise TargetBusyError(
                f"home {home.root}: its database was changed after Sagewai had stopped",
                hint=f"sagewai-ops --home {shell_word(home.root)} status  # then run it again",
            )

    def end(self, work: Work) -> None:
        """Note how long Sagewai was stopped, or that it can be started again."""
        report = work.report
        if report.committed and report.caught_up and self._stopped_at is not None:
            report.caught_up.stopped_seconds = time.monotonic() - self._stopped_at
        elif self._is_announced and not isinstance(sys.exc_info()[1], UnknownOutcomeError):
            self._notify(UNCHANGED)

    async def _apply(
        self,
        work: Work,
        first: Path,
        session: Session,
        caught_up: CatchUp,
        earlier: Mapping[str, TableReport],
    ) -> None:
        """Copy again, apply the differences, and compare.

        Args:
            caught_up: Is filled in.
            earlier: The tables of the first copy, by name.
        """
        report, database, second, digest = work.report, work.home.database, work.copy, self._digest
        async with (
            in_thread(
                lambda progress: copy_again(database, second, first, digest, progress),
                work.progress,
            ) as copied,
            start_workers(second, 2) as (reader, comparer),
        ):
            with timed(report, "freeze again"):
                comparison = await copied
            plan, changes = await self._find(work, first, session, comparison)
            if report.open_findings:
                return
            with timed(report, "send changes"):
                delta = await apply_delta(
                    session.connection,
                    reader,
                    first,
                    (self._plans[1], plan),
                    changes.rows,
                    session.tables,
                    work.progress,
                    is_settled=work.options.policy != FAIL,
                )
            _merge_tables(report, earlier, delta.result)
            if delta.result.findings:
                report.findings = report.open_findings = tuple(delta.result.findings)
                return
            with timed(report, "compare again"):
                report.sequences = await set_sequences(session.connection, plan, session.tables)
                compared = await compare_delta(
                    session,
                    comparer,
                    plan,
                    delta,
                    report,
                    {name: table.compared for name, table in earlier.items() if table.compared},
                    work.progress,
                    every_row=self._every_row,
                )
        _describe(caught_up, changes, delta, compared)

    async def _find(
        self, work: Work, first: Path, session: Session, comparison: PageComparison
    ) -> tuple[Plan, PageChanges]:
        """Return what the second copy sends, and the rows that may differ."""
        report = work.report
        schema = plan = await plan_tables(work, session)
        require_keys(schema)
        with open_copy(first) as old, open_copy(work.copy) as new:
            old.text_factory = new.text_factory = str
            require_same_schema((old, new), (self._plans[0], schema), work.home)
        names = dict.fromkeys(
            table.name for each in (self._plans[0], schema) for table in each.tables
        )

        def find(progress: Progress) -> PageChanges:
            return find_page_changes(
                first, work.copy, names, comparison=comparison, progress=progress
            )

        with timed(report, "find changes"):
            async with in_thread(find, work.progress) as found:
                changes = await found
        if work.options.policy == FAIL:
            report.findings = report.open_findings = schema.findings
        else:
            discard_files(report)
            plan = await settle_values(work, schema, session)
        return plan, changes


async def require_no_timeouts(connection: asyncpg.Connection[asyncpg.Record], display: str) -> None:
    """Check that the server does not end the session while it waits.

    Args:
        display: The URL, without its password.

    Raises:
        PermissionDeniedError: A limit is set, in the URL or for a role that may not change it.
    """
    limits = [str(row[0]) for row in await connection.fetch(_LIMITS, list(_TIMEOUTS))]
    if limits:
        raise PermissionDeniedError(
            f"{display}: {', '.join(map(printable, limits))} for this session, which would end"
            " while it waits for Sagewai to stop",
            hint="psql URL -c 'ALTER ROLE NAME SET idle_in_transaction_session_timeout = 0'"
            "  # and the others; or remove them from the URL",
        )


async def wait_until_stopped(
    home: Home,
    options: StopOptions,
    connection: asyncpg.Connection[asyncpg.Record],
    notify: Notify,
) -> FileStates:
    """Have Sagewai stopped, and wait until no process uses the home.

    Returns:
        The state of the database's files.

    Raises:
        TargetBusyError: The home is still in use, or the command failed.
        NotFoundError, PermissionDeniedError, UsageError: The command cannot be started.
        asyncpg.PostgresError, OSError: The connection was lost.
    """
    deadline = time.monotonic() + options.wait_seconds
    if options.command:
        await run_command(options.command, "stop command", options.wait_seconds)
    else:
        notify(STOP)
    asked = time.monotonic()
    while time.monotonic() < deadline:
        if not await asyncio.to_thread(find_users, home.database, root=home.root):
            break
        await asyncio.sleep(_POLL_SECONDS)
        if time.monotonic() >= asked + _SERVER_SECONDS:
            await connection.execute("SELECT")
            asked = time.monotonic()
    await asyncio.to_thread(require_unused, home.root, home.database)
    return _states(home)


def require_same_schema(
    sources: tuple[sqlite3.Connection, sqlite3.Connection], plans: tuple[Plan, Plan], home: Home
) -> None:
    """Check that both copies have the same tables, indexes, views and triggers.

    Args:
        sources: The copies, with the usual text factory.
        plans: Before repairs.

    Raises:
        TargetBusyError: An upgrade, or another program, changed the schema between them.
    """
    before, after = map(_objects, sources)
    changed = sorted(name for name in before | after if before.get(name) != after.get(name))
    earlier = {table.name: table for table in plans[0].tables}
    changed += [
        table.name
        for table in plans[1].tables
        if table.name in earlier and earlier[table.name].columns != table.columns
    ]
    if changed:
        raise TargetBusyError(
            f"home {home.root}: its schema was changed during the export, such as"
            f" {printable(changed[0])}",
            hint="sagewai-ops export-to-postgres --live-first  # again",
        )


def copy_again(
    database: Path, second: Path, first: Path, digest: str, progress: Progress
) -> PageComparison:
    """Make the second copy from a duplicate of the first one, and compare both.

    Args:
        second: The duplicate.
        digest: Of the first copy, when its rows were sent.

    Raises:
        DamagedError: A copy is damaged, or the first one was changed.
        TargetBusyError, LockedError, OpsError: As `copy_database`.
    """
    with open_comparison(first) as comparison:
        copy_database(database, second, comparison=comparison, progress=progress)
        if not comparison.digest:
            compare_files(comparison, second, progress)
    if comparison.digest != digest:
        raise DamagedError(
            f"frozen copy {first}: changed since it was made",
            hint="sagewai-ops export-to-postgres --live-first  # again",
        )
    return comparison


def _merge_tables(report: Report, earlier: Mapping[str, TableReport], sent: SendResult) -> None:
    """Add what the first copy and the changes took together to the tables of the report.

    Args:
        earlier: The tables of the first copy, by name.
        sent: The changes.
    """
    copies = {copy.table: copy for copy in sent.tables}
    for table in report.tables:
        for part in (earlier.get(table.name), copies.get(table.name)):
            if part:
                table.size_bytes += part.size_bytes
                table.seconds += part.seconds
                table.index_seconds += part.index_seconds


def _describe(caught_up: CatchUp, changes: PageChanges, delta: Delta, compared: Compared) -> None:
    """Fill in what was changed and compared."""
    caught_up.pages, caught_up.changed_pages = changes.pages, changes.changed
    caught_up.scanned = tuple(sorted(name for name, rows in changes.rows.items() if rows is None))
    caught_up.deleted, caught_up.sent = sum(delta.deleted.values()), sum(delta.sent.values())
    caught_up.compared_again, caught_up.sampled = compared.changed, compared.sampled
    caught_up.compared_whole = compared.whole


def _second(first: Path) -> Path:
    return first.with_name("second.db")


def _states(home: Home) -> FileStates:
    with translate_os_errors(home.database):
        return file_states(home.database)


def _objects(source: sqlite3.Connection) -> dict[str, tuple[str, ...]]:
    """Return the definitions of the schema, without those of SQLite, litestream and our own."""
    ignored = read_level(source).companion_tables
    query = (
        "SELECT name, type, tbl_name, sql FROM sqlite_master"
        f" WHERE name NOT GLOB 'sqlite_*' AND NOT {IS_OWN}"
    )
    return {
        name: (kind, table, sql or "")
        for name, kind, table, sql in source.execute(query)
        if table not in ignored
    }
