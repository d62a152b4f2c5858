"""Upgrade a home's SQLite database as Sagewai does when it starts, and not further.

Missing tables, columns and indexes are added in one transaction; nothing is dropped, retyped or
filled. A column that SQLite cannot add to a table with rows (NOT NULL without a constant default)
is added bare, as Sagewai does. Differences that an addition cannot repair are reported: missing
constraints, NULL where a fresh home has none. Alembic is not involved, and no revision is stored.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sqlite3
import time
from collections.abc import Mapping
from pathlib import Path

from sagewai_ops.database.sqlite.connect import open_connection
from sagewai_ops.database.sqlite.integrity import count_rows
from sagewai_ops.database.sqlite.moment import open_moment
from sagewai_ops.database.sqlite.online_copy import attribute_damage, copy_database
from sagewai_ops.database.sqlite.read_transaction import WAIT_SECONDS, quoted
from sagewai_ops.database.sqlite.write_transaction import open_write_transaction
from sagewai_ops.errors import DifferenceError, SchemaAheadError
from sagewai_ops.fs.tempdirs import Keep, kept, working_directory
from sagewai_ops.home.paths import OWN_PREFIX
from sagewai_ops.progress import Progress
from sagewai_ops.records import dataclass
from sagewai_ops.schema import sqlite_head
from sagewai_ops.schema.drift import Drift, find_drift
from sagewai_ops.schema.revision_graph import HEAD
from sagewai_ops.schema.sqlite_revision import Level, read_level

REHEARSALS = f"{OWN_PREFIX}rehearsal-"


@dataclass(frozen=True, slots=True)
class Addition:
    """A table, a column or an index to add.

    Attributes:
        kind: `table`, `column` or `index`.
        name: `table`, `table.column` or `table.index`.
        statement: Adds it as in a fresh home.
        bare: Adds a column without default and NOT NULL, if `statement` fails.
    """

    kind: str
    name: str
    statement: str
    bare: str = ""


@dataclass(frozen=True, slots=True)
class Upgrade:
    """The result of an upgrade or of a rehearsal.

    Attributes:
        added: The names of the additions, in order.
        bare: The columns among them that were added without their default and NOT NULL.
        failed: Additions that failed, such as a unique index over duplicates, with SQLite's reason.
        remaining: Differences that an addition cannot repair.
        nulls: `table.column` -> rows with NULL where a fresh home allows none.
        dangling: Rows that refer to missing rows, the same number before and after.
        seconds: Of the additions alone, without the counts.
    """

    before: Level
    after: Level
    added: tuple[str, ...]
    bare: tuple[str, ...]
    failed: Mapping[str, str]
    remaining: tuple[Drift, ...]
    nulls: Mapping[str, int]
    rows_before: Mapping[str, int]
    rows_after: Mapping[str, int]
    dangling: int
    seconds: float
    rehearsed: bool = False


def plan_upgrade(path: Path, *, wait_seconds: float = WAIT_SECONDS) -> tuple[Addition, ...]:
    """Return the additions of an upgrade; the database, in use or not, is only read.

    Raises:
        SchemaAheadError: See `upgrade_database`.
        NotFoundError, DamagedError, LockedError, PermissionDeniedError: Not readable.
    """
    with open_moment(path, wait_seconds=wait_seconds) as pin:
        check_level(read_level(pin.connection), path)
        return _plan(pin.connection)


def plan_sql(path: Path, *, wait_seconds: float = WAIT_SECONDS) -> tuple[str, ...]:
    """Return the statements that an upgrade would run; the database is only read.

    Raises:
        OpsError: As `plan_upgrade`.
    """
    with open_moment(path, wait_seconds=wait_seconds) as pin:
        check_level(read_level(pin.connection), path)
        return tuple(
            _choose_statement(pin.connection, addition) for addition in _plan(pin.connection)
        )


def upgrade_database(
    path: Path,
    *,
    wait_seconds: float = WAIT_SECONDS,
    is_whole: bool = False,
    progress: Progress | None = None,
) -> Upgrade:
    """Add what is missing, in one transaction, with foreign keys disabled and checked at the end.

    Args:
        path: The main file; other processes may have it open, and wait for the transaction.
        wait_seconds: For another writer's lock.
        is_whole: Whether the operation is complete with it: a signal after the commit is ignored.
        progress: Called with `additions`, in statements.

    Raises:
        SchemaAheadError: It has columns of a later Sagewai, or is not a home's database.
        LockedError: Another writer did not release its lock in time.
        DifferenceError: Rows would have been lost or added; nothing was changed.
        NotFoundError, DamagedError, NoSpaceError, PermissionDeniedError: Nothing was changed.
    """
    with open_write_transaction(path, wait_seconds, is_whole=is_whole) as connection:
        before = read_level(connection)
        check_level(before, path)
        rows_before = count_rows(connection)
        dangling_before = _count_dangling(connection)
        additions = _plan(connection)
        started = time.perf_counter()
        bare, failed = _add(connection, additions, progress)
        seconds = time.perf_counter() - started
        rows_after = count_rows(connection)
        dangling = _count_dangling(connection)
        for table, count in rows_before.items():
            if rows_after.get(table) != count:
                raise DifferenceError(
                    f"database {path}: table {table} had {count} rows before and"
                    f" {rows_after.get(table, 0)} after, nothing was changed"
                )
        if dangling > dangling_before:
            raise DifferenceError(
                f"database {path}: {dangling - dangling_before} references would break,"
                " nothing was changed"
            )
        after = read_level(connection)
        remaining = tuple(item for item in find_drift(connection) if not item.is_addable)
        return Upgrade(
            before,
            after,
            tuple(item.name for item in additions if item.name not in failed),
            bare,
            failed,
            remaining,
            _count_nulls(connection, remaining),
            rows_before,
            rows_after,
            dangling,
            seconds,
        )


def rehearse_upgrade(
    path: Path,
    directory: Path,
    *,
    wait_seconds: float = WAIT_SECONDS,
    keep: Keep | None = None,
    progress: Progress | None = None,
) -> Upgrade:
    """Upgrade a temporary copy of a database.

    Args:
        path: The main file, in use or not; only read.
        directory: Where a private temporary directory is created for the copy; those of killed
            rehearsals are removed.
        wait_seconds: For a process with an exclusive lock.
        keep: Keeps the temporary directory, as in `tempdirs.kept`.
        progress: Called with `database`, in pages, then `additions`, in statements.

    Raises:
        OpsError: As `upgrade_database` and `copy_database`.
    """
    plan_upgrade(path, wait_seconds=wait_seconds)  # errors name the original, not the copy
    with working_directory(directory, REHEARSALS) as staging, kept(staging, keep):
        copy = staging / path.name
        copy_database(path, copy, wait_seconds=wait_seconds, progress=progress)
        with attribute_damage(path, copy):
            upgraded = upgrade_database(copy, wait_seconds=wait_seconds, progress=progress)
    return dataclasses.replace(upgraded, rehearsed=True)


def check_level(level: Level, path: Path) -> None:
    """Check that additions can bring a database to the head.

    Raises:
        SchemaAheadError: It is ahead, or not a home's database.
    """
    if level.state == "ahead":
        raise SchemaAheadError(
            f"database {path}: later than {HEAD}, with column {level.extra_columns[0]}",
            hint="pip install --upgrade sagewai-ops",
        )
    if level.state == "unknown":
        reasons = [f"unknown column {name}" for name in level.extra_columns[:1]]
        reasons += [f"{name} missing" for name in level.missing[:1]]
        raise SchemaAheadError(
            f"database {path}: neither an older nor a later schema,"
            f" {' and '.join(reasons) or 'a primary key missing'}",
            hint="sagewai-ops db check",
        )


def _plan(connection: sqlite3.Connection) -> tuple[Addition, ...]:
    """Return the additions: tables first, then columns, then indexes, which need both."""
    drift = [item for item in find_drift(connection) if item.is_addable]
    missing = {item.table for item in drift if item.kind == "missing-table"}
    tables, columns, indexes = [], [], []
    for table in sqlite_head.tables().values():
        if table.name in missing:
            tables.append(Addition("table", table.name, table.statement))
            names = set(table.indexes)
        else:
            items = [item for item in drift if item.table == table.name]
            names = {item.name for item in items if item.kind == "missing-index"}
            added = {item.name for item in items if item.kind == "missing-column"}
            columns += [
                _column(table.name, column)
                for column in table.columns.values()
                if column.name in added
            ]
        indexes += [
            Addition("index", f"{table.name}.{name}", statement)
            for name, statement in table.indexes.items()
            if name in names
        ]
    return (*tables, *columns, *indexes)


def _column(table: str, column: sqlite_head.Column) -> Addition:
    alter = f"ALTER TABLE {quoted(table)} ADD COLUMN"
    return Addition(
        "column",
        f"{table}.{column.name}",
        f"{alter} {column.clause}",
        f"{alter} {quoted(column.name)} {column.type}",
    )


def _choose_statement(connection: sqlite3.Connection, addition: Addition) -> str:
    """Return the statement that `_add` would run, tried on a table in memory with one row."""
    table = quoted(addition.name.partition(".")[0])
    if not addition.bare or not connection.execute(f"SELECT 1 FROM {table}").fetchone():  # noqa: S608
        return addition.statement
    with contextlib.closing(open_connection(None)) as trial:
        trial.execute(f"CREATE TABLE {table} (filled)")
        trial.execute(f"INSERT INTO {table} VALUES (1)")  # noqa: S608
        try:
            trial.execute(addition.statement)
        except sqlite3.OperationalError:
            return addition.bare
    return addition.statement


def _add(
    connection: sqlite3.Connection, additions: tuple[Addition, ...], progress: Progress | None
) -> tuple[tuple[str, ...], dict[str, str]]:
    bare: list[str] = []
    failed: dict[str, str] = {}
    for done, addition in enumerate(additions, 1):
        reason = _try(connection, addition.statement)
        if reason and addition.bare:
            reason = _try(connection, addition.bare)
            bare.append(addition.name)
        if reason:
            failed[addition.name] = reason
        if progress:
            progress("additions", done, len(additions))
    return tuple(bare), failed


def _try(connection: sqlite3.Connection, statement: str) -> str:
    """Run a statement that the rows may not allow; return SQLite's reason if it fails."""
    connection.execute("SAVEPOINT addition")
    try:
        connection.execute(statement)
    except (sqlite3.OperationalError, sqlite3.IntegrityError) as error:
        if _is_environmental(error):
            raise
        connection.execute("ROLLBACK TO addition")
        connection.execute("RELEASE addition")
        return str(error)
    connection.execute("RELEASE addition")
    return ""


def _is_environmental(error: sqlite3.Error) -> bool:
    """Return whether the disk or the file caused an error, and not the rows."""
    words = ("full", "disk", "readonly", "locked", "malformed", "not a database", "interrupted")
    return any(word in str(error) for word in words)


def _count_dangling(connection: sqlite3.Connection) -> int:
    """Count the rows of Sagewai's tables that refer to missing rows."""
    total = 0
    names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    for table in names & sqlite_head.tables().keys():
        try:
            rows = connection.execute(f"PRAGMA foreign_key_check({quoted(table)})")
            total += sum(1 for _ in rows)
        except sqlite3.OperationalError as error:
            # A reference to columns without a key: SQLite cannot check it, `drift` reports it.
            if "foreign key mismatch" not in str(error):
                raise
    return total


def _count_nulls(connection: sqlite3.Connection, remaining: tuple[Drift, ...]) -> dict[str, int]:
    nulls = {}
    for item in remaining:
        if item.kind != "missing-not-null":
            continue
        (count,) = connection.execute(
            f"SELECT count(*) FROM {quoted(item.table)} WHERE {quoted(item.name)} IS NULL"  # noqa: S608
        ).fetchone()
        if count:
            nulls[f"{item.table}.{item.name}"] = count
    return nulls
