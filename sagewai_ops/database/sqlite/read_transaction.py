"""Open a database that may be live, without changing a byte of it, and hold one moment of it.

A *pinned* connection holds a read transaction: SQLite lets nobody fold newer pages over what it
sees, however many others commit. It is opened with `mode=ro`, because a read-write handle that
happens to close last moves the `-wal` into the main file; a read-only one never does, but leaves
an empty `-wal` and a `-shm` behind where there were none, so those are removed again, under the
lock that SQLite itself takes before it removes them. An existing `-shm` may be rewritten: it is
scratch memory that SQLite rebuilds. Nothing else of the home changes, but its directory's mtime.

Closing any descriptor of a database drops this process's POSIX locks on it: while a database is
pinned, nothing else in the process may open and close that file.
"""

import errno
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from sagewai_ops.errors import (
    DamagedError,
    LockedError,
    NoSpaceError,
    NotFoundError,
    OpsError,
    PermissionDeniedError,
)
from sagewai_ops.process.malloc import blank_blocks

Answer = TypeVar("Answer")

MAGIC = b"SQLite format 3\0"  # how every database of at least one page begins
WAIT_SECONDS = 30.0  # for a lock; Sagewai's own writers give up after 5 seconds (busy_timeout)
SIDECARS = ("-wal", "-shm", "-journal")

_SHM_BYTES = 32 * 1024  # by which SQLite lengthens a -shm
_PAUSE_SECONDS = 0.01
_ROWS = 256  # fetched at a time
SLICE_SECONDS = 0.25  # one wait inside SQLite, where no signal is handled
# Where SQLite keeps its locks in the main file (fileformat2.html, os.h): pending byte, reserved
# byte, then 510 shared bytes. A write lock on the shared bytes excludes every other connection.
PENDING_BYTE = 0x40000000
SHARED_FIRST = PENDING_BYTE + 2
SHARED_SIZE = 510

_pinned_here: set[Path] = set()  # a second one's end would drop the first one's locks


class NeedsStagingError(PermissionDeniedError):
    """SQLite cannot read this database where it lies: it may not write beside it.

    The way out is to copy the files to a directory of one's own and to open those.
    """


@dataclass(frozen=True, slots=True)
class Pinned:
    """A database held at one moment.

    Args:
        connection: In a read transaction, read-only; no other statement may end it.
        path: The main file, symlinks resolved: SQLite looks for the sidecars beside this.
        page_size: Bytes.
        page_count: Pages at this moment; 0 for an empty database.
        journal_mode: `wal`, or the rollback mode in use.
    """

    connection: sqlite3.Connection
    path: Path
    page_size: int
    page_count: int
    journal_mode: str


def database_uri(path: Path, **parameters: str) -> str:
    """Name a file for `sqlite3.connect(..., uri=True)`, whatever bytes its path is made of."""
    absolute = os.fsencode(os.path.abspath(path))
    query = "&".join(f"{name}={value}" for name, value in parameters.items())
    return f"file://{quote(absolute)}" + (f"?{query}" if query else "")


def sidecar(path: Path, suffix: str) -> Path:
    """Name the file beside a database whose name ends in `-wal`, `-shm` or `-journal`."""
    return path.with_name(path.name + suffix)


def resolve_database(path: Path) -> Path:
    """Follow symlinks to a database's main file and refuse what SQLite must not be shown.

    Raises:
        NotFoundError: There is no such file.
        DamagedError: It is not a regular file; or it is empty beside a `-wal` with content, which
            SQLite would delete at the first look, even read-only.
        PermissionDeniedError: It may not be read.
    """
    resolved = Path(os.path.realpath(path))
    try:
        size_bytes = resolved.stat().st_size
    except OSError as error:
        raise translate(error, path) from error
    if not resolved.is_file():
        raise DamagedError(f"database {path}: not a regular file")
    if not os.access(resolved, os.R_OK):
        raise PermissionDeniedError(f"database {path}: may not be read by uid {os.geteuid()}")
    if size_bytes == 0 and (wal_bytes := size_of(sidecar(resolved, "-wal"))):
        raise DamagedError(
            f"database {path}: empty, but its -wal holds {wal_bytes} bytes",
            hint=f"copy {resolved}-wal away first: SQLite deletes it when it opens the database",
        )
    return resolved


@contextmanager
def pinned(path: Path, *, wait_seconds: float = WAIT_SECONDS) -> Iterator[Pinned]:
    """Hold one moment of a database, live or not, for as long as the block runs.

    Args:
        path: The main file.
        wait_seconds: How long another process may hold it exclusively before we give up.

    Raises:
        NotFoundError, PermissionDeniedError, LockedError: As they say.
        NeedsStagingError: SQLite would have to write beside the file and may not.
        DamagedError: Not an SQLite database, cut short, or unreadable.
    """
    resolved = resolve_database(path)
    if resolved in _pinned_here:
        raise RuntimeError(f"database {path}: pinned twice at once in one process")
    absent = tuple(suffix for suffix in ("-wal", "-shm") if not sidecar(resolved, suffix).exists())
    litters = absent and os.access(resolved.parent, os.W_OK) and _is_wal(resolved)
    if litters and not os.access(resolved, os.W_OK):
        # We could not take the lock under which the litter is removed, so make none.
        raise NeedsStagingError(f"database {path}: may not be written by uid {os.geteuid()}")
    _pinned_here.add(resolved)
    try:
        with closing(open_reader(resolved, path, time.monotonic() + wait_seconds)) as connection:
            yield _describe(connection, resolved, path)
    finally:
        _pinned_here.discard(resolved)
        if absent:
            _remove_litter(resolved, absent)


def open_reader(resolved: Path, shown: Path, deadline: float) -> sqlite3.Connection:
    """Open a database read-only, in a read transaction; closing it never removes a `-wal`.

    Args:
        resolved: The main file, as `resolve_database` gives it.
        shown: Its name in errors.
        deadline: Of `time.monotonic`, for another process that holds it exclusively.

    Raises:
        LockedError, NeedsStagingError, NoSpaceError, DamagedError: As `pinned` raises them.
    """
    return when_free(lambda: _begin(resolved), shown, deadline)


def when_free(attempt: Callable[[], Answer], shown: Path, deadline: float) -> Answer:
    """Do what SQLite refuses while another process holds the database, as soon as it does not.

    Args:
        attempt: Waits at most a slice of a second itself.
        shown: The database's name in errors.
        deadline: Of `time.monotonic`.

    Raises:
        LockedError: It was held all the time.
        OpsError: SQLite refused for another reason, as `translate` tells it.
    """
    while True:
        try:
            return attempt()
        except sqlite3.Error as error:
            failure = translate(error, shown)
            if not isinstance(failure, LockedError) or time.monotonic() >= deadline:
                raise failure from error
        time.sleep(_PAUSE_SECONDS)  # some refusals come at once


@contextmanager
def watched(connection: sqlite3.Connection, look: Callable[[], None], steps: int) -> Iterator[None]:
    """Call `look` while statements run; what it raises ends the statement and comes out here.

    Without this a signal is handled only after the statement, which may take minutes.

    Args:
        connection: Runs the statements of the block.
        look: Cheap.
        steps: Virtual machine instructions between two calls; a million take some 10 ms.
    """
    raised: list[BaseException] = []

    def handler() -> bool:
        try:
            look()
        except BaseException as error:  # noqa: BLE001 (SQLite would swallow it)
            raised.append(error)
        return bool(raised)

    connection.set_progress_handler(handler, steps)
    try:
        yield
    except sqlite3.Error as error:
        if not raised and str(error) == "interrupted":
            raise KeyboardInterrupt from error  # the signal came before `handler` was inside `try`
        if not raised:
            raise
    finally:
        connection.set_progress_handler(None, 0)
    if raised:
        raise raised[0]


def translate(error: OSError | sqlite3.Error, path: Path) -> OpsError:
    """Say what a failure on a database's file means to the person who ran the command."""
    text = str(error)
    name = f"database {path}"
    if isinstance(error, OSError):
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return NoSpaceError(f"{name}: no space left on its file system")
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            return NotFoundError(
                f"{name}: not found", hint="name the home with --home DIR: sagewai-ops status"
            )
        if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
            return PermissionDeniedError(f"{name}: {error.strerror}")
        if error.errno == errno.EIO:
            return DamagedError(f"{name}: input/output error", hint="dmesg | tail")
        return OpsError(f"{name}: {error.strerror or text}")
    # By message: Python 3.10 does not give SQLite's code. The texts are those of sqlite3ErrStr.
    if "locked" in text or "locking protocol" in text:
        return LockedError(
            f"{name}: held exclusively by another process",
            hint="see which: sagewai-ops status  # then run this again",
        )
    if "is full" in text:
        return NoSpaceError(f"{name}: no space left on its file system")
    if "unable to open" in text or "readonly" in text:
        return NeedsStagingError(f"{name}: {text}")
    if "disk I/O error" in text:
        if _is_full(path):  # SQLite says so when it cannot lengthen a -shm
            return NoSpaceError(f"{name}: no space left on its file system")
        return DamagedError(f"{name}: input/output error", hint="dmesg | tail")
    return DamagedError(f"{name}: {text}")


def _is_full(path: Path) -> bool:
    try:
        system = os.statvfs(os.path.dirname(os.path.realpath(path)))
    except OSError:
        return False
    return system.f_blocks > 0 and system.f_bavail * system.f_frsize < _SHM_BYTES


def is_malformed(error: sqlite3.Error) -> bool:
    """Tell damage within a database from a file that is none."""
    return "malformed" in str(error)


def quoted(name: str) -> str:
    """Quote an identifier for an SQL text of SQLite."""
    return '"' + name.replace('"', '""') + '"'


def in_utf8(column: str) -> str:
    """Spell a value for `utf8_rows`: texts and numbers in UTF-8, a blob's bytes as they are."""
    return f"CASE typeof({column}) WHEN 'blob' THEN {column} ELSE CAST({column} AS TEXT) END"


def utf8_rows(
    connection: sqlite3.Connection, statement: str, parameters: tuple[object, ...] = ()
) -> Iterator[tuple[Any, ...]]:
    """Yield a query's rows with texts as bytes of UTF-8, valid or not.

    A cast to a blob would give those of the database's own encoding, which may be UTF-16.
    """
    cursor: sqlite3.Cursor | None = None
    rows: list[tuple[Any, ...]] = []
    while cursor is None or rows:
        before, connection.text_factory = connection.text_factory, bytes
        try:
            cursor = cursor or connection.execute(statement, parameters)
            rows = cursor.fetchmany(_ROWS)
        finally:
            connection.text_factory = before
        yield from rows


def size_of(path: Path) -> int:
    """Return the size in bytes, 0 where there is no such file."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _begin(resolved: Path) -> sqlite3.Connection:
    uri = database_uri(resolved, mode="ro")
    connection = sqlite3.connect(uri, uri=True, timeout=SLICE_SECONDS, isolation_level=None)
    try:
        # Reading the cookie starts the transaction without parsing a schema that this SQLite may
        # not understand.
        with blank_blocks():
            connection.execute("BEGIN")
            connection.execute("PRAGMA schema_version").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def _describe(connection: sqlite3.Connection, resolved: Path, shown: Path) -> Pinned:
    try:
        (page_size,) = connection.execute("PRAGMA page_size").fetchone()
        try:
            (page_count,) = connection.execute("PRAGMA page_count").fetchone()
            (journal_mode,) = connection.execute("PRAGMA journal_mode").fetchone()
        except sqlite3.DatabaseError as error:
            page_count = size_of(resolved) // page_size
            if not is_malformed(error) or not page_count:
                raise
            # These two read the schema, which is damaged. The pages can still be copied.
            journal_mode = "wal" if sidecar(resolved, "-wal").exists() else "delete"
    except sqlite3.Error as error:
        raise translate(error, shown) from error
    return Pinned(connection, resolved, int(page_size), int(page_count), str(journal_mode))


def _is_wal(resolved: Path) -> bool:
    """Read the two version bytes of the header; only while nothing here has the file open."""
    with resolved.open("rb") as file:
        header = file.read(20)
    return header[18:20] == b"\x02\x02"


def _remove_litter(resolved: Path, absent: tuple[str, ...]) -> None:
    """Remove the sidecars that our own look created, if nobody uses them by now."""
    litter = [sidecar(resolved, suffix) for suffix in absent if sidecar(resolved, suffix).exists()]
    if not litter:
        return
    with suppress(OSError):  # somebody else has it open, or took our rights: theirs now
        descriptor = os.open(resolved, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, SHARED_SIZE, SHARED_FIRST)
            for path in litter:
                # A -wal with content belongs to somebody who came and went meanwhile.
                if path.name.endswith("-shm") or size_of(path) == 0:
                    path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)
