"""The bytes of an archive, wherever they come from: a clear file, or one that must be decrypted.

An age stream is read from its front, so a sealed source runs through the file again for each call.
That costs only decryption: nothing clear is ever put on a disk, and memory stays bounded.
"""

import os
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from typing import Any, BinaryIO, Protocol

from sagewai_ops.archive.age import Decryption, decrypt_stream
from sagewai_ops.archive.zstd_frames import TABLE_FOOT_BYTES, Layout, parse_layout, tail_bytes
from sagewai_ops.errors import DamagedError

# What is kept of the end while a sealed archive is measured: the seek table of 4 TiB of content.
_KEPT_TAIL_BYTES = 8 * 1024 * 1024 + 4096
_FRONT_BYTES = 64 * 1024


class Source(Protocol):
    """Gives the bytes of an archive."""

    def layout(self) -> Layout:
        """Read the end of the archive.

        Raises:
            DamagedError: It is not one.
        """
        ...

    def pieces(self, spans: Sequence[tuple[int, int]], digest: Any) -> Iterator[bytes]:
        """Give the bytes of each span (offset, length), which ascend and do not overlap.

        Args:
            digest: A hash that takes them as well, or None.
        """
        ...

    def front(self) -> Generator[bytes, None, None]:
        """Give the bytes from the beginning, as far as they are asked for."""
        ...

    def close(self) -> None:
        """Stop what runs in the background."""
        ...


class PlainInput:
    """A file that is the archive itself."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def layout(self) -> Layout:
        """Read the end of the archive."""
        total = os.fstat(self._stream.fileno()).st_size
        foot = self._read(max(total - TABLE_FOOT_BYTES, 0), min(TABLE_FOOT_BYTES, total))
        length = tail_bytes(foot, total)
        return parse_layout(self._read(total - length, length), total)

    def pieces(self, spans: Sequence[tuple[int, int]], digest: Any) -> Iterator[bytes]:
        """Give the bytes of each span."""
        for offset, count in spans:
            piece = self._read(offset, count)
            if digest is not None:
                digest.update(piece)
            yield piece

    def front(self) -> Generator[bytes, None, None]:
        """Give the bytes from the beginning."""
        offset = 0
        while piece := os.pread(self._stream.fileno(), _FRONT_BYTES, offset):
            yield piece
            offset += len(piece)

    def close(self) -> None:
        """Nothing runs in the background."""

    def _read(self, offset: int, count: int) -> bytes:
        piece = os.pread(self._stream.fileno(), count, offset)
        if len(piece) != count:
            raise DamagedError(f"archive: cut short at byte {offset + len(piece)}")
        return piece


class EncryptedInput:
    """A file that is an age stream of the archive."""

    def __init__(self, stream: BinaryIO, name: str, decryption: Decryption) -> None:
        self._stream = stream
        self._name = name
        self._decryption = decryption

    def layout(self) -> Layout:
        """Decrypt once to the end, which also proves every byte, and keep the tail."""
        kept: deque[bytes] = deque()
        kept_bytes = total = 0
        for piece in decrypt_stream(self._stream, self._decryption, self._name):
            kept.append(piece)
            kept_bytes += len(piece)
            total += len(piece)
            while kept_bytes - len(kept[0]) >= _KEPT_TAIL_BYTES:
                kept_bytes -= len(kept.popleft())
        tail = b"".join(kept)
        length = tail_bytes(tail[-TABLE_FOOT_BYTES:], total)
        if length > len(tail):
            raise DamagedError("archive: its seek table is too long")
        return parse_layout(tail[-length:], total)

    def pieces(self, spans: Sequence[tuple[int, int]], digest: Any) -> Iterator[bytes]:
        """Give the bytes of each span."""
        stream = decrypt_stream(self._stream, self._decryption, self._name)
        kept = bytearray()
        position = 0  # of kept[0] in the archive
        try:
            for offset, count in spans:
                while position + len(kept) < offset + count:
                    piece = next(stream, None)
                    if piece is None:
                        raise DamagedError("archive: cut short")
                    kept += piece
                    if position + len(kept) <= offset:
                        position += len(kept)
                        kept.clear()
                begin = offset - position
                found = bytes(memoryview(kept)[begin : begin + count])
                del kept[: begin + count]
                position = offset + count
                if digest is not None:
                    digest.update(found)
                yield found
        finally:
            stream.close()

    def front(self) -> Generator[bytes, None, None]:
        """Give the bytes from the beginning."""
        return decrypt_stream(self._stream, self._decryption, self._name)

    def close(self) -> None:
        """Every pass stops with its own generator."""
