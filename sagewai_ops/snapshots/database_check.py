"""Check the database of a snapshot; a manifest records the result."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from sagewai_ops.database.sqlite.integrity import check_integrity
from sagewai_ops.database.sqlite.read_transaction import open_frozen
from sagewai_ops.process.threads import ThreadPool
from sagewai_ops.progress import Progress
from sagewai_ops.records import dataclass
from sagewai_ops.schema.sqlite_revision import Level, read_level

_SHOWN = 20  # violations and findings that a manifest lists
_SOUND = ("ok",)
# A backup checks a database whole where the last time is longer ago, else quickly.
FULL_CHECK_EVERY = timedelta(days=7)

Check = Literal["full", "quick"]


@dataclass(frozen=True, slots=True)
class DatabaseFacts:
    """The record of a `DatabaseReport` in a manifest and in JSON.

    Attributes:
        integrity: Problems that SQLite reports, the first ones; else `ok`.
        tables: Rows of each.
        check: Whether the indexes were compared with their tables (`full`), or not (`quick`).
        full_check_at: UTC, when the database of the home was last checked whole, at this snapshot
            or before; "" if that is not known.
    """

    page_size: int
    page_count: int
    schema_level: str
    schema_state: str
    unknown_tables: tuple[str, ...]
    integrity: tuple[str, ...]
    foreign_key_violations: int
    foreign_key_tables: tuple[str, ...]
    tables: Mapping[str, int]
    check: Check = "full"
    full_check_at: str = ""


@dataclass(frozen=True, slots=True)
class DatabaseReport:
    """The properties of a database that no process uses, and its damage.

    Attributes:
        page_size: Bytes.
        schema_level: Newest revision whose tables and columns are all present; "" if none.
        schema_state: `Level.state` of `schema.sqlite_revision`.
        integrity: Problems that SQLite reports; empty if undamaged.
        foreign_key_violations: Number of rows with a broken reference.
        counts: Rows of each table.
        check, full_check_at: As `DatabaseFacts` has them.
    """

    page_size: int
    page_count: int
    schema_level: str
    schema_state: str
    unknown_tables: tuple[str, ...]
    integrity: tuple[str, ...]
    foreign_key_violations: int
    foreign_key_tables: tuple[str, ...]
    counts: Mapping[str, int] = field(default_factory=dict)
    check: Check = "full"
    full_check_at: str = ""

    @property
    def is_sound(self) -> bool:
        """Whether the checks found nothing."""
        return not self.integrity and not self.foreign_key_violations

    @property
    def facts(self) -> DatabaseFacts:
        """The record for a manifest."""
        return DatabaseFacts(
            page_size=self.page_size,
            page_count=self.page_count,
            schema_level=self.schema_level,
            schema_state=self.schema_state,
            unknown_tables=self.unknown_tables,
            integrity=self.integrity[:_SHOWN] or _SOUND,
            foreign_key_violations=self.foreign_key_violations,
            foreign_key_tables=self.foreign_key_tables[:_SHOWN],
            tables=dict(self.counts),
            check=self.check,
            full_check_at=self.full_check_at,
        )

    def differences(self, recorded: Mapping[str, Any]) -> list[str]:
        """Compare with the facts of a manifest; return one phrase for each difference."""
        known = recorded.get("tables", {})
        found = [
            f"{table} has {self.counts.get(table, 'no')} rows, not {known.get(table, 'any')}"
            for table in sorted({*known, *self.counts})
            if known.get(table) != self.counts.get(table)
        ]
        if (self.integrity == ()) != (tuple(recorded.get("integrity", ())) == _SOUND):
            found.append(f"integrity check: {'; '.join(self.integrity[:1]) or 'ok'}")
        return found


def recorded_report(facts: Mapping[str, Any]) -> DatabaseReport | None:
    """Return what the manifest of a snapshot records of the check when it was created.

    Args:
        facts: Of an authentic manifest, whose hash the database has.

    Returns:
        None if it records damage, or nothing that can be read: then the database is to be checked.
    """
    import msgspec

    try:
        found = msgspec.convert(facts.get("database"), DatabaseFacts)
    except msgspec.ValidationError:
        return None
    if found.integrity != _SOUND:
        return None
    return DatabaseReport(
        page_size=found.page_size,
        page_count=found.page_count,
        schema_level=found.schema_level,
        schema_state=found.schema_state,
        unknown_tables=found.unknown_tables,
        integrity=(),
        foreign_key_violations=found.foreign_key_violations,
        foreign_key_tables=found.foreign_key_tables,
        counts=found.tables,
        check=found.check,
        full_check_at=found.full_check_at,
    )


def next_check(last: str, now: datetime) -> Check:
    """Return how the database of a home is to be checked when a snapshot is created.

    Args:
        last: When it was last checked whole; "" if that is not known.
        now: UTC.
    """
    try:
        age = now - datetime.fromisoformat(last.replace("Z", "+00:00"))
    except (ValueError, TypeError, OverflowError):
        return "full"
    return "quick" if timedelta(0) <= age < FULL_CHECK_EVERY else "full"


def dated(report: DatabaseReport, now: datetime, last: str) -> DatabaseReport:
    """Return a report with the time of the last full check: now, or `last`."""
    at = f"{now:%Y-%m-%dT%H:%M:%SZ}" if report.check == "full" else last
    return replace(report, full_check_at=at)


def examine_database(
    path: Path, progress: Progress | None = None, check: Check = "full"
) -> DatabaseReport:
    """Check a database that no other process uses.

    Raises:
        DamagedError: It cannot be read.
    """
    level = read_schema_level(path)
    health = check_integrity(path, is_quick=check == "quick", progress=progress)
    return DatabaseReport(
        page_size=health.page_size,
        page_count=health.page_count,
        schema_level=level.revision,
        schema_state=level.state,
        unknown_tables=level.unknown_tables,
        integrity=health.integrity,
        foreign_key_violations=health.foreign_key_total,
        foreign_key_tables=tuple(sorted({violation.table for violation in health.foreign_keys})),
        counts=health.counts,
        check=check,
    )


@contextlib.contextmanager
def examination_thread() -> Iterator[Callable[[Path, Check], "Future[DatabaseReport]"]]:
    """Yield a function that checks a database in a thread; a failure of the block stops it."""
    stopping = threading.Event()

    def stop_if_failed(_stage: str, _done: int, _total: int) -> None:
        if stopping.is_set():
            raise _StoppedError

    with ThreadPool(1, thread_name_prefix="examine") as pool:
        try:
            yield lambda path, check: pool.submit(examine_database, path, stop_if_failed, check)
        except BaseException:
            stopping.set()  # a large database takes minutes, and signals end the run at once
            raise


class _StoppedError(Exception):
    """The block that needs the result has failed."""


def read_schema_level(path: Path) -> Level:
    """Read the schema level of a database that no process uses, without changing the file.

    Raises:
        DamagedError: It is not a SQLite database.
    """
    with open_frozen(path) as connection:
        return read_level(connection)
