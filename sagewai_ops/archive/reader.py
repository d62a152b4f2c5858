"""Read an archive that may be damaged or hostile: the manifest first, then only what it names.

Every header is spelled anew from the manifest and compared; every content is hashed; reading all
of it also checks the digest of the whole. What does not fit raises DamagedError, and whoever
extracts throws away what it has.
"""

import contextlib
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from sagewai_ops.archive import zstd_frames as containers
from sagewai_ops.archive.front import refuse_newer
from sagewai_ops.archive.input import Source
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
from sagewai_ops.archive.tar import BLOCK_BYTES, END, member_bytes, member_header, padding_bytes
from sagewai_ops.errors import DamagedError

MOST_HEADER_BYTES = 1024 * 1024
MOST_MANIFEST_BYTES = 512 * 1024 * 1024
# A manifest holds a hash for each file, so a long one never shrinks like this; a bomb does. One of
# deeply nested directories has no hashes and long paths that repeat, but stays below the second
# number.
_MOST_MANIFEST_RATIO = 100
_ANY_MANIFEST_BYTES = 16 * 1024 * 1024
_LARGE_BYTES = 256 * 1024  # hashing fewer takes less time than handing them to a thread
_MOST_AFTER_BYTES = BLOCK_BYTES + len(END)


class ArchiveReader:
    """One archive, open for reading; use `open_archive`.

    Attributes:
        header: `snapshot.json`.
        manifest: `manifest.json`, checked for shape, paths and duplicates.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        try:
            self._layout = source.layout()
        except DamagedError:
            refuse_newer(source.front())
            raise
        self.header = self._read_header()
        self.manifest = self._read_manifest()

    @property
    def content_bytes(self) -> int:
        """What a full read goes through, for progress."""
        return self._layout.content_bytes

    def members(
        self,
        wanted: Callable[[Entry], bool] | None = None,
        *,
        on_bytes: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[Entry, Iterator[memoryview]]]:
        """Go through the members in order, each with its content in pieces.

        A piece is valid until the next one is asked for. Content that is not taken is hashed all
        the same. The generator ends well only if everything that was read is proved; with `wanted`
        given, only the frames that hold such members are read.

        Args:
            on_bytes: Called with the number of bytes of the tar stream read since the last call.

        Raises:
            DamagedError: Something is not what the manifest says.
        """
        placed = self._placed(wanted)
        digest = hashlib.sha256() if wanted is None else None
        needed: Sequence[containers.Frame] = self._layout.frames
        if digest is None:
            placed = list(placed)
            needed = self._needed(placed)
        stream = _Stream(
            needed, self._source.pieces(_spans(needed), digest), on_bytes or (lambda _count: None)
        )
        with (
            contextlib.closing(stream),
            ThreadPoolExecutor(1, thread_name_prefix="hash") as hasher,
        ):
            for entry, start in placed:
                stream.go_to(start)
                _expect(stream, member_header(entry), entry.path)
                content = _hashed(stream, entry, hasher)
                yield entry, content
                for _piece in content:
                    pass
                _expect(stream, bytes(padding_bytes(entry.size_bytes)), entry.path)
            if digest:
                stream.drain()
                if digest.digest() != self._layout.sha256:
                    raise DamagedError("archive: does not match its digest")

    def verify(self, *, on_bytes: Callable[[int], None] | None = None) -> None:
        """Read everything and compare it with the manifest.

        Raises:
            DamagedError: Something differs.
        """
        for _entry, _content in self.members(on_bytes=on_bytes):
            pass

    def close(self) -> None:
        """Let go of the file."""
        self._source.close()

    def _read_header(self) -> Header:
        first = self._layout.frames[0]
        if first.content_bytes > MOST_HEADER_BYTES:
            raise DamagedError("archive: its first frame is too long to be a header")
        content = b"".join(self._decompress([first]))
        entry = _document_entry(content, HEADER_NAME)
        return decode_header(content[len(member_header(entry)) :][: entry.size_bytes])

    def _read_manifest(self) -> Manifest:
        last = [
            frame for frame in self._layout.frames if frame.start >= self._layout.manifest_start
        ]
        size_bytes = sum(frame.content_bytes for frame in last)
        packed_bytes = sum(frame.size_bytes for frame in last)
        likely = max(_MOST_MANIFEST_RATIO * packed_bytes, _ANY_MANIFEST_BYTES)
        if size_bytes > min(MOST_MANIFEST_BYTES, likely):
            raise DamagedError("archive: its manifest is too long to be one")
        contents = self._decompress(last)
        first = next(contents)
        entry = _document_entry(first, MANIFEST_NAME)
        text = _Text(
            itertools.chain((first[len(member_header(entry)) :],), contents), entry.size_bytes
        )
        manifest = decode_manifest(text)
        if text.after() != bytes(padding_bytes(entry.size_bytes)) + END:
            raise DamagedError("archive: something follows its manifest")
        self._check(manifest, entry)
        return manifest

    def _check(self, manifest: Manifest, own: Entry) -> None:
        entries = manifest.entries
        if manifest.format_version != self.header.format_version:
            raise DamagedError("archive: its manifest and its header differ in format")
        if not entries or entries[0].path != HEADER_NAME or entries[0].mtime_ns != own.mtime_ns:
            raise DamagedError("archive: its manifest does not begin with its header")
        if sum(map(member_bytes, entries)) != self._layout.manifest_start:
            raise DamagedError("archive: its manifest does not fit its length")
        kinds: dict[str, EntryType] = {}
        for entry in entries:
            if entry.type is EntryType.SUPERSEDED:
                continue
            if entry.path in kinds or entry.path == MANIFEST_NAME:
                raise DamagedError(f"archive: member {entry.path[:200]} stands twice")
            kinds[entry.path] = entry.type
        for path in kinds:
            # A link may only be a leaf: nothing is ever written through one.
            parent = path.rpartition("/")[0]
            if parent and kinds.get(parent) is not EntryType.DIRECTORY:
                raise DamagedError(
                    f"archive: member {path[:200]} is not in a directory of the manifest"
                )

    def _placed(self, wanted: Callable[[Entry], bool] | None) -> Iterable[tuple[Entry, int]]:
        start = 0
        for entry in self.manifest.entries:
            if wanted is None or wanted(entry):
                yield entry, start
            start += member_bytes(entry)

    def _needed(self, placed: Iterable[tuple[Entry, int]]) -> list[containers.Frame]:
        needed = []
        position = 0
        frames = self._layout.frames
        for entry, start in placed:
            end = start + member_bytes(entry)
            while frames[position].start + frames[position].content_bytes <= start:
                position += 1
            while position < len(frames) and frames[position].start < end:
                needed.append(frames[position])
                position += 1
            position -= 1  # the next member may begin in the same frame
        return list(dict.fromkeys(needed))

    def _decompress(self, frames: Sequence[containers.Frame]) -> Iterator[bytes]:
        return containers.decompress_frames(frames, self._source.pieces(_spans(frames), None))


class _Text:
    """The pieces of a content up to its length; what comes after them is kept."""

    def __init__(self, pieces: Iterator[bytes], size_bytes: int) -> None:
        self._pieces = pieces
        self._left = size_bytes
        self._after = bytearray()

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            if self._left:
                yield piece[: self._left]
            self._after += piece[self._left :]
            if len(self._after) > _MOST_AFTER_BYTES:
                raise DamagedError("archive: something follows its manifest")
            self._left = max(self._left - len(piece), 0)

    def after(self) -> bytes:
        """Give what follows the content, once it was gone through."""
        return bytes(self._after)


class _Stream:
    """The tar stream of some frames, taken from the front."""

    def __init__(
        self,
        frames: Sequence[containers.Frame],
        compressed: Iterator[bytes],
        on_bytes: Callable[[int], None],
    ) -> None:
        self._frames = iter(frames)
        self._contents = containers.decompress_frames(frames, compressed)
        self._on_bytes = on_bytes
        self._view = memoryview(b"")
        self._position = 0

    def go_to(self, position: int) -> None:
        """Skip to a position of the tar stream that lies ahead."""
        while self._position + len(self._view) <= position:
            self._next()
        self._view = self._view[position - self._position :]
        self._position = position

    def take(self, count: int) -> Iterator[memoryview]:
        """Give the next `count` bytes in pieces."""
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
            raise DamagedError("archive: ends before its manifest does")
        self._position = next(self._frames).start
        self._view = memoryview(content)
        self._on_bytes(len(content))


def _spans(frames: Sequence[containers.Frame]) -> list[tuple[int, int]]:
    return [(frame.offset, frame.size_bytes) for frame in frames]


def _expect(stream: _Stream, expected: bytes, path: str) -> None:
    if b"".join(stream.take(len(expected))) != expected:
        raise DamagedError(f"archive: member {path[:200]}: its tar header is not what it must be")


def _hashed(stream: _Stream, entry: Entry, hasher: ThreadPoolExecutor) -> Iterator[memoryview]:
    if not entry.sha256:
        return
    digest = hashlib.sha256()
    hashing: Future[None] | None = None
    for piece in stream.take(entry.size_bytes):
        if hashing:
            hashing.result()
            hashing = None
        if len(piece) < _LARGE_BYTES:
            digest.update(piece)
        else:
            # Hashed while the consumer writes it and the next one is fetched.
            hashing = hasher.submit(digest.update, piece)
        yield piece
    if hashing:
        hashing.result()
    if digest.digest() != entry.sha256:
        raise DamagedError(f"archive: member {entry.path[:200]} does not match its checksum")


def _document_entry(content: bytes, name: str) -> Entry:
    """Rebuild the entry of `snapshot.json` or `manifest.json` from its tar header."""
    try:
        size_bytes, seconds = int(content[124:135], 8), int(content[136:147], 8)
    except ValueError:
        size_bytes = seconds = -1
    plain = Entry(name, EntryType.FILE, 0o600, seconds * 1_000_000_000)
    entry = replace(plain, size_bytes=max(size_bytes, 0))
    if size_bytes < 0 or seconds < 0 or content[:BLOCK_BYTES] != member_header(entry):
        raise DamagedError(f"archive: {name} is not where it must be")
    return entry
