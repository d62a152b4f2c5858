"""Check a home's database: its file, its schema, its references, and its values by a callback.

The check reads one moment of the database, live or not, and writes nothing. SQLite's own integrity
check and the checks of the tables run in parallel, in two threads with connections of their own, or
in a thread and a worker process; each needs little memory.
"""

from __future__ import annotations

import functools
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypeAlias

from sagewai_ops.database.sqlite.integrity import (
    count_rows,
    decode_lossy,
    find_damage,
    open_for_check,
)
from sagewai_ops.database.sqlite.moment import open_moment
from sagewai_ops.database.sqlite.read_transaction import (
    WAIT_SECONDS,
    ReadTransaction,
    needs_other_program,
    quoted,
)
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
_WORKER_ROWS = 1000  # of a table that the worker checks: it has an answer after 0.2 ms
_SAMPLE = 8  # rows
_COLUMN_BYTES = 150  # of text that take as long as a value does
_VERSION_TABLE = "alembic_version"


class Worker(Protocol):
    """A process that has the database open too, and checks tables in the place of a thread."""

    def open(self, path: Path) -> bool:
        """Open the database, of which this process has a read transaction, if that is possible."""
        ...

    def find_damage(self) -> tuple[tuple[str, ...], dict[str, str]]:
        """Run SQLite's check; see `integrity.find_damage`."""
        ...

    def check_values(
        self,
        table: str,
        columns: Sequence[str],
        report: Callable[[Finding], None],
        on_progress: Callable[[int], None],
    ) -> None:
        """Check the values of a table and report each finding, with rowids as its examples.

        Raises:
            sqlite3.DatabaseError: It cannot be read as a whole.
        """
        ...

    def stop(self) -> None:
        """End the process; a method that waits for it fails."""
        ...

    def close(self) -> None:
        """Wait for the end of the process, and so for that of its locks."""
        ...


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
    worker: Worker | None = None,
    progress: Progress | None = None,
) -> Checked:
    """Check a home's database.

    Args:
        path: The main file; other processes may have it open and write.
        wait_seconds: For a process that has it locked exclusively.
        check_values: Called with each table; None checks no values.
        worker: Checks values as `check_values` does.
        progress: Called with `values`, in rows, from several threads.

    Raises:
        NotFoundError, DamagedError, LockedError, PermissionDeniedError: It cannot be read at all.
    """
    started = time.perf_counter()
    with open_moment(path, wait_seconds=wait_seconds) as pin:
        connection = pin.connection
        with _Threads(pin, check_values, worker, progress) as threads:
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
        pin: A read transaction that lasts as long as this.
        check_values, worker: As of `check_database`.
        progress: Called with `values`, in rows.
    """

    def __init__(
        self,
        pin: ReadTransaction,
        check_values: ValueCheck | None,
        worker: Worker | None,
        progress: Progress | None,
    ) -> None:
        self._path = pin.path
        self._connection = pin.connection
        self._check_values = check_values
        self._worker = worker
        self._can_share = False
        self._progress = progress
        self._rows: Mapping[str, int] = {}
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

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        if self._worker and (not error or error[0]):
            self._worker.stop()  # else a thread waits for it
        self._pool.shutdown(cancel_futures=True)
        if self._worker:
            self._worker.close()

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
        self._rows = rows
        self._total = sum(rows.get(table, 0) for table in present)
        # The largest first, so that the threads end together.
        sizes = {table: self._estimate_size(table, present) for table in present}
        waiting = deque(sorted(present, key=lambda table: (-sizes[table], table)))
        found: dict[str, list[Finding]] = {}
        # The second begins after SQLite's own check, which the worker runs too.
        futures = [
            self._pool.submit(self._check_waiting, waiting, present, found, worker)
            for worker in (None, self._worker)
        ]
        for future in futures:
            future.result()
        return [finding for table in sorted(present) for finding in found[table]]

    def _estimate_size(self, table: str, present: Mapping[str, sqlite_catalog.Table]) -> float:
        """Estimate the time that a table takes, in bytes, by its first rows."""
        rows, columns = self._rows.get(table, 0), present[table].columns
        if rows < _WORKER_ROWS:
            return rows
        lengths = "+".join(f"ifnull(length(CAST({quoted(name)} AS BLOB)),0)" for name in columns)
        statement = (
            f"SELECT ifnull(avg({lengths}), 0) FROM (SELECT * FROM {quoted(table)} LIMIT {_SAMPLE})"  # noqa: S608
        )
        with suppress(sqlite3.DatabaseError):
            (mean,) = self._connection.execute(statement).fetchone()
            return float(rows * (mean + _COLUMN_BYTES * len(columns)))
        return rows

    def _check_waiting(
        self,
        waiting: deque[str],
        present: Mapping[str, sqlite_catalog.Table],
        found: dict[str, list[Finding]],
        worker: Worker | None,
    ) -> None:
        """Check tables until none is left, over one connection: opening one parses the schema."""
        while waiting:
            with open_for_check(self._path, self._stop) as connection, suppress(IndexError):
                while connection.in_transaction:  # an error can end it
                    table = waiting.popleft()
                    has_many = self._rows.get(table, 0) >= _WORKER_ROWS
                    other = worker if has_many and self._can_share else None
                    found[table] = self._check_table(connection, table, present, other)

    def _check_integrity(self) -> list[Finding]:
        """Run SQLite's integrity check."""
        self._can_share = self._worker is not None and self._worker.open(self._path)
        if self._worker and self._can_share:
            messages, unchecked = self._worker.find_damage()
        else:  # a writer waits, which lets in no other process
            with open_for_check(self._path, self._stop) as connection:
                connection.text_factory = decode_lossy
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
        worker: Worker | None,
    ) -> list[Finding]:
        """Check the values and the constraints of one table."""
        tally = Tally()
        of_values: list[Finding] = []
        found: list[Finding] = []
        columns = tuple(present[table].columns)
        key = functools.partial(read_key, connection, table, present)

        def report(
            kind: str, column: str, reason: str, rows: Sequence[int], *, is_note: bool
        ) -> None:
            tally.add(kind, table, column, reason, rows, key, is_note=is_note)

        try:
            if worker:
                worker.check_values(table, columns, of_values.append, self._count)
            elif self._check_values:
                self._check_values(connection, table, columns, report, self._count)
            connection.text_factory = bytes  # keys are shown even if they are not UTF-8
            find_check_violations(connection, table, present, tally)
            found += find_duplicates(connection, table, present)
            found += find_dangling_references(connection, table, present)
        except sqlite3.DatabaseError as error:
            found.append(_unreadable(table, error))
        of_values = [
            replace(finding, examples=tuple(key(int(example)) for example in finding.examples))
            for finding in of_values
        ]
        return [*of_values, *tally.findings(), *found]

    def _count(self, rows: int) -> None:
        with self._counting:
            self._done += rows
            if self._progress:
                self._progress("values", self._done, self._total)


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
