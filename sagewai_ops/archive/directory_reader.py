"""Read a mirror, a snapshot whose members are plain files, with the checks of an archive.

The manifest lists the members, its own hash is next to it, and every content is hashed. Paths are
opened directory by directory and links are never followed. The shared lock keeps the files of a
mirror that is exchanged for a new one while it is read.
"""

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from sagewai_ops.archive.authentication import MAC_BYTES, NO_MAC
from sagewai_ops.archive.manifest import (
    HEADER_NAME,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    PLAIN_FORMAT_VERSION,
    Entry,
    EntryType,
    Header,
    decode_header,
    decode_manifest,
)
from sagewai_ops.archive.reader import MAX_HEADER_BYTES, ArchiveReader, EntryChecks, name_damaged
from sagewai_ops.errors import DamagedError, LockedError, NotFoundError, OpsError
from sagewai_ops.fs import beneath, locks

# In the format of `sha256sum`; a snapshot contains no file of a home with such a name.
SUM_NAME = ".sagewai-ops-manifest.sha256"
MAC_NAME = ".sagewai-ops-manifest.hmac"  # of format 2; a line of hex digits
_BLOCK_BYTES = 1024 * 1024
_LOCK_SECONDS = 30.0  # a writer locks the mirror for moments
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class DirectoryReader(ArchiveReader):
    """An open mirror; use `open_mirror`.

    Args:
        descriptor: Of its directory.
    """

    def __init__(self, descriptor: int) -> None:
        self._root = os.dup(descriptor)
        try:
            checks = EntryChecks("mirror")
            self.manifest = decode_manifest([self._read_manifest_text()], checks.add)
            self.header = decode_header(b"".join(self._read_file(HEADER_NAME, MAX_HEADER_BYTES)))
            self.mac = self._read_mac()
            checks.finish(self.manifest, self.header)
            self._check_names()
        except BaseException:
            self.close()
            raise

    @property
    def content_bytes(self) -> int:
        """Number of bytes of a full read, for progress."""
        return sum(entry.size_bytes for entry in self.manifest.entries)

    def members(
        self,
        wanted: Callable[[Entry], bool] | None = None,
        *,
        on_bytes: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[Entry, Iterator[memoryview]]]:
        """Yield the members in order, as `ArchiveReader.members` does.

        Raises:
            DamagedError: A member differs from the manifest.
        """
        for entry in self.manifest.entries:
            if wanted is None or wanted(entry):
                content = self._read_content(entry, on_bytes)
                yield entry, content
                for _piece in content:
                    pass

    def close(self) -> None:
        """Close the directory."""
        os.close(self._root)

    @property
    def manifest_text(self) -> bytes:
        """The manifest as it is stored."""
        return self._read_manifest_text()

    def _check_names(self) -> None:
        for entry in self.manifest.entries:
            if entry.path in (SUM_NAME, MAC_NAME) or entry.type is EntryType.SUPERSEDED:
                raise DamagedError(f"mirror: member {entry.path[:200]}: not allowed in a mirror")

    def _read_manifest_text(self) -> bytes:
        text = b"".join(self._read_file(MANIFEST_NAME, MAX_MANIFEST_BYTES))
        self.sha256 = hashlib.sha256(text).digest()
        listed = b"".join(self._read_file(SUM_NAME, MAX_HEADER_BYTES)).split()
        if listed[:1] != [self.sha256.hex().encode()]:
            raise DamagedError(f"{MANIFEST_NAME}: does not match {SUM_NAME}")
        return text

    def _read_mac(self) -> bytes:
        if self.header.format_version == PLAIN_FORMAT_VERSION:
            return b""
        try:
            text = b"".join(self._read_file(MAC_NAME, MAX_HEADER_BYTES))
            mac = bytes.fromhex(text.decode("ascii").strip())
        except ValueError:
            mac = b""
        if len(mac) != MAC_BYTES:
            raise DamagedError(f"mirror: {MAC_NAME}: not an HMAC")
        return b"" if mac == NO_MAC else mac

    @property
    def _manifest_start(self) -> int:
        return 0  # a mirror has no tar stream

    def _read_content(
        self, entry: Entry, on_bytes: Callable[[int], None] | None
    ) -> Iterator[memoryview]:
        if entry.type is not EntryType.FILE:
            self._check_type(entry)
            return
        digest = hashlib.sha256()
        for piece in self._read_file(entry.path, entry.size_bytes):
            digest.update(piece)
            if on_bytes:
                on_bytes(len(piece))
            yield memoryview(piece)
        if digest.digest() != entry.sha256:
            raise DamagedError(f"mirror: member {entry.path[:200]}: checksum mismatch")

    def _read_file(self, path: str, max_bytes: int) -> Iterator[bytes]:
        """Yield the content of a file; a longer one is damaged."""
        directory, name = self._open_parent(path)
        with beneath.closing(directory), _translate_errors(path):
            descriptor = os.open(name, _FILE, dir_fd=directory)
        with open(descriptor, "rb", buffering=0) as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise DamagedError(f"mirror: member {path[:200]}: not a regular file")
            while piece := stream.read(_BLOCK_BYTES):
                max_bytes -= len(piece)
                if max_bytes < 0:
                    raise DamagedError(f"mirror: member {path[:200]}: too long")
                yield piece

    def _check_type(self, entry: Entry) -> None:
        """Check that a directory or link exists, and the target of the link."""
        directory, name = self._open_parent(entry.path)
        with beneath.closing(directory), _translate_errors(entry.path):
            mode = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
            is_same = (
                stat.S_ISDIR(mode)
                if entry.type is EntryType.DIRECTORY
                else stat.S_ISLNK(mode) and os.readlink(name, dir_fd=directory) == entry.target
            )
        if not is_same:
            raise DamagedError(f"mirror: member {entry.path[:200]}: differs from the manifest")

    def _open_parent(self, path: str) -> tuple[int, str]:
        """Open the directory of a member, never through a link."""
        parent, _, name = path.rpartition("/")
        descriptor = os.dup(self._root)
        try:
            with _translate_errors(path):
                for part in parent.split("/") if parent else ():
                    child = os.open(part, _DIRECTORY, dir_fd=descriptor)
                    os.close(descriptor)
                    descriptor = child
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor, name


@contextlib.contextmanager
def open_mirror(root: Path) -> Iterator[DirectoryReader]:
    """Open a mirror; its files remain while it is open, also if it is exchanged for a new one.

    Raises:
        NotFoundError: The directory is not a mirror.
        DamagedError: The mirror is incomplete.
        SchemaAheadError: Its format is newer than this program.
    """
    if not is_mirror(root):
        raise NotFoundError(
            f"snapshot {root}: not a mirror of backup --format directory",
            hint="sagewai-ops snapshots list",
        )
    with (
        _lock(root) as descriptor,
        name_damaged(root),
        contextlib.closing(DirectoryReader(descriptor)) as reader,
    ):
        yield reader


def is_mirror(root: Path) -> bool:
    """Check whether a directory has the files of a mirror."""
    return all((root / name).is_file() for name in (HEADER_NAME, MANIFEST_NAME, SUM_NAME))


def read_mirror_header(root: Path) -> Header | None:
    """Read the header of a mirror; None if the directory is not one or cannot be read."""
    try:
        with open(beneath.open_file(root / HEADER_NAME), "rb") as stream:
            return decode_header(stream.read(MAX_HEADER_BYTES))
    except (OSError, OpsError):
        return None


@contextlib.contextmanager
def _lock(root: Path) -> Iterator[int]:
    with contextlib.ExitStack() as stack:
        try:
            descriptor = stack.enter_context(locks.shared(root, wait_seconds=_LOCK_SECONDS))
        except LockedError:
            raise
        except OpsError:
            # A file system without locks, where no other process exchanges it either.
            descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
        yield descriptor


@contextlib.contextmanager
def _translate_errors(path: str) -> Iterator[None]:
    """Raise DamagedError for a missing member or a link; other errors are the system's."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DamagedError(f"mirror: member {path[:200]}: missing") from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DamagedError(f"mirror: member {path[:200]}: is a link") from error
        raise
