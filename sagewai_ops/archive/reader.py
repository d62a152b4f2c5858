"""Read an archive that may be damaged or hostile: the manifest first, then what it lists.

Every tar header is rebuilt from the manifest and compared, and every content is hashed; a full read
also checks the digest of the archive. A difference raises DamagedError, and the caller discards
what it has extracted.
"""

import bisect
import contextlib
import hashlib
import hmac
import io
import itertools
import os
from array import array
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from sagewai_ops.archive.authentication import NO_MAC, AuthenticationKey
from sagewai_ops.archive.digest import MemberDigest, Written
from sagewai_ops.archive.input import ArchiveInput
from sagewai_ops.archive.manifest import (
    HEADER_NAME,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    PLAIN_FORMAT_VERSION,
    Entry,
    EntryType,
    Header,
    Manifest,
    decode_header,
    decode_manifest,
)
from sagewai_ops.archive.tar import BLOCK_BYTES, END, member_bytes, member_header, padding_bytes
from sagewai_ops.archive.zstd_frames import Frame, FrameTable, decompress_frame, decompress_frames
from sagewai_ops.errors import DamagedError
from sagewai_ops.process.threaded_digest import ThreadedDigest
from sagewai_ops.process.threads import ThreadPool

MAX_HEADER_BYTES = 1024 * 1024
# A manifest has a hash for each file, so a long one never compresses like this; a bomb does. One of
# deeply nested directories has no hashes and long paths that repeat, but is below the second
# number.
_MAX_MANIFEST_RATIO = 100
_ANY_MANIFEST_BYTES = 16 * 1024 * 1024
_WINDOW_BYTES = 8 * 1024 * 1024  # of zstd's level 19; a frame may demand much more memory
_MAX_TAIL_BYTES = BLOCK_BYTES + len(END)


class ArchiveReader:
    """An open archive; use `open_archive`.

    Attributes:
        header: `snapshot.json`.
        manifest: `manifest.json`, with valid fields, safe paths and no duplicates.
        sha256: What the HMAC covers: the digest of the frames, or of a mirror's manifest. A full
            read compares it with the content.
        mac: The HMAC; empty in version 1, or if the writer had no key.
    """

    sha256: bytes
    mac: bytes

    def __init__(self, source: ArchiveInput) -> None:
        self._source = source
        try:
            self._table = source.read_frame_table()
        except DamagedError:
            _refuse_newer(source.read_from_start())
            raise
        self.header = read_header(source, self._table)
        is_first = self.header.format_version == PLAIN_FORMAT_VERSION
        if is_first != (not self._table.mac):
            raise DamagedError(f"archive: {HEADER_NAME} and trailer differ in format")
        self.sha256 = self._table.sha256
        self.mac = b"" if self._table.mac == NO_MAC else self._table.mac
        self.manifest = self._read_manifest()

    @property
    def content_bytes(self) -> int:
        """Number of bytes of a full read, for progress."""
        return self._table.content_bytes

    def is_authentic(self, key: AuthenticationKey) -> bool:
        """Check whether the snapshot has the HMAC of a key, if its content has its digest."""
        expected = key.mac(self.header, self.sha256, self._manifest_start)
        return hmac.compare_digest(self.mac, expected)

    @property
    def archive_bytes(self) -> int:
        """Number of bytes of the archive before encryption, for progress."""
        return self._table.archive_bytes

    @property
    def _manifest_start(self) -> int:
        return self._table.manifest_start

    def members(
        self,
        wanted: Callable[[Entry], bool] | None = None,
        *,
        on_bytes: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[Entry, Iterator[memoryview]]]:
        """Yield the members in order, each with its content in pieces.

        A piece is valid until the next one is requested. Content that the caller skips is hashed
        too. The generator ends without an error only if all that it read is verified.

        Args:
            wanted: Selects members; only the frames that contain them are read.
            on_bytes: Called with the number of bytes of the tar stream read since the last call.

        Raises:
            DamagedError: A member differs from the manifest.
        """
        starts = self._find_starts(wanted)  # once more for the frames: a list may be long
        frames: Sequence[Frame] = self._table.frames
        if wanted is not None:
            frames = self._find_frames(self._find_starts(wanted))
        # One for the archive, one for the members.
        with ThreadPool(2, thread_name_prefix="hash") as hasher, contextlib.ExitStack() as stack:
            digest = ThreadedDigest(hasher) if wanted is None else None
            compressed = self._source.read_spans(_spans(frames), digest)
            stream = _TarStream(frames, compressed, on_bytes or (lambda _count: None))
            stack.callback(stream.close)
            for entry, start in starts:
                stream.skip_to(start)
                _expect(stream, member_header(entry), entry.path)
                content = _read_content(stream, entry, hasher)
                yield entry, content
                for _piece in content:
                    pass
                _expect(stream, bytes(padding_bytes(entry.size_bytes)), entry.path)
            if digest:
                stream.drain()
                if digest.digest() != self._table.sha256:
                    raise DamagedError("archive: digest mismatch")

    def verify(self, *, on_bytes: Callable[[int], None] | None = None) -> None:
        """Read all members and compare them with the manifest.

        Raises:
            DamagedError: One differs.
        """
        for _entry, _content in self.members(on_bytes=on_bytes):
            pass

    def verify_written(
        self, written: Written, *, on_bytes: Callable[[int], None] | None = None
    ) -> None:
        """Read the whole archive and compare it with what its writer wrote.

        The writer has decompressed each frame and compared it with its content, so archives with
        the same bytes and the same list have the same members: these are not hashed again.

        Args:
            on_bytes: Called with the number of bytes of the archive read since the last call.

        Raises:
            DamagedError: It differs.
        """
        members = MemberDigest()
        for entry in self.manifest.entries:
            members.add_header(entry)
            members.add_content(entry)
        if members.digest() != written.members:
            raise DamagedError(f"archive: {MANIFEST_NAME} differs from the members written")
        with ThreadPool(1, thread_name_prefix="hash") as hasher:
            digest = ThreadedDigest(hasher)
            for piece in self._source.read_from_start():
                digest.update(piece)
                if on_bytes:
                    on_bytes(len(piece))
            if digest.digest() != written.archive:
                raise DamagedError("archive: differs from what was written")

    def _read_manifest(self) -> Manifest:
        last = [frame for frame in self._table.frames if frame.start >= self._table.manifest_start]
        size_bytes = sum(frame.content_bytes for frame in last)
        compressed_bytes = sum(frame.size_bytes for frame in last)
        likely = max(_MAX_MANIFEST_RATIO * compressed_bytes, _ANY_MANIFEST_BYTES)
        if size_bytes > min(MAX_MANIFEST_BYTES, likely):
            raise DamagedError(f"archive: {MANIFEST_NAME} too long")
        contents = self._decompress(last)
        first = next(contents)
        entry = _parse_member_header(first, MANIFEST_NAME)
        pieces = itertools.chain((first[len(member_header(entry)) :],), contents)
        text = _ManifestText(pieces, entry.size_bytes)
        checks = EntryChecks("archive")
        manifest = decode_manifest(text, checks.add)
        if text.tail != bytes(padding_bytes(entry.size_bytes)) + END:
            raise DamagedError(f"archive: unexpected bytes after {MANIFEST_NAME}")
        checks.finish(manifest, self.header)
        if checks.mtime_ns != entry.mtime_ns:
            raise DamagedError(f"archive: {MANIFEST_NAME} and {HEADER_NAME} differ in time")
        if checks.tar_bytes != self._table.manifest_start:
            raise DamagedError(f"archive: {MANIFEST_NAME} does not match the length of the archive")
        return manifest

    def _find_starts(self, wanted: Callable[[Entry], bool] | None) -> Iterable[tuple[Entry, int]]:
        """Yield each wanted entry with the offset of its header in the tar stream."""
        start = 0
        for entry in self.manifest.entries:
            if wanted is None or wanted(entry):
                yield entry, start
            start += member_bytes(entry)

    def _find_frames(self, starts: Iterable[tuple[Entry, int]]) -> list[Frame]:
        """Return the frames that contain these members."""
        found = []
        position = 0
        frames = self._table.frames
        for entry, start in starts:
            end = start + member_bytes(entry)
            while frames[position].start + frames[position].content_bytes <= start:
                position += 1
            while position < len(frames) and frames[position].start < end:
                found.append(frames[position])
                position += 1
            position -= 1  # the next member may begin in the same frame
        return list(dict.fromkeys(found))

    def _decompress(self, frames: Sequence[Frame]) -> Iterator[bytes]:
        return decompress_frames(frames, self._source.read_spans(_spans(frames), None))


@contextlib.contextmanager
def name_damaged(path: Path) -> Iterator[None]:
    """Add the path of an archive to the errors about damage in the block."""
    try:
        yield
    except DamagedError as error:
        raise type(error)(
            f"{path}: {error.message}",
            hint=error.hint or "sagewai-ops snapshots list",
        ) from error


def read_header(source: ArchiveInput, table: FrameTable) -> Header:
    """Read `snapshot.json`, which is alone in the first frame.

    Raises:
        SchemaAheadError, DamagedError: As `decode_header`.
    """
    first = table.frames[0]
    if first.content_bytes > MAX_HEADER_BYTES:
        raise DamagedError(f"archive: {HEADER_NAME} too long")
    (data,) = source.read_spans(_spans([first]), None)
    content = decompress_frame(first, data)
    entry = _parse_member_header(content, HEADER_NAME)
    return decode_header(content[len(member_header(entry)) :][: entry.size_bytes])


class EntryChecks:
    """Check that each path is unique and in a directory of the manifest, in little memory.

    So a link is always a leaf: nothing is ever written through one. A path is represented by eight
    bytes of its hash, under a key that is not known.

    Args:
        what: `archive` or `mirror`, for messages.

    Attributes:
        tar_bytes: Length of all members.
        mtime_ns: Of the first member.
    """

    def __init__(self, what: str) -> None:
        self.tar_bytes = 0
        self.mtime_ns = 0
        self._what = what
        self._key = os.urandom(16)
        self._paths = array("Q")
        self._directories = array("Q")
        self._parents = array("Q")
        self._last_parent = ""

    def add(self, entry: Entry) -> None:
        """Check the next entry.

        Raises:
            DamagedError: It cannot be at this place.
        """
        if not self.tar_bytes:
            if entry.path != HEADER_NAME:
                raise DamagedError(
                    f"{self._what}: {MANIFEST_NAME} does not begin with {HEADER_NAME}"
                )
            self.mtime_ns = entry.mtime_ns
        self.tar_bytes += member_bytes(entry)
        if entry.type is EntryType.SUPERSEDED:
            return
        if entry.path == MANIFEST_NAME:
            raise self._duplicate(entry.path)
        number = self._number(entry.path)
        self._paths.append(number)
        if entry.type is EntryType.DIRECTORY:
            self._directories.append(number)
        parent = entry.path.rpartition("/")[0]
        if parent != self._last_parent:
            self._last_parent = parent
            if parent:
                self._parents.append(self._number(parent))

    def finish(self, manifest: Manifest, header: Header) -> None:
        """Check the entries together.

        Raises:
            DamagedError: The entries or the formats contradict each other.
        """
        if manifest.format_version != header.format_version:
            raise DamagedError(f"{self._what}: {MANIFEST_NAME} and {HEADER_NAME} differ in format")
        if not manifest.entries:
            raise DamagedError(f"{self._what}: {MANIFEST_NAME} does not begin with {HEADER_NAME}")
        numbers = sorted(self._paths)
        for number, following in itertools.pairwise(numbers):
            if number == following:
                raise self._duplicate(self._find(manifest, number, parent=False))
        del numbers
        directories = array("Q", sorted(self._directories))
        for number in self._parents:
            place = bisect.bisect_left(directories, number)
            if place == len(directories) or directories[place] != number:
                path = self._find(manifest, number, parent=True)
                raise DamagedError(
                    f"{self._what}: member {path[:200]}: not in a directory of the manifest"
                )

    def _number(self, path: str) -> int:
        text = path.encode("utf-8", "surrogatepass")
        return int.from_bytes(hashlib.blake2b(text, digest_size=8, key=self._key).digest(), "big")

    def _find(self, manifest: Manifest, number: int, *, parent: bool) -> str:
        paths = (entry.path for entry in manifest.entries)
        names = ((path, path.rpartition("/")[0] if parent else path) for path in paths)
        return next(path for path, name in names if self._number(name) == number)

    def _duplicate(self, path: str) -> DamagedError:
        return DamagedError(f"{self._what}: member {path[:200]}: duplicate")


class _ManifestText:
    """The pieces of a text up to its length.

    Attributes:
        tail: The bytes after the text, complete after an iteration.
    """

    def __init__(self, pieces: Iterator[bytes], size_bytes: int) -> None:
        self._pieces = pieces
        self._left = size_bytes
        self.tail = bytearray()

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            if self._left:
                yield piece[: self._left]
            self.tail += piece[self._left :]
            if len(self.tail) > _MAX_TAIL_BYTES:
                raise DamagedError(f"archive: unexpected bytes after {MANIFEST_NAME}")
            self._left = max(self._left - len(piece), 0)


class _TarStream:
    """The tar stream of some frames, read from the start."""

    def __init__(
        self,
        frames: Sequence[Frame],
        compressed: Iterator[bytes],
        on_bytes: Callable[[int], None],
    ) -> None:
        self._frames = iter(frames)
        self._contents = decompress_frames(frames, compressed)
        self._on_bytes = on_bytes
        self._view = memoryview(b"")
        self._position = 0

    def skip_to(self, position: int) -> None:
        """Skip to a later position of the tar stream."""
        while self._position + len(self._view) <= position:
            self._next()
        self._view = self._view[position - self._position :]
        self._position = position

    def read(self, count: int) -> Iterator[memoryview]:
        """Yield the next `count` bytes in pieces."""
        while count:
            if not self._view:
                self._next()
            piece = self._view[:count]
            self._view = self._view[len(piece) :]
            self._position += len(piece)
            count -= len(piece)
            yield piece

    def drain(self) -> None:
        """Read to the end."""
        for content in self._contents:
            self._on_bytes(len(content))

    def close(self) -> None:
        """Stop decompressing."""
        self._contents.close()  # type: ignore[attr-defined]

    def _next(self) -> None:
        content = next(self._contents, None)
        if content is None:
            raise DamagedError("archive: truncated")
        self._position = next(self._frames).start
        self._view = memoryview(content)
        self._on_bytes(len(content))


def _spans(frames: Sequence[Frame]) -> list[tuple[int, int]]:
    return [(frame.offset, frame.size_bytes) for frame in frames]


def _refuse_newer(pieces: Generator[bytes, None, None]) -> None:
    """Refuse an archive of a newer format, whose end this program cannot parse.

    Every version begins with a zstd frame of `snapshot.json` alone (docs/format.md, section 9), so
    a newer archive is not reported as damaged.

    Args:
        pieces: The bytes of the archive from its start.

    Raises:
        SchemaAheadError: Its format is newer than this program.
    """
    import zstandard

    with contextlib.suppress(zstandard.ZstdError, DamagedError, ValueError):
        start = b""
        with contextlib.closing(pieces):
            for piece in pieces:
                start += piece
                if len(start) >= MAX_HEADER_BYTES:
                    break
        # Only the first frame, which has a checksum, and no more of a bomb than this.
        decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES)
        with decompressor.stream_reader(io.BytesIO(start)) as frame:
            content = frame.read(MAX_HEADER_BYTES)
        if content[:100].rstrip(b"\0") == HEADER_NAME.encode():
            size_bytes = int(content[124:135], 8)
            decode_header(content[BLOCK_BYTES:][:size_bytes])


def _expect(stream: _TarStream, expected: bytes, path: str) -> None:
    if b"".join(stream.read(len(expected))) != expected:
        raise DamagedError(f"archive: member {path[:200]}: tar header differs from the manifest")


def _read_content(stream: _TarStream, entry: Entry, hasher: ThreadPool) -> Iterator[memoryview]:
    if not entry.sha256:
        return
    digest = ThreadedDigest(hasher)
    for piece in stream.read(entry.size_bytes):
        digest.update(piece)  # while the caller writes it and the next one is decompressed
        yield piece
    if digest.digest() != entry.sha256:
        raise DamagedError(f"archive: member {entry.path[:200]}: checksum mismatch")


def _parse_member_header(content: bytes, name: str) -> Entry:
    """Parse the tar header of `snapshot.json` or `manifest.json`."""
    try:
        size_bytes, seconds = int(content[124:135], 8), int(content[136:147], 8)
    except ValueError:
        size_bytes = seconds = -1
    plain = Entry(name, EntryType.FILE, 0o600, seconds * 1_000_000_000)
    entry = replace(plain, size_bytes=max(size_bytes, 0))
    if size_bytes < 0 or seconds < 0 or content[:BLOCK_BYTES] != member_header(entry):
        raise DamagedError(f"archive: {name}: invalid tar header")
    return entry
