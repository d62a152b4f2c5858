"""Copy a database that may be live, at one transaction boundary, without changing it.

Four methods, each of which makes one plain file that no other process has open:

- `bytes`: the main file and its `-wal` are read in large blocks during a read transaction, and the
  newest frame of each page in the `-wal` is written over the page of the copied file; see
  `wal.py`. Four times as fast as `pages`, because SQLite's own backup copies single pages.
- `pages`: SQLite's backup interface, in steps, inside a read transaction: without it every commit
  of another process would restart the backup. Used if shared memory cannot be locked, or its
  index is of another version.
- `compact`: `VACUUM INTO`, which rewrites every page.
- `staged`: if SQLite may not write to the source's directory (a read-only home), the files are
  copied until none of them changed during the copy, and opened in the target's directory.

All but `compact` keep every page in its place, so that stores which deduplicate blocks find them
again. Nothing here needs sqlite-vec. The copy keeps WAL in its header.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from sagewai_ops.database.sqlite.connect import SIDECARS, check_sidecars, database_uri, open_regular
from sagewai_ops.database.sqlite.page_comparison import PageComparison, open_digest
from sagewai_ops.database.sqlite.raw_copy import (
    clone,
    copy_blocks,
    copy_changed_blocks,
    copy_unlocked,
    create_private,
    header_page_size,
    open_descriptor,
)
from sagewai_ops.database.sqlite.read_transaction import (
    WAIT_SECONDS,
    NeedsStagingError,
    ReadTransaction,
    call_while_running,
    from_database_error,
    is_malformed,
    open_read_transaction,
    resolve_database,
    sidecar,
    size_of,
)
from sagewai_ops.database.sqlite.wal import apply_log, read_index
from sagewai_ops.database.sqlite.write_transaction import open_exclusive
from sagewai_ops.errors import (
    DamagedError,
    LockedError,
    NoSpaceError,
    SchemaAheadError,
    TargetBusyError,
)
from sagewai_ops.fs.trust import report as note
from sagewai_ops.progress import Progress, no_progress
from sagewai_ops.records import dataclass
from sagewai_ops.text import shell_word

STAGE = "database"

_STEP_PAGES = 2048  # 8 MiB of 4096-byte pages between two reports; fewer cost no more time
_VACUUM_STEPS = 1000  # virtual machine instructions between two reports, counted per statement


@dataclass(frozen=True, slots=True)
class DatabaseCopy:
    """A finished copy.

    Args:
        path: The copy, mode 0600, without sidecars.
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
    clone_from: Path | None = None,
    comparison: PageComparison | None = None,
    wait_seconds: float = WAIT_SECONDS,
    progress: Progress | None = None,
) -> DatabaseCopy:
    """Copy one committed state of a database, live or not, into a new file, which is not flushed.

    Args:
        source: The main file; it, its directory's names and its `-wal` do not change.
        target: Must not exist, but for a comparison; created with mode 0600, and removed on any
            failure. Its directory needs space for the copy and the `-wal`.
        compact: Rewrite every page and omit the free ones.
        clone_from: An earlier copy. Where the file system can share blocks between files, those
            that are equal are not written again; its content need not be trusted.
        comparison: With an earlier copy. Then the target is a duplicate of that one, and only
            what differs is written to it; its content need not be trusted. The comparison is
            finished if the method is `bytes`. Not together with the two before.
        wait_seconds: For another process that has the source locked exclusively.
        progress: Called with `database` and pages; an exception that it raises ends the copy.

    Raises:
        NotFoundError: The source, or the target's directory.
        TargetBusyError: The target exists.
        LockedError, DamagedError, PermissionDeniedError, NoSpaceError: The copy failed.
    """
    report = progress or no_progress
    resolved = resolve_database(source)
    check_sidecars(resolved)
    wal_bytes = size_of(sidecar(resolved, "-wal"))
    with _remove_on_failure(target, source) if comparison else _create(target, source):
        if size_of(resolved) == 0:
            _empty(target)
            method = "empty"
        elif compact:
            method = _vacuum_or_copy(resolved, target, wait_seconds, report)
        else:
            method = _copy(resolved, target, wait_seconds, report, clone_from, comparison)
        page_size, page_count = _checkpoint(resolved, target)
    return DatabaseCopy(
        path=target,
        page_size=page_size,
        page_count=page_count,
        wal_bytes=wal_bytes,
        method=method,
    )


def duplicate(source: Path, target: Path, progress: Progress | None = None) -> str:
    """Copy a file that no process writes to.

    Args:
        target: Must not exist; created with mode 0600, and removed on any failure.
        progress: Called with `database`; an exception that it raises ends it.

    Returns:
        SHA-256 of the content, in hexadecimal digits.

    Raises:
        TargetBusyError: The target exists.
        NoSpaceError, PermissionDeniedError, OpsError: It cannot be written.
    """
    report = progress or no_progress
    with _create(target, source), open_descriptor(source) as file, open_digest() as digest:
        with open(open_regular(target, os.O_RDWR), "r+b", 0) as copy:
            copy_blocks(
                file,
                copy.fileno(),
                source,
                lambda _size_bytes: report(STAGE, 0, 0),
                lambda _offset, block: digest.update(bytes(block)),
            )
        return digest.hexdigest()


@contextmanager
def attribute_damage(source: Path, copy: Path | None, *, hint: str = "") -> Iterator[None]:
    """Replace the copy by its source in errors about damage: the copy is removed before long.

    Args:
        copy: None if there is no copy.
        hint: For errors without a hint.
    """
    try:
        yield
    except DamagedError as error:
        if copy is None:
            raise
        message = error.message.replace(str(copy), str(source))
        raise DamagedError(message, hint=error.hint or hint) from error


def _copy(
    source: Path,
    target: Path,
    wait_seconds: float,
    report: Progress,
    clone_from: Path | None = None,
    comparison: PageComparison | None = None,
) -> str:
    # Closing a descriptor of a file drops SQLite's own locks on it, so ours are closed after the
    # transaction, and that of the main file is opened before it.
    with ExitStack() as kept:
        main = kept.enter_context(open_descriptor(source))
        try:
            with open_read_transaction(source, wait_seconds=wait_seconds) as reader:
                shm = _open_shm(reader, kept)
                if _can_copy_bytes(reader, shm):
                    _copy_bytes(reader, main, shm, target, report, clone_from, comparison)
                    return "bytes"
                _empty(target)
                _copy_pages(reader, target, report)
                return "pages"
        except NeedsStagingError:
            _stage(source, main, target, report)
            return "staged"


def _stage(source: Path, main: int, target: Path, report: Progress) -> None:
    size = header_page_size(main)
    copy_unlocked(source, main, target, _in_pages(report, size, os.fstat(main).st_size // size))


def _open_shm(reader: ReadTransaction, kept: ExitStack) -> int | None:
    """Open the index of the `-wal`; None where SQLite has none, or none that it can lock."""
    path = sidecar(reader.path, "-shm")
    # With shared memory that is not writable, SQLite can read without a lock.
    if reader.journal_mode != "wal" or not os.access(path, os.R_OK | os.W_OK):
        return None
    return kept.enter_context(open_descriptor(path))


def _can_copy_bytes(reader: ReadTransaction, shm: int | None) -> bool:
    if reader.journal_mode != "wal":
        return True
    return shm is not None and read_index(shm, reader.page_size) is not None


def _copy_bytes(
    reader: ReadTransaction,
    main: int,
    shm: int | None,
    target: Path,
    report: Progress,
    clone_from: Path | None,
    comparison: PageComparison | None,
) -> None:
    """Read the main file and then the `-wal`, inside the read transaction.

    The `-wal` may grow during it, so the copy may be a later commit. If the whole log was
    checkpointed before the transaction, SQLite reads the main file alone, which no process then
    changes; the next writer restarts the log, and it is read again. That happens at most once: a
    second restart would need a checkpoint during the transaction.
    """
    progress = _in_pages(report, reader.page_size, reader.page_count)
    with open(open_regular(target, os.O_RDWR), "r+b", 0) as copy:
        if comparison:
            name = reader.path
            copy_changed_blocks(main, copy.fileno(), name, progress, comparison.compare)
        elif clone_from and clone(clone_from, copy.fileno()):
            copy_changed_blocks(main, copy.fileno(), reader.path, progress)
        else:
            copy_blocks(main, copy.fileno(), reader.path, progress)
        if shm is not None:
            _apply_log(reader, shm, copy.fileno(), progress, comparison)
    if comparison:
        comparison.finish()


def _apply_log(
    reader: ReadTransaction,
    shm: int,
    copy: int,
    progress: Callable[[int], None],
    comparison: PageComparison | None,
) -> None:
    wal = sidecar(reader.path, "-wal")
    main_bytes = os.fstat(copy).st_size
    examine = comparison.replace if comparison else None
    with open_descriptor(wal) as log:
        for _ in range(3):
            index = read_index(shm, reader.page_size)
            if index and apply_log(
                index, log, copy, wal, lambda count: progress(main_bytes + count), examine
            ):
                return
    raise LockedError(f"database {reader.path}: -wal restarted during a read transaction")


def _copy_pages(reader: ReadTransaction, target: Path, report: Progress) -> None:
    def step(_status: int, remaining: int, total: int) -> None:
        report(STAGE, total - remaining, total)

    with _attribute_errors(reader.path, target), _open_copy(target) as copy:
        copy.execute("PRAGMA journal_mode=OFF")  # a failed copy is removed, not rolled back
        copy.execute("PRAGMA cache_size=-64")  # no page is read twice; a larger cache is slower
        reader.connection.backup(copy, pages=_STEP_PAGES, progress=step, sleep=0.0)


def _vacuum_or_copy(source: Path, target: Path, wait_seconds: float, report: Progress) -> str:
    """Rewrite every page, unless an index needs a function or a collation of another program."""
    try:
        _vacuum(source, target, wait_seconds, report)
    except SchemaAheadError as error:
        note(f"{error.message}: copied, not compacted")
        for suffix in SIDECARS:
            sidecar(target, suffix).unlink(missing_ok=True)
        _empty(target)
        return _copy(source, target, wait_seconds, report)
    return "compact"


def _vacuum(source: Path, target: Path, wait_seconds: float, report: Progress) -> None:
    try:
        with open_read_transaction(source, wait_seconds=wait_seconds) as reader:
            _vacuum_into(reader, target, wait_seconds, report)
    except NeedsStagingError:
        scratch = target.with_name(target.name + ".staged")
        with _create(scratch, source), open_descriptor(source) as main:
            _stage(source, main, scratch, report)
            _checkpoint(source, scratch)
            with open_read_transaction(scratch) as reader:
                _vacuum_into(reader, target, wait_seconds, report)
            scratch.unlink()


def _vacuum_into(
    reader: ReadTransaction, target: Path, wait_seconds: float, report: Progress
) -> None:
    def callback() -> None:
        total = reader.page_count
        report(STAGE, min(size_of(target) // reader.page_size, total), total)

    connection = reader.connection
    with _attribute_errors(reader.path, target):
        connection.execute("COMMIT")  # VACUUM opens a read transaction of its own
        connection.execute(f"PRAGMA busy_timeout={int(wait_seconds * 1000)}")
        connection.execute("PRAGMA synchronous=OFF")  # the target inherits
        with call_while_running(connection, callback, _VACUUM_STEPS):
            connection.execute("VACUUM INTO ?", (database_uri(target),))
        if reader.journal_mode == "wal":
            with _open_copy(target) as copy:
                copy.execute("PRAGMA journal_mode=WAL")


def _checkpoint(source: Path, target: Path) -> tuple[int, int]:
    """Apply the copy's `-wal` or journal, and leave one file of whole pages.

    Returns:
        The page size in bytes, and the number of pages.
    """
    with _attribute_errors(source, target), _open_copy(target) as copy:
        page_size = int(copy.execute("PRAGMA page_size").fetchone()[0])
        copy.execute("PRAGMA schema_version").fetchone()  # rolls a hot journal back
        page_count = None
        try:
            copy.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            page_count = int(copy.execute("PRAGMA page_count").fetchone()[0])
        except sqlite3.DatabaseError as error:
            if not is_malformed(error):
                raise
            # Both read the schema, which is damaged; closing checkpoints the -wal without it.
    if size_of(sidecar(target, "-wal")):
        raise DamagedError(f"database {source}: -wal could not be checkpointed")
    for suffix in SIDECARS:
        sidecar(target, suffix).unlink(missing_ok=True)
    if page_count is None:
        return page_size, size_of(target) // page_size
    with open(open_regular(target, os.O_RDWR), "r+b", 0) as copy:
        copy.truncate(page_size * page_count)  # it may be longer than its pages
    return page_size, page_count


@contextmanager
def _open_copy(target: Path) -> Iterator[sqlite3.Connection]:
    """Open the copy, whose content is not flushed."""
    with open_exclusive(target) as connection:
        with suppress(sqlite3.DatabaseError):  # it reads the schema, which may be damaged
            connection.execute("PRAGMA synchronous=OFF")
        yield connection


def _in_pages(report: Progress, page_size: int, total: int) -> Callable[[int], None]:
    def report_bytes(size_bytes: int) -> None:
        report(STAGE, min(size_bytes // page_size, total), total)

    return report_bytes


@contextmanager
def _create(target: Path, source: Path) -> Iterator[None]:
    """Create the target; if the block fails, remove it and its sidecars."""
    try:
        with create_private(target):
            pass
    except FileExistsError as error:
        raise TargetBusyError(f"copy {target}: exists") from error
    except OSError as error:
        raise from_database_error(error, target) from error
    with _remove_on_failure(target, source):
        yield


@contextmanager
def _remove_on_failure(target: Path, source: Path) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        for suffix in ("", *SIDECARS):
            with suppress(OSError):
                sidecar(target, suffix).unlink()
        if isinstance(error, OSError):
            failure = from_database_error(error, target)
            if isinstance(failure, NoSpaceError):
                failure = _no_space(source, target, failure)
            raise failure from error
        raise


def _empty(target: Path) -> None:
    os.truncate(target, 0)  # noqa: TID251 - created by this run, in a private directory


def _no_space(source: Path, target: Path, failure: NoSpaceError) -> NoSpaceError:
    """Return the error about a copy; the directory of this run that it is in is removed."""
    reason = failure.message.removeprefix(f"database {target}: ")
    place = target.parent.parent
    return NoSpaceError(
        f"database {source}, its copy {target}: {reason}",
        hint=f"df -h {shell_word(place)}; ulimit -f  # or another directory: --work-dir DIR",
    )


@contextmanager
def _attribute_errors(source: Path, target: Path) -> Iterator[None]:
    """Turn errors of SQLite into errors that name the copy if a disk is full, else the source."""
    try:
        yield
    except sqlite3.Error as error:
        failure = from_database_error(error, target)
        if isinstance(failure, NoSpaceError):
            raise _no_space(source, target, failure) from error
        raise from_database_error(error, source) from error
