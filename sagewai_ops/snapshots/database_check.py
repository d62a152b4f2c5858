"""What is proved of a snapshot's data, and how a manifest records it."""

import contextlib
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sagewai_ops.database.sqlite.integrity import Health, check_integrity
from sagewai_ops.database.sqlite.read_transaction import open_frozen
from sagewai_ops.progress import Progress
from sagewai_ops.schema.sqlite_revision import Level, read_level

_SHOWN = 20  # violations and findings that a manifest lists


@dataclass(frozen=True, slots=True)
class DatabaseReport:
    """A database at rest: its shape, its schema's level and what is wrong with it.

    Attributes:
        page_count: Pages of `page_size` bytes.
        schema_level: Newest revision whose tables and columns are all there; "" if none.
        schema_state: As `schema.level` tells it.
        integrity: What SQLite found wrong; empty if nothing.
        foreign_key_violations: How many rows refer to nothing.
        counts: Rows of each table.
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

    @property
    def is_sound(self) -> bool:
        """Whether the checks found nothing."""
        return not self.integrity and not self.foreign_key_violations

    def as_dict(self) -> dict[str, Any]:
        """Give what a manifest records."""
        return {
            "page_size": self.page_size,
            "page_count": self.page_count,
            "schema_level": self.schema_level,
            "schema_state": self.schema_state,
            "unknown_tables": list(self.unknown_tables),
            "integrity": list(self.integrity[:_SHOWN]) or ["ok"],
            "foreign_key_violations": self.foreign_key_violations,
            "foreign_key_tables": list(self.foreign_key_tables[:_SHOWN]),
            "tables": dict(self.counts),
        }

    def differences(self, recorded: Mapping[str, Any]) -> list[str]:
        """Compare with what a manifest recorded; one phrase for each difference."""
        counts = recorded.get("tables")
        known = counts if isinstance(counts, dict) else {}
        found = [
            f"{table} has {self.counts.get(table, 'no')} rows, not {known.get(table, 'any')}"
            for table in sorted({*known, *self.counts})
            if known.get(table) != self.counts.get(table)
        ]
        if (self.integrity == ()) != (recorded.get("integrity") == ["ok"]):
            found.append(f"its integrity check says {self.integrity[:1] or 'ok'}")
        return found


def examine_database(path: Path, progress: Progress | None = None) -> DatabaseReport:
    """Examine a database that nobody else uses.

    Raises:
        DamagedError: It cannot be read at all.
    """
    return _proof(read_schema_level(path), check_integrity(path, progress=progress))


@contextlib.contextmanager
def examine_in_thread(copy: Path | None) -> Iterator["Future[DatabaseReport] | None"]:
    """Examine a copy in a thread of its own; when the block fails, that stops as well."""
    if copy is None:
        yield None
        return
    stopping = threading.Event()

    def look(_stage: str, _done: int, _total: int) -> None:
        if stopping.is_set():
            raise _StoppedError

    with ThreadPoolExecutor(1, thread_name_prefix="examine") as pool:
        try:
            yield pool.submit(examine_database, copy, look)
        except BaseException:
            stopping.set()  # a large database takes many seconds, and a signal is not kept waiting
            raise


class _StoppedError(Exception):
    """The snapshot that the examination is for has failed."""


def read_schema_level(path: Path) -> Level:
    """Read the schema's level of a database that nobody else uses; its bytes stay as they are.

    Raises:
        DamagedError: It is none.
    """
    with open_frozen(path) as connection:
        return read_level(connection)


def _proof(level: Level, health: Health) -> DatabaseReport:
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
    )
