"""Check a home's database: its file, its schema, and every value on its way to PostgreSQL.

It reads one moment of the database, live or not, and writes nothing. SQLite's own integrity check
and the scans of the tables run side by side, in two threads with connections of their own; each
holds little.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sagewai_ops.database.sqlite.integrity import count_rows
from sagewai_ops.database.sqlite.read_transaction import (
    WAIT_SECONDS,
    database_uri,
    open_read_transaction,
)
from sagewai_ops.progress import Progress
from sagewai_ops.schema import sqlite_catalog
from sagewai_ops.schema.constraints import broken_checks, dangling_references, duplicates
from sagewai_ops.schema.drift import find_drift
from sagewai_ops.schema.findings import Finding, Tally
from sagewai_ops.schema.scan import cuts_at_nul, plan_scan, reading_bytes, scan_table
from sagewai_ops.schema.sqlite_revision import Level, read_level

if TYPE_CHECKING:
    from sqlalchemy import Table

_THREADS = 2  # SQLite runs outside of Python's lock; more connections hold more memory
_SENTENCES = 100  # of the integrity check; more of them say nothing new
_CACHE_KIB = 8000  # for each connection
_STEPS = 20_000_000  # virtual machine instructions between two looks at whether to stop, some 0.2 s
_VERSION_TABLE = "alembic_version"


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check found.

    Attributes:
        findings: Everything that is wrong; empty if all is well.
        rows: By table, the user's own among them.
        page_size: Bytes.
        free_pages: Of `pages`, those that hold nothing.
        unknown_tables: The user's own; kept wherever the database goes as a file, and not carried
            to PostgreSQL.
    """

    level: Level
    findings: tuple[Finding, ...]
    rows: Mapping[str, int]
    page_size: int
    pages: int
    free_pages: int
    unknown_tables: tuple[str, ...]
    virtual_tables: tuple[str, ...]
    seconds: float


def check_database(
    path: Path, *, wait_seconds: float = WAIT_SECONDS, progress: Progress | None = None
) -> Checked:
    """Check a home's database.

    Args:
        path: The main file; others may have it open and write.
        wait_seconds: For a process that holds it exclusively.
        progress: Told `values`, in rows, from several threads.

    Raises:
        NotFoundError, DamagedError, LockedError, PermissionDeniedError: It cannot be read at all.
    """
    started = time.perf_counter()
    with open_read_transaction(path, wait_seconds=wait_seconds) as pin:
        connection = pin.connection
        with _Work(pin.path, progress) as work:
            level = read_level(connection)
            rows = count_rows(connection)
            (free_pages,) = connection.execute("PRAGMA freelist_count").fetchone()
            schema = [*_of_schema(connection, level)]
            present = sqlite_catalog.read_tables(connection, sqlite_catalog.expected())
            of_rows = work.scan(present, rows)
            found = [*work.damage(), *schema, *of_rows]
    return Checked(
        level,
        tuple(found),
        rows,
        pin.page_size,
        pin.page_count,
        int(free_pages),
        level.unknown_tables,
        level.virtual_tables,
        time.perf_counter() - started,
    )


def _of_schema(connection: sqlite3.Connection, level: Level) -> Iterator[Finding]:
    if level.state == "behind":
        yield Finding("level", "", "", f"is behind, at {level.revision or 'no revision'}")
    elif level.state != "current":
        yield Finding("level", "", "", f"is {level.state}")
    if _VERSION_TABLE in level.unknown_tables:
        reason = "is here, though Alembic never runs on SQLite: another tool tried to"
        yield Finding("level", _VERSION_TABLE, "", reason)
    if level.state == "empty":
        return
    for drift in find_drift(connection):
        reason = drift.shown.partition(": ")[2]
        yield Finding("drift", drift.table, drift.name, reason)


class _Work:
    """The two threads' work on one database, and what stops it: the end of the block.

    SQLite's own check begins at once, beside whatever the caller does.

    Args:
        path: The main file, symlinks resolved; pinned while this lives.
        progress: Told `values`, in rows.
    """

    def __init__(self, path: Path, progress: Progress | None) -> None:
        self._path = path
        self._progress = progress
        self._total = 0
        self._done = 0
        self._counting = threading.Lock()
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="check")

    def __enter__(self) -> _Work:  # noqa: PYI034 - typing has no Self before Python 3.11
        self._damaged = self._pool.submit(self._damage)
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)

    def damage(self) -> list[Finding]:
        """Wait for SQLite's own findings."""
        return self._damaged.result()

    def scan(
        self, present: Mapping[str, sqlite_catalog.Table], rows: Mapping[str, int]
    ) -> list[Finding]:
        """Give the findings of the rows, table by table.

        Args:
            present: The tables.
            rows: How many rows each has.
        """
        from sagewai_ops.schema.tables import metadata

        self._total = sum(rows.get(table, 0) for table in present)
        tables = [table for table in metadata.sorted_tables if table.name in present]
        # The largest first, so that the threads end together.
        scans: dict[str, Future[list[Finding]]] = {
            table.name: self._pool.submit(self._scan, table, present)
            for table in sorted(tables, key=lambda table: -rows.get(table.name, 0))
        }
        return [finding for table in tables for finding in scans[table.name].result()]

    def _damage(self) -> list[Finding]:
        """Run SQLite's integrity check."""
        said: list[str] = []
        with self._connection() as connection:
            connection.text_factory = _legible
            try:
                for (sentence,) in connection.execute(f"PRAGMA integrity_check({_SENTENCES})"):
                    said.append(str(sentence))
            except sqlite3.DatabaseError as error:
                said.append(str(error))  # damage that the check itself stumbles over
        return [Finding("integrity", "", "", sentence) for sentence in said if sentence != "ok"]

    def _scan(self, table: Table, present: Mapping[str, sqlite_catalog.Table]) -> list[Finding]:
        """Judge the values of one table, and try its constraints."""
        tally = Tally()
        found: list[Finding] = []
        with self._connection() as connection:
            columns = tuple(present[table.name].columns)
            plan = plan_scan(table, columns, cut_at_nul=cuts_at_nul(connection))
            try:
                scan_table(reading_bytes(connection), plan, tally, self._scanned)
                connection.text_factory = str
                broken_checks(connection, table, plan, tally)
                found += duplicates(connection, table, present)
                found += dangling_references(connection, table.name, plan, present)
            except sqlite3.DatabaseError as error:
                found.append(_unread(table, error))
        return [*tally.findings(), *found]

    def _scanned(self, count: int) -> None:
        with self._counting:
            self._done += count
            if self._progress:
                self._progress("values", self._done, self._total)

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        # Opened after the pin, and by SQLite alone: it knows of the locks of all connections.
        uri = database_uri(self._path, mode="ro")
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
            connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            connection.set_progress_handler(self._stop.is_set, _STEPS)
            connection.execute("BEGIN")
            yield connection


def _unread(table: Table, error: sqlite3.DatabaseError) -> Finding:
    """Say that a table could not be read to its end; a stop that was asked for is none."""
    if str(error) == "interrupted":
        raise error
    if "no such column: _rowid_" in str(error):
        return Finding("drift", table.name, "", "is WITHOUT ROWID, so its values were not read")
    return Finding("integrity", table.name, "", f"cannot be read to its end, {error}")


def _legible(value: bytes) -> str:
    return value.decode("utf-8", "replace")
