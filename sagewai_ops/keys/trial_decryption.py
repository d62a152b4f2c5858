"""Find which key opens which sealed value, without keeping a plaintext.

Every value is decrypted and its plaintext dropped at once. Values of one home can be under several
keys, so every candidate is tried on every value, first the one that opened the previous value.
"""

import base64
import binascii
import hashlib
import hmac
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING

from sagewai_ops.database.sqlite.read_transaction import open_frozen
from sagewai_ops.keys.candidates import KEY_CHARACTERS, Candidate
from sagewai_ops.keys.locations import PREFIX, Role, SealedValue, in_database, in_documents
from sagewai_ops.progress import Progress
from sagewai_ops.records import dataclass

if TYPE_CHECKING:
    from cryptography.fernet import Fernet

# Why a value is not opened; part of the JSON output (docs/json.md).
NO_KEY = "no available key opens it"
NO_DATA_KEY = "the data key of its project is missing or does not open"
NOT_SEALED = "begins with fernet: but is not a sealed value, or only a part of one"
NOT_A_KEY = "opens, but is not a data key"

_VERSION = 0x80
_LEAST_BYTES = 1 + 8 + 16 + 16 + 32  # version, time, vector, one block, signature
_SIGNATURE_BYTES = 32
# The end of what may be a key: `=` is searched first, which is fast.
_KEY_END = re.compile(rb"=(?<=[A-Za-z0-9_-]{43}=)")
_SEARCHED_VALUES = 100  # values without a key that are tried with what is found in files
_TRIED_KEYS = 100_000  # 20 seconds of processor time


@dataclass(frozen=True, slots=True)
class OpenedBy:
    """The number of values that one key opens.

    Args:
        source: Of the key; the first of several with the same key.
        fingerprint: Its fingerprint.
        values: Values under it, wrapped data keys included.
        through_projects: Values under data keys that it opens.
    """

    source: str
    fingerprint: str
    values: int
    through_projects: int


@dataclass(frozen=True, slots=True)
class Opened:
    """A sealed value that opened, by the names of `SealedValue`, and its key.

    Args:
        source: Of the master key.
        fingerprint: The master key's.
        through_project: Whether a project's data key is between the two.
    """

    place: str
    where: str
    source: str
    fingerprint: str
    through_project: bool = False


@dataclass(frozen=True, slots=True)
class Unopened:
    """A sealed value that no key opens, by the names of `SealedValue`, and the reason."""

    place: str
    where: str
    reason: str


@dataclass(frozen=True, slots=True)
class SealedReport:
    """The sealed values of a home, and which of them open.

    Args:
        total: Sealed values; of those that may be a user's text, the ones that a key opens.
        opened: How many of them opened.
        by_key: The keys that opened values, the most useful first.
        unopened: The rest.
    """

    total: int = 0
    opened: int = 0
    by_key: tuple[OpenedBy, ...] = ()
    unopened: tuple[Unopened, ...] = ()

    @property
    def closed(self) -> tuple[Unopened, ...]:
        """What no key opens; a value that opens and is not a data key is not among them."""
        return tuple(value for value in self.unopened if value.reason != NOT_A_KEY)

    def best(self, candidates: Iterable[Candidate]) -> Candidate | None:
        """Return the candidate that opens the most; None if none opens anything."""
        by_fingerprint = {key.fingerprint: key for key in reversed([*candidates]) if key.value}
        return by_fingerprint.get(self.by_key[0].fingerprint) if self.by_key else None


def try_keys(
    documents: Mapping[str, bytes],
    database: Path | None,
    candidates: Sequence[Candidate],
    *,
    key_search: "KeySearch | None" = None,
    others: Iterable[SealedValue] = (),
) -> SealedReport:
    """Open every sealed value of documents, of a database and of other places.

    Args:
        documents: As `read_documents` returned them.
        database: A database without writers, such as a copy; None without one.
        candidates: Keys to try, in order.
        key_search: Gets the keys, and the values that none of them opens.
        others: Values of a server.

    Raises:
        DamagedError: The database is not readable.
    """
    values = [*in_documents(documents), *others]
    if database is not None:
        with open_frozen(database) as connection:
            values.extend(in_database(connection))
    if key_search is None:
        return open_all(values, candidates)
    key_search.add_keys(candidate.value for candidate in candidates)
    report = open_all(values, candidates, on_plaintext=key_search.add_data_key)
    places = {(value.place, value.where) for value in report.unopened}
    key_search.add_unopened(value for value in values if (value.place, value.where) in places)
    return report


def open_all(
    values: Iterable[SealedValue],
    candidates: Sequence[Candidate],
    *,
    on_open: Callable[[Opened], None] | None = None,
    on_plaintext: Callable[[SealedValue, str, bytes], None] | None = None,
    progress: Progress | None = None,
    stage: str = "keys",
) -> SealedReport:
    """Try every key on every sealed value.

    Args:
        values: From any number of places of one home.
        candidates: Keys to try, in order; those without a value are skipped.
        on_open: Called with each value that opened.
        on_plaintext: Called with each value under a master key itself, wrapped data keys included:
            the value, the fingerprint of that key, and the plaintext, not to be kept.
        progress: Called with `stage` and values.
    """
    waiting = [*values]
    if not waiting:
        return SealedReport()
    masters = [_Key.of(candidate) for candidate in candidates if candidate.value]
    ring = _Ring(masters, on_open, on_plaintext)
    wrapped = [value for value in waiting if value.role is Role.DATA_KEY]
    others = [value for value in waiting if value.role is not Role.DATA_KEY]
    done = 0
    for decrypt, part in ((ring.unwrap, wrapped), (ring.open, others)):
        for value in part:
            decrypt(value)
            done += 1
            if progress:
                progress(stage, done, len(waiting))
    return ring.report()


class KeySearch:
    """Search file contents for keys that open values of a home, known ones and others."""

    def __init__(self) -> None:
        self._keys: set[bytes] = set()
        self._tokens: list[bytes] = []
        self._tried: dict[bytes, bool] = {}

    def add_keys(self, keys: Iterable[bytes]) -> None:
        """Add known keys."""
        self._keys.update(key for key in keys if key)

    def add_data_key(self, value: SealedValue, _fingerprint: str, plaintext: bytes) -> None:
        """Add the plaintext of a value, if that is the data key of a project."""
        if value.role is Role.DATA_KEY and len(plaintext) == KEY_CHARACTERS:
            self._keys.add(plaintext)

    def add_unopened(self, values: Iterable[SealedValue]) -> None:
        """Add values that no known key opens."""
        for value in values:
            raw, _token = _decoded(value.text)
            if raw and len(self._tokens) < _SEARCHED_VALUES:
                self._tokens.append(raw)

    def digest(self) -> str:
        """Return what identifies the keys that are searched for, in hex."""
        digest = hashlib.sha256()
        for value in (*sorted(self._keys), b"", *sorted(self._tokens)):
            digest.update(len(value).to_bytes(8, "big") + value)
        return digest.hexdigest()

    def __call__(self, content: bytes) -> bool:
        """Return whether a content contains a key that opens a value of the home."""
        if any(key in content for key in self._keys):
            return True
        if not self._tokens or b"=" not in content:
            return False
        found = {
            content[match.end() - KEY_CHARACTERS : match.end()]
            for match in _KEY_END.finditer(content)
        }
        return any(map(self._opens, found))

    def _opens(self, key: bytes) -> bool:
        if key not in self._tried and len(self._tried) < _TRIED_KEYS:
            signing = base64.urlsafe_b64decode(key)[:16]
            self._tried[key] = any(
                hmac.digest(signing, raw[:-_SIGNATURE_BYTES], "sha256") == raw[-_SIGNATURE_BYTES:]
                for raw in self._tokens
            )
        return self._tried.get(key, False)


@dataclass(frozen=True, slots=True)
class _Key:
    """A key ready for use.

    Args:
        source: Of the master key that it is, or that it was wrapped with.
        fingerprint: Of the same.
        signing: 16 bytes; enough to check in a microsecond whether a token is under this key.
    """

    source: str
    fingerprint: str
    signing: bytes = field(repr=False)
    fernet: "Fernet" = field(repr=False)

    @classmethod
    def of(cls, candidate: Candidate) -> "_Key":
        return cls._made(candidate.source, candidate.fingerprint, candidate.value)

    def wrapping(self, data_key: bytes) -> "_Key":
        """Return the data key of a project, which this key opened.

        Raises:
            ValueError: It is not a key.
        """
        return self._made(self.source, self.fingerprint, data_key)

    @classmethod
    def _made(cls, source: str, fingerprint: str, value: bytes) -> "_Key":
        from cryptography.fernet import Fernet

        return cls(source, fingerprint, base64.urlsafe_b64decode(value)[:16], Fernet(value))

    def open(self, raw: bytes, token: bytes) -> bytes | None:
        """Return the plaintext, or None if the token is not under this key."""
        from cryptography.fernet import InvalidToken

        signature = hmac.digest(self.signing, raw[:-_SIGNATURE_BYTES], "sha256")
        if not hmac.compare_digest(signature, raw[-_SIGNATURE_BYTES:]):
            return None
        try:
            return self.fernet.decrypt(token)
        except InvalidToken:
            return None


class _Ring:
    """The available keys and what they opened so far."""

    def __init__(
        self,
        masters: Iterable[_Key],
        on_open: Callable[[Opened], None] | None,
        on_plaintext: Callable[[SealedValue, str, bytes], None] | None,
    ) -> None:
        self._on_open = on_open
        self._on_plaintext = on_plaintext
        # One key in several places counts for the first of them.
        self._masters = list({key.fingerprint: key for key in reversed([*masters])}.values())[::-1]
        self._sources = {key.fingerprint: key.source for key in self._masters}
        self._projects: dict[str, _Key] = {}
        self._values: Counter[str] = Counter()
        self._through: Counter[str] = Counter()
        self._unopened: list[Unopened] = []

    def unwrap(self, value: SealedValue) -> None:
        """Open the data key of a project and keep it for the project's values."""
        raw, token = _decoded(value.text)
        master, data_key = self._try(raw, token)
        if master is None:
            self._leave(value, NO_KEY if raw else NOT_SEALED)
            return
        try:
            self._projects[value.where] = master.wrapping(data_key)
        except (ValueError, binascii.Error):
            self._leave(value, NOT_A_KEY)
            if self._on_plaintext:
                self._on_plaintext(value, master.fingerprint, data_key)
            return
        self._direct(value, master, data_key)

    def open(self, value: SealedValue) -> None:
        """Open a value and drop its plaintext."""
        raw, token = _decoded(value.text)
        data_key = self._projects.get(value.project) if value.project is not None else None
        if raw and data_key and data_key.open(raw, token) is not None:
            self._count(self._through, value, data_key)
            return
        master, plaintext = self._try(raw, token)
        if master is not None:
            self._direct(value, master, plaintext)
        elif value.role is not Role.STRAY:
            lacks_data_key = value.project is not None and data_key is None
            reason = NO_DATA_KEY if lacks_data_key else NO_KEY
            self._leave(value, reason if raw else NOT_SEALED)

    def report(self) -> SealedReport:
        opened = self._values + self._through
        return SealedReport(
            total=opened.total() + len(self._unopened),
            opened=opened.total(),
            by_key=tuple(
                OpenedBy(
                    source=self._sources[fingerprint],
                    fingerprint=fingerprint,
                    values=self._values[fingerprint],
                    through_projects=self._through[fingerprint],
                )
                for fingerprint, _ in opened.most_common()
            ),
            unopened=tuple(self._unopened),
        )

    def _try(self, raw: bytes, token: bytes) -> tuple[_Key | None, bytes]:
        for position, master in enumerate(self._masters) if raw else ():
            plaintext = master.open(raw, token)
            if plaintext is not None:
                if position:  # the next values are likely under the same
                    self._masters.insert(0, self._masters.pop(position))
                return master, plaintext
        return None, b""

    def _direct(self, value: SealedValue, master: _Key, plaintext: bytes) -> None:
        self._count(self._values, value, master)
        if self._on_plaintext:
            self._on_plaintext(value, master.fingerprint, plaintext)

    def _count(self, counter: Counter[str], value: SealedValue, key: _Key) -> None:
        counter[key.fingerprint] += 1
        if self._on_open:
            through = counter is self._through
            self._on_open(Opened(value.place, value.where, key.source, key.fingerprint, through))

    def _leave(self, value: SealedValue, reason: str) -> None:
        self._unopened.append(Unopened(value.place, value.where, reason))


def _decoded(text: str) -> tuple[bytes, bytes]:
    """Return a token's bytes and the token itself; no bytes if it cannot be one."""
    try:
        token = text[len(PREFIX) :].encode("ascii")
        raw = base64.urlsafe_b64decode(token)
    except (ValueError, binascii.Error):
        return b"", b""
    whole = len(raw) >= _LEAST_BYTES and raw[0] == _VERSION
    return (raw, token) if whole else (b"", b"")
