"""Check the database of a snapshot; a manifest records the result."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import replace
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
    """The properties of a database that no process uses, and its damage.

    Attributes:
        page_size: Bytes.
        schema_level: Newest revision whose tables and columns are all present; "" if none.
        schema_state: `Level.state` of `schema.sqlite_revision`.
        integrity: Problems that SQLite reports; empty if undamaged, in a record `ok`.
        foreign_key_violations: Number of rows with a broken reference.
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

    @property
    def is_sound(self) -> bool:
        """Whether the checks found nothing."""
        return not self.integrity and not self.foreign_key_violations

    @property
    def record(self) -> "DatabaseFacts":
        """What a manifest and JSON have of it: the first problems, or `ok`."""
        return replace(
            self,
            integrity=self.integrity[:_SHOWN] or _SOUND,
            foreign_key_tables=self.foreign_key_tables[:_SHOWN],
        )

    def differences(self, recorded: Mapping[str, Any]) -> list[str]:
        """Compare with the facts of a manifest; return one phrase for each difference."""
        known = recorded.get("tables", {})
        found = [
            f"{table} has {self.tables.get(table, 'no')} rows, not {known.get(table, 'any')}"
            for table in sorted({*known, *self.tables})
            if known.get(table) != self.tables.get(table)
        ]
        if (self.integrity == ()) != (tuple(recorded.get("integrity", ())) == _SOUND):
            found.append(f"integrity check: {'; '.join(self.integrity[:1]) or 'ok'}")
        return found


def recorded_report(facts: Mapping[str, Any]) -> DatabaseFacts | None:
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
    return replace(found, integrity=()) if found.integrity == _SOUND else None


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


def dated(report: DatabaseFacts, now: datetime, last: str) -> DatabaseFacts:
    """Return a report with the time of the last full check: now, or `last`."""
    at = f"{now:%Y-%m-%dT%H:%M:%SZ}" if report.check == "full" else last
    return replace(report, full_check_at=at)


def examine_database(
    path: Path, progress: Progress | None = None, check: Check = "full"
) -> DatabaseFacts:
    """Check a database that no other process uses.

    Raises:
        DamagedError: It cannot be read.
    """
    level = read_schema_level(path)
    health = check_integrity(path, is_quick=check == "quick", progress=progress)
    return DatabaseFacts(
        page_size=health.page_size,
        page_count=health.page_count,
        schema_level=level.revision,
        schema_state=level.state,
        unknown_tables=level.unknown_tables,
        integrity=health.integrity,
        foreign_key_violations=health.foreign_key_total,
        foreign_key_tables=tuple(sorted({violation.table for violation in health.foreign_keys})),
        tables=health.counts,
        check=check,
    )


@contextlib.contextmanager
def examination_thread() -> Iterator[Callable[[Path, Check], "Future[DatabaseFacts]"]]:
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
