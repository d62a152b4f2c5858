"""Rehearse the upgrade of a PostgreSQL database: its duration, and the rows before and after.

If the role may create schemas, one transaction copies the rows into a scratch schema that the
revisions themselves build, and upgrades the copy: the originals are only read. Otherwise the
upgrade runs on the originals. The transaction is always rolled back.
"""

from __future__ import annotations

import dataclasses
import graphlib
import secrets
from typing import TYPE_CHECKING

from sagewai_ops.database.postgres import connection as postgres_connection
from sagewai_ops.database.url import PostgresUrl
from sagewai_ops.errors import DifferenceError
from sagewai_ops.progress import Progress
from sagewai_ops.schema import alembic_runner, migrate_postgres, postgres_server
from sagewai_ops.schema.revision_graph import HEAD

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

PREFIX = "sagewai_ops_rehearsal_"

_COLUMNS = """
SELECT c.relname::text AS owner, pg_catalog.quote_ident(a.attname) AS quoted
FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = :schema AND c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped
  AND a.attgenerated = ''
ORDER BY c.relname, a.attnum
"""
_NAMES = """
SELECT c.relname::text
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE pg_catalog.quote_ident(n.nspname) = :schema
UNION ALL
SELECT c.relname::text || '.' || a.attname::text
FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE pg_catalog.quote_ident(n.nspname) = :schema AND c.relkind IN ('r', 'p') AND a.attnum > 0
  AND NOT a.attisdropped
"""
_REFERENCES = """
SELECT c.relname::text, t.relname::text
FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
JOIN pg_catalog.pg_class t ON t.oid = k.confrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE k.contype = 'f' AND n.nspname = :schema AND c.oid <> t.oid
"""


async def rehearse(
    url: PostgresUrl,
    target: str = HEAD,
    *,
    wait_seconds: float = migrate_postgres.WAIT_SECONDS,
    progress: Progress | None = None,
) -> migrate_postgres.Migration:
    """Run an upgrade and roll it back.

    Args:
        url: The database.
        target: A revision, from `revision_graph.find_revision`.
        wait_seconds: For each lock on a table.
        progress: Called with `rows copied`, in tables, then `revisions`, in revisions.

    Raises:
        OpsError: As `migrate_postgres.upgrade`.
    """
    from sqlalchemy import text

    async with (
        postgres_connection.connect_sqlalchemy(url) as connection,
        connection.begin() as transaction,
    ):
        await connection.execute(text(f"SET LOCAL {postgres_server.lock_timeout(wait_seconds)}"))
        found = await postgres_server.read_database(connection)
        before = migrate_postgres.check_position(found, target, down=False)
        scratch = found.may_create_schemas and not found.read_only
        if scratch:
            existing = await _names(connection, found.schema)
            schema = await _build(connection, before)
            created_before = await _names(connection, schema)
            with migrate_postgres.translate_differences(found, before):
                await _fill(connection, found, schema, before, progress)
        else:
            postgres_server.check_privileges(found)
        moved = await migrate_postgres.run_revisions(
            connection, found, before, target, down=False, progress=progress
        )
        if scratch:
            _require_absent(found, existing & (await _names(connection, schema) - created_before))
        await transaction.rollback()
        return dataclasses.replace(moved, rehearsed="scratch" if scratch else "rollback")


async def _build(connection: AsyncConnection, heads: tuple[str, ...]) -> str:
    """Create the scratch schema at the same revisions, and make it the current one."""
    from sqlalchemy import text

    scratch = PREFIX + secrets.token_hex(4)
    await connection.execute(text(f"CREATE SCHEMA {scratch}"))
    await connection.execute(text(f"SET LOCAL search_path TO {scratch}, pg_temp"))
    await connection.execute(text(f"SET LOCAL sagewai_ops.schemas TO '{{{scratch}}}'"))
    for head in heads:
        await alembic_runner.migrate(connection, head)
    return scratch


async def _names(connection: AsyncConnection, schema: str) -> set[str]:
    """Return the tables, indexes, sequences and columns of a schema, whose name is quoted."""
    from sqlalchemy import text

    return set(await connection.scalars(text(_NAMES), {"schema": schema}))


def _require_absent(found: postgres_server.Database, existing: set[str]) -> None:
    """Check that the originals have nothing that a revision created in the copy."""
    if existing:
        raise DifferenceError(
            f"database {found.name}: {min(existing)} exists, but a later revision creates it",
        )


async def _fill(
    connection: AsyncConnection,
    found: postgres_server.Database,
    scratch: str,
    heads: tuple[str, ...],
    progress: Progress | None,
) -> None:
    """Copy the rows into the scratch schema."""
    from sqlalchemy import text

    names = {"schema": scratch}
    columns: dict[str, list[str]] = {}
    for owner, quoted in await connection.execute(text(_COLUMNS), names):
        columns.setdefault(owner, []).append(quoted)
    order: graphlib.TopologicalSorter[str] = graphlib.TopologicalSorter()
    originals = {table.name: table for table in found.tables}
    for name in columns:
        if name != postgres_server.VERSION_TABLE:
            order.add(name)
    for owner, target in await connection.execute(text(_REFERENCES), names):
        order.add(owner, target)
    tables = tuple(order.static_order())
    for done, name in enumerate(tables):
        if progress:
            progress("rows copied", done, len(tables))
        if name not in originals:
            raise DifferenceError(
                f"database {found.name}: table {name} not found, but revision"
                f" {', '.join(heads)} creates it",
                hint="sagewai-ops db check",
            )
        listed, quoted = ", ".join(columns[name]), originals[name].quoted
        # The server itself quoted the names.
        await connection.exec_driver_sql(
            f"INSERT INTO {scratch}.{quoted} ({listed})"  # noqa: S608
            f" SELECT {listed} FROM {found.schema}.{quoted}"
        )
