"""A snapshot that is no file but a directory: its members as files, read under the same proof.

The manifest is the allow-list, its own hash stands beside it, and every content is hashed. Names
are opened from directory to directory and links are never followed. A tree that is exchanged for
another while it is read stays whole for its reader: the lock keeps its files from being removed.
"""

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from sagewai_ops.archive.manifest import (
    HEADER_NAME,
    MANIFEST_NAME,
    Entry,
    EntryType,
    Header,
    Manifest,
    decode_header,
    decode_manifest,
)
from sagewai_ops.archive.reader import MOST_HEADER_BYTES, MOST_MANIFEST_BYTES, ArchiveReader
from sagewai_ops.errors import DamagedError, LockedError, NotFoundError, OpsError
from sagewai_ops.fs import locks

# As `sha256sum` writes it; no file of a home that is carried has such a name.
SUM_NAME = ".sagewai-ops-manifest.sha256"
_BLOCK_BYTES = 1024 * 1024
_LOCK_SECONDS = 30.0  # who exchanges a tree holds it for moments
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class DirectoryReader(ArchiveReader):
    """One tree, open for reading; use `open_mirror`.

    Args:
        descriptor: Of its directory.
    """

    def __init__(self, descriptor: int) -> None:
        self._root = os.dup(descriptor)
        try:
            self.manifest = decode_manifest([self._manifest_text()])
            self.header = decode_header(b"".join(self._pieces(HEADER_NAME, MOST_HEADER_BYTES)))
            _check(self.manifest, self.header)
        except BaseException:
            self.close()
            raise

    @property
    def content_bytes(self) -> int:
        """What a full read goes through, for progress."""
        return sum(entry.size_bytes for entry in self.manifest.entries)

    def members(
        self,
        wanted: Callable[[Entry], bool] | None = None,
        *,
        on_bytes: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[Entry, Iterator[memoryview]]]:
        """Go through the members in order, as `ArchiveReader.members` does.

        Raises:
            DamagedError: Something is not what the manifest says.
        """
        for entry in self.manifest.entries:
            if wanted is None or wanted(entry):
                content = self._content(entry, on_bytes)
                yield entry, content
                for _piece in content:
                    pass

    def close(self) -> None:
        """Let go of the directory."""
        os.close(self._root)

    def _manifest_text(self) -> bytes:
        text = b"".join(self._pieces(MANIFEST_NAME, MOST_MANIFEST_BYTES))
        listed = b"".join(self._pieces(SUM_NAME, MOST_HEADER_BYTES)).split()
        if listed[:1] != [hashlib.sha256(text).hexdigest().encode()]:
            raise DamagedError(f"{MANIFEST_NAME}: does not match {SUM_NAME}")
        return text

    def _content(
        self, entry: Entry, on_bytes: Callable[[int], None] | None
    ) -> Iterator[memoryview]:
        if entry.type is not EntryType.FILE:
            self._look(entry)
            return
        digest = hashlib.sha256()
        for piece in self._pieces(entry.path, entry.size_bytes):
            digest.update(piece)
            if on_bytes:
                on_bytes(len(piece))
            yield memoryview(piece)
        if digest.digest() != entry.sha256:
            raise DamagedError(f"tree: member {entry.path[:200]} does not match its checksum")

    def _pieces(self, path: str, most_bytes: int) -> Iterator[bytes]:
        """Read a file to its end; more than it may have is damage."""
        directory, name = self._directory_of(path)
        try:
            with _judged(path):
                descriptor = os.open(name, _FILE, dir_fd=directory)
        finally:
            os.close(directory)
        with open(descriptor, "rb", buffering=0) as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise DamagedError(f"tree: member {path[:200]} is no regular file")
            while piece := stream.read(_BLOCK_BYTES):
                most_bytes -= len(piece)
                if most_bytes < 0:
                    raise DamagedError(f"tree: member {path[:200]} is longer than it may be")
                yield piece

    def _look(self, entry: Entry) -> None:
        """Make sure that a directory or link is one, and the link the same."""
        directory, name = self._directory_of(entry.path)
        try:
            with _judged(entry.path):
                mode = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
                is_same = (
                    stat.S_ISDIR(mode)
                    if entry.type is EntryType.DIRECTORY
                    else stat.S_ISLNK(mode) and os.readlink(name, dir_fd=directory) == entry.target
                )
        finally:
            os.close(directory)
        if not is_same:
            raise DamagedError(f"tree: member {entry.path[:200]} is not what it must be")

    def _directory_of(self, path: str) -> tuple[int, str]:
        """Open the directory that a member stands in, never through a link."""
        above, _, name = path.rpartition("/")
        descriptor = os.dup(self._root)
        try:
            with _judged(path):
                for part in above.split("/") if above else ():
                    below = os.open(part, _DIRECTORY, dir_fd=descriptor)
                    os.close(descriptor)
                    descriptor = below
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor, name


@contextlib.contextmanager
def open_mirror(root: Path) -> Iterator[DirectoryReader]:
    """Open a tree; while it is open, whoever exchanges it leaves these files.

    Raises:
        NotFoundError: There is none.
        DamagedError: It is not whole.
        SchemaAheadError: Its format is newer than this program.
    """
    if not is_mirror(root):
        raise NotFoundError(
            f"snapshot {root}: is a directory, and no tree of backup --format directory",
            hint="sagewai-ops snapshots list",
        )
    with _held(root) as descriptor:
        try:
            with contextlib.closing(DirectoryReader(descriptor)) as reader:
                yield reader
        except DamagedError as error:
            raise DamagedError(
                f"{root}: {error.message}", hint="use another: sagewai-ops snapshots list"
            ) from error


@contextlib.contextmanager
def _held(root: Path) -> Iterator[int]:
    with contextlib.ExitStack() as stack:
        try:
            descriptor = stack.enter_context(locks.shared(root, wait_seconds=_LOCK_SECONDS))
        except LockedError:
            raise
        except OpsError:
            # A file system without locks, on which nobody exchanges it either.
            descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
        yield descriptor


def is_mirror(root: Path) -> bool:
    """Tell whether a directory has what a tree has."""
    return all((root / name).is_file() for name in (HEADER_NAME, MANIFEST_NAME, SUM_NAME))


def read_mirror_header(root: Path) -> Header | None:
    """Read the header of a mirror; None if the directory is not one or cannot be read."""
    try:
        with open(root / HEADER_NAME, "rb") as stream:
            return decode_header(stream.read(MOST_HEADER_BYTES))
    except (OSError, OpsError):
        return None


def _check(manifest: Manifest, header: Header) -> None:
    entries = manifest.entries
    if manifest.format_version != header.format_version:
        raise DamagedError("mirror: its manifest and its header differ in format")
    if not entries or entries[0].path != HEADER_NAME:
        raise DamagedError("tree: its manifest does not begin with its header")
    kinds: dict[str, EntryType] = {}
    for entry in entries:
        if entry.path in kinds or entry.type is EntryType.SUPERSEDED:
            raise DamagedError(f"tree: member {entry.path[:200]} stands twice")
        if entry.path in (MANIFEST_NAME, SUM_NAME):
            raise DamagedError(f"tree: member {entry.path} has a name of the tree's own")
        kinds[entry.path] = entry.type
    for path in kinds:
        parent = path.rpartition("/")[0]
        if parent and kinds.get(parent) is not EntryType.DIRECTORY:
            raise DamagedError(f"tree: member {path[:200]} is not in a directory of the manifest")


@contextlib.contextmanager
def _judged(path: str) -> Iterator[None]:
    """Tell what a tree lacks from what the system refuses."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DamagedError(f"tree: member {path[:200]} is missing") from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DamagedError(f"tree: member {path[:200]} is a link") from error
        raise
