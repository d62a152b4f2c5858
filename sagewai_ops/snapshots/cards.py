"""The metadata file (card) next to each archive."""

import contextlib
import hmac
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sagewai_ops.archive.authentication import AuthenticationKey
from sagewai_ops.errors import DamagedError, NotFoundError
from sagewai_ops.fs import atomic, beneath, locks
from sagewai_ops.process.threads import ThreadPool
from sagewai_ops.remote.path import RemotePath, is_remote
from sagewai_ops.remote.store import ObjectFacts

CARD_VERSION = 1
# What only a metadata file states, and the archive does not.
RESULTS = (
    *("drill", "proved_restorable_at", "complete", "sound", "plausible", "change_accepted"),
    *("compared_with", "content", "verified_at", "full_check_at"),
)
CARD_KIND = "card"  # of the record, for its HMAC
REMOVED_KIND = "removed"  # of that of the snapshots that retention removed, in a file of its own
REMOVED_BEGINNING = ".removed-"
_CARD_BYTES = 16 * 1024  # a card has some hundred; a large buffer costs more than its content
_MOST_CARD_BYTES = 1024 * 1024
_MOST_REMOTE_BYTES = 64 * 1024  # all of a place are kept for the run
_REMOTE_READS = 16  # at once
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
    "full_check_at": str,
    "proved_restorable_at": str,
    "drill": dict,
    "tags": list,
    "recipients": dict,
    "without_database": bool,
    "read_back": dict,
}


_Path = TypeVar("_Path", bound=Path)


def card_path(archive: _Path) -> _Path:
    """Return the path of the metadata file of an archive."""
    return archive.with_name(archive.name + ".json")


def read_card(archive: Path) -> Mapping[str, Any]:
    """Read the metadata file of an archive; {} if it is missing or unreadable."""
    return read_owned_card(archive)[0]


def read_owned_card(archive: Path) -> tuple[Mapping[str, Any], int]:
    """Read the metadata file of an archive, and the uid of its owner; -1 without one."""
    card, uid = _read_unchecked(archive)
    return checked(card), uid


def checked(card: dict[str, Any]) -> dict[str, Any]:
    """Return a metadata file without the facts that have the wrong type."""
    for name, kind in _CARD_FACTS.items():
        if name in card and not isinstance(card[name], kind):
            del card[name]
    return card


def write_card(
    archive: Path, card: Mapping[str, Any], key: AuthenticationKey | None = None
) -> None:
    """Write the metadata file of an archive.

    Args:
        key: Authenticates it; None without one.
    """
    write_record(card_path(archive), encode_card(card, key))


def write_record(path: Path, content: bytes) -> None:
    """Write a file of a snapshot directory or a remote place, or replace it."""
    if is_remote(path):
        path.store.put(path.member, content, replace=True)
    else:
        atomic.replace(path, content)


def encode_card(card: Mapping[str, Any], key: AuthenticationKey | None) -> bytes:
    """Return the content of a metadata file; `key` authenticates it."""
    document = {"card": CARD_VERSION, **card}
    document.pop("mac", None)
    if key:
        document["mac"] = key.record_mac(CARD_KIND, document)
    return json.dumps(document, indent=1).encode() + b"\n"


def encode_unchanged(card: Mapping[str, Any]) -> bytes:
    """Return the content of a metadata file with the HMAC that it has, if any."""
    return json.dumps(card, indent=1).encode() + b"\n"


def is_authentic(
    card: Mapping[str, Any], keys: Sequence[AuthenticationKey], kind: str = CARD_KIND
) -> bool:
    """Return whether a metadata file, or a record of another kind, has the HMAC of a key."""
    mac, named = card.get("mac"), card.get("key_fingerprint")
    if not isinstance(mac, str) or not mac.isascii():
        return False
    for key in sorted(keys, key=lambda key: key.fingerprint != named) if len(keys) > 1 else keys:
        if hmac.compare_digest(mac.encode(), key.record_mac(kind, card).encode()):
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
    with contextlib.ExitStack() as stack:
        if is_remote(archive):
            is_there = archive.store.facts(card_path(archive).name) is not None
        else:
            stack.enter_context(locks.exclusive(archive.parent, wait_seconds=_CARD_SECONDS))
            is_there = beneath.exists(archive)
        if not is_there:
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


def read_remote_cards(
    place: RemotePath, files: Mapping[str, ObjectFacts]
) -> dict[str, dict[str, Any]]:
    """Read metadata files of a remote place; {} for one that is unreadable.

    Args:
        files: Name of an archive -> its metadata file.

    Raises:
        RemoteError, PermissionDeniedError: The place cannot be read.
    """

    def read(name: str) -> dict[str, Any]:
        file = files[name]
        if not 0 < file.size_bytes <= _MOST_REMOTE_BYTES:
            return {}
        if file not in place.place.contents:
            try:
                place.place.contents[file] = place.store.read(file.name, 0, file.size_bytes)
            except (NotFoundError, DamagedError):
                return {}  # removed by another run, or of another writer: the archive decides
        return parse_card(place.place.contents[file], name)

    with ThreadPool(_REMOTE_READS, thread_name_prefix="card") as pool:
        return dict(zip(files, pool.map(read, files), strict=True))


def _read_unchecked(archive: Path) -> tuple[dict[str, Any], int]:
    if is_remote(archive):
        card = card_path(archive)
        facts = card.store.facts(card.name)
        files = {archive.name: facts} if facts else {}
        return read_remote_cards(archive.parent, files).get(archive.name, {}), os.geteuid()
    # A directory has thousands of them, and `Path.read_bytes` takes three times as long.
    try:
        descriptor = beneath.open_file(f"{archive}.json")
        try:
            status = os.fstat(descriptor)
            content = os.read(descriptor, _CARD_BYTES)
            if len(content) == _CARD_BYTES:
                content += os.read(descriptor, _MOST_CARD_BYTES)
        finally:
            os.close(descriptor)
    except OSError:
        return {}, -1
    document = parse_card(content, archive.name)
    return document, status.st_uid if document else -1


def parse_card(content: bytes, name: str) -> dict[str, Any]:
    """Return the metadata file of an archive; {} if it is malformed, or of another one."""
    card = parse_record(content)
    return card if card.get("archive") == name else {}


def parse_record(content: bytes) -> dict[str, Any]:
    """Return a JSON object; {} if it is malformed."""
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}
