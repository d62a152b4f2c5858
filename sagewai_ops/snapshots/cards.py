"""The metadata file (card) next to each archive."""

import hmac
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sagewai_ops.archive.authentication import AuthenticationKey
from sagewai_ops.errors import NotFoundError
from sagewai_ops.fs import atomic, beneath, locks

CARD_VERSION = 1
# What only a metadata file states, and the archive does not.
RESULTS = (
    "drill",
    "proved_restorable_at",
    "complete",
    "sound",
    "plausible",
    "change_accepted",
    "compared_with",
    "content",
    "verified_at",
)
CARD_KIND = "card"  # of the record, for its HMAC
_CARD_BYTES = 16 * 1024  # a card has some hundred; a large buffer costs more than its content
_MOST_CARD_BYTES = 1024 * 1024
_CARD_SECONDS = 30.0  # the directory is locked for moments while a card is written
# Facts that commands rely on. Others with write access to the directory can change a card.
_CARD_FACTS = {
    "sequence": int,
    "home_id": str,
    "home": str,
    "host": str,
    "archive_bytes": int,
    "schema_level": str,
    "key_custody": str,
    "key_fingerprint": str,
    "verified_at": str,
    "complete": bool,
    "sound": bool,
    "plausible": bool,
    "change_accepted": bool,
    "compared_with": str,
    "content": dict,
    "content_bytes": int,
    "engine": str,
    "proved_restorable_at": str,
    "drill": dict,
    "tags": list,
    "recipients": dict,
    "without_database": bool,
}


def card_path(archive: Path) -> Path:
    """Return the path of the metadata file of an archive."""
    return archive.with_name(archive.name + ".json")


def read_card(archive: Path) -> Mapping[str, Any]:
    """Read the metadata file of an archive; {} if it is missing or unreadable."""
    return read_owned_card(archive)[0]


def read_owned_card(archive: Path) -> tuple[Mapping[str, Any], int]:
    """Read the metadata file of an archive, and the uid of its owner; -1 without one."""
    card, uid = _read_unchecked(archive)
    for name, kind in _CARD_FACTS.items():
        if name in card and not isinstance(card[name], kind):
            del card[name]
    return card, uid


def write_card(
    archive: Path, card: Mapping[str, Any], key: AuthenticationKey | None = None
) -> None:
    """Write the metadata file of an archive.

    Args:
        key: Authenticates it; None without one.
    """
    document = {"card": CARD_VERSION, **card}
    document.pop("mac", None)
    if key:
        document["mac"] = key.record_mac(CARD_KIND, document)
    atomic.replace(card_path(archive), json.dumps(document, indent=1).encode() + b"\n")


def is_authentic(card: Mapping[str, Any], keys: Sequence[AuthenticationKey]) -> bool:
    """Return whether a metadata file has the HMAC of one of the keys."""
    mac, named = card.get("mac"), card.get("key_fingerprint")
    if not isinstance(mac, str):
        return False
    for key in sorted(keys, key=lambda key: key.fingerprint != named) if len(keys) > 1 else keys:
        if hmac.compare_digest(mac.encode(), key.record_mac(CARD_KIND, card).encode()):
            return True
    return False


def update_card(
    archive: Path,
    changes: Mapping[str, Any],
    rebuilt: Mapping[str, Any],
    keys: Sequence[AuthenticationKey] = (),
) -> None:
    """Change facts of a metadata file under the directory's lock, preserving the others.

    Args:
        changes: The facts; None removes one.
        rebuilt: Facts read from the archive, used if the metadata file is missing, unreadable or
            not authenticated.
        keys: The keys of the home; the first one authenticates the new file.

    Raises:
        NotFoundError: The archive was removed in the meantime; no metadata file is written.
        LockedError: The directory is locked by another run.
        NoSpaceError, PermissionDeniedError, OpsError: It cannot be written; it is unchanged.
    """
    with locks.exclusive(archive.parent, wait_seconds=_CARD_SECONDS):
        if not beneath.exists(archive):
            raise NotFoundError(f"snapshot {archive}: removed by another run")
        card = _read_unchecked(archive)[0]
        is_confirmed = is_authentic(card, keys)
        if rebuilt and not is_confirmed:
            others = {name: value for name, value in card.items() if name not in RESULTS}
            card = {**others, **rebuilt}
        # The HMAC is only for facts that the archive or an authenticated file confirms.
        key = keys[0] if keys and (is_confirmed or rebuilt) else None
        card = {**card, "archive": archive.name, **changes}
        facts = {name: value for name, value in card.items() if value is not None}
        write_card(archive, facts, key)


def _read_unchecked(archive: Path) -> tuple[dict[str, Any], int]:
    # A directory has thousands of them, and `Path.read_bytes` takes three times as long.
    try:
        descriptor = beneath.open_file(card_path(archive))
        try:
            status = os.fstat(descriptor)
            content = os.read(descriptor, _CARD_BYTES)
            if len(content) == _CARD_BYTES:
                content += os.read(descriptor, _MOST_CARD_BYTES)
            card = json.loads(content)
        finally:
            os.close(descriptor)
    except (OSError, ValueError, RecursionError):
        return {}, -1
    if not isinstance(card, dict) or card.get("archive") != archive.name:
        return {}, -1
    return card, status.st_uid
