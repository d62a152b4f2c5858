"""Read a database's files in large blocks, and copy them in place of SQLite where it cannot.

The bytes of a live database need not be consistent: `copy_database` reads them in a read
transaction, and `copy_unlocked` accepts only a pass in which no file changed. A copy made here
still has its `-wal` or journal; opening the copy applies it.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

from sagewai_ops.database.sqlite.connect import open_regular
from sagewai_ops.database.sqlite.read_transaction import (
    SHARED_FIRST,
    SHARED_SIZE,
    from_database_error,
    sidecar,
)
from sagewai_ops.errors import LockedError, NotFoundError
from sagewai_ops.fs import beneath

# Inode, size and modification time of each file of a database; () for a missing one.
FileStates: TypeAlias = tuple[tuple[int, ...], ...]
Examine: TypeAlias = Callable[[int, bytearray], None]

_BLOCK_BYTES = 1024 * 1024  # larger is not faster: measured from 64 KiB to 4 MiB
_CLONED_BYTES = 4096  # a block of most file systems, and a page of Sagewai's database
_FICLONE = 0x40049409  # linux/fs.h; the same on x86 and ARM, refused elsewhere
_ATTEMPTS = 20
_SETTLED_NS = 50_000_000  # a file changed less than this ago can change again within one tick


def copy_unlocked(source: Path, main: int, target: Path, report: Callable[[int], None]) -> None:
    """Copy the files of a database until a pass in which none of them changed.

    Args:
        main: A descriptor of the main file.
        report: Called with the bytes of the main file that were copied.

    Raises:
        LockedError: They changed in every pass.
    """
    for _ in range(_ATTEMPTS):
        before = file_states(source)
        newest = max(state[-1] for state in before if state)
        if abs(time.time_ns() - newest) < _SETTLED_NS:
            time.sleep(_SETTLED_NS / 1e9)
            continue
        with _shared_lock(main), open(open_regular(target, os.O_RDWR), "r+b", 0) as copy:
            copy.truncate(0)
            copy_blocks(main, copy.fileno(), source, report)
            is_complete = all(
                copy_log(sidecar(source, suffix), sidecar(target, suffix))
                for suffix in ("-wal", "-journal")
            )
        if is_complete and file_states(source) == before:
            return
    raise LockedError(
        f"database {source}: changed in each of {_ATTEMPTS} passes, not lockable by uid"
        f" {os.geteuid()}; run as the user of Sagewai"
    )


def copy_log(source: Path, target: Path) -> bool:
    """Copy a `-wal` or a journal, if there is one.

    Returns:
        False if it was restarted during the copy.
    """
    target.unlink(missing_ok=True)
    try:
        with open_descriptor(source) as log, create_private(target) as copy:
            header = os.pread(log, 32, 0)
            copy_blocks(log, copy, source, lambda _size_bytes: None)
            return os.pread(log, 32, 0) == header
    except NotFoundError:
        return True


def copy_blocks(
    source: int,
    target: int,
    name: Path,
    report: Callable[[int], None],
    examine: Examine | None = None,
) -> None:
    """Append a whole file to another, in large blocks.

    Args:
        name: Of the source, in errors.
        report: Called with the number of bytes copied.
        examine: Called with each block and its offset, in order; the block changes afterwards.
    """
    block = bytearray(_BLOCK_BYTES)
    view = memoryview(block)
    for offset, size in _read_blocks(source, block, name, examine):
        written = 0
        while written < size:
            written += os.write(target, view[written:size])
        report(offset + size)


def clone(source: Path, target: int) -> bool:
    """Make an empty file share all blocks of another one.

    Args:
        source: Not read through a link.

    Returns:
        False if the file system cannot; the target is still empty.

    Source: ioctl_ficlonerange(2), FICLONE.
    """
    with suppress(OSError), beneath.closing(beneath.open_file(source)) as descriptor:
        fcntl.ioctl(target, _FICLONE, descriptor)
        return True
    os.ftruncate(target, 0)  # a part may be shared
    return False


def copy_changed_blocks(
    source: int,
    target: int,
    name: Path,
    report: Callable[[int], None],
    examine: Examine | None = None,
) -> None:
    """Make a file equal to another; write only what differs.

    Args:
        name, report, examine: As for `copy_blocks`.
    """
    # Compared as bytearrays, which takes a tenth of the time of comparing memoryviews.
    block, known = bytearray(_BLOCK_BYTES), bytearray(_BLOCK_BYTES)
    end_of_source = 0
    for offset, size in _read_blocks(source, block, name, examine):
        size_known = os.preadv(target, [known], offset)
        if size_known < size or size < _BLOCK_BYTES or block != known:
            for start in range(0, size, _CLONED_BYTES):
                piece = block[start : min(size, start + _CLONED_BYTES)]
                end = start + len(piece)
                if end > size_known or piece != known[start:end]:
                    write_at(target, memoryview(piece), offset + start)
        end_of_source = offset + size
        report(end_of_source)
    os.ftruncate(target, end_of_source)


def _read_blocks(
    source: int, block: bytearray, name: Path, examine: Examine | None
) -> Iterator[tuple[int, int]]:
    """Read a whole file into a block, again and again; yield offset and size of what it has."""
    offset = 0
    while True:
        try:
            size = os.preadv(source, [block], offset)
        except OSError as error:
            raise from_database_error(error, name) from error
        if not size:
            return
        if examine:
            examine(offset, block if size == len(block) else block[:size])
        yield offset, size
        offset += size


def write_at(target: int, content: memoryview, offset: int) -> None:
    """Write all of `content` at an offset."""
    while content:
        count = os.pwrite(target, content, offset)
        content, offset = content[count:], offset + count


def header_page_size(main: int) -> int:
    """Read the page size from the header; 4096 for an empty file."""
    size = int.from_bytes(os.pread(main, 2, 16), "big")
    return 65536 if size == 1 else size or 4096


@contextmanager
def open_descriptor(path: Path) -> Iterator[int]:
    """Open a file for reading and yield its descriptor."""
    try:
        descriptor = open_regular(path)
    except OSError as error:
        raise from_database_error(error, path) from error
    with beneath.closing(descriptor):
        yield descriptor


@contextmanager
def create_private(path: Path) -> Iterator[int]:
    """Create a new file of mode 0600 and yield its descriptor."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with beneath.closing(os.open(path, flags, 0o600)) as descriptor:
        beneath.keep_mode(descriptor, 0o600, path)
        yield descriptor


def file_states(source: Path) -> FileStates:
    """Return inode, size and modification time of each file with data; () for a missing one."""
    states: list[tuple[int, ...]] = []
    for path in (source, sidecar(source, "-wal"), sidecar(source, "-journal")):
        try:
            status = path.stat()
        except FileNotFoundError:
            states.append(())
        else:
            states.append((status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(states)


@contextmanager
def _shared_lock(main: int) -> Iterator[None]:
    """Lock as a reader does: in rollback mode this excludes writers, where locks work."""
    with suppress(OSError):
        fcntl.lockf(main, fcntl.LOCK_SH | fcntl.LOCK_NB, SHARED_SIZE, SHARED_FIRST)
    try:
        yield
    finally:
        with suppress(OSError):
            fcntl.lockf(main, fcntl.LOCK_UN, SHARED_SIZE, SHARED_FIRST)
