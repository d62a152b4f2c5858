"""Check a database that no other process uses: a frozen copy, or one extracted from an archive.

It is opened read-write with `query_only`, because SQLite evaluates CHECK constraints in
`integrity_check` only where it may write; with exclusive locking, so that a WAL database needs
no shared memory file. Its bytes do not change and no sidecar is left. sqlite-vec is not needed: the
rows of its virtual tables are counted in their shadow tables.
"""

import os
import re
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from sagewai_ops.database.sqlite.connect import (
    describe_limit,
    is_stopped,
    open_connection,
    open_regular,
)
from sagewai_ops.database.sqlite.read_transaction import (
    MAGIC,
    call_while_running,
    needs_other_program,
    quoted,
    resolve_database,
    translate_errors,
)
from sagewai_ops.database.sqlite.write_transaction import open_exclusive
from sagewai_ops.errors import DamagedError
from sagewai_ops.progress import Progress, no_progress
from sagewai_ops.records import dataclass, from_fields

STAGE = "integrity"

_HEADER_BYTES = 100
_DEFAULT_PAGE_BYTES = 4096  # of a database that has no header yet
_ENCODINGS = {0: "UTF-8", 1: "UTF-8", 2: "UTF-16le", 3: "UTF-16be"}
_PARTS = 3  # pages, rows and indexes; references; counts
_FINDINGS = 100  # rows kept of each kind; the limit of integrity_check too
_CACHE_KIB = 8000  # more is no faster: look-ups in an index are close together
_STEPS = 1_000_000  # virtual machine instructions between two reports, some 10 ms
_STEPS_TO_STOP = 20_000_000  # between two looks at a thread's flag, some 0.2 s
_COLLATIONS = 20  # that the pages of one database need, at most
_COLLATION = re.compile(r"no such collation sequence: (\w+)")
# What a check reports about rows, as opposed to pages: it depends on functions and on the order.
_OF_ROWS = re.compile(r"\brow \d|\bCHECK constraint\b|\bnon-unique\b|\brow not in\b|\bNULL value\b")
_VIRTUAL = re.compile(
    r"CREATE\s+VIRTUAL\s+TABLE.*?\bUSING\s+[\"'`\[]?(\w+)", re.IGNORECASE | re.DOTALL
)
# Shadow tables of virtual tables, by module; `#` means digits.
_SHADOWS = {
    "vec0": "info chunks rowids auxiliary vector_chunks# metadatachunks# metadatatext#",
    "fts3": "content segments segdir docsize stat",
    "fts4": "content segments segdir docsize stat",
    "fts5": "data idx content docsize config",
    "rtree": "node parent rowid",
    "rtree_i32": "node parent rowid",
    "geopoly": "node parent rowid",
}


@dataclass(frozen=True, slots=True)
class ForeignKeyViolation:
    """A row that refers to a missing row.

    Args:
        table: Of the row.
        rowid: None in a table without rowids.
        parent: The table that it refers to.
    """

    table: str
    rowid: int | None
    parent: str


@dataclass(frozen=True, slots=True)
class _Header:
    page_size: int
    page_count: int
    encoding: str
    journal_mode: str


@dataclass(frozen=True, slots=True)
class Health(_Header):
    """The size of a database, its rows by table, and its damage.

    Args:
        page_size: Bytes.
        page_count: Pages, including free ones.
        encoding: `UTF-8`, `UTF-16le` or `UTF-16be`.
        journal_mode: `wal` or `rollback`, from the header.
        integrity: Findings of SQLite's integrity check, at most 100 sentences; empty if sound.
        foreign_keys: The first 100 violations.
        foreign_key_total: All violations.
        foreign_keys_unchecked: Tables whose references cannot be checked, each with the reason;
            such as a reference to a column that is not unique.
        counts: Rows by table: ordinary tables, and virtual tables by their own name; without
            SQLite's own tables and shadow tables. A table that could not be read to its end is in
            `integrity` instead, a virtual table of an unknown module in `uncounted`.
        uncounted: Tables whose rows SQLite cannot count without another program's module or
            collation.
        unchecked: Tables whose rows and indexes need a function or a collation of another program,
            each with the reason; their pages are checked.
    """

    integrity: tuple[str, ...]
    foreign_keys: tuple[ForeignKeyViolation, ...]
    foreign_key_total: int
    foreign_keys_unchecked: tuple[str, ...]
    counts: dict[str, int]
    uncounted: tuple[str, ...]
    unchecked: tuple[str, ...] = ()

    @property
    def sound(self) -> bool:
        """Whether SQLite found no damage; broken references are separate findings."""
        return not self.integrity


def check_integrity(
    path: Path, *, is_quick: bool = False, progress: Progress | None = None
) -> Health:
    """Check every page, row, index and reference of a database, and count its rows.

    Args:
        is_quick: Do not compare the indexes with their tables, which is most of the time: an index
            that differs loses no data (https://sqlite.org/pragma.html#pragma_quick_check).
        path: The main file; writable, and not used by any other process.
        progress: Called with `integrity` and how many of its three parts are done, repeatedly
            during each; an exception that it raises ends the check.

    Raises:
        NotFoundError: There is no such file.
        DamagedError: It is not an SQLite database.
    """
    report = progress or no_progress
    done = 0

    def callback() -> None:
        report(STAGE, done, _PARTS)

    resolved = resolve_database(path)
    header = _header(resolved, path)
    with (
        translate_errors(path),
        _open(resolved) as connection,
        call_while_running(connection, callback, _STEPS),
    ):
        callback()
        integrity, unchecked_tables = find_damage(connection, resolved, is_quick=is_quick)
        done = 1
        callback()
        violations, total, unchecked = _foreign_keys(connection)
        done = 2
        callback()
        counts, uncounted, unread = _counts(connection)
        done = _PARTS
        callback()
    return from_fields(
        Health,
        header,
        integrity=integrity + unread,
        foreign_keys=violations,
        foreign_key_total=total,
        foreign_keys_unchecked=unchecked,
        counts=counts,
        uncounted=uncounted,
        unchecked=tuple(f"{table}: {reason}" for table, reason in unchecked_tables.items()),
    )


def count_rows(connection: sqlite3.Connection) -> dict[str, int]:
    """Count the rows of every table, as `Health.counts` has them, inside the caller's transaction.

    Raises:
        sqlite3.Error: The file is not a database.
    """
    return _counts(connection)[0]


@contextmanager
def _open(resolved: Path) -> Iterator[sqlite3.Connection]:
    with open_exclusive(resolved) as connection:
        connection.text_factory = decode_lossy
        connection.execute("PRAGMA schema_version").fetchone()  # is it a database at all?
        with suppress(sqlite3.DatabaseError):  # these read the schema, which may be damaged
            connection.execute("PRAGMA query_only=ON")
            connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
        yield connection


def decode_lossy(value: bytes) -> str:
    """Decode the texts of a database that may be damaged."""
    return value.decode("utf-8", "replace")


@contextmanager
def open_for_check(path: Path, stop: threading.Event | None = None) -> Iterator[sqlite3.Connection]:
    """Open a connection in a transaction, where another one keeps writers out or pins a moment.

    Args:
        path: The main file, symlinks resolved.
        stop: Interrupts its statements.
    """
    with closing(open_connection(path)) as connection:
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        if stop:
            connection.set_progress_handler(stop.is_set, _STEPS_TO_STOP)
        connection.execute("BEGIN")
        yield connection


def find_damage(
    connection: sqlite3.Connection, path: Path, *, is_quick: bool = False
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Run SQLite's integrity check, on everything that it can check without another program.

    An index or a column can need a function or a collation of another program. Then SQLite checks
    nothing at all, so each table is checked alone, and of the others the pages.

    Args:
        connection: Gets collations for those that it lacks, which order in another way.
        path: Of the database, for the limit of processor time.
        is_quick: As for `check_integrity`.

    Returns:
        (what is damaged; table -> why its rows and indexes cannot be checked).
    """
    check = "quick_check" if is_quick else "integrity_check"
    found = _run_check(connection, f"{check}({_FINDINGS})", path)
    if not any(map(needs_other_program, found)):
        return found, {}
    damage: dict[str, None] = {}
    unchecked: dict[str, str] = {}
    problems: list[str] = []
    for table, _ in _tables(connection, problems):
        found = _run_check(connection, f"{check}({quoted(table)})", path)
        needs = [message for message in found if needs_other_program(message)]
        if needs:
            unchecked[table] = needs[0]
        else:
            damage.update(dict.fromkeys(found))
    damage.update(dict.fromkeys(problems + _check_pages(connection, path)))
    return tuple(damage), unchecked


def _check_pages(connection: sqlite3.Connection, path: Path) -> list[str]:
    """Check all pages, without the rules that need a function or a collation."""
    connection.execute("PRAGMA ignore_check_constraints = ON")
    found: tuple[str, ...] = ()
    for _ in range(_COLLATIONS):
        found = _run_check(connection, f"quick_check({_FINDINGS})", path)
        needed = next(filter(None, (_COLLATION.search(message) for message in found)), None)
        if needed is None:
            break
        connection.create_collation(needed[1], _compare)
    return [text for text in found if not needs_other_program(text) and not _OF_ROWS.search(text)]


def _compare(first: str, second: str) -> int:
    return (first > second) - (first < second)


def _run_check(connection: sqlite3.Connection, check: str, path: Path) -> tuple[str, ...]:
    found: list[str] = []
    try:
        for (sentence,) in connection.execute(f"PRAGMA {check}"):
            found.append(str(sentence))
    except sqlite3.DatabaseError as error:  # damage at which the check itself fails
        _raise_if_interrupted(connection, error)
        found.append(describe_limit(path) if is_stopped(connection) else str(error))
    except MemoryError:
        found.append("a value of the schema needs more memory than the database's size allows")
    return () if found == ["ok"] else tuple(found)


def _foreign_keys(
    connection: sqlite3.Connection,
) -> tuple[tuple[ForeignKeyViolation, ...], int, tuple[str, ...]]:
    """Check the references of one table after the other, because a broken one ends the pragma."""
    kept: list[ForeignKeyViolation] = []
    total = 0
    unchecked: list[str] = []
    for table, _ in _tables(connection, unchecked):
        try:
            rows = connection.execute(f"PRAGMA foreign_key_check({quoted(table)})")
            for name, rowid, parent, _constraint in rows:
                total += 1
                if len(kept) < _FINDINGS:
                    kept.append(ForeignKeyViolation(table=name, rowid=rowid, parent=parent))
        except sqlite3.DatabaseError as error:
            _raise_if_interrupted(connection, error)
            unchecked.append(f"{table}: {error}")
    return tuple(kept), total, tuple(unchecked)


def _counts(
    connection: sqlite3.Connection,
) -> tuple[dict[str, int], tuple[str, ...], tuple[str, ...]]:
    unread: list[str] = []
    tables = _tables(connection, unread)
    modules = {name: found[1].lower() for name, sql in tables if (found := _VIRTUAL.match(sql))}
    hidden = [_shadow_pattern(name, module) for name, module in modules.items()]
    counts: dict[str, int] = {}
    uncounted: list[str] = []
    for name, _ in tables:
        if any(pattern.fullmatch(name) for pattern in hidden):
            continue
        counted = f"{name}_rowids" if modules.get(name) == "vec0" else name
        try:
            statement = f"SELECT count(*) FROM {quoted(counted)}"  # noqa: S608 (quoted)
            (count,) = connection.execute(statement).fetchone()
        except sqlite3.DatabaseError as error:
            _raise_if_interrupted(connection, error)
            if name in modules or needs_other_program(str(error)):
                uncounted.append(name)
            else:
                unread.append(f"table {name}: {error}")
        else:
            counts[name] = count
    return counts, tuple(uncounted), tuple(unread)


def _tables(connection: sqlite3.Connection, problems: list[str]) -> list[tuple[str, str]]:
    """List (name, SQL) of each table, as far as the schema can be read."""
    tables: list[tuple[str, str]] = []
    try:
        tables.extend(
            connection.execute(
                "SELECT name, sql FROM sqlite_master"
                " WHERE type = 'table' AND name NOT LIKE 'sqlite~_%' ESCAPE '~' ORDER BY name"
            )
        )
    except sqlite3.DatabaseError as error:
        _raise_if_interrupted(connection, error)
        problems.append(f"schema: {error}")
    return tables


def _shadow_pattern(name: str, module: str) -> re.Pattern[str]:
    suffixes = "|".join(_SHADOWS.get(module, "").replace("#", r"\d+").split()) or "(?!)"
    return re.compile(f"{re.escape(name)}_(?:{suffixes})", re.IGNORECASE)


def _header(resolved: Path, shown: Path) -> _Header:
    """Read the header (fileformat2.html, section 1.3), which is readable when pages are not."""
    with open(open_regular(resolved), "rb") as file:
        header = file.read(_HEADER_BYTES)
        size_bytes = file.seek(0, os.SEEK_END)
    if not header:
        return _Header(_DEFAULT_PAGE_BYTES, 0, "UTF-8", "rollback")
    if len(header) < _HEADER_BYTES or not header.startswith(MAGIC):
        raise DamagedError(f"database {shown}: file is not a database")
    page_size = int.from_bytes(header[16:18], "big")
    page_size = 65536 if page_size == 1 else page_size or _DEFAULT_PAGE_BYTES
    return _Header(
        page_size=page_size,
        page_count=size_bytes // page_size,
        encoding=_ENCODINGS.get(int.from_bytes(header[56:60], "big"), "unknown"),
        journal_mode="wal" if header[18:20] == b"\x02\x02" else "rollback",
    )


def _raise_if_interrupted(connection: sqlite3.Connection, error: sqlite3.Error) -> None:
    """Raise the error again if a statement was interrupted on request, which is not a finding."""
    if str(error) == "interrupted" and not is_stopped(connection):
        raise error
