"""The path of a remote place, or of an object in it.

It is a `Path`, so that whatever accepts a snapshot directory accepts a place. It has no path in the
file system: the operating system's functions refuse it, so that none is used by mistake.
"""

from __future__ import annotations

import contextlib
from pathlib import Path, PosixPath
from typing import TYPE_CHECKING, TypeGuard

from sagewai_ops.remote.address import is_remote as is_remote_address
from sagewai_ops.remote.address import is_repository, repository_address
from sagewai_ops.remote.store import TreeStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sagewai_ops.remote.store import ObjectFacts, Store


class Place:
    """A remote place, which is opened when it is used first.

    Args:
        address: As it was named, for messages; without secrets.
        connect: Opens it.
        has_trees: Whether it is a repository of an engine.
    """

    def __init__(
        self, address: str, connect: Callable[[], Store] | None = None, *, has_trees: bool = False
    ) -> None:
        self.address = address.rstrip("/")
        self.connect = connect
        self.has_trees = has_trees
        self._store: Store | None = None
        # Small objects that were read: a command lists its place several times.
        self.contents: dict[ObjectFacts, bytes] = {}
        self._is_listed_once = False
        self._listed: list[ObjectFacts] | None = None

    @property
    def store(self) -> Store:
        """The open place.

        Raises:
            OpsError: As `connect`.
        """
        if self._store is None:
            assert self.connect is not None, "not bound to the settings of a run"
            self._store = self.connect()
        return self._store

    @contextlib.contextmanager
    def listed_once(self) -> Iterator[None]:
        """Answer each `list` of the block from the first one, where a run only reads."""
        self._is_listed_once = True
        try:
            yield
        finally:
            self._is_listed_once, self._listed = False, None

    def list(self) -> list[ObjectFacts]:
        """List the objects, in the order of their names.

        Raises:
            OpsError: As `Store.list`.
        """
        if self._listed is not None:
            return self._listed
        found = self.store.list()
        if self._is_listed_once:
            self._listed = found
        return found

    def close(self) -> None:
        """End the connections, if there are any."""
        if self._store:
            self._store.close()
            self._store = None


class RemotePath(PosixPath):
    """A remote place, or the object `member` in it."""

    place: Place
    member: str

    def __new__(cls, place: Place, member: str = "") -> RemotePath:  # noqa: PYI034 - 3.10 has no Self
        """Create it without the parts that a path in the file system has."""
        path = object.__new__(cls)
        path.place, path.member = place, member
        return path

    def __init__(self, place: Place, member: str = "") -> None:
        """Keep what `__new__` has set."""

    def __str__(self) -> str:
        """Return the address."""
        address = self.place.address
        separator = "" if address.endswith(":") else "/"
        return f"{address}{separator}{self.member}" if self.member else address

    def __repr__(self) -> str:
        """Return the address, quoted."""
        return f"RemotePath({str(self)!r})"

    def __fspath__(self) -> str:
        """Refuse: it has no path in the file system."""
        raise TypeError(f"{self}: not in the file system")

    def __eq__(self, other: object) -> bool:
        """Compare addresses."""
        return isinstance(other, RemotePath) and str(self) == str(other)

    def __hash__(self) -> int:
        """Return the hash of the address."""
        return hash(str(self))

    def __truediv__(self, name: object) -> RemotePath:
        """Return the path of an object."""
        return RemotePath(self.place, f"{self.member}/{name}".lstrip("/"))

    @property
    def name(self) -> str:
        """The name of the object; the last part of the address for the place itself."""
        return (self.member or self.place.address).rpartition("/")[2]

    @property
    def parent(self) -> RemotePath:
        """The place of an object."""
        return RemotePath(self.place, self.member.rpartition("/")[0])

    def with_name(self, name: str) -> RemotePath:
        """Return the path of another object in the same place."""
        return self.parent / name

    def expanduser(self) -> RemotePath:
        """Return the same path."""
        return self

    def absolute(self) -> RemotePath:
        """Return the same path."""
        return self

    @property
    def store(self) -> Store:
        """The open place.

        Raises:
            OpsError: It cannot be opened.
        """
        return self.place.store


def is_remote(path: Path) -> TypeGuard[RemotePath]:
    """Return whether a path is of a remote place."""
    return isinstance(path, RemotePath)


def has_trees(path: Path) -> TypeGuard[RemotePath]:
    """Return whether a path is of a repository, whose snapshots are directories."""
    return is_remote(path) and path.place.has_trees


def tree_store(path: RemotePath) -> TreeStore:
    """Return the open repository of a path for which `has_trees` is true."""
    assert isinstance(path.store, TreeStore)
    return path.store


def parse_place(text: str) -> Path:
    """Return the path of a directory, or of a remote place."""
    if is_repository(text):
        engine, _, repository = text.partition(":")
        return RemotePath(Place(repository_address(engine, repository), has_trees=True))
    return RemotePath(Place(text)) if is_remote_address(text) else Path(text)
