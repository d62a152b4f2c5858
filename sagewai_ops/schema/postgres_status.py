"""Read what a home's database server has: revision, rows, size, connected sessions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from typing import TYPE_CHECKING

from sagewai_ops.database.postgres.sessions import ServerSession, find_sessions
from sagewai_ops.database.url import PostgresUrl
from sagewai_ops.errors import OpsError, UsageError
from sagewai_ops.home.paths import Home
from sagewai_ops.home.server_record import read_server_record, resolve_database
from sagewai_ops.process.signals import run_interruptibly
from sagewai_ops.records import dataclass

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

CONNECT_SECONDS = 10.0  # for a look at the state; the URL may have less


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """The database of a home on a server, from one transaction.

    Attributes:
        database: Without user's password and options; as the home records it, if no URL is known.
        server: The version; "" if the server was not reached.
        revisions: Empty for a database without.
        tables: Number of rows of each table.
        size_bytes: Of the database, its indexes included.
        sessions: Of other programs.
        problem: Why it was not checked; "" if it was.
    """

    database: str
    server: str = ""
    revisions: tuple[str, ...] = ()
    state: str = ""
    tables: Mapping[str, int] = field(default_factory=dict)
    size_bytes: int = 0
    sessions: tuple[ServerSession, ...] = ()
    problem: str = ""


def read_server_status(home: Home, environment: Mapping[str, str]) -> ServerStatus | None:
    """Return the state of the server's database; None for a home on SQLite.

    What is not reached or not readable is the `problem` of the result.
    """
    try:
        url = resolve_database(home, environment)
    except UsageError as error:
        record = read_server_record(home.root)
        return ServerStatus(record.display if record else "", problem=error.message)
    except OpsError as error:
        return ServerStatus("", problem=error.message)
    if not isinstance(url, PostgresUrl):
        return None
    url = replace(url, timeout_seconds=min(url.timeout_seconds, CONNECT_SECONDS))
    try:
        return run_interruptibly(_read, url)
    except OpsError as error:
        return ServerStatus(url.display, problem=error.message)


async def size_and_sessions(
    connection: AsyncConnection,
) -> tuple[int, tuple[ServerSession, ...]]:
    """Return the bytes of a connection's database, and the other sessions on it."""
    from sqlalchemy import text

    query = text("SELECT pg_catalog.pg_database_size(pg_catalog.current_database())")
    size_bytes = int((await connection.execute(query)).scalar_one())
    driver = (await connection.get_raw_connection()).driver_connection
    assert driver is not None
    return size_bytes, await find_sessions(driver)


async def _read(url: PostgresUrl) -> ServerStatus:
    from sagewai_ops.database.postgres.connection import connect_sqlalchemy
    from sagewai_ops.schema.postgres_server import count_rows, read_database

    async with connect_sqlalchemy(url, isolation="repeatable_read", readonly=True) as connection:
        found = await read_database(connection)
        rows = await count_rows(connection)
        size_bytes, sessions = await size_and_sessions(connection)
    return ServerStatus(
        database=url.display,
        server=found.version,
        revisions=found.position.heads,
        state=found.position.state,
        tables=rows,
        size_bytes=size_bytes,
        sessions=sessions,
    )
