"""Write an archive: the members, hashed while they are written, and the manifest."""

import hashlib
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from sagewai_ops.archive.authentication import NO_MAC, AuthenticationKey
from sagewai_ops.archive.digest import MemberDigest, Written
from sagewai_ops.archive.manifest import (
    HEADER_NAME,
    MANIFEST_NAME,
    PLAIN_FORMAT_VERSION,
    Entry,
    EntryType,
    Header,
    ManifestBuilder,
    encode_header,
)
from sagewai_ops.archive.tar import END, member_header, padding_bytes
from sagewai_ops.archive.zstd_frames import DEFAULT_LEVEL, FrameWriter, Sink
from sagewai_ops.process.threaded_digest import ThreadedDigest
from sagewai_ops.process.threads import ThreadPool
from sagewai_ops.records import dataclass

WHOLE_FILE_BYTES = 4 * 1024 * 1024  # files up to this are read at once, so that a retry is cheap
SEARCHED_BYTES = 256 * 1024  # settings and notes are shorter; searching more would take too long
ATTEMPTS = 3
_ZEROS = bytes(1 << 16)


@dataclass(frozen=True, slots=True)
class AddedFile:
    """A file that was added.

    Attributes:
        entry: Its entry in the manifest.
        is_stable: False if it changed at every attempt to read it; the last one is stored.
    """

    entry: Entry
    is_stable: bool = True


class MemberWriter(Protocol):
    """Write the members of a snapshot in order; see `ArchiveWriter` for each method."""

    files: int
    content_bytes: int
    mac: bytes

    def add_directory_or_link(self, entry: Entry) -> None:
        """Add a member without content."""

    def add_bytes(self, entry: Entry, content: bytes) -> Entry:
        """Add a file with this content."""

    def add_file(
        self, entry: Entry, stream: BinaryIO, *, is_banned: Callable[[bytes], bool] | None = None
    ) -> AddedFile | None:
        """Add a file that may be written to; None if it contains something banned."""

    def add_copy(self, entry: Entry, stream: BinaryIO, path: Path) -> Entry:
        """Add a file that no other process writes to; its path may get a second name."""

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Write the manifest."""

    def close(self) -> None:
        """Release all resources; also after a failure."""


class ArchiveWriter:
    """Write one archive into a sink.

    Args:
        sink: Receives the archive's bytes, in order.
        header: Becomes `snapshot.json`.
        mtime_ns: Of `snapshot.json` and `manifest.json`.
        level: Of zstd.
        on_bytes: Called with the number of bytes of content added since the last call.
        key: Authenticates the archive; None without one.

    Attributes:
        files: Number of files added, with `snapshot.json`.
        content_bytes: Of these.
        mac: The HMAC of the archive once it is finished; empty without a key.
        written: What its read-back is compared with, once it is finished.
    """

    written: Written

    def __init__(
        self,
        sink: Sink,
        header: Header,
        *,
        mtime_ns: int,
        level: int = DEFAULT_LEVEL,
        on_bytes: Callable[[int], None] | None = None,
        key: AuthenticationKey | None = None,
    ) -> None:
        self._frames = FrameWriter(sink, level=level)
        self._members = MemberDigest()
        self._hasher = ThreadPool(1, thread_name_prefix="hash")
        self._header = header
        self._key = key
        self.mac = b""
        self._manifest = ManifestBuilder(header.format_version)
        self.files = 0
        self.content_bytes = 0
        self._mtime_ns = mtime_ns
        self._on_bytes = on_bytes or (lambda _count: None)
        self.add_bytes(_document(HEADER_NAME, mtime_ns), encode_header(header))
        # In a frame of its own, which is all that identifies a snapshot.
        self._frames.cut()

    def add_directory_or_link(self, entry: Entry) -> None:
        """Add a member without content."""
        self._frames.write(self._members.add_header(entry))
        self._manifest.add(entry)

    def add_bytes(self, entry: Entry, content: bytes) -> Entry:
        """Add a file with this content, and return its entry with size and hash."""
        complete = with_content(entry, len(content), hashlib.sha256(content).digest())
        self._frames.write(self._members.add_header(complete))
        self._members.add_content(complete)
        self._frames.write(content)
        self._frames.write(bytes(padding_bytes(len(content))))
        self._count(complete)
        self._on_bytes(len(content))
        return complete

    def add_file(
        self, entry: Entry, stream: BinaryIO, *, is_banned: Callable[[bytes], bool] | None = None
    ) -> AddedFile | None:
        """Add a file that may be written to.

        A file that changes while it is read is read again, at most `ATTEMPTS` times. Its tar header
        precedes the content, so the attempts of a long file remain in the stream as superseded
        members; the last one counts, as for `tar x`.

        Args:
            entry: Its path; mode, times and size are read from the open file.
            stream: Open for reading, unbuffered.
            is_banned: Whether a file of at most `SEARCHED_BYTES` with a content is refused.

        Returns:
            None if it contains something banned; then nothing was written.
        """
        for attempt in range(1, ATTEMPTS + 1):
            before = os.fstat(stream.fileno())
            described_entry = with_status(entry, before)
            if attempt > 1:
                stream.seek(0)
            is_last = attempt == ATTEMPTS
            if before.st_size <= WHOLE_FILE_BYTES:
                content = stream.read(before.st_size)
                if is_banned and len(content) <= SEARCHED_BYTES and is_banned(content):
                    return None
                is_stable = len(content) == before.st_size and is_unchanged(stream, before)
                if is_stable or is_last:
                    return AddedFile(self.add_bytes(described_entry, content), is_stable)
            else:
                complete, is_whole = self._stream(described_entry, stream)
                is_stable = is_whole and is_unchanged(stream, before)
                if is_stable or is_last:
                    self._count(complete)
                    return AddedFile(complete, is_stable)
                self._manifest.add(replace(complete, type=EntryType.SUPERSEDED))
        raise AssertionError("the last attempt returns")

    def add_copy(self, entry: Entry, stream: BinaryIO, path: Path) -> Entry:  # noqa: ARG002
        """Add a file that no other process writes to, with mode and times of `entry`."""
        size_bytes = os.fstat(stream.fileno()).st_size
        complete, _is_whole = self._stream(replace(entry, size_bytes=size_bytes), stream)
        self._count(complete)
        return complete

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Write the manifest and the end of the archive."""
        self._frames.cut()
        manifest_start = self._frames.position
        size_bytes, pieces = self._manifest.finish(facts)
        entry = replace(_document(MANIFEST_NAME, self._mtime_ns), size_bytes=size_bytes)
        self._frames.write(member_header(entry))
        for piece in pieces:
            self._frames.write(piece)
        self._frames.write(bytes(padding_bytes(size_bytes)) + END)

        def authenticate(digest: bytes) -> bytes:
            if self._key:
                self.mac = self._key.mac(self._header, digest, manifest_start)
            return self.mac or NO_MAC

        is_first = self._header.format_version == PLAIN_FORMAT_VERSION
        self._frames.finish(manifest_start, None if is_first else authenticate)
        self.written = Written(self._frames.digest(), self._members.digest())
        self.close()

    def close(self) -> None:
        """Stop the workers; also after a failure."""
        self._hasher.shutdown(wait=True, cancel_futures=True)
        self._frames.close()

    def _count(self, entry: Entry) -> None:
        self._manifest.add(entry)
        self.files += 1
        self.content_bytes += entry.size_bytes

    def _stream(self, entry: Entry, stream: BinaryIO) -> tuple[Entry, bool]:
        """Write header and content; a file that became shorter is padded with zeros."""
        self._frames.write(self._members.add_header(entry))
        digest = ThreadedDigest(self._hasher)
        left = entry.size_bytes
        is_whole = True
        while left:
            buffer = self._frames.buffer()[:left]
            count = os.readv(stream.fileno(), [buffer]) if is_whole else 0
            if count == 0:
                is_whole = False
                count = min(len(buffer), len(_ZEROS))
                buffer[:count] = _ZEROS[:count]
            # While the next piece is read. The frame is not reused before that one is added.
            digest.update(buffer[:count])
            self._frames.advance(count)
            self._on_bytes(count)
            left -= count
        self._frames.write(bytes(padding_bytes(entry.size_bytes)))
        complete = replace(entry, sha256=digest.digest())
        self._members.add_content(complete)
        return complete, is_whole


def _document(name: str, mtime_ns: int) -> Entry:
    return Entry(name, EntryType.FILE, 0o600, mtime_ns)


def with_content(entry: Entry, size_bytes: int, sha256: bytes) -> Entry:
    """Return the entry of a file with the size and hash of its content."""
    # dataclasses.replace takes longer than all the rest of a small file.
    return Entry(
        path=entry.path,
        type=entry.type,
        mode=entry.mode,
        mtime_ns=entry.mtime_ns,
        uid=entry.uid,
        gid=entry.gid,
        size_bytes=size_bytes,
        sha256=sha256,
        is_sparse=entry.is_sparse,
    )


def with_status(entry: Entry, status: os.stat_result) -> Entry:
    """Return the entry of an open file with its mode, times, owner and size."""
    return Entry(
        path=entry.path,
        type=entry.type,
        mode=stat.S_IMODE(status.st_mode),
        mtime_ns=status.st_mtime_ns,
        uid=status.st_uid,
        gid=status.st_gid,
        size_bytes=status.st_size,
        is_sparse=status.st_blocks * 512 < status.st_size,
    )


def is_unchanged(stream: BinaryIO, before: os.stat_result) -> bool:
    """Check whether size and time of an open file are those of `before`."""
    after = os.fstat(stream.fileno())
    return (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
