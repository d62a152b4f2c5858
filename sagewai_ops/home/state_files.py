"""Read Sagewai's three JSON documents: together, whole, and whatever shape they are in.

Sagewai replaces each by a rename, so one read sees one version. Nothing ties the three to one
another but the lock that some of its writers take; it is held while they are read, and not waited
for long, as other writers ignore it. What is odd in a document is a problem in the answer, never
an exception: a backup carries what it cannot parse.
"""

import errno
import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from sagewai_ops.fs import locks
from sagewai_ops.home.paths import LEGACY_PLACES, Home

ADMIN_STATE_NAME = "admin-state.json"
CONNECTIONS_NAME = "connections.json"
PROFILES_NAME = "profiles.json"
DOCUMENT_NAMES = (ADMIN_STATE_NAME, CONNECTIONS_NAME, PROFILES_NAME)

_EXTERNAL = "external"  # where an archive carries what lives outside the home; docs/format.md
_NAME_OF_VARIABLE = {
    "SAGEWAI_ADMIN_STATE_FILE": ADMIN_STATE_NAME,
    "SAGEWAI_CONNECTIONS_FILE": CONNECTIONS_NAME,
}
_STATE_VERSION = 3  # of admin-state.json, written by Sagewai 1.0
_CONNECTIONS_VERSION = 2  # any other is refused by Sagewai
_LOCK_WAIT_SECONDS = 2.0  # its writers hold it for some milliseconds
_IDENTITY_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Document:
    """One document, as far as it could be understood.

    Args:
        name: `admin-state.json`, `connections.json` or `profiles.json`.
        version: What it says of itself; None if it says nothing that is a number.
        counts: Records by kind: `sessions` (not expired), `api_tokens` (not revoked), `providers`,
            `projects`, `agents`, `users`; `connections`; `profiles`, `secrets`.
        problems: What is wrong with it, a phrase each; empty if nothing.
        content: The parsed JSON, which holds secrets; None if it is none.
    """

    name: str
    version: int | None
    counts: Mapping[str, int]
    problems: tuple[str, ...]
    content: object = field(repr=False)


def read_together(home: Home) -> dict[str, bytes]:
    """Read the documents of a home within one moment.

    Returns:
        The bytes by path: relative to the home, legacy places at its root included; below
        `external/` by the name of the variable that puts a document outside. A document that is
        missing or cannot be read is left out.
    """
    found: dict[str, bytes] = {}
    with state_lock(home.admin_state, fcntl.LOCK_SH):
        for member, path in _places(home).items():
            with suppress(OSError):
                found[member] = _read(path)
    return found


def document_name(member: str) -> str:
    """Tell which document stands at a path that `read_together` returned."""
    name = member.rpartition("/")[2]
    return _NAME_OF_VARIABLE.get(name, name)


def parse_document(name: str, content: bytes, *, now: datetime | None = None) -> Document:
    """Understand a document as far as it goes.

    Args:
        name: One of `DOCUMENT_NAMES`.
        content: Its bytes.
        now: Decides which sessions are over; the present if None.
    """
    problems: list[str] = []
    parsed = _parsed(content, problems)
    if not problems and not isinstance(parsed, dict):
        problems.append(f"not a JSON object but {_kind(parsed)}")
    record = parsed if isinstance(parsed, dict) else {}
    if name == ADMIN_STATE_NAME:
        version = _number(record.get("schema_version"))
        counts = _state_counts(record, now or datetime.now(timezone.utc), problems)
        if version is not None and version > _STATE_VERSION:
            problems.append(f"schema_version {version} is ahead of {_STATE_VERSION}")
    elif name == CONNECTIONS_NAME:
        version = _number(record.get("version"))
        counts = {"connections": len(_records(record, "connections", problems))}
        if record and version != _CONNECTIONS_VERSION:
            problems.append(f"version {record.get('version')!r}, not {_CONNECTIONS_VERSION}")
    else:
        version = _number(record.get("version"))
        profiles = _records(record, "profiles", problems)
        secrets = [profile.get("secrets") for profile in profiles]
        counts = {
            "profiles": len(profiles),
            "secrets": sum(len(named) for named in secrets if isinstance(named, dict)),
        }
    return Document(name, version, counts, tuple(problems), parsed)


def identity_of(home: Home, hostname: str) -> tuple[str, ...]:
    """Give the ids by which a home is known, the most lasting first.

    The administrator that the set-up made stays the same when the home moves to another path or
    machine; before there is one, and in a state that cannot be read, the place has to do.

    Args:
        home: Need not exist.
        hostname: Of this machine.
    """
    place = _digest("place", hostname, os.fspath(home.root))
    for content in (read_together(home).get(member) for member in _state_places(home)):
        state = _parsed(content, []) if content else None
        admin = state.get("admin") if isinstance(state, dict) else None
        if isinstance(state, dict) and isinstance(admin, dict) and admin.get("id"):
            return _digest("admin", str(admin["id"]), str(state.get("setup_at"))), place
    return (place,)


def _digest(*words: str) -> str:
    text = "\0".join(("sagewai-ops home v1", *words))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:_IDENTITY_DIGITS]


def _places(home: Home) -> dict[str, Path]:
    """Map the path of each document in an archive to where it is."""
    outside = {path: f"{_EXTERNAL}/{variable}" for variable, path in home.overrides.items()}
    paths = [home.admin_state, home.connections, home.profiles]
    places = {outside.get(path) or path.relative_to(home.root).as_posix(): path for path in paths}
    for legacy in LEGACY_PLACES:
        if legacy in DOCUMENT_NAMES:
            places.setdefault(legacy, home.root / legacy)
    return places


def _state_places(home: Home) -> list[str]:
    return [member for member in _places(home) if document_name(member) == ADMIN_STATE_NAME]


def _read(path: Path) -> bytes:
    # Without O_NONBLOCK a pipe in a document's place would hold us for ever.
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return file.read()


def state_lock(state: Path, operation: int) -> AbstractContextManager[None]:
    """Lock the admin state as its writers do, if they use a lock file; it is never created."""
    lock = state.with_name(f"{state.name}.lock")
    return locks.optional_lock(lock, wait_seconds=_LOCK_WAIT_SECONDS, operation=operation)


def _parsed(content: bytes, problems: list[str]) -> object:
    try:
        parsed: object = json.loads(content)
    except UnicodeDecodeError as error:
        problems.append(f"not UTF-8 at byte {error.start}")
    except RecursionError:
        problems.append("nested too deeply")
    except ValueError as error:  # its text names the place and quotes nothing of the content
        problems.append(f"not JSON: {error}" if content.strip() else "empty")
    else:
        return parsed
    return None


def _kind(value: object) -> str:
    return "null" if value is None else f"of type {type(value).__name__}"


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _records(
    record: Mapping[str, object], key: str, problems: list[str]
) -> list[dict[str, object]]:
    """Take a list of objects, and say what is not one."""
    value = record.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        problems.append(f"{key}: not a list but {_kind(value)}")
        return []
    records = [item for item in value if isinstance(item, dict)]
    if len(records) < len(value):
        problems.append(f"{key}: {len(value) - len(records)} entries are not objects")
    return records


def _state_counts(
    state: Mapping[str, object], now: datetime, problems: list[str]
) -> dict[str, int]:
    counts = {
        key: len(_records(state, key, problems))
        for key in ("providers", "projects", "agents", "users")
    }
    tokens = _records(state, "api_tokens", problems)
    counts["api_tokens"] = sum(not token.get("revoked") for token in tokens)
    counts["sessions"] = _sessions(state, now)
    return counts


def _sessions(state: Mapping[str, object], now: datetime) -> int:
    """Count the sessions that still open the door; the older shapes carry no end."""
    tokens = state.get("active_tokens")
    active = sum(_is_active(token, now) for token in tokens) if isinstance(tokens, list) else 0
    return active + bool(state.get("active_token"))


def _is_active(token: object, now: datetime) -> bool:
    if not isinstance(token, dict):
        return isinstance(token, str) and bool(token)
    end = token.get("expires_at")
    if not isinstance(end, str):
        return True
    try:
        # Python 3.10 does not read the Z that others write.
        moment = datetime.fromisoformat(end.replace("Z", "+00:00"))
    except ValueError:
        return True
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return moment > now
