"""Who may come in again once a home is restored: sessions, API tokens, fleet rows."""

import contextlib
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from sagewai_ops.database.sqlite.read_transaction import open_frozen
from sagewai_ops.home.state_files import ADMIN_STATE_NAME, document_name, parse_document

_FLEET_ROWS = (
    "SELECT count(*) FROM workers WHERE org_id LIKE ?",
    "SELECT count(*) FROM enrollment_keys WHERE org_id LIKE ?",
    "SELECT count(*) FROM fleet_tasks WHERE org_id LIKE ?",
)
# A single organisation's id in these tables is made from the path of its state file.
_PATH_BOUND = "default:%"
_MOMENT = "%Y-%m-%d %H:%M:%S"  # the prefix that every stored time begins with; UTC


@dataclass(frozen=True, slots=True)
class AccessCounts:
    """What becomes valid again.

    Attributes:
        sessions: Logged-in browsers whose time is not over.
        api_tokens: Tokens that were not revoked when the snapshot was taken.
        fleet_rows: Rows that belong to an organisation id made from the home's path.
    """

    sessions: int = 0
    api_tokens: int = 0
    fleet_rows: int = 0


def count_access(documents: Mapping[str, bytes], database: Path | None) -> AccessCounts:
    """Count in documents, as `read_together` returned them, and in a database that nobody uses."""
    now = datetime.now(timezone.utc)
    sessions = tokens = fleet = 0
    for path, content in documents.items():
        if document_name(path) == ADMIN_STATE_NAME:
            counts = parse_document(ADMIN_STATE_NAME, content, now=now).counts
            sessions += counts.get("sessions", 0)
            tokens += counts.get("api_tokens", 0)
    if database is not None:
        with open_frozen(database) as connection:
            moment = f"{now:{_MOMENT}}"
            sessions += _count(
                connection, "SELECT count(*) FROM user_session WHERE expires_at > ?", moment
            )
            tokens += _count(
                connection,
                "SELECT count(*) FROM api_token WHERE revoked_at IS NULL"
                " AND (expires_at IS NULL OR expires_at > ?)",
                moment,
            )
            for statement in _FLEET_ROWS:
                fleet += _count(connection, statement, _PATH_BOUND)
    return AccessCounts(sessions, tokens, fleet)


def _count(connection: sqlite3.Connection, statement: str, value: str) -> int:
    # An old or a damaged database may lack the table; then it lets nobody in.
    with contextlib.suppress(sqlite3.Error):
        return int(connection.execute(statement, (value,)).fetchone()[0])
    return 0
