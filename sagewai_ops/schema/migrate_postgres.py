"""Upgrade and downgrade a PostgreSQL database by its revisions.

A run takes the advisory lock, checks the server, the privileges and the current revision, counts
every row, runs the revisions, counts again and commits. Everything after the lock is one
transaction, so an error, a kill or a difference changes nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Literal

from sagewai_ops.database.postgres import connection as postgres_connection
from sagewai_ops.database.postgres.sessions import SESSION_COLUMNS, ServerSession
from sagewai_ops.database.url import PostgresUrl
from sagewai_ops.errors import (
    DifferenceError,
    LockedError,
    SchemaAheadError,
    SchemaBehindError,
    UsageError,
)
from sagewai_ops.progress import Progress
from sagewai_ops.records import dataclass
from sagewai_ops.schema import alembic_runner, postgres_server, revision_graph
from sagewai_ops.schema.revision_graph import HEAD, revisions

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

LOCK = 0x5A6E_0A15_0001  # the advisory lock; an arbitrary number
WAIT_SECONDS = 30.0  # for the lock, and for each table that another session has locked
_POLL_SECONDS = 0.1

# Duplicate, undefined or dependent objects, and rows that violate a constraint.
# Source: PostgreSQL manual, appendix A.
_DIFFERENCES = frozenset(
    ("42P07", "42701", "42710", "42723", "42P01", "42703", "42704", "42883", "42804", "2B", "23")
)

_DEPENDENT = "2BP01"

_HOLDER = f"""
SELECT {SESSION_COLUMNS} FROM pg_catalog.pg_stat_activity WHERE pid IN (
  SELECT l.pid FROM pg_catalog.pg_locks l
  WHERE l.locktype = 'advisory' AND l.granted AND l.database =
      (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
    AND (l.classid::bigint << 32) + l.objid::bigint = :lock)
"""  # noqa: S608 (a constant)


@dataclass(frozen=True, slots=True)
class Migration:
    """The result of a run or of a rehearsal.

    Attributes:
        before: The rows of `alembic_version` before the run, sorted.
        after: The same after the run.
        ran: The revisions applied or reverted, in order.
        repaired_functions: Functions created again with Sagewai's name of the parameter.
        rows_before: The rows of every table before the run.
        rows_after: The rows of every table after the run.
        seconds: Of the revisions alone, without locks and counts.
        rehearsed: `scratch` on a copy, `rollback` in a transaction rolled back; else empty.
        server: The server's version.
    """

    before: tuple[str, ...]
    after: tuple[str, ...]
    ran: tuple[str, ...]
    rows_before: Mapping[str, int]
    rows_after: Mapping[str, int]
    seconds: float
    rehearsed: Literal["scratch", "rollback", ""] = ""
    server: str = ""
    repaired_functions: tuple[str, ...] = ()


async def inspect_database(url: PostgresUrl) -> postgres_server.Database:
    """Read a database's server, privileges and revisions.

    Raises:
        RemoteError, PermissionDeniedError, NotFoundError, UsageError: Not readable.
    """
    async with postgres_connection.connect_sqlalchemy(url) as connection:
        return await postgres_server.read_database(connection)


async def upgrade(
    url: PostgresUrl,
    target: str = HEAD,
    *,
    wait_seconds: float = WAIT_SECONDS,
    progress: Progress | None = None,
) -> Migration:
    """Apply the revisions up to the target.

    Args:
        url: The database.
        target: A revision, from `revision_graph.find_revision`.
        wait_seconds: For another run's lock, and for each lock on a table.
        progress: Called with `revisions`, in revisions.

    Raises:
        SchemaBehindError: The tables were created without revisions.
        SchemaAheadError: The database is at an unknown revision.
        UsageError: The database is past the target, or its encoding is not UTF8.
        LockedError: Another run or a session that locked a table did not end in time.
        PermissionDeniedError: Privileges are missing; nothing was tried.
        DifferenceError: Rows would have been lost or added, or the schema differs from its
            revision; nothing was changed.
        UnknownOutcomeError: The connection was lost during the commit.
        OpsError: The server reported an error; nothing was changed.
    """
    async with _locked(url, wait_seconds) as connection, connection.begin():
        return await _move(connection, target, down=False, progress=progress)


async def downgrade(
    url: PostgresUrl,
    target: str,
    *,
    wait_seconds: float = WAIT_SECONDS,
    progress: Progress | None = None,
) -> Migration:
    """Revert the revisions after the target, which drops the tables and columns that they created.

    Arguments and errors are those of `upgrade`.
    """
    async with _locked(url, wait_seconds) as connection, connection.begin():
        return await _move(connection, target, down=True, progress=progress)


async def plan_sql(url: PostgresUrl, target: str, *, down: bool = False) -> str:
    """Return the statements that a run would execute, transaction included.

    Raises:
        OpsError: As `upgrade`, before it changes anything.
    """
    found = await inspect_database(url)
    start = check_position(found, target, down=down)
    script = alembic_runner.format_sql(start, target, down=down)
    repairs = "".join(f"{line};\n\n" for line in _repairs(() if down else found.old_functions))
    return script.replace("BEGIN;\n\n", f"BEGIN;\n\n{repairs}", 1)


async def plan_move(url: PostgresUrl, target: str, *, down: bool = False) -> list[str]:
    """List the revisions that a run would apply or revert, in the order of their application.

    Raises:
        OpsError: What `upgrade` raises before it changes anything.
    """
    found = await inspect_database(url)
    return _between(check_position(found, target, down=down), target, down=down)


def check_position(found: postgres_server.Database, target: str, *, down: bool) -> tuple[str, ...]:
    """Check that a database can be moved: its revisions are known and not past the target.

    Returns:
        The rows of `alembic_version`.

    Raises:
        SchemaBehindError, SchemaAheadError, UsageError: See `upgrade`.
    """
    database, heads = f"database {found.name}", found.position.heads
    if not down:
        postgres_server.check_encoding(database, found.encoding)
    if found.position.state == "unmanaged":
        table = next(
            table.name for table in found.tables if table.name != postgres_server.VERSION_TABLE
        )
        raise SchemaBehindError(
            f"{database}: not created by revisions, with table {table}",
            hint="sagewai-ops export-to-postgres  # into an empty database",
        )
    if found.position.state == "ahead":
        raise SchemaAheadError(
            f"{database}: at revision {', '.join(heads)}, later than {HEAD}",
            hint="pip install --upgrade sagewai-ops",
        )
    if found.position.state == "unknown":
        raise SchemaAheadError(
            f"{database}: at unknown revision {', '.join(heads)}",
            hint="sagewai-ops db history",
        )
    done = revision_graph.applied(heads)
    if down and target != revision_graph.BASE and target not in done:
        raise UsageError(
            f"{database}: before {target}, at {', '.join(heads) or revision_graph.BASE}",
            hint=f"sagewai-ops db upgrade {target}",
        )
    if not down and done - revision_graph.ancestors(target) and target in done:
        raise UsageError(
            f"{database}: past {target}, at {', '.join(heads)}",
            hint=f"sagewai-ops db downgrade {target}",
        )
    return heads


async def _move(
    connection: AsyncConnection, target: str, *, down: bool, progress: Progress | None
) -> Migration:
    """Check the database and run the revisions in the open transaction."""
    found = await postgres_server.read_database(connection)
    postgres_server.check_privileges(found)
    before = check_position(found, target, down=down)
    return await run_revisions(connection, found, before, target, down=down, progress=progress)


async def run_revisions(
    connection: AsyncConnection,
    found: postgres_server.Database,
    before: tuple[str, ...],
    target: str,
    *,
    down: bool,
    progress: Progress | None = None,
) -> Migration:
    """Count rows, run the revisions and count again, in the open transaction.

    Raises:
        DifferenceError: The number of rows of a table changed, or the schema differs from its
            revision.
    """
    total = len(_between(before, target, down=down))
    ran: list[str] = []

    def applied(revision: str) -> None:
        ran.append(revision)
        if progress:
            progress("revisions", len(ran), total)

    rows_before = await postgres_server.count_rows(connection)
    started = time.perf_counter()
    repaired = () if down else found.old_functions
    with translate_differences(found, before):
        for statement in _repairs(repaired):
            await connection.exec_driver_sql(statement)
        await alembic_runner.migrate(connection, target, down=down, applied=applied)
    seconds = time.perf_counter() - started
    rows_after = await postgres_server.count_rows(connection)
    changed = [t for t, rows in rows_before.items() if rows_after.get(t, rows) != rows]
    if changed:
        table = changed[0]
        raise DifferenceError(
            f"table {table}: {rows_before[table]} rows before and {rows_after[table]} after,"
            " nothing was changed"
        )
    after = (await postgres_server.read_database(connection)).position.heads
    return Migration(
        before,
        after,
        tuple(ran),
        rows_before,
        rows_after,
        seconds,
        server=found.version,
        repaired_functions=repaired,
    )


def _repairs(functions: Sequence[str]) -> Iterator[str]:
    """Yield the statements that create functions again with Sagewai's name of the parameter."""
    if functions:
        from sagewai_ops.migrations.versions.v002_sandbox_requirements import RANKS

        for name in functions:
            yield f"DROP FUNCTION {name}(text)"
            yield RANKS[name]


@contextmanager
def translate_differences(
    found: postgres_server.Database, heads: tuple[str, ...]
) -> Iterator[None]:
    """Translate the errors of a schema that differs from its revision.

    Raises:
        DifferenceError: An object exists already, is missing or is needed by another, or rows
            violate a new constraint.
    """
    try:
        yield
    except Exception as error:
        refusal = postgres_connection.find_server_error(error)
        state = str(refusal.sqlstate) if refusal else ""
        if refusal is None or (state not in _DIFFERENCES and state[:2] not in _DIFFERENCES):
            raise
        reason = postgres_connection.first_line(refusal)
        if state == _DEPENDENT and refusal.detail:  # names of objects, never values of rows
            reason += f" ({postgres_connection.bounded(str(refusal.detail))})"
        raise DifferenceError(
            f"database {found.name}: schema differs from revision"
            f" {', '.join(heads) or revision_graph.BASE}, {reason}; nothing was changed",
        ) from error


def _between(before: tuple[str, ...], target: str, *, down: bool) -> list[str]:
    """Return the revisions that a run applies or reverts, oldest first."""
    done, wanted = revision_graph.applied(before), revision_graph.ancestors(target)
    if not down:
        return [revision for revision in revisions() if revision in wanted - done]
    if target == revision_graph.BASE:
        return [revision for revision in revisions() if revision in done]
    return [
        r
        for r in revisions()
        if r in done and r != target and target in revision_graph.ancestors(r)
    ]


@asynccontextmanager
async def _locked(url: PostgresUrl, wait_seconds: float) -> AsyncIterator[AsyncConnection]:
    """Open a connection whose transaction has the advisory lock."""
    from sqlalchemy import text

    async with postgres_connection.connect_sqlalchemy(url) as connection:
        await connection.execute(text(f"SET LOCAL {postgres_server.lock_timeout(wait_seconds)}"))
        deadline = time.monotonic() + wait_seconds
        query = text("SELECT pg_catalog.pg_try_advisory_xact_lock(:lock)")
        while not (await connection.execute(query, {"lock": LOCK})).scalar_one():
            if time.monotonic() >= deadline:
                holder = (await connection.execute(text(_HOLDER), {"lock": LOCK})).first()
                owner = ServerSession(*holder).display if holder else "another run"
                raise LockedError(f"{url.display}: locked by {owner}, which changes the schema")
            await asyncio.sleep(_POLL_SECONDS)
        await connection.commit()  # a savepoint
        yield connection
