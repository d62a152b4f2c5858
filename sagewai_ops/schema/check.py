"""Check a home's database: its file, its schema, and every value on its way to PostgreSQL.

It reads one moment of the database, live or not, and writes nothing. SQLite's own integrity check
runs beside the scan of the values, in a thread and on a connection of its own; both hold little.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sagewai_ops.database.integrity import count_rows
from sagewai_ops.database.source import WAIT_SECONDS, Pinned, database_uri, pinned
from sagewai_ops.database.writing import translated
from sagewai_ops.progress import Progress
from sagewai_ops.schema import sqlite_facts
from sagewai_ops.schema.constraints import broken_checks, dangling_references, duplicates
from sagewai_ops.schema.drift import find_drift
from sagewai_ops.schema.findings import Finding, Tally
from sagewai_ops.schema.level import Level, read_level
from sagewai_ops.schema.scan import plan_scan, reading_bytes, scan_table

if TYPE_CHECKING:
    from sqlalchemy import Table

_SENTENCES = 100  # of the integrity check; more of them say nothing new
_CACHE_KIB = 8000  # for each of the two connections
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
        progress: Told `values`, in rows.

    Raises:
        NotFoundError, DamagedError, LockedError, PermissionDeniedError: It cannot be read at all.
    """
    started = time.perf_counter()
    with pinned(path, wait_seconds=wait_seconds) as pin, translated(path):
        connection = pin.connection
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        level = read_level(connection)
        with _integrity(pin) as integrity:
            rows = count_rows(connection)
            (free_pages,) = connection.execute("PRAGMA freelist_count").fetchone()
            found = [*_of_schema(connection, level), *_of_rows(connection, rows, progress)]
            damage = integrity()
    return Checked(
        level,
        (*damage, *found),
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


def _of_rows(
    connection: sqlite3.Connection, rows: Mapping[str, int], progress: Progress | None
) -> Iterator[Finding]:
    from sagewai_ops.schema.tables import metadata

    present = sqlite_facts.read_tables(connection, metadata.tables)
    total = sum(rows.get(table, 0) for table in present)
    done = 0

    def scanned(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress("values", done, total)

    for table in metadata.sorted_tables:
        if table.name not in present:
            continue
        plan = plan_scan(table, tuple(present[table.name].columns))
        tally = Tally()
        try:
            with _bytes(connection):
                scan_table(connection, plan, tally, scanned)
            broken_checks(connection, table, plan, tally)
            yield from tally.findings()
            yield from duplicates(connection, table, present)
            yield from dangling_references(connection, table.name, plan, present)
        except sqlite3.DatabaseError as error:
            yield from tally.findings()
            yield _unread(table, error)


def _unread(table: Table, error: sqlite3.DatabaseError) -> Finding:
    """Say that a table could not be read to its end; a stop that was asked for is none."""
    if str(error) == "interrupted":
        raise error
    if "no such column: _rowid_" in str(error):
        return Finding("drift", table.name, "", "is WITHOUT ROWID, so its values were not read")
    return Finding("integrity", table.name, "", f"cannot be read to its end, {error}")


@contextmanager
def _bytes(connection: sqlite3.Connection) -> Iterator[None]:
    before = connection.text_factory
    reading_bytes(connection)
    try:
        yield
    finally:
        connection.text_factory = before


@contextmanager
def _integrity(pin: Pinned) -> Iterator[Callable[[], tuple[Finding, ...]]]:
    """Run SQLite's integrity check beside the block; what is given waits for its answer."""
    uri = database_uri(pin.path, mode="ro")
    stop = threading.Event()
    with (
        # Opened after the pin, and by SQLite alone: it knows of the locks of both connections.
        closing(
            sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
        ) as connection,
        ThreadPoolExecutor(1, thread_name_prefix="integrity") as pool,
    ):
        connection.set_progress_handler(stop.is_set, _STEPS)
        running = pool.submit(_damage, connection)
        try:
            yield running.result
        finally:
            stop.set()


def _damage(connection: sqlite3.Connection) -> tuple[Finding, ...]:
    connection.text_factory = _legible
    connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    found: list[str] = []
    try:
        for (sentence,) in connection.execute(f"PRAGMA integrity_check({_SENTENCES})"):
            found.append(str(sentence))
    except sqlite3.DatabaseError as error:
        found.append(str(error))  # damage that the check itself stumbles over
    return tuple(Finding("integrity", "", "", said) for said in found if said != "ok")


def _legible(value: bytes) -> str:
    return value.decode("utf-8", "replace")
