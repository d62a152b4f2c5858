"""What the target is: its tables, types, defaults, keys and constraints, read from its catalog.

Nothing about Sagewai's tables is written down here: a target at a later revision describes itself.
Only the current schema is looked at, because Sagewai names its tables without one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sagewai_ops.export.convert.batch import Type

if TYPE_CHECKING:
    import asyncpg

VERSION_TABLE = "alembic_version"
_VARCHAR_HEADER = 4  # a varchar's typmod is its limit and this; varchar.c

_COLUMNS = """
SELECT c.relname, a.attname, t.typname, a.atttypmod, a.attnotnull, a.attgenerated <> '' AS computed,
       a.attidentity <> '' OR coalesce(pg_get_expr(d.adbin, d.adrelid) LIKE 'nextval(%', false)
           AS numbered,
       pg_get_expr(d.adbin, d.adrelid) AS default_expression,
       pg_get_serial_sequence(quote_ident(n.nspname) || '.' || quote_ident(c.relname), a.attname)
           AS sequence,
       pg_get_userbyid(c.relowner) AS owner, pg_has_role(c.relowner, 'USAGE') AS owned
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE n.nspname = current_schema() AND c.relkind IN ('r', 'p')
ORDER BY c.relname, a.attnum
"""
_CONSTRAINTS = """
SELECT c.relname, k.conname, k.contype::text AS kind, k.convalidated,
       ARRAY(SELECT a.attname::text FROM unnest(k.conkey) WITH ORDINALITY AS u(number, place)
             JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.number
             ORDER BY u.place) AS columns,
       p.relname AS parent,
       ARRAY(SELECT a.attname::text FROM unnest(k.confkey) WITH ORDINALITY AS u(number, place)
             JOIN pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = u.number
             ORDER BY u.place) AS parent_columns,
       CASE WHEN k.contype = 'c' THEN pg_get_expr(k.conbin, k.conrelid) END AS expression
FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
LEFT JOIN pg_class p ON p.oid = k.confrelid
WHERE c.relnamespace = current_schema()::regnamespace AND k.contype IN ('p', 'u', 'f', 'c', 'x')
ORDER BY c.relname, k.conname
"""
_INDEXES = """
SELECT c.relname, x.relname AS index_name, i.indisunique, i.indisprimary,
       i.indexprs IS NOT NULL AS computed, pg_get_expr(i.indpred, i.indrelid) AS predicate,
       ARRAY(SELECT a.attname::text
             FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS u(number, place)
             JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = u.number
             WHERE u.place <= i.indnkeyatts ORDER BY u.place) AS columns
FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_class x ON x.oid = i.indexrelid
WHERE c.relnamespace = current_schema()::regnamespace
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
        computed: The server fills it alone.
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
    """A unique index: what it is called, its columns, and the rows that it covers ("" for all)."""

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
        searched: Columns of any index: those that queries select by, and whose values are limited.
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
    """Describe the tables of the current schema, by name; Alembic's own is not among them."""
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


async def read_defaults(
    connection: asyncpg.Connection[asyncpg.Record], table: TargetTable, columns: list[str]
) -> dict[str, str]:
    """Ask the server what the defaults of some columns are, as texts that `values` can read."""
    if not columns:
        return {}
    spelled = ", ".join(
        f"array_to_json({column.default})::text"
        if column.type == Type("text[]")
        else f"({column.default})::text"
        for column in (table.columns[name] for name in columns)
    )
    row = await connection.fetchrow(f"SELECT {spelled}")
    return dict(zip(columns, row or (), strict=True))


def _by_table(rows: list[Any]) -> dict[str, list[Any]]:
    found = defaultdict(list)
    for row in rows:
        found[row["relname"]].append(row)
    return found


def _column(row: Any) -> TargetColumn:
    return TargetColumn(
        row["attname"],
        _type(row["typname"], row["atttypmod"]),
        row["typname"],
        not_null=row["attnotnull"],
        default=row["default_expression"] or "",
        numbered=row["numbered"],
        computed=row["computed"],
        sequence=row["sequence"] or "",
    )


def _type(name: str, modifier: int) -> Type | None:
    if name == "varchar":
        return Type("text", max(modifier - _VARCHAR_HEADER, 0))
    return {
        "text": Type("text"),
        "json": Type("json"),
        "jsonb": Type("jsonb"),
        "_text": Type("text[]"),
        "uuid": Type("uuid"),
        "timestamptz": Type("timestamptz"),
        "bool": Type("boolean"),
        "int2": Type("integer", 2),
        "int4": Type("integer", 4),
        "int8": Type("integer", 8),
        "float8": Type("double"),
    }.get(name)


def _unique(row: Any) -> Unique:
    return Unique(
        row["index_name"],
        # An index over expressions covers no columns that could be compared here.
        () if row["computed"] else tuple(row["columns"]),
        row["predicate"] or "",
        primary=row["indisprimary"],
    )
