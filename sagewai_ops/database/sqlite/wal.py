"""Write the pages of a `-wal` into a copy of the main file, without SQLite.

The `-shm` is SQLite's index of the `-wal`. Its header has the last frame of the newest commit, and
the size of the database at that commit; whatever follows in the `-wal` is older than its last
restart, rolled back, incomplete or not committed yet, and is not read. SQLite checked salts and
checksums of the frames up to there when the first process opened the database after a crash, and no
reader checks them again: in a transaction with a savepoint that was rolled back, SQLite 3.40 leaves
zeros in place of both in frames that it commits and reads.

During a read transaction no process writes a page that is newer than the transaction into the main
file, and none overwrites a frame that the transaction reads (wal.html, "Concurrency" and
"Checkpointing"). So the main file, read at any time during the transaction, with the frames of a
commit that is not older than the transaction over it, is the database at that commit. Pages that a
checkpoint writes while the main file is read are among these frames.

Source: fileformat2.html, section 4 ("The Write-Ahead Log"); walformat.html, sections 2.1 and 2.3
("The WAL-Index File Format", "WAL-Index Header").
"""

import mmap
import os
import struct
import sys
import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

from sagewai_ops.database.sqlite.raw_copy import write_at
from sagewai_ops.database.sqlite.read_transaction import from_database_error
from sagewai_ops.errors import DamagedError
from sagewai_ops.records import dataclass

# Version, unused, counter, is initialised, byte order of the checksums, page size, last frame,
# pages, checksum of the last frame, salts, checksum of the fields before; in the machine's order.
_INDEX = struct.Struct("=IIIBBHIIII8sII")
_CHECKED_WORDS = struct.Struct("=10I")
_VERSION = 3007000  # of the index since SQLite 3.7.0
_ATTEMPTS = 100  # to read the index while no process writes it, which takes microseconds
_PAUSE_SECONDS = 0.001

_LOG_HEADER_BYTES = 32
_SALTS_OFFSET = 16
_FRAME_HEADER_BYTES = 24
_WORD_BYTES = 4
# Of the header of a frame: page, pages of the database after a commit (else 0), salts, checksum.
_FRAME = struct.Struct(">II")
_LOCK_PAGE_BYTES = 65536  # at most, of the page with SQLite's locks, which is never written
_BLOCK_BYTES = 1024 * 1024
_MOST_PIECES = min(os.sysconf("SC_IOV_MAX"), 1024)  # of one write


@dataclass(frozen=True, slots=True)
class WalIndex:
    """What the index states about the newest commit in a `-wal`.

    Args:
        page_size: Bytes.
        frames: Frames up to the end of that commit; 0 if the main file has everything.
        page_count: Pages of the database at that commit.
        salts: 8 bytes, which change when the log is restarted.
    """

    page_size: int
    frames: int
    page_count: int
    salts: bytes


def read_index(shm: int, page_size: int) -> WalIndex | None:
    """Read the header of the index.

    Args:
        shm: A descriptor of the `-shm`, which must stay open until no connection of this process
            has the database open: closing it drops SQLite's locks.
        page_size: Of the database, in bytes.

    Returns:
        None if it is of an unknown version, or invalid.
    """
    for _ in range(_ATTEMPTS):
        header = os.pread(shm, 2 * _INDEX.size, 0)
        # A process that commits writes the second copy, then the first.
        if header[: _INDEX.size] == header[_INDEX.size :] and _is_valid(header[: _INDEX.size]):
            return _parse(header[: _INDEX.size], page_size)
        time.sleep(_PAUSE_SECONDS)
    return None


def apply_log(
    index: WalIndex,
    log: int,
    copy: int,
    name: Path,
    report: Callable[[int], None],
    examine: Callable[[int, memoryview], None] | None = None,
) -> bool:
    """Write the newest frame of each page into a copy of the main file, and set its size.

    From the last frame to the first, so that each page is written once.

    Args:
        log: A descriptor of the `-wal`.
        copy: A descriptor of the copy.
        name: Of the `-wal`, in errors.
        report: Called with the number of bytes of the log that were read.
        examine: Called with the offset in the copy and the content of each page that is written.

    Returns:
        False if the log was restarted; the index must be read again.

    Raises:
        DamagedError: The database is larger than the copy and the log together, or not readable.
    """
    if not index.frames:
        return True
    size_bytes = index.page_count * index.page_size
    if size_bytes > os.fstat(copy).st_size + index.frames * index.page_size + _LOCK_PAGE_BYTES:
        raise DamagedError(f"{name}: states more pages than the database and its -wal have")
    frame_bytes = _FRAME_HEADER_BYTES + index.page_size
    block = bytearray(max(_BLOCK_BYTES // frame_bytes, 1) * frame_bytes)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    # One byte for each page; only those that are written take memory.
    with mmap.mmap(-1, index.page_count + 1, flags=flags) as is_written:
        is_written[0] = 1  # pages are numbered from 1
        end = index.frames * frame_bytes
        for stop in range(end, 0, -len(block)):
            start = max(stop - len(block), 0)
            content = memoryview(block)[: stop - start]
            if not _read(log, content, _LOG_HEADER_BYTES + start, name):
                return False
            _page, size = _FRAME.unpack_from(content, len(content) - frame_bytes)
            if stop == end and size != index.page_count:
                return False
            pages = _pages(content, frame_bytes)
            newest: list[tuple[int, int]] = []
            for position in range(len(pages) - 1, -1, -1):
                page = pages[position]
                if page <= index.page_count and not is_written[page]:
                    is_written[page] = 1
                    newest.append((page, position * frame_bytes + _FRAME_HEADER_BYTES))
            _write_pages(copy, content, sorted(newest), index.page_size)
            for page, place in newest:
                if examine is None:
                    break
                examine((page - 1) * index.page_size, content[place : place + index.page_size])
            report(end - start)
    os.ftruncate(copy, size_bytes)
    # The header is written before the first frame of a restarted log.
    return os.pread(log, len(index.salts), _SALTS_OFFSET) == index.salts


def _is_valid(header: bytes) -> bool:
    """Check the checksum of a header that was read whole."""
    if len(header) != _INDEX.size:
        return False
    words = _CHECKED_WORDS.unpack_from(header)
    first = second = 0
    for position in range(0, len(words), 2):
        first = (first + words[position] + second) & 0xFFFFFFFF
        second = (second + words[position + 1] + first) & 0xFFFFFFFF
    return _INDEX.unpack(header)[-2:] == (first, second)


def _parse(header: bytes, page_size: int) -> WalIndex | None:
    version, _, _, is_initialised, _, stored, frames, pages, _, _, salts, _, _ = _INDEX.unpack(
        header
    )
    # 65536 does not fit and is stored as 1; without a log it is 0.
    stored_size = (stored & 0xFE00) + ((stored & 1) << 16)
    if version != _VERSION or not is_initialised or (frames and stored_size != page_size):
        return None
    return WalIndex(page_size, frames, pages, salts)


def _read(log: int, content: memoryview, offset: int, name: Path) -> bool:
    try:
        return os.preadv(log, [content], offset) == len(content)
    except OSError as error:
        raise from_database_error(error, name) from error


def _pages(content: memoryview, frame_bytes: int) -> Sequence[int]:
    """Return the page number of each frame."""
    pages = array("I", content.cast("I")[:: frame_bytes // _WORD_BYTES])
    if sys.byteorder == "little":
        pages.byteswap()
    return pages


def _write_pages(
    copy: int, content: memoryview, newest: Sequence[tuple[int, int]], page_size: int
) -> None:
    """Write pages, given by number and offset in `content`; neighbours with one call."""
    position = 0
    while position < len(newest):
        first = newest[position][0]
        pieces: list[memoryview] = []
        for page, offset in newest[position : position + _MOST_PIECES]:
            if page != first + len(pieces):
                break
            pieces.append(content[offset : offset + page_size])
        position += len(pieces)
        offset = (first - 1) * page_size
        written = os.pwritev(copy, pieces, offset)
        if written < len(pieces) * page_size:
            write_at(copy, memoryview(b"".join(pieces))[written:], offset + written)
