"""Homes with rows that SQLite took and PostgreSQL refuses, each for a reason of its own."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

Change = Callable[[sqlite3.Connection, int], object]
ROWS = 40  # of each table: every fault gets rows of its own


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault: how it comes about, and where and as what it must be found.

    Attributes:
        change: Called with the row to spoil; the next is its own as well.
        count: Rows that it concerns.
        mendable: A repair is documented.
    """

    change: Change
    table: str
    column: str
    kind: str
    count: int = 1
    mendable: bool = True


def setting(table: str, column: str, expression: str, *values: object) -> Change:
    """Return a change that sets one value of a row, as an expression of SQLite."""

    def change(connection: sqlite3.Connection, row: int) -> None:
        connection.execute(
            f"UPDATE {table} SET {column} = {expression} WHERE rowid = ?", (*values, row)
        )

    return change


def value(
    table: str,
    column: str,
    expression: str,
    kind: str,
    *values: object,
    mendable: bool = True,
) -> Fault:
    """Return a fault in one value."""
    change = setting(table, column, expression, *values)
    return Fault(change, table, column, kind, mendable=mendable)


def faults() -> dict[str, Fault]:
    """List the faults by name."""
    return {
        "nul": value("agent_runs", "output_text", "'a' || char(0) || 'b'", "nul"),
        "invalid-utf8": value("agent_runs", "error", "CAST(x'61ff62' AS TEXT)", "invalid-utf8"),
        "blob": value("sessions", "summary", "x'616263'", "storage-class"),
        "blob-without-text": value(
            "notification_history", "body", "x'ff00'", "storage-class", mendable=False
        ),
        "varchar": value("budget_limits", "action", "'a word that is much too long'", "too-long"),
        "varchar-in-a-key": value(
            "connector_credentials", "connector_name", "?", "too-long", "n" * 300, mendable=False
        ),
        "integer": value("context_documents", "file_size_bytes", "5000000000", "out-of-range"),
        "integer-as-text": value(
            "agent_runs", "duration_ms", "'much'", "storage-class", mendable=False
        ),
        "boolean": value("workflow_runs", "input_encrypted", "7", "not-a-boolean"),
        "moment": value(
            "workflow_runs", "created_at", "'some day'", "not-a-timestamp", mendable=False
        ),
        "moment-as-a-number": value("workflow_runs", "updated_at", "1700000000", "storage-class"),
        "nan": value("sessions", "messages", "'[{\"cost\": NaN}]'", "json-nan"),
        "json-nul": value("sessions", "messages", "?", "json-nul", r'["\u0000"]'),
        "surrogate": value("sessions", "messages", "?", "json-surrogate", r'["\ud800"]'),
        "number": value("sessions", "messages", "'[1e400000]'", "json-number"),
        "not-json": value("sessions", "messages", "'hello'", "not-json"),
        "settings": value("workspaces", "settings", "'hello'", "not-json"),
        "list": value("context_documents", "tags", "'[1, 2]'", "list-element"),
        "no-list": value(
            "enrollment_keys", "allowed_pools", "'{\"a\": 1}'", "not-a-list", mendable=False
        ),
        "orphan": value("prompt_logs", "run_id", "''", "orphan"),
        "orphan-without-repair": value(
            "context_chunks", "document_id", "'gone'", "orphan", mendable=False
        ),
        "check": value("workflow_runs", "execution_mode", "'reckless'", "check", mendable=False),
        "saved-again": Fault(_save_again, "saved_workflows", "project_id, name", "duplicate"),
        "version-again": Fault(
            _version_again, "saved_workflow_versions", "workflow_id, version", "duplicate"
        ),
        "two-projects": Fault(_two_projects, "workflow_runs", "id", "duplicate"),
        "index-row": Fault(
            setting("agent_runs", "agent_name", "?", _noise(9000)),
            "agent_runs",
            "",
            "index-row",
            mendable=False,
        ),
    }


def spoil(connection: sqlite3.Connection, chosen: list[Fault]) -> None:
    """Bring faults into a home of `ROWS` rows, each on rows of its own."""
    connection.execute("PRAGMA foreign_keys = OFF")
    for number, fault in enumerate(chosen):
        fault.change(connection, number % (ROWS // 2) * 2 + 1)


def _save_again(connection: sqlite3.Connection, row: int) -> None:
    """Save a workflow, delete it softly, save it again: ordinary, and refused by PostgreSQL."""
    columns = [name for _, name, *_ in connection.execute("PRAGMA table_info(saved_workflows)")]
    others = ", ".join(name for name in columns if name not in ("id", "is_active"))
    connection.execute(
        f"INSERT INTO saved_workflows (id, is_active, {others})"
        f" SELECT 'again', 0, {others} FROM saved_workflows WHERE rowid = ?",
        (row,),
    )
    connection.execute("UPDATE saved_workflows SET is_active = 1 WHERE rowid = ?", (row,))


def _version_again(connection: sqlite3.Connection, row: int) -> None:
    connection.execute(
        "UPDATE saved_workflow_versions SET version = 7, workflow_id ="
        " (SELECT workflow_id FROM saved_workflow_versions WHERE rowid = ?)"
        " WHERE rowid IN (?, ?)",
        (row, row, row + 1),
    )


def _two_projects(connection: sqlite3.Connection, row: int) -> None:
    """Run the same workflow under the same run id in two projects."""
    connection.execute(
        "UPDATE workflow_runs SET workflow_name = 'w', run_id = 'r', project_id = 'p' || rowid,"
        " id = 'p' || rowid || ':w:r' WHERE rowid IN (?, ?)",
        (row, row + 1),
    )


def _noise(length: int) -> str:
    """Return a text that does not compress."""
    digests = (hashlib.sha256(b"%d" % number).hexdigest() for number in range(length // 64 + 1))
    return "".join(digests)[:length]


def break_audit_hash(connection: sqlite3.Connection) -> None:
    """Return an event metadata that jsonb writes in another way, with the hash that it has then."""
    connection.execute(
        "UPDATE audit_event SET metadata = ? WHERE id = (SELECT min(id) FROM audit_event)",
        ('{"big": 1e22, "small": 1.5}',),
    )
    ((event,),) = connection.execute("SELECT min(id) FROM audit_event")
    hash_again(connection, event)


def hash_again(connection: sqlite3.Connection, event: int) -> None:
    """Return an event that was changed the hash that Sagewai would have given it."""
    names = ("org_id", "project_id", "actor_user_id", "action", "target_type", "target_id", "seq")
    row = connection.execute(
        f"SELECT metadata, created_at, prev_hash, {', '.join(names)} FROM audit_event WHERE id = ?",
        (event,),
    ).fetchone()
    covered = dict(zip(names, row[3:], strict=True))
    covered["metadata"] = json.loads(row[0])
    covered["created_at"] = str(row[1]).replace(" ", "T").removesuffix(".000000") + "+00:00"
    text = json.dumps(covered, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    digest = hashlib.sha256(((row[2] or "") + text).encode()).hexdigest()
    connection.execute("UPDATE audit_event SET hash = ? WHERE id = ?", (digest, event))
