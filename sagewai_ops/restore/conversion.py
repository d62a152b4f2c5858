"""The plan of a restore to SQLite: how the tables of a server become those of a home.

It is derived from the manifest, the tables of a home at the snapshot's revision, and the types of
the server's columns: `export.mapping` in reverse. What a home has no table or column for is a
finding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from sagewai_ops.database.sqlite.read_transaction import quoted
from sagewai_ops.errors import DamagedError, SchemaAheadError
from sagewai_ops.export.convert.batch import Type
from sagewai_ops.export.convert.sqlite_value import NULL
from sagewai_ops.export.learnings.memory_facts import FACTS_TABLE
from sagewai_ops.export.mapping.findings import Finding
from sagewai_ops.export.mapping.plan import REWRITTEN, JoinedKey
from sagewai_ops.export.mapping.target_catalog import VERSION_TABLE, TargetColumn, read_head_columns
from sagewai_ops.records import dataclass
from sagewai_ops.schema import sqlite_head
from sagewai_ops.schema.revision_graph import applied, position_of
from sagewai_ops.snapshots.server_database import ServerFacts, StoredTable
from sagewai_ops.text import printable

_OTHER_AFFINITY = re.compile(r"INT|CHAR|CLOB|TEXT|BLOB|REAL|FLOA|DOUB")  # datatype3.html, 3.1
_TO_SERVER = "sagewai-ops restore ... --database-url URL  # as it is, to a server"
_STRING = re.compile(r"'((?:[^']|'')*)'(?:::.*)?")


@dataclass(frozen=True, slots=True)
class ConvertedColumn:
    """A column that is converted.

    Attributes:
        place: Among the columns of the rows in the snapshot.
        type: On the server.
        is_numeric: It has numeric affinity in the home.
        null: What NULL becomes: of a list, where the home allows none, the JSON null, which is NULL
            on a server.
        joined: How its values are built on both sides; None for values of their own.
    """

    name: str
    place: int
    type: Type
    is_numeric: bool
    null: str | None
    joined: JoinedKey | None

    @property
    def expression(self) -> str:
        """The server's value, in SQL of SQLite."""
        return self.joined.expression if self.joined else quoted(self.name)


@dataclass(frozen=True, slots=True)
class LostColumn:
    """A column that a home does not have.

    Attributes:
        default: The field of which nothing is lost.
    """

    name: str
    place: int
    default: bytes


@dataclass(frozen=True, slots=True)
class ConvertedTable:
    """A table that is converted.

    Attributes:
        key: Places of the primary key.
        number: Place of the column that is the row's number in SQLite; None without one.
    """

    stored: StoredTable
    columns: tuple[ConvertedColumn, ...]
    lost: tuple[LostColumn, ...]
    key: tuple[int, ...]
    number: int | None


@dataclass(frozen=True, slots=True)
class ConversionPlan:
    """How a server's database becomes that of a home.

    Attributes:
        schema: The tables of the home.
        tables: Those that the snapshot has too, by name.
        others: Tables with rows that a home does not have, by name.
    """

    schema: Mapping[str, sqlite_head.Table]
    tables: Mapping[str, ConvertedTable]
    others: Mapping[str, StoredTable]

    @property
    def stored(self) -> list[StoredTable]:
        """Those of `tables` as their source has them."""
        return [table.stored for table in self.tables.values()]

    @property
    def bytes(self) -> int:
        """Of the text of their rows."""
        return sum(table.bytes for table in self.stored)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Those that are known before a row is read."""
        return tuple(
            unknown_table(stored) for name, stored in self.others.items() if name != FACTS_TABLE
        )


def unknown_table(stored: StoredTable) -> Finding:
    """Return the finding about a table that a home does not have."""
    detail = "a home on SQLite has no such table"
    return Finding(printable(stored.name), "", "unknown-table", detail, stored.rows)


def plan_conversion(
    facts: ServerFacts, *, source: str = "snapshot", hint: str = _TO_SERVER
) -> ConversionPlan:
    """Plan the conversion of a server's database.

    Args:
        source: Of the record, for messages.
        hint: For a revision that is unknown.

    Raises:
        SchemaAheadError: Its revision is unknown.
        DamagedError: Its record contradicts itself.
    """
    position = position_of(facts.revision, tables=True)
    if position.state not in ("current", "behind", "forked"):
        heads = ", ".join(map(printable, facts.revision)) or "none"
        raise SchemaAheadError(
            f"{source}: database at revision {heads}, not one that this program converts",
            hint=hint,
        )
    schema = sqlite_head.tables_at(applied(facts.revision))
    tables, others = {}, {}
    for stored in facts.tables:
        if len(set(stored.columns)) != len(stored.columns):
            raise DamagedError(f"{source}: table {printable(stored.name)}: duplicate column")
        if stored.name in schema:
            tables[stored.name] = _plan_table(stored, schema[stored.name])
        elif stored.rows and stored.name != VERSION_TABLE:
            others[stored.name] = stored
    return ConversionPlan(schema, tables, others)


def _plan_table(stored: StoredTable, table: sqlite_head.Table) -> ConvertedTable:
    head = read_head_columns(stored.name)
    columns, lost = [], []
    for place, name in enumerate(stored.columns):
        kind = head[name].type if name in head else None
        if name not in table.columns or kind is None:
            lost.append(LostColumn(name, place, _default(head.get(name))))
            continue
        is_numeric = not _OTHER_AFFINITY.search(table.columns[name].type)
        joined = REWRITTEN.get((stored.name, name))
        if joined and not {*joined.on_sqlite, *joined.on_server} <= {*stored.columns}:
            joined = None
        is_required = "NOT NULL" in table.columns[name].clause
        null = "null" if kind.name == "text[]" and is_required else None
        columns.append(ConvertedColumn(name, place, kind, is_numeric, null, joined))
    places = {name: place for place, name in enumerate(stored.columns)}
    key = tuple(places[name] for name in table.key if name in places)
    # Of a table with such a key, SQLite's number of the row is the value of the column.
    is_number = len(table.key) == 1 and table.columns[table.key[0]].type == "INTEGER"
    number = places.get(table.key[0]) if is_number else None
    return ConvertedTable(stored, tuple(columns), tuple(lost), key, number)


def _default(column: TargetColumn | None) -> bytes:
    """Return the default of a column as COPY sends it; NULL of an unknown one."""
    match = _STRING.fullmatch(column.default) if column else None
    return match[1].replace("''", "'").encode() if match else NULL
