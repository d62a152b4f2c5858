"""The stream as zstd frames of at most 4 MiB, compressed and read in parallel, and a seek table.

    data frames ... | trailer (skippable frame) | seek table (skippable frame)

Every data frame has its content size and a checksum. The trailer has the offset of the manifest and
the SHA-256 of every byte before it, so that every flipped bit is detected, even one that zstd
ignores; from version 2 on also the HMAC that shows the archive's origin, and a checksum of itself.
`zstd -d` skips both skippable frames.

Source: RFC 8878 (zstd frames) and the seekable format of zstd's contrib directory, version 0.1.0.
"""

import contextlib
import hashlib
import os
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from sagewai_ops.errors import DamagedError
from sagewai_ops.fs.atomic import begin_writeback
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.process.malloc import keep_large_blocks
from sagewai_ops.process.threaded_digest import ThreadedDigest
from sagewai_ops.process.threads import ThreadPool
from sagewai_ops.records import dataclass

FRAME_BYTES = 4 * 1024 * 1024  # of tar data in a frame; docs/format.md
DEFAULT_LEVEL = 3
WORKERS = min(os.cpu_count() or 1, 4)  # more would only hold more frames in memory

_DATA_MAGIC = 0xFD2FB528
ZSTD_MAGIC = _DATA_MAGIC.to_bytes(4, "little")  # an archive's first bytes, if it is not encrypted
_TRAILER_MAGIC = 0x184D2A5D  # a skippable frame of ours
_TABLE_MAGIC = 0x184D2A5E  # the skippable frame that the seekable format reserves
_SEEKABLE_MAGIC = 0x8F92EAB1
_TRAILER = struct.Struct("<II8sQ32s")  # magic, length, mark, manifest offset, SHA-256
_TRAILER_MARK = b"sgwiops1"
# Version 2: also the HMAC, and the first bytes of the SHA-256 of the trailer up to here.
_TRAILER_2 = struct.Struct("<II8sQ32s32s8s")
_TRAILER_2_MARK = b"sgwiops2"
_CHECK_BYTES = 8
# A frame of which a sample at level 1 stays larger than this has literals only, such as media and
# vectors. No level makes those smaller, and level 1 takes a half to a third of the time of level 3;
# with a window of the whole frame it also finds repetitions that level 3 does not.
_DENSE_SHARE = 0.9
_SAMPLES, _SAMPLE_BYTES = 16, 4096  # at equal distances
_DENSE_LEVEL, _DENSE_WINDOW_LOG = 1, 22  # 2 to the power of 22 is FRAME_BYTES
_WRITEBACK_BYTES = 4 * 1024 * 1024  # of an archive, which the disk then begins to write
_ALTERED = "archive: frame differs from its content after decompression"
_FRAME_HEAD = struct.Struct("<II")  # a skippable frame's magic and length
_TABLE_ENTRY = struct.Struct("<II")  # compressed and decompressed bytes
_TABLE_FOOT = struct.Struct("<IBI")  # number of frames, descriptor, magic
TABLE_FOOT_BYTES = _TABLE_ENTRY.size + _TABLE_FOOT.size  # with the entry of the trailer
# A frame of 4 MiB that zstd could not shrink is a little larger than its content.
_MAX_COMPRESSED_BYTES = FRAME_BYTES + FRAME_BYTES // 128 + 512


class Sink(Protocol):
    """The destination of the archive's bytes."""

    def write(self, data: bytes, /) -> Any:
        """Write all of `data`."""
        ...


@dataclass(frozen=True, slots=True)
class Frame:
    """A data frame.

    Attributes:
        offset: Of its first byte in the archive.
        start: Of its content in the tar stream.
    """

    offset: int
    size_bytes: int
    start: int
    content_bytes: int


@dataclass(frozen=True, slots=True)
class FrameTable:
    """Trailer and seek table of an archive.

    Attributes:
        frames: In the order of the stream.
        manifest_start: Offset of the manifest's tar header in the tar stream; a frame starts there.
        sha256: Of the archive's bytes before the trailer.
        mac: The HMAC in the trailer, zeros if the writer had no key; empty in version 1.
        archive_bytes: Length of the archive.
    """

    frames: tuple[Frame, ...]
    manifest_start: int
    sha256: bytes
    mac: bytes = b""
    archive_bytes: int = 0

    @property
    def content_bytes(self) -> int:
        """The length of the tar stream."""
        last = self.frames[-1]
        return last.start + last.content_bytes


class HashingSink:
    """Write to a file, and count and hash the bytes; to be closed.

    Args:
        path: Named in errors; None for a pipe.
    """

    def __init__(self, stream: BinaryIO, path: Path | None = None) -> None:
        self._stream = stream
        self._path = path
        self._hasher = ThreadPool(1, thread_name_prefix="hash")
        self._unsynced_bytes = 0
        self.digest = ThreadedDigest(self._hasher)
        self.size_bytes = 0

    def write(self, data: bytes) -> None:
        """Write all of `data`."""
        self.digest.update(data)  # while it is written
        view = memoryview(data)
        with translate_os_errors(self._path) if self._path else contextlib.nullcontext():
            while view:  # an unbuffered file may write fewer bytes
                view = view[self._stream.write(view) or 0 :]
        self.size_bytes += len(data)
        self._unsynced_bytes += len(data)
        if self._path and self._unsynced_bytes >= _WRITEBACK_BYTES:
            begin_writeback(self._stream.fileno(), self.size_bytes - self._unsynced_bytes)
            self._unsynced_bytes = 0

    def close(self) -> None:
        """Stop the thread; also after a failure."""
        self._hasher.shutdown(wait=True, cancel_futures=True)

    def hexdigest(self) -> str:
        """Return the SHA-256 of the bytes written."""
        return self.digest.hexdigest()


class FrameWriter:
    """Split a byte stream into frames, compress them on all cores, write them in order.

    Each frame is decompressed and compared with its content before it is written.

    Args:
        sink: Receives the archive.
        level: Of zstd, 1 to 19.
    """

    def __init__(self, sink: Sink, *, level: int = DEFAULT_LEVEL) -> None:
        keep_large_blocks()
        self._sink = sink
        self._level = level
        # A hashing sink already computes this digest, unless encryption is in between.
        self._is_hashed = isinstance(sink, HashingSink)
        self._digest: Any = sink.digest if isinstance(sink, HashingSink) else hashlib.sha256()
        self._table: list[tuple[int, int]] = []
        self._pool = ThreadPool(WORKERS, thread_name_prefix="compress")
        self._comparison = _Comparison()
        self._local = threading.local()
        self._pending: deque[tuple[bytearray, int, Future[bytes]]] = deque()
        self._spare: list[bytearray] = []
        self._buffer = bytearray(FRAME_BYTES)
        self._filled = 0
        self.position = 0  # in the tar stream

    def write(self, data: bytes | memoryview) -> None:
        """Add bytes to the stream."""
        view = memoryview(data)
        while view:
            buffer = self.buffer()
            count = min(len(buffer), len(view))
            buffer[:count] = view[:count]
            self.advance(count)
            view = view[count:]

    def buffer(self) -> memoryview:
        """Return the free part of the current frame, to be filled in place."""
        return memoryview(self._buffer)[self._filled :]

    def advance(self, count: int) -> None:
        """Count bytes that were written to `buffer()`."""
        self._filled += count
        self.position += count
        if self._filled == FRAME_BYTES:
            self.cut()

    def cut(self) -> None:
        """End the current frame."""
        if not self._filled:
            return
        future = self._pool.submit(self._compress, self._buffer, self._filled)
        self._pending.append((self._buffer, self._filled, future))
        self._filled = 0
        while len(self._pending) > WORKERS:
            self._write_oldest()
        self._buffer = self._spare.pop() if self._spare else bytearray(FRAME_BYTES)

    def finish(
        self, manifest_start: int, authenticate: Callable[[bytes], bytes] | None = None
    ) -> None:
        """Write pending frames, the trailer and the seek table.

        Args:
            authenticate: Returns the HMAC for the SHA-256 of all frames; None for version 1.
        """
        self.cut()
        while self._pending:
            self._write_oldest()
        digest = self._digest.digest()
        mac = authenticate(digest) if authenticate else b""
        trailer = _encode_trailer(manifest_start, digest, mac)
        self._write(trailer)
        self._table.append((len(trailer), 0))
        entries = b"".join(_TABLE_ENTRY.pack(*entry) for entry in self._table)
        foot = _TABLE_FOOT.pack(len(self._table), 0, _SEEKABLE_MAGIC)
        head = _FRAME_HEAD.pack(_TABLE_MAGIC, len(entries) + len(foot))
        self._write(head + entries + foot)
        self.close()

    def digest(self) -> bytes:
        """Return the SHA-256 of all that was written."""
        digest: bytes = self._digest.digest()
        return digest

    def close(self) -> None:
        """Stop the workers; also after a failure."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _compress(self, buffer: bytearray, count: int) -> bytes:
        content = memoryview(buffer)[:count]
        is_dense = _is_dense(content, self._compressor(is_dense=True))
        compressed: bytes = self._compressor(is_dense=is_dense).compress(content)
        self._comparison.check(compressed, buffer, count)
        return compressed

    def _compressor(self, *, is_dense: bool) -> Any:
        """Return this thread's compressor for frames that shrink, or for those that do not."""
        name = "dense" if is_dense else "usual"
        compressor = getattr(self._local, name, None)
        if compressor is None:
            import zstandard

            parameters = zstandard.ZstdCompressionParameters
            options: dict[str, Any] = {"write_checksum": True, "write_content_size": True}
            if is_dense:
                compressor = zstandard.ZstdCompressor(
                    compression_params=parameters.from_level(
                        _DENSE_LEVEL, window_log=_DENSE_WINDOW_LOG, **options
                    )
                )
            else:
                compressor = zstandard.ZstdCompressor(level=self._level, **options)
            setattr(self._local, name, compressor)
        return compressor

    def _write_oldest(self) -> None:
        buffer, count, future = self._pending.popleft()
        frame = future.result()
        self._spare.append(buffer)
        self._write(frame)
        self._table.append((len(frame), count))

    def _write(self, data: bytes) -> None:
        if not self._is_hashed:
            self._digest.update(data)
        self._sink.write(data)


def _encode_trailer(manifest_start: int, digest: bytes, mac: bytes) -> bytes:
    if not mac:
        length = _TRAILER.size - _FRAME_HEAD.size
        return _TRAILER.pack(_TRAILER_MAGIC, length, _TRAILER_MARK, manifest_start, digest)
    length = _TRAILER_2.size - _FRAME_HEAD.size
    values = (_TRAILER_MAGIC, length, _TRAILER_2_MARK, manifest_start, digest, mac)
    trailer = _TRAILER_2.pack(*values, bytes(_CHECK_BYTES))[:-_CHECK_BYTES]
    return trailer + hashlib.sha256(trailer).digest()[:_CHECK_BYTES]


def _is_dense(content: memoryview, compressor: Any) -> bool:
    """Return whether a sample of a frame does not shrink; it depends on its bytes alone."""
    distance = len(content) // _SAMPLES
    if distance < _SAMPLE_BYTES:
        return False
    starts = range(0, distance * _SAMPLES, distance)
    sample = b"".join(content[start : start + _SAMPLE_BYTES] for start in starts)
    return len(compressor.compress(sample)) > _DENSE_SHARE * len(sample)


class _Comparison:
    """Compare frames with their content after decompression, one at a time, for the memory."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._content = bytearray(FRAME_BYTES)

    def check(self, compressed: bytes, buffer: bytearray, count: int) -> None:
        """Compare a frame with its content, the first bytes of a buffer.

        Raises:
            DamagedError: It differs.
        """
        import zstandard

        with self._lock:
            try:
                with zstandard.ZstdDecompressor().stream_reader(compressed) as reader:
                    # One call for all: zstd then needs no memory of its own for the window.
                    filled = reader.readinto(self._content)
                    is_longer = bool(reader.read(1))
            except zstandard.ZstdError as error:
                raise DamagedError(f"archive: frame cannot be decompressed: {error}") from error
            # Not ==, with which Python compares memoryviews element by element.
            content = memoryview(self._content)[:filled]
            if is_longer or filled != count or not buffer.startswith(content):
                raise DamagedError(_ALTERED)


def tail_bytes(foot: bytes, archive_bytes: int) -> int:
    """Return the length of trailer and seek table, from the last bytes.

    Args:
        foot: The last `TABLE_FOOT_BYTES` bytes of the archive.

    Raises:
        DamagedError: The archive does not end in a seek table.
    """
    if len(foot) != TABLE_FOOT_BYTES:
        raise DamagedError(f"archive: truncated, {archive_bytes} bytes")
    count, descriptor, magic = _TABLE_FOOT.unpack_from(foot, _TABLE_ENTRY.size)
    trailer = _trailer_of(foot)
    length = _FRAME_HEAD.size + count * _TABLE_ENTRY.size + _TABLE_FOOT.size + trailer.size
    if magic != _SEEKABLE_MAGIC or descriptor != 0 or count < 2 or length > archive_bytes:
        raise DamagedError("archive: seek table not found, truncated or not an archive")
    return int(length)


def _trailer_of(foot: bytes) -> struct.Struct:
    """Return the structure of the trailer: its size is the last entry of the seek table."""
    size_bytes, _content_bytes = _TABLE_ENTRY.unpack_from(foot)
    return _TRAILER_2 if size_bytes == _TRAILER_2.size else _TRAILER


def parse_frame_table(tail: bytes, archive_bytes: int) -> FrameTable:
    """Parse trailer and seek table.

    Args:
        tail: The last `tail_bytes` bytes of the archive.

    Raises:
        DamagedError: They contradict each other, the archive's size or the format.
    """
    count = _TABLE_FOOT.unpack(tail[-_TABLE_FOOT.size :])[0]
    trailer = _trailer_of(tail[-TABLE_FOOT_BYTES:])
    manifest_start, digest, mac = _decode_trailer(tail[: trailer.size])
    table_magic, table_length = _FRAME_HEAD.unpack_from(tail, trailer.size)
    first = trailer.size + _FRAME_HEAD.size
    sizes = list(_TABLE_ENTRY.iter_unpack(tail[first : first + count * _TABLE_ENTRY.size]))
    frames: list[Frame] = []
    offset = start = 0
    for size_bytes, content_bytes in sizes[:-1]:
        if not 0 < content_bytes <= FRAME_BYTES or not 0 < size_bytes <= _MAX_COMPRESSED_BYTES:
            raise DamagedError("archive: invalid frame size in the seek table")
        frames.append(Frame(offset, size_bytes, start, content_bytes))
        offset += size_bytes
        start += content_bytes
    if (
        table_magic != _TABLE_MAGIC
        or table_length != count * _TABLE_ENTRY.size + _TABLE_FOOT.size
        or sizes[-1] != (trailer.size, 0)
        or offset + len(tail) != archive_bytes
        or not any(frame.start == manifest_start for frame in frames[1:])
    ):
        raise DamagedError("archive: seek table does not match the content")
    return FrameTable(tuple(frames), manifest_start, digest, mac, archive_bytes)


def _decode_trailer(trailer: bytes) -> tuple[int, bytes, bytes]:
    """Return the offset of the manifest, the SHA-256, and the HMAC, which is empty in version 1."""
    manifest_start, digest = _TRAILER.unpack_from(trailer)[3:]
    mac = _TRAILER_2.unpack(trailer)[5] if len(trailer) == _TRAILER_2.size else b""
    # Every trailer has exactly one encoding.
    if trailer != _encode_trailer(manifest_start, digest, mac):
        raise DamagedError("archive: invalid trailer")
    return manifest_start, digest, mac


def decompress_frame(frame: Frame, data: bytes, decompressor: Any = None) -> bytes:
    """Decompress a frame.

    Args:
        frame: Its entry in the seek table.
        decompressor: One of zstandard's, of this thread; None for a new one.

    Raises:
        DamagedError: It is invalid, or differs from its entry.
    """
    import zstandard

    try:
        parameters = zstandard.get_frame_parameters(data)
        # The size is checked before decompression, so a bomb is never expanded.
        is_expected = (
            int.from_bytes(data[:4], "little") == _DATA_MAGIC
            and parameters.content_size == frame.content_bytes
            and parameters.has_checksum
        )
        decompressor = decompressor or zstandard.ZstdDecompressor()
        content: bytes = (
            decompressor.decompress(data, allow_extra_data=False) if is_expected else b""
        )
    except zstandard.ZstdError as error:
        raise DamagedError(f"archive: frame at byte {frame.offset}: {error}") from error
    if len(content) != frame.content_bytes:
        raise DamagedError(f"archive: frame at byte {frame.offset}: differs from the seek table")
    return content


def decompress_frames(
    frames: Sequence[Frame],
    compressed: Iterator[bytes],
) -> Iterator[bytes]:
    """Decompress frames on all cores, in order.

    Args:
        frames: Their entries in the seek table.
        compressed: The bytes of each, in the same order.

    Raises:
        DamagedError: A frame is invalid, or differs from its entry.
    """
    import zstandard

    keep_large_blocks()
    local = threading.local()

    def decompress(frame: Frame, data: bytes) -> bytes:
        if not hasattr(local, "decompressor"):
            local.decompressor = zstandard.ZstdDecompressor()
        return decompress_frame(frame, data, local.decompressor)

    with ThreadPool(WORKERS, thread_name_prefix="decompress") as pool:
        pending: deque[Future[bytes]] = deque()
        try:
            for frame, data in zip(frames, compressed, strict=True):
                pending.append(pool.submit(decompress, frame, data))
                if len(pending) > WORKERS:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
