"""What restic and borg have in common for this program, and the kinds of their errors."""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Protocol

from sagewai_ops.errors import (
    DamagedError,
    KeyMissingError,
    LockedError,
    NoSpaceError,
    NotFoundError,
    OpsError,
    PermissionDeniedError,
    RemoteError,
)
from sagewai_ops.records import dataclass
from sagewai_ops.remote.store import TREE, Bounds

MARK = "sagewai-ops"  # of everything that this program stores in a repository
MOST_FILE_BYTES = 16 * 1024 * 1024  # of a file that is stored alone: records are far smaller
_NAME = re.compile(r"[A-Za-z0-9._][A-Za-z0-9._-]{0,199}")  # never like an option
_DIGITS = re.compile(r"[0-9]{1,18}")
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MOST_ORDER = 10**17  # microseconds, in some 3000 years: a larger claim could not be exceeded
# In the order of their priority: a full disk also leaves a damaged file.
_PATTERNS: tuple[tuple[type[OpsError], tuple[str, ...]], ...] = (
    (
        NoSpaceError,
        ("no space left", "quota exceeded", "file too large", "insufficient free space"),
    ),
    (
        RemoteError,
        (
            *("connection refused", "connection reset", "connection closed", "timed out"),
            *("no such host", "network is unreachable", "no route to host", "i/o timeout"),
            *("dial tcp", "could not resolve hostname", "host key verification", "broken pipe"),
            *("ssh command exited", "unable to start the sftp session", "tls handshake"),
        ),
    ),
    (
        KeyMissingError,
        (
            *("wrong password", "no key found", "incorrect passphrase", "passphrase supplied in"),
            *("empty password", "resolving password failed", "unable to open password"),
            *("read password", "passphrase prompt", "can not acquire a passphrase"),
        ),
    ),
    (LockedError, ("already locked", "unable to create lock", "acquire the lock")),
    (
        PermissionDeniedError,
        ("permission denied", "access denied", "accessdenied", "read-only file system"),
    ),
    (
        DamagedError,
        (
            *("ciphertext", "invalid data returned", "checksum", "hash mismatch", "wrong hash"),
            *("integrity", "corrupt", "mac mismatch", "does not match", "unexpected eof"),
            *("not found in repository", "not found in index", "not in the index", "decrypt"),
            *("invalid character", "unable to load", "no matching", "is not a valid", "segment"),
            *("missing chunk", "invalid header", "unpack", "stat <", "load <"),
            # Of other writers: a file that is not where files are stored, or no tree.
            *("not found in snapshot", "never matched", "cannot unmarshal", "panic:"),
        ),
    ),
    (
        NotFoundError,
        (
            *("is there a repository", "does not exist", "not a valid repository"),
            *("unable to open config", "unable to open repository", "no snapshot found"),
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class StoredObject:
    """What an engine lists of one of its snapshots that this program stored.

    Attributes:
        engine_id: Names it for the engine.
        name: Of the object: of a tree, or of a file that is stored alone.
        size_bytes: As the labels state it.
        stored_at: UTC, by the clock of the machine that stored it.
        order: Of two objects with this name, the one with the larger number counts.
        digest: Of the manifest of a tree, in hex, as the labels state it.
        home: Of a tree, from `home_label`; "" if unknown.
        source: The directory that was stored, where the engine lists it.
    """

    engine_id: str
    name: str
    size_bytes: int
    stored_at: datetime
    order: int = 0
    digest: str = ""
    home: str = ""
    source: str = ""

    @property
    def is_tree(self) -> bool:
        """Whether it is a directory."""
        return self.name.endswith(f".{TREE}")


@dataclass(frozen=True, slots=True)
class NewTree:
    """A tree that is to be stored.

    Attributes:
        size_bytes: Of its files.
        digest: Of its manifest, in hex.
        home: From `home_label`.
    """

    name: str
    size_bytes: int
    digest: str
    home: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """What an engine lists of a repository.

    Attributes:
        objects: Everything that this program stored, in the engine's order.
        is_encrypted: Whether the engine encrypts what it stores there.
        partial: What runs that were killed left of objects.
        foreign: The ids of what has the mark of this program, and not the form of its objects.
    """

    objects: list[StoredObject]
    is_encrypted: bool = True
    partial: list[StoredObject] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)


class Engine(Protocol):
    """A program that stores versions of files without duplicates, encrypted, in a repository.

    Every method that starts it raises NotFoundError (10) if it is not installed or the repository
    does not exist, KeyMissingError (12) for a wrong password, LockedError (11), DamagedError (16),
    NoSpaceError (13), PermissionDeniedError (14), RemoteError (19), and OpsError (1) for an exit
    code or output that it does not know.
    """

    @property
    def name(self) -> str:
        """The name of the engine, such as `restic`."""
        ...

    def require_version(self) -> None:
        """Check that the installed version is one that this program knows.

        Raises:
            NotFoundError, OpsError: It is not.
        """
        ...

    def initialise(self) -> None:
        """Create the repository.

        Raises:
            TargetBusyError: It exists.
        """
        ...

    def list(self) -> Listing:
        """Return everything that this program stored."""
        ...

    def store_tree(
        self, directory: Path, new: "NewTree", parent: StoredObject | None
    ) -> StoredObject:
        """Store the directory `tree` of a directory.

        Args:
            parent: The tree whose files are hard links in this one, if unchanged: those that have
                the same inode are not read. None to read every file.
        """
        ...

    def store_file(self, content: bytes, name: str, after: int = 0) -> StoredObject:
        """Store a small file, with an order larger than `after`."""
        ...

    def begun_file(
        self, content: bytes, name: str, after: int = 0
    ) -> AbstractContextManager[Callable[[], StoredObject]]:
        """Begin to store a small file, for the block, which calls the function to store it.

        Without that call, whatever ends the block or the process, nothing is stored.
        """
        ...

    def read_file(self, stored: StoredObject) -> bytes:
        """Return the content of a file that is stored alone."""
        ...

    def restore(
        self,
        stored: StoredObject,
        paths: Sequence[str] | None,
        target: Path,
        bounds: Bounds | None = None,
    ) -> None:
        """Write a tree, or files of it, to `tree` in a private directory.

        Args:
            paths: Relative to the tree; None for all.
            bounds: Of what is written; a tree that has more is damaged.
        """
        ...

    def forget(self, stored: Iterable[StoredObject]) -> None:
        """Remove snapshots; their space is not reclaimed."""
        ...

    def reclaim(self) -> None:
        """Remove data that no snapshot needs."""
        ...


def is_object_name(name: str) -> bool:
    """Return whether a text can be the name of an object in a repository."""
    return _NAME.fullmatch(name) is not None


def home_label(home_id: str) -> str:
    """Return the label of a home: an id can have characters that no label has."""
    return hashlib.sha256(home_id.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def order_of(moment: datetime, after: int = 0) -> int:
    """Return the order of an object that is stored now: a slow clock hides none."""
    return max((moment - _EPOCH) // timedelta(microseconds=1), after + 1)


def labels_of(new: NewTree) -> list[str]:
    """Return the labels of a tree."""
    home = [f"home={new.home}"] if new.home else []
    return [f"name={new.name}", f"bytes={new.size_bytes}", f"manifest={new.digest}", *home]


def labels_of_file(content: bytes, name: str, after: int = 0) -> list[str]:
    """Return the labels of a file that is stored now; `after` as for `order_of`."""
    order = order_of(datetime.now(timezone.utc), after)
    return [f"name={name}", f"bytes={len(content)}", f"order={order}"]


def parse_labels(labels: Iterable[str]) -> dict[str, str]:
    """Return name -> value of labels."""
    return {name: value for name, _, value in (label.partition("=") for label in labels)}


def labelled(
    engine_id: str, labels: Mapping[str, str], stored_at: datetime, source: str = ""
) -> StoredObject | None:
    """Return an object with these labels; None for one that this program did not store."""
    name, size_bytes = labels.get("name", ""), parse_size(labels.get("bytes", ""))
    if not is_object_name(name) or size_bytes is None:
        return None
    order = parse_size(labels.get("order", ""))
    if order is None or order > _MOST_ORDER:
        order = order_of(stored_at)
    digest, home = labels.get("manifest", ""), labels.get("home", "")
    return StoredObject(engine_id, name, size_bytes, stored_at, order, digest, home, source)


def parse_size(text: str) -> int | None:
    """Return a number of bytes from a label; None if it is not one."""
    return int(text) if _DIGITS.fullmatch(text) else None


def classify(messages: Sequence[str]) -> type[OpsError]:
    """Return the kind of an engine's error, from its messages."""
    text = "\n".join(messages).lower()
    return next((kind for kind, words in _PATTERNS if any(map(text.__contains__, words))), OpsError)
