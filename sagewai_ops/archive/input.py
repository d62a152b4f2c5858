"""The bytes of an archive: of a plain file, or of one that is decrypted while it is read.

An age stream can only be read from its start, so an encrypted input decrypts the file again for
each call. Nothing decrypted is written to a disk, and memory stays bounded.
"""

import os
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from typing import Any, BinaryIO, Protocol

from sagewai_ops.archive.age import Decryption, decrypt_stream
from sagewai_ops.archive.zstd_frames import (
    TABLE_FOOT_BYTES,
    FrameTable,
    parse_frame_table,
    tail_bytes,
)
from sagewai_ops.errors import DamagedError

# Kept of the end while an encrypted archive is measured: the seek table of 4 TiB of content.
_TAIL_BYTES = 8 * 1024 * 1024 + 4096
_PIECE_BYTES = 1024 * 1024


class ArchiveInput(Protocol):
    """The bytes of an archive."""

    def read_frame_table(self) -> FrameTable:
        """Read trailer and seek table at the end of the archive.

        Raises:
            DamagedError: They are invalid.
        """
        ...

    def read_spans(self, spans: Sequence[tuple[int, int]], digest: Any) -> Iterator[bytes]:
        """Yield the bytes of each span (offset, length), which ascend and do not overlap.

        Args:
            digest: A hash to update with these bytes, or None.
        """
        ...

    def read_from_start(self) -> Generator[bytes, None, None]:
        """Yield the bytes of the archive in pieces."""
        ...


class PlainInput:
    """A file that is the archive itself."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def read_frame_table(self) -> FrameTable:
        """Read the end of the archive."""
        total = os.fstat(self._stream.fileno()).st_size
        foot = self._read(max(total - TABLE_FOOT_BYTES, 0), min(TABLE_FOOT_BYTES, total))
        length = tail_bytes(foot, total)
        return parse_frame_table(self._read(total - length, length), total)

    def read_spans(self, spans: Sequence[tuple[int, int]], digest: Any) -> Iterator[bytes]:
        """Yield the bytes of each span."""
        for offset, count in spans:
            piece = self._read(offset, count)
            if digest is not None:
                digest.update(piece)
            yield piece

    def read_from_start(self) -> Generator[bytes, None, None]:
        """Yield the bytes of the archive in pieces."""
        offset = 0
        while piece := os.pread(self._stream.fileno(), _PIECE_BYTES, offset):
            yield piece
            offset += len(piece)

    def _read(self, offset: int, count: int) -> bytes:
        piece = os.pread(self._stream.fileno(), count, offset)
        if len(piece) != count:
            raise DamagedError(f"archive: truncated at byte {offset + len(piece)}")
        return piece


class EncryptedInput:
    """A file that is an age stream of the archive."""

    def __init__(self, stream: BinaryIO, name: str, decryption: Decryption) -> None:
        self._stream = stream
        self._name = name
        self._decryption = decryption

    def read_frame_table(self) -> FrameTable:
        """Decrypt the whole stream, which also authenticates it, and keep its end."""
        pieces: deque[bytes] = deque()
        kept_bytes = total = 0
        for piece in self.read_from_start():
            pieces.append(piece)
            kept_bytes += len(piece)
            total += len(piece)
            while kept_bytes - len(pieces[0]) >= _TAIL_BYTES:
                kept_bytes -= len(pieces.popleft())
        tail = b"".join(pieces)
        length = tail_bytes(tail[-TABLE_FOOT_BYTES:], total)
        if length > len(tail):
            raise DamagedError("archive: seek table too long")
        return parse_frame_table(tail[-length:], total)

    def read_spans(self, spans: Sequence[tuple[int, int]], digest: Any) -> Iterator[bytes]:
        """Yield the bytes of each span."""
        stream = self.read_from_start()
        buffer = bytearray()
        position = 0  # of buffer[0] in the archive
        try:
            for offset, count in spans:
                while position + len(buffer) < offset + count:
                    piece = next(stream, None)
                    if piece is None:
                        raise DamagedError("archive: truncated")
                    buffer += piece
                    if position + len(buffer) <= offset:
                        position += len(buffer)
                        buffer.clear()
                begin = offset - position
                span = bytes(memoryview(buffer)[begin : begin + count])
                del buffer[: begin + count]
                position = offset + count
                if digest is not None:
                    digest.update(span)
                yield span
        finally:
            stream.close()

    def read_from_start(self) -> Generator[bytes, None, None]:
        """Yield the bytes of the archive in pieces."""
        return decrypt_stream(self._stream, self._decryption, self._name)
