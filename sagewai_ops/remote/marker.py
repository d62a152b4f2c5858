"""The marker of a remote place: the object that `remote init` writes after it has probed the place.

Without it a place is not used, so that a mistyped bucket or path is an error. It has no secret, and
anyone who can write to the place can replace it: it proves the address and nothing else.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from sagewai_ops.errors import (
    DamagedError,
    NotFoundError,
    PermissionDeniedError,
    SchemaAheadError,
    TargetBusyError,
)
from sagewai_ops.records import dataclass
from sagewai_ops.remote.probe import Capabilities
from sagewai_ops.text import printable, shell_word

if TYPE_CHECKING:
    from sagewai_ops.remote.store import Store

MARKER = "sagewai-ops.json"
FORMAT = 1
_MOST_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Marker:
    """The content of a marker.

    Attributes:
        place_id: 16 hexadecimal digits, random.
        created_at: By the clock of the machine that wrote it.
        capabilities: What the place could do then.
    """

    place_id: str
    created_at: datetime
    capabilities: Capabilities


def new_marker(capabilities: Capabilities) -> Marker:
    """Return a marker with a random id."""
    now = datetime.now(timezone.utc).replace(microsecond=0)
    return Marker(secrets.token_hex(8), now, capabilities)


def write_marker(store: Store, marker: Marker) -> None:
    """Write the marker of a place that has none.

    Raises:
        TargetBusyError: It has one; nothing was changed.
        RemoteError, PermissionDeniedError, NotFoundError: As for every method of a store.
    """
    document = {
        "format": FORMAT,
        "place_id": marker.place_id,
        "created_at": f"{marker.created_at:%Y-%m-%dT%H:%M:%SZ}",
        "capabilities": asdict(marker.capabilities),
    }
    if not store.put(MARKER, json.dumps(document, indent=2).encode() + b"\n"):
        raise already_initialised(store)


def already_initialised(store: Store) -> TargetBusyError:
    """Return the error of a place that has a marker."""
    return TargetBusyError(
        f"{store.address}: already initialised, {MARKER} exists",
        hint=f"sagewai-ops remote check {shell_word(store.address)}",
    )


def read_marker(store: Store) -> Marker | None:
    """Read the marker of a place; None if it has none.

    Raises:
        DamagedError: It is not a marker.
        SchemaAheadError: A newer version of this program wrote it.
        RemoteError, PermissionDeniedError, NotFoundError: As for every method of a store.
    """
    facts = store.facts(MARKER)
    if facts is None:
        return None
    where = f"{store.address}: {MARKER}"
    if not 0 < facts.size_bytes <= _MOST_BYTES:
        raise DamagedError(f"{where}: {facts.size_bytes} bytes long, not a marker")
    try:
        document = json.loads(store.read(MARKER, 0, facts.size_bytes))
        version = document["format"]
        if isinstance(version, int) and version > FORMAT:
            raise SchemaAheadError(f"{where}: format {version}, this program knows {FORMAT}")
        return _parse(document)
    except (ValueError, TypeError, KeyError, RecursionError):
        raise DamagedError(
            f"{where}: not a marker", hint=f"sagewai-ops remote check {shell_word(store.address)}"
        ) from None


def require_marker(store: Store) -> Marker | None:
    """Return the marker of a place, which must have one.

    Returns:
        None if the rights do not suffice to read it, as those to write only.

    Raises:
        NotFoundError: It has none, or the place does not exist.
        DamagedError, SchemaAheadError, RemoteError: As for `read_marker`.
    """
    try:
        marker = read_marker(store)
    except PermissionDeniedError:
        return None
    if marker is None:
        raise NotFoundError(
            f"{store.address}: not initialised as a place for snapshots, {MARKER} not found",
            hint=f"sagewai-ops remote init {shell_word(store.address)}",
        )
    return marker


def _parse(document: dict[str, Any]) -> Marker:
    place_id, created = document["place_id"], document["created_at"]
    if document["format"] != FORMAT or not isinstance(place_id, str) or not place_id:
        raise ValueError
    created_at = datetime.strptime(created, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
    capabilities = Capabilities.from_document(document["capabilities"])
    return Marker(printable(place_id[:64]), created_at, capabilities)
