"""The schema `sagewai_incoming`, which has the rows of a resumable export until its last commit.

It has the tables of Sagewai, without the indexes of the large ones, and two of ours: the move that
it belongs to, and how many rows of each table are there. Every transaction that adds rows writes
that in the same transaction. Only its owner, the role of the export, may use the schema; one
with other rights, owners, triggers or rules is refused.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, TypeAlias

from sagewai_ops.database.postgres.connection import (
    FOREIGN_CODE,
    foreign_code_error,
    keep_connection,
    pin_settings,
)
from sagewai_ops.database.postgres.pooler import require_own_session
from sagewai_ops.database.sqlite.read_transaction import quoted
from sagewai_ops.database.url import PostgresUrl
from sagewai_ops.errors import DamagedError, LockedError, PermissionDeniedError, TargetBusyError
from sagewai_ops.records import dataclass
from sagewai_ops.schema.migrate_postgres import LOCK
from sagewai_ops.schema.postgres_objects import OBJECTS, move_objects
from sagewai_ops.text import printable

if TYPE_CHECKING:
    import asyncpg

    Server: TypeAlias = asyncpg.Connection[asyncpg.Record]

SCHEMA = "sagewai_incoming"
MOVE_TABLE, ROWS_TABLE = "sagewai_ops_move", "sagewai_ops_rows"
OWN_TABLES = (MOVE_TABLE, ROWS_TABLE)

DROP_BY_HAND = f"psql URL -c 'DROP SCHEMA {SCHEMA} CASCADE'  # after a look at it: \\dt {SCHEMA}.*"
# So that a server notices within about a minute that a line was cut, and frees the lock.
_KEEPALIVES = {
    "tcp_keepalives_idle": "20",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "4",
}
_KEEP_ALIVE = """
SELECT pg_catalog.set_config(u.name, u.value, false)
FROM ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[])) AS u(name, value)
"""
_USE = f"""
SELECT pg_catalog.set_config('search_path', '{SCHEMA}, pg_temp', true),
  pg_catalog.set_config('sagewai_ops.schemas', '{{{SCHEMA}}}', true)
"""
_FIND = f"""
SELECT pg_catalog.pg_get_userbyid(n.nspowner)::text AS owner,
  EXISTS (SELECT 1 FROM pg_catalog.pg_roles r
    WHERE r.rolname = current_user AND r.oid = n.nspowner) AS is_own,
  EXISTS (SELECT 1 FROM pg_catalog.aclexplode(n.nspacl) a WHERE a.grantee <> n.nspowner)
    AS is_shared
FROM pg_catalog.pg_namespace n WHERE n.nspname = '{SCHEMA}'::name
"""
# Objects that no export created.
_STRANGE = f"""
WITH here AS (
  SELECT oid, nspowner FROM pg_catalog.pg_namespace WHERE nspname = '{SCHEMA}'::name
), relations AS (
  SELECT c.* FROM pg_catalog.pg_class c JOIN here ON here.oid = c.relnamespace
)
SELECT 'relation ' || c.relname::text AS name FROM relations c, here
WHERE c.relowner <> here.nspowner OR c.relkind NOT IN ('r', 'i', 'S')
UNION ALL
SELECT 'function ' || p.proname::text FROM pg_catalog.pg_proc p JOIN here
  ON here.oid = p.pronamespace WHERE p.proowner <> here.nspowner
UNION ALL
SELECT 'type ' || t.typname::text FROM pg_catalog.pg_type t JOIN here
  ON here.oid = t.typnamespace WHERE t.typowner <> here.nspowner
UNION ALL
SELECT 'operator ' || o.oprname::text FROM pg_catalog.pg_operator o JOIN here
  ON here.oid = o.oprnamespace
UNION ALL
SELECT 'trigger ' || t.tgname::text FROM pg_catalog.pg_trigger t JOIN relations c
  ON c.oid = t.tgrelid WHERE NOT t.tgisinternal
UNION ALL
SELECT 'rule ' || r.rulename::text FROM pg_catalog.pg_rewrite r JOIN relations c
  ON c.oid = r.ev_class
UNION ALL
SELECT 'policy ' || p.polname::text FROM pg_catalog.pg_policy p JOIN relations c
  ON c.oid = p.polrelid
UNION ALL
SELECT 'inheritance of ' || c.relname::text FROM pg_catalog.pg_inherits i JOIN relations c
  ON c.oid IN (i.inhrelid, i.inhparent)
UNION ALL
SELECT 'publication of ' || c.relname::text FROM pg_catalog.pg_publication_rel p JOIN relations c
  ON c.oid = p.prrelid
LIMIT 1
"""
_HAS_TABLES = f"""
SELECT count(*) = 2 FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = '{SCHEMA}'::name AND c.relkind = 'r'
  AND c.relname IN ('{MOVE_TABLE}', '{ROWS_TABLE}')
"""
_CREATE = f"""
CREATE TABLE {MOVE_TABLE} (binding text NOT NULL);
CREATE TABLE {ROWS_TABLE} (name text PRIMARY KEY, rows bigint NOT NULL, ranges bigint NOT NULL);
"""
# What ALTER DEFAULT PRIVILEGES grants on new objects of a schema, which those that move into it do
# not get.
_GRANTS = """
SELECT pg_catalog.format('GRANT %s ON %s %s TO %s%s', a.privilege_type, o.kind, o.name,
    CASE a.grantee WHEN 0::oid THEN 'PUBLIC'
      ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) END,
    CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
FROM pg_catalog.pg_default_acl d
JOIN pg_catalog.pg_namespace n ON n.oid = d.defaclnamespace
JOIN pg_catalog.pg_roles me ON me.oid = d.defaclrole
CROSS JOIN LATERAL pg_catalog.aclexplode(d.defaclacl) a
JOIN (
  SELECT CASE c.relkind WHEN 'S' THEN 'S' ELSE 'r' END AS code,
    CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END AS kind,
    c.oid::regclass::text AS name, c.relnamespace AS place
  FROM pg_catalog.pg_class c WHERE c.relkind IN ('r', 'S')
  UNION ALL
  SELECT 'f', 'FUNCTION', p.oid::regprocedure::text, p.pronamespace FROM pg_catalog.pg_proc p
) o ON o.code = d.defaclobjtype::text AND o.place = n.oid
WHERE n.nspname = pg_catalog.current_schema() AND me.rolname = current_user
ORDER BY 1
"""


@dataclass(frozen=True, slots=True)
class Progress:
    """The rows that the schema has of each table, and in how many ranges they came."""

    rows: Mapping[str, int]
    ranges: Mapping[str, int]


@asynccontextmanager
async def open_server(url: PostgresUrl) -> AsyncIterator[Server]:
    """Open a connection that excludes other moves and upgrades while it is open.

    Raises:
        LockedError: One is running.
        RemoteError: A pooler that shares sessions, or no connection.
        OpsError: As `keep_connection`.
    """
    async with keep_connection(url) as connection:
        await require_own_session(url, connection)
        async with transaction(url, connection):
            names, values = list(_KEEPALIVES), list(_KEEPALIVES.values())
            await connection.execute(_KEEP_ALIVE, names, values)
            if not await connection.fetchval("SELECT pg_catalog.pg_try_advisory_lock($1)", LOCK):
                raise LockedError(
                    f"{url.display}: locked by another export or upgrade; after a cut of the line"
                    " the server frees the lock within a minute",
                    hint="psql URL -c 'SELECT * FROM pg_stat_activity'",
                )
        yield connection


@asynccontextmanager
async def transaction(
    url: PostgresUrl, connection: Server, *, inside: bool = False
) -> AsyncIterator[None]:
    """Run the block in a transaction of a connection; an error rolls it back.

    Args:
        inside: The schema is the current one.
    """
    import asyncpg

    running = connection.transaction()
    await running.start()
    try:
        await pin_settings(url, connection)
        if inside:
            await use(connection)
        yield
    except Exception:
        with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            if not connection.is_closed():
                await running.rollback()
        raise
    if connection.is_in_transaction():  # else the block ended it
        await running.commit()


async def use(connection: Server) -> None:
    """Make the schema the current one until the end of the transaction."""
    await connection.execute(_USE)


async def find(url: PostgresUrl, connection: Server) -> bool:
    """Return whether the database has the schema, and check that it is ours alone.

    Raises:
        PermissionDeniedError: It is another role's, or others have rights in it or made objects.
    """
    found = await connection.fetchrow(_FIND)
    if found is None:
        return False
    problem = ""
    if not found["is_own"]:
        problem = f"belongs to the role {printable(found['owner'])}"
    elif found["is_shared"]:
        problem = "other roles have rights in it"
    elif strange := await connection.fetchval(_STRANGE):
        problem = f"has the {printable(strange)}, which no export created"
    if problem:
        raise PermissionDeniedError(f"{url.display}: schema {SCHEMA} {problem}", hint=DROP_BY_HAND)
    return True


async def is_present(connection: Server) -> bool:
    """Return whether the database has such a schema of our role."""
    found = await connection.fetchrow(_FIND)
    return bool(found and found["is_own"])


async def create(url: PostgresUrl, connection: Server) -> None:
    """Create the schema and make it the current one.

    Raises:
        PermissionDeniedError: Default privileges grant other roles rights in it.
    """
    await connection.execute(f"CREATE SCHEMA {SCHEMA}")
    await find(url, connection)
    await use(connection)


async def bind(connection: Server, binding: str) -> None:
    """Write which move the schema, the current one, belongs to."""
    await connection.execute(_CREATE)
    await connection.execute(f"INSERT INTO {MOVE_TABLE} VALUES ($1)", binding)


async def read_binding(connection: Server) -> str:
    """Return which move the schema belongs to; "" if it does not state one."""
    if not await connection.fetchval(_HAS_TABLES):
        return ""
    rows = await connection.fetch(f"SELECT binding FROM {SCHEMA}.{MOVE_TABLE}")
    return str(rows[0][0]) if len(rows) == 1 else ""


async def read_progress(connection: Server) -> Progress:
    """Return which rows are there."""
    found = await connection.fetch(
        "SELECT name, coalesce(rows, -1) AS rows, coalesce(ranges, 0) AS ranges"
        f" FROM {SCHEMA}.{ROWS_TABLE}"
    )
    return Progress(
        {row["name"]: int(row["rows"]) for row in found},
        {row["name"]: int(row["ranges"]) for row in found},
    )


async def record_rows(connection: Server, table: str, before: int, rows: int) -> None:
    """Record rows that this transaction added.

    Args:
        before: The rows of the table that were there.
        rows: Those that were added.

    Raises:
        DamagedError: Another session has recorded other rows.
    """
    done = await connection.fetch(
        f"INSERT INTO {SCHEMA}.{ROWS_TABLE} AS t (name, rows, ranges) VALUES ($1, $2, 1)"
        f" ON CONFLICT (name) DO UPDATE SET rows = t.rows + excluded.rows, ranges = t.ranges + 1"
        f" RETURNING rows",
        table,
        rows,
    )
    if [row[0] for row in done] != [before + rows]:
        raise DamagedError(f"schema {SCHEMA}: table {table}: not the rows that this run added")


async def suspend_autovacuum(connection: Server, tables: Iterable[str]) -> None:
    """Turn autovacuum off for some tables of the schema, until `resume_autovacuum`.

    Between two ranges it would record the gaps of all pages, and later rows would be stored there,
    in another order than they were sent; and it would read a growing table again and again.
    """
    await _alter(connection, tables, "SET (autovacuum_enabled = off)")


async def resume_autovacuum(connection: Server, tables: Iterable[str]) -> None:
    """Leave autovacuum to the server's settings again."""
    await _alter(connection, tables, "RESET (autovacuum_enabled)")


async def _alter(connection: Server, tables: Iterable[str], action: str) -> None:
    statements = [f"ALTER TABLE {SCHEMA}.{quoted(name)} {action}" for name in tables]
    if statements:
        await connection.execute("; ".join(statements))


async def lock_tables(url: PostgresUrl, connection: Server) -> None:
    """Lock the tables of the schema, the current one, and check again that it is ours alone.

    Raises:
        PermissionDeniedError: It is not.
    """
    tables = [row["name"] for row in await connection.fetch(OBJECTS) if row["kind"] == "TABLE"]
    # The server itself quoted the names.
    await connection.execute(f"LOCK TABLE {', '.join(tables)} IN ACCESS EXCLUSIVE MODE")
    await find(url, connection)
    foreign = await connection.fetchrow(FOREIGN_CODE)
    if foreign:
        raise foreign_code_error(url.display, *foreign)


async def drop_own_tables(connection: Server) -> None:
    """Drop the tables of ours, before the others move."""
    await connection.execute(f"DROP TABLE {', '.join(f'{SCHEMA}.{name}' for name in OWN_TABLES)}")


async def move_to(connection: Server, schema: str) -> None:
    """Move everything from the current schema, `sagewai_incoming`, to another, and drop it.

    That schema is the current one afterwards.

    Raises:
        asyncpg.PostgresError: It has an object of the same name.
    """
    await move_objects(connection, await connection.fetch(OBJECTS), schema)
    await connection.execute(f"DROP SCHEMA {SCHEMA}")
    await connection.execute(f"SET LOCAL search_path = {quoted(schema)}, pg_temp")
    for row in await connection.fetch(_GRANTS):
        await connection.execute(row[0])


async def drop(url: PostgresUrl, connection: Server) -> None:
    """Drop the schema, the current one, and everything in it, but nothing that depends on it.

    Raises:
        TargetBusyError: Objects of other schemas depend on it.
    """
    import asyncpg

    objects = await connection.fetch(OBJECTS)
    tables = [row["name"] for row in objects if row["kind"] == "TABLE"]
    try:
        if tables:
            await connection.execute(f"DROP TABLE {', '.join(tables)}")
        for row in objects:
            if row["kind"] != "TABLE":
                await connection.execute(f"DROP {row['kind']} {row['name']}")
        await connection.execute(f"DROP SCHEMA {SCHEMA}")
    except asyncpg.DependentObjectsStillExistError as error:
        raise TargetBusyError(
            f"{url.display}: schema {SCHEMA}: other objects depend on it", hint=DROP_BY_HAND
        ) from error
