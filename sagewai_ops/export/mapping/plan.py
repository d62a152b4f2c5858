"""The plan of an export: the tables in their order, and how each column is read and converted.

It is derived from the source's schema and the target's catalog. What only the source has is a
finding; what only the target has gets its defaults, and is reported. The only knowledge of Sagewai
here is `REWRITTEN`.
"""

from __future__ import annotations

import graphlib
import sqlite3
from collections.abc import Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Any

from sagewai_ops.database.sqlite.read_transaction import quoted, quoted_text
from sagewai_ops.database.sqlite.vec0 import vector_tables
from sagewai_ops.export.convert.batch import Target, Type
from sagewai_ops.export.mapping.findings import Finding
from sagewai_ops.export.mapping.target_catalog import VERSION_TABLE, TargetTable, read_defaults
from sagewai_ops.records import dataclass
from sagewai_ops.schema import sqlite_head
from sagewai_ops.schema.sqlite_revision import read_level

if TYPE_CHECKING:
    import asyncpg


@dataclass(frozen=True, slots=True)
class JoinedKey:
    """A key that is built of columns of its row, joined by colons: of which, on either side."""

    on_sqlite: tuple[str, ...]
    on_server: tuple[str, ...]

    @property
    def expression(self) -> str:
        """The server's key, in SQL of SQLite."""
        return join_columns(self.on_server)


def join_columns(names: tuple[str, ...]) -> str:
    """Return the SQL that joins columns by colons."""
    return " || ':' || ".join(map(quoted, names))


# Sagewai builds these keys differently on SQLite and on PostgreSQL: unchanged, it would not find
# its rows.
REWRITTEN = {
    ("workflow_runs", "id"): JoinedKey(
        on_sqlite=("project_id", "workflow_name", "run_id"),
        on_server=("workflow_name", "run_id"),
    )
}


@dataclass(frozen=True, slots=True)
class PlannedColumn:
    """A column to be exported.

    Attributes:
        name: The same on both sides.
        expression: Read from the source, in SQL of SQLite.
        target: The column of the target.
        default: Replaces NULL: the server's default as a text; None without one.
    """

    name: str
    expression: str
    target: Target
    default: str | None = None


@dataclass(frozen=True, slots=True)
class PlannedTable:
    """A table to be exported.

    Attributes:
        columns: In the target's order.
        key: The target's primary key.
        rows: Their number.
        left: Columns that only the target has, which get their defaults.
        where: The rows to be exported, as a condition of SQLite; "" for all.
    """

    name: str
    columns: tuple[PlannedColumn, ...]
    key: tuple[str, ...]
    rows: int
    left: tuple[str, ...] = ()
    where: str = ""

    def select(self) -> str:
        """Return the query for the rows in the order of their rowids; the rowid is last."""
        expressions = ", ".join(column.expression for column in self.columns)
        return f"SELECT {expressions}, rowid FROM {self.source()} ORDER BY rowid"

    def source(self) -> str:
        """Return the SQL after FROM that reads the rows."""
        return quoted(self.name) + (f" WHERE {self.where}" if self.where else "")

    def column(self, name: str) -> PlannedColumn:
        """Return a column by its name."""
        return next(column for column in self.columns if column.name == name)

    def has_columns(self, columns: tuple[str, ...]) -> bool:
        """Return whether all of these columns are exported."""
        names = {column.name for column in self.columns}
        return bool(columns) and names.issuperset(columns)


@dataclass(frozen=True, slots=True)
class Plan:
    """What an export copies, and the findings about tables and columns.

    Attributes:
        tables: Those with rows, parents before children.
        empty: Tables that both sides have, without rows.
        findings: Tables and columns that only one side has.
        notes: Other remarks, one sentence each.
    """

    tables: tuple[PlannedTable, ...]
    empty: tuple[str, ...]
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """The number of rows to be exported."""
        return sum(table.rows for table in self.tables)

    def table(self, name: str) -> PlannedTable:
        """Return a table by its name."""
        return next(table for table in self.tables if table.name == name)


@dataclass(slots=True)
class _Draft:
    tables: dict[str, PlannedTable] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


async def make_plan(
    source: sqlite3.Connection,
    target: Mapping[str, TargetTable],
    server: asyncpg.Connection[asyncpg.Record],
) -> Plan:
    """Match the source's tables with the target's.

    Args:
        source: A frozen copy, with the usual text factory.
        target: The catalog.
        server: Evaluates defaults.
    """
    level = read_level(source)
    draft = _Draft()
    present = [
        *(name for name in sqlite_head.tables() if _exists(source, name)),
        *level.unknown_tables,
    ]
    for name in present:
        rows = _count(source, name)
        if name == VERSION_TABLE:
            draft.notes.append(f"table {name}: omitted, SQLite homes have no revisions")
        elif name not in target and not rows:
            draft.notes.append(f"table {name}: omitted, it is empty and not in the target")
        elif name not in target:
            draft.findings.append(
                Finding(name, "", "unknown-table", "the target has no such table", rows)
            )
        elif rows == 0:
            draft.empty.append(name)
        else:
            await _add_table(draft, source, target[name], server, rows)
    draft.notes += [f"table {name}: omitted, of litestream" for name in level.companion_tables]
    vectors = {table.name for table in vector_tables(source)}
    for name in level.virtual_tables:
        if name not in vectors:
            detail = "a virtual table, whose rows only its own module can read"
            draft.findings.append(Finding(name, "", "unknown-table", detail))
    order = graphlib.TopologicalSorter(
        {
            name: {key.parent for key in target[name].foreign_keys if key.parent != name}
            for name in draft.tables
        }
    )
    ordered = [draft.tables[name] for name in order.static_order() if name in draft.tables]
    return Plan(tuple(ordered), tuple(draft.empty), tuple(draft.findings), tuple(draft.notes))


async def _add_table(
    draft: _Draft,
    source: sqlite3.Connection,
    target: TargetTable,
    server: asyncpg.Connection[asyncpg.Record],
    rows: int,
) -> None:
    stored = {row[1]: row for row in source.execute(f"PRAGMA table_xinfo({quoted(target.name)})")}
    for name in stored:
        if name not in target.columns:
            detail = "the target's table has no such column"
            draft.findings.append(Finding(target.name, name, "unknown-column", detail, rows))
        elif target.columns[name].type is None:
            detail = f"this program cannot fill a column of type {target.columns[name].type_name}"
            draft.findings.append(Finding(target.name, name, "unknown-type", detail, rows))
    # A table of an older Sagewai may lack NOT NULL.
    loose = [
        name
        for name, column in target.columns.items()
        if name in stored
        and column.not_null
        and column.default
        and not column.numbered
        and not stored[name][3]
        and not stored[name][5]
    ]
    defaults = await read_defaults(server, target, loose)
    columns = []
    for name, column in target.columns.items():
        if name not in stored or column.type is None or column.computed:
            continue
        joined = REWRITTEN.get((target.name, name))
        expression = joined.expression if joined else quoted(name)
        if name in defaults:
            expression = f"coalesce({expression}, {_literal(column.type, defaults[name])})"
        planned = Target(column.type, nullable=not column.not_null)
        columns.append(PlannedColumn(name, expression, planned, defaults.get(name)))
    left = [name for name, column in target.columns.items() if name not in stored]
    for name in left:
        column = target.columns[name]
        if column.not_null and not column.default and not column.numbered:
            detail = "the target requires a value, and the source has no such column"
            draft.findings.append(Finding(target.name, name, "missing-column", detail, rows))
    draft.tables[target.name] = PlannedTable(
        target.name, tuple(columns), target.key, rows, tuple(left)
    )


def _literal(kind: Type, default: str) -> str:
    """Return a default of the server as a literal of SQLite, of the class that is stored."""
    if kind.name in ("integer", "double"):
        return default
    return quoted_text(default)


def _exists(source: sqlite3.Connection, name: str) -> bool:
    query = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
    return source.execute(query, (name,)).fetchone() is not None


def _count(source: sqlite3.Connection, name: str) -> int:
    (rows,) = source.execute(f"SELECT count(*) FROM {quoted(name)}").fetchone()
    return int(rows)


def as_job(plan: Plan) -> list[dict[str, Any]]:
    """Return the tables as JSON, for the process that reads them."""
    return [
        {
            "name": table.name,
            "rows": table.rows,
            "key": list(table.key),
            "where": table.where,
            "columns": [
                [
                    column.name,
                    column.expression,
                    column.target.type.name,
                    column.target.type.size,
                    column.target.nullable,
                ]
                for column in table.columns
            ],
        }
        for table in plan.tables
    ]


def from_job(job: list[dict[str, Any]]) -> tuple[PlannedTable, ...]:
    """Return the tables of `as_job`."""
    return tuple(
        PlannedTable(
            table["name"],
            tuple(
                PlannedColumn(name, expression, Target(Type(kind, size), nullable))
                for name, expression, kind, size, nullable in table["columns"]
            ),
            tuple(table["key"]),
            table["rows"],
            where=table["where"],
        )
        for table in job
    )
