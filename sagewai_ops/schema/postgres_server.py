"""Read a PostgreSQL server and a database on it, and check the role's privileges.

The schema is always the session's current one, the first of its `search_path` that exists: Sagewai
and Alembic create their tables there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sagewai_ops.database.postgres.connection import FOREIGN_CODE, foreign_code_error
from sagewai_ops.errors import PermissionDeniedError, UsageError
from sagewai_ops.records import dataclass
from sagewai_ops.schema import revision_graph

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

OLDEST = 14  # major versions; PostgreSQL itself supports nothing older
NEWEST = 18  # the newest that the revisions are tested on

_ABOUT = """
SELECT pg_catalog.current_setting('server_version_num')::int AS version,
  pg_catalog.current_setting('server_version') AS version_text,
  pg_catalog.quote_ident(pg_catalog.current_schema()) AS schema,
  pg_catalog.quote_ident(current_user) AS role,
  pg_catalog.current_setting('server_encoding') AS encoding,
  pg_catalog.current_database()::text AS database,
  pg_catalog.pg_is_in_recovery() AS standby,
  pg_catalog.current_setting('transaction_read_only')::bool AS read_only,
  coalesce(pg_catalog.has_schema_privilege(pg_catalog.current_schema(), 'CREATE'), false)
    AS may_create,
  pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE') AS may_create_schemas,
  (SELECT pg_catalog.quote_ident(n.nspname)
    FROM pg_catalog.unnest(pg_catalog.current_setting('sagewai_ops.schemas')::name[])
      WITH ORDINALITY AS path(name, place)
    JOIN pg_catalog.pg_namespace n ON n.nspname = path.name
    JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid
    WHERE c.relname = 'alembic_version' AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
    ORDER BY path.place LIMIT 1) AS versions_in
"""
# The functions whose parameter sagewai-ops named otherwise than Sagewai until version 0.2.0.
_OLD_FUNCTIONS = """
SELECT p.proname::text
FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
WHERE n.nspname = pg_catalog.current_schema()
  AND pg_catalog.oidvectortypes(p.proargtypes) = 'text'
  AND p.proname IN ('network_policy_rank', 'sandbox_mode_rank')
  AND pg_catalog.array_to_string(p.proargnames, ',') = :old
ORDER BY 1
"""
OLD_PARAMETER = "word"
# The first existing schema of the search_path, if the role may use none of them.
_CLOSED = """
SELECT pg_catalog.quote_ident(n.nspname) FROM pg_catalog.pg_namespace n
JOIN pg_catalog.regexp_split_to_table(
    pg_catalog.current_setting('sagewai_ops.search_path'), ', *')
  WITH ORDINALITY AS path(name, place)
  ON pg_catalog.quote_ident(n.nspname) = path.name
    OR path.name = '"$user"' AND n.nspname = current_user
ORDER BY path.place LIMIT 1
"""
_TABLES = """
SELECT c.relname::text AS name, pg_catalog.quote_ident(c.relname) AS quoted,
  pg_catalog.pg_has_role(c.relowner, 'USAGE') AS owned,
  pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(c.relowner)) AS owner
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = pg_catalog.current_schema() AND c.relkind IN ('r', 'p')
  AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend d WHERE d.objid = c.oid
    AND d.classid = 'pg_catalog.pg_class'::regclass::oid AND d.deptype = 'e')
ORDER BY c.relname COLLATE "C"
"""
VERSION_TABLE = "alembic_version"
ENCODING = "UTF8"  # the only one that holds every text of a home
_COUNTED_AT_ONCE = 500  # a SELECT has at most 1664 columns


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the current schema, without those of extensions."""

    name: str
    quoted: str
    owned: bool
    owner: str


@dataclass(frozen=True, slots=True)
class Database:
    """A database and the role's privileges in it.

    Attributes:
        major: The server's major version; `version` is the full one.
        schema: The current schema.
        role: The current user, quoted like `schema` and the owners of tables.
        encoding: Of the database.
        may_create: The role may create tables in the schema.
        may_create_schemas: The role may create schemas in the database.
        tables: By name, including `alembic_version`.
        position: The revisions of the database.
        old_functions: Those whose parameter still has the name `OLD_PARAMETER`.
        foreign_code: Code of another role that a change of rows would run, and the role.
    """

    name: str
    major: int
    version: str
    schema: str
    role: str
    encoding: str
    read_only: bool
    may_create: bool
    may_create_schemas: bool
    tables: tuple[Table, ...]
    position: revision_graph.Position
    old_functions: tuple[str, ...]
    foreign_code: tuple[str, str] | None = None


async def read_database(connection: AsyncConnection) -> Database:
    """Read the properties of a database.

    Raises:
        UsageError: The server is older than PostgreSQL 14, or the search_path has no usable schema.
        PermissionDeniedError: The role may not use the schema.
    """
    from sqlalchemy import text

    about = (await connection.execute(text(_ABOUT))).one()
    major = about.version // 10000
    if major < OLDEST:
        raise UsageError(
            f"PostgreSQL {about.version_text}: too old, {OLDEST} to {NEWEST} are supported",
            hint="pg_upgrade the server first",
        )
    if about.schema is None:
        closed = (await connection.execute(text(_CLOSED))).scalar()
        if closed:
            raise PermissionDeniedError(
                f"database {about.database}: the role {about.role} may not use schema {closed}",
                hint=f"GRANT CREATE, USAGE ON SCHEMA {closed} TO {about.role};",
            )
        raise UsageError(
            f"database {about.database}: no schema of the search_path exists",
            hint="CREATE SCHEMA public;  # or ALTER ROLE ... SET search_path",
        )
    if about.versions_in not in (None, about.schema):
        # Alembic would read the version in one schema and create tables in the other.
        raise UsageError(
            f"database {about.database}: alembic_version is in schema {about.versions_in},"
            f" but new tables would be created in {about.schema}; add"
            f" ?search_path={about.versions_in} to the URL",
        )
    tables = tuple(Table(*row) for row in await connection.execute(text(_TABLES)))
    rows: list[str] = []
    if any(table.name == VERSION_TABLE for table in tables):
        query = text("SELECT version_num FROM alembic_version")
        rows = [row.version_num for row in await connection.execute(query)]
    old = await connection.scalars(text(_OLD_FUNCTIONS), {"old": OLD_PARAMETER})
    foreign = (await connection.execute(text(FOREIGN_CODE))).first()
    return Database(
        about.database,
        major,
        about.version_text,
        about.schema,
        about.role,
        about.encoding,
        about.standby or about.read_only,
        about.may_create,
        about.may_create_schemas,
        tables,
        revision_graph.position_of(
            rows, tables=any(table.name != VERSION_TABLE for table in tables)
        ),
        tuple(old),
        (foreign[0], foreign[1]) if foreign else None,
    )


def check_privileges(database: Database) -> None:
    """Check the privileges that revisions need.

    Raises:
        PermissionDeniedError: The server is a standby, privileges on the schema or on a table are
            missing, or the tables run code of another role.
    """
    place = f"database {database.name}"
    if database.read_only:
        raise PermissionDeniedError(
            f"{place}: read-only; on a standby, use the URL of the primary server",
        )
    if not database.may_create:
        raise PermissionDeniedError(
            f"{place}: the role {database.role} may not create tables in schema {database.schema}",
            hint=f"GRANT CREATE, USAGE ON SCHEMA {database.schema} TO {database.role};",
        )
    foreign = [table for table in database.tables if not table.owned]
    if foreign:
        owner = foreign[0].owner
        raise PermissionDeniedError(
            f"{place}: {len(foreign)} tables belong to {owner}, not to {database.role};"
            f" {foreign[0].name} is one",
            hint=f"GRANT {owner} TO {database.role};  # or run it as {owner}",
        )
    if database.foreign_code:
        raise foreign_code_error(place, *database.foreign_code)


def check_encoding(database: str, encoding: str) -> None:
    """Check that a database can hold every text.

    Raises:
        UsageError: Its encoding is not UTF8.
    """
    if encoding != ENCODING:
        raise UsageError(
            f"{database}: encoding {encoding}, not {ENCODING}, so it cannot hold every text",
            hint=f"createdb --encoding {ENCODING} --template template0 NAME",
        )


def lock_timeout(seconds: float) -> str:
    """Return the setting that limits the wait for each table lock; 0 would mean no limit."""
    return f"lock_timeout = {max(1, int(seconds * 1000))}"


async def count_rows(connection: AsyncConnection) -> dict[str, int]:
    """Count the rows of every table of the current schema, exactly."""
    from sqlalchemy import text

    tables = [Table(*row) for row in await connection.execute(text(_TABLES))]
    tables = [table for table in tables if table.name != VERSION_TABLE]
    counts: dict[str, int] = {}
    for first in range(0, len(tables), _COUNTED_AT_ONCE):
        some = tables[first : first + _COUNTED_AT_ONCE]
        # The server itself quoted the names.
        counted = ", ".join(f"(SELECT pg_catalog.count(*) FROM {table.quoted})" for table in some)  # noqa: S608
        row = (await connection.exec_driver_sql(f"SELECT {counted}")).one()
        counts |= {table.name: int(count) for table, count in zip(some, row, strict=True)}
    return counts
