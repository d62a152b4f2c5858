"""Write members of an archive into a fresh private directory, by the manifest and nothing else.

Every name is created through the descriptor of its directory, exclusively and without following
links, so nothing that an archive says can lead outside. Modes come from the rules of a home.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sagewai_ops.archive.manifest import Entry, EntryType
from sagewai_ops.archive.reader import ArchiveReader
from sagewai_ops.errors import DamagedError
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.fs.ownership import set_owner
from sagewai_ops.home.paths import OWN_PREFIX
from sagewai_ops.permissions.modes import directory_mode, file_mode
from sagewai_ops.snapshots.member_paths import EXTERNAL

_HOLE_BYTES = 64 * 1024  # zeros of at least this length become a hole in a sparse file
_ZEROS = bytes(_HOLE_BYTES)


@dataclass(slots=True)
class Extraction:
    """What was written.

    Attributes:
        size_bytes: Of the files' contents.
    """

    files: int = 0
    directories: int = 0
    links: int = 0
    size_bytes: int = 0


def extract_members(
    reader: ArchiveReader,
    target: Path,
    place: Callable[[Entry], str | None],
    *,
    root: Path,
    on_bytes: Callable[[int], None] | None = None,
    on_file: Callable[[str], None] | None = None,
    everything: bool = True,
) -> Extraction:
    """Write what `place` gives a path for, and prove all that is read.

    Args:
        target: A private directory of this run, empty.
        root: Where `target` will stand in the end: links that name the home are made to name it.
        place: The path, relative to `target`, that a member is written to; None passes over it.
        on_file: Told each placed path once its file is whole.
        everything: Read the whole archive and check its digest; else only what is placed.

    Raises:
        DamagedError: The archive does not hold; what was written so far is worthless.
        NoSpaceError, PermissionDeniedError: The system refused.
    """
    writing = _Writing(target, root)
    wanted = None if everything else (lambda entry: place(entry) is not None)
    with contextlib.closing(writing), translate_os_errors(target):
        for entry, content in reader.members(wanted, on_bytes=on_bytes):
            path = place(entry)
            if path is None or entry.type is EntryType.SUPERSEDED:
                continue
            with _judged(path):
                writing.add(entry, path, content)
            if on_file and entry.type is EntryType.FILE:
                on_file(path)
        with _judged("folders"):
            writing.settle_directories()
    return writing.extracted


class _Writing:
    """The directory that is being filled, with the descriptor of the directory at hand."""

    def __init__(self, target: Path, root: Path) -> None:
        self._final = root
        self.extracted = Extraction()
        self._root = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._directory = ""
        self._descriptor = os.dup(self._root)
        self._directories: list[tuple[Entry, str]] = []

    def add(self, entry: Entry, path: str, content: Iterator[memoryview]) -> None:
        """Create one member."""
        if path.startswith(OWN_PREFIX):
            raise DamagedError(f"archive: member {path[:200]} has a name of this program's own")
        directory, _, name = path.rpartition("/")
        self._enter(directory)
        if entry.type is EntryType.DIRECTORY:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=self._descriptor)
            self._directories.append((entry, path))
            self.extracted.directories += 1
        elif entry.type is EntryType.LINK:
            os.symlink(self._target_of(entry, directory), name, dir_fd=self._descriptor)
            set_owner(name, entry.uid, entry.gid, dir_fd=self._descriptor)
            self._date(entry, name)
            self.extracted.links += 1
        else:
            self._write(entry, path, name, content)

    def _target_of(self, entry: Entry, directory: str) -> str:
        if not entry.is_absolute:
            return entry.target
        return os.path.normpath(os.path.join(self._final, directory, entry.target))

    def settle_directories(self) -> None:
        """Set modes and times of the directories, the deepest first: filling them changed both."""
        for entry, path in reversed(self._directories):
            directory, _, name = path.rpartition("/")
            self._enter(directory)
            set_owner(name, entry.uid, entry.gid, dir_fd=self._descriptor)
            descriptor = self._open_directory(name, self._descriptor)
            try:
                os.fchmod(descriptor, _directory_mode(path, entry.mode))
                os.utime(descriptor, ns=(entry.mtime_ns, entry.mtime_ns))
            finally:
                os.close(descriptor)

    def close(self) -> None:
        """Let go of the descriptors."""
        os.close(self._descriptor)
        os.close(self._root)

    def _write(self, entry: Entry, path: str, name: str, content: Iterator[memoryview]) -> None:
        mode = file_mode(path, entry.mode)
        if path.startswith(EXTERNAL + "/"):
            mode = 0o600  # what an override put outside the home, whatever its mode was there
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(name, flags, 0o600, dir_fd=self._descriptor)
        try:
            for piece in content:
                _write_all(descriptor, piece, sparse=entry.is_sparse)
                self.extracted.size_bytes += len(piece)
            if entry.is_sparse:
                os.ftruncate(descriptor, entry.size_bytes)
            set_owner(descriptor, entry.uid, entry.gid)
            os.fchmod(descriptor, mode)
            os.utime(descriptor, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(descriptor)
        self.extracted.files += 1

    def _enter(self, directory: str) -> None:
        """Make `directory` the one at hand; what is missing of it is made, private."""
        if directory == self._directory:
            return
        descriptor = os.dup(self._root)
        try:
            for part in directory.split("/") if directory else ():
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o700, dir_fd=descriptor)
                below = self._open_directory(part, descriptor)
                os.close(descriptor)
                descriptor = below
        except BaseException:
            os.close(descriptor)
            raise
        os.close(self._descriptor)
        self._descriptor, self._directory = descriptor, directory

    def _open_directory(self, name: str, above: int) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, dir_fd=above)

    def _date(self, entry: Entry, name: str) -> None:
        times = (entry.mtime_ns, entry.mtime_ns)
        os.utime(name, ns=times, dir_fd=self._descriptor, follow_symlinks=False)


@contextlib.contextmanager
def _judged(path: str) -> Iterator[None]:
    """Tell what an archive gets wrong from what the system refuses."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTDIR, errno.ELOOP):
            raise
        raise DamagedError(f"archive: member {path[:200]} stands twice on this system") from error
    except (OverflowError, UnicodeEncodeError) as error:
        raise DamagedError(
            f"archive: member {path[:200]!r}: a time, an owner or a name that no system has"
        ) from error


def _directory_mode(path: str, mode: int) -> int:
    is_external = path == EXTERNAL or path.startswith(EXTERNAL + "/")
    return 0o700 if is_external else directory_mode(path, mode)


def _write_all(descriptor: int, piece: memoryview, *, sparse: bool) -> None:
    if not sparse:
        while piece:
            piece = piece[os.write(descriptor, piece) :]
        return
    while piece:
        part, piece = piece[:_HOLE_BYTES], piece[_HOLE_BYTES:]
        if part == _ZEROS[: len(part)]:
            os.lseek(descriptor, len(part), os.SEEK_CUR)
        else:
            _write_all(descriptor, part, sparse=False)
