"""The record of a mirror: which files the next run need not read.

A file of the home whose status (device, inode, mode, size, both times) equals that at the last read
is unchanged: no process can set the inode's change time. A file of the mirror whose status equals
that after its verification is undamaged. Both hold until a read is `FULL_SECONDS` old.

The record is next to the mirror. It is authenticated with the home's key and belongs to one
manifest, so it claims nothing that this program did not verify. It is a cache: without it, every
file is read.
"""

import base64
import contextlib
import hashlib
import json
import os
import stat
import struct
import time
from collections.abc import Callable
from pathlib import Path

from sagewai_ops.archive.authentication import AuthenticationKey
from sagewai_ops.errors import OpsError
from sagewai_ops.fs import atomic, beneath
from sagewai_ops.home.paths import OWN_PREFIX
from sagewai_ops.records import dataclass

NAME = f"{OWN_PREFIX}tree.json"
FULL_SECONDS = 7 * 24 * 3600
# A change within one tick of the clock leaves the status as it was. A page that is mapped into
# memory changes without a new time until it is written to the disk, after some 35 s.
RACY_NS = 60 * 1_000_000_000
_KIND = "mirror files"
_STATUS = struct.Struct("<QQQqqq")
_FILE = struct.Struct("<16s16sQ")  # source, file of the mirror, second of the last read
_UNKNOWN = bytes(16)
_OTHER_BYTES = 4096  # of a record, without its files
_LARGEST = 2**64 - 1


@dataclass(frozen=True, slots=True)
class RecordedFile:
    """A file of the record.

    Attributes:
        source: Digest of its status in the home; zeros if it must be read again.
        stored: Of its status in the mirror.
        read_at: When both were last read, in seconds since 1970.
    """

    source: bytes
    stored: bytes
    read_at: int

    def has_source(self, found: os.stat_result) -> bool:
        """Return whether a file of the home is unchanged since it was read."""
        return self._is_fresh and self.source == digest_of(found) != _UNKNOWN

    def has_stored(self, found: os.stat_result) -> bool:
        """Return whether a file of the mirror is unchanged since it was verified."""
        return self._is_fresh and self.stored == digest_of(found) != _UNKNOWN

    @property
    def _is_fresh(self) -> bool:
        return 0 <= time.time() - self.read_at < FULL_SECONDS


NOTHING = RecordedFile(_UNKNOWN, _UNKNOWN, 0)


@dataclass(frozen=True, slots=True)
class MirrorRecord:
    """The record of the files of a mirror, in the order of its manifest.

    Attributes:
        searched: Identifies the keys that were searched for in the files.
    """

    searched: str = ""
    files: bytes = b""

    def file(self, number: int) -> RecordedFile:
        """Return what is recorded about a file of the manifest."""
        offset = number * _FILE.size
        if offset + _FILE.size > len(self.files):
            return NOTHING
        return RecordedFile(*_FILE.unpack_from(self.files, offset))


def read_record(
    directory: Path, manifest_sha256: bytes, files: int, key: AuthenticationKey | None
) -> MirrorRecord:
    """Read the record of a mirror; an empty one if it is missing, forged or of another mirror.

    Args:
        directory: Which has the mirror in it.
        files: Number of files in the manifest.
        key: Without one, nothing is recorded.
    """
    if key is None:
        return MirrorRecord()
    with contextlib.suppress(OSError, OpsError, ValueError, TypeError, KeyError, RecursionError):
        with open(beneath.open_file(directory / NAME), "rb") as stream:
            document = json.loads(stream.read(2 * files * _FILE.size + _OTHER_BYTES))
        is_authentic = document["mac"] == key.record_mac(_KIND, document)
        if is_authentic and document["manifest_sha256"] == manifest_sha256.hex():
            return MirrorRecord(document["searched"], base64.b64decode(document["files"]))
    return MirrorRecord()


class RecordBuilder:
    """Collect the files of a new mirror in the order of its manifest."""

    def __init__(self) -> None:
        self._paths: list[str] = []
        self._sources = bytearray()
        self._reads: list[int] = []

    def add(self, path: str, source: os.stat_result | None, started_ns: int) -> None:
        """Add a file that was read.

        Args:
            path: In the mirror.
            source: Its status in the home before it was read; None if it must be read again.
            started_ns: When the read began, in nanoseconds since 1970.
        """
        limit_ns = started_ns - RACY_NS
        is_settled = source and source.st_mtime_ns < limit_ns and source.st_ctime_ns < limit_ns
        digest = digest_of(source) if source and is_settled else _UNKNOWN
        self._add(path, digest, started_ns // 1_000_000_000)

    def add_unchanged(self, path: str, recorded: RecordedFile) -> None:
        """Add a file that was not read."""
        self._add(path, recorded.source, recorded.read_at)

    def _add(self, path: str, source: bytes, read_at: int) -> None:
        self._paths.append(path)
        self._sources += source
        self._reads.append(read_at)

    def write(
        self,
        place: Path,
        manifest_sha256: str,
        key: AuthenticationKey,
        searched: str,
    ) -> None:
        """Write the record of a mirror that is complete and verified, at its final path.

        Raises:
            OSError, OpsError: It is not written.
        """
        files = bytearray()
        with contextlib.closing(OpenDirectory(place)) as directory:
            for number, path in enumerate(self._paths):
                source = bytes(self._sources[16 * number : 16 * number + 16])
                stored = digest_of(directory.status(path))
                files += _FILE.pack(source, stored, self._reads[number])
        document = {
            "manifest_sha256": manifest_sha256,
            "searched": searched,
            "files": base64.b64encode(files).decode("ascii"),
        }
        document["mac"] = key.record_mac(_KIND, document)
        atomic.replace(place.parent / NAME, json.dumps(document).encode())


class OpenDirectory:
    """A tree whose files are reached in the order of their directories, each opened once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._parent: str | None = None
        self._descriptor = -1

    def find(self, path: str) -> tuple[int, str]:
        """Return a descriptor of a file's directory, valid until the next call, and its name."""
        parent, _slash, name = path.rpartition("/")
        if parent != self._parent:
            self.close()
            self._descriptor = beneath.open_directory(self._root / parent)
            self._parent = parent
        return self._descriptor, name

    def status(self, path: str) -> os.stat_result:
        """Return the status of a file itself, as `beneath.status` does."""
        directory, name = self.find(path)
        return os.stat(name, dir_fd=directory, follow_symlinks=False)

    def close(self) -> None:
        """Close the directory that is open."""
        if self._parent is not None:
            os.close(self._descriptor)
            self._parent = None


def digest_of(found: os.stat_result) -> bytes:
    """Return 16 bytes that identify the status of a regular file; zeros for anything else."""
    if not stat.S_ISREG(found.st_mode):
        return _UNKNOWN
    facts = _STATUS.pack(
        found.st_dev & _LARGEST,
        found.st_ino & _LARGEST,
        found.st_mode,
        found.st_size,
        found.st_mtime_ns,
        found.st_ctime_ns,
    )
    return hashlib.blake2b(facts, digest_size=16).digest()


def link_unchanged(
    old: OpenDirectory, new: OpenDirectory, path: str, accepts: Callable[[os.stat_result], bool]
) -> bool:
    """Create a second name of a file of the previous mirror, if its status is accepted.

    Returns:
        False if it is not, or the file system cannot: it has no hard links, or the file has as
        many as are possible.
    """
    with contextlib.suppress(OSError):
        source, name = old.find(path)
        if accepts(os.stat(name, dir_fd=source, follow_symlinks=False)):
            target, _name = new.find(path)
            os.link(name, name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
            return True
    return False
