"""The metadata file (card) next to each archive."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sagewai_ops.errors import NotFoundError
from sagewai_ops.fs import atomic, locks

CARD_VERSION = 1
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
    "proved_restorable_at": str,
    "drill": dict,
    "tags": list,
}


def card_path(archive: Path) -> Path:
    """Return the path of the metadata file of an archive."""
    return archive.with_name(archive.name + ".json")


def read_card(archive: Path) -> Mapping[str, Any]:
    """Read the metadata file of an archive; {} if it is missing or unreadable."""
    card = _read_unchecked(archive)
    for name, kind in _CARD_FACTS.items():
        if name in card and not isinstance(card[name], kind):
            del card[name]
    return card


def write_card(archive: Path, card: Mapping[str, Any]) -> None:
    """Write the metadata file of an archive."""
    content = json.dumps({"card": CARD_VERSION, **card}, indent=1).encode() + b"\n"
    atomic.replace(card_path(archive), content)


def update_card(archive: Path, changes: Mapping[str, Any], rebuilt: Mapping[str, Any]) -> None:
    """Change facts of a metadata file under the directory's lock, preserving the others.

    Args:
        changes: The facts; None removes one.
        rebuilt: Facts read from the archive, used if the metadata file is missing or unreadable.

    Raises:
        NotFoundError: The archive was removed in the meantime; no metadata file is written.
        LockedError: The directory is locked by another run.
        NoSpaceError, PermissionDeniedError, OpsError: It cannot be written; it is unchanged.
    """
    with locks.exclusive(archive.parent, wait_seconds=_CARD_SECONDS):
        if not archive.exists():
            raise NotFoundError(f"snapshot {archive}: removed by another run")
        card = {**(_read_unchecked(archive) or rebuilt), "archive": archive.name, **changes}
        write_card(archive, {name: value for name, value in card.items() if value is not None})


def _read_unchecked(archive: Path) -> dict[str, Any]:
    # A directory has thousands of them, and `Path.read_bytes` takes three times as long.
    try:
        descriptor = os.open(f"{archive}.json", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            content = os.read(descriptor, _CARD_BYTES)
            if len(content) == _CARD_BYTES:
                content += os.read(descriptor, _MOST_CARD_BYTES)
            card = json.loads(content)
        finally:
            os.close(descriptor)
    except (OSError, ValueError, RecursionError):
        return {}
    return card if isinstance(card, dict) and card.get("archive") == archive.name else {}
