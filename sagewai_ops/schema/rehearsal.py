"""Upgrade a PostgreSQL database on trial: how long it takes, what it does to the rows.

Where the role may create schemas, the database is copied, inside one transaction, into a scratch
schema that the chain itself builds, and upgraded there: the originals are only read. Elsewhere the
upgrade runs on the originals. Either way the transaction is rolled back and nobody ever sees it.
"""

from __future__ import annotations

import dataclasses
import graphlib
import secrets
from typing import TYPE_CHECKING

from sagewai_ops.database import engines
from sagewai_ops.database.urls import PostgresUrl
from sagewai_ops.errors import DifferenceError
from sagewai_ops.progress import Progress
from sagewai_ops.schema import alembic_runner, revisions, server
from sagewai_ops.schema.level import HEAD

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

PREFIX = "sagewai_ops_rehearsal_"

_COLUMNS = """
SELECT c.relname::text AS owner, quote_ident(a.attname) AS quoted
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = :schema AND c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped
  AND a.attgenerated = ''
ORDER BY c.relname, a.attnum
"""
_REFERENCES = """
SELECT c.relname::text, t.relname::text
FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_class t ON t.oid = k.confrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE k.contype = 'f' AND n.nspname = :schema AND c.oid <> t.oid
"""


async def rehearse(
    url: PostgresUrl,
    target: str = HEAD,
    *,
    wait_seconds: float = revisions.WAIT_SECONDS,
    progress: Progress | None = None,
) -> revisions.Moved:
    """Run an upgrade and roll it back.

    Args:
        url: The database.
        target: A revision, as `chain.find` gives it.
        wait_seconds: For each lock on a table.
        progress: Told `rows copied`, in tables, then `revisions`, in revisions.

    Raises:
        OpsError: What `revisions.upgrade` raises, and what the rows refuse.
    """
    from sqlalchemy import text

    async with engines.connected(url) as connection, connection.begin() as transaction:
        await connection.execute(
            text(f"SET LOCAL lock_timeout = {max(1, int(wait_seconds * 1e3))}")
        )
        await connection.execute(text("SET LOCAL statement_timeout = 0"))
        found = await server.look(connection)
        before = revisions.check_position(found, target, down=False)
        scratch = found.may_create_schemas and not found.read_only
        if scratch:
            await _copy(connection, found, before, progress)
        else:
            server.check_rights(found)
        moved = await revisions.run(
            connection, found, before, target, down=False, progress=progress
        )
        await transaction.rollback()
        return dataclasses.replace(moved, rehearsed="scratch" if scratch else "rollback")


async def _copy(
    connection: AsyncConnection,
    found: server.Database,
    heads: tuple[str, ...],
    progress: Progress | None,
) -> None:
    """Build the scratch schema to the same revisions and fill it; leave it current."""
    from sqlalchemy import text

    scratch = PREFIX + secrets.token_hex(4)
    await connection.execute(text(f"CREATE SCHEMA {scratch}"))
    await connection.execute(text(f"SET LOCAL search_path TO {scratch}"))
    for head in heads:
        await alembic_runner.migrate(connection, head)
    names = {"schema": scratch}
    columns: dict[str, list[str]] = {}
    for owner, quoted in await connection.execute(text(_COLUMNS), names):
        columns.setdefault(owner, []).append(quoted)
    order: graphlib.TopologicalSorter[str] = graphlib.TopologicalSorter()
    originals = {table.name: table for table in found.tables}
    for name in columns:
        if name != server.VERSION_TABLE:
            order.add(name)
    for owner, target in await connection.execute(text(_REFERENCES), names):
        order.add(owner, target)
    tables = tuple(order.static_order())
    for done, name in enumerate(tables):
        if progress:
            progress("rows copied", done, len(tables))
        if name not in originals:
            raise DifferenceError(
                f"database {found.name}: has no table {name}, which revision"
                f" {', '.join(heads)} makes",
                hint="sagewai-ops db check",
            )
        listed, quoted = ", ".join(columns[name]), originals[name].quoted
        # Names come quoted from the server itself.
        await connection.exec_driver_sql(
            f"INSERT INTO {scratch}.{quoted} ({listed})"  # noqa: S608
            f" SELECT {listed} FROM {found.schema}.{quoted}"
        )
