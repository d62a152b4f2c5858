"""`db upgrade` and `db downgrade` on either engine: a snapshot first, then the schema.

A home's SQLite database is upgraded under the home's lock, after a snapshot of the whole home, and
only if there is something to add. A PostgreSQL database is no part of a home's snapshot: its one
transaction, and the server's own backups, stand for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sagewai_ops.backup.create import create_snapshot
from sagewai_ops.backup.report import BackupOptions, BackupReport
from sagewai_ops.database.url import PostgresUrl, SqliteUrl
from sagewai_ops.errors import EXIT_DONE, EXIT_INCOMPLETE, UsageError
from sagewai_ops.fs import locks
from sagewai_ops.home.paths import Home, require
from sagewai_ops.process.signals import run_interruptibly
from sagewai_ops.progress import Progress
from sagewai_ops.schema import migrate_postgres, rehearse_postgres, revision_graph, upgrade_sqlite
from sagewai_ops.schema.as_json import of_moved, of_upgraded
from sagewai_ops.schema.revision_graph import HEAD
from sagewai_ops.swap import pending


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked for.

    Attributes:
        target: A revision, `head` or `base`, as people spell it.
        down: Take revisions back.
        rehearse: On a copy, or in a transaction that is rolled back.
        snapshot: None for no snapshot.
        snapshots: The directory that it goes to.
        wait_seconds: For another run, and for a writer.
    """

    target: str = HEAD
    down: bool = False
    rehearse: bool = False
    snapshot: BackupOptions | None = None
    snapshots: Path = Path()
    wait_seconds: float = migrate_postgres.WAIT_SECONDS


@dataclass(frozen=True, slots=True)
class Report:
    """What was done; one of `sqlite` and `postgres` is there."""

    database: SqliteUrl | PostgresUrl
    sqlite: upgrade_sqlite.Upgrade | None = None
    postgres: migrate_postgres.Migration | None = None
    snapshot: BackupReport | None = None

    def as_dict(self) -> dict[str, Any]:
        """Give the JSON of what was done; docs/json.md."""
        done = of_upgraded(self.sqlite) if self.sqlite else {}
        if self.postgres:
            done = of_moved(self.postgres)
        snapshot = str(self.snapshot.path) if self.snapshot else None
        return {"database": self.database.display, "snapshot": snapshot, **done}

    @property
    def exit_code(self) -> int:
        """Incomplete when something that Sagewai would have added could not be."""
        return EXIT_INCOMPLETE if self.sqlite and self.sqlite.failed else EXIT_DONE

    @property
    def warnings(self) -> tuple[str, ...]:
        """Say what an upgrade could not do, one line each."""
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
    """Bring a database to a revision.

    Args:
        home: Whose database it is; for PostgreSQL it need not exist.
        database: As Sagewai's server would find it.
        options: See there.
        progress: Told the stages of a snapshot, of a copy and of the upgrade.

    Raises:
        NotFoundError: No such home, database or revision.
        UsageError: A home's file has no revisions to go back to.
        OpsError: What the snapshot or the upgrade raises; the schema was not changed.
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
            path, home.root, wait_seconds=wait, progress=progress
        )
        return Report(database, sqlite=rehearsed)
    snapshot = None
    if options.snapshot and upgrade_sqlite.plan_upgrade(path, wait_seconds=wait):
        snapshot = create_snapshot(home, options.snapshots, options.snapshot, progress=progress)
    with locks.exclusive(home.root, wait_seconds=wait):
        done = upgrade_sqlite.upgrade_database(path, wait_seconds=wait, progress=progress)
    return Report(database, sqlite=done, snapshot=snapshot)


def plan_sql(database: SqliteUrl | PostgresUrl, options: Options) -> str:
    """Spell the statements that a run would execute; nothing is changed.

    Raises:
        OpsError: What a run raises before it touches anything.
    """
    target = revision_graph.find_revision(options.target)
    if isinstance(database, PostgresUrl):
        return run_interruptibly(migrate_postgres.plan_sql(database, target, down=options.down))
    check_sqlite_target(target, down=options.down)
    statements = upgrade_sqlite.plan_sql(database.path, wait_seconds=options.wait_seconds)
    if not statements:
        return ""
    lines = ["PRAGMA foreign_keys = OFF", "BEGIN IMMEDIATE", *statements, "COMMIT"]
    return "".join(f"{line};\n" for line in lines)


def check_sqlite_target(target: str, *, down: bool) -> None:
    """Refuse what has no meaning for a home's file.

    Raises:
        UsageError: It can only be brought to the head, and never back.
    """
    if down:
        raise UsageError(
            "a home's SQLite database cannot be taken back: nothing tells what an upgrade added",
            hint="sagewai-ops restore latest --only db --replace",
        )
    if target != HEAD:
        raise UsageError(
            f"revision {target}: a home's SQLite database knows no revisions but the head",
            hint="sagewai-ops db upgrade",
        )


def _postgres(
    url: PostgresUrl, target: str, options: Options, progress: Progress | None
) -> migrate_postgres.Migration:
    if options.rehearse:
        work = rehearse_postgres.rehearse(
            url, target, wait_seconds=options.wait_seconds, progress=progress
        )
    elif options.down:
        work = migrate_postgres.downgrade(
            url, target, wait_seconds=options.wait_seconds, progress=progress
        )
    else:
        if target == revision_graph.BASE:
            raise UsageError("base: an upgrade leads to a revision", hint="sagewai-ops db history")
        work = migrate_postgres.upgrade(
            url, target, wait_seconds=options.wait_seconds, progress=progress
        )
    return run_interruptibly(work)
