"""Find the other sessions on a database: a Sagewai that serves from it has no file open to find.

A server shows other roles' sessions in part only (no query, no state); what is hidden counts as in
use. Not counted are our own sessions, by their application name, and the connections that a pooler
keeps ready, which no client uses.

`connection` is imported late: a home on SQLite never needs it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sagewai_ops.database.sqlite.in_use import require_unused
from sagewai_ops.database.url import PostgresUrl
from sagewai_ops.home.paths import Home
from sagewai_ops.home.server_record import resolve_database
from sagewai_ops.process.procfs import describe, tcp_client
from sagewai_ops.process.signals import run_interruptibly
from sagewai_ops.records import dataclass
from sagewai_ops.text import printable

if TYPE_CHECKING:
    import asyncpg

_SHOWN = 5  # sessions in a message
# Reset by PgBouncer and its kin, and not given to a client since.
_POOLERS = ("pgbouncer", "pgcat", "odyssey", "supavisor")
# Of other roles, backend_type and state are NULL unless ours is a member of pg_read_all_stats.
# Workers of the server have no role.
SESSION_COLUMNS = """
  pid, coalesce(usename::text, '?') AS role, coalesce(application_name, '') AS application,
  coalesce(pg_catalog.host(client_addr), '') AS address, coalesce(state, '') AS state,
  coalesce(client_port, 0) AS port
"""  # of pg_stat_activity, for `ServerSession`
_SESSIONS = f"""
SELECT {SESSION_COLUMNS} FROM pg_catalog.pg_stat_activity
WHERE datname = pg_catalog.current_database() AND pid <> pg_catalog.pg_backend_pid()
  AND usename IS NOT NULL AND coalesce(backend_type, 'client backend') = 'client backend'
  AND coalesce(application_name, '') <> $1::text
  AND NOT (coalesce(state, '') = 'idle' AND (
    pg_catalog.btrim(pg_catalog.upper(coalesce(query, '')), ' ;'::text) = 'DISCARD ALL'
    OR pg_catalog.lower(coalesce(application_name, '')) = ANY ($2::text[])))
ORDER BY pid
"""  # noqa: S608 (a constant)


@dataclass(frozen=True, slots=True)
class ServerSession:
    """A session of another program on the database.

    Attributes:
        pid: Of the server's process.
        application: As its client names itself; not to be trusted.
        address: Of its client; "" for a socket of the server's machine.
        state: Such as `active` or `idle`; "" if our role may not see it.
        port: Of its client; 0 or -1 without one.
    """

    pid: int
    role: str
    application: str
    address: str
    state: str
    port: int = 0

    @property
    def display(self) -> str:
        """A phrase for messages; of a client on this machine its own process, the one to stop."""
        client = tcp_client(self.address, self.port) if self.port > 0 else None
        if client:
            parts = [describe(client), self.application]
        else:
            place = self.address and f"from {self.address}"
            parts = [f"server process {self.pid}", self.application, place]
        return printable(f"session of {self.role} ({', '.join(filter(None, parts))})")


async def find_sessions(
    connection: asyncpg.Connection[asyncpg.Record],
) -> tuple[ServerSession, ...]:
    """Return the other sessions on the connection's database, by process."""
    from sagewai_ops.database.postgres.connection import APPLICATION_NAME

    rows = await connection.fetch(_SESSIONS, APPLICATION_NAME, list(_POOLERS))
    return tuple(ServerSession(*row) for row in rows)


def read_sessions(url: PostgresUrl) -> tuple[ServerSession, ...]:
    """Return the other sessions on a database, such as Sagewai's, by process.

    Raises:
        OpsError: The server is not reachable, or refuses.
    """
    return run_interruptibly(_read, url)


def describe_sessions(sessions: Sequence[ServerSession]) -> tuple[str, ...]:
    """Return phrases for the first sessions, and the number of the others."""
    shown = [session.display for session in sessions[:_SHOWN]]
    more = len(sessions) - _SHOWN
    return (*shown, f"{more} more sessions") if more > 0 else tuple(shown)


def require_home_unused(home: Home, environment: Mapping[str, str], *databases: Path) -> None:
    """Check that no process has a file of a home open, and that its server has no other session.

    Args:
        environment: Names the server.
        databases: SQLite files; those of the home if none is given.

    Raises:
        TargetBusyError: It is in use; the message names the processes and sessions.
        UsageError: The home's tables are on a server that no variable names.
        OpsError: The server is not reachable, or refuses.
    """
    sessions = home_sessions(home, environment)
    require_unused(home.root, *(databases or home.databases), sessions=describe_sessions(sessions))


def home_sessions(home: Home, environment: Mapping[str, str]) -> tuple[ServerSession, ...]:
    """Return the other sessions on a home's server; none for a home on SQLite.

    Raises:
        UsageError, OpsError: As `require_home_unused`.
    """
    url = resolve_database(home, environment)
    return read_sessions(url) if isinstance(url, PostgresUrl) else ()


async def _read(url: PostgresUrl) -> tuple[ServerSession, ...]:
    from sagewai_ops.database.postgres.connection import open_transaction

    async with open_transaction(url, readonly=True) as server:
        return await find_sessions(server)
