"""Read Sagewai's three JSON documents at one moment, whatever their content.

Sagewai replaces each by a rename, so a read sees one version. The three are only consistent under
the lock that some of their writers take; it is taken for the read, after a short wait, because
other writers ignore it. An invalid document is a problem in the result, never an exception: a
backup includes documents that it cannot parse.
"""

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import field
from datetime import datetime, timezone
from pathlib import Path

from sagewai_ops.fs import beneath, locks
from sagewai_ops.fs.trust import owned_target
from sagewai_ops.home.paths import ADMIN_STATE, CONNECTIONS, LEGACY_PLACES, PROFILES, Home
from sagewai_ops.records import dataclass

ADMIN_STATE_NAME = "admin-state.json"
CONNECTIONS_NAME = "connections.json"
PROFILES_NAME = "profiles.json"
DOCUMENT_NAMES = (ADMIN_STATE_NAME, CONNECTIONS_NAME, PROFILES_NAME)

_EXTERNAL = "external"  # directory in archives for files from outside the home; docs/format.md
_STANDARD_PLACES = (ADMIN_STATE, CONNECTIONS, PROFILES)
_NAME_OF_VARIABLE = {
    "SAGEWAI_ADMIN_STATE_FILE": ADMIN_STATE_NAME,
    "SAGEWAI_CONNECTIONS_FILE": CONNECTIONS_NAME,
}
_STATE_VERSION = 3  # of admin-state.json, written by Sagewai 1.0
_CONNECTIONS_VERSION = 2  # Sagewai refuses others
_LOCK_WAIT_SECONDS = 2.0  # Sagewai keeps the lock for some milliseconds
_IDENTITY_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Document:
    """A document, as far as it can be parsed.

    Args:
        name: `admin-state.json`, `connections.json` or `profiles.json`.
        version: Its version number; None without one.
        counts: Records by kind: `sessions` (not expired), `api_tokens` (not revoked), `providers`,
            `projects`, `agents`, `users`; `connections`; `profiles`, `secrets`.
        problems: Phrases about what is wrong.
        content: The parsed JSON, which contains secrets; None if it is not JSON.
    """

    name: str
    version: int | None
    counts: Mapping[str, int]
    problems: tuple[str, ...]
    content: object = field(repr=False)


def read_documents(home: Home) -> dict[str, bytes]:
    """Read the documents of a home at one moment.

    Returns:
        The bytes by path: relative to the home, legacy places at its root included; below
        `external/` by the name of the variable that moves a document outside. Documents that are
        missing or not readable are omitted.
    """
    documents: dict[str, bytes] = {}
    with state_lock(home.admin_state, fcntl.LOCK_SH):
        for member, path in _places(home).items():
            with suppress(OSError):
                documents[member] = _read(path)
    return documents


def document_name(member: str) -> str:
    """Return the name of the document at a path that `read_documents` returned."""
    name = member.rpartition("/")[2]
    return _NAME_OF_VARIABLE.get(name, name)


def document_at(member: str) -> str:
    """Return the name of the document at a path in a snapshot; "" for any other file."""
    directory, _, name = member.rpartition("/")
    if directory == _EXTERNAL:
        return _NAME_OF_VARIABLE.get(name, "")
    is_place = member in _STANDARD_PLACES or (not directory and member in LEGACY_PLACES)
    return name if is_place and name in DOCUMENT_NAMES else ""


def in_use(members: Iterable[str]) -> Iterator[str]:
    """Yield the paths of documents that Sagewai reads: not an older one at the root of the home."""
    found = set(members)
    current = {document_name(member) for member in found if "/" in member}
    yield from (member for member in sorted(found) if "/" in member or member not in current)


def document_damage(name: str, content: bytes) -> str:
    """Return why a document is not whole, as after a crash of its writer; "" if it is.

    Args:
        name: One of `DOCUMENT_NAMES`.
    """
    problems: list[str] = []
    parsed = _parse(content, problems)
    if problems:
        return problems[0]
    if not isinstance(parsed, dict):
        return f"not a JSON object but {_kind(parsed)}"
    if not parsed:
        return "an empty object"
    # Sagewai adds the version of the state at its next start; the others always have one.
    if name != ADMIN_STATE_NAME and _number(parsed.get("version")) is None:
        return "no version"
    return ""


def parse_document(name: str, content: bytes, *, now: datetime | None = None) -> Document:
    """Parse a document.

    Args:
        name: One of `DOCUMENT_NAMES`.
        content: Its bytes.
        now: For the expiry of sessions; None for the current time.
    """
    problems: list[str] = []
    parsed = _parse(content, problems)
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
            "secrets": sum(len(values) for values in secrets if isinstance(values, dict)),
        }
    return Document(name, version, counts, tuple(problems), parsed)


def identity_of(home: Home, hostname: str) -> tuple[str, ...]:
    """Return the ids of a home, the most permanent first.

    The administrator that the set-up creates stays the same when the home moves to another path or
    machine. Without one, or with an unreadable state, only machine and path identify the home.

    Args:
        home: Need not exist.
        hostname: Of this machine.
    """
    place = place_identity(hostname, os.fspath(home.root))
    for content in (read_documents(home).get(member) for member in _state_places(home)):
        state = _parse(content, []) if content else None
        admin = state.get("admin") if isinstance(state, dict) else None
        if isinstance(state, dict) and isinstance(admin, dict) and admin.get("id"):
            return _digest("admin", str(admin["id"]), str(state.get("setup_at"))), place
    return (place,)


def place_identity(hostname: str, path: str) -> str:
    """Return the id that a home without an administrator has."""
    return _digest("place", hostname, path)


def _digest(*words: str) -> str:
    text = "\0".join(("sagewai-ops home v1", *words))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:_IDENTITY_DIGITS]


def _places(home: Home) -> dict[str, Path]:
    """Return the path of each document by its path in an archive."""
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
    real, reason = owned_target(path)
    if real is None:
        raise OSError(errno.ELOOP, reason, str(path))
    with open(beneath.open_file(real), "rb") as file:
        return file.read()


def state_lock(state: Path, operation: int) -> AbstractContextManager[None]:
    """Lock the admin state as its writers do, if they use a lock file; it is never created."""
    lock = Path(os.path.realpath(state.parent)) / f"{state.name}.lock"
    return locks.optional_lock(lock, wait_seconds=_LOCK_WAIT_SECONDS, operation=operation)


def _parse(content: bytes, problems: list[str]) -> object:
    try:
        parsed: object = json.loads(content)
    except UnicodeDecodeError as error:
        problems.append(f"not UTF-8 at byte {error.start}")
    except RecursionError:
        problems.append("nested too deeply")
    except ValueError as error:  # its text has the position and nothing of the content
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
    """Return the objects of a list, and report other entries as a problem."""
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
    """Count the sessions that have not expired; those of older formats never expire."""
    tokens = state.get("active_tokens")
    active = sum(_is_active(token, now) for token in tokens) if isinstance(tokens, list) else 0
    return active + bool(state.get("active_token"))


def _is_active(token: object, now: datetime) -> bool:
    if not isinstance(token, dict):
        return isinstance(token, str) and bool(token)
    expiry = token.get("expires_at")
    if not isinstance(expiry, str):
        return True
    try:
        # Python 3.10 does not parse the Z.
        moment = datetime.fromisoformat(expiry.replace("Z", "+00:00"))
    except ValueError:
        return True
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return moment > now
