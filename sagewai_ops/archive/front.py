"""The front of an archive whose end is not the one of this format: damage, or a newer format?

Every version keeps one promise (docs/format.md, section 9): what age leaves begins with a zstd
frame of its own for `snapshot.json`. So a program that knows nothing else of an archive can say
which one it wants, and does not call a snapshot damaged because it is younger.
"""

import contextlib
import io
from collections.abc import Generator

from sagewai_ops.archive.manifest import HEADER_NAME, decode_header
from sagewai_ops.archive.tar import BLOCK_BYTES
from sagewai_ops.errors import DamagedError

_MOST_BYTES = 1024 * 1024  # of the frame, and of what is in it
_WINDOW_BYTES = 8 * 1024 * 1024  # that of zstd's level 19; a frame may ask for much more memory


def refuse_newer(pieces: Generator[bytes, None, None]) -> None:
    """Look at the first frame, and let pass whatever is not certainly a newer snapshot's.

    Args:
        pieces: The bytes of the archive from its beginning.

    Raises:
        SchemaAheadError: Its format is newer than this program.
    """
    import zstandard

    with contextlib.suppress(zstandard.ZstdError, DamagedError, ValueError):
        front = b""
        with contextlib.closing(pieces):
            for piece in pieces:
                front += piece
                if len(front) >= _MOST_BYTES:
                    break
        # Of the first frame alone, whose checksum speaks for it, and no more of a bomb than this.
        decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES)
        with decompressor.stream_reader(io.BytesIO(front)) as frame:
            content = frame.read(_MOST_BYTES)
        if content[:100].rstrip(b"\0") == HEADER_NAME.encode():
            size_bytes = int(content[124:135], 8)
            decode_header(content[BLOCK_BYTES:][:size_bytes])
