"""Drop indexes and foreign keys before a large load, to create them again before the commit.

Creating an index on loaded rows takes a third of the time of updating it row by row. Only tables
with many rows are worth it. Everything happens in the caller's transaction: no other session sees a
table without its indexes, and a rollback restores all of them.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from sagewai_ops.database.sqlite.read_transaction import quoted
from sagewai_ops.records import dataclass

if TYPE_CHECKING:
    import asyncpg

# With fewer rows, dropping and creating them takes about as long as it saves.
DEFERRED_ROWS = 500

# `movable`: the definition is complete, and no other object depends on the index.
_INDEXES = """
SELECT c.relname AS owner, x.relname AS name,
       pg_catalog.pg_get_indexdef(i.indexrelid) AS definition,
       k.contype IS NOT NULL AS is_constraint,
       pg_catalog.pg_get_constraintdef(k.oid) AS constraint_definition,
       i.indisvalid AND i.indisready AND NOT i.indisclustered AND NOT i.indisreplident
           AND x.reltablespace = 0::oid AND coalesce(k.conparentid, 0::oid) = 0::oid
           AND pg_catalog.obj_description(x.oid, 'pg_class') IS NULL
           AND pg_catalog.obj_description(k.oid, 'pg_constraint') IS NULL
           AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend d WHERE d.refobjid IN (x.oid, k.oid)
               AND d.deptype = 'n'
               AND d.classid <> 'pg_catalog.pg_constraint'::regclass::oid) AS movable
FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indrelid
JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_constraint k ON k.conindid = x.oid AND k.contype IN ('p', 'u', 'x')
WHERE n.nspname = pg_catalog.current_schema() AND c.relname = ANY($1::text[])
ORDER BY c.relname, i.indisprimary DESC, x.relname
"""
_FOREIGN_KEYS = """
SELECT c.relname AS owner, k.conname AS name, pg_catalog.pg_get_constraintdef(k.oid) AS definition,
       p.relname AS parent
FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
JOIN pg_catalog.pg_class p ON p.oid = k.confrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE k.contype = 'f' AND k.convalidated AND k.conparentid = 0::oid
  AND pg_catalog.obj_description(k.oid, 'pg_constraint') IS NULL
  AND n.nspname = pg_catalog.current_schema() AND p.relnamespace = c.relnamespace
  AND (c.relname = ANY($1::text[]) OR p.relname = ANY($1::text[]))
ORDER BY c.relname, k.conname
"""
_REFERENCES = """
SELECT pg_catalog.count(*) FROM pg_catalog.pg_constraint k
JOIN pg_catalog.pg_class p ON p.oid = k.confrelid
JOIN pg_catalog.pg_namespace n ON n.oid = p.relnamespace
WHERE k.contype = 'f' AND n.nspname = pg_catalog.current_schema() AND p.relname = $1::text
"""


@dataclass(frozen=True, slots=True)
class DeferredIndexes:
    """The statements that create the dropped indexes and foreign keys again.

    Attributes:
        indexes: By table, primary keys first.
        foreign_keys: To be run after the indexes of all tables.
    """

    indexes: dict[str, tuple[str, ...]]
    foreign_keys: tuple[str, ...]


async def drop_indexes(
    connection: asyncpg.Connection[asyncpg.Record], tables: Collection[str]
) -> DeferredIndexes:
    """Drop the indexes and foreign keys of some tables, inside the open transaction.

    Args:
        tables: Those that many rows will be loaded into.
    """
    names = sorted(tables)
    keys = await connection.fetch(_FOREIGN_KEYS, names)
    found = await connection.fetch(_INDEXES, names)
    fixed = {row["owner"] for row in found if row["is_constraint"] and not row["movable"]}
    moving = [row for row in found if row["movable"] and row["owner"] not in fixed]
    statements = [_drop_constraint(row["owner"], row["name"]) for row in keys]
    statements += [
        _drop_constraint(row["owner"], row["name"])
        if row["is_constraint"]
        else f"DROP INDEX {quoted(row['name'])}"
        for row in moving
    ]
    await connection.execute("; ".join(statements))
    indexes: dict[str, tuple[str, ...]] = {}
    for row in moving:
        indexes[row["owner"]] = (*indexes.get(row["owner"], ()), _create(row))
    return DeferredIndexes(indexes, tuple(map(_create_key, keys)))


async def drop_references(
    connection: asyncpg.Connection[asyncpg.Record], table: str
) -> tuple[list[str], bool]:
    """Drop the foreign keys that refer to a table, inside the open transaction.

    Without them its rows can be replaced, and no other row is deleted or changed with them.

    Returns:
        The statements that create them again, and whether no other foreign key refers to it.
    """
    keys = [row for row in await connection.fetch(_FOREIGN_KEYS, [table]) if row["parent"] == table]
    if keys:
        statements = [_drop_constraint(row["owner"], row["name"]) for row in keys]
        await connection.execute("; ".join(statements))
    return [_create_key(row) for row in keys], not await connection.fetchval(_REFERENCES, table)


def _drop_constraint(table: str, constraint: str) -> str:
    return f"ALTER TABLE {quoted(table)} DROP CONSTRAINT {quoted(constraint)}"


def _create_key(row: Any) -> str:
    owner, name = quoted(row["owner"]), quoted(row["name"])
    return f"ALTER TABLE {owner} ADD CONSTRAINT {name} {row['definition']}"


def _create(row: Any) -> str:
    if row["is_constraint"]:
        name, definition = quoted(row["name"]), row["constraint_definition"]
        return f"ALTER TABLE {quoted(row['owner'])} ADD CONSTRAINT {name} {definition}"
    return str(row["definition"])
