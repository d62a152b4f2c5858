"""Read a snapshot in a repository of an engine: a mirror whose files are fetched when needed.

The manifest and what belongs to it are fetched at once, the members that a caller reads later, into
a private directory that is removed afterwards. The checks are those of a mirror: what the engine
returns is compared with the manifest.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from sagewai_ops.archive.directory_reader import MAC_NAME, SUM_NAME, DirectoryReader
from sagewai_ops.archive.manifest import (
    HEADER_NAME,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    Entry,
    EntryType,
)
from sagewai_ops.errors import DamagedError, NotFoundError
from sagewai_ops.fs import beneath
from sagewai_ops.fs.free_space import require_free_bytes
from sagewai_ops.remote.path import RemotePath, tree_store
from sagewai_ops.remote.store import TREE, Bounds

_RECORDS = (HEADER_NAME, MANIFEST_NAME, SUM_NAME, MAC_NAME)
_MOST_NAMED = 200  # files that are named to the engine; more are fetched with all others


class RepositoryReader(DirectoryReader):
    """An open snapshot of a repository; use `open_repository`.

    Args:
        path: Of the snapshot.
        directory: Private; its `tree` has the records of the manifest.
        descriptor: Of `tree`.
        fetched: Members that are in it.
    """

    def __init__(
        self, path: RemotePath, directory: Path, descriptor: int, fetched: Iterable[str]
    ) -> None:
        self._path = path
        self._directory = directory
        self._fetched = set(fetched)
        super().__init__(descriptor)

    def members(
        self,
        wanted: Callable[[Entry], bool] | None = None,
        *,
        on_bytes: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[Entry, Iterator[memoryview]]]:
        """Yield the members in order, as `DirectoryReader.members` does, once they are fetched.

        Raises:
            NoSpaceError: They do not fit next to the home.
            DamagedError: A member differs from the manifest, or the engine cannot read it.
        """
        self._fetch([entry for entry in self.manifest.entries if wanted is None or wanted(entry)])
        yield from super().members(wanted, on_bytes=on_bytes)

    def _fetch(self, entries: list[Entry]) -> None:
        missing = [
            entry
            for entry in entries
            if entry.type is EntryType.FILE and entry.path not in self._fetched
        ]
        if not missing:
            return
        names: list[str] | None = [entry.path for entry in missing]
        chosen = missing
        if len(missing) > _MOST_NAMED:
            names = None
            chosen = [entry for entry in self.manifest.entries if entry.type is EntryType.FILE]
        needed = sum(entry.size_bytes for entry in chosen)
        require_free_bytes(self._directory, needed)
        # Directories and links count as entries.
        written = chosen if names else self.manifest.entries
        bounds = Bounds.of([MAX_MANIFEST_BYTES, *(entry.size_bytes for entry in written)])
        tree_store(self._path).fetch(self._path.member, names, self._directory, bounds)
        self._fetched.update(entry.path for entry in chosen)

    def _check_type(self, entry: Entry) -> None:
        """Do nothing: the manifest alone has the directories and links of a snapshot."""


@contextlib.contextmanager
def open_repository(
    path: RemotePath, members: Mapping[str, int] | None = None
) -> Iterator[RepositoryReader]:
    """Open a snapshot of a repository.

    Args:
        members: Paths and sizes of files that are read in any case: the same run of the engine
            fetches them.

    Raises:
        NoSpaceError: The members do not fit.
        NotFoundError: It is not in the repository.
        DamagedError: It is incomplete, or the engine cannot read it.
        KeyMissingError, LockedError, RemoteError: As `TreeStore`.
    """
    store = tree_store(path)
    if path.store.facts(path.member) is None:
        raise NotFoundError(f"snapshot {path}: not found", hint="sagewai-ops snapshots list")
    with store.scratch() as directory, contextlib.ExitStack() as stack:
        names = list(_RECORDS)
        if members and len(members) <= _MOST_NAMED:
            require_free_bytes(directory, sum(members.values()))
            names += [name for name in members if name not in _RECORDS]
        bounds = Bounds.of([MAX_MANIFEST_BYTES, *(members or {}).values()])
        store.fetch(path.member, names, directory, bounds)
        try:
            descriptor = beneath.open_directory(directory / TREE)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise DamagedError(f"snapshot {path}: has no directory {TREE}") from error
        stack.callback(os.close, descriptor)
        reader = RepositoryReader(path, directory, descriptor, names)
        yield stack.enter_context(contextlib.closing(reader))
