"""The last transaction of a resumable export: it compares, constrains and moves what was sent.

Until it is committed the current schema is as it was, and everything that was sent stays.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagewai_ops.database.postgres.connection import wrap_driver
from sagewai_ops.database.sqlite.content_digest import digest_database, read_files
from sagewai_ops.database.sqlite.in_use import require_unused
from sagewai_ops.database.url import PostgresUrl
from sagewai_ops.errors import DamagedError, DifferenceError, TargetBusyError
from sagewai_ops.export import incoming
from sagewai_ops.export.export import (
    Work,
    begin_commit,
    cut_over_of,
    in_thread,
    timed,
    write_settled,
)
from sagewai_ops.export.learnings import learnings
from sagewai_ops.export.load import (
    INDEX_MEMORY,
    RefusedByServerError,
    analyze,
    check_results,
    large_tables,
    refusals_of_rows,
)
from sagewai_ops.export.mapping.plan import Plan, from_job
from sagewai_ops.export.mapping.source_rows import open_copy
from sagewai_ops.export.mapping.target_catalog import TargetTable, read_tables
from sagewai_ops.export.pipeline.comparer import open_comparison
from sagewai_ops.export.pipeline.sender import Worker
from sagewai_ops.export.report import Report
from sagewai_ops.export.results import Resumable
from sagewai_ops.export.sequences import set_sequences
from sagewai_ops.export.target_session import SCAN_SETTINGS, Session, end_session
from sagewai_ops.export.validate import repair_overlay
from sagewai_ops.export.validate.validator import FAIL
from sagewai_ops.progress import Progress
from sagewai_ops.records import dataclass
from sagewai_ops.schema import migrate_postgres, postgres_server
from sagewai_ops.schema.revision_graph import HEAD
from sagewai_ops.swap.unfinished_export import Unfinished

if TYPE_CHECKING:
    import asyncpg

START_AGAIN = "sagewai-ops export-to-postgres URL --abandon  # then begin again"
_DIGEST_FILE = "home.db"
_DIGEST = "digest"  # the stage, in bytes


@dataclass(frozen=True, slots=True)
class Run:
    """A run, and the directory of its unfinished export."""

    work: Work
    directory: Path

    @property
    def report(self) -> Report:
        """The run's."""
        return self.work.report

    @property
    def resumable(self) -> Resumable:
        """The part of the report about earlier runs."""
        assert self.work.report.resumable
        return self.work.report.resumable


class FindingsError(Exception):
    """There are findings, in the report: the transaction is rolled back."""


async def finish(
    run: Run,
    connection: asyncpg.Connection[asyncpg.Record],
    comparer: Worker,
    plan: Plan,
    state: Unfinished,
) -> bool:
    """Compare, create the constraints, and move the tables, in one transaction."""
    work, report = run.work, run.report
    session: Session | None = None
    try:
        async with incoming.transaction(work.url, connection):
            async with wrap_driver(connection) as outer:
                found = await check_target(work.url, outer)
                await outer.commit()  # a savepoint
            report.server, report.migrated = found.version, True
            await incoming.use(connection)
            await incoming.lock_tables(work.url, connection)
            there = await _require_complete(connection, plan, state)
            await incoming.drop_own_tables(connection)
            await incoming.resume_autovacuum(connection, large_tables(plan))
            session = Session(connection, found.version, migrated=True)
            session.tables = _with_searched(await read_tables(connection), state)
            with refusals_of_rows():
                await _constrain(run, session, comparer, plan, state, there)
            await incoming.move_to(connection, _unquoted(found.schema))
            with timed(report, "learnings"):
                report.learnings = await learnings.copy_learnings(
                    work.copy, work.options.learnings, connection, progress=work.progress
                )
            _refuse_learnings(work)
            with timed(report, "freeze"):
                await require_unchanged_home(run, state)
            if work.options.policy != FAIL:
                _write_settled(work, plan, state)
            await begin_commit(work, session, run.directory)
            session.keep = True
            await end_session(session)
    except FindingsError:
        return True
    except RefusedByServerError as error:
        raise DifferenceError(
            f"table {error.table}: {error.constraint}: {error.message}"
        ) from error
    finally:
        report.committed = session is not None and session.committed
    report.cut_over = cut_over_of(work)
    return True


def _refuse_learnings(work: Work) -> None:
    report = work.report
    if report.learnings.findings and work.options.policy == FAIL:
        report.findings = report.open_findings = tuple(report.learnings.findings)
        raise FindingsError


async def _require_complete(
    connection: asyncpg.Connection[asyncpg.Record], plan: Plan, state: Unfinished
) -> incoming.Progress:
    binding = await incoming.read_binding(connection)
    progress = await incoming.read_progress(connection)
    if binding != state.binding or progress.rows != {t.name: t.rows for t in plan.tables}:
        raise DamagedError(f"schema {incoming.SCHEMA}: its records were changed", hint=START_AGAIN)
    return progress


def _with_searched(tables: dict[str, TargetTable], state: Unfinished) -> dict[str, TargetTable]:
    """Return the catalog with the columns that will have an index again."""
    return {
        name: dataclasses.replace(table, searched=frozenset(state.searched.get(name, ())))
        for name, table in tables.items()
        if name not in incoming.OWN_TABLES
    }


async def _constrain(
    run: Run,
    session: Session,
    comparer: Worker,
    plan: Plan,
    state: Unfinished,
    there: incoming.Progress,
) -> None:
    """Compare every row, create the indexes and the foreign keys, and set the sequences.

    Raises:
        DifferenceError: The rows are not those of the copy.
        RefusedByServerError: The server refuses an index or a foreign key for them.
    """
    work, report, connection = run.work, run.report, session.connection
    await connection.execute(f"SET LOCAL maintenance_work_mem = '{INDEX_MEMORY}'")
    await connection.execute(SCAN_SETTINGS)
    started = time.monotonic()
    async with open_comparison(connection, comparer, plan, progress=work.progress) as comparison:
        by_name = {table.name: table for table in report.tables}
        for planned in plan.tables:
            # One range is stored in order if it was frozen; later ones also fill gaps.
            await comparison.read_back(planned, sort=there.ranges[planned.name] > 1)
            begun = time.monotonic()
            for statement in state.indexes.get(planned.name, ()):
                await connection.execute(statement)
            by_name[planned.name].index_seconds = time.monotonic() - begun
        with timed(report, "constraints"):
            for statement in state.foreign_keys:
                await connection.execute(statement)
            report.sequences = await set_sequences(connection, plan, session.tables)
        await asyncio.gather(comparison.finish(), analyze(session, plan))
        await check_results(comparison, report, "nothing was changed")
    report.stages["compare"] = time.monotonic() - started - report.stages["constraints"]


async def require_unchanged_home(run: Run, state: Unfinished) -> None:
    """Check that the home is not in use, and its database is still that of the copy.

    Raises:
        TargetBusyError: It is in use, or not.
    """
    home = run.work.home
    require_unused(home.root, home.database)
    known = tuple(map(tuple, state.home_files))
    if known and read_files(home.database) == known:
        return
    scratch = run.directory / _DIGEST_FILE
    if await digest(run, digest_database, home.database, scratch) != state.home_sha256:
        raise TargetBusyError(
            f"home {home.root}: its database was changed since its copy of {state.started_at};"
            f" the rows of the copy stay in schema {incoming.SCHEMA}",
            hint=START_AGAIN,
        )


async def check_target(url: PostgresUrl, outer: Any) -> postgres_server.Database:
    """Check that the current schema is empty and may be filled.

    Raises:
        TargetBusyError: It has tables.
        OpsError: Privileges are missing, or the server is not usable.
    """
    found = await postgres_server.read_database(outer)
    postgres_server.check_privileges(found)
    migrate_postgres.check_position(found, HEAD, down=False)
    if found.position.state != "empty":
        raise TargetBusyError(
            f"{url.display}: has tables of Sagewai; --resumable needs a database without them",
            hint="createdb --encoding UTF8 --template template0 NAME",
        )
    return found


async def digest(run: Run, function: Callable[..., str], *paths: Path) -> str:
    """Run a digest in a thread, which ends soon after a signal."""

    def call(report: Progress) -> str:
        return function(*paths, progress=lambda done, total: report(_DIGEST, done, total))

    async with in_thread(call, run.work.progress) as running:
        return await running


def _write_settled(work: Work, plan: Plan, state: Unfinished) -> None:
    with open_copy(work.copy) as source:
        work.report.repaired, work.report.refused = repair_overlay.counts(source)
        tables = from_job(list(state.base))  # type: ignore[arg-type]
        write_settled(work, source, dataclasses.replace(plan, tables=tables))


def _unquoted(name: str) -> str:
    """Return a name that the server has quoted."""
    return name[1:-1].replace('""', '"') if name.startswith('"') else name
