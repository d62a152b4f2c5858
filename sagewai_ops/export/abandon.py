"""Remove an unfinished resumable export: the rows that the server has, and the frozen copy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from sagewai_ops.database.url import PostgresUrl
from sagewai_ops.errors import TargetBusyError
from sagewai_ops.export import incoming
from sagewai_ops.export.report import Report
from sagewai_ops.export.results import Resumable
from sagewai_ops.export.target_session import ABANDON
from sagewai_ops.export.validate.validator import FAIL
from sagewai_ops.export.workdir import directory_of
from sagewai_ops.fs import beneath, locks
from sagewai_ops.fs.tempdirs import sweep_directories
from sagewai_ops.home.paths import Home, require
from sagewai_ops.process.signals import run_interruptibly
from sagewai_ops.swap import unfinished_export
from sagewai_ops.text import printable

if TYPE_CHECKING:
    import asyncpg

_VERSION = "SELECT pg_catalog.current_setting('server_version')"


def abandon(
    home: Home, url: PostgresUrl, work_dir: Path | None = None, *, dry_run: bool = False
) -> Report:
    """Remove an unfinished export: its rows on the server, then its copy.

    Args:
        work_dir: As for the export.
        dry_run: Only report what there is.

    Returns:
        A report with `resumable`, None if there is no unfinished export.

    Raises:
        PermissionDeniedError: The schema is not ours alone.
        TargetBusyError: It belongs to another home, or other objects depend on it.
        LockedError: A run works on the home or the target.
        OpsError: The server is not reachable, or the system refused.
    """
    require(home)
    report = Report(ABANDON, home.database, url.display, FAIL)
    directory = directory_of(home, work_dir)
    with locks.exclusive(home.root):
        if not dry_run and beneath.exists(directory.parent):
            sweep_directories(directory.parent, unfinished_export.TEMPORARY)
        run_interruptibly(_abandon, home, url, directory, report, dry_run)
    return report


async def _abandon(
    home: Home,
    url: PostgresUrl,
    directory: Path,
    report: Report,
    dry_run: bool,  # noqa: FBT001
) -> None:
    async with incoming.open_server(url) as connection:
        report.server = str(await connection.fetchval(_VERSION))
        async with incoming.transaction(url, connection):
            is_there = await incoming.find(url, connection)
            if is_there:
                await _require_own_move(home, url, connection)
                progress = await incoming.read_progress(connection)
                report.resumable = Resumable(
                    rows_before=sum(progress.rows.values()),
                    ranges_before=sum(progress.ranges.values()),
                )
        if unfinished_export.exists(directory):
            report.resumable = report.resumable or Resumable()
            report.files["copy"] = str(directory)
        if not dry_run:
            await drop(url, connection, directory)


async def _require_own_move(
    home: Home, url: PostgresUrl, connection: asyncpg.Connection[asyncpg.Record]
) -> None:
    """Check that the schema has the rows of this home."""
    try:
        owner = json.loads(await incoming.read_binding(connection))["home"]
    except (ValueError, TypeError, KeyError):
        owner = "an unknown home"
    if owner != str(home.root):
        raise TargetBusyError(
            f"{url.display}: schema {incoming.SCHEMA} has the rows of {printable(str(owner))}",
            hint=incoming.DROP_BY_HAND,
        )


async def drop(
    url: PostgresUrl, connection: asyncpg.Connection[asyncpg.Record], directory: Path
) -> None:
    """Drop the schema if there is one, and then the copy."""
    async with incoming.transaction(url, connection):
        if await incoming.find(url, connection):
            await incoming.use(connection)
            await incoming.drop(url, connection)
    unfinished_export.remove(directory)
