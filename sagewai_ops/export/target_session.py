"""Open the target in one transaction: check it, lock it, and migrate it to the head if it is empty.

An unusable target (old server, missing privileges, another revision, rows, a session that writes)
is refused before anything is sent. The transaction is committed only if the caller requests it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from dataclasses import field
from typing import TYPE_CHECKING

from sagewai_ops.database.postgres import connection as postgres_connection
from sagewai_ops.database.postgres.sessions import SESSION_COLUMNS, ServerSession
from sagewai_ops.database.postgres.transaction import wait_for_commit
from sagewai_ops.database.sqlite.read_transaction import quoted
from sagewai_ops.database.url import PostgresUrl
from sagewai_ops.errors import (
    LockedError,
    OpsError,
    PermissionDeniedError,
    SchemaBehindError,
    TargetBusyError,
)
from sagewai_ops.export.mapping.target_catalog import VERSION_TABLE, TargetTable, read_tables
from sagewai_ops.records import dataclass
from sagewai_ops.schema.postgres_server import OLDEST, check_encoding
from sagewai_ops.schema.revision_graph import HEAD

if TYPE_CHECKING:
    import asyncpg

MOVE, PLAN, VERIFY, ABANDON = "move", "plan", "verify", "abandon"

_ABOUT = """
SELECT pg_catalog.current_setting('server_version_num')::int / 10000 AS major,
  pg_catalog.current_setting('server_version') AS version,
  pg_catalog.current_setting('server_encoding') AS encoding,
  pg_catalog.pg_is_in_recovery() OR pg_catalog.current_setting('transaction_read_only')::bool
    AS read_only,
  EXISTS (SELECT 1 FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = pg_catalog.current_schema() AND c.relname = 'alembic_version'
      AND c.relkind IN ('r', 'p')) AS managed
"""
# Rows in their stored order.
SCAN_SETTINGS = (
    "SET LOCAL synchronize_seqscans = off; SET LOCAL max_parallel_workers_per_gather = 0"
)
_OTHERS = f"""
SELECT {SESSION_COLUMNS} FROM pg_catalog.pg_stat_activity
WHERE datname = pg_catalog.current_database() AND backend_type = 'client backend'
  AND pid <> pg_catalog.pg_backend_pid()
ORDER BY pid
"""
_ROW_SECURITY = """
SELECT pg_catalog.quote_ident(c.relname) FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = pg_catalog.current_schema() AND c.relkind IN ('r', 'p')
  AND pg_catalog.row_security_active(c.oid)
ORDER BY 1 LIMIT 1
"""
_HOLDER = f"SELECT {SESSION_COLUMNS} FROM pg_catalog.pg_stat_activity WHERE pid = $1"
_LOCKS = """
SELECT DISTINCT l.relation::regclass::text AS relation, l.pid FROM pg_catalog.pg_locks l
WHERE l.locktype = 'relation' AND l.granted AND l.pid <> pg_catalog.pg_backend_pid()
  AND l.database = (SELECT oid FROM pg_catalog.pg_database
    WHERE datname = pg_catalog.current_database())
  AND l.relation IN (SELECT c.oid FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = pg_catalog.current_schema())
ORDER BY 1 LIMIT 1
"""


@dataclass(slots=True)
class Session:
    """An open transaction on the target.

    Attributes:
        connection: Of asyncpg.
        version: The server's.
        migrated: The target was empty, and this transaction migrated it to the head.
        tables: The catalog.
        others: The other sessions on the database.
        keep: Set it to commit the transaction at the end of the block.
        committed: The server confirmed the commit.
    """

    connection: asyncpg.Connection[asyncpg.Record]
    version: str
    migrated: bool
    tables: Mapping[str, TargetTable] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    keep: bool = False
    committed: bool = False


@asynccontextmanager
async def open_session(url: PostgresUrl, purpose: str) -> AsyncIterator[Session]:
    """Open the target for the block, and commit at its end if `Session.keep` is set.

    Args:
        purpose: `move` locks the tables, which must be empty; for `plan` they must be empty;
            `verify` reads them in one snapshot.

    Raises:
        UsageError: The server is too old, or its encoding is not UTF-8.
        PermissionDeniedError: Privileges are missing, or the tables run code of another role.
        SchemaBehindError, SchemaAheadError: Neither empty nor at the head.
        TargetBusyError: It has rows, or another session uses its tables.
        LockedError: Another export or upgrade is running.
        RemoteError, NotFoundError: It cannot be reached.
    """
    isolation = "repeatable_read" if purpose == VERIFY else "read_committed"
    async with postgres_connection.open_transaction(url, isolation=isolation) as connection:
        about = await connection.fetchrow(_ABOUT)
        check_encoding(url.display, about["encoding"])
        usable = purpose == VERIFY or not about["read_only"]
        is_ready = about["major"] >= OLDEST and usable and about["managed"]
        if is_ready:
            rows = await connection.fetch(f"SELECT version_num FROM {VERSION_TABLE}")
            is_ready = [row[0] for row in rows] == [HEAD]
        if is_ready:
            session = Session(connection, about["version"], migrated=False)
            await connection.execute(SCAN_SETTINGS)
            session.tables = await read_tables(connection)
            is_ready = all(table.owned for table in session.tables.values())
            if is_ready or purpose == VERIFY:
                await _lock(session, purpose, url)
                yield session
                await end_session(session)
                return
    async with _open_migrated(url, purpose) as session:
        yield session


@asynccontextmanager
async def _open_migrated(url: PostgresUrl, purpose: str) -> AsyncIterator[Session]:
    """Migrate an empty database to the head and open it; raise the reason if it is unusable."""
    from sagewai_ops.schema import alembic_runner, migrate_postgres, postgres_server

    async with postgres_connection.connect_sqlalchemy(url) as outer:
        # Now: SQLAlchemy does not return the connection after a cancelled statement broke it.
        raw = await outer.get_raw_connection()
        connection: asyncpg.Connection[asyncpg.Record] | None = raw.driver_connection
        assert connection is not None
        found = await postgres_server.read_database(outer)
        if purpose != VERIFY:
            postgres_server.check_privileges(found)
        heads = migrate_postgres.check_position(found, HEAD, down=False)
        _check_empty(found.position.state, heads, purpose, url)
        await alembic_runner.migrate(outer, HEAD)
        await connection.execute(SCAN_SETTINGS)
        session = Session(connection, found.version, migrated=True)
        session.tables = await read_tables(connection)
        await _lock(session, purpose, url)
        yield session
        await (outer.commit() if session.keep else outer.rollback())  # a savepoint
        await end_session(session)


async def _lock(session: Session, purpose: str, url: PostgresUrl) -> None:
    """Exclude other sessions that write, and check that there are no rows to overwrite."""
    import asyncpg

    from sagewai_ops.schema.migrate_postgres import LOCK

    connection = session.connection
    others = await connection.fetch(_OTHERS)
    session.others = tuple(ServerSession(*row).display for row in others)
    if purpose == VERIFY:
        return
    if not await connection.fetchval("SELECT pg_catalog.pg_try_advisory_xact_lock($1)", LOCK):
        raise LockedError(
            f"{url.display}: locked by another export or upgrade",
            hint="psql URL -c 'SELECT * FROM pg_stat_activity'",
        )
    await _check_row_security(connection, url)
    foreign = await connection.fetchrow(postgres_connection.FOREIGN_CODE)
    if foreign:
        raise postgres_connection.foreign_code_error(url.display, *foreign)
    if purpose == MOVE and not session.migrated:
        names = ", ".join(map(quoted, sorted(session.tables)))
        try:
            async with postgres_connection.open_savepoint(connection):
                await connection.execute(f"LOCK TABLE {names} IN ACCESS EXCLUSIVE MODE NOWAIT")
        except asyncpg.LockNotAvailableError as error:
            raise await _busy_error(connection, url) from error
    with_rows = await _tables_with_rows(connection, session.tables)
    if with_rows:
        raise TargetBusyError(
            f"{url.display}: not empty, rows in {len(with_rows)} tables such as {with_rows[0]}",
            hint="createdb --encoding UTF8 --template template0 NAME",
        )


async def _check_row_security(
    connection: asyncpg.Connection[asyncpg.Record], url: PostgresUrl
) -> None:
    """Check that no policy applies to our role: it would refuse or hide rows."""
    table = await connection.fetchval(_ROW_SECURITY)
    if table:
        raise PermissionDeniedError(
            f"{url.display}: row-level security of table {table} applies to this role",
            hint=f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY;  # run it as the owner",
        )


async def _tables_with_rows(
    connection: asyncpg.Connection[asyncpg.Record], tables: Mapping[str, TargetTable]
) -> list[str]:
    query = " UNION ALL ".join(
        f"SELECT {number} WHERE EXISTS (SELECT 1 FROM {quoted(name)})"
        for number, name in enumerate(sorted(tables))
    )
    names = sorted(tables)
    return [names[row[0]] for row in await connection.fetch(query)] if names else []


async def _busy_error(connection: asyncpg.Connection[asyncpg.Record], url: PostgresUrl) -> OpsError:
    lock = await connection.fetchrow(_LOCKS)
    if not lock:
        return TargetBusyError(f"{url.display}: tables in use by another session")
    holder = await connection.fetchrow(_HOLDER, lock["pid"])
    session = ServerSession(*holder).display if holder else f"server process {lock['pid']}"
    return TargetBusyError(
        f"{url.display}: table {lock['relation']} in use by {session}",
        hint=f"psql URL -c 'SELECT * FROM pg_stat_activity WHERE pid = {lock['pid']}'",
    )


def _check_empty(state: str, heads: tuple[str, ...], purpose: str, url: PostgresUrl) -> None:
    if state != "empty":
        raise SchemaBehindError(
            f"{url.display}: at revision {', '.join(heads)}, not at {HEAD}",
            hint="sagewai-ops db upgrade  # with the URL in SAGEWAI_DATABASE_URL",
        )
    if purpose == VERIFY:
        raise SchemaBehindError(
            f"{url.display}: empty, nothing was exported to it",
            hint="sagewai-ops export-to-postgres",
        )


async def end_session(session: Session) -> None:
    """Commit or roll back, and wait for the server's answer even after a signal."""
    if session.keep:
        await _commit(session, session.connection.execute("COMMIT;"))
    else:
        await session.connection.execute("ROLLBACK;")


async def _commit(session: Session, committing: Awaitable[object]) -> None:
    await wait_for_commit(session.connection, committing)
    session.committed = True
