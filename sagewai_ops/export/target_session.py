"""The target under one transaction: looked at, locked, brought to head when it is empty.

What is wrong with a target (too old a server, no rights, another revision, rows in it, somebody
who writes) is said before anything is sent, and the transaction that all happens in is committed
only when the caller says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sagewai_ops.database.postgres import connection as postgres_connection
from sagewai_ops.database.sqlite.read_transaction import quoted
from sagewai_ops.database.url import PostgresUrl
from sagewai_ops.errors import (
    LockedError,
    OpsError,
    SchemaBehindError,
    TargetBusyError,
    UsageError,
)
from sagewai_ops.export.mapping.target_catalog import VERSION_TABLE, TargetTable, read_tables
from sagewai_ops.schema.postgres_server import OLDEST
from sagewai_ops.schema.revision_graph import HEAD

if TYPE_CHECKING:
    import asyncpg

MOVE, PLAN, VERIFY = "move", "plan", "verify"

COMMIT_SECONDS = 10.0  # for the server's answer to a commit, once a signal asks for the end
_UNKNOWN = "the connection broke at the commit: whether it took place is not known"
_ASK = "sagewai-ops export-to-postgres --verify-only"

_ABOUT = """
SELECT current_setting('server_version_num')::int / 10000 AS major,
  current_setting('server_version') AS version, current_setting('server_encoding') AS encoding,
  pg_is_in_recovery() OR current_setting('transaction_read_only')::bool AS read_only,
  quote_ident(current_schema()) = (SELECT relnamespace::regnamespace::text FROM pg_class
    WHERE oid = to_regclass('alembic_version')) AS managed
"""
# Values are spelled in one way, rows come in the order in which they lie, and nothing but the
# caller ends a statement.
_SETTINGS = """
SET LOCAL timezone = 'UTC'; SET LOCAL datestyle = 'ISO, MDY'; SET LOCAL extra_float_digits = 1;
SET LOCAL synchronize_seqscans = off; SET LOCAL max_parallel_workers_per_gather = 0;
SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0;
"""
_OTHERS = """
SELECT coalesce(usename, '?') || ' (process ' || pid ||
       CASE WHEN application_name = '' THEN '' ELSE ', ' || application_name END || ')' AS who
FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
ORDER BY pid
"""
_HOLDERS = """
SELECT DISTINCT l.relation::regclass::text AS relation, l.pid, coalesce(a.usename, '?') AS role,
       coalesce(a.application_name, '') AS application
FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'relation' AND l.granted AND l.pid <> pg_backend_pid()
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND l.relation IN (SELECT oid FROM pg_class WHERE relnamespace = current_schema()::regnamespace)
ORDER BY 1 LIMIT 1
"""


@dataclass(slots=True)
class Session:
    """An open transaction on the target.

    Attributes:
        connection: Of asyncpg.
        version: The server's.
        migrated: The target was empty, and this transaction brought it to head.
        tables: The catalog.
        others: Who else is connected to the database.
        keep: Set it to have the transaction committed at the end of the block.
        committed: The server said that it is.
    """

    connection: asyncpg.Connection[asyncpg.Record]
    version: str
    migrated: bool
    tables: Mapping[str, TargetTable] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    keep: bool = False
    committed: bool = False


@asynccontextmanager
async def opened(url: PostgresUrl, purpose: str) -> AsyncIterator[Session]:
    """Open the target for the block, and commit at its end if the session says so.

    Args:
        purpose: `move` locks every table, and wants them empty; `plan` wants them empty; `verify`
            reads one moment of them.

    Raises:
        UsageError: The server is too old, or its encoding is not UTF-8.
        PermissionDeniedError: Rights are missing.
        SchemaBehindError, SchemaAheadError: It is not empty, and not at head.
        TargetBusyError: It has rows, or somebody works on its tables.
        LockedError: Another export or upgrade runs.
        RemoteError, NotFoundError: It cannot be reached.
    """
    with postgres_connection.translate_errors(url):
        connection = await postgres_connection.connect(url)
        try:
            about = await connection.fetchrow(_ABOUT)
            _check_encoding(about["encoding"], url)
            usable = purpose == VERIFY or not about["read_only"]
            plain = about["major"] >= OLDEST and usable and about["managed"]
            if plain:
                rows = await connection.fetch(f"SELECT version_num FROM {VERSION_TABLE}")
                plain = [row[0] for row in rows] == [HEAD]
            if plain:
                async with _transaction(connection, purpose) as session:
                    session.version = about["version"]
                    plain = all(table.owned for table in session.tables.values())
                    if plain or purpose == VERIFY:
                        await _occupy(session, purpose, url)
                        yield session
                        return
        finally:
            await _close(connection)
        async with _migrated(url, purpose) as session:
            yield session


@asynccontextmanager
async def _transaction(
    connection: asyncpg.Connection[asyncpg.Record], purpose: str
) -> AsyncIterator[Session]:
    import asyncpg

    isolation = "repeatable_read" if purpose == VERIFY else "read_committed"
    transaction = connection.transaction(isolation=isolation)
    await transaction.start()
    session = Session(connection, "", migrated=False)
    try:
        await connection.execute(_SETTINGS)
        session.tables = await read_tables(connection)
        yield session
    except asyncio.CancelledError:
        connection.terminate()  # the server rolls back, and need not be asked politely
        raise
    except BaseException:
        with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            await transaction.rollback()  # a broken connection is rolled back already
        raise
    if session.keep:
        await _commit(session, transaction.commit())
    else:
        await transaction.rollback()


@asynccontextmanager
async def _migrated(url: PostgresUrl, purpose: str) -> AsyncIterator[Session]:
    """Take the long way: say what is wrong, or bring an empty database to head first."""
    from sqlalchemy import text

    from sagewai_ops.schema import alembic_runner, migrate_postgres, postgres_server

    async with postgres_connection.connect_sqlalchemy(url) as outer:
        transaction = await outer.begin()
        # Now: of a connection that a cancelled statement has broken, SQLAlchemy gives nothing.
        raw = await outer.get_raw_connection()
        connection: asyncpg.Connection[asyncpg.Record] | None = raw.driver_connection
        assert connection is not None
        try:
            await outer.execute(text("SELECT 1"))
            found = await postgres_server.read_database(outer)
            if purpose != VERIFY:
                postgres_server.check_privileges(found)
            heads = migrate_postgres.check_position(found, HEAD, down=False)
            _check_empty(found.position.state, heads, purpose, url)
            await alembic_runner.migrate(outer, HEAD)
            await connection.execute(_SETTINGS)
            session = Session(connection, found.version, migrated=True)
            session.tables = await read_tables(connection)
            await _occupy(session, purpose, url)
            yield session
        except asyncio.CancelledError:
            connection.terminate()
            raise
        except BaseException:
            with suppress(Exception):  # a broken connection is rolled back already
                await transaction.rollback()
            raise
        if session.keep:
            await _commit(session, transaction.commit())
        else:
            await transaction.rollback()


async def _occupy(session: Session, purpose: str, url: PostgresUrl) -> None:
    """Make sure that nobody else writes, and that there is nothing to overwrite."""
    import asyncpg

    from sagewai_ops.schema.migrate_postgres import LOCK

    connection = session.connection
    session.others = tuple(row["who"] for row in await connection.fetch(_OTHERS))
    if purpose == VERIFY:
        return
    if not await connection.fetchval("SELECT pg_try_advisory_xact_lock($1)", LOCK):
        raise LockedError(
            f"{url.display}: another export or upgrade is running",
            hint="run it again when that is done",
        )
    if purpose == MOVE and not session.migrated:
        names = ", ".join(map(quoted, sorted(session.tables)))
        trial = connection.transaction()
        await trial.start()
        try:
            await connection.execute(f"LOCK TABLE {names} IN ACCESS EXCLUSIVE MODE NOWAIT")
        except asyncpg.LockNotAvailableError as error:
            await trial.rollback()
            raise await _busy(connection, url) from error
        await trial.commit()
    full = await _tables_with_rows(connection, session.tables)
    if full:
        raise TargetBusyError(
            f"{url.display}: has rows in {len(full)} tables, {full[0]} is one",
            hint="give the URL of an empty database: createdb",
        )


async def _tables_with_rows(
    connection: asyncpg.Connection[asyncpg.Record], tables: Mapping[str, TargetTable]
) -> list[str]:
    asked = " UNION ALL ".join(
        f"SELECT {number} WHERE EXISTS (SELECT 1 FROM {quoted(name)})"
        for number, name in enumerate(sorted(tables))
    )
    names = sorted(tables)
    return [names[row[0]] for row in await connection.fetch(asked)] if names else []


async def _busy(connection: asyncpg.Connection[asyncpg.Record], url: PostgresUrl) -> OpsError:
    holder = await connection.fetchrow(_HOLDERS)
    who = "another session"
    if holder:
        application = f", {holder['application']}" if holder["application"] else ""
        who = f"{holder['role']} (process {holder['pid']}{application})"
    table = f"table {holder['relation']}" if holder else "its tables"
    return TargetBusyError(
        f"{url.display}: {who} is working on {table}", hint="stop whoever uses the database"
    )


def _check_empty(state: str, heads: tuple[str, ...], purpose: str, url: PostgresUrl) -> None:
    if state != "empty":
        raise SchemaBehindError(
            f"{url.display}: is at revision {', '.join(heads)}, not at {HEAD}",
            hint="sagewai-ops db upgrade  # with the URL in SAGEWAI_DATABASE_URL",
        )
    if purpose == VERIFY:
        raise SchemaBehindError(
            f"{url.display}: is empty, nothing was exported to it",
            hint="sagewai-ops export-to-postgres",
        )


async def _commit(session: Session, committing: Awaitable[None]) -> None:
    """Commit, and do not let a signal come between: either it took place or it did not.

    A server that does not answer may keep it waiting for ever; after a signal it waits not so long.
    """
    import asyncpg

    running = asyncio.ensure_future(committing)
    limit: float | None = None
    while not running.done():
        try:
            await asyncio.wait({running}, timeout=limit)
        except asyncio.CancelledError:
            limit = COMMIT_SECONDS
            # From 3.11 on a task counts its cancellations, and later timeouts look at the count.
            getattr(asyncio.current_task(), "uncancel", int)()
        else:
            if not running.done():
                session.connection.terminate()
                running.cancel()
                raise OpsError(_UNKNOWN, hint=_ASK)
    try:
        running.result()
        session.committed = True
    except (OSError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError) as error:
        raise OpsError(_UNKNOWN, hint=_ASK) from error


def _check_encoding(encoding: str, url: PostgresUrl) -> None:
    if encoding != "UTF8":
        raise UsageError(
            f"{url.display}: its encoding is {encoding}, which cannot hold every text of a home",
            hint="createdb --encoding UTF8 --template template0",
        )


async def _close(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    if connection.is_closed():
        return
    try:
        await connection.close(timeout=postgres_connection.CLOSE_SECONDS)
    except (OSError, asyncio.TimeoutError, TimeoutError):
        connection.terminate()
    except asyncio.CancelledError:
        connection.terminate()
        raise
