"""Write the members of an archive to a new private directory.

Each entry is created through the descriptor of its directory, exclusively and without following
links, so no archive can write outside. Links that lead out of the home are created last. Modes
come from the rules of a home.
"""

import contextlib
import errno
import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sagewai_ops.archive.manifest import PLAIN_FORMAT_VERSION, Entry, EntryType
from sagewai_ops.archive.reader import ArchiveReader
from sagewai_ops.database.sqlite.connect import SIDECARS, super_journal
from sagewai_ops.database.sqlite.read_transaction import MAGIC
from sagewai_ops.errors import DamagedError, UsageError
from sagewai_ops.fs import atomic, beneath, volumes
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.fs.ownership import set_owner
from sagewai_ops.home.paths import OWN_PREFIX
from sagewai_ops.permissions.modes import directory_mode, file_mode
from sagewai_ops.records import dataclass
from sagewai_ops.restore.links import check_links
from sagewai_ops.snapshots.member_paths import EXTERNAL

_HOLE_BYTES = 64 * 1024  # zeros of at least this length become a hole in a sparse file
_ZEROS = bytes(_HOLE_BYTES)
_WRITEBACK_BYTES = 512 * 1024  # of a file, which the disk then begins to write
_BAD_NAME = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)
_ELSEWHERE = "restore to another file system: --to DIR"


@dataclass(slots=True)
class Extraction:
    """Numbers of entries written, and the bytes of their contents."""

    files: int = 0
    directories: int = 0
    links: int = 0
    size_bytes: int = 0


def extract_members(
    reader: ArchiveReader,
    target: Path,
    path_of: Callable[[Entry], str | None],
    *,
    root: Path,
    on_bytes: Callable[[int], None] | None = None,
    on_file: Callable[[str], None] | None = None,
    on_skipped: Callable[[str, Iterator[memoryview]], None] | None = None,
    everything: bool = True,
    same_owner: bool = False,
) -> Extraction:
    """Write the members for which `path_of` returns a path, and verify everything that is read.

    Args:
        target: A private, empty directory of this run.
        root: The final path of `target`; links to the home are rewritten to it.
        path_of: Returns the path of a member relative to `target`; None skips the member.
        on_file: Called with the path of each file after it is complete.
        on_skipped: Called with the path and content of each member that is skipped.
        everything: Read the whole archive and check its digest; else only the members written.
        same_owner: As root, keep the recorded owners; else this process owns everything.

    Raises:
        DamagedError: Verification failed; discard what was written.
        NoSpaceError, PermissionDeniedError: The target cannot be written.
    """
    planned = ((path_of(entry), entry) for entry in reader.manifest.entries)
    check_links((path, entry) for path, entry in planned if path is not None)

    def twin_of(path: str) -> str:
        """Return another member whose path differs only in case or in the form of its letters."""
        paths = (path_of(entry) for entry in reader.manifest.entries)
        folded = _fold(path)
        return next((name for name in paths if name and name != path and _fold(name) == folded), "")

    is_new = reader.header.format_version > PLAIN_FORMAT_VERSION
    writer = _MemberWriter(target, root, same_owner=same_owner)
    wanted = None if everything else (lambda entry: path_of(entry) is not None)
    with contextlib.closing(writer), translate_os_errors(target):
        for entry, content in reader.members(wanted, on_bytes=on_bytes):
            path = path_of(entry)
            if path is None or entry.type is EntryType.SUPERSEDED:
                if on_skipped:
                    on_skipped(entry.path, content)
                continue
            with _translate_conflicts(path, twin_of):
                writer.add(entry, path, content)
            if on_file and entry.type is EntryType.FILE:
                on_file(path)
        _check_sidecars(target, writer.sidecars, is_strict=is_new)
        writer.create_outside_links(twin_of)
        with _translate_conflicts("directories"):
            writer.finish_directories()
    return writer.extraction


class _MemberWriter:
    """The target, with an open descriptor of the directory last written to."""

    def __init__(self, target: Path, root: Path, *, same_owner: bool) -> None:
        self._final_root = root
        self._same_owner = same_owner
        self.extraction = Extraction()
        self.sidecars: list[str] = []
        self._root = beneath.open_directory(target)
        self._directory = ""
        self._made: set[str] = set()
        self._descriptor = os.dup(self._root)
        self._directories: list[tuple[Entry, str]] = []
        self._outside_links: list[tuple[Entry, str]] = []

    def add(self, entry: Entry, path: str, content: Iterator[memoryview]) -> None:
        """Create one member."""
        if path.startswith(OWN_PREFIX):
            raise DamagedError(f"archive: member {path[:200]}: name reserved by sagewai-ops")
        directory, _, name = path.rpartition("/")
        self._enter(directory)
        if entry.type is EntryType.DIRECTORY:
            self._make_directory(path, name, self._descriptor)
            self._directories.append((entry, path))
            self.extraction.directories += 1
        elif entry.is_outside:
            self._outside_links.append((entry, path))
        elif entry.type is EntryType.LINK:
            self._create_link(entry, path)
        else:
            self._write(entry, path, name, content)
            if name.endswith(SIDECARS):
                self.sidecars.append(path)

    def _create_link(self, entry: Entry, path: str) -> None:
        directory, _, name = path.rpartition("/")
        self._enter(directory)
        try:
            os.symlink(self._link_target(entry, directory), name, dir_fd=self._descriptor)
        except OSError as error:
            if error.errno != errno.EPERM and not volumes.lacks(error):
                raise
            raise UsageError(
                f"{path}: a symbolic link, which this file system cannot store", hint=_ELSEWHERE
            ) from error
        if self._same_owner:
            set_owner(name, entry.uid, entry.gid, dir_fd=self._descriptor)
        beneath.set_times(name, entry.mtime_ns, dir_fd=self._descriptor)
        self.extraction.links += 1

    def _link_target(self, entry: Entry, directory: str) -> str:
        if not entry.is_absolute:
            return entry.target
        return os.path.normpath(os.path.join(self._final_root, directory, entry.target))

    def create_outside_links(self, twin_of: Callable[[str], str]) -> None:
        """Create the links that lead out of the home."""
        for entry, path in self._outside_links:
            with _translate_conflicts(path, twin_of):
                self._create_link(entry, path)

    def finish_directories(self) -> None:
        """Set modes and times of the directories after the last write, the deepest first."""
        for entry, path in reversed(self._directories):
            directory, _, name = path.rpartition("/")
            self._enter(directory)
            with beneath.closing(self._open_directory(name, self._descriptor)) as descriptor:
                if self._same_owner:
                    set_owner(descriptor, entry.uid, entry.gid)
                beneath.keep_mode(descriptor, _directory_mode(path, entry.mode), path)
                beneath.set_times(descriptor, entry.mtime_ns)

    def close(self) -> None:
        """Close the descriptors."""
        os.close(self._descriptor)
        os.close(self._root)

    def _write(self, entry: Entry, path: str, name: str, content: Iterator[memoryview]) -> None:
        mode = file_mode(path, entry.mode)
        if path.startswith(EXTERNAL + "/"):
            mode = 0o600  # from outside the home, where other modes are usual
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with beneath.closing(os.open(name, flags, 0o600, dir_fd=self._descriptor)) as descriptor:
            written = begun = 0
            for piece in content:
                _write_all(descriptor, piece, sparse=entry.is_sparse)
                written += len(piece)
                if written - begun >= _WRITEBACK_BYTES:  # the disk writes while the rest is read
                    atomic.begin_writeback(descriptor, begun)
                    begun = written
            self.extraction.size_bytes += written
            if entry.is_sparse:
                os.ftruncate(descriptor, entry.size_bytes)
            if self._same_owner:
                set_owner(descriptor, entry.uid, entry.gid)
            beneath.keep_mode(descriptor, mode, path)
            beneath.set_times(descriptor, entry.mtime_ns)
        self.extraction.files += 1

    def _enter(self, directory: str) -> None:
        """Open `directory`, creating it and the missing ones above it with mode 0700."""
        if directory == self._directory:
            return
        descriptor = os.dup(self._root)
        try:
            path = ""
            for part in directory.split("/") if directory else ():
                path = f"{path}/{part}" if path else part
                self._make_directory(path, part, descriptor)
                below = self._open_directory(part, descriptor)
                os.close(descriptor)
                descriptor = below
        except BaseException:
            os.close(descriptor)
            raise
        os.close(self._descriptor)
        self._descriptor, self._directory = descriptor, directory

    def _make_directory(self, path: str, name: str, above: int) -> None:
        """Create a directory, unless this run has done so."""
        if path not in self._made:
            os.mkdir(name, 0o700, dir_fd=above)
            self._made.add(path)

    def _open_directory(self, name: str, above: int) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, dir_fd=above)


@contextlib.contextmanager
def _translate_conflicts(
    path: str, twin_of: Callable[[str], str] = lambda _path: ""
) -> Iterator[None]:
    """Raise an error about the file system or about the archive, whichever is the reason.

    Args:
        twin_of: Returns another member that the file system may take for the same.

    Raises:
        UsageError: The file system cannot store the name.
        DamagedError: Only a damaged or crafted archive causes this.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _BAD_NAME:
            reason = (error.strerror or "").lower()
            raise UsageError(
                f"{path[:200]}: a name that this file system cannot store, {reason}",
                hint=_ELSEWHERE,
            ) from error
        if error.errno in (errno.EEXIST, errno.ENOTDIR) and (twin := twin_of(path)):
            raise UsageError(
                f"{path[:200]}: this file system cannot store it next to {twin[:200]}, which"
                " differs only in case or accents",
                hint=_ELSEWHERE,
            ) from error
        if error.errno not in (errno.EEXIST, errno.ENOTDIR, errno.ELOOP):
            raise
        raise DamagedError(
            f"archive: member {path[:200]}: conflicts with another on this file system"
        ) from error
    except (OverflowError, UnicodeEncodeError) as error:
        raise DamagedError(
            f"archive: member {path[:200]!r}: invalid time, owner or name"
        ) from error


def _fold(path: str) -> str:
    """Return a path as a file system compares it that ignores case and forms of letters."""
    return unicodedata.normalize("NFC", path).casefold()


def _directory_mode(path: str, mode: int) -> int:
    is_external = path == EXTERNAL or path.startswith(EXTERNAL + "/")
    return 0o700 if is_external else directory_mode(path, mode)


def _check_sidecars(target: Path, sidecars: Sequence[str], *, is_strict: bool) -> None:
    """Check that no database would be opened with a log from the archive.

    Args:
        is_strict: Refuse every log next to a database; else those that delete another file, for
            version 1 stored the logs of databases that no process used.
    """
    for path in sidecars:
        database = target / path[: path.rindex("-")]
        try:
            descriptor = beneath.open_file(database)
        except OSError:
            continue  # not in the archive, or not a file
        with open(descriptor, "rb") as file:
            is_database = file.read(len(MAGIC)) == MAGIC
        if is_database and (is_strict or super_journal(target / path)):
            raise DamagedError(
                f"archive: member {path[:200]}: the log of a database, which SQLite would apply",
                hint="use another snapshot: sagewai-ops snapshots list",
            )


def _write_all(descriptor: int, piece: memoryview, *, sparse: bool) -> None:
    if not sparse:
        while piece:
            piece = piece[os.write(descriptor, piece) :]
        return
    while piece:
        part, piece = piece[:_HOLE_BYTES], piece[_HOLE_BYTES:]
        if _ZEROS.startswith(part):  # unlike ==, which compares a memoryview byte by byte
            os.lseek(descriptor, len(part), os.SEEK_CUR)
        else:
            _write_all(descriptor, part, sparse=False)
