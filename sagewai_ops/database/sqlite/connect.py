"""Open every SQLite connection of this program: `open_connection`.

A database may have been written by anyone, so its schema is not trusted. On each connection:

- views and triggers do not run: a statement that would run one fails when it is prepared;
- functions with side effects are refused in the schema, and no statement writes to the schema's own
  tables (defensive mode, from Python 3.12 on);
- a value is at most twice as long as the database (from Python 3.11 on), and SQLite's memory is
  limited, so that an expression of the schema cannot allocate gigabytes;
- the thread's processor time is limited by the size of the database.

SQLite opens its files by their paths, and its wait at a pipe has no end. The user of a home can put
one there at any moment, so the files of open connections are watched: a pipe is opened from the
other side, which ends the wait, and the connection fails.

A rollback journal that names a super-journal is refused before SQLite sees it: SQLite deletes the
file of that name when it rolls such a journal back.
"""

from __future__ import annotations

import _thread
import errno
import fcntl
import os
import sqlite3
import stat
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sagewai_ops.errors import DamagedError
from sagewai_ops.fs import beneath, volumes
from sagewai_ops.process.signals import is_callback
from sagewai_ops.text import printable, shell_word, size

SIDECARS = ("-wal", "-shm", "-journal")

_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")  # aJournalMagic of pager.c
_UNUSED_BYTE = 0x40000000 + 1024  # after the bytes that SQLite locks (os.h)
_SHOWN_BYTES = 200  # of a super-journal's name
_MIB = 1024 * 1024
# No stored value is longer than its file; a text of UTF-16 grows by half in UTF-8.
_LEAST_VALUE_BYTES = _MIB
_MOST_VALUE_BYTES = 1_000_000_000  # SQLite's own limit
_LIKE_BYTES = 1000  # of a pattern: matching takes pattern times text
# Caches and sorters take some 20 MiB, a value at most four times its length.
_HEAP_BYTES = 256 * _MIB
_HEAP_SHARE = 8
# A check of all rows and values takes 0.02 to 0.1 seconds for each MiB; a hostile one has no end.
_SECONDS = 6.0
_SECONDS_PER_MIB = 2.0
_PAUSE_SECONDS = 0.25  # between two looks at the processor time
# Constants of sqlite3.h that Python has since 3.11 and 3.12.
_LIMIT_LENGTH, _LIMIT_LIKE_PATTERN_LENGTH, _DEFENSIVE = 0, 8, 1010


class Connection(sqlite3.Connection):
    """A connection whose thread has a limit of processor time.

    Attributes:
        is_stopped: Whether the limit has been reached.
    """

    is_stopped = False

    def close(self) -> None:
        """Close the connection and end its limit."""
        _watch.remove(self)
        super().close()


def open_connection(
    path: Path | None,
    *,
    mode: str = "ro",
    timeout: float = 0.0,
    is_immutable: bool = False,
    check_same_thread: bool = True,
    least_seconds: float = 0.0,
    vfs: str = "",
) -> sqlite3.Connection:
    """Open a database, or one in memory, without a transaction.

    Args:
        path: The main file, symlinks resolved; None for memory.
        mode: `ro`, `rw` or `rwc`.
        timeout: Seconds to wait for a lock.
        is_immutable: No process writes to it; its sidecars are not read.
        check_same_thread: As of `sqlite3.connect`.
        least_seconds: A higher limit of the thread's processor time, which includes the caller's.
        vfs: SQLite's interface to files (default: with locks).

    Raises:
        DamagedError: A sidecar is refused.
        sqlite3.Error: SQLite cannot open it.
    """
    if path is None:
        connection = sqlite3.connect(":memory:", isolation_level=None, factory=Connection)
        _distrust_schema(connection)
        return connection
    if not is_immutable:
        check_sidecars(path)
    more = {"immutable": "1"} if is_immutable else {}
    if vfs:
        more["vfs"] = vfs
    opening = object()
    _watch.add(opening, path)
    try:
        connection = sqlite3.connect(
            database_uri(path, mode=mode, **more),
            uri=True,
            timeout=timeout,
            isolation_level=None,
            check_same_thread=check_same_thread,
            factory=Connection,
        )
    finally:
        _watch.remove(opening)
    try:
        _distrust_schema(connection)
        size_bytes = stored_bytes(path)
        _limit_memory(connection, size_bytes)
        _watch.add(connection, path, max(limit_seconds(size_bytes), least_seconds))
    except BaseException:
        connection.close()
        raise
    return connection


def database_uri(path: Path, **parameters: str) -> str:
    """Return the URI of a file for `sqlite3.connect(..., uri=True)`, whatever its bytes."""
    absolute = os.fsencode(os.path.abspath(path))
    query = "&".join(f"{name}={value}" for name, value in parameters.items())
    return f"file://{quote(absolute)}" + (f"?{query}" if query else "")


def check_sidecars(path: Path) -> None:
    """Check the files next to a database that SQLite would read with it.

    Raises:
        DamagedError: One is not a regular file with one name, is another user's, or is a journal
            with a super-journal.
    """
    for suffix in SIDECARS:
        file = path.with_name(path.name + suffix)
        try:
            status = os.lstat(file)
            owners = {os.stat(path).st_uid, os.geteuid(), 0}
        except OSError:
            continue  # missing, or the database itself is, which SQLite reports
        if not stat.S_ISREG(status.st_mode):
            state = "a link" if stat.S_ISLNK(status.st_mode) else "not a regular file"
        elif status.st_nlink != 1:
            state = f"has {status.st_nlink} names"
        elif status.st_uid not in owners:
            state = f"owned by uid {status.st_uid}, unlike the database"
        else:
            continue
        raise DamagedError(
            f"database {path}: its {suffix} is {state}, not opened",
            hint=f"ls -l {shell_word(file)}",
        )
    name = super_journal(path.with_name(path.name + "-journal"))
    if name:
        journal = path.with_name(path.name + "-journal")
        raise DamagedError(
            f"database {path}: its -journal names the super-journal {name}, which SQLite would"
            " delete, not opened",
            hint=f"mv {shell_word(journal)} {shell_word(f'{journal}.refused')}"
            "  # then: sagewai-ops db check",
        )


def super_journal(journal: Path) -> str:
    """Return the name of the super-journal at the end of a rollback journal; "" without one."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    # Missing; or unreadable, for SQLite too.
    with suppress(OSError), beneath.closing(os.open(journal, flags)) as descriptor:
        # The name, its length, its checksum, the magic (pager.c, readSuperJournal). The checksum is
        # not compared: a wrong one is no reason to open it.
        end = os.fstat(descriptor).st_size
        tail = os.pread(descriptor, 16, max(end - 16, 0))
        length = int.from_bytes(tail[:4], "big")
        if tail[8:] == _JOURNAL_MAGIC and 0 < length <= end - 16:
            name = os.pread(descriptor, min(length, _SHOWN_BYTES), end - 16 - length)
            return printable(os.fsdecode(name.rstrip(b"\0"))) or "?"
    return ""


def has_locks(path: Path) -> bool:
    """Return whether the file system of a database has the locks that SQLite needs.

    Only while nothing in this process has the file open: closing a descriptor drops its locks.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return True  # SQLite reports it
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, _UNUSED_BYTE)
    except OSError as error:
        return not volumes.lacks(error)
    finally:
        os.close(descriptor)
    return True


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open a file of a database; a link or a pipe in its place is not opened, and does not block.

    Raises:
        OSError: The system refused, or it is not a regular file.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    return descriptor


def stored_bytes(path: Path) -> int:
    """Return the size of a database and its `-wal` in bytes."""
    total = 0
    for suffix in ("", "-wal"):
        with suppress(OSError):
            total += os.stat(f"{path}{suffix}").st_size
    return total


def limit_seconds(size_bytes: int) -> float:
    """Return the processor time that a connection to a database of this size may use."""
    return _SECONDS + size_bytes / _MIB * _SECONDS_PER_MIB


def is_stopped(connection: sqlite3.Connection) -> bool:
    """Return whether the limit of processor time interrupted a statement."""
    return isinstance(connection, Connection) and connection.is_stopped


def describe_limit(path: Path) -> str:
    """Return the reason for an interruption, for people."""
    size_bytes = stored_bytes(path)
    return (
        f"stopped after {limit_seconds(size_bytes):.0f} seconds of processor time,"
        f" the limit for a database of {size(size_bytes)}"
    )


def _distrust_schema(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA writable_schema = OFF")
    connection.set_authorizer(_authorize)
    if hasattr(connection, "setconfig"):  # Python 3.12
        connection.setconfig(_DEFENSIVE, True)


@is_callback
def _authorize(
    action: int, _first: str | None, _second: str | None, _base: str | None, source: str | None
) -> int:
    """Refuse what a view or a trigger does: the source of the action is its name."""
    if source is not None or action == sqlite3.SQLITE_RECURSIVE:
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK


def _limit_memory(connection: sqlite3.Connection, size_bytes: int) -> None:
    if hasattr(connection, "setlimit"):  # Python 3.11
        most = min(max(2 * size_bytes, _LEAST_VALUE_BYTES), _MOST_VALUE_BYTES)
        connection.setlimit(_LIMIT_LENGTH, most)
        connection.setlimit(_LIMIT_LIKE_PATTERN_LENGTH, _LIKE_BYTES)
    # Of the process, and only ever lowered; an older SQLite ignores it.
    connection.execute(f"PRAGMA hard_heap_limit = {_HEAP_BYTES + _HEAP_SHARE * size_bytes}")


class _Watch:
    """Interrupt connections whose thread has used up its processor time, or waits at a pipe.

    From a thread of its own, because SQLite's progress handler would need Python's lock often.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._limits: dict[int, tuple[object, Path, int | None, float]] = {}
        self._is_running = False

    def add(self, connection: object, path: Path, seconds: float = 0.0) -> None:
        """Watch a connection that the calling thread uses, or that it opens.

        Args:
            seconds: Of processor time, for a connection.
        """
        clock = _thread_clock() if seconds else None
        with self._lock:
            limit = time.clock_gettime(clock) + seconds if clock is not None else 0.0
            self._limits[id(connection)] = (connection, path, clock, limit)
            if not self._is_running:
                # Not `threading.Thread`: a signal during its `start` leaves a message on stderr.
                self._is_running = True
                _thread.start_new_thread(self._run, ())

    def remove(self, connection: object) -> None:
        """Stop watching it."""
        with self._lock:
            self._limits.pop(id(connection), None)

    def _run(self) -> None:
        while True:
            time.sleep(_PAUSE_SECONDS)
            with self._lock:
                for connection, path, clock, limit in self._limits.values():
                    _end_wait(path)
                    with suppress(OSError, sqlite3.Error):  # the thread has ended
                        if (
                            clock is not None
                            and isinstance(connection, Connection)
                            and time.clock_gettime(clock) > limit
                        ):
                            connection.is_stopped = True
                            connection.interrupt()
                if not self._limits:
                    self._is_running = False
                    return


def _end_wait(path: Path) -> None:
    """End the wait of a thread that opens a pipe in the place of a database or of its sidecar."""
    for suffix in ("", *SIDECARS):
        with suppress(OSError):
            if stat.S_ISFIFO(os.lstat(name := f"{path}{suffix}").st_mode):
                os.close(os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC))


def _thread_clock() -> int | None:
    """Return the clock of the calling thread's processor time, where the system has one."""
    get_clock: Any = getattr(time, "pthread_getcpuclockid", None)
    return get_clock(threading.get_ident()) if get_clock else None


_watch = _Watch()


def _forget_after_fork() -> None:
    """Begin without connections and threads, which belong to the parent."""
    global _watch
    _watch = _Watch()


os.register_at_fork(after_in_child=_forget_after_fork)
