"""Sessions, API tokens and fleet rows of a restored home: count, revoke, rebind.

`revoke_access` and `rebind_fleet` change the staged copy, which no other process uses; the swap
that follows puts it in place. Sagewai derives the organisation id of an installation with a single
organisation from the path of its state file, and does not show rows of other organisations.
"""

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sagewai_ops.database.sqlite.read_transaction import open_frozen, translate_errors
from sagewai_ops.database.sqlite.write_transaction import open_exclusive
from sagewai_ops.errors import DamagedError
from sagewai_ops.fs import atomic
from sagewai_ops.home.fleet import fleet_organisation
from sagewai_ops.home.paths import Home
from sagewai_ops.home.state_files import ADMIN_STATE_NAME, document_name, parse_document
from sagewai_ops.records import dataclass

_COUNT_FLEET = (
    "SELECT count(*) FROM workers WHERE org_id LIKE ?",
    "SELECT count(*) FROM enrollment_keys WHERE org_id LIKE ?",
    "SELECT count(*) FROM fleet_tasks WHERE org_id LIKE ?",
)
_REBIND_FLEET = (
    "UPDATE workers SET org_id = :new WHERE org_id LIKE 'default:%' AND org_id <> :new",
    "UPDATE enrollment_keys SET org_id = :new WHERE org_id LIKE 'default:%' AND org_id <> :new",
    "UPDATE fleet_tasks SET org_id = :new WHERE org_id LIKE 'default:%' AND org_id <> :new",
)
_FROM_PATH = "default:%"  # an organisation id that is derived from a path
_TIME_FORMAT = "%Y-%m-%d %H:%M:%S"  # UTC, the prefix of every stored time
_VALID = (
    "SELECT count(*) FROM user_session",
    "SELECT count(*) FROM api_token WHERE revoked_at IS NULL",
)
_REVOKE = (
    "DELETE FROM user_session",
    "UPDATE api_token SET revoked_at = CURRENT_TIMESTAMP WHERE revoked_at IS NULL",
)


@dataclass(frozen=True, slots=True)
class AccessCounts:
    """Access that becomes valid again with a restore.

    Attributes:
        sessions: Browser sessions that have not expired.
        api_tokens: Tokens that were not revoked when the snapshot was created.
        fleet_rows: Rows of an organisation id that is derived from the home's path.
    """

    sessions: int = 0
    api_tokens: int = 0
    fleet_rows: int = 0


def count_access(documents: Mapping[str, bytes], database: Path | None) -> AccessCounts:
    """Count the valid sessions, API tokens and fleet rows.

    Args:
        documents: From `read_documents`.
        database: Not in use by any process.
    """
    now = datetime.now(timezone.utc)
    sessions = tokens = fleet = 0
    for _path, content in _admin_states(documents):
        counts = parse_document(ADMIN_STATE_NAME, content, now=now).counts
        sessions += counts.get("sessions", 0)
        tokens += counts.get("api_tokens", 0)
    if database is not None:
        with open_frozen(database) as connection:
            moment = f"{now:{_TIME_FORMAT}}"
            sessions += _count(
                connection, "SELECT count(*) FROM user_session WHERE expires_at > ?", moment
            )
            tokens += _count(
                connection,
                "SELECT count(*) FROM api_token WHERE revoked_at IS NULL"
                " AND (expires_at IS NULL OR expires_at > ?)",
                moment,
            )
            for statement in _COUNT_FLEET:
                fleet += _count(connection, statement, _FROM_PATH)
    return AccessCounts(sessions, tokens, fleet)


def revoke_access(documents: Mapping[str, bytes], staged: Home) -> None:
    """End every session and revoke every API token of a staged home.

    Args:
        documents: From `read_documents` on it.

    Raises:
        DamagedError: The state file is not a JSON object; or the database keeps a session or token.
    """
    for path, content in _admin_states(documents):
        state = _parse_object(path, content)
        state.pop("active_token", None)
        state["active_tokens"] = []
        for token in state.get("api_tokens") or ():
            if isinstance(token, dict):
                token["revoked"] = True
        file = staged.root / path
        atomic.replace(file, json.dumps(state, indent=2).encode(), owner=os.stat(file))
    _execute(staged.database, _REVOKE, {})
    _check_revoked(staged.database)


def rebind_fleet(documents: Mapping[str, bytes], staged: Home, target: Home) -> int:
    """Assign the fleet's rows to the organisation id of the target's path; return their number.

    Args:
        documents: From `read_documents` on the staged home.
        target: The restored home.
    """
    return _execute(staged.database, _REBIND_FLEET, {"new": organisation_id(documents, target)})


def count_other_fleet(documents: Mapping[str, bytes], staged: Home, target: Home) -> int:
    """Count the fleet's rows that Sagewai does not show at the target's path.

    Args:
        documents: Of the target, from `read_documents`.
    """
    own, found = organisation_id(documents, target), 0
    with open_frozen(staged.database) as connection:
        for statement in _COUNT_FLEET:
            every = _count(connection, statement, _FROM_PATH)
            found += every - _count(connection, statement.replace("LIKE", "="), own)
    return found


def organisation_id(documents: Mapping[str, bytes], home: Home) -> str:
    """Return the organisation id of the fleet's rows in a home with these documents."""
    for path, content in _admin_states(documents):
        with contextlib.suppress(DamagedError):
            admin = _parse_object(path, content).get("admin")
            if isinstance(admin, dict) and admin.get("id"):
                return fleet_organisation(home.admin_state, str(admin["id"]))
    return fleet_organisation(home.admin_state, "")


def _admin_states(documents: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
    return (item for item in documents.items() if document_name(item[0]) == ADMIN_STATE_NAME)


def _count(connection: sqlite3.Connection, statement: str, value: str) -> int:
    # An old or a damaged database may lack the table.
    with contextlib.suppress(sqlite3.Error):
        return int(connection.execute(statement, (value,)).fetchone()[0])
    return 0


def _execute(database: Path, statements: tuple[str, ...], values: Mapping[str, str]) -> int:
    """Run statements in one transaction on a database that no other process uses."""
    if not database.exists():
        return 0
    changed = 0
    with translate_errors(database), open_exclusive(database) as connection:
        connection.execute("BEGIN IMMEDIATE")
        for statement in statements:
            try:
                changed += connection.execute(statement, dict(values)).rowcount
            except sqlite3.OperationalError as error:
                if not _is_missing(error):
                    raise
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return changed


def _check_revoked(database: Path) -> None:
    """Check that no session and no valid token is left."""
    if not database.exists():
        return
    left = 0
    with open_frozen(database) as connection:
        for statement in _VALID:
            try:
                left += int(connection.execute(statement).fetchone()[0])
            except sqlite3.OperationalError as error:
                if not _is_missing(error):
                    raise
    if left:
        raise DamagedError(
            f"database {database}: {left} sessions and API tokens are left, not revoked",
            hint="sagewai-ops db check",
        )


def _is_missing(error: sqlite3.OperationalError) -> bool:
    """Return whether the table or the column does not exist, as in an older schema."""
    return "no such table" in str(error) or "no such column" in str(error)


def _parse_object(path: str, content: bytes) -> dict[str, Any]:
    try:
        state = json.loads(content)
    except ValueError as error:
        raise DamagedError(f"{path}: not JSON: {error}") from error
    if not isinstance(state, dict):
        raise DamagedError(f"{path}: not a JSON object")
    return state
