"""Digests of the content of a database, by which two copies of one state are equal.

Of its header, these do not count: the journal mode, and the counters that SQLite's backup and a
checkpoint set (fileformat2.html, section 1.3). Every change of the content changes another page.
"""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from sagewai_ops.database.sqlite.online_copy import copy_database
from sagewai_ops.database.sqlite.raw_copy import open_descriptor
from sagewai_ops.database.sqlite.read_transaction import (
    NeedsStagingError,
    from_database_error,
    open_read_transaction,
    resolve_database,
    sidecar,
    size_of,
)
from sagewai_ops.errors import DamagedError

# Device, inode, size and time of change of the files of a database; () for a missing one.
Files: TypeAlias = tuple[tuple[int, ...], ...]

Report: TypeAlias = Callable[[int, int], None]

_BLOCK_BYTES = 1024 * 1024
_UNCOUNTED = ((18, 20), (24, 28), (40, 44), (92, 100))
_SETTLED_NS = 2_000_000_000  # a file system can record times in steps of two seconds


def _no_report(_done: int, _total: int) -> None:
    pass


def digest_copy(path: Path, *, progress: Report = _no_report) -> str:
    """Return the SHA-256 of a database that no process writes to, without sidecars, in hex.

    Args:
        progress: Called with the bytes read and their total; an exception that it raises ends it.

    Raises:
        DamagedError: It has a `-wal` or a journal, with which it would be another database.
        OpsError: It cannot be read.
    """
    for suffix in ("-wal", "-journal"):
        if size_of(sidecar(path, suffix)):
            raise DamagedError(f"database {path}: has a {suffix}, which no run has left")
    with open_descriptor(path) as descriptor:
        return _digest(descriptor, path, os.fstat(descriptor).st_size, progress)


def digest_database(path: Path, scratch: Path, *, progress: Report = _no_report) -> str:
    """Return the same of a database that may be live, at one moment.

    Args:
        scratch: For a copy, where it cannot be read in place; a file there is removed.
        progress: As for `digest_copy`.

    Raises:
        OpsError: As `copy_database`.
    """
    resolved = resolve_database(path)
    with open_descriptor(resolved) as descriptor:  # closed after the transaction: it drops locks
        try:
            with open_read_transaction(path) as reader:
                if not size_of(sidecar(resolved, "-wal")):
                    size_bytes = reader.page_size * reader.page_count
                    return _digest(descriptor, path, size_bytes, progress)
        except NeedsStagingError:
            pass
    scratch.unlink(missing_ok=True)  # of a run that was killed
    try:
        copy_database(path, scratch)
        return digest_copy(scratch, progress=progress)
    finally:
        scratch.unlink(missing_ok=True)


def read_files(path: Path) -> Files:
    """Return what changes with every write to a database; equal if there was none in between.

    The time of change is set by the kernel alone.
    """
    resolved = resolve_database(path)
    found: list[tuple[int, ...]] = []
    for suffix in ("", "-wal", "-journal"):
        try:
            status = sidecar(resolved, suffix).stat()
        except FileNotFoundError:
            found.append(())
        else:
            found.append((status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns))
    return tuple(found)


def is_settled(files: Files) -> bool:
    """Return whether a change from here on gets another time than those of `read_files`."""
    return all(time.time_ns() - each[-1] > _SETTLED_NS for each in files if each)


def _digest(descriptor: int, name: Path, size_bytes: int, progress: Report) -> str:
    digest = hashlib.sha256()
    offset = 0
    while offset < size_bytes:
        try:
            block = bytearray(os.pread(descriptor, min(_BLOCK_BYTES, size_bytes - offset), offset))
        except OSError as error:
            raise from_database_error(error, name) from error
        if not block:
            raise DamagedError(f"database {name}: truncated")
        if not offset:
            for first, end in _UNCOUNTED:
                block[first:end] = bytes(len(block[first:end]))
        digest.update(block)
        offset += len(block)
        progress(offset, size_bytes)
    return digest.hexdigest()
