"""The bytes of an archive in a remote place: ranges, or one stream from its start.

Trailer, seek table and manifest are at the end, so the last piece is read once and kept. A plain
archive needs a range for each group of frames; an encrypted one is read from its start.
"""

import contextlib
import io
from collections.abc import Generator, Iterator, Sequence
from typing import Any, BinaryIO

from sagewai_ops.archive.zstd_frames import (
    TABLE_FOOT_BYTES,
    FrameTable,
    parse_frame_table,
    tail_bytes,
)
from sagewai_ops.errors import DamagedError
from sagewai_ops.process.threads import ThreadPool
from sagewai_ops.remote.path import RemotePath

RANGE_BYTES = 8 * 1024 * 1024  # of one request
_PIECE_BYTES = 1024 * 1024  # of a spooled object
_MOST_TABLE_BYTES = RANGE_BYTES + 4096  # the seek table of 4 TiB of content


class RemoteInput:
    """A plain archive in a remote place.

    Args:
        size_bytes: Of the archive.
        end_bytes: How much of its end is read at first.
    """

    def __init__(self, path: RemotePath, size_bytes: int, end_bytes: int = RANGE_BYTES) -> None:
        self._path = path
        self._size_bytes = size_bytes
        self._tail_start = max(size_bytes - end_bytes, 0)
        self._tail = b""

    def read_frame_table(self) -> FrameTable:
        """Read the end of the archive."""
        total = self._size_bytes
        self._tail = self._path.store.read(
            self._path.member, self._tail_start, total - self._tail_start
        )
        length = tail_bytes(self._tail[-TABLE_FOOT_BYTES:], total)
        if length > _MOST_TABLE_BYTES:
            raise DamagedError("archive: seek table too long")
        return parse_frame_table(self._read(total - length, length), total)

    def read_spans(self, spans: Sequence[tuple[int, int]], digest: Any) -> Iterator[bytes]:
        """Yield the bytes of each span; neighbours are read in one request, one ahead."""
        groups = list(_grouped(spans))
        with ThreadPool(1, thread_name_prefix="fetch") as pool:
            ahead = pool.submit(self._read_group, groups[0]) if groups else None
            for number, group in enumerate(groups):
                assert ahead is not None
                start, content = group[0][0], memoryview(ahead.result())
                following = groups[number + 1 : number + 2]
                ahead = pool.submit(self._read_group, following[0]) if following else None
                for offset, count in group:
                    piece = bytes(content[offset - start : offset - start + count])
                    if digest is not None:
                        digest.update(piece)
                    yield piece

    def read_from_start(self) -> Generator[bytes, None, None]:
        """Yield the bytes of the archive in pieces."""
        return self._path.store.stream(self._path.member)

    def _read_group(self, group: Sequence[tuple[int, int]]) -> bytes:
        start = group[0][0]
        return self._read(start, sum(group[-1]) - start)

    def _read(self, offset: int, count: int) -> bytes:
        if offset + count > self._size_bytes:
            raise DamagedError(f"archive: truncated at byte {self._size_bytes}")
        if offset >= self._tail_start and self._tail:
            start = offset - self._tail_start
            return self._tail[start : start + count]
        return self._path.store.read(self._path.member, offset, count)


class RemoteStream(io.RawIOBase):
    """An object of a remote place as a file that can only go back to its start.

    Args:
        spool: Keeps what is received, so that an object that was read to its end is read again from
            there; None to request it again. Where the disk becomes full, it is requested, too.
        size_bytes: Of the object, as the place lists it: no more is kept.
    """

    def __init__(
        self, path: RemotePath, spool: BinaryIO | None = None, size_bytes: int = 0
    ) -> None:
        self._path = path
        self._spool = spool
        self._size_bytes = size_bytes
        self._is_spooled = False
        self._begin()

    def _begin(self) -> None:
        if self._spool:
            self._spool.seek(0)
            if not self._is_spooled:
                self._spool.truncate()
        self._pieces = (
            self._read_spool() if self._is_spooled else self._path.store.stream(self._path.member)
        )
        self._first: bytes | None = None
        self._rest = memoryview(b"")
        self._is_at_first = True

    def readable(self) -> bool:
        """Return that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; fewer bytes only at the end."""
        view, done = memoryview(buffer).cast("B"), 0
        while done < len(view):
            if not self._rest and not self._next():
                break
            count = min(len(view) - done, len(self._rest))
            view[done : done + count] = self._rest[:count]
            self._rest = self._rest[count:]
            done += count
        return done

    def _next(self) -> bool:
        piece = next(self._pieces, None)
        if piece is None:
            self._is_spooled = self._spool is not None
            return False
        if not self._is_spooled:
            self._keep(piece)
        self._is_at_first = self._first is None
        if self._is_at_first:
            self._first = piece
        self._rest = memoryview(piece)
        return True

    def _keep(self, piece: bytes) -> None:
        view = memoryview(piece)
        if self._spool and self._spool.tell() + len(view) > self._size_bytes:
            raise DamagedError(f"archive: longer than its {self._size_bytes} bytes")
        try:
            while self._spool and view:
                view = view[self._spool.write(view) :]
        except OSError:
            with contextlib.suppress(OSError):  # the space is for the content
                if self._spool:
                    self._spool.truncate(0)
            self._spool = None

    def _read_spool(self) -> Generator[bytes, None, None]:
        assert self._spool is not None
        while piece := self._spool.read(_PIECE_BYTES):
            yield piece

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go back to the start; after the first piece, the object is requested again."""
        if offset or whence != io.SEEK_SET:
            raise io.UnsupportedOperation("seek")
        if self._is_at_first:
            self._rest = memoryview(self._first or b"")
        else:
            self._pieces.close()
            self._begin()
        return 0

    def close(self) -> None:
        """End the request."""
        self._pieces.close()
        super().close()


def _grouped(spans: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Group spans that are adjacent, as far as one request goes."""
    group: list[tuple[int, int]] = []
    for span in spans:
        if group and (sum(group[-1]) != span[0] or sum(span) - group[0][0] > RANGE_BYTES):
            yield group
            group = []
        group.append(span)
    if group:
        yield group
