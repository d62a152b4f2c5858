"""Write the members of a snapshot as plain files, keeping the unchanged ones of the last mirror.

A file that the record of the last mirror has with the same status is linked without a read; see
`mirror_record`. The copy of a database becomes the file of the mirror, so that it is written once.

The directory is private to this run, so no other process creates links in it. Modes follow the
rules of a home, as when a snapshot is restored; the manifest has the modes of the source.
"""

import contextlib
import hashlib
import io
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Any, BinaryIO

from sagewai_ops.archive.authentication import NO_MAC, AuthenticationKey
from sagewai_ops.archive.directory_reader import MAC_NAME, SUM_NAME
from sagewai_ops.archive.manifest import (
    HEADER_NAME,
    MANIFEST_NAME,
    Entry,
    EntryType,
    Header,
    ManifestBuilder,
    encode_header,
)
from sagewai_ops.archive.writer import (
    ATTEMPTS,
    SEARCHED_BYTES,
    AddedFile,
    is_unchanged,
    with_content,
    with_status,
)
from sagewai_ops.backup.mirror_record import (
    NOTHING,
    MirrorRecord,
    OpenDirectory,
    RecordBuilder,
    RecordedFile,
    link_unchanged,
)
from sagewai_ops.fs import atomic, beneath
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.fs.ownership import set_owner
from sagewai_ops.permissions.modes import directory_mode, file_mode
from sagewai_ops.records import dataclass
from sagewai_ops.snapshots.member_paths import EXTERNAL

_BLOCK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class PreviousMirror:
    """The mirror that is replaced.

    Attributes:
        root: Its directory.
        files: Those of its manifest, in order; empty without a manifest.
        record: Of these files.
    """

    root: Path
    files: Sequence[Entry] = ()
    record: MirrorRecord = field(default_factory=MirrorRecord)


class MirrorWriter:
    """Write a mirror; a `MemberWriter`.

    Args:
        root: An empty private directory.
        mtime_ns: Of `snapshot.json` and `manifest.json`.
        previous: The mirror that is replaced.
        searched: Identifies the keys that are searched for in files of `SEARCHED_BYTES`.
        on_bytes: Called with the number of bytes of content added since the last call.
        key: Authenticates the mirror; None without one.

    Attributes:
        files: Number of files added, with `snapshot.json`.
        content_bytes: Of these.
        stored_bytes: Of all files of the mirror.
        kept: Members that are files of the previous mirror, each verified.
        adopted: Members that are copies of databases, hashed after they were written; and their
            times.
        reused_files: Number of members that were not read, being unchanged.
        last_read_at: When the oldest of these was read, in seconds since 1970; None without one.
        record: Of the files of the mirror.
        sha256: Of the manifest, once that is written.
        mac: The HMAC of the mirror then; empty without a key.
    """

    def __init__(
        self,
        root: Path,
        header: Header,
        *,
        mtime_ns: int,
        previous: PreviousMirror,
        searched: str,
        on_bytes: Callable[[int], None],
        key: AuthenticationKey | None = None,
    ) -> None:
        self._root = root
        self._header = header
        self._key = key
        self.mac = b""
        self._mtime_ns = mtime_ns
        self._now_ns = time.time_ns()  # for files that changed without a new time
        self._previous = previous
        self._numbers = {entry.path: number for number, entry in enumerate(previous.files)}
        self._is_searched = previous.record.searched == searched
        self._directories_of_files = (OpenDirectory(previous.root), OpenDirectory(root))
        self._on_bytes = on_bytes
        self._manifest = ManifestBuilder(header.format_version)
        self._directories: list[Entry] = []
        self.files = self.content_bytes = self.stored_bytes = 0
        self.kept: set[str] = set()
        self.adopted: dict[str, int] = {}
        self.reused_files = 0
        self.last_read_at: int | None = None
        self.record = RecordBuilder()
        self.sha256 = ""
        self.add_bytes(Entry(HEADER_NAME, EntryType.FILE, 0o600, mtime_ns), encode_header(header))

    @property
    def kept_files(self) -> int:
        """Number of files of the previous mirror."""
        return len(self.kept)

    def add_directory_or_link(self, entry: Entry) -> None:
        """Add a member without content."""
        path = self._root / entry.path
        with translate_os_errors(path):
            if entry.type is EntryType.LINK:
                beneath.make_link(path, entry.target)
                beneath.set_times(path, entry.mtime_ns)
                set_owner(path, entry.uid, entry.gid)
            else:
                beneath.make_directory(path, atomic.PRIVATE_DIRECTORY)
                self._directories.append(entry)
        self._manifest.add(entry)

    def add_unchanged(self, path: str, found: os.stat_result) -> Entry | None:
        """Add a file of the home that is unchanged since an earlier run, without a read.

        Args:
            found: Its status in the home.

        Returns:
            None if it must be read; then nothing was added.
        """
        entry, recorded = self._before(path)
        if entry is None or not recorded.has_source(found):
            return None
        if not self._is_searched and found.st_size <= SEARCHED_BYTES:
            return None  # it can contain a key that was unknown then
        if not link_unchanged(*self._directories_of_files, path, recorded.has_stored):
            return None
        self.kept.add(path)
        self.reused_files += 1
        self.last_read_at = min(recorded.read_at, self.last_read_at or recorded.read_at)
        self.record.add_unchanged(path, recorded)
        self._count(entry)
        self._on_bytes(entry.size_bytes)
        return entry

    def add_bytes(self, entry: Entry, content: bytes) -> Entry:
        """Add a file with this content."""
        self.record.add(entry.path, None, time.time_ns())
        complete = with_content(entry, len(content), hashlib.sha256(content).digest())
        if not self._keep(complete):
            with self._create(entry.path) as stream:
                stream.write(content)
            self._set_metadata(complete)
        self._count(complete)
        self._on_bytes(len(content))
        return complete

    def add_file(
        self, entry: Entry, stream: BinaryIO, *, is_banned: Callable[[bytes], bool] | None = None
    ) -> AddedFile | None:
        """Add a file that may be written to; one that changes is read again."""
        for attempt in range(1, ATTEMPTS + 1):
            started_ns = time.time_ns()
            before = os.fstat(stream.fileno())
            stream.seek(0)
            source = stream
            if before.st_size <= SEARCHED_BYTES:
                content = stream.read(before.st_size)
                if is_banned and is_banned(content):
                    return None
                source = io.BytesIO(content)
            complete = self._copy(with_status(entry, before), source)
            is_stable = complete.size_bytes == before.st_size and is_unchanged(stream, before)
            if is_stable or attempt == ATTEMPTS:
                break
        if self._keep(complete):
            beneath.unlink(self._root / _partial(entry.path))
        else:
            beneath.rename(self._root / _partial(entry.path), self._root / entry.path)
            self._set_metadata(complete)
        self.record.add(entry.path, before if is_stable else None, started_ns)
        self._count(complete)
        return AddedFile(complete, is_stable)

    def add_copy(self, entry: Entry, stream: BinaryIO, path: Path) -> Entry:
        """Add the copy of a database, which is private to this run.

        Its time is that of the run unless its content is unchanged: if Sagewai's last writes are
        in the `-wal`, the time of the file itself is old.
        """
        started_ns = time.time_ns()
        digest, size_bytes = hashlib.sha256(), 0
        while piece := stream.read(_BLOCK_BYTES):
            digest.update(piece)
            size_bytes += len(piece)
            self._on_bytes(len(piece))
        complete = with_content(entry, size_bytes, digest.digest())
        if not self._keep(complete, any_time=True) and not self._adopt(complete, path):
            stream.seek(0)
            with self._create(entry.path) as target:
                shutil.copyfileobj(stream, target, _BLOCK_BYTES)
            self._set_metadata(replace(complete, mtime_ns=self._now_ns))
        self.record.add(entry.path, None, started_ns)
        self._count(complete)
        return complete

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Write the manifest and its hash, and set the metadata of the directories."""
        digest = hashlib.sha256()
        size_bytes, pieces = self._manifest.finish(facts)
        with self._create(MANIFEST_NAME) as stream:
            for piece in pieces:
                digest.update(piece)
                stream.write(piece)
        self.sha256 = digest.hexdigest()
        with self._create(SUM_NAME) as stream:
            stream.write(f"{self.sha256}  {MANIFEST_NAME}\n".encode())
        if self._key:
            self.mac = self._key.mac(self._header, digest.digest(), 0)
        with self._create(MAC_NAME) as stream:
            stream.write((self.mac or NO_MAC).hex().encode() + b"\n")
        self.stored_bytes += size_bytes
        for name in (MANIFEST_NAME, SUM_NAME, MAC_NAME):
            beneath.set_times(self._root / name, self._mtime_ns)
        for entry in reversed(self._directories):
            path = self._root / entry.path
            with translate_os_errors(path):
                set_owner(path, entry.uid, entry.gid)
                beneath.set_mode(path, _directory_mode(entry))
                beneath.set_times(path, entry.mtime_ns)

    def close(self) -> None:
        """Close the directories that are open between calls."""
        for directory in self._directories_of_files:
            directory.close()

    def _before(self, path: str) -> tuple[Entry | None, RecordedFile]:
        """Return a file of the previous mirror and what is recorded about it."""
        number = self._numbers.get(path)
        if number is None:
            return None, NOTHING
        return self._previous.files[number], self._previous.record.file(number)

    def _adopt(self, entry: Entry, copy: Path) -> bool:
        """Make the copy of a database the file of the mirror, by a second name.

        It was hashed after it was written, so it needs no further read; see `mirror._verify`.
        """
        with contextlib.suppress(OSError):
            set_owner(copy, entry.uid, entry.gid)
            beneath.set_mode(copy, _file_mode(entry))
            beneath.set_times(copy, self._now_ns)
            beneath.make_hard_link(self._root / entry.path, copy)
            self.adopted[entry.path] = self._now_ns
            return True
        return False

    def _copy(self, entry: Entry, stream: BinaryIO) -> Entry:
        """Copy as many bytes as the file had when it was opened."""
        digest, left = hashlib.sha256(), entry.size_bytes
        with contextlib.suppress(FileNotFoundError):
            beneath.unlink(self._root / _partial(entry.path))  # of an earlier attempt
        with self._create(_partial(entry.path)) as target:
            while piece := stream.read(min(left, _BLOCK_BYTES)):
                digest.update(piece)
                left -= len(piece)
                target.write(piece)
                self._on_bytes(len(piece))
        return with_content(entry, entry.size_bytes - left, digest.digest())

    @contextlib.contextmanager
    def _create(self, path: str) -> Iterator[BinaryIO]:
        full = self._root / path
        with (
            translate_os_errors(full),
            open(beneath.create_file(full, atomic.PRIVATE_FILE), "wb") as stream,
        ):
            yield stream

    def _keep(self, entry: Entry, *, any_time: bool = False) -> bool:
        """Link the file of the previous mirror if it equals a member and is undamaged."""
        before, recorded = self._before(entry.path)
        if before is None or before.sha256 != entry.sha256:
            return False
        old = self._previous.root / entry.path
        with contextlib.suppress(OSError):
            status = beneath.status(old)
            is_same = (
                stat.S_ISREG(status.st_mode)
                and stat.S_IMODE(status.st_mode) == _file_mode(entry)
                and (any_time or status.st_mtime_ns == entry.mtime_ns)
                and (os.geteuid() != 0 or (status.st_uid, status.st_gid) == (entry.uid, entry.gid))
                and (recorded.has_stored(status) or _hash_of(old) == entry.sha256)
            )
            if is_same:
                beneath.make_hard_link(self._root / entry.path, old)
                self.kept.add(entry.path)
                return True
        return False

    def _set_metadata(self, entry: Entry) -> None:
        """Set owner, mode and time of a new file; a changed file never keeps its time."""
        path = self._root / entry.path
        moment = entry.mtime_ns
        before, _recorded = self._before(entry.path)
        if before is not None and before.sha256 != entry.sha256:
            with contextlib.suppress(OSError):
                if beneath.status(self._previous.root / entry.path).st_mtime_ns == moment:
                    moment = self._now_ns
        with translate_os_errors(path):
            set_owner(path, entry.uid, entry.gid)
            beneath.set_mode(path, _file_mode(entry))
            beneath.set_times(path, moment)

    def _count(self, entry: Entry) -> None:
        self._manifest.add(entry)
        self.files += 1
        self.content_bytes += entry.size_bytes
        self.stored_bytes += entry.size_bytes


def _partial(path: str) -> str:
    """Return the path of the file that a member is read into before it is compared."""
    directory, slash, _name = path.rpartition("/")
    return f"{directory}{slash}.sagewai-ops-partial"


def _file_mode(entry: Entry) -> int:
    is_external = entry.path.startswith(EXTERNAL + "/")
    return atomic.PRIVATE_FILE if is_external else file_mode(entry.path, entry.mode)


def _directory_mode(entry: Entry) -> int:
    is_external = entry.path == EXTERNAL or entry.path.startswith(EXTERNAL + "/")
    mode = 0o700 if is_external else directory_mode(entry.path, entry.mode)
    return mode | atomic.PRIVATE_DIRECTORY  # the next run reads it


def _hash_of(path: Path) -> bytes:
    digest = hashlib.sha256()
    with open(beneath.open_file(path), "rb", buffering=0) as stream:
        while piece := stream.read(_BLOCK_BYTES):
            digest.update(piece)
    return digest.digest()
