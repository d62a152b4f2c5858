"""The objects of a schema on a server, and their move to another schema."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sagewai_ops.database.sqlite.read_transaction import quoted

if TYPE_CHECKING:
    import asyncpg

# The objects of a schema that is the current one, each with the command that moves it. Indexes,
# constraints, owned sequences, row types and arrays move with their tables.
OBJECTS = """
WITH here AS (
  SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = pg_catalog.current_schema()
), members AS (SELECT classid, objid FROM pg_catalog.pg_depend WHERE deptype = 'e')
SELECT 'TABLE' AS kind, c.oid::regclass::text AS name,
  pg_catalog.pg_has_role(c.relowner, 'USAGE') AS owned, 1 AS place
FROM pg_catalog.pg_class c JOIN here ON here.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND NOT EXISTS (SELECT 1 FROM members e
  WHERE e.classid = 'pg_catalog.pg_class'::regclass::oid AND e.objid = c.oid)
UNION ALL
SELECT 'SEQUENCE', c.oid::regclass::text, pg_catalog.pg_has_role(c.relowner, 'USAGE'), 2
FROM pg_catalog.pg_class c JOIN here ON here.oid = c.relnamespace
WHERE c.relkind = 'S' AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend d
  WHERE d.classid = 'pg_catalog.pg_class'::regclass::oid AND d.objid = c.oid
    AND d.deptype IN ('a', 'i', 'e'))
UNION ALL
SELECT 'TYPE', pg_catalog.format_type(t.oid, NULL), pg_catalog.pg_has_role(t.typowner, 'USAGE'), 3
FROM pg_catalog.pg_type t JOIN here ON here.oid = t.typnamespace
LEFT JOIN pg_catalog.pg_class c ON c.oid = t.typrelid
WHERE (t.typtype IN ('e', 'd', 'r') OR t.typtype = 'c' AND c.relkind = 'c')
  AND NOT EXISTS (SELECT 1 FROM members e
    WHERE e.classid = 'pg_catalog.pg_type'::regclass::oid AND e.objid = t.oid)
UNION ALL
SELECT 'ROUTINE', p.oid::regprocedure::text, pg_catalog.pg_has_role(p.proowner, 'USAGE'), 4
FROM pg_catalog.pg_proc p JOIN here ON here.oid = p.pronamespace
WHERE NOT EXISTS (SELECT 1 FROM members e
  WHERE e.classid = 'pg_catalog.pg_proc'::regclass::oid AND e.objid = p.oid)
ORDER BY 4, 2
"""


async def move_objects(
    connection: asyncpg.Connection[asyncpg.Record], objects: Iterable[asyncpg.Record], target: str
) -> None:
    """Move objects of the current schema to another one.

    Args:
        objects: Rows of `OBJECTS`; the server itself quoted the names.
        target: An existing schema.
    """
    for item in objects:
        await connection.execute(f"ALTER {item['kind']} {item['name']} SET SCHEMA {quoted(target)}")
