"""Recognise a pooler in transaction mode, whose clients share sessions (PgBouncer, Supavisor).

Short commands work through one. A snapshot or a restore is a transaction of minutes: it would hold
one of the few server connections that Sagewai shares, under the pooler's own limits of time, and a
restore cannot see the clients that the pooler has without a session.

A pooler answers to the start of a connection with a key of its own, so its process number is not
that of the session. In session mode a client keeps its session until it ends: only where another
client gets the same one, or ours changes, is the mode another.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeAlias

from sagewai_ops.database.postgres.connection import open_connection
from sagewai_ops.database.url import PostgresUrl
from sagewai_ops.errors import RemoteError

if TYPE_CHECKING:
    import asyncpg

    Server: TypeAlias = asyncpg.Connection[asyncpg.Record]

_TURNS = 3  # of both clients: others may take the session between two transactions
_PATIENCE_SECONDS = 5.0  # for a second session, which a pool in session mode may not have


async def require_own_session(url: PostgresUrl, connection: Server) -> None:
    """Check that an open connection keeps its session between transactions.

    Raises:
        RemoteError: It is of a pooler in transaction mode.
        OpsError: The connection is lost.
    """
    first = await _session(connection)
    if first == connection.get_server_pid():
        return
    try:
        other = await asyncio.wait_for(open_connection(url), _PATIENCE_SECONDS)
    except (asyncio.TimeoutError, TimeoutError, RemoteError):
        return  # its pool is used up, so sessions are not shared
    try:
        for _turn in range(_TURNS):
            theirs = await asyncio.wait_for(_session(other), _PATIENCE_SECONDS)
            if theirs == first or await _session(connection) != first:
                raise _refusal(url)
    except (asyncio.TimeoutError, TimeoutError):
        return
    finally:
        other.terminate()


async def _session(connection: Server) -> int:
    # In a transaction: outside of one, each message of a query may go to another session.
    async with connection.transaction():
        return int(await connection.fetchval("SELECT pg_catalog.pg_backend_pid()"))


def _refusal(url: PostgresUrl) -> RemoteError:
    return RemoteError(
        f"{url.display}: a pooler in transaction mode, which shares its sessions; connect to the"
        " server itself",
        hint="export SAGEWAI_DATABASE_URL=postgresql://USER@HOST:5432/DATABASE"
        "  # host and port of the server, for this command",
    )
