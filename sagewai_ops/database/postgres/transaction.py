"""Commit a transaction, and find the outcome of one whose commit was not answered, by its number.

Numbers belong to the data of one server, so the identifier of that data is recorded with them, and
the database, which could have been dropped since. Source: PostgreSQL manual, section 9.27,
"Transaction ID and Snapshot Information Functions" and "Control Data Functions"; 13 and later.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable
from typing import TYPE_CHECKING

from sagewai_ops.database.url import PostgresUrl
from sagewai_ops.errors import LockedError, RemoteError, UsageError
from sagewai_ops.process.signals import run_interruptibly
from sagewai_ops.records import dataclass

if TYPE_CHECKING:
    import asyncpg

COMMIT_SECONDS = 10.0  # for the server's answer to a commit, after a signal
LOST = "connection lost during the commit"
WAIT_SECONDS = 10.0  # for the end of a transaction whose client is gone
_POLL_SECONDS = 0.1
# A function that the role may not execute would end the transaction.
_MAY_IDENTIFY = (
    "SELECT pg_catalog.has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE')"
)
_IDENTIFIER = "SELECT system_identifier::text FROM pg_catalog.pg_control_system()"
_CURRENT = """
SELECT d.oid::text AS database, pg_catalog.pg_current_xact_id()::text AS number
FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()
"""
_ABOUT = """
SELECT pg_catalog.pg_is_in_recovery() AS is_standby, EXISTS (
  SELECT 1 FROM pg_catalog.pg_database d WHERE d.oid = $1::text::oid) AS has_database
"""
# Each transaction has this lock from the moment of its number until its outcome is visible. Locks
# have the lower half of a number.
_IS_RUNNING = """
SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_locks l
  WHERE l.locktype = 'transactionid' AND l.transactionid = $1::text::xid8::xid)
"""
_STATUS = "SELECT pg_catalog.pg_xact_status($1::text::xid8)"


class UnknownOutcomeError(RemoteError):
    """The connection was lost during the commit: only the server knows its outcome."""


@dataclass(frozen=True, slots=True)
class ServerTransaction:
    """A transaction of a server.

    Attributes:
        system: The identifier of the server's data; "" if the role may not read it.
        database: The object id of the database, in digits.
        number: The full transaction id, in digits.
    """

    system: str
    database: str
    number: str


async def wait_for_commit(
    connection: asyncpg.Connection[asyncpg.Record], committing: Awaitable[object]
) -> None:
    """Commit, and wait for the server's answer even after a signal.

    Without a signal it waits without a timeout, after one `COMMIT_SECONDS`.

    Args:
        committing: Sends the COMMIT and returns after the answer.

    Raises:
        UnknownOutcomeError: There was no answer.
    """
    import asyncio

    running = asyncio.ensure_future(committing)
    limit: float | None = None
    while not running.done():
        try:
            await asyncio.wait({running}, timeout=limit)
        except asyncio.CancelledError:
            limit = COMMIT_SECONDS
            # Since 3.11 a task counts its cancellations, and later timeouts evaluate the count.
            getattr(asyncio.current_task(), "uncancel", int)()
        else:
            if not running.done():
                connection.terminate()
                running.cancel()
                raise UnknownOutcomeError(LOST)
    try:
        running.result()
    except lost_connection_errors() as error:
        raise UnknownOutcomeError(LOST) from error


def lost_connection_errors() -> tuple[type[Exception], ...]:
    """Return the errors of a COMMIT that leave it open whether the server has committed."""
    import asyncpg

    return (
        OSError,
        asyncpg.PostgresConnectionError,
        # A session that is ended while it waits for standbys has committed.
        asyncpg.AdminShutdownError,
        asyncpg.CrashShutdownError,
        asyncpg.InterfaceError,
        asyncpg.InternalClientError,
    )


async def current_transaction(
    connection: asyncpg.Connection[asyncpg.Record],
) -> ServerTransaction:
    """Return the open transaction of a connection, which gets a number if it has none."""
    system = await _identify(connection)
    row = await connection.fetchrow(_CURRENT)
    assert row
    return ServerTransaction(system, row["database"], row["number"])


def is_committed(
    url: PostgresUrl, transaction: ServerTransaction, wait_seconds: float = WAIT_SECONDS
) -> bool | None:
    """Return whether a transaction was committed, and its database still exists.

    Args:
        url: Any database of its server.
        wait_seconds: For its end.

    Returns:
        None if it is too long ago for the server to know.

    Raises:
        UsageError: The URL leads to another server, or to a standby.
        LockedError: It does not end.
        OpsError: The server is not reachable, or refuses.
    """
    return run_interruptibly(_is_committed, url, transaction, wait_seconds)


async def _identify(connection: asyncpg.Connection[asyncpg.Record]) -> str:
    if not await connection.fetchval(_MAY_IDENTIFY):
        return ""
    return str(await connection.fetchval(_IDENTIFIER))


async def _is_committed(
    url: PostgresUrl, transaction: ServerTransaction, wait_seconds: float
) -> bool | None:
    import asyncio

    import asyncpg

    from sagewai_ops.database.postgres.connection import open_transaction

    number = transaction.number
    deadline = time.monotonic() + wait_seconds
    async with open_transaction(url, readonly=True) as server:
        system = await _identify(server)
        if system and transaction.system and system != transaction.system:
            raise UsageError(f"{url.display}: not the server of transaction {number}")
        about = await server.fetchrow(_ABOUT, transaction.database)
        assert about
        if about["is_standby"]:
            raise UsageError(
                f"{url.display}: a standby, which may not know transaction {number} yet",
                hint="export SAGEWAI_DATABASE_URL=...  # of the primary server",
            )
        if not about["has_database"]:
            return False
        while True:
            is_running = await server.fetchval(_IS_RUNNING, number)
            try:
                status = await server.fetchval(_STATUS, number)
            except asyncpg.InvalidParameterValueError:
                return False  # of the future: the server was restored to an earlier moment
            if status != "in progress" or not is_running:
                break
            if time.monotonic() >= deadline:
                raise LockedError(
                    f"{url.display}: transaction {number} has not ended",
                    hint="psql URL -c 'SELECT * FROM pg_stat_activity'  # then run it again",
                )
            await asyncio.sleep(_POLL_SECONDS)
    return None if status is None else bool(status == "committed")
