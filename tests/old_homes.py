"""Databases of homes as an older Sagewai left them, made from the facts in `levels.json`."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from sagewai_ops.schema import ddl
from sagewai_ops.schema.revision_graph import revisions
from sagewai_ops.schema.sqlite_revision import levels
from sagewai_ops.schema.tables import metadata

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
    steps = levels()["revisions"][: revisions().index(revision) + 1]
    columns: dict[str, set[str]] = {}
    for step in steps:
        for table, names in step["adds"].items():
            columns.setdefault(table, set()).update(names)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("BEGIN")
        for statement in _statements(columns, revision):
            connection.execute(statement)
        connection.execute("COMMIT")


def _statements(columns: dict[str, set[str]], revision: str) -> list[str]:
    statements = []
    for table in metadata.sorted_tables:
        if table.name not in columns:
            continue
        clauses = []
        for column in table.columns:
            if column.name in columns[table.name]:
                clause = ddl.column_clause(column)
                until = _STRICTER_BEFORE.get((table.name, column.name))
                if until and revision < until:
                    clause = f"{column.name} TEXT DEFAULT 'default' NOT NULL"
                clauses.append(clause)
        key = ", ".join(column.name for column in table.primary_key.columns)
        statements.append(f"CREATE TABLE {table.name} ({', '.join(clauses)}, PRIMARY KEY ({key}))")
        statements.extend(
            ddl.create_index(index)
            for index in ddl.indexes(table)
            if all(column.name in columns[table.name] for column in index.columns)
        )
    return statements
