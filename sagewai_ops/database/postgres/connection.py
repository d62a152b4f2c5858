"""Connections to PostgreSQL: one way to open them, one way to say why it did not work.

SQLAlchemy's engine is a thin coat over asyncpg here, without a pool: a command opens one connection
and closes it. Errors of the driver become ours, each with its exit code; none shows a password.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from sagewai_ops.database.postgres import pgpass, tls
from sagewai_ops.database.url import DEFAULT_PORT, PostgresUrl
from sagewai_ops.errors import (
    DamagedError,
    LockedError,
    NoSpaceError,
    NotFoundError,
    OpsError,
    PermissionDeniedError,
    RemoteError,
    UsageError,
)

if TYPE_CHECKING:
    import asyncpg
    from sqlalchemy.ext.asyncio import AsyncConnection

APPLICATION_NAME = "sagewai-ops"  # as pg_stat_activity shows us
_NO_FILE = f"{os.devnull}/none"  # cannot exist: `passwords` has read the password file already
CLOSE_SECONDS = 5.0  # for the server's farewell; then the socket is simply closed

# A role's limits are meant for a server's short statements. `transaction_timeout` came with 17. Not
# among the settings of the start, where a pooler refuses those that it does not know.
_UNLIMITED = """
SELECT set_config(name, '0', false) FROM pg_settings
WHERE name IN ('statement_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout')
  AND NOT name = ANY ($1)
"""

# The classes of SQLSTATE that a person can act on; the rest is an unexpected failure.
# Source: PostgreSQL manual, appendix A.
_BY_STATE: dict[str, type[OpsError]] = {
    "3D000": NotFoundError,  # no such database
    "42704": UsageError,  # a setting in the URL that the server does not know
    "28": PermissionDeniedError,  # no such role, wrong password, no entry in pg_hba.conf
    "42501": PermissionDeniedError,
    "25006": PermissionDeniedError,  # a standby, or read-only on purpose
    "53100": NoSpaceError,  # the server's disk
    "53": RemoteError,  # too many connections, out of memory
    "55P03": LockedError,  # lock_timeout
    "40P01": LockedError,  # deadlock
    "08": RemoteError,
    "57": RemoteError,  # shut down, cancelled, starting up
    "XX001": DamagedError,
    "XX002": DamagedError,
}
_HINTS = {
    "42501": "GRANT SELECT ON ALL TABLES IN SCHEMA public TO ROLE;  # or the right that is named",
    "25006": "give the URL of the primary server",
}


async def connect(url: PostgresUrl) -> asyncpg.Connection[asyncpg.Record]:
    """Open a connection of asyncpg; the caller closes it.

    The session's time zone is UTC, because a home's timestamps are. What limits a role's statements
    and transactions does not hold, unless the URL says it.

    Raises:
        RemoteError, PermissionDeniedError, NotFoundError, UsageError: It cannot be opened.
    """
    import asyncpg

    options = tls.options(url, os.environ)
    password = pgpass.find(url, os.environ)
    with translate_errors(url):
        try:
            connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(
                dsn=f"postgresql://?{urlencode(options)}" if options else None,
                host=[host for host, _ in url.hosts] or None,
                port=_ports(url),
                user=url.user,
                password=password,
                passfile=_NO_FILE,
                database=url.database,
                timeout=url.timeout_seconds,
                server_settings={
                    "timezone": "UTC",
                    **url.settings,
                    "application_name": APPLICATION_NAME,
                },
            )
        except (asyncio.TimeoutError, TimeoutError) as error:
            raise RemoteError(
                f"{url.display}: does not answer within {url.timeout_seconds:g} seconds",
                hint="add ?connect_timeout=SECONDS to the URL to wait longer",
            ) from error
        except ssl.SSLCertVerificationError as error:  # which is a ValueError too
            raise RemoteError(
                f"{url.display}: the server's certificate is not trusted,"
                f" {error.verify_message.rstrip('.')}",
                hint="name the certificate of its authority with &sslrootcert=FILE in the URL",
            ) from error
        except ssl.SSLError as error:
            said = (error.reason or "a certificate or its key cannot be read").replace("_", " ")
            raise RemoteError(
                f"{url.display}: TLS: {said.lower()}",
                hint="openssl x509 -noout -subject -in FILE  # those of sslrootcert and sslcert",
            ) from error
        except (ValueError, asyncpg.InterfaceError) as error:
            # Settings that contradict each other. Their text can quote the URL's parts.
            raise UsageError(
                f"{url.display}: the URL and the PG* variables do not make a connection",
                hint="compare them with the URL: env | grep ^PG",
            ) from error
        try:
            await connection.execute(_UNLIMITED, list(url.settings))
        except BaseException:
            connection.terminate()
            raise
    return connection


def _ports(url: PostgresUrl) -> list[int] | None:
    """List the ports; without any in the URL, PGPORT decides."""
    if all(port is None for _, port in url.hosts):
        return None
    return [port or DEFAULT_PORT for _, port in url.hosts]


@asynccontextmanager
async def connect_sqlalchemy(url: PostgresUrl) -> AsyncIterator[AsyncConnection]:
    """Open a connection of SQLAlchemy for the block, outside of a transaction.

    Raises:
        OpsError: What `connect` raises, and what the server refuses inside the block.
    """
    from sqlalchemy.ext.asyncio import create_async_engine
    from sqlalchemy.pool import NullPool

    driver = await connect(url)

    async def opened() -> asyncpg.Connection[asyncpg.Record]:
        return driver

    engine = create_async_engine("postgresql+asyncpg://", async_creator=opened, poolclass=NullPool)
    try:
        with translate_errors(url):
            async with engine.connect() as connection:
                yield connection
    finally:
        await engine.dispose()
        if not driver.is_closed():
            await _close(driver)


async def _close(driver: asyncpg.Connection[asyncpg.Record]) -> None:
    try:
        await driver.close(timeout=CLOSE_SECONDS)
    except (OSError, asyncio.TimeoutError, TimeoutError):
        driver.terminate()


@contextmanager
def translate_errors(url: PostgresUrl) -> Iterator[None]:
    """Turn what the driver raises inside the block into errors that name the database."""
    import asyncpg

    try:
        yield
    except (
        OSError,
        asyncpg.PostgresError,
        asyncpg.InterfaceError,
        asyncpg.InternalClientError,
    ) as error:
        ours = _ours(url, error)
        if ours is None:
            raise
        raise ours from error
    except Exception as error:
        ours = _ours(url, _wrapped(error))
        if ours is None:
            raise
        raise ours from error


def find_server_error(error: Exception) -> asyncpg.PostgresError | None:
    """Give what the server said, bare or inside one of SQLAlchemy's errors; None for any other."""
    import asyncpg

    said = error if isinstance(error, asyncpg.PostgresError) else _wrapped(error)
    return said if isinstance(said, asyncpg.PostgresError) else None


def first_line(refusal: asyncpg.PostgresError) -> str:
    """Give the server's words, without its details: those hold values of rows."""
    return str(refusal.args[0] if refusal.args else "refused").splitlines()[0]


def _wrapped(error: Exception) -> BaseException | None:
    """Give the driver's error inside one of SQLAlchemy's; None for any other.

    Who has not imported SQLAlchemy cannot meet its errors, and it takes 0.2 seconds to import.
    """
    wrappers = sys.modules.get("sqlalchemy.exc")
    if wrappers is None or not isinstance(error, wrappers.DBAPIError) or error.orig is None:
        return None
    cause: BaseException | None = error.orig.__cause__
    return cause if cause is not None else error.orig


def _ours(url: PostgresUrl, error: BaseException | None) -> OpsError | None:
    import asyncpg

    if isinstance(error, asyncpg.PostgresError):
        state = str(error.sqlstate or "")
        kind = _BY_STATE.get(state) or _BY_STATE.get(state[:2])
        hint = _HINTS.get(state) or (_hint(kind) if kind else "")
        return kind(f"{url.display}: {first_line(error)}", hint=hint) if kind else None
    # A server that goes away between two messages can leave the driver in the wrong state.
    if isinstance(error, (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError)):
        said = (getattr(error, "strerror", None) or str(error)).splitlines()[0].lower()
        return RemoteError(f"{url.display}: {said}", hint=_hint(RemoteError))
    return None


def _hint(kind: type[OpsError]) -> str:
    hints: dict[type[OpsError], str] = {
        RemoteError: "pg_isready  # with the host and port of the URL",
        NotFoundError: "createdb  # or correct the name in the URL",
        PermissionDeniedError: "check the URL's user and password, and PGPASSWORD",
        NoSpaceError: "free some space on the server",
        UsageError: "correct the options after ? in the URL",
        LockedError: "run it again when the other session is done, or with a longer --wait",
    }
    return hints.get(kind, "")
