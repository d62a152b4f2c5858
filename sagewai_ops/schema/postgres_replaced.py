"""The schema of what a restore replaced on a server: evidence that it was committed, and for undo.

A restore moves the previous objects there in the transaction that loads the new ones. So the schema
exists exactly if that transaction was committed.
"""

from __future__ import annotations

from sagewai_ops.database.url import PostgresUrl
from sagewai_ops.process.signals import run_interruptibly
from sagewai_ops.records import dataclass

REPLACED_SCHEMAS = "sagewai_before_restore_"  # begins their names
_WAIT_SECONDS = 10  # for the end of the transaction of a dead run
_EXISTS = "SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = $1::text::name)"


@dataclass(frozen=True, slots=True)
class ServerStep:
    """The part of a restore on a server, as a journal records it.

    Attributes:
        database: The URL, without password and options.
        schema: Exists once it is committed.
    """

    database: str
    schema: str


def replaced_schema(moment: str) -> str:
    """Return the schema for what the restore of a moment replaces."""
    return f"{REPLACED_SCHEMAS}{moment.lower()}"


def has_schema(url: PostgresUrl, schema: str) -> bool:
    """Return whether a database has a schema.

    It waits for the end of a restore: the server may still commit for a client that is gone.

    Raises:
        LockedError: A restore, an export or an upgrade does not end.
        OpsError: The server is not reachable, or refuses.
    """
    return run_interruptibly(_has_schema, url, schema)


async def _has_schema(url: PostgresUrl, schema: str) -> bool:
    from sagewai_ops.database.postgres.connection import open_transaction
    from sagewai_ops.schema.migrate_postgres import LOCK

    async with open_transaction(url, readonly=True) as server:
        await server.execute(f"SET LOCAL lock_timeout = '{_WAIT_SECONDS}s'")
        await server.execute("SELECT pg_catalog.pg_advisory_xact_lock_shared($1)", LOCK)
        return bool(await server.fetchval(_EXISTS, schema))
