"""The results of the `db` commands as JSON: docs/json.md, and the schemas under docs/json/."""

from __future__ import annotations

from typing import Any

from sagewai_ops.database.url import PostgresUrl, SqliteUrl
from sagewai_ops.schema import postgres_server
from sagewai_ops.schema.check_postgres import CheckedPostgres
from sagewai_ops.schema.check_sqlite import Checked
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


def of_upgraded(done: Upgrade) -> dict[str, Any]:
    """Return the JSON of an upgrade of a home's SQLite database."""
    return {
        "engine": "sqlite",
        "rehearsed": "copy" if done.rehearsed else None,
        "seconds": round(done.seconds, 3),
        "before": _reached(done.before),
        "after": _reached(done.after),
        "added": list(done.added),
        "added_bare": list(done.bare),
        "failed": dict(done.failed),
        "remaining": [of_drift(item) for item in done.remaining],
        "nulls": dict(done.nulls),
        "dangling": done.dangling,
        "unknown_tables": list(done.after.unknown_tables),
        "rows_before": dict(done.rows_before),
        "rows_after": dict(done.rows_after),
    }


def of_moved(done: Migration) -> dict[str, Any]:
    """Return the JSON of an upgrade or downgrade of a PostgreSQL database."""
    gone = done.rows_before.keys() - done.rows_after.keys()
    kept = done.rows_before.keys() & done.rows_after.keys()
    return {
        "engine": "postgresql",
        "server": done.server,
        "rehearsed": done.rehearsed or None,
        "seconds": round(done.seconds, 3),
        "before": list(done.before),
        "after": list(done.after),
        "ran": list(done.ran),
        "repaired_functions": list(done.repaired_functions),
        "dropped_rows": {table: done.rows_before[table] for table in sorted(gone)},
        "kept_rows": {table: rows for table, rows in done.rows_after.items() if table in kept},
        "rows_before": dict(done.rows_before),
        "rows_after": dict(done.rows_after),
    }


def of_level(database: SqliteUrl, level: Level) -> dict[str, Any]:
    """Return the JSON of the revision of a home's SQLite database."""
    return {
        "database": database.display,
        "engine": "sqlite",
        "revisions": _reached(level),
        "state": level.state,
        "missing": list(level.missing),
        "extra_columns": list(level.extra_columns),
        "unknown_tables": list(level.unknown_tables),
        "advice": ADVICE.get(level.state),
    }


def of_position(database: PostgresUrl, found: postgres_server.Database) -> dict[str, Any]:
    """Return the JSON of the revision of a PostgreSQL database."""
    return {
        "database": database.display,
        "engine": "postgresql",
        "server": found.version,
        "revisions": list(found.position.heads),
        "state": found.position.state,
        "advice": ADVICE.get(found.position.state),
    }


def of_checked(database: SqliteUrl, checked: Checked) -> dict[str, Any]:
    """Return the JSON of a check of a home's SQLite database."""
    return {
        "database": database.display,
        "engine": "sqlite",
        "revisions": _reached(checked.level),
        "state": checked.level.state,
        "findings": [of_finding(finding) for finding in checked.findings],
        "notes": [of_finding(finding) for finding in checked.notes],
        "rows": dict(checked.rows),
        "page_size": checked.page_size,
        "pages": checked.pages,
        "free_pages": checked.free_pages,
        "unknown_tables": list(checked.unknown_tables),
        "virtual_tables": list(checked.virtual_tables),
    }


def of_checked_postgres(database: PostgresUrl, checked: CheckedPostgres) -> dict[str, Any]:
    """Return the JSON of a check of a PostgreSQL database."""
    return {
        "database": database.display,
        "engine": "postgresql",
        "server": checked.database.version,
        "revisions": list(checked.database.position.heads),
        "state": checked.database.position.state,
        "findings": [of_finding(finding) for finding in checked.findings],
        "rows": dict(checked.rows),
        "unknown_tables": list(checked.unknown_tables),
    }


def of_drift(item: Drift) -> dict[str, Any]:
    """Return the JSON of one difference from a fresh home."""
    return {
        "table": item.table,
        "name": item.name,
        "kind": item.kind,
        "wanted": item.wanted,
        "found": item.found,
        "text": item.shown,
    }


def of_finding(finding: Finding) -> dict[str, Any]:
    """Return the JSON of one finding or note."""
    return {
        "kind": finding.kind,
        "table": finding.table,
        "column": finding.column,
        "reason": finding.reason,
        "count": finding.count,
        "examples": list(finding.examples),
        "text": finding.shown,
    }


def _reached(level: Level) -> list[str]:
    return [level.revision] if level.revision else []
