"""What every remote place can do; object stores and SFTP servers are behind it.

Names are relative to the place and have no `/` at their start. Anyone who can write to the place or
answer for the server is an attacker: names, sizes and bytes are checked by the caller.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from sagewai_ops.records import dataclass

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Iterable, Sequence
    from contextlib import AbstractContextManager
    from datetime import datetime
    from pathlib import Path

ENTRY_BYTES = 4096  # that an entry of a directory counts as
_MORE_BYTES = 64 * 1024 * 1024  # for directories, and for what an engine writes between two looks
TREE = "tree"  # the directory of a snapshot, at the top of what a `TreeStore` stores


@dataclass(frozen=True, slots=True)
class ObjectFacts:
    """What a listing states of an object.

    Attributes:
        name: Relative to the place.
        modified_at: UTC, by the clock of the server.
    """

    name: str
    size_bytes: int
    modified_at: datetime


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much may be written of a tree that is read: its manifest is not authenticated yet.

    Attributes:
        file_bytes: Of each file.
        total_bytes: Of all; each entry counts as a block at least.
    """

    file_bytes: int
    total_bytes: int

    @classmethod
    def of(cls, sizes: Collection[int]) -> Bounds:
        """Return the bounds of files with these sizes, in bytes."""
        total = sum(max(size, ENTRY_BYTES) for size in sizes)
        return cls(max(sizes), total + _MORE_BYTES)


class Deletion(enum.Enum):
    """What a delete has done."""

    DELETED = "deleted"
    HIDDEN = "hidden"  # the store keeps the version: versioning or an object lock


class Upload(Protocol):
    """An object that is being written. It does not exist before `finish`."""

    def write(self, data: bytes, /) -> int:
        """Send bytes; the parts in transit are bounded, not their number.

        Raises:
            RemoteError: The server or the network failed.
        """
        ...

    def finish(self) -> None:
        """Complete the object.

        Raises:
            RemoteError: It does not exist, or its size is another one.
        """
        ...


class Store(Protocol):
    """A remote place.

    Every method raises RemoteError (19) where the server or the network fails or answers what it
    cannot mean, PermissionDeniedError (14) where it refuses the rights, and NotFoundError (10)
    where the bucket or the object is missing. Messages show the first line of the library's text
    and never a secret.
    """

    @property
    def address(self) -> str:
        """The place, for messages; without secrets."""
        ...

    def list(self) -> list[ObjectFacts]:
        """List all objects of the place, in one directory level, in the order of their names."""
        ...

    def facts(self, name: str) -> ObjectFacts | None:
        """Return the facts of an object; None if it does not exist."""
        ...

    def read(self, name: str, offset: int, count: int) -> bytes:
        """Read exactly `count` bytes of an object, in one request."""
        ...

    def stream(self, name: str) -> Generator[bytes, None, None]:
        """Yield the bytes of an object in pieces of at most some MiB, in one request."""
        ...

    def put(self, name: str, content: bytes, *, replace: bool = False) -> bool:
        """Write a small object in one request.

        Args:
            replace: Whether an existing one is replaced.

        Returns:
            Whether it was written; False if it exists and is not to be replaced.
        """
        ...

    def upload(self, name: str, expected_bytes: int) -> AbstractContextManager[Upload]:
        """Open an object for writing; at an exception in the block, nothing of it remains.

        Args:
            expected_bytes: For the size of its parts: `max(8 MiB, expected_bytes / 900)`.
        """
        ...

    def delete(self, name: str) -> Deletion:
        """Delete an object; one that does not exist is deleted."""
        ...

    def close(self) -> None:
        """End the connections, and a program that was started."""
        ...


@runtime_checkable
class HasRetention(Protocol):
    """A store that can lock objects."""

    def retained_until(self, name: str) -> datetime | None:
        """Return until when an object cannot be deleted; None if it can, or that is unknown."""
        ...


@runtime_checkable
class TreeStore(Protocol):
    """A store whose snapshots are directories: a repository of an engine.

    The methods raise what those of a store raise, and KeyMissingError (12) for a wrong password,
    LockedError (11), DamagedError (16) and NoSpaceError (13).
    """

    def prepare(self, *, create: bool, allow_clear: bool) -> tuple[str, ...]:
        """Check that the repository can be used, or create it; return warnings.

        Args:
            allow_clear: Whether it may be remote and not encrypted.

        Raises:
            UsageError: It is both, and `allow_clear` is false.
        """
        ...

    def store_tree(
        self,
        name: str,
        directory: Path,
        size_bytes: int,
        digest: str,
        *,
        home_id: str = "",
        previous: str = "",
    ) -> None:
        """Store the directory `tree` of a directory.

        Args:
            size_bytes: Of its files.
            digest: Of its manifest, in hex.
            home_id: Of its home; a tree without one is never swept.
            previous: The digest of the tree of which unchanged files are hard links here; "" if
                every file is new and must be read.
        """
        ...

    def fetch(self, name: str, paths: Sequence[str] | None, target: Path, bounds: Bounds) -> None:
        """Write a tree, or files of it, to `tree` in a private directory.

        Args:
            paths: Relative to the tree; None for all.
            bounds: Of what is written; a tree that has more is damaged.
        """
        ...

    def begun_put(self, name: str, content: bytes) -> AbstractContextManager[Callable[[], None]]:
        """Begin to store a small file, for the block, which calls the function to store it.

        Without that call, whatever ends the block or the process, nothing is stored. A file that
        exists is replaced.
        """
        ...

    def forget_all(self, names: Iterable[str], home_ids: Collection[str] | None = None) -> None:
        """Delete objects; their space is not reclaimed.

        Args:
            home_ids: Only trees of these homes; None for all objects.
        """
        ...

    def trees_of(self, home_ids: Collection[str]) -> list[ObjectFacts]:
        """List the trees of homes, with a metadata file or not."""
        ...

    def forget_partial(self, home_ids: Collection[str], before: datetime) -> None:
        """Delete what runs that were killed before a moment left of trees of homes: no objects."""
        ...

    def discard(self, name: str) -> None:
        """Delete what this run stored under a name, and nothing that another one stored."""
        ...

    def refresh(self) -> None:
        """Read the list again when it is needed."""
        ...

    def has_stored(self, names: Iterable[str]) -> bool:
        """Return whether a new list has everything that this run stored under these names."""
        ...

    def passed_over(self) -> tuple[str, ...]:
        """Return warnings about what another writer stored as if it were of this program."""
        ...

    def reclaim(self) -> None:
        """Remove data that no object needs."""
        ...

    def scratch(self) -> AbstractContextManager[Path]:
        """Create a private directory for a tree that is read, and remove it after the block."""
        ...
