"""Open connections to PostgreSQL, and translate the errors of the server and the driver.

A connection is one transaction: `open_transaction` begins it, pins the settings in it, and commits
at the end of the block. Settings, locks and statements end with it, so that a pooler in transaction
mode (PgBouncer) can assign one server connection to it, and gets that back as it was. SQLAlchemy's
engine is a thin layer over asyncpg here, without a pool; its transactions are savepoints. Every
error has an exit code, and none shows a password.

A database can contain functions and operators of other roles. PostgreSQL prefers the one whose
parameters match best, in any schema of the path, and it runs with the rights of the caller. So the
path of every transaction is pinned to one schema, every statement qualifies its functions
(`pg_catalog.`) and has operands of exactly the types of its operators, and operators of other roles
in that schema are refused: the statements of Alembic cannot be qualified.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from sagewai_ops.database.postgres import pgpass, protections, tls
from sagewai_ops.database.url import PostgresUrl
from sagewai_ops.errors import (
    DamagedError,
    DifferenceError,
    LockedError,
    NoSpaceError,
    NotFoundError,
    OpsError,
    PermissionDeniedError,
    RemoteError,
    UsageError,
)
from sagewai_ops.text import printable

if TYPE_CHECKING:
    import asyncpg
    from sqlalchemy.ext.asyncio import AsyncConnection

# asyncio logs an error in a callback of the driver, which every statement that waits reports too.
# Without a handler, `logging` would print its traceback on stderr.
logging.getLogger("asyncio").addHandler(logging.NullHandler())

APPLICATION_NAME = "sagewai-ops"  # in pg_stat_activity
_NO_FILE = f"{os.devnull}/none"  # cannot exist: `pgpass` has already read the password file
_SESSION = "target_session_attrs"
MOST_CHARACTERS = 500  # of a server's message
CLOSE_SECONDS = 5.0  # for the server's answer to a close; then the socket is closed without it

# The path is the first existing schema of the session's own, where Sagewai's tables are; pg_catalog
# comes before it, temporary tables after it. Without a schema, only pg_catalog remains.
# `sagewai_ops.*` keep the original. With row security off, a policy of another role is an error and
# neither hides rows nor runs a function. It is written for any path: operators and types are
# qualified too.
_PIN = """
SELECT
  pg_catalog.set_config(
    'sagewai_ops.search_path', pg_catalog.current_setting('search_path'), true),
  pg_catalog.set_config(
    'sagewai_ops.schemas', pg_catalog.current_schemas(false)::pg_catalog.text, true),
  pg_catalog.set_config('row_security', 'off', true),
  pg_catalog.set_config('search_path', coalesce(
    pg_catalog.quote_ident(pg_catalog.current_schema()::pg_catalog.text)
      OPERATOR(pg_catalog.||) ', pg_temp', ''), true)
"""
# Roles whose code may run with our rights: superusers, ourselves, and unless we are a superuser the
# roles that we are a member of.
_TRUSTED = """
EXISTS (SELECT 1 FROM pg_catalog.pg_roles me, pg_catalog.pg_roles owner
  WHERE me.rolname = current_user AND owner.oid = {owner}
    AND (owner.oid = me.oid OR owner.rolsuper
      OR NOT me.rolsuper AND pg_catalog.pg_has_role(me.oid, owner.oid, 'MEMBER')))
"""
_FOREIGN_OPERATORS = f"""
SELECT o.oprname::text AS name, pg_catalog.pg_get_userbyid(o.oprowner)::text AS owner
FROM pg_catalog.pg_operator o JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace
WHERE n.nspname = pg_catalog.current_schema() AND NOT {_TRUSTED.format(owner="o.oprowner")}
LIMIT 1
"""  # noqa: S608 (constants)
# What a change of rows would run: triggers, rules, and the functions of defaults, constraints,
# indexes and policies.
FOREIGN_CODE = f"""
WITH tables AS (
  SELECT c.oid, c.relname, c.relowner FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  WHERE n.nspname = pg_catalog.current_schema() AND c.relkind IN ('r', 'p')
), objects AS (
  SELECT oid, tgrelid AS owner FROM pg_catalog.pg_trigger
  UNION ALL SELECT oid, adrelid FROM pg_catalog.pg_attrdef
  UNION ALL SELECT oid, conrelid FROM pg_catalog.pg_constraint
  UNION ALL SELECT indexrelid, indrelid FROM pg_catalog.pg_index
  UNION ALL SELECT oid, polrelid FROM pg_catalog.pg_policy
)
SELECT 'rule ' || r.rulename::text || ' of table ' || t.relname::text AS code,
  pg_catalog.pg_get_userbyid(t.relowner)::text AS owner
FROM pg_catalog.pg_rewrite r JOIN tables t ON t.oid = r.ev_class
WHERE NOT {_TRUSTED.format(owner="t.relowner")}
UNION ALL
SELECT 'function ' || p.proname::text || ' of table ' || t.relname::text,
  pg_catalog.pg_get_userbyid(p.proowner)::text
FROM objects o JOIN tables t ON t.oid = o.owner
JOIN pg_catalog.pg_depend d ON d.objid = o.oid
JOIN pg_catalog.pg_proc p
  ON p.oid = d.refobjid AND d.refclassid = 'pg_catalog.pg_proc'::regclass::oid
WHERE NOT {_TRUSTED.format(owner="p.proowner")}
LIMIT 1
"""  # noqa: S608 (constants)

# What the server, a database or a role may set otherwise: the text format of values and
# definitions, the meaning of literals, whether triggers fire, and limits for short statements.
# `transaction_timeout` exists since 17. Not among the start-up parameters, where a pooler rejects
# those that it does not know.
_SETTINGS = {
    "bytea_output": "hex",
    "DateStyle": "ISO, MDY",
    "extra_float_digits": "1",
    "IntervalStyle": "postgres",
    "quote_all_identifiers": "off",
    "session_replication_role": "origin",
    "standard_conforming_strings": "on",
    "TimeZone": "UTC",
    "transform_null_equals": "off",
    "xmlbinary": "base64",
    "xmloption": "content",
}
_LIMITS = (  # those in the URL are respected
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "lock_timeout",
    "statement_timeout",
    "transaction_timeout",
)
_PIN_SETTINGS = """
SELECT pg_catalog.set_config(s.name, u.value, true)
FROM ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[])) AS u(name, value)
JOIN pg_catalog.pg_settings s ON s.name = u.name
WHERE s.setting <> u.value
"""

# By SQLSTATE or its class; every other one is a failure of the server.
# Source: PostgreSQL manual, appendix A.
_BY_STATE: dict[str, type[OpsError]] = {
    "3D000": NotFoundError,  # no such database
    "42704": UsageError,  # a setting in the URL that the server does not know
    "28": PermissionDeniedError,  # no such role, wrong password, no entry in pg_hba.conf
    "42501": PermissionDeniedError,  # row-level security too
    "25006": PermissionDeniedError,  # a standby, or read-only on purpose
    "53100": NoSpaceError,  # the server's disk
    "55P03": LockedError,  # lock_timeout
    "40P01": LockedError,  # deadlock
    "42": DifferenceError,  # an object that is missing, or is another
    "22": DifferenceError,  # a value that is refused
    "23": DifferenceError,
    "XX001": DamagedError,
    "XX002": DamagedError,
}
_NO_TRANSACTIONS = "statement pooling mode"  # of PgBouncer, with a state of any failed connection
_POOLER = (  # states in which a pooler, or a server behind one, refuses what only a session has
    "08P01",  # a start-up parameter
    "26000",  # a statement that another server connection has prepared
    "42P05",
)
_HINTS = {
    "42501": "GRANT SELECT ON ALL TABLES IN SCHEMA public TO ROLE;  # or the named privilege",
    # In a transaction that only reads, this is a standby whose replay removed rows that it needs.
    "40001": "ALTER SYSTEM SET hot_standby_feedback = on;"
    "  # on the standby, then SELECT pg_catalog.pg_reload_conf()",
    "25006": "psql URL -c 'SELECT pg_is_in_recovery()'  # t: a standby, use the primary's URL",
}


@asynccontextmanager
async def open_transaction(
    url: PostgresUrl, *, isolation: str = "read_committed", readonly: bool = False
) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """Open a connection for the block, in a transaction that is committed at its end.

    An error rolls back. Savepoints are `open_savepoint`. A block that has to control the
    end executes COMMIT or ROLLBACK itself, as its last statement. A role's limits are disabled,
    those in the URL are not.

    Args:
        url: The database.
        isolation: As asyncpg names it: `read_committed`, `repeatable_read` or `serializable`.
        readonly: The server refuses changes.

    Raises:
        UnknownOutcomeError: The connection was lost during the commit.
        OpsError: It cannot be opened, or the server reported an error inside the block.
    """
    async with keep_connection(url) as connection:
        transaction = connection.transaction(isolation=isolation, readonly=readonly)
        await transaction.start()
        await pin_settings(url, connection)
        yield connection
        if not connection.is_closed() and connection.is_in_transaction():
            await _commit(url, connection, readonly=readonly)


@asynccontextmanager
async def keep_connection(
    url: PostgresUrl,
) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """Open a connection without a transaction for the block, and close it; an error rolls back.

    As with `open_connection`, each transaction begins with `pin_settings`.

    Raises:
        OpsError: See `open_transaction`.
    """
    import asyncpg

    with translate_errors(url):
        connection = await open_connection(url)
        try:
            yield connection
        except asyncio.CancelledError:
            connection.terminate()  # the server rolls back
            raise
        except BaseException:
            with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                # Else it is lost, or the block ended the transaction.
                if not connection.is_closed() and connection.is_in_transaction():
                    await connection.execute("ROLLBACK")
            raise
        finally:
            await _close(connection)


@asynccontextmanager
async def open_savepoint(
    connection: asyncpg.Connection[asyncpg.Record], *, is_trial: bool = False
) -> AsyncIterator[None]:
    """Open a savepoint for the block: an error of the server rolls it back, a trial always.

    After a signal nothing is sent: `open_transaction` closes the connection, without a wait.
    """
    import asyncpg

    savepoint = connection.transaction()
    await savepoint.start()
    try:
        yield
    except asyncpg.PostgresError:
        await savepoint.rollback()
        raise
    await (savepoint.rollback() if is_trial else savepoint.commit())


async def _commit(
    url: PostgresUrl, connection: asyncpg.Connection[asyncpg.Record], *, readonly: bool
) -> None:
    from sagewai_ops.database.postgres.transaction import UnknownOutcomeError, wait_for_commit

    committing = connection.execute("COMMIT;")
    if readonly:
        await committing
        return
    try:
        await wait_for_commit(connection, committing)
    except UnknownOutcomeError as error:
        raise UnknownOutcomeError(
            f"{url.display}: {error.message}: committed or not, unknown",
            hint="sagewai-ops db check  # and run it again",
        ) from error


async def open_connection(url: PostgresUrl) -> asyncpg.Connection[asyncpg.Record]:
    """Open a connection without a transaction; the caller closes it.

    For a caller that begins several transactions, or one with a lock before its first query: in
    each it calls `pin_settings`. Outside of them it runs no query.

    Raises:
        RemoteError, PermissionDeniedError, NotFoundError, UsageError: It cannot be opened.
    """
    protections.check(url, os.environ)
    with translate_errors(url):
        return await _open(url, tls.options(url, os.environ))


async def _open(url: PostgresUrl, options: dict[str, str]) -> asyncpg.Connection[asyncpg.Record]:
    import asyncpg

    try:
        return await _open_first(url, options)
    except (asyncio.TimeoutError, TimeoutError) as error:
        raise RemoteError(
            f"{url.display}: no answer within {url.timeout_seconds:g} seconds",
            hint="pg_isready -t 60  # with the URL's host; connect_timeout=SECONDS waits",
        ) from error
    except ssl.SSLCertVerificationError as error:  # which is a ValueError too
        raise RemoteError(
            f"{url.display}: certificate of the server not trusted,"
            f" {error.verify_message.rstrip('.')}; sslrootcert=FILE in the URL names the"
            " certificate of its authority"
        ) from error
    except ssl.SSLError as error:
        reason = (error.reason or "certificate or key not readable").replace("_", " ")
        raise RemoteError(
            f"{url.display}: TLS: {reason.lower()}",
            hint="openssl x509 -noout -subject -in FILE  # those of sslrootcert and sslcert",
        ) from error
    except (ValueError, asyncpg.InterfaceError) as error:
        # Settings that contradict each other. The text of the error can quote parts of the URL.
        raise UsageError(
            f"{url.display}: contradicted by the PG* variables", hint="env | grep ^PG"
        ) from error


async def pin_settings(url: PostgresUrl, connection: asyncpg.Connection[asyncpg.Record]) -> None:
    """Pin the settings of the open transaction, and refuse operators of other roles.

    These are queries: in a `REPEATABLE READ` transaction they take the snapshot.

    Raises:
        PermissionDeniedError: The current schema has an operator of another role.
    """
    await connection.execute(_PIN)
    settings = _SETTINGS | {name: "0" for name in _LIMITS if name not in url.settings}
    await connection.execute(_PIN_SETTINGS, list(settings), list(settings.values()))
    await _refuse_operators(url, connection)


async def _refuse_operators(
    url: PostgresUrl, connection: asyncpg.Connection[asyncpg.Record]
) -> None:
    foreign = await connection.fetchrow(_FOREIGN_OPERATORS)
    if foreign:
        raise PermissionDeniedError(
            f"{url.display}: operator {printable(foreign['name'])} belongs to the role"
            f" {printable(foreign['owner'])}, and would run with your rights",
            hint="psql URL -c '\\do+'  # then DROP OPERATOR",
        )


async def _open_first(
    url: PostgresUrl, options: dict[str, str]
) -> asyncpg.Connection[asyncpg.Record]:
    """Open a connection to the first host that accepts one, each with its own password."""
    import asyncpg

    wanted = options.get(_SESSION) or os.environ.get("PGTARGETSESSIONATTRS") or "any"
    attempts = pgpass.hosts(url, os.environ)
    tries = [(host, options) for host in attempts]
    if wanted == "prefer-standby" and len(attempts) > 1:
        tries = [
            (host, options | {_SESSION: kind}) for kind in ("standby", "any") for host in attempts
        ]
    failure: Exception | None = None
    for (host, port), chosen in tries:
        try:
            connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(
                dsn=f"postgresql://?{urlencode(chosen)}" if chosen else None,
                host=host,
                port=port,
                user=url.user,
                password=pgpass.find(url, os.environ, host, port),
                passfile=_NO_FILE,
                database=url.database,
                timeout=url.timeout_seconds,
                # Without named prepared statements, which would outlive the transaction.
                statement_cache_size=0,
                server_settings={**url.settings, "application_name": APPLICATION_NAME},
            )
        except (
            OSError,
            asyncio.TimeoutError,
            asyncpg.CannotConnectNowError,
            asyncpg.TargetServerAttributeNotMatched,
        ) as error:
            failure = error
        else:
            return connection
    assert failure is not None
    raise failure


@asynccontextmanager
async def connect_sqlalchemy(
    url: PostgresUrl, *, isolation: str = "read_committed", readonly: bool = False
) -> AsyncIterator[AsyncConnection]:
    """Open a connection of SQLAlchemy for the block, as `open_transaction` does.

    Its own transactions are savepoints, so `connection.commit()` commits nothing yet.

    Raises:
        OpsError: See `open_transaction`.
    """
    async with (
        open_transaction(url, isolation=isolation, readonly=readonly) as driver,
        wrap_driver(driver) as connection,
    ):
        yield connection


@asynccontextmanager
async def wrap_driver(
    driver: asyncpg.Connection[asyncpg.Record],
) -> AsyncIterator[AsyncConnection]:
    """Yield a connection of SQLAlchemy over an open one that is in a transaction."""
    from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
    from sqlalchemy.pool import StaticPool

    async def opened() -> asyncpg.Connection[asyncpg.Record]:
        return driver

    def creator() -> Any:
        return engine.dialect.dbapi.connect(  # type: ignore[union-attr]
            async_creator_fn=opened,
            prepared_statement_cache_size=0,
            prepared_statement_name_func=str,  # unnamed
        )

    engine: AsyncEngine = create_async_engine(
        "postgresql+asyncpg://", creator=creator, poolclass=StaticPool
    )
    # The pool is not disposed of: it would close the driver's connection before the commit.
    async with engine.connect() as connection:
        try:
            yield connection
        except asyncio.CancelledError:
            driver.terminate()  # before SQLAlchemy waits for a statement that was cancelled
            raise


async def _close(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    if connection.is_closed():
        return
    try:
        await connection.close(timeout=CLOSE_SECONDS)
    except (OSError, asyncio.TimeoutError, TimeoutError):
        connection.terminate()
    except asyncio.CancelledError:
        connection.terminate()
        raise


@contextmanager
def translate_errors(url: PostgresUrl) -> Iterator[None]:
    """Turn errors of the driver inside the block into errors that name the database."""
    import asyncpg

    try:
        yield
    except (
        OSError,
        asyncpg.PostgresError,
        asyncpg.InterfaceError,
        asyncpg.InternalClientError,
    ) as error:
        failure = _from_driver_error(url, error)
        if failure is None:
            raise
        raise failure from error
    except Exception as error:
        failure = _from_driver_error(url, _unwrap(error))
        if failure is None:
            raise
        raise failure from error


def find_server_error(error: Exception) -> asyncpg.PostgresError | None:
    """Return the server's error, bare or inside one of SQLAlchemy's; None for other errors."""
    import asyncpg

    found = error if isinstance(error, asyncpg.PostgresError) else _unwrap(error)
    return found if isinstance(found, asyncpg.PostgresError) else None


def first_line(error: asyncpg.PostgresError) -> str:
    """Return the server's message, printable and bounded.

    Without its details, which contain values of rows.
    """
    return bounded(str(error.args[0] if error.args else "refused"))


def bounded(message: str) -> str:
    """Return the first line of a text that a server sent, printable and of a limited length."""
    line = printable((message.strip().splitlines() or [""])[0])
    return line if len(line) <= MOST_CHARACTERS else f"{line[:MOST_CHARACTERS]}..."


def foreign_code_error(database: str, code: str, owner: str) -> PermissionDeniedError:
    """Return the error for code of another role that a change of rows would run."""
    return PermissionDeniedError(
        f"{database}: {printable(code)} belongs to the role {printable(owner)}, and would run"
        " with your rights",
        hint="SAGEWAI_DATABASE_URL=postgresql://OWNER@HOST/DATABASE sagewai-ops ..."
        "  # the owner of the tables",
    )


def _unwrap(error: Exception) -> BaseException | None:
    """Return the driver's error inside one of SQLAlchemy's; None for other errors.

    Without an import of SQLAlchemy, which takes 0.2 seconds: if it is not loaded, the error cannot
    be one of its own.
    """
    wrappers = sys.modules.get("sqlalchemy.exc")
    if wrappers is None or not isinstance(error, wrappers.DBAPIError) or error.orig is None:
        return None
    cause: BaseException | None = error.orig.__cause__
    return cause if cause is not None else error.orig


def _from_driver_error(url: PostgresUrl, error: BaseException | None) -> OpsError | None:
    import asyncpg

    if isinstance(error, asyncpg.PostgresError):
        state, message = str(error.sqlstate or ""), f"{url.display}: {first_line(error)}"
        if state in _POOLER or _NO_TRANSACTIONS in message:
            return RemoteError(
                f"{message}; behind a pooler, connect to the server itself", hint=_hint(RemoteError)
            )
        kind = _BY_STATE.get(state) or _BY_STATE.get(state[:2]) or RemoteError
        return kind(message, hint=_HINTS.get(state) or _hint(kind))
    # A server that disappears between two messages can leave the driver in the wrong state.
    if isinstance(error, (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError)):
        reason = bounded(getattr(error, "strerror", None) or str(error)).lower()
        return RemoteError(f"{url.display}: {reason}", hint=_hint(RemoteError))
    return None


def _hint(kind: type[OpsError]) -> str:
    hints: dict[type[OpsError], str] = {
        RemoteError: "pg_isready  # with the host and port of the URL",
        NotFoundError: "createdb  # or correct the name in the URL",
        PermissionDeniedError: "psql URL  # check the user and the password, and PGPASSWORD",
        NoSpaceError: "df -h  # on the server",
        LockedError: "psql URL -c 'SELECT * FROM pg_stat_activity'  # or a longer --wait",
        DifferenceError: "sagewai-ops db check",
    }
    return hints.get(kind, "")
