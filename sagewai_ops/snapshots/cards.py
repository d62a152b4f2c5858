"""The metadata file (card) next to each archive: read, written, amended."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sagewai_ops.errors import NotFoundError
from sagewai_ops.fs import atomic, locks

CARD_VERSION = 1

_CARD_BYTES = 16 * 1024  # one has some hundred; a buffer of many costs more than its content

_MOST_CARD_BYTES = 1024 * 1024

_CARD_FACTS = {  # what the commands rely on; a card may have been written by anybody
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

_CARD_SECONDS = 30.0  # a directory is held for moments when a card is written


def card_path(archive: Path) -> Path:
    """Name the card beside an archive."""
    return archive.with_name(archive.name + ".json")


def read_card(archive: Path) -> Mapping[str, Any]:
    """Read the card of an archive; {} if there is none, or none that can be read."""
    card = _card_as_written(archive)
    for name, kind in _CARD_FACTS.items():
        if name in card and not isinstance(card[name], kind):
            del card[name]
    return card


def write_card(archive: Path, card: Mapping[str, Any]) -> None:
    """Put the card beside its archive."""
    content = json.dumps({"card": CARD_VERSION, **card}, indent=1).encode() + b"\n"
    atomic.replace(card_path(archive), content)


def update_card(archive: Path, changes: Mapping[str, Any], rebuilt: Mapping[str, Any]) -> None:
    """Change facts of a card under the directory's lock; all others stay as they are.

    Args:
        changes: The facts; None takes one away.
        rebuilt: What the archive says of itself, for a card that is missing or cannot be read.

    Raises:
        NotFoundError: The archive is gone meanwhile; no card is left without one.
        LockedError: Another run holds the directory.
        NoSpaceError, PermissionDeniedError, OpsError: The system refused; the card is as it was.
    """
    with locks.exclusive(archive.parent, wait_seconds=_CARD_SECONDS):
        if not archive.exists():
            raise NotFoundError(f"snapshot {archive}: was removed meanwhile")
        card = {**(_card_as_written(archive) or rebuilt), "archive": archive.name, **changes}
        write_card(archive, {name: value for name, value in card.items() if value is not None})


def _card_as_written(archive: Path) -> dict[str, Any]:
    # A directory holds thousands of them: `Path.read_bytes` takes three times as long.
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
