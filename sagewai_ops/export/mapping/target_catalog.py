"""Read the target's tables, types, defaults, keys and constraints from its catalog.

Nothing about Sagewai's tables is written here: a target at a later revision describes itself. Only
the current schema is read, because Sagewai names its tables without one.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from sagewai_ops.export.convert.batch import Type
from sagewai_ops.records import dataclass
from sagewai_ops.schema import postgres_head

if TYPE_CHECKING:
    import asyncpg

VERSION_TABLE = "alembic_version"

# As format_type writes them.
_TYPES = {
    "text": Type("text"),
    "json": Type("json"),
    "jsonb": Type("jsonb"),
    "text[]": Type("text[]"),
    "uuid": Type("uuid"),
    "timestamp with time zone": Type("timestamptz"),
    "boolean": Type("boolean"),
    "smallint": Type("integer", 2),
    "integer": Type("integer", 4),
    "bigint": Type("integer", 8),
    "double precision": Type("double"),
}
_VARCHAR = re.compile(r"character varying(?:\((\d+)\))?")
_DEFINITION = re.compile(
    r"(?P<type>.*?)(?P<not_null> NOT NULL)?(?: DEFAULT (?P<default>.*))?", re.DOTALL
)

_COLUMNS = """
SELECT c.relname, a.attname, t.typname, pg_catalog.format_type(a.atttypid, a.atttypmod) AS type,
       a.attnotnull, a.attgenerated <> '' AS computed,
       a.attidentity <> ''
           OR coalesce(pg_catalog.pg_get_expr(d.adbin, d.adrelid) LIKE 'nextval(%', false)
           AS numbered,
       pg_catalog.pg_get_expr(d.adbin, d.adrelid) AS default_expression,
       pg_catalog.pg_get_serial_sequence(
           pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname), a.attname)
           AS sequence,
       pg_catalog.pg_get_userbyid(c.relowner) AS owner,
       pg_catalog.pg_has_role(c.relowner, 'USAGE') AS owned
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE n.nspname = pg_catalog.current_schema() AND c.relkind IN ('r', 'p')
  AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend e WHERE e.objid = c.oid
    AND e.classid = 'pg_catalog.pg_class'::regclass::oid AND e.deptype = 'e')
ORDER BY c.relname, a.attnum
"""
_CONSTRAINTS = """
SELECT c.relname, k.conname, k.contype::text AS kind, k.convalidated,
       ARRAY(SELECT a.attname::text
             FROM pg_catalog.unnest(k.conkey) WITH ORDINALITY AS u(number, place)
             JOIN pg_catalog.pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.number
             ORDER BY u.place) AS columns,
       p.relname AS parent,
       ARRAY(SELECT a.attname::text
             FROM pg_catalog.unnest(k.confkey) WITH ORDINALITY AS u(number, place)
             JOIN pg_catalog.pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = u.number
             ORDER BY u.place) AS parent_columns,
       CASE WHEN k.contype = 'c' THEN pg_catalog.pg_get_expr(k.conbin, k.conrelid) END
           AS expression
FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_class p ON p.oid = k.confrelid
WHERE n.nspname = pg_catalog.current_schema() AND k.contype IN ('p', 'u', 'f', 'c', 'x')
ORDER BY c.relname, k.conname
"""
_INDEXES = """
SELECT c.relname, x.relname AS index_name, i.indisunique, i.indisprimary,
       i.indexprs IS NOT NULL AS computed,
       pg_catalog.pg_get_expr(i.indpred, i.indrelid) AS predicate,
       ARRAY(SELECT a.attname::text
             FROM pg_catalog.unnest(i.indkey::int2[]) WITH ORDINALITY AS u(number, place)
             JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = u.number
             WHERE u.place <= i.indnkeyatts ORDER BY u.place) AS columns
FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indrelid
JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = pg_catalog.current_schema()
ORDER BY c.relname, x.relname
"""


@dataclass(frozen=True, slots=True)
class TargetColumn:
    """A column of the target.

    Attributes:
        type: None where this program cannot fill it.
        type_name: As the catalog names it.
        default: The expression, "" without one.
        numbered: Its default comes from a sequence.
        computed: Only the server fills it.
        sequence: The sequence that it owns, qualified and quoted, "" without one.
    """

    name: str
    type: Type | None
    type_name: str
    not_null: bool
    default: str
    numbered: bool
    computed: bool
    sequence: str


@dataclass(frozen=True, slots=True)
class Unique:
    """A unique index: its name, its columns, and the condition of its rows ("" for all)."""

    name: str
    columns: tuple[str, ...]
    predicate: str
    primary: bool


@dataclass(frozen=True, slots=True)
class Check:
    """A CHECK constraint, as an expression over the columns."""

    name: str
    columns: tuple[str, ...]
    expression: str


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """A reference to a parent table."""

    name: str
    columns: tuple[str, ...]
    parent: str
    parent_columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TargetTable:
    """A table of the target.

    Attributes:
        columns: By name, in the table's order.
        key: The primary key's columns, empty without one.
        searched: Columns of any index, whose values are limited in size.
        owner: The role that it belongs to.
        owned: Whether our role may act as that role.
    """

    name: str
    columns: Mapping[str, TargetColumn]
    key: tuple[str, ...]
    uniques: tuple[Unique, ...]
    checks: tuple[Check, ...]
    foreign_keys: tuple[ForeignKey, ...]
    searched: frozenset[str]
    owner: str
    owned: bool


async def read_tables(
    connection: asyncpg.Connection[asyncpg.Record],
) -> dict[str, TargetTable]:
    """Describe the tables of the current schema, by name, without Alembic's and extensions'."""
    columns: dict[str, dict[str, TargetColumn]] = {}
    owners: dict[str, tuple[str, bool]] = {}
    for row in await connection.fetch(_COLUMNS):
        columns.setdefault(row["relname"], {})[row["attname"]] = _column(row)
        owners[row["relname"]] = (row["owner"], row["owned"])
    constraints = _by_table(await connection.fetch(_CONSTRAINTS))
    indexes = _by_table(await connection.fetch(_INDEXES))
    return {
        name: TargetTable(
            name,
            columns[name],
            key=next(
                (tuple(row["columns"]) for row in constraints[name] if row["kind"] == "p"),
                (),
            ),
            uniques=tuple(_unique(row) for row in indexes[name] if row["indisunique"]),
            checks=tuple(
                Check(row["conname"], tuple(row["columns"]), row["expression"])
                for row in constraints[name]
                if row["kind"] == "c"
            ),
            foreign_keys=tuple(
                ForeignKey(
                    row["conname"],
                    tuple(row["columns"]),
                    row["parent"],
                    tuple(row["parent_columns"]),
                )
                for row in constraints[name]
                if row["kind"] == "f"
            ),
            searched=frozenset(column for row in indexes[name] for column in row["columns"]),
            owner=owners[name][0],
            owned=owners[name][1],
        )
        for name in columns
        if name != VERSION_TABLE
    }


def with_referring(tables: Mapping[str, TargetTable], names: Iterable[str]) -> set[str]:
    """Return the names of tables, and of those that refer to them, directly or not."""
    found = set(names)
    while True:
        referring = {
            table.name
            for table in tables.values()
            if any(key.parent in found for key in table.foreign_keys)
        }
        if referring <= found:
            return found
        found |= referring


@functools.cache
def read_head_columns(table: str) -> dict[str, TargetColumn]:
    """Describe the columns of a table at the head as `read_tables` would, without a server."""
    columns = {}
    for name, definition in postgres_head.head()["tables"][table]["columns"].items():
        match = _DEFINITION.fullmatch(definition)
        assert match is not None
        default = match["default"] or ""
        columns[name] = TargetColumn(
            name,
            _TYPES.get(match["type"]) or _varchar(match["type"]),
            match["type"],
            not_null=bool(match["not_null"]),
            default=default,
            numbered=default.startswith("nextval("),
            computed=False,
            sequence="",
        )
    return columns


async def read_defaults(
    connection: asyncpg.Connection[asyncpg.Record], table: TargetTable, columns: list[str]
) -> dict[str, str]:
    """Return the defaults of some columns, evaluated by the server, as texts of SQLite."""
    if not columns:
        return {}
    expressions = ", ".join(
        f"pg_catalog.array_to_json({column.default})::text"
        if column.type == Type("text[]")
        else f"({column.default})::text"
        for column in (table.columns[name] for name in columns)
    )
    row = await connection.fetchrow(f"SELECT {expressions}")
    return dict(zip(columns, row or (), strict=True))


def _by_table(rows: list[Any]) -> dict[str, list[Any]]:
    found = defaultdict(list)
    for row in rows:
        found[row["relname"]].append(row)
    return found


def _column(row: Any) -> TargetColumn:
    return TargetColumn(
        row["attname"],
        _TYPES.get(row["type"]) or _varchar(row["type"]),
        row["typname"],
        not_null=row["attnotnull"],
        default=row["default_expression"] or "",
        numbered=row["numbered"],
        computed=row["computed"],
        sequence=row["sequence"] or "",
    )


def _varchar(name: str) -> Type | None:
    match = _VARCHAR.fullmatch(name)
    return Type("text", int(match[1] or 0)) if match else None


def _unique(row: Any) -> Unique:
    return Unique(
        row["index_name"],
        # An index over expressions covers no columns that could be compared here.
        () if row["computed"] else tuple(row["columns"]),
        row["predicate"] or "",
        primary=row["indisprimary"],
    )
