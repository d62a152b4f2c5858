"""Read a database's files in large blocks, and copy them as they lie where SQLite cannot help.

Bytes alone promise nothing: `copy_database` reads them under a pinned read transaction, and
`stage` only believes a round in which no file changed. What is copied here still has its `-wal`
or its journal beside it; opening the copy folds that in.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sagewai_ops.database.sqlite.read_transaction import (
    SHARED_FIRST,
    SHARED_SIZE,
    from_database_error,
    sidecar,
)
from sagewai_ops.errors import LockedError, NotFoundError

_BLOCK_BYTES = 1024 * 1024  # larger is not faster: measured from 64 KiB to 4 MiB
_ATTEMPTS = 20
_SETTLED_NS = 50_000_000  # a file changed less than this ago can change again within one tick


def stage(source: Path, main: int, target: Path, told: Callable[[int], None]) -> None:
    """Copy the files as they lie, until one round sees none of them change."""
    for _ in range(_ATTEMPTS):
        before = _marks(source)
        newest = max(mark[-1] for mark in before if mark)
        if abs(time.time_ns() - newest) < _SETTLED_NS:
            time.sleep(_SETTLED_NS / 1e9)
            continue
        with _shared_lock(main), open(target, "r+b", buffering=0) as copy:
            copy.truncate(0)
            pour(main, copy.fileno(), source, told)
            whole = all(
                copy_log(sidecar(source, suffix), sidecar(target, suffix))
                for suffix in ("-wal", "-journal")
            )
        if whole and _marks(source) == before:
            return
    raise LockedError(
        f"database {source}: kept changing while it was read, {_ATTEMPTS} times",
        hint="run this as the user that Sagewai runs as, so that SQLite can lock the database",
    )


def copy_log(source: Path, target: Path) -> bool:
    """Copy a `-wal` or a journal if there is one; False if it was started over meanwhile."""
    target.unlink(missing_ok=True)
    try:
        with opened(source) as log, private_file(target) as copy:
            header = os.pread(log, 32, 0)
            pour(log, copy, source, lambda _size_bytes: None)
            return os.pread(log, 32, 0) == header
    except NotFoundError:
        return True


def pour(source: int, target: int, name: Path, told: Callable[[int], None]) -> None:
    """Append all of one file to another, in blocks, from the first byte to what is the end."""
    block = bytearray(_BLOCK_BYTES)
    view = memoryview(block)
    offset = 0
    while True:
        try:
            size = os.preadv(source, [block], offset)
        except OSError as error:
            raise from_database_error(error, name) from error
        if not size:
            return
        written = 0
        while written < size:
            written += os.write(target, view[written:size])
        offset += size
        told(offset)


def header_page_size(main: int) -> int:
    """Read the page size from the header; 4096 where there is none to read."""
    size = int.from_bytes(os.pread(main, 2, 16), "big")
    return 65536 if size == 1 else size or 4096


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open a file for reading; yields the descriptor."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise from_database_error(error, path) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def private_file(path: Path) -> Iterator[int]:
    """Create a file of mode 0600 that was not there; yields the descriptor."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        os.fchmod(descriptor, 0o600)  # whatever the umask took away
        yield descriptor
    finally:
        os.close(descriptor)


def _marks(source: Path) -> tuple[tuple[int, ...], ...]:
    """Inode, size and modification time of each file that holds data; empty where there is none."""
    marks: list[tuple[int, ...]] = []
    for path in (source, sidecar(source, "-wal"), sidecar(source, "-journal")):
        try:
            status = path.stat()
        except FileNotFoundError:
            marks.append(())
        else:
            marks.append((status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(marks)


@contextmanager
def _shared_lock(main: int) -> Iterator[None]:
    """Hold what a reader holds: in rollback mode it keeps writers out, as far as locks work."""
    with suppress(OSError):
        fcntl.lockf(main, fcntl.LOCK_SH | fcntl.LOCK_NB, SHARED_SIZE, SHARED_FIRST)
    try:
        yield
    finally:
        with suppress(OSError):
            fcntl.lockf(main, fcntl.LOCK_UN, SHARED_SIZE, SHARED_FIRST)
