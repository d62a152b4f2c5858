"""Write the tables of a server into the SQLite database of a restored home, and compare them.

The database is built in the staging directory: a run that dies leaves the target as it was. The
home's own file keeps its learnings and the tables of the user; Sagewai's tables in it are of the
time before the move to the server, and are created again, at the snapshot's revision. Then all rows
of the snapshot are read a second time, and compared by value with what SQLite returns.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import sqlite3
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sagewai_ops.archive.reader import ArchiveReader
from sagewai_ops.database.sqlite.connect import has_locks, limit_seconds, open_connection
from sagewai_ops.database.sqlite.read_transaction import quoted, translate_errors
from sagewai_ops.database.sqlite.vectors import VectorTable, read_vectors, vector_tables
from sagewai_ops.errors import DamagedError, DifferenceError, OpsError
from sagewai_ops.export.compare.normalise import differing, differing_lists, unescaped
from sagewai_ops.export.convert.batch import Type
from sagewai_ops.export.convert.sqlite_value import convert_column
from sagewai_ops.export.learnings.memory_facts import CONTENT, FACTS_TABLE, SCOPE, makes_facts
from sagewai_ops.export.mapping.findings import Finding, Tally
from sagewai_ops.export.mapping.plan import REWRITTEN, join_columns
from sagewai_ops.fs import atomic, beneath
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.fs.ownership import set_owner
from sagewai_ops.progress import Progress, byte_counter
from sagewai_ops.restore.conversion import (
    ConversionPlan,
    ConvertedColumn,
    ConvertedTable,
    unknown_table,
)
from sagewai_ops.restore.server_rows import MOST_ROW_BYTES, Block, read_rows
from sagewai_ops.schema import sqlite_head
from sagewai_ops.schema.sqlite_revision import read_level
from sagewai_ops.snapshots.server_database import StoredTable
from sagewai_ops.text import printable, size

_MOST_NUMBER = 2**63
_LARGEST_GAP = 4  # between numbers of rows that are read together
_LENGTH_LIMIT = 0  # SQLITE_LIMIT_LENGTH, which Python has since 3.11
_TEXT = Type("text")
_CONSTRAINT = re.compile(r"(NOT NULL|UNIQUE|CHECK) constraint failed: (.*)")
_KINDS = {
    "NOT NULL": ("null", "NULL where SQLite has NOT NULL"),
    "UNIQUE": ("duplicate", "a key that SQLite allows once"),
    "CHECK": ("check", "violates a CHECK of SQLite"),
}


@dataclass(frozen=True, slots=True)
class Conversion:
    """What became of the tables of a server.

    Attributes:
        rows: In the home's tables.
        findings: Rows and values that are not in the home.
        warnings: One line each.
    """

    rows: int
    findings: tuple[Finding, ...]
    warnings: tuple[str, ...]


def convert_database(
    reader: ArchiveReader,
    plan: ConversionPlan,
    database: Path,
    *,
    progress: Progress | None = None,
) -> Conversion:
    """Write the rows of a snapshot into a home's database, and compare them.

    Args:
        database: Of a staged home, which no other process uses; need not exist.
        progress: Reports `convert` and `compare`, in bytes.

    Raises:
        DifferenceError: SQLite returns another value than the snapshot has.
        DamagedError: The rows are not those of the manifest, or the file is not a database.
        NoSpaceError, OpsError: It cannot be written.
    """
    stored = [table.stored for table in plan.tables.values()]
    total = sum(table.bytes for table in stored)
    _require_file(database)
    building = _Building(plan)
    with translate_errors(database):
        with _open(database, total) as connection:
            warnings = tuple(building.prepare(connection))
            wanted = [*stored, *plan.others.values()]
            count = byte_counter(progress, "convert", sum(table.bytes for table in wanted))
            for block in read_rows(reader, wanted, count):
                building.add(connection, block)
            building.finish(connection)
        with contextlib.closing(
            open_connection(database, is_immutable=True, least_seconds=_seconds(total))
        ) as connection:
            connection.text_factory = bytearray
            comparison = _Comparison(connection, plan)
            for block in read_rows(reader, stored, byte_counter(progress, "compare", total)):
                comparison.add(block)
            comparison.finish(building.omitted)
    omitted = sum(building.omitted.values())
    rows = sum(table.rows for table in stored) - omitted
    return Conversion(rows, (*building.findings(), *building.tally.findings()), warnings)


def _require_file(database: Path) -> None:
    """Create the file of the database if it is missing; check that it is no link.

    Raises:
        DamagedError: It is something else.
    """
    directory = database.parent
    with translate_os_errors(database):
        if not os.path.lexists(directory):
            atomic.make_directory(directory, owner=os.stat(directory.parent))
        if not os.path.lexists(database):
            descriptor = beneath.create_file(database, atomic.PRIVATE_FILE)
            with contextlib.closing(open(descriptor, "rb")):
                owner = os.stat(directory)
                set_owner(descriptor, owner.st_uid, owner.st_gid)
        modes = os.lstat(directory).st_mode, os.lstat(database).st_mode
    if not (stat.S_ISDIR(modes[0]) and stat.S_ISREG(modes[1])):
        raise DamagedError("snapshot: its database is not a file")


@contextlib.contextmanager
def _open(database: Path, total: int) -> Iterator[sqlite3.Connection]:
    """Open a database to fill it, and leave it in WAL mode without sidecars."""
    vfs = "" if has_locks(database) else "unix-none"
    with contextlib.closing(
        open_connection(database, mode="rw", vfs=vfs, least_seconds=_seconds(total))
    ) as connection:
        if hasattr(connection, "setlimit"):  # that of a small file is too low
            connection.setlimit(_LENGTH_LIMIT, 2 * MOST_ROW_BYTES)
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        # The staging is garbage until it is synced as a whole, so nothing here need be durable.
        connection.execute("PRAGMA journal_mode = DELETE").fetchall()
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA foreign_keys = OFF")
        yield connection
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
    if os.path.exists(f"{database}-wal"):
        raise OpsError(f"{database}: not converted, its write-ahead log was not checkpointed")


def _seconds(total: int) -> float:
    """Return the limit of processor time for so many bytes of rows."""
    return 4 * limit_seconds(total)


@dataclass(slots=True)
class _Building:
    """A database that is being filled.

    Attributes:
        tally: Rows and values that are not in it.
        omitted: Rows of each table that are not in it.
    """

    plan: ConversionPlan
    tally: Tally = field(default_factory=Tally)
    omitted: dict[str, int] = field(init=False)
    _learned: dict[str, tuple[tuple[str, ...], set[bytes]]] = field(default_factory=dict)
    _unlearned: dict[str, int] = field(default_factory=dict)
    _statements: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.omitted = dict.fromkeys(self.plan.tables, 0)

    def prepare(self, connection: sqlite3.Connection) -> Iterator[str]:
        """Replace Sagewai's tables by empty ones; yield what is lost with them."""
        for name in read_level(connection).extra_columns:
            yield f"db/sagewai.db: column {printable(name)} of your own: not in the restored home"
        self._learned = dict(_learnings(connection, self.plan.others))
        present = {
            name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE rootpage")
        }
        connection.execute("BEGIN")
        for name in sqlite_head.tables():
            if name in present:
                connection.execute(f"DROP TABLE {quoted(name)}")
        connection.execute("COMMIT")  # so that the free pages are used again
        connection.execute("BEGIN")
        for table in self.plan.schema.values():
            connection.execute(table.statement)
            for statement in table.indexes.values():
                if statement.startswith("CREATE UNIQUE"):
                    connection.execute(statement)

    def add(self, connection: sqlite3.Connection, block: Block) -> None:
        """Convert some rows and insert them."""
        name = block.table.name
        if name not in self.plan.tables:
            self._count_unlearned(block)
            return
        table = self.plan.tables[name]
        if block.is_too_large:
            self._omit(table, "", "too-large", f"more than {size(MOST_ROW_BYTES)}", "?")
            return
        self._count_lost(table, block)
        columns, refused = self._convert(table, block)
        rows: Iterator[tuple[Any, ...]] = zip(*columns, strict=True)
        if table.number is None:
            numbers = range(block.first + 1, block.first + block.count + 1)
            rows = ((number, *row) for number, row in zip(numbers, rows, strict=True))
        kept = [(place, row) for place, row in enumerate(rows) if place not in refused]
        self._insert(connection, table, block, kept)

    def finish(self, connection: sqlite3.Connection) -> None:
        """Create the other indexes, and remove the rows that refer to omitted ones."""
        for table in self.plan.schema.values():
            for statement in table.indexes.values():
                if not statement.startswith("CREATE UNIQUE"):
                    connection.execute(statement)
        while self._remove_orphans(connection):
            pass
        connection.execute("COMMIT")

    def findings(self) -> Iterator[Finding]:
        """Yield the findings about whole tables."""
        for name, stored in self.plan.others.items():
            if name not in self._learned:
                yield unknown_table(stored)
            elif missing := self._unlearned.get(name):
                detail = "no learning of the home is the same, and Sagewai on SQLite has no others"
                yield Finding(printable(name), "", "no-learning", detail, missing)

    def _convert(self, table: ConvertedTable, block: Block) -> tuple[list[Sequence[Any]], set[int]]:
        """Return the values of each column, and the rows that have one without conversion."""
        refused: set[int] = set()
        columns: dict[str, Sequence[Any]] = {}
        for column in table.columns:
            values, refusals = convert_column(
                column.type,
                block.column(column.place),
                is_numeric=column.is_numeric,
                null=column.null,
            )
            columns[column.name] = values
            for each in refusals:
                if each.row not in refused:
                    key = _key(table, block, each.row)
                    self._omit(table, column.name, each.kind, each.detail, key)
                    refused.add(each.row)
        for column in table.columns:
            if column.joined:
                self._join(table, block, column, columns, refused)
        return list(columns.values()), refused

    def _join(
        self,
        table: ConvertedTable,
        block: Block,
        column: ConvertedColumn,
        columns: dict[str, Sequence[Any]],
        refused: set[int],
    ) -> None:
        """Build a key as Sagewai builds it on SQLite, if it was built so on the server."""
        assert column.joined
        home = zip(*(columns[name] for name in column.joined.on_sqlite), strict=True)
        server = zip(*(columns[name] for name in column.joined.on_server), strict=True)
        joined = []
        for row, (met, on_server, on_sqlite) in enumerate(
            zip(columns[column.name], server, home, strict=True)
        ):
            if row not in refused and (
                None in on_sqlite or None in on_server or met != ":".join(on_server)
            ):
                detail = f"not {':'.join(column.joined.on_server)}, as Sagewai builds it"
                self._omit(table, column.name, "joined-key", detail, _key(table, block, row))
                refused.add(row)
            joined.append(None if row in refused else ":".join(on_sqlite))
        columns[column.name] = joined

    def _insert(
        self,
        connection: sqlite3.Connection,
        table: ConvertedTable,
        block: Block,
        rows: list[tuple[int, tuple[Any, ...]]],
    ) -> None:
        statement = self._statement(table)
        connection.execute("SAVEPOINT block")
        try:
            connection.executemany(statement, (row for _place, row in rows))
        except (sqlite3.IntegrityError, sqlite3.DataError, MemoryError):
            connection.execute("ROLLBACK TO block")
            for place, row in rows:
                self._insert_row(connection, table, block, place, row)
        connection.execute("RELEASE block")

    def _insert_row(
        self,
        connection: sqlite3.Connection,
        table: ConvertedTable,
        block: Block,
        place: int,
        row: tuple[Any, ...],
    ) -> None:
        try:
            connection.execute(self._statement(table), row)
        except sqlite3.IntegrityError as error:
            match = _CONSTRAINT.match(str(error))
            if match is None:
                raise
            kind, detail = _KINDS[match[1]]
            names = [part.rpartition(".")[2] for part in match[2].split(", ")]
            column = "" if kind == "check" else ", ".join(names)
            self._omit(table, column, kind, detail, _key(table, block, place))
        except (sqlite3.DataError, MemoryError):
            self._omit(table, "", "too-large", "too large for SQLite", _key(table, block, place))

    def _statement(self, table: ConvertedTable) -> str:
        name = table.stored.name
        if name not in self._statements:
            names = [quoted(column.name) for column in table.columns]
            if table.number is None:
                names.insert(0, "rowid")
            marks = ", ".join("?" * len(names))
            self._statements[name] = (
                f"INSERT INTO {quoted(name)} ({', '.join(names)}) VALUES ({marks})"
            )
        return self._statements[name]

    def _count_lost(self, table: ConvertedTable, block: Block) -> None:
        """Count the values of columns that a home does not have, unless they are the default."""
        for column in table.lost:
            for row, value in enumerate(block.column(column.place)):
                if value != column.default:
                    self.tally.add(
                        table.stored.name,
                        printable(column.name),
                        "unknown-column",
                        "a home on SQLite has no such column",
                        _key(table, block, row),
                    )

    def _omit(self, table: ConvertedTable, column: str, kind: str, detail: str, key: str) -> None:
        self.tally.add(table.stored.name, column, kind, detail, key)
        self.omitted[table.stored.name] += 1

    def _count_unlearned(self, block: Block) -> None:
        """Count the rows of a table of learnings that the home does not have."""
        name = block.table.name
        if name not in self._learned:
            return
        columns, known = self._learned[name]
        places = [block.table.columns.index(column) for column in columns]
        missing = 1 if block.is_too_large else 0
        if not missing:
            for row in zip(*(block.column(place) for place in places), strict=True):
                missing += _digest([unescaped(value) for value in row]) not in known
        self._unlearned[name] = self._unlearned.get(name, 0) + missing

    def _remove_orphans(self, connection: sqlite3.Connection) -> int:
        """Remove the rows that refer to a row that does not exist; return their number."""
        removed = 0
        for name, table in self.plan.tables.items():
            broken: dict[int, str] = {}
            for _name, rowid, parent, _number in connection.execute(
                f"PRAGMA foreign_key_check({quoted(name)})"
            ):
                broken.setdefault(rowid, parent)
            key = ", ".join(quoted(table.stored.columns[place]) for place in table.key) or "rowid"
            for rowid, parent in broken.items():
                query = f"SELECT {key} FROM {quoted(name)} WHERE rowid = ?"
                values = connection.execute(query, (rowid,)).fetchone()
                detail = f"refers to a row of {parent} that does not exist"
                self._omit(table, "", "orphan", detail, ", ".join(map(str, values)))
                connection.execute(f"DELETE FROM {quoted(name)} WHERE rowid = ?", (rowid,))
            removed += len(broken)
        return removed


class _Comparison:
    """Compares the rows of a database with those of the snapshot."""

    def __init__(self, connection: sqlite3.Connection, plan: ConversionPlan) -> None:
        self._connection = connection
        self._plan = plan
        self._missing = dict.fromkeys(plan.tables, 0)

    def add(self, block: Block) -> None:
        """Compare some rows; count those that the database does not have.

        Raises:
            DifferenceError: One differs.
        """
        table = self._plan.tables[block.table.name]
        found = [] if block.is_too_large else sorted(self._rows(table, block), key=_place)
        self._missing[block.table.name] += block.count - len(found)
        if not found:
            return
        places = [place for place, _row in found]
        sources = list(zip(*(row for _place, row in found), strict=True))
        for column, values in zip(table.columns, sources, strict=True):
            fields = block.column(column.place)
            if len(places) < block.count:
                fields = [fields[place] for place in places]
            different = [0]
            with contextlib.suppress(ValueError):  # not a value of that type at all
                different = _different(column, values, fields)
            if different:
                key = _key(table, block, places[different[0]])
                raise self._error(f"{table.stored.name}.{column.name} of {key}")

    def finish(self, omitted: dict[str, int]) -> None:
        """Check that the database has all rows but the omitted ones, and no others.

        Raises:
            DifferenceError: It does not.
        """
        for name, table in self._plan.tables.items():
            (rows,) = self._connection.execute(f"SELECT count(*) FROM {quoted(name)}").fetchone()
            if self._missing[name] != omitted[name] or rows != table.stored.rows - omitted[name]:
                raise self._error(f"{name} with {rows} rows, of {table.stored.rows}")
        for (name, column), joined in REWRITTEN.items():
            if name in self._plan.tables:
                query = (
                    f"SELECT count(*) FROM {quoted(name)}"
                    f" WHERE {quoted(column)} IS NOT {join_columns(joined.on_sqlite)}"
                )
                if self._connection.execute(query).fetchone() != (0,):
                    raise self._error(f"{name}.{column}")

    def _rows(self, table: ConvertedTable, block: Block) -> Iterator[tuple[int, Sequence[Any]]]:
        """Yield the rows that the database has, each after its place in the block."""
        wanted = ", ".join(column.expression for column in table.columns)
        query = f"SELECT rowid, {wanted} FROM {quoted(table.stored.name)} WHERE rowid"
        if table.number is None:
            first = block.first + 1
            limits = (first, first + block.count - 1)
            for rowid, *row in self._connection.execute(f"{query} BETWEEN ? AND ?", limits):
                yield rowid - first, row
            return
        places = {}
        for place, number in enumerate(block.column(table.number)):
            with contextlib.suppress(ValueError):  # a row that was omitted
                places[int(number)] = place
        # As one range as far as the numbers are dense.
        numbers = sorted(number for number in places if abs(number) < _MOST_NUMBER)
        starts = [
            place
            for place, number in enumerate(numbers)
            if place == 0 or number - numbers[place - 1] > _LARGEST_GAP
        ]
        for start, end in itertools.pairwise([*starts, len(numbers)]):
            limits = (numbers[start], numbers[end - 1])
            for rowid, *row in self._connection.execute(f"{query} BETWEEN ? AND ?", limits):
                if rowid in places:
                    yield places[rowid], row

    def _error(self, what: str) -> DifferenceError:
        return DifferenceError(f"database: {printable(what)} differs from the snapshot")


def _place(found: tuple[int, Sequence[Any]]) -> int:
    return found[0]


def _different(
    column: ConvertedColumn, values: Sequence[Any], fields: Sequence[bytes]
) -> list[int]:
    """Return the rows in which a column differs."""
    if column.type.name == "text[]":
        return differing_lists(values, fields)
    if column.type.name != "jsonb":
        return differing(column.type, values, fields)
    # Documents are stored as the server writes them, but for numbers.
    return [
        row
        for row in differing(_TEXT, values, fields)
        if differing(column.type, [values[row]], [fields[row]])
    ]


def _learnings(
    connection: sqlite3.Connection, others: dict[str, StoredTable] | Any
) -> Iterator[tuple[str, tuple[tuple[str, ...], set[bytes]]]]:
    """Yield the tables of a server that are copies of learnings, and the learnings of the home.

    An export with `--learnings facts` or `pgvector` made them; the originals are in the home.

    Yields:
        (table, (columns that identify a row, digests of these values in the home)).
    """
    tables = {table.name: table for table in vector_tables(connection)}
    for name, stored in others.items():
        if name == FACTS_TABLE and {"scope", "content"} <= {*stored.columns}:
            known: set[bytes] = set()
            for table in tables.values():
                if makes_facts(table):
                    known |= _digests(connection, table, (SCOPE, CONTENT))
            yield name, (("scope", "content"), known)
        elif name in tables and tables[name].key in stored.columns:
            table = tables[name]
            yield name, ((table.key,), _digests(connection, table, (table.key,)))


def _digests(
    connection: sqlite3.Connection, table: VectorTable, columns: tuple[str, ...]
) -> set[bytes]:
    names = [table.key, *(column.name for column in table.columns)]
    places = [names.index(column) for column in columns]
    found: set[bytes] = set()
    with contextlib.suppress(OpsError):  # unreadable: then every row on the server is a finding
        for row in read_vectors(connection, table):
            values = (row.key, *row.values)
            texts = [str(values[place]).encode("utf-8", "surrogateescape") for place in places]
            found.add(_digest(texts))
    return found


def _digest(values: Sequence[bytes]) -> bytes:
    return hashlib.blake2b(b"\0".join(values), digest_size=16).digest()


def _key(table: ConvertedTable, block: Block, row: int) -> str:
    values = [unescaped(block.column(place)[row]) for place in table.key]
    return ", ".join(value.decode("utf-8", "backslashreplace") for value in values)
