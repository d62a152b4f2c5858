"""Find every available master key, in Sagewai's order, with the reason if Sagewai refuses it.

Sagewai uses the first source that exists and does not fall back: the environment, the system's
keyring, `secrets/master.key`, the older `master.key`. A key that it refuses (access for other
users, not 44 characters) counts as missing: it makes another and writes it over
`secrets/master.key`. So `problem` is reported first, and every source remains a candidate for
decryption, because one home can contain values of several keys.
"""

import base64
import binascii
import contextlib
import importlib
import importlib.util
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field, replace
from pathlib import Path

from sagewai_ops.errors import KeyMissingError, NotFoundError, PermissionDeniedError, UsageError
from sagewai_ops.fs import beneath
from sagewai_ops.fs.given_files import decode_given, read_given_file
from sagewai_ops.fs.trust import owned_target
from sagewai_ops.home.paths import LEGACY_MASTER_KEY, MASTER_KEY, Home
from sagewai_ops.records import dataclass
from sagewai_ops.text import shell_word

ENVIRONMENT = "SAGEWAI_MASTER_KEY"
KEYRING = "keyring"
KEY_FILE = "--key-file"  # in JSON since 0.1; people read `shown_source`

KEY_CHARACTERS = 44  # URL-safe base64, with padding, of 32 bytes: a Fernet key
_FINGERPRINT_MESSAGE = b"sagewai-ops master key v1"  # docs/format.md; never to be changed
_FINGERPRINT_DIGITS = 16
_KEYRING_SERVICE, _KEYRING_USER = "sagewai-master-key", "sealed"
_OTHERS = stat.S_IRGRP | stat.S_IWGRP | stat.S_IROTH | stat.S_IWOTH  # execute bits pass
_READ_BYTES = 4096  # of a file that should have 44: enough to report its length


def shown_source(source: str) -> str:
    """Return a source in the words for people: several options name a key file."""
    return "key file" if source == KEY_FILE else source


@dataclass(frozen=True, slots=True)
class Candidate:
    """A master key, or an unusable value in the place of one.

    Args:
        source: `SAGEWAI_MASTER_KEY`, `keyring`, `secrets/master.key`, `master.key`, `--key-file`,
            or a name of the caller's.
        value: The key, without blanks around it; empty if it cannot be one.
        problem: Why Sagewai would refuse it and overwrite the home's key file; empty if it would
            use it.
        path: The file that it was read from, if any.
    """

    source: str
    value: bytes = field(repr=False)
    problem: str = ""
    path: Path | None = None

    @property
    def is_file(self) -> bool:
        """Whether it was read from a file."""
        return self.path is not None

    @property
    def fingerprint(self) -> str:
        """The key's fingerprint; empty if there is no key."""
        return fingerprint(self.value) if self.value else ""


@dataclass(frozen=True, slots=True)
class KeyState:
    """A candidate without the key, for results."""

    source: str
    fingerprint: str
    problem: str


@dataclass(frozen=True, slots=True)
class HomeKeys:
    """The available keys.

    Attributes:
        key_source: Of the key that Sagewai would use; "" if it would make a new one.
    """

    keys: tuple[KeyState, ...]
    key_source: str
    key_fingerprint: str


def describe_keys(candidates: Iterable[Candidate]) -> HomeKeys:
    """Return the candidates without the keys."""
    found = tuple(candidates)
    key = active_key(found)
    return HomeKeys(
        keys=tuple(KeyState(key.source, key.fingerprint, key.problem) for key in found),
        key_source=key.source if key else "",
        key_fingerprint=key.fingerprint if key else "",
    )


def find_candidates(
    home: Home, environment: Mapping[str, str], *, key_file: Path | None = None
) -> tuple[Candidate, ...]:
    """Return the available keys: the caller's file first, then Sagewai's sources in its order.

    Args:
        home: The home whose key files are read.
        environment: Variables of Sagewai's process. If empty, only files are read, without the
            keyring.
        key_file: A key file of the caller.

    Raises:
        NotFoundError, PermissionDeniedError, KeyMissingError: About `key_file` only.
    """
    found = [read_key_file(key_file)] if key_file else []
    if value := environment.get(ENVIRONMENT):
        found.append(_from_text(ENVIRONMENT, value))
    if environment and (value := _from_keyring()):
        found.append(_from_text(KEYRING, value))
    for source, path in (
        (MASTER_KEY, home.master_key),
        (LEGACY_MASTER_KEY, home.legacy_master_key),
    ):
        if os.path.exists(path):
            found.append(_from_file(source, path))
    return tuple(found)


def all_candidates(
    home: Home, environment: Mapping[str, str], *, key_file: Path | None = None
) -> tuple[Candidate, ...]:
    """Return the available keys, with those that `migrate-layout` and `keys rotate` kept.

    Raises:
        NotFoundError, PermissionDeniedError, KeyMissingError: About `key_file` only.
    """
    found = [*find_candidates(home, environment, key_file=key_file)]
    parents = dict.fromkeys((home.master_key.parent, home.legacy_master_key.parent))
    names = f"{home.master_key.name}.legacy-*"
    for path in (path for parent in parents for path in sorted(parent.glob(names))):
        with contextlib.suppress(OSError), open(beneath.open_file(path), "rb") as file:
            name = os.path.relpath(path, home.root)
            kept = key_from_bytes(name, file.read(_READ_BYTES))
            if kept.value:  # Sagewai never reads it: anything else is no problem
                found.append(replace(kept, path=path))
    return tuple(found)


def refused_variable(environment: Mapping[str, str]) -> str:
    """Return why Sagewai refuses the key of the environment; "" if it does not, or without one."""
    value = environment.get(ENVIRONMENT)
    problem = _from_text(ENVIRONMENT, value).problem if value else ""
    return f"{ENVIRONMENT}: {problem}" if problem else ""


def key_from_bytes(source: str, value: bytes) -> Candidate:
    """Return a candidate for a key from elsewhere, such as an archive."""
    stripped = value.strip()
    problem = _shape_problem(stripped)
    return Candidate(source, b"" if problem else stripped, problem)


def read_key_file(path: Path) -> Candidate:
    """Read a key from a file of the caller.

    Raises:
        NotFoundError, PermissionDeniedError, KeyMissingError: It contains no key.
    """
    try:
        content = read_given_file(path, private="key file")
    except PermissionError as error:
        raise PermissionDeniedError(f"key file {path}: {error.strerror}") from error
    except OSError as error:
        raise NotFoundError(
            f"key file {path}: {error.strerror}", hint=f"ls -ld {shell_word(path)}"
        ) from error
    try:
        value = decode_given(content[:_READ_BYTES], f"key file {path}").strip().encode()
    except UsageError as error:
        raise KeyMissingError(error.message, hint=error.hint) from error
    if problem := _shape_problem(value):
        raise KeyMissingError(f"key file {path}: not a master key, {problem}")
    return Candidate(KEY_FILE, value, "", path)


def configured_key(candidates: Iterable[Candidate]) -> Candidate | None:
    """Return the key that a home is meant to use: Sagewai's first source, whatever its problem.

    None if no source has a key. If the result has a `problem`, Sagewai would refuse it.
    """
    return next((key for key in _in_sagewai(candidates) if key.value), None)


def active_key(candidates: Iterable[Candidate]) -> Candidate | None:
    """Return the key that Sagewai would use; None if it would make a new one."""
    first = next(_in_sagewai(candidates), None)
    return first if first and not first.problem else None


def rejected_key(candidates: Iterable[Candidate]) -> Candidate | None:
    """Return Sagewai's first source if it refuses it, and so would write a new key; else None."""
    first = next(_in_sagewai(candidates), None)
    return first if first and first.problem else None


def fingerprint(key: bytes) -> str:
    """Return the fingerprint of a key: 16 hex digits of an HMAC-SHA256 under it.

    Args:
        key: The 44 characters of the file.
    """
    import hashlib  # loads OpenSSL
    import hmac

    digest = hmac.new(key, _FINGERPRINT_MESSAGE, hashlib.sha256).hexdigest()
    return digest[:_FINGERPRINT_DIGITS]


def _in_sagewai(candidates: Iterable[Candidate]) -> Iterator[Candidate]:
    order = (ENVIRONMENT, KEYRING, MASTER_KEY, LEGACY_MASTER_KEY)
    known = [key for key in candidates if key.source in order]
    return iter(sorted(known, key=lambda key: order.index(key.source)))


def _from_text(source: str, value: str) -> Candidate:
    """Return a candidate for the value of a variable or the keyring; Sagewai strips no blanks."""
    raw = value.encode("utf-8", "surrogateescape")
    stripped = raw.strip()
    problem = _shape_problem(raw)
    if problem and not _shape_problem(stripped):
        return Candidate(source, stripped, f"{problem}: blanks around the key")
    return Candidate(source, b"" if problem else stripped, problem)


def _from_file(source: str, path: Path) -> Candidate:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return Candidate(source, b"", "not a regular file", path)
        real, reason = owned_target(path)
        if real is None:
            return Candidate(source, b"", reason, path)
        with open(beneath.open_file(real), "rb") as file:
            status = os.fstat(file.fileno())
            value = file.read(_READ_BYTES).strip()
    except OSError as error:
        return Candidate(source, b"", f"cannot be read: {error.strerror}", path)
    problem = _shape_problem(value)
    if problem:
        return Candidate(source, b"", problem, path)
    mode = stat.S_IMODE(status.st_mode)
    if mode & _OTHERS:
        problem = f"mode {mode:04o}, accessible to other users"
    return Candidate(source, value, problem, path)


def _shape_problem(value: bytes) -> str:
    if not value:
        return "empty"
    if len(value) != KEY_CHARACTERS:
        return f"{len(value)} characters, not {KEY_CHARACTERS}"
    try:
        decoded = base64.urlsafe_b64decode(value)
    except (binascii.Error, ValueError):
        decoded = b""
    return "" if len(decoded) == 32 else "not base64 of 32 bytes"


def _from_keyring() -> str | None:
    """Return the key of the system's keyring, if the optional module and a key exist."""
    if importlib.util.find_spec("keyring") is None:
        return None
    try:
        value = importlib.import_module("keyring").get_password(_KEYRING_SERVICE, _KEYRING_USER)
    except Exception:  # noqa: BLE001 (no backend, locked, no session bus: all mean no key)
        return None
    return value if isinstance(value, str) else None
