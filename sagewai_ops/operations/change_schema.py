"""`db upgrade` and `db downgrade` on SQLite and PostgreSQL.

A home's SQLite database is upgraded under the home's lock, after a snapshot of the whole home, and
only if something is missing. A PostgreSQL database is not part of a snapshot: a run is one
transaction, and backups are the server's.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from sagewai_ops.backup.create import create_snapshot
from sagewai_ops.backup.report import BackupOptions, BackupReport
from sagewai_ops.database.url import PostgresUrl, SqliteUrl
from sagewai_ops.errors import EXIT_DONE, EXIT_INCOMPLETE, OpsError, UsageError
from sagewai_ops.fs import locks
from sagewai_ops.fs.tempdirs import Keep
from sagewai_ops.home.paths import Home, require
from sagewai_ops.home.server_record import PLACE, record_of, write_server_record
from sagewai_ops.process.signals import run_interruptibly
from sagewai_ops.progress import Progress
from sagewai_ops.records import dataclass
from sagewai_ops.schema import migrate_postgres, rehearse_postgres, revision_graph, upgrade_sqlite
from sagewai_ops.schema.results import (
    PostgresChange,
    SqliteChange,
    describe_migration,
    describe_upgrade,
)
from sagewai_ops.schema.revision_graph import HEAD
from sagewai_ops.swap import pending


@dataclass(frozen=True, slots=True)
class Options:
    """The options of both commands.

    Attributes:
        target: A revision or its prefix, `head` or `base`.
        down: Revert revisions.
        rehearse: Use a copy, or a transaction that is rolled back.
        snapshot: The options of the snapshot; None for no snapshot.
        snapshots: The snapshot directory.
        work_dir: Where the copy of a rehearsal is made; None for the home.
        keep: Keeps that copy, as in `tempdirs.kept`.
        wait_seconds: For the locks of other runs and writers.
    """

    target: str = HEAD
    down: bool = False
    rehearse: bool = False
    snapshot: BackupOptions | None = None
    snapshots: Path = Path()
    work_dir: Path | None = None
    keep: Keep | None = None
    wait_seconds: float = migrate_postgres.WAIT_SECONDS


@dataclass(frozen=True, slots=True)
class Report:
    """The result, in one of `sqlite` and `postgres`."""

    database: SqliteUrl | PostgresUrl
    sqlite: upgrade_sqlite.Upgrade | None = None
    postgres: migrate_postgres.Migration | None = None
    snapshot: BackupReport | None = None

    @property
    def result(self) -> SqliteChange | PostgresChange:
        """The result of the command."""
        if isinstance(self.database, PostgresUrl):
            assert self.postgres
            return describe_migration(self.database, self.postgres)
        assert self.sqlite
        done = describe_upgrade(self.sqlite)
        return SqliteChange(
            **{field.name: getattr(done, field.name) for field in fields(done)},
            database=self.database.display,
            snapshot=self.snapshot.path if self.snapshot else None,
        )

    @property
    def exit_code(self) -> int:
        """Incomplete if an addition failed."""
        return EXIT_INCOMPLETE if self.sqlite and self.sqlite.failed else EXIT_DONE

    @property
    def warnings(self) -> tuple[str, ...]:
        """What an upgrade could not do, one line each."""
        if self.sqlite is None:
            return ()
        return (
            *(f"{name}: not added, {reason}" for name, reason in self.sqlite.failed.items()),
            *(f"{name}: NULL in {rows} rows" for name, rows in self.sqlite.nulls.items()),
        )


def change_schema(
    home: Home,
    database: SqliteUrl | PostgresUrl,
    options: Options,
    *,
    progress: Progress | None = None,
) -> Report:
    """Upgrade or downgrade a database.

    Args:
        home: The home of the database; need not exist for PostgreSQL.
        database: The one that Sagewai's server would use.
        progress: Called with the stages of the snapshot, the copy and the upgrade.

    Raises:
        NotFoundError: The home, the database or the revision was not found.
        UsageError: Downgrade of a home's SQLite database.
        OpsError: As the snapshot or the upgrade; the schema was not changed.
    """
    target = revision_graph.find_revision(options.target)
    if isinstance(database, PostgresUrl):
        return Report(database, postgres=_postgres(database, target, options, progress))
    check_sqlite_target(target, down=options.down)
    require(home)
    pending.require_settled(home.root)
    path, wait = database.path, options.wait_seconds
    if options.rehearse:
        rehearsed = upgrade_sqlite.rehearse_upgrade(
            path,
            options.work_dir or home.root,
            wait_seconds=wait,
            keep=options.keep,
            progress=progress,
        )
        return Report(database, sqlite=rehearsed)
    snapshot = None
    if options.snapshot and upgrade_sqlite.plan_upgrade(path, wait_seconds=wait):
        snapshot = create_snapshot(home, options.snapshots, options.snapshot, progress=progress)
    with locks.exclusive(home.root, wait_seconds=wait):
        done = upgrade_sqlite.upgrade_database(
            path, wait_seconds=wait, is_whole=True, progress=progress
        )
    return Report(database, sqlite=done, snapshot=snapshot)


def record_server(
    home: Home, database: SqliteUrl | PostgresUrl, environment: Mapping[str, str]
) -> tuple[str, ...]:
    """Record in an existing home that its database is on a server; return a warning if it failed.

    Args:
        environment: Completes the URL, as for `record_of`.
    """
    if not isinstance(database, PostgresUrl) or not home.root.is_dir():
        return ()
    try:
        write_server_record(home, record_of(database, environment))
    except OpsError as error:
        return (f"{home.root / PLACE}: not written, {error.message}",)
    return ()


def plan_change(home: Home, database: SqliteUrl | PostgresUrl, options: Options) -> tuple[str, ...]:
    """List what a run would change, one line each; nothing is changed.

    Raises:
        OpsError: What a run raises before it changes anything.
    """
    target = revision_graph.find_revision(options.target)
    if isinstance(database, PostgresUrl):
        verb = "revert" if options.down else "apply"
        moved = run_interruptibly(migrate_postgres.plan_move, database, target, down=options.down)
        return tuple(f"{verb} revision {revision}" for revision in moved)
    check_sqlite_target(target, down=options.down)
    require(home)
    pending.require_settled(home.root)
    additions = upgrade_sqlite.plan_upgrade(database.path, wait_seconds=options.wait_seconds)
    steps = tuple(f"add {addition.kind} {addition.name}" for addition in additions)
    if steps and options.snapshot:
        return (f"create a snapshot in {options.snapshots}", *steps)
    return steps


def plan_sql(database: SqliteUrl | PostgresUrl, options: Options) -> str:
    """Return the statements that a run would execute.

    Raises:
        OpsError: As a run, before it changes anything.
    """
    target = revision_graph.find_revision(options.target)
    if isinstance(database, PostgresUrl):
        return run_interruptibly(migrate_postgres.plan_sql, database, target, down=options.down)
    check_sqlite_target(target, down=options.down)
    statements = upgrade_sqlite.plan_sql(database.path, wait_seconds=options.wait_seconds)
    if not statements:
        return ""
    lines = ["PRAGMA foreign_keys = OFF", "BEGIN IMMEDIATE", *statements, "COMMIT"]
    return "".join(f"{line};\n" for line in lines)


def check_sqlite_target(target: str, *, down: bool) -> None:
    """Check that the target of a home's SQLite database is the head.

    Raises:
        UsageError: It is another revision, or a downgrade.
    """
    if down:
        raise UsageError(
            "downgrade: not possible for a home's SQLite database, which stores no revision",
            hint="sagewai-ops restore latest --only db --replace",
        )
    if target != HEAD:
        raise UsageError(
            f"revision {target}: not possible for a home's SQLite database, only the head is",
            hint="sagewai-ops db upgrade",
        )


def _postgres(
    url: PostgresUrl, target: str, options: Options, progress: Progress | None
) -> migrate_postgres.Migration:
    work: Callable[..., Coroutine[Any, Any, migrate_postgres.Migration]]
    if options.rehearse:
        work = rehearse_postgres.rehearse
    elif options.down:
        work = migrate_postgres.downgrade
    else:
        if target == revision_graph.BASE:
            raise UsageError("base: not a target of an upgrade", hint="sagewai-ops db history")
        work = migrate_postgres.upgrade
    return run_interruptibly(
        work, url, target, wait_seconds=options.wait_seconds, progress=progress
    )
