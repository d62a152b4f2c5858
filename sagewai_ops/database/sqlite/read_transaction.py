"""Read a database that may be live at one moment, without changing a byte of it.

`open_read_transaction` holds a read transaction: SQLite then lets no process overwrite the pages
that it reads, however many others commit. The connection has `mode=ro`, because a read-write one
that happens to be the last to close moves the `-wal` into the main file. A read-only one never
does, but leaves an empty `-wal` and a `-shm` where there were none, so these are removed, under the
lock that SQLite itself takes to remove them. An existing `-shm` may be rewritten: it is scratch
memory that SQLite rebuilds. Nothing else in the home changes but the mtime of its directory.

Closing any descriptor of a database drops this process's POSIX locks on it: during a read
transaction nothing else in the process may open and close that file.
"""

import errno
import fcntl
import os
import re
import resource
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from sagewai_ops.database.sqlite.connect import (
    SIDECARS,
    describe_limit,
    has_locks,
    is_stopped,
    open_connection,
    open_regular,
    stored_bytes,
)
from sagewai_ops.errors import (
    DamagedError,
    LockedError,
    NoSpaceError,
    NotFoundError,
    OpsError,
    PermissionDeniedError,
    SchemaAheadError,
)
from sagewai_ops.process.malloc import zeroed_allocations
from sagewai_ops.records import dataclass
from sagewai_ops.text import shell_word

Answer = TypeVar("Answer")

MAGIC = b"SQLite format 3\0"  # the first bytes of every database with at least one page
WAIT_SECONDS = 30.0  # for a lock; Sagewai's own writers time out after 5 seconds (busy_timeout)

HOSTILE_HINT = "sagewai-ops db check  # names views, triggers and other objects of the schema"

_FULL = "no space left on its file system"
_NO_SPACE = {
    errno.EDQUOT: "disk quota exceeded",
    errno.EFBIG: "larger than the limit of the size of files (ulimit -f, or of its file system)",
}
_WRITES = ("SQLITE_IOERR_WRITE", "SQLITE_IOERR_TRUNCATE", "SQLITE_IOERR_SHMSIZE")
_FOREIGN = re.compile(
    r"unknown function: |no such function: |no such collation sequence: |no such module: "
    r"|unsafe use of |no query solution"
)
_SHM_BYTES = 32 * 1024  # by which SQLite lengthens a -shm
_PAUSE_SECONDS = 0.01
_ROWS = 256  # fetched at a time
SLICE_SECONDS = 0.25  # one wait inside SQLite, where no signal is handled
# Where SQLite keeps its locks in the main file (fileformat2.html, os.h): pending byte, reserved
# byte, then 510 shared bytes. A write lock on the shared bytes excludes every other connection.
PENDING_BYTE = 0x40000000
SHARED_FIRST = PENDING_BYTE + 2
SHARED_SIZE = 510

_open_here: set[Path] = set()  # the end of a second transaction would drop the locks of the first


class NeedsStagingError(PermissionDeniedError):
    """SQLite cannot read this database in place, because it may not write to its directory.

    Copy the files to a private directory and open them there.
    """


@dataclass(frozen=True, slots=True)
class ReadTransaction:
    """An open read transaction on a database.

    Args:
        connection: In a read transaction, read-only; no other statement may end it.
        path: The main file, symlinks resolved: SQLite looks for the sidecars in its directory.
        page_size: Bytes.
        page_count: Pages at this moment; 0 for an empty database.
        journal_mode: `wal`, or the rollback mode in use.
    """

    connection: sqlite3.Connection
    path: Path
    page_size: int
    page_count: int
    journal_mode: str


def sidecar(path: Path, suffix: str) -> Path:
    """Return the path of a database's `-wal`, `-shm` or `-journal` file."""
    return path.with_name(path.name + suffix)


def resolve_database(path: Path) -> Path:
    """Resolve symlinks to a database's main file, and refuse files that SQLite must not open.

    Raises:
        NotFoundError: There is no such file.
        DamagedError: It is not a regular file; or it is empty and its `-wal` is not, which SQLite
            would delete on opening the database, even read-only.
        PermissionDeniedError: It is not readable.
    """
    resolved = Path(os.path.realpath(path))
    try:
        size_bytes = resolved.stat().st_size
    except OSError as error:
        raise from_database_error(error, path) from error
    if not resolved.is_file():
        raise DamagedError(f"database {path}: not a regular file")
    if not os.access(resolved, os.R_OK):
        raise PermissionDeniedError(f"database {path}: not readable by uid {os.geteuid()}")
    if size_bytes == 0 and (wal_bytes := size_of(sidecar(resolved, "-wal"))):
        wal = sidecar(resolved, "-wal")
        raise DamagedError(
            f"database {path}: empty, but its -wal has {wal_bytes} bytes, which SQLite deletes"
            " when it opens the database",
            hint=f"cp {shell_word(wal)} {shell_word(wal)}.copy",
        )
    return resolved


@contextmanager
def open_read_transaction(
    path: Path, *, wait_seconds: float = WAIT_SECONDS
) -> Iterator[ReadTransaction]:
    """Open a database, live or not, in a read transaction that lasts as long as the block.

    Errors of SQLite inside the block become errors that name the database.

    Args:
        path: The main file.
        wait_seconds: For another process that has it locked exclusively.

    Raises:
        NotFoundError, PermissionDeniedError, LockedError: The database cannot be opened.
        NeedsStagingError: SQLite would have to write to its directory and may not.
        DamagedError: Not an SQLite database, truncated, or unreadable.
    """
    resolved = resolve_database(path)
    if resolved in _open_here:
        raise RuntimeError(f"database {path}: a second read transaction in one process")
    absent = tuple(suffix for suffix in ("-wal", "-shm") if not sidecar(resolved, suffix).exists())
    creates = absent and os.access(resolved.parent, os.W_OK) and _is_wal(resolved)
    if creates and not os.access(resolved, os.W_OK):
        # We could not take the lock under which the sidecars are removed, so create none.
        raise NeedsStagingError(f"database {path}: not writable by uid {os.geteuid()}")
    if not has_locks(resolved):
        raise NeedsStagingError(f"database {path}: its file system has no locks")
    _open_here.add(resolved)
    try:
        with (
            translate_errors(path),
            closing(open_reader(resolved, path, time.monotonic() + wait_seconds)) as connection,
        ):
            yield _describe(connection, resolved)
    finally:
        _open_here.discard(resolved)
        if absent:
            _remove_sidecars(resolved, absent)


@contextmanager
def open_frozen(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a database that no process writes to, read-only and without sidecar files.

    Raises:
        OpsError: SQLite cannot open or read it.
    """
    with translate_errors(path), closing(open_connection(path, is_immutable=True)) as connection:
        yield connection


def open_reader(resolved: Path, name: Path, deadline: float) -> sqlite3.Connection:
    """Open a database read-only, in a read transaction; closing it never removes a `-wal`.

    Args:
        resolved: The main file, from `resolve_database`.
        name: Of the database in errors.
        deadline: Of `time.monotonic`, for another process that has it locked exclusively.

    Raises:
        LockedError, NeedsStagingError, NoSpaceError, DamagedError: See `open_read_transaction`.
    """
    return retry_while_locked(lambda: _begin(resolved), name, deadline)


def retry_while_locked(attempt: Callable[[], Answer], name: Path, deadline: float) -> Answer:
    """Repeat an attempt until no other process has the database locked.

    Args:
        attempt: Waits at most a slice of a second itself.
        name: Of the database in errors.
        deadline: Of `time.monotonic`.

    Raises:
        LockedError: It was locked until the deadline.
        OpsError: SQLite failed for another reason, see `from_database_error`.
    """
    while True:
        try:
            return attempt()
        except sqlite3.Error as error:
            failure = from_database_error(error, name)
            if not isinstance(failure, LockedError) or time.monotonic() >= deadline:
                raise failure from error
        time.sleep(_PAUSE_SECONDS)  # some failures come at once


@contextmanager
def call_while_running(
    connection: sqlite3.Connection, callback: Callable[[], None], steps: int
) -> Iterator[None]:
    """Call a function while statements run; what it raises interrupts them and is raised here.

    Without this a signal is handled only after the statement, which may take minutes.

    Args:
        connection: Runs the statements of the block.
        callback: Cheap.
        steps: Virtual machine instructions between two calls; a million take some 10 ms.
    """
    raised: list[BaseException] = []

    def handler() -> bool:
        try:
            callback()
        except BaseException as error:  # noqa: BLE001 (SQLite would swallow it)
            raised.append(error)
        return bool(raised)

    connection.set_progress_handler(handler, steps)
    try:
        yield
    except sqlite3.Error as error:
        if not raised and str(error) == "interrupted":
            if is_stopped(connection):
                raise
            raise KeyboardInterrupt from error  # the signal came before `handler` was inside `try`
        if not raised:
            raise
    finally:
        connection.set_progress_handler(None, 0)
    if raised:
        raise raised[0]


@contextmanager
def translate_errors(path: Path) -> Iterator[None]:
    """Turn errors of SQLite inside the block into errors that name the database."""
    try:
        yield
    except sqlite3.Error as error:
        raise from_database_error(error, path) from error
    except MemoryError as error:  # also SQLite's, at its limit
        raise DamagedError(f"database {path}: needs more memory than its size allows") from error


def from_database_error(error: OSError | sqlite3.Error, path: Path) -> OpsError:
    """Return the error of ours for a failure on a database's file."""
    text = str(error)
    name = f"database {path}"
    if isinstance(error, OSError):
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            return _no_space(name, _NO_SPACE.get(error.errno, _FULL))
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            return NotFoundError(f"{name}: not found", hint="sagewai-ops --home DIR status")
        if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
            return PermissionDeniedError(f"{name}: {error.strerror}")
        if error.errno == errno.EIO:
            return DamagedError(f"{name}: input/output error", hint="dmesg | tail")
        return OpsError(f"{name}: {error.strerror or text}")
    # By message: Python 3.10 does not report SQLite's code. The texts are those of sqlite3ErrStr.
    if "locked" in text or "locking protocol" in text:
        return LockedError(f"{name}: locked by another process", hint="sagewai-ops status")
    if "is full" in text:
        return NoSpaceError(f"{name}: {_FULL}")
    if "unable to open" in text or "readonly" in text:
        return NeedsStagingError(f"{name}: {text}")
    if text == "interrupted":
        return DamagedError(f"{name}: {describe_limit(path)}", hint=HOSTILE_HINT)
    if text == "not authorized" or text.endswith("is prohibited"):
        return DamagedError(
            f"{name}: a view or a trigger in the place of a table, or on one; not run",
            hint=HOSTILE_HINT,
        )
    if "disk I/O error" in text:
        if reason := why_full(path, error):
            return _no_space(name, reason)
        if pipe := next(filter(_is_pipe, (path, *(sidecar(path, end) for end in SIDECARS))), None):
            return DamagedError(f"{name}: {pipe.name} is a pipe", hint=f"ls -l {shell_word(pipe)}")
        return DamagedError(f"{name}: input/output error", hint="dmesg | tail")
    if needs_other_program(text):
        return SchemaAheadError(
            f"{name}: {text}, which another program has", hint="sagewai-ops db check"
        )
    return DamagedError(f"{name}: {text}")


def _no_space(name: str, reason: str) -> NoSpaceError:
    is_limit = reason == _NO_SPACE[errno.EFBIG]
    return NoSpaceError(f"{name}: {reason}", hint="ulimit -f unlimited" if is_limit else "")


def _is_pipe(path: Path) -> bool:
    with suppress(OSError):
        return stat.S_ISFIFO(os.lstat(path).st_mode)
    return False


def why_full(path: Path, error: sqlite3.Error) -> str:
    """Return why SQLite could not write to a file, if that is a lack of space; "" if it is not.

    SQLite reports a quota, a limit of the size of files, and a `-shm` that cannot be lengthened as
    an input/output error.
    """
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY and limit < 2 * stored_bytes(path) + _SHM_BYTES:
        return _NO_SPACE[errno.EFBIG]
    with suppress(OSError):
        system = os.statvfs(os.path.dirname(os.path.realpath(path)))
        if system.f_blocks > 0 and system.f_bavail * system.f_frsize < _SHM_BYTES:
            return _FULL
    # Python 3.11 and later. Whatever the reason is, no read failed.
    if getattr(error, "sqlite_errorname", "") in _WRITES:
        return "not writable any further: a quota, a limit of its file system, or a failing disk"
    return ""


def needs_other_program(text: str) -> bool:
    """Return whether an error of SQLite is about a function, collation or module that it lacks.

    An index or a column of another program's table can need one; that is no damage.
    """
    return bool(_FOREIGN.match(text))


def is_malformed(error: sqlite3.Error) -> bool:
    """Return whether a database is damaged, as opposed to a file that is not a database."""
    return "malformed" in str(error)


def quoted(name: str) -> str:
    """Quote an identifier for SQL."""
    return '"' + name.replace('"', '""') + '"'


def quoted_text(text: str) -> str:
    """Quote a text for SQL."""
    return "'" + text.replace("'", "''") + "'"


def text_of(value: object) -> str | None:
    """Decode a text, whatever the connection's text factory."""
    if isinstance(value, (bytes, bytearray)):
        return value.decode("utf-8", "surrogateescape")
    return None if value is None else str(value)


def in_utf8(column: str) -> str:
    """Return the SQL of a value for `utf8_rows`: texts and numbers in UTF-8, blobs unchanged."""
    return f"CASE typeof({column}) WHEN 'blob' THEN {column} ELSE CAST({column} AS TEXT) END"


def utf8_rows(
    connection: sqlite3.Connection, statement: str, parameters: tuple[object, ...] = ()
) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a query with texts as bytes of UTF-8, valid or not.

    A cast to a blob would return the database's own encoding, which may be UTF-16.
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
    connection = open_connection(resolved, timeout=SLICE_SECONDS)
    try:
        # Reading the cookie starts the transaction without parsing a schema that this SQLite may
        # not understand.
        with zeroed_allocations():
            connection.execute("BEGIN")
            connection.execute("PRAGMA schema_version").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def _describe(connection: sqlite3.Connection, resolved: Path) -> ReadTransaction:
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
    return ReadTransaction(connection, resolved, int(page_size), int(page_count), str(journal_mode))


def _is_wal(resolved: Path) -> bool:
    """Read the two version bytes of the header; only while nothing here has the file open."""
    with open(open_regular(resolved), "rb") as file:
        header = file.read(20)
    return header[18:20] == b"\x02\x02"


def _remove_sidecars(resolved: Path, absent: tuple[str, ...]) -> None:
    """Remove the sidecars that our own connection created, unless another process uses them."""
    created = [sidecar(resolved, suffix) for suffix in absent if sidecar(resolved, suffix).exists()]
    if not created:
        return
    # Locked by another process, or no longer writable: leave them.
    with suppress(OSError), open(open_regular(resolved, os.O_RDWR), "r+b", 0) as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, SHARED_SIZE, SHARED_FIRST)
        for path in created:
            # A -wal that is not empty was written by a process that has ended since.
            if path.name.endswith("-shm") or size_of(path) == 0:
                path.unlink(missing_ok=True)
