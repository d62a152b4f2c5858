"""Copy a database that may be live, at one transaction boundary, without changing it.

Four ways, all ending in one plain file that nobody else has open:

- `bytes`: the main file and its `-wal` are read in large blocks while a read transaction is
  pinned, and SQLite folds the copied `-wal` into the copied file. While the pin holds, nobody
  folds newer pages into the main file and nobody overwrites what the pin sees of the `-wal`
  (wal.html, "Checkpointing"), so the pair is a state that was committed. Four times as fast as
  the next, because SQLite's own backup moves single pages.
- `pages`: SQLite's backup interface over the pinned connection, in steps. Without the pin every
  commit of another process would start it over. Taken where the `-wal` is large, or locks on
  shared memory cannot be had.
- `compact`: `VACUUM INTO`, which rewrites every page.
- `staged`: where SQLite may not write beside the source (a read-only home), the files are read
  until none of them changed meanwhile, and opened in the target's directory.

The first two and the last keep every page where it is, so that stores which deduplicate blocks
find them again. Nothing here needs sqlite-vec. The copy keeps WAL in its header.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sagewai_ops.database.sqlite.raw_copy import (
    copy_log,
    header_page_size,
    opened,
    pour,
    private_file,
    stage,
)
from sagewai_ops.database.sqlite.read_transaction import (
    SIDECARS,
    WAIT_SECONDS,
    NeedsStagingError,
    ReadTransaction,
    call_while_running,
    database_uri,
    from_database_error,
    is_malformed,
    open_read_transaction,
    resolve_database,
    sidecar,
    size_of,
)
from sagewai_ops.database.sqlite.write_transaction import open_exclusive
from sagewai_ops.errors import (
    DamagedError,
    LockedError,
    NoSpaceError,
    TargetBusyError,
)
from sagewai_ops.progress import Progress

STAGE = "database"

_STEP_PAGES = 2048  # 8 MiB of 4096-byte pages between two reports; finer costs nothing either
_WAL_SHARE = 3  # `bytes` while the main file is at least this many times its -wal: folding costs
_VACUUM_STEPS = 1000  # virtual machine instructions between two looks, counted per statement


@dataclass(frozen=True, slots=True)
class DatabaseCopy:
    """A finished copy.

    Args:
        path: The copy, mode 0600, with nothing beside it.
        page_size: Bytes.
        page_count: Pages; the copy is exactly page_size * page_count bytes.
        wal_bytes: Size of the source's `-wal` when the copy began.
        method: `bytes`, `pages`, `compact` or `staged`; `empty` for a database of no pages.
    """

    path: Path
    page_size: int
    page_count: int
    wal_bytes: int
    method: str


def copy_database(
    source: Path,
    target: Path,
    *,
    compact: bool = False,
    durable: bool = True,
    wait_seconds: float = WAIT_SECONDS,
    progress: Progress | None = None,
) -> DatabaseCopy:
    """Copy one committed state of a database, live or not, into a new file.

    Args:
        source: The main file; it, its directory's names and its `-wal` stay as they are.
        target: Must not exist; created with mode 0600, and removed on any failure. Its directory
            needs room for the copy and the `-wal`.
        compact: Rewrite every page and leave the free ones out.
        durable: Flush the copy and its name to the disk. A copy that a crash may lose, because
            it is read at once and removed, need not pay for that.
        wait_seconds: How long another process may hold the source exclusively.
        progress: Told `database` and pages; an exception that it raises ends the copy.

    Raises:
        NotFoundError: The source, or the target's directory.
        TargetBusyError: The target exists.
        LockedError, DamagedError, PermissionDeniedError, NoSpaceError: As they say.
    """
    report = progress or _silent
    resolved = resolve_database(source)
    wal_bytes = size_of(sidecar(resolved, "-wal"))
    with _created(target):
        if size_of(resolved) == 0:
            method = "empty"
        elif compact:
            _vacuum(resolved, target, wait_seconds, report)
            method = "compact"
        else:
            method = _copy(resolved, target, wait_seconds, report)
        page_size, page_count = _settle(resolved, target)
        if durable:
            _flush(target)
    return DatabaseCopy(
        path=target,
        page_size=page_size,
        page_count=page_count,
        wal_bytes=wal_bytes,
        method=method,
    )


@contextmanager
def attribute_damage(source: Path, copy: Path | None, *, hint: str = "") -> Iterator[None]:
    """Let damage that is met in a copy be told of its source: the copy is gone when it is read.

    Args:
        copy: None where there is none.
        hint: Where the damage has none of its own.
    """
    try:
        yield
    except DamagedError as error:
        if copy is None:
            raise
        message = error.message.replace(str(copy), str(source))
        raise DamagedError(message, hint=error.hint or hint) from error


def _copy(source: Path, target: Path, wait_seconds: float, report: Progress) -> str:
    # SQLite's own locks on the source die with any descriptor of it that this process closes, so
    # ours is opened before the pin and closed after it.
    with opened(source) as main:
        try:
            with open_read_transaction(source, wait_seconds=wait_seconds) as pin:
                if _bytes_are_safe(pin):
                    _copy_bytes(pin, main, target, report)
                    return "bytes"
                _copy_pages(pin, target, report)
                return "pages"
        except NeedsStagingError:
            _stage(source, main, target, report)
            return "staged"


def _stage(source: Path, main: int, target: Path, report: Progress) -> None:
    size = header_page_size(main)
    stage(source, main, target, _in_pages(report, size, os.fstat(main).st_size // size))


def _bytes_are_safe(pin: ReadTransaction) -> bool:
    if size_of(sidecar(pin.path, "-wal")) * _WAL_SHARE > pin.page_size * pin.page_count:
        return False
    # Over shared memory that it may only read, SQLite can be reading without a lock.
    return pin.journal_mode != "wal" or os.access(sidecar(pin.path, "-shm"), os.W_OK)


def _copy_bytes(pin: ReadTransaction, main: int, target: Path, report: Progress) -> None:
    """Read the main file and then the `-wal` under the pin.

    The `-wal` may grow meanwhile; a half-written frame fails its checksum and ends the log at a
    commit that is later than the pin's, which is as good. If all of the log was folded in before
    the pin, the next writer starts it over, header first, and it is read again. That happens at
    most once: to start over a second time, pages would have to be folded in under the pin.
    """
    with open(target, "r+b", buffering=0) as copy:
        pour(main, copy.fileno(), pin.path, _in_pages(report, pin.page_size, pin.page_count))
    if pin.journal_mode != "wal":
        return
    for _ in range(3):
        if copy_log(sidecar(pin.path, "-wal"), sidecar(target, "-wal")):
            return
    raise LockedError(f"database {pin.path}: its -wal was started over under a read transaction")


def _copy_pages(pin: ReadTransaction, target: Path, report: Progress) -> None:
    def step(_status: int, remaining: int, total: int) -> None:
        report(STAGE, total - remaining, total)

    with _blamed(pin.path, target), _open_copy(target) as copy:
        copy.execute("PRAGMA journal_mode=OFF")  # a failed copy is removed, not rolled back
        copy.execute("PRAGMA cache_size=-64")  # pages only pass through; larger is slower
        pin.connection.backup(copy, pages=_STEP_PAGES, progress=step, sleep=0.0)


def _vacuum(source: Path, target: Path, wait_seconds: float, report: Progress) -> None:
    try:
        with open_read_transaction(source, wait_seconds=wait_seconds) as pin:
            _vacuum_into(pin, target, wait_seconds, report)
    except NeedsStagingError:
        scratch = target.with_name(target.name + ".staged")
        with _created(scratch), opened(source) as main:
            _stage(source, main, scratch, report)
            _settle(source, scratch)
            with open_read_transaction(scratch) as pin:
                _vacuum_into(pin, target, wait_seconds, report)
            scratch.unlink()


def _vacuum_into(pin: ReadTransaction, target: Path, wait_seconds: float, report: Progress) -> None:
    def look() -> None:
        report(STAGE, min(size_of(target) // pin.page_size, pin.page_count), pin.page_count)

    with _blamed(pin.path, target):
        pin.connection.execute("COMMIT")  # VACUUM opens a read transaction of its own
        pin.connection.execute(f"PRAGMA busy_timeout={int(wait_seconds * 1000)}")
        pin.connection.execute("PRAGMA synchronous=OFF")  # `durable` decides; the target inherits
        with call_while_running(pin.connection, look, _VACUUM_STEPS):
            pin.connection.execute("VACUUM INTO ?", (database_uri(target),))
        if pin.journal_mode == "wal":
            with _open_copy(target) as copy:
                copy.execute("PRAGMA journal_mode=WAL")


def _settle(source: Path, target: Path) -> tuple[int, int]:
    """Fold in what lies beside the copy, and leave one file of whole pages."""
    with _blamed(source, target), _open_copy(target) as copy:
        page_size = int(copy.execute("PRAGMA page_size").fetchone()[0])
        copy.execute("PRAGMA schema_version").fetchone()  # rolls a hot journal back
        page_count = None
        try:
            copy.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            page_count = int(copy.execute("PRAGMA page_count").fetchone()[0])
        except sqlite3.DatabaseError as error:
            if not is_malformed(error):
                raise
            # Both read the schema, which is damaged; closing folds the -wal in without it.
    if size_of(sidecar(target, "-wal")):
        raise DamagedError(f"database {source}: its -wal could not be folded in")
    for suffix in SIDECARS:
        sidecar(target, suffix).unlink(missing_ok=True)
    if page_count is None:
        return page_size, size_of(target) // page_size
    os.truncate(target, page_size * page_count)  # a main file may be longer than its pages
    return page_size, page_count


@contextmanager
def _open_copy(target: Path) -> Iterator[sqlite3.Connection]:
    """Open our own copy, where exclusive locking spares the shared memory file."""
    with open_exclusive(target) as connection:
        with suppress(sqlite3.DatabaseError):  # it reads the schema, which may be damaged
            connection.execute("PRAGMA synchronous=OFF")  # flushed once, at the end
        yield connection


def _in_pages(report: Progress, page_size: int, total: int) -> Callable[[int], None]:
    def told(size_bytes: int) -> None:
        report(STAGE, min(size_bytes // page_size, total), total)

    return told


def _silent(_name: str, _done: int, _total: int) -> None:
    return


@contextmanager
def _created(target: Path) -> Iterator[None]:
    """Create the target, and remove it with all that SQLite puts beside it unless all went well."""
    try:
        with private_file(target):
            pass
    except FileExistsError as error:
        raise TargetBusyError(f"copy {target}: exists already") from error
    except OSError as error:
        raise from_database_error(error, target) from error
    try:
        yield
    except BaseException as error:
        for suffix in ("", *SIDECARS):
            with suppress(OSError):
                sidecar(target, suffix).unlink()
        if isinstance(error, OSError):
            raise from_database_error(error, target) from error
        raise


@contextmanager
def _blamed(source: Path, target: Path) -> Iterator[None]:
    """Name the file that an error of SQLite is about: only the target can fill a disk."""
    try:
        yield
    except sqlite3.Error as error:
        failure = from_database_error(error, source)
        raise (
            from_database_error(error, target) if isinstance(failure, NoSpaceError) else failure
        ) from error


def _flush(target: Path) -> None:
    for path in (target, target.parent):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
