"""Check a home's database: its file, its schema, its references, and its values by a callback.

The check reads one moment of the database, live or not, and writes nothing. SQLite's own integrity
check and the checks of the tables run in parallel, in two threads with connections of their own;
each needs little memory.
"""

from __future__ import annotations

import functools
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

from sagewai_ops.database.sqlite.connect import open_connection
from sagewai_ops.database.sqlite.integrity import count_rows, find_damage
from sagewai_ops.database.sqlite.moment import open_moment
from sagewai_ops.database.sqlite.read_transaction import WAIT_SECONDS, needs_other_program
from sagewai_ops.database.sqlite.schema_objects import find_unexpected
from sagewai_ops.process.threads import ThreadPool
from sagewai_ops.progress import Progress
from sagewai_ops.records import dataclass
from sagewai_ops.schema import sqlite_catalog, sqlite_head
from sagewai_ops.schema.constraints import (
    find_check_violations,
    find_dangling_references,
    find_duplicates,
    read_key,
)
from sagewai_ops.schema.drift import drift_of
from sagewai_ops.schema.findings import Finding, Tally
from sagewai_ops.schema.sqlite_revision import Level, read_level

# Checks the values of a table: connection, table, columns, where to report rows, and progress.
ValueCheck: TypeAlias = Callable[
    [sqlite3.Connection, str, Sequence[str], Callable[..., None], Callable[[int], None]], None
]

_THREADS = 2  # SQLite runs without Python's lock; more connections need more memory
_CACHE_KIB = 8000  # for each connection
_STEPS = 20_000_000  # virtual machine instructions between two checks of the stop flag, some 0.2 s
_VERSION_TABLE = "alembic_version"


@dataclass(frozen=True, slots=True)
class Checked:
    """The result of a check.

    Attributes:
        findings: Everything that is wrong; empty if nothing is.
        notes: Values that an export to PostgreSQL converts without loss.
        rows: By table, the user's own included.
        page_size: Bytes.
        free_pages: Of `pages`, those without content.
        unknown_tables: The user's own; included in copies of the file, and not exported.
    """

    level: Level
    findings: tuple[Finding, ...]
    notes: tuple[Finding, ...]
    rows: Mapping[str, int]
    page_size: int
    pages: int
    free_pages: int
    unknown_tables: tuple[str, ...]
    virtual_tables: tuple[str, ...]
    seconds: float


def check_database(
    path: Path,
    *,
    wait_seconds: float = WAIT_SECONDS,
    check_values: ValueCheck | None = None,
    progress: Progress | None = None,
) -> Checked:
    """Check a home's database.

    Args:
        path: The main file; other processes may have it open and write.
        wait_seconds: For a process that has it locked exclusively.
        check_values: Called with each table; None checks no values.
        progress: Called with `values`, in rows, from several threads.

    Raises:
        NotFoundError, DamagedError, LockedError, PermissionDeniedError: It cannot be read at all.
    """
    started = time.perf_counter()
    with open_moment(path, wait_seconds=wait_seconds) as pin:
        connection = pin.connection
        with _Threads(pin.path, check_values, progress) as threads:
            level = read_level(connection)
            rows = count_rows(connection)
            (free_pages,) = connection.execute("PRAGMA freelist_count").fetchone()
            present = sqlite_catalog.read_tables(connection, sqlite_catalog.expected())
            schema = [*_check_schema(connection, level, present)]
            of_tables = threads.check_tables(present, rows)
            found = [*threads.wait_for_integrity(), *schema, *of_tables]
    return Checked(
        level,
        tuple(finding for finding in found if not finding.is_note),
        tuple(finding for finding in found if finding.is_note),
        rows,
        pin.page_size,
        pin.page_count,
        int(free_pages),
        level.unknown_tables,
        level.virtual_tables,
        time.perf_counter() - started,
    )


def _check_schema(
    connection: sqlite3.Connection, level: Level, present: Mapping[str, sqlite_catalog.Table]
) -> Iterator[Finding]:
    if level.state == "behind":
        yield Finding("level", "", "", f"is behind, at {level.revision or 'no revision'}")
    elif level.state != "current":
        yield Finding("level", "", "", f"is {level.state}")
    if _VERSION_TABLE in level.unknown_tables:
        reason = "exists, though Alembic never runs on SQLite: another tool ran it"
        yield Finding("level", _VERSION_TABLE, "", reason)
    for item in find_unexpected(connection, sqlite_head.tables()):
        yield Finding("drift", item.table, "", item.reason)
    if level.state == "empty":
        return
    for drift in drift_of(present):
        reason = drift.shown.partition(": ")[2]
        yield Finding("drift", drift.table, drift.name, reason)


class _Threads:
    """Two threads that check one database; the end of the block stops them.

    SQLite's own check begins at once.

    Args:
        path: The main file, symlinks resolved; pinned while this lives.
        check_values: As of `check_database`.
        progress: Called with `values`, in rows.
    """

    def __init__(
        self, path: Path, check_values: ValueCheck | None, progress: Progress | None
    ) -> None:
        self._path = path
        self._check_values = check_values
        self._progress = progress
        self._total = 0
        self._done = 0
        self._counting = threading.Lock()
        self._stop = threading.Event()
        self._pool = ThreadPool(_THREADS, thread_name_prefix="check")

    def __enter__(self) -> _Threads:  # noqa: PYI034 - typing has no Self before Python 3.11
        try:
            self._integrity = self._pool.submit(self._check_integrity)
        except BaseException:  # a signal: the end of the block is not reached
            self.__exit__()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)

    def wait_for_integrity(self) -> list[Finding]:
        """Return SQLite's own findings."""
        return self._integrity.result()

    def check_tables(
        self, present: Mapping[str, sqlite_catalog.Table], rows: Mapping[str, int]
    ) -> list[Finding]:
        """Return the findings of all rows, table by table.

        Args:
            present: The tables.
            rows: The number of rows of each.
        """
        self._total = sum(rows.get(table, 0) for table in present)
        # The largest first, so that the threads end together.
        waiting = deque(sorted(present, key=lambda table: (-rows.get(table, 0), table)))
        found: dict[str, list[Finding]] = {}
        workers = [
            self._pool.submit(self._check_waiting, waiting, present, found) for _ in range(_THREADS)
        ]
        for worker in workers:
            worker.result()
        return [finding for table in sorted(present) for finding in found[table]]

    def _check_waiting(
        self,
        waiting: deque[str],
        present: Mapping[str, sqlite_catalog.Table],
        found: dict[str, list[Finding]],
    ) -> None:
        """Check tables until none is left, over one connection: opening one parses the schema."""
        while waiting:
            with self._connection() as connection, suppress(IndexError):
                while connection.in_transaction:  # an error can end it
                    table = waiting.popleft()
                    found[table] = self._check_table(connection, table, present)

    def _check_integrity(self) -> list[Finding]:
        """Run SQLite's integrity check."""
        with self._connection() as connection:
            connection.text_factory = _decode
            messages, unchecked = find_damage(connection, self._path)
        return [
            *(Finding("integrity", "", "", message) for message in messages),
            *(_cannot_be_checked(table, reason) for table, reason in unchecked.items()),
        ]

    def _check_table(
        self,
        connection: sqlite3.Connection,
        table: str,
        present: Mapping[str, sqlite_catalog.Table],
    ) -> list[Finding]:
        """Check the values and the constraints of one table."""
        tally = Tally()
        found: list[Finding] = []
        key = functools.partial(read_key, connection, table, present)

        def report(
            kind: str, column: str, reason: str, rows: Sequence[int], *, is_note: bool
        ) -> None:
            tally.add(kind, table, column, reason, rows, key, is_note=is_note)

        try:
            if self._check_values:
                columns = tuple(present[table].columns)
                self._check_values(connection, table, columns, report, self._count)
            connection.text_factory = bytes  # keys are shown even if they are not UTF-8
            find_check_violations(connection, table, present, tally)
            found += find_duplicates(connection, table, present)
            found += find_dangling_references(connection, table, present)
        except sqlite3.DatabaseError as error:
            found.append(_unreadable(table, error))
        return [*tally.findings(), *found]

    def _count(self, rows: int) -> None:
        with self._counting:
            self._done += rows
            if self._progress:
                self._progress("values", self._done, self._total)

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        # Opened after the pin, and by SQLite alone: it knows the locks of all connections.
        with closing(open_connection(self._path)) as connection:
            connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            connection.set_progress_handler(self._stop.is_set, _STEPS)
            connection.execute("BEGIN")
            yield connection


def _unreadable(table: str, error: sqlite3.DatabaseError) -> Finding:
    """Return a finding about a table that could not be read whole; re-raise an interruption."""
    if str(error) == "interrupted":  # on request, or at the limit of processor time
        raise error
    if "no such column: _rowid_" in str(error):
        return Finding("drift", table, "", "is WITHOUT ROWID, so its values were not read")
    if needs_other_program(str(error)):
        return _cannot_be_checked(table, str(error))
    return Finding("integrity", table, "", f"not readable as a whole, {error}")


def _cannot_be_checked(table: str, reason: object) -> Finding:
    """Return the note about a table of which another program has a function or collation."""
    text = f"cannot be checked, {reason}; only its pages are checked"
    return Finding("unchecked", table, "", text, is_note=True)


def _decode(value: bytes) -> str:
    return value.decode("utf-8", "replace")
