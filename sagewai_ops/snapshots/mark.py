"""The high-water mark: the last authenticated snapshot of a home in each snapshot directory.

A writer of the directory can remove the newest snapshots, or put back the directory of last month,
whose archives are all authentic. The mark is where that writer cannot change it: in the home, which
no snapshot includes, and in the user's state directory, which a restore does not replace. The
higher of the two counts; a missing one is no error.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sagewai_ops.archive.authentication import AuthenticationKey
from sagewai_ops.errors import OpsError
from sagewai_ops.fs import atomic, beneath
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.fs.removal import sweep_leftovers
from sagewai_ops.home.paths import OWN_PREFIX, Home
from sagewai_ops.home.user_state import state_directory
from sagewai_ops.records import dataclass
from sagewai_ops.remote.path import is_remote
from sagewai_ops.snapshots.ownership import home_ids

NAME = f"{OWN_PREFIX}snapshots.json"
_VERSION = 1
_MOST_BYTES = 1024 * 1024
_MOST_DIRECTORIES = 64
_TEXTS = ("id", "mac", "key")
_NUMBERS = ("sequence", "since")


@dataclass(frozen=True, slots=True)
class Mark:
    """The last authenticated snapshot of a home in a directory.

    Attributes:
        mac: Its HMAC, in hex.
        key: The fingerprint of the master key that authenticates it.
        since: The first sequence number that was authenticated with this key.
        good_sequence, good_id: Of the last good snapshot, which `latest` names; 0 and "" without.
    """

    sequence: int
    id: str
    mac: str
    key: str
    since: int
    good_sequence: int = 0
    good_id: str = ""


def read_mark(home: Home, directory: Path, environment: Mapping[str, str]) -> Mark | None:
    """Return the high-water mark of a home for a snapshot directory; None without one.

    Args:
        environment: Names the user's state directory.
    """
    place = _place_of(directory)
    found = [_mark_of(document, place) for document in _read_all(home, environment)]
    return max(filter(None, found), key=lambda mark: mark.sequence, default=None)


def write_mark(home: Home, directory: Path, mark: Mark, environment: Mapping[str, str]) -> bool:
    """Write the high-water mark of a home for a snapshot directory.

    Returns:
        Whether it was written to the home or to the state directory.
    """
    place = _place_of(directory)
    written = False
    for path in _paths(home, environment):
        document = _read(path)
        before = _mark_of(document, place)
        changed = mark
        if before and before.key == mark.key:
            changed = replace(changed, since=before.since)
        if before and not mark.good_id:
            changed = replace(changed, good_sequence=before.good_sequence, good_id=before.good_id)
        directories = document.get("directories")
        places = dict(directories) if isinstance(directories, dict) else {}
        places.pop(place, None)
        while len(places) >= _MOST_DIRECTORIES:
            places.pop(next(iter(places)))
        places[place] = asdict(changed)
        with contextlib.suppress(OSError, OpsError):  # the snapshot is complete without it
            _write(path, {**document, "version": _VERSION, "directories": places}, home)
            written = True
    return written


@dataclass(frozen=True, slots=True)
class Copy:
    """The newest snapshot of a home in a remote place, or that was copied to a directory.

    Attributes:
        read_at: When it was last read from there, ISO UTC; "" if never.
        read_bytes: How many bytes of it were read then.
    """

    place: str
    id: str
    read_at: str
    read_bytes: int


def record_copy(home: Home, place: Path, snapshot_id: str, read_bytes: int) -> None:
    """Record in the home that a snapshot is in another place, and how much of it was just read."""
    document = _read(home.root / NAME)
    name = _place_of(place)
    copies = {copy.place: copy for copy in _copies_of(document)}
    now = f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}" if read_bytes else ""
    copies.pop(name, None)
    kept = [*copies.values(), Copy(name, snapshot_id, now, read_bytes)][-_MOST_DIRECTORIES:]
    with contextlib.suppress(OSError, OpsError):  # the copy is complete without it
        facts = [asdict(copy) for copy in kept]
        _write(home.root / NAME, {**document, "version": _VERSION, "copies": facts}, home)


def read_copies(home: Home) -> list[Copy]:
    """Return what is recorded of snapshots in other places."""
    return _copies_of(_read(home.root / NAME))


def copy_marks(home: Home, target: Path) -> None:
    """Copy the marks of a home to the directory that replaces it."""
    document = _read(home.root / NAME)
    if document:
        atomic.replace(target / NAME, _encode(document), owner=os.stat(home.root))


def former_keys(home: Home, keys: Sequence[AuthenticationKey]) -> tuple[AuthenticationKey, ...]:
    """Return the keys of the home's previous master keys that the known ones open."""
    kept = _read(home.root / NAME).get("keys")
    wrapped = kept if isinstance(kept, dict) else {}
    found: dict[str, AuthenticationKey] = {}
    known = list(keys)
    while known:
        key = known.pop()
        for fingerprint, values in wrapped.items():
            value = values.get(key.fingerprint) if isinstance(values, dict) else None
            if not isinstance(value, str) or fingerprint in found:
                continue
            with contextlib.suppress(ValueError):
                found[fingerprint] = key.unwrap(fingerprint, bytes.fromhex(value))
                known.append(found[fingerprint])
    return tuple(found.values())


def keep_former_key(home: Home, old: AuthenticationKey, new: AuthenticationKey) -> None:
    """Keep the key that authenticates the previous snapshots of a home, encrypted with the new one.

    Raises:
        OpsError: It cannot be written.
    """
    document = _read(home.root / NAME)
    kept = document.get("keys")
    keys = dict(kept) if isinstance(kept, dict) else {}
    values = keys.get(old.fingerprint)
    others = dict(values) if isinstance(values, dict) else {}
    keys[old.fingerprint] = {**others, new.fingerprint: new.wrap(old).hex()}
    _write(home.root / NAME, {**document, "version": _VERSION, "keys": keys}, home)


def sweep(root: Path) -> list[str]:
    """Remove the partial files of dead runs from a home; return their names."""
    return sweep_leftovers(root, atomic.partial_names(re.escape(NAME)))


def _place_of(directory: Path) -> str:
    """Return the name of a snapshot directory in a file of marks."""
    return str(directory) if is_remote(directory) else os.path.realpath(directory)


def _paths(home: Home, environment: Mapping[str, str]) -> Iterator[Path]:
    yield home.root / NAME
    if state := state_directory(environment):
        yield state / f"{home_ids(home)[0]}.json"


def _read_all(home: Home, environment: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    yield _read(home.root / NAME)
    if state := state_directory(environment):
        # The id changes when the set-up creates the administrator.
        yield from (_read(state / f"{home_id}.json") for home_id in home_ids(home))


def _read(path: Path) -> dict[str, Any]:
    """Read a file of marks; {} if it is missing, unreadable, or another user could change it."""
    try:
        with open(beneath.open_file(path), "rb", buffering=0) as stream:
            status = os.fstat(stream.fileno())
            document = json.loads(stream.read(_MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    is_trusted = status.st_uid in (os.geteuid(), 0) and not status.st_mode & beneath.OTHERS_WRITE
    is_known = isinstance(document, dict) and document.get("version") == _VERSION
    return document if is_trusted and is_known else {}


def _write(path: Path, document: Mapping[str, Any], home: Home) -> None:
    """Write a file of marks; the time of the home's directory stays what it was."""
    if path.parent != home.root:
        atomic.make_directory(path.parent)
        atomic.replace(path, _encode(document))
        return
    with translate_os_errors(home.root):
        before = os.stat(home.root)
        atomic.replace(path, _encode(document), owner=before)
        beneath.set_times(home.root, before.st_mtime_ns, before.st_atime_ns)


def _copies_of(document: Mapping[str, Any]) -> list[Copy]:
    found = []
    listed = document.get("copies")
    for facts in listed if isinstance(listed, list) else []:
        with contextlib.suppress(TypeError):  # other fields: of another version
            found.append(Copy(**facts))
    return [
        copy
        for copy in found
        if all(isinstance(text, str) for text in (copy.place, copy.id, copy.read_at))
        and type(copy.read_bytes) is int
    ]


def _encode(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=1).encode() + b"\n"


def _mark_of(document: Mapping[str, Any], place: str) -> Mark | None:
    directories = document.get("directories")
    facts = directories.get(place) if isinstance(directories, dict) else None
    if not isinstance(facts, dict):
        return None
    is_valid = all(type(facts.get(name)) is int and facts[name] >= 0 for name in _NUMBERS) and all(
        isinstance(facts.get(name), str) for name in _TEXTS
    )
    if not is_valid:
        return None
    sequence, good_id = facts.get("good_sequence"), facts.get("good_id")
    if type(sequence) is not int or not isinstance(good_id, str):
        sequence, good_id = facts["sequence"], facts["id"]  # written before there was a difference
    return Mark(
        **{name: facts[name] for name in (*_NUMBERS, *_TEXTS)},
        good_sequence=sequence,
        good_id=good_id,
    )
