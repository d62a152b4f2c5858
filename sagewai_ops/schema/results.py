"""The results of the `db` commands: docs/json.md."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sagewai_ops.database.postgres.sessions import ServerSession
from sagewai_ops.records import dataclass

if TYPE_CHECKING:
    from sagewai_ops.database.url import PostgresUrl, SqliteUrl
    from sagewai_ops.schema import check_postgres, check_sqlite, postgres_server
    from sagewai_ops.schema.drift import Drift
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

State = Literal["current", "behind", "ahead", "forked", "unknown", "empty", "unmanaged"]


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
    return UpgradeResult(
        engine="sqlite",
        rehearsed="copy" if done.rehearsed else None,
        seconds=round(done.seconds, 3),
        before=_revisions(done.before),
        after=_revisions(done.after),
        added=done.added,
        added_bare=done.bare,
        failed=done.failed,
        remaining=tuple(_difference(item) for item in done.remaining),
        nulls=done.nulls,
        dangling=done.dangling,
        unknown_tables=done.after.unknown_tables,
        rows_before=done.rows_before,
        rows_after=done.rows_after,
    )


def describe_migration(database: PostgresUrl, done: Migration) -> PostgresChange:
    """Return the result of an upgrade or downgrade of a PostgreSQL database."""
    before, after = done.rows_before, done.rows_after
    return PostgresChange(
        database=database.display,
        snapshot=None,
        engine="postgresql",
        server=done.server,
        rehearsed=done.rehearsed or None,
        seconds=round(done.seconds, 3),
        before=done.before,
        after=done.after,
        ran=done.ran,
        repaired_functions=done.repaired_functions,
        dropped_rows={table: before[table] for table in sorted(before.keys() - after.keys())},
        kept_rows={table: rows for table, rows in after.items() if table in before},
        rows_before=before,
        rows_after=after,
    )


def describe_level(database: SqliteUrl, level: Level) -> SqliteRevision:
    """Return the revision of a SQLite database."""
    return SqliteRevision(
        database=database.display,
        engine="sqlite",
        revisions=_revisions(level),
        state=level.state,
        missing=level.missing,
        extra_columns=level.extra_columns,
        unknown_tables=level.unknown_tables,
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
    return SqliteCheck(
        database=database.display,
        engine="sqlite",
        revisions=_revisions(checked.level),
        state=checked.level.state,
        findings=tuple(_finding(finding) for finding in checked.findings),
        notes=tuple(_finding(finding) for finding in checked.notes),
        rows=checked.rows,
        page_size=checked.page_size,
        pages=checked.pages,
        free_pages=checked.free_pages,
        unknown_tables=checked.unknown_tables,
        virtual_tables=checked.virtual_tables,
    )


def describe_postgres_check(
    database: PostgresUrl, checked: check_postgres.CheckedPostgres
) -> PostgresCheck:
    """Return the result of a check of a PostgreSQL database."""
    position = checked.database.position
    return PostgresCheck(
        database=database.display,
        engine="postgresql",
        server=checked.database.version,
        revisions=position.heads,
        state=position.state,
        findings=tuple(_finding(finding) for finding in checked.findings),
        rows=checked.rows,
        unknown_tables=checked.unknown_tables,
        size_bytes=checked.size_bytes,
        sessions=checked.sessions,
    )


def _difference(item: Drift) -> Difference:
    return Difference(item.table, item.name, item.kind, item.wanted, item.found, item.shown)


def _finding(finding: Finding) -> CheckFinding:
    return CheckFinding(
        kind=finding.kind,
        table=finding.table,
        column=finding.column,
        reason=finding.reason,
        count=finding.count,
        examples=finding.examples,
        text=finding.shown,
    )


def _revisions(level: Level) -> tuple[str, ...]:
    return (level.revision,) if level.revision else ()
