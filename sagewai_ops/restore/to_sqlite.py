"""Write the tables of a server into the SQLite database of a home, and compare them.

The database is built in the staging directory: a run that dies leaves the target as it was. The
home's own file keeps its learnings and the tables of the user; Sagewai's tables in it are of the
time before the move to the server, and are created again, at the server's revision. Then all rows
are read a second time, and compared by value with what SQLite returns.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import sqlite3
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, TypeAlias, cast

from sagewai_ops.archive.reader import ArchiveReader
from sagewai_ops.database.sqlite.read_transaction import quoted
from sagewai_ops.database.sqlite.vectors import VectorTable, read_vectors, vector_tables
from sagewai_ops.errors import DamagedError, OpsError
from sagewai_ops.export.compare.normalise import unescaped
from sagewai_ops.export.convert.sqlite_value import Value, convert_column
from sagewai_ops.export.learnings.memory_facts import CONTENT, FACTS_TABLE, SCOPE, makes_facts
from sagewai_ops.export.mapping.findings import Finding, Tally
from sagewai_ops.fs import atomic, beneath
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.fs.ownership import set_owner
from sagewai_ops.progress import Progress, byte_counter
from sagewai_ops.records import dataclass
from sagewai_ops.restore.compare_sqlite import Rows, compare_database
from sagewai_ops.restore.conversion import (
    ConversionPlan,
    ConvertedColumn,
    ConvertedTable,
    unknown_table,
)
from sagewai_ops.restore.row_writer import (
    MOST_ROW_BYTES,
    Failure,
    RowBatch,
    Writer,
    open_target,
    open_writer,
    translate_build_errors,
)
from sagewai_ops.restore.server_rows import Block, read_rows, text_of
from sagewai_ops.schema import sqlite_head
from sagewai_ops.schema.sqlite_revision import read_level
from sagewai_ops.snapshots.server_database import StoredTable
from sagewai_ops.text import printable, size

# Called with what is not in the database: docs/export.md, the lines of *.refused.jsonl.
Refuse: TypeAlias = Callable[[dict[str, Any]], None]

_UUID_5 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_NO_LEARNING = "no learning of the home is the same, and Sagewai on SQLite has no others"
_NO_TABLE = ("unknown-table", "a home on SQLite has no such table")
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


@dataclass(frozen=True, slots=True)
class Built:
    """A database with the rows of a server, before the comparison.

    Attributes:
        kept_ids: UUIDs that may have been other texts before an export: those of version 5.
        omitted: Rows of each table that are not in it.
    """

    conversion: Conversion
    kept_ids: tuple[Finding, ...]
    omitted: dict[str, int]


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
    rows = functools.partial(read_rows, reader)
    built = build_database(rows, plan, database, progress=progress)
    compare_database(rows, plan, database, built.omitted, source="snapshot", progress=progress)
    return built.conversion


def build_database(
    rows: Rows,
    plan: ConversionPlan,
    database: Path,
    *,
    refuse: Refuse | None = None,
    progress: Progress | None = None,
) -> Built:
    """Write the rows of a server into a home's database.

    Args:
        database, progress: As for `convert_database`.

    Raises:
        OpsError: As `convert_database`, without a comparison.
    """
    _require_file(database)
    building = _Building(plan, refuse)
    wanted = [*plan.stored, *plan.others.values()]
    count = byte_counter(progress, "convert", sum(table.bytes for table in wanted))
    with translate_build_errors(database):
        with open_target(database, 0) as connection:
            warnings = tuple(building.prepare(connection))
        with open_writer(database, plan.bytes) as writer:
            for block in rows(wanted, count):
                building.add(writer, block)
            building.finish(writer)
        with open_target(database, plan.bytes) as connection:
            building.remove_orphans(connection)
    kept = sum(table.rows for table in plan.stored) - sum(building.omitted.values())
    findings = (*building.findings(), *building.tally.findings())
    conversion = Conversion(kept, findings, warnings)
    return Built(conversion, tuple(building.ids.findings()), building.omitted)


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
        raise DamagedError("database: db/sagewai.db is not a file")


@dataclass(slots=True)
class _Building:
    """A database that is being filled.

    Attributes:
        refuse: Called with these rows and values.
        tally: Rows and values that are not in it.
        ids: As `Built.kept_ids`.
        omitted: Rows of each table that are not in it.
    """

    plan: ConversionPlan
    refuse: Refuse | None = None
    tally: Tally = field(default_factory=Tally)
    ids: Tally = field(default_factory=Tally)
    omitted: dict[str, int] = field(init=False)
    _learned: dict[str, tuple[tuple[str, ...], set[bytes]]] = field(default_factory=dict)
    _unlearned: dict[str, int] = field(default_factory=dict)
    _statements: dict[str, str] = field(default_factory=dict)
    _indexed: set[str] = field(default_factory=set)
    _current: str = ""

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

    def add(self, writer: Writer, block: Block) -> None:
        """Convert some rows and insert them."""
        name = block.table.name
        if name not in self.plan.tables:
            self._count_unlearned(block)
            return
        table = self.plan.tables[name]
        if block.is_too_large:
            self._omit(table, "", "too-large", f"more than {size(MOST_ROW_BYTES)}", "?", None)
            return
        if name != self._current:
            self._index(writer, self._current)
            self._current = name
        self._count_lost(table, block)
        fields, refused = self._convert(table, block)
        kept = tuple(column.place for column in table.columns) if table.lost else None
        rows = RowBatch(
            self._statement(table),
            len(table.stored.columns),
            kept,
            None if table.number is not None else block.first + 1,
            block.count,
            frozenset(refused),
            fields,
        )
        writer.insert(rows, functools.partial(self._count_failures, table, block))

    def finish(self, writer: Writer) -> None:
        """Create the other indexes."""
        for name in self.plan.schema:
            self._index(writer, name)

    def remove_orphans(self, connection: sqlite3.Connection) -> None:
        """Remove the rows that refer to omitted ones."""
        while self._remove_orphans(connection):
            pass

    def _index(self, writer: Writer, name: str) -> None:
        """Create the other indexes of a table, while its pages are in SQLite's cache."""
        if name and name not in self._indexed:
            self._indexed.add(name)
            for statement in self.plan.schema[name].indexes.values():
                if not statement.startswith("CREATE UNIQUE"):
                    writer.execute(statement)

    def findings(self) -> Iterator[Finding]:
        """Yield the findings about whole tables."""
        for name, stored in self.plan.others.items():
            if name not in self._learned:
                yield unknown_table(stored)
            elif missing := self._unlearned.get(name):
                yield Finding(printable(name), "", "no-learning", _NO_LEARNING, missing)

    def _convert(self, table: ConvertedTable, block: Block) -> tuple[list[Value], set[int]]:
        """Return all fields as values, and the rows that have one without conversion."""
        refused: set[int] = set()
        width = len(table.stored.columns)
        fields: list[Value] = [None] * (block.count * width)
        for column in table.columns:
            values, refusals = convert_column(
                column.type,
                block.column(column.place),
                is_numeric=column.is_numeric,
                null=column.null,
            )
            fields[column.place :: width] = values
            for each in refusals:
                if each.row not in refused:
                    key, row = block.key(table.key, each.row), block.row(each.row)
                    self._omit(table, column.name, each.kind, each.detail, key, row)
                    refused.add(each.row)
            if column.type.name == "uuid":
                self._count_ids(table, column, values)
        for column in table.columns:
            if column.joined:
                self._join(table, block, column, fields, refused)
        return fields, refused

    def _join(
        self,
        table: ConvertedTable,
        block: Block,
        column: ConvertedColumn,
        fields: list[Value],
        refused: set[int],
    ) -> None:
        """Build a key as Sagewai builds it on SQLite, if it was built so on the server."""
        assert column.joined
        names = table.stored.columns
        columns = {name: fields[place :: len(names)] for place, name in enumerate(names)}
        home = zip(*(columns[name] for name in column.joined.on_sqlite), strict=True)
        server = zip(*(columns[name] for name in column.joined.on_server), strict=True)
        joined: list[Value] = []
        for row, (met, on_server, on_sqlite) in enumerate(
            zip(columns[column.name], server, home, strict=True)
        ):
            if row not in refused and (
                None in on_sqlite or None in on_server or met != _joined(on_server)
            ):
                detail = f"not {':'.join(column.joined.on_server)}, as Sagewai builds it"
                key, values = block.key(table.key, row), block.row(row)
                self._omit(table, column.name, "joined-key", detail, key, values)
                refused.add(row)
            joined.append(None if row in refused else _joined(on_sqlite))
        fields[column.place :: len(names)] = joined

    def _count_failures(self, table: ConvertedTable, block: Block, failures: list[Failure]) -> None:
        """Omit the rows that SQLite refuses."""
        for place, message in failures:
            column, kind, detail = "", "too-large", "too large for SQLite"
            if message:
                match = _CONSTRAINT.match(message)
                if match is None:
                    raise OpsError(f"table {printable(table.stored.name)}: {printable(message)}")
                kind, detail = _KINDS[match[1]]
                names = [part.rpartition(".")[2] for part in match[2].split(", ")]
                column = "" if kind == "check" else ", ".join(names)
            key = block.key(table.key, place)
            self._omit(table, column, kind, detail, key, block.row(place))

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
                    kind, detail = "unknown-column", "a home on SQLite has no such column"
                    key = block.key(table.key, row)
                    name = table.stored.name
                    self.tally.add(name, printable(column.name), kind, detail, key)
                    self._refuse(name, column.name, kind, detail, key=key, value=text_of(value))

    def _count_ids(
        self, table: ConvertedTable, column: ConvertedColumn, values: Sequence[Any]
    ) -> None:
        """Count the UUIDs that an export may have made of other texts."""
        for value in values:
            if value and _UUID_5.fullmatch(value):
                self.ids.add(table.stored.name, column.name, "uuid", "a UUID of version 5", value)

    def _omit(
        self,
        table: ConvertedTable,
        column: str,
        kind: str,
        detail: str,
        key: str,
        row: dict[str, Any] | None,
    ) -> None:
        self.tally.add(table.stored.name, column, kind, detail, key)
        self.omitted[table.stored.name] += 1
        self._refuse(table.stored.name, column, kind, detail, row=row)

    def _refuse(self, table: str, column: str, kind: str, detail: str, **values: Any) -> None:
        if self.refuse:
            line = {"table": table, "kind": kind, "column": column, "detail": detail}
            self.refuse({**line, **values})

    def _count_unlearned(self, block: Block) -> None:
        """Count the rows that the home has no table for, or not as a learning."""
        name = block.table.name
        rows = [*range(block.count)]
        if name in self._learned:
            columns, known = self._learned[name]
            places = [block.table.columns.index(column) for column in columns]
            if not block.is_too_large:
                fields = zip(*(block.column(place) for place in places), strict=True)
                digests = [_digest([*map(unescaped, row)]) for row in fields]
                rows = [row for row in rows if digests[row] not in known]
            self._unlearned[name] = self._unlearned.get(name, 0) + len(rows)
        if self.refuse:
            known_kind = name in self._learned
            kind, detail = ("no-learning", _NO_LEARNING) if known_kind else _NO_TABLE
            for row in rows:
                fields_of = None if block.is_too_large else block.row(row)
                self._refuse(name, "", kind, detail, row=fields_of)

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
                row = self._stored_row(connection, table, rowid)
                self._omit(table, "", "orphan", detail, ", ".join(map(str, values)), row)
                connection.execute(f"DELETE FROM {quoted(name)} WHERE rowid = ?", (rowid,))
            removed += len(broken)
        return removed

    def _stored_row(
        self, connection: sqlite3.Connection, table: ConvertedTable, rowid: int
    ) -> dict[str, Any] | None:
        """Return a row as the home would have it, for the file of refused rows."""
        if not self.refuse:
            return None
        names = [column.name for column in table.columns]
        query = f"SELECT {', '.join(map(quoted, names))} FROM {quoted(table.stored.name)}"
        values = connection.execute(f"{query} WHERE rowid = ?", (rowid,)).fetchone()
        return dict(zip(names, values, strict=True))


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


def _joined(values: tuple[Value, ...]) -> str:
    return ":".join(cast("tuple[str, ...]", values))


def _digest(values: Sequence[bytes]) -> bytes:
    return hashlib.blake2b(b"\0".join(values), digest_size=16).digest()
