"""What a restore can change in a home that it brings back, before anybody uses it.

`revoke_access` ends the sessions and API tokens that would be valid again. `rebind_fleet` gives the
fleet's rows to the organisation id of the new path: in an install of one organisation Sagewai makes
that id from the path of its state file, and shows no rows of another.

Both work on the staged copy, where no process is; the swap that follows makes them real.
"""

import contextlib
import json
import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sagewai_ops.database.sqlite.read_transaction import database_uri, from_database_error
from sagewai_ops.errors import DamagedError
from sagewai_ops.fs import atomic
from sagewai_ops.home.fleet import fleet_organisation
from sagewai_ops.home.paths import Home
from sagewai_ops.home.state_files import ADMIN_STATE_NAME, document_name

_REVOKE = (
    "DELETE FROM user_session",
    "UPDATE api_token SET revoked_at = CURRENT_TIMESTAMP WHERE revoked_at IS NULL",
)
_REBIND = (
    "UPDATE workers SET org_id = :new WHERE org_id LIKE 'default:%' AND org_id <> :new",
    "UPDATE enrollment_keys SET org_id = :new WHERE org_id LIKE 'default:%' AND org_id <> :new",
    "UPDATE fleet_tasks SET org_id = :new WHERE org_id LIKE 'default:%' AND org_id <> :new",
)


def revoke_access(documents: Mapping[str, bytes], staged: Home) -> None:
    """End every session and revoke every API token of a staged home.

    Args:
        documents: As `read_together` returned them for it.

    Raises:
        DamagedError: The state is no JSON object, so that nothing in it can be revoked.
    """
    for path, content in documents.items():
        if document_name(path) == ADMIN_STATE_NAME:
            state = _object(path, content)
            state.pop("active_token", None)
            state["active_tokens"] = []
            for token in state.get("api_tokens") or ():
                if isinstance(token, dict):
                    token["revoked"] = True
            text, place = json.dumps(state, indent=2), staged.root / path
            atomic.replace(place, text.encode(), owner=os.stat(place))
    _change(staged.database, _REVOKE, {})


def rebind_fleet(documents: Mapping[str, bytes], staged: Home, target: Home) -> int:
    """Give the fleet's rows to the organisation id of the target's path; tell how many.

    Args:
        documents: As `read_together` returned them for the staged home.
        target: Where the home will stand.
    """
    return _change(staged.database, _REBIND, {"new": organisation_id(documents, target)})


def organisation_id(documents: Mapping[str, bytes], home: Home) -> str:
    """Give the organisation id that the fleet's rows have in a home with these documents."""
    for path, content in documents.items():
        if document_name(path) == ADMIN_STATE_NAME:
            with contextlib.suppress(DamagedError):
                admin = _object(path, content).get("admin")
                if isinstance(admin, dict) and admin.get("id"):
                    return fleet_organisation(home.admin_state, str(admin["id"]))
    return fleet_organisation(home.admin_state, "")


def _change(database: Path, statements: tuple[str, ...], values: Mapping[str, str]) -> int:
    """Run statements in one transaction on a database that nobody else uses."""
    if not database.exists():
        return 0
    changed = 0
    uri = database_uri(database, mode="rw")
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
            connection.execute("PRAGMA locking_mode=EXCLUSIVE")
            connection.execute("BEGIN IMMEDIATE")
            for statement in statements:
                changed += _run(connection, statement, values)
            connection.execute("COMMIT")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.Error as error:
        raise from_database_error(error, database) from error
    return changed


def _run(connection: sqlite3.Connection, statement: str, values: Mapping[str, str]) -> int:
    try:
        return connection.execute(statement, dict(values)).rowcount
    except sqlite3.OperationalError as error:
        # A home from before a table came has no such rows.
        if "no such table" in str(error) or "no such column" in str(error):
            return 0
        raise


def _object(path: str, content: bytes) -> dict[str, Any]:
    try:
        state = json.loads(content)
    except ValueError as error:
        raise DamagedError(f"{path}: not JSON: {error}") from error
    if not isinstance(state, dict):
        raise DamagedError(f"{path}: not a JSON object")
    return state
