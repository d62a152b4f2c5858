"""The results of the `db` commands: docs/json.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sagewai_ops.database.postgres.sessions import ServerSession
from sagewai_ops.records import dataclass, from_fields
from sagewai_ops.schema.revision_graph import State

if TYPE_CHECKING:
    from sagewai_ops.database.url import PostgresUrl, SqliteUrl
    from sagewai_ops.schema import check_postgres, check_sqlite, postgres_server
    from sagewai_ops.schema.findings import Finding
    from sagewai_ops.schema.migrate_postgres import Migration
    from sagewai_ops.schema.sqlite_revision import Level
    from sagewai_ops.schema.upgrade_sqlite import Upgrade

# The command that repairs a state.
ADVICE = {
    "behind": "sagewai-ops db upgrade",
    "forked": "sagewai-ops db upgrade",
    "empty": "sagewai-ops db upgrade",
    "ahead": "pip install --upgrade sagewai-ops",
    "unknown": "sagewai-ops db check",
    "unmanaged": "sagewai-ops export-to-postgres  # into an empty database",
}


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference from a fresh home, with one line about it."""

    table: str
    name: str
    kind: str
    wanted: str
    found: str
    text: str


@dataclass(frozen=True, slots=True)
class CheckFinding:
    """A finding or a note, with one line about it."""

    kind: str
    table: str
    column: str
    reason: str
    count: int
    examples: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class UpgradeResult:
    """An upgrade of a SQLite database; see `upgrade_sqlite.Upgrade`.

    Attributes:
        before: The revision, or nothing.
        added_bare: The columns that were added without their default and NOT NULL.
    """

    engine: Literal["sqlite"]
    rehearsed: Literal["copy"] | None
    seconds: float
    before: tuple[str, ...]
    after: tuple[str, ...]
    added: tuple[str, ...]
    added_bare: tuple[str, ...]
    failed: Mapping[str, str]
    remaining: tuple[Difference, ...]
    nulls: Mapping[str, int]
    dangling: int
    unknown_tables: tuple[str, ...]
    rows_before: Mapping[str, int]
    rows_after: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class SqliteChange(UpgradeResult):
    """The result of `db upgrade` on SQLite."""

    database: str
    snapshot: Path | None


@dataclass(frozen=True, slots=True)
class PostgresChange:
    """The result of `db upgrade` and `db downgrade` on PostgreSQL; see `Migration`.

    Attributes:
        snapshot: Always None: a snapshot does not contain the database of a server.
        dropped_rows: The rows of the dropped tables.
        kept_rows: The rows of the tables that were there before.
    """

    database: str
    snapshot: None
    engine: Literal["postgresql"]
    server: str
    rehearsed: Literal["scratch", "rollback"] | None
    seconds: float
    before: tuple[str, ...]
    after: tuple[str, ...]
    ran: tuple[str, ...]
    repaired_functions: tuple[str, ...]
    dropped_rows: Mapping[str, int]
    kept_rows: Mapping[str, int]
    rows_before: Mapping[str, int]
    rows_after: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class SqlScript:
    """The statements that a run would execute."""

    database: str
    sql: str


@dataclass(frozen=True, slots=True)
class SqliteRevision:
    """The result of `db current` on SQLite; see `Level`."""

    database: str
    engine: Literal["sqlite"]
    revisions: tuple[str, ...]
    state: State
    missing: tuple[str, ...]
    extra_columns: tuple[str, ...]
    unknown_tables: tuple[str, ...]
    advice: str | None


@dataclass(frozen=True, slots=True)
class PostgresRevision:
    """The result of `db current` on PostgreSQL."""

    database: str
    engine: Literal["postgresql"]
    server: str
    revisions: tuple[str, ...]
    state: State
    advice: str | None


@dataclass(frozen=True, slots=True)
class Revision:
    """A revision, those that it follows, and its description."""

    revision: str
    after: tuple[str, ...]
    does: str


@dataclass(frozen=True, slots=True)
class History:
    """The result of `db history`, oldest first."""

    head: str
    revisions: tuple[Revision, ...]


@dataclass(frozen=True, slots=True)
class SqliteCheck:
    """The result of `db check` on SQLite; see `check_sqlite.Checked`."""

    database: str
    engine: Literal["sqlite"]
    revisions: tuple[str, ...]
    state: State
    findings: tuple[CheckFinding, ...]
    notes: tuple[CheckFinding, ...]
    rows: Mapping[str, int]
    page_size: int
    pages: int
    free_pages: int
    unknown_tables: tuple[str, ...]
    virtual_tables: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PostgresCheck:
    """The result of `db check` on PostgreSQL; see `check_postgres.CheckedPostgres`."""

    database: str
    engine: Literal["postgresql"]
    server: str
    revisions: tuple[str, ...]
    state: State
    findings: tuple[CheckFinding, ...]
    rows: Mapping[str, int]
    unknown_tables: tuple[str, ...]
    size_bytes: int
    sessions: tuple[ServerSession, ...]


def describe_upgrade(done: Upgrade) -> UpgradeResult:
    """Return the result of an upgrade of a SQLite database."""
    return from_fields(
        UpgradeResult,
        done,
        engine="sqlite",
        rehearsed="copy" if done.rehearsed else None,
        seconds=round(done.seconds, 3),
        before=_revisions(done.before),
        after=_revisions(done.after),
        added_bare=done.bare,
        remaining=tuple(from_fields(Difference, item, text=item.shown) for item in done.remaining),
        unknown_tables=done.after.unknown_tables,
    )


def describe_migration(database: PostgresUrl, done: Migration) -> PostgresChange:
    """Return the result of an upgrade or downgrade of a PostgreSQL database."""
    before, after = done.rows_before, done.rows_after
    return from_fields(
        PostgresChange,
        done,
        database=database.display,
        snapshot=None,
        engine="postgresql",
        rehearsed=done.rehearsed or None,
        seconds=round(done.seconds, 3),
        dropped_rows={table: before[table] for table in sorted(before.keys() - after.keys())},
        kept_rows={table: rows for table, rows in after.items() if table in before},
    )


def describe_level(database: SqliteUrl, level: Level) -> SqliteRevision:
    """Return the revision of a SQLite database."""
    return from_fields(
        SqliteRevision,
        level,
        database=database.display,
        engine="sqlite",
        revisions=_revisions(level),
        advice=ADVICE.get(level.state),
    )


def describe_position(database: PostgresUrl, found: postgres_server.Database) -> PostgresRevision:
    """Return the revision of a PostgreSQL database."""
    return PostgresRevision(
        database=database.display,
        engine="postgresql",
        server=found.version,
        revisions=found.position.heads,
        state=found.position.state,
        advice=ADVICE.get(found.position.state),
    )


def describe_check(database: SqliteUrl, checked: check_sqlite.Checked) -> SqliteCheck:
    """Return the result of a check of a SQLite database."""
    return from_fields(
        SqliteCheck,
        checked,
        database=database.display,
        engine="sqlite",
        revisions=_revisions(checked.level),
        state=checked.level.state,
        findings=_findings(checked.findings),
        notes=_findings(checked.notes),
    )


def describe_postgres_check(
    database: PostgresUrl, checked: check_postgres.CheckedPostgres
) -> PostgresCheck:
    """Return the result of a check of a PostgreSQL database."""
    position = checked.database.position
    return from_fields(
        PostgresCheck,
        checked,
        database=database.display,
        engine="postgresql",
        server=checked.database.version,
        revisions=position.heads,
        state=position.state,
        findings=_findings(checked.findings),
    )


def _findings(findings: Iterable[Finding]) -> tuple[CheckFinding, ...]:
    return tuple(from_fields(CheckFinding, each, text=each.shown) for each in findings)


def _revisions(level: Level) -> tuple[str, ...]:
    return (level.revision,) if level.revision else ()
