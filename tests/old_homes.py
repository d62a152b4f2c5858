"""Databases of homes as an older Sagewai left them, built from `sqlite_head.sql`."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from pathlib import Path

from sagewai_ops.schema import sqlite_head
from sagewai_ops.schema.revision_graph import revisions

# NOT NULL with a default until the revision named: what an additive upgrade cannot take away.
_STRICTER_BEFORE = {
    ("agent_runs", "project_id"): "013_tenant_run_telemetry",
    ("prompt_logs", "project_id"): "013_tenant_run_telemetry",
    ("workers", "project_id"): "018_fleet_schema_correction",
}


def build(path: Path, revision: str) -> None:
    """Make a database with the tables and columns that homes had at a revision, without rows.

    Args:
        path: Must not exist.
        revision: The columns of it and of all revisions listed before it.
    """
    done = revisions()[: revisions().index(revision) + 1]
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("BEGIN")
        for statement in _statements(done):
            connection.execute(statement)
        connection.execute("COMMIT")


def _statements(done: tuple[str, ...]) -> list[str]:
    statements = []
    for table in sqlite_head.tables().values():
        columns = [column for column in table.columns.values() if column.revision in done]
        if not columns:
            continue
        clauses = []
        for column in columns:
            until = _STRICTER_BEFORE.get((table.name, column.name))
            is_stricter = until and until not in done
            clauses.append(
                f"{column.name} TEXT DEFAULT 'default' NOT NULL" if is_stricter else column.clause
            )
        clauses.append(f"PRIMARY KEY ({', '.join(table.key)})")
        statements.append(f"CREATE TABLE {table.name} ({', '.join(clauses)})")
        later = {column.name for column in table.columns.values()} - {c.name for c in columns}
        statements.extend(
            statement
            for statement in table.indexes.values()
            if not later & set(re.findall(r"\w+", statement.partition(" ON ")[2]))
        )
    return statements
