"""Sessions, API tokens and fleet rows of a database on a server, in the transaction of a restore.

The same as `access` for a server: count, revoke, rebind. Tables that an older revision lacks are
left out, and so are those of the user with such a name and other columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sagewai_ops.database.sqlite.read_transaction import quoted
from sagewai_ops.errors import DamagedError
from sagewai_ops.restore.access import AccessCounts

if TYPE_CHECKING:
    from typing import TypeAlias

    import asyncpg

    Server: TypeAlias = asyncpg.Connection[asyncpg.Record]

_SESSIONS, _TOKENS = ("user_session", "expires_at"), ("api_token", "revoked_at")
_FLEET = (("workers", "org_id"), ("enrollment_keys", "org_id"), ("fleet_tasks", "org_id"))
_FROM_PATH = "default:%"  # an organisation id that is derived from a path
_FOUND = """
SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_attribute a
  JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  WHERE n.nspname = $1::text::name AND c.relname = $2::text::name AND a.attname = $3::text::name
    AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped)
"""


async def count(server: Server, schema: str) -> AccessCounts:
    """Count the valid sessions, API tokens and fleet rows of a schema."""
    sessions = tokens = fleet = 0
    if table := await _find(server, schema, _SESSIONS):
        sessions = await _number(server, table, "expires_at > pg_catalog.now()")
    if table := await _find(server, schema, _TOKENS):
        valid = "revoked_at IS NULL AND (expires_at IS NULL OR expires_at > pg_catalog.now())"
        tokens = await _number(server, table, valid)
    for each in _FLEET:
        if table := await _find(server, schema, each):
            fleet += await _number(server, table, f"org_id LIKE '{_FROM_PATH}'")
    return AccessCounts(sessions, tokens, fleet)


async def revoke(server: Server, schema: str) -> None:
    """End every session and revoke every API token of a schema.

    Raises:
        DamagedError: One is left.
    """
    left = 0
    if table := await _find(server, schema, _SESSIONS):
        await server.execute(f"DELETE FROM {table}")  # noqa: S608 (quoted)
        left += await _number(server, table, "true")
    if table := await _find(server, schema, _TOKENS):
        change = "SET revoked_at = pg_catalog.now() WHERE revoked_at IS NULL"
        await server.execute(f"UPDATE {table} {change}")
        left += await _number(server, table, "revoked_at IS NULL")
    if left:
        raise DamagedError(
            f"database of the server: {left} sessions and API tokens are left, not revoked",
            hint="sagewai-ops db check",
        )


async def rebind(server: Server, schema: str, organisation: str) -> int:
    """Assign the fleet's rows of a schema to an organisation id; return their number."""
    changed = 0
    for each in _FLEET:
        if table := await _find(server, schema, each):
            status = await server.execute(
                f"UPDATE {table} SET org_id = $1::text"  # noqa: S608 (quoted)
                f" WHERE org_id LIKE '{_FROM_PATH}' AND org_id <> $1::text",
                organisation,
            )
            changed += int(status.rpartition(" ")[2])
    return changed


async def _find(server: Server, schema: str, place: tuple[str, str]) -> str:
    """Return the quoted name of a table that has a column; "" without it."""
    table, column = place
    found = await server.fetchval(_FOUND, schema, table, column)
    return f"{quoted(schema)}.{quoted(table)}" if found else ""


async def _number(server: Server, table: str, condition: str) -> int:
    query = f"SELECT pg_catalog.count(*) FROM {table} WHERE {condition}"  # noqa: S608 (quoted)
    return int(await server.fetchval(query))
