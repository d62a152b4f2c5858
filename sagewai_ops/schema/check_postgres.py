"""Check a PostgreSQL database: its revision, and its differences from the head.

It reads in one read-only transaction, also while a server uses the database. PostgreSQL enforces
types and constraints for every row, so rows are only counted; what can be wrong is the schema, an
incomplete index, and a sequence behind its column.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from sagewai_ops.database.postgres import connection as postgres_connection
from sagewai_ops.database.postgres.sessions import ServerSession
from sagewai_ops.database.url import PostgresUrl
from sagewai_ops.records import dataclass
from sagewai_ops.schema import postgres_server
from sagewai_ops.schema.findings import Finding
from sagewai_ops.schema.migrate_postgres import WAIT_SECONDS
from sagewai_ops.schema.postgres_head import Table, head
from sagewai_ops.schema.postgres_status import size_and_sessions
from sagewai_ops.schema.revision_graph import HEAD

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

_COLUMNS = """
SELECT c.relname::text, a.attname::text,
  pg_catalog.format_type(a.atttypid, a.atttypmod)
    || CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END
    || coalesce(' DEFAULT ' || pg_catalog.pg_get_expr(d.adbin, d.adrelid), '')
FROM pg_catalog.pg_attribute a
JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE n.nspname = pg_catalog.current_schema() AND c.relkind IN ('r', 'p') AND a.attnum > 0
  AND NOT a.attisdropped
ORDER BY a.attnum
"""
_CONSTRAINTS = """
SELECT c.relname::text, k.conname::text, pg_catalog.pg_get_constraintdef(k.oid), k.convalidated
FROM pg_catalog.pg_constraint k
JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = pg_catalog.current_schema() AND k.contype IN ('p', 'u', 'f', 'c', 'x')
"""
_INDEXES = """
SELECT t.relname::text, i.relname::text,
  pg_catalog.replace(pg_catalog.pg_get_indexdef(x.indexrelid),
    ' ON ' || pg_catalog.quote_ident(n.nspname) || '.', ' ON '),
  x.indisvalid AND x.indisready
FROM pg_catalog.pg_index x
JOIN pg_catalog.pg_class i ON i.oid = x.indexrelid
JOIN pg_catalog.pg_class t ON t.oid = x.indrelid
JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace
WHERE n.nspname = pg_catalog.current_schema()
  AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_constraint k WHERE k.conindid = x.indexrelid
    AND k.contype IN ('p', 'u', 'x'))
"""
_FUNCTIONS = """
SELECT p.proname::text || '(' || pg_catalog.oidvectortypes(p.proargtypes) || ')', p.proargnames
FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
WHERE n.nspname = pg_catalog.current_schema()
"""
_SEQUENCES = """
SELECT c.relname::text AS owner, a.attname::text AS name,
  pg_catalog.quote_ident(c.relname) AS quoted,
  pg_catalog.quote_ident(a.attname) AS quoted_name,
  pg_catalog.pg_get_serial_sequence(
    pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname), a.attname)
    AS sequence
FROM pg_catalog.pg_attribute a
JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = pg_catalog.current_schema() AND c.relkind IN ('r', 'p') AND a.attnum > 0
  AND NOT a.attisdropped
  AND pg_catalog.pg_get_serial_sequence(
    pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname), a.attname)
    IS NOT NULL
ORDER BY c.relname COLLATE "C"
"""


@dataclass(frozen=True, slots=True)
class CheckedPostgres:
    """The result of a check.

    Attributes:
        findings: Everything that is wrong; empty if nothing is.
        rows: By table, the user's own included.
        unknown_tables: The user's own, in the same schema.
        size_bytes: Of the database, its indexes included.
        sessions: Of other programs.
    """

    database: postgres_server.Database
    findings: tuple[Finding, ...]
    rows: Mapping[str, int]
    unknown_tables: tuple[str, ...]
    size_bytes: int
    sessions: tuple[ServerSession, ...]
    seconds: float


async def check_postgres(
    url: PostgresUrl, *, wait_seconds: float = WAIT_SECONDS
) -> CheckedPostgres:
    """Check a PostgreSQL database.

    Args:
        url: The database.
        wait_seconds: For each table that another session has locked, to change the schema.

    Raises:
        LockedError: A table remained locked.
        RemoteError, PermissionDeniedError, NotFoundError, UsageError: It cannot be read.
    """
    from sqlalchemy import text

    started = time.perf_counter()
    async with postgres_connection.connect_sqlalchemy(
        url, isolation="repeatable_read", readonly=True
    ) as connection:
        await connection.execute(text(f"SET LOCAL {postgres_server.lock_timeout(wait_seconds)}"))
        found = await postgres_server.read_database(connection)
        rows = await postgres_server.count_rows(connection)
        size_bytes, sessions = await size_and_sessions(connection)
        findings = list(_check_position(found))
        if found.position.state == "current":
            present, functions, incomplete = await read_schema(connection)
            findings += [*incomplete, *_find_drift(present, functions)]
            findings += [finding async for finding in _find_late_sequences(connection)]
    unknown = tuple(name for name in rows if name not in head()["tables"])
    return CheckedPostgres(
        found,
        tuple(findings),
        rows,
        unknown,
        size_bytes,
        sessions,
        time.perf_counter() - started,
    )


def _check_position(found: postgres_server.Database) -> Iterator[Finding]:
    state, heads = found.position.state, ", ".join(found.position.heads)
    if found.encoding != postgres_server.ENCODING:
        reason = f"encoding {found.encoding}, not {postgres_server.ENCODING}: texts can be refused"
        yield Finding("encoding", "", "", reason)
    reasons = {
        "behind": f"is behind, at {heads}",
        "forked": f"is at two revisions, {heads}; an upgrade joins them",
        "ahead": f"is ahead, at {heads}, later than {HEAD}",
        "unknown": f"is at {heads}, which is unknown",
        "unmanaged": "has tables that no revision made",
        "empty": "is empty",
    }
    if state != "current":
        yield Finding("level", "", "", reasons[state])


async def read_schema(
    connection: AsyncConnection,
) -> tuple[dict[str, Table], dict[str, list[str]], list[Finding]]:
    """Read the tables and functions of the schema, and find incomplete indexes and constraints."""
    from sqlalchemy import text

    tables: dict[str, Table] = {}
    incomplete = []

    def table(name: str) -> Table:
        return tables.setdefault(name, {"columns": {}, "constraints": {}, "indexes": {}})

    for owner, name, definition in await connection.execute(text(_COLUMNS)):
        table(owner)["columns"][name] = definition
    for owner, name, definition, is_valid in await connection.execute(text(_CONSTRAINTS)):
        table(owner)["constraints"][name] = definition.removesuffix(" NOT VALID")
        if not is_valid:
            incomplete.append(Finding("index", owner, "", f"constraint {name} is not validated"))
    for owner, name, definition, is_valid in await connection.execute(text(_INDEXES)):
        table(owner)["indexes"][name] = definition
        if not is_valid:
            incomplete.append(Finding("index", owner, "", f"index {name} is not valid"))
    functions = {
        signature: list(names or ())
        for signature, names in await connection.execute(text(_FUNCTIONS))
    }
    return tables, functions, incomplete


def _find_drift(
    present: Mapping[str, Table], functions: Mapping[str, Sequence[str]]
) -> Iterator[Finding]:
    """Compare with the head; tables, indexes and functions of the user's own are not drift."""
    for name, parameters in head()["functions"].items():
        if name not in functions:
            yield Finding("drift", "", "", f"function {name} is missing")
        elif functions[name] != parameters:
            reason = f"function {name}: the parameter is named {', '.join(functions[name])}, the"
            reason += f" head has {', '.join(parameters)}, and a later Sagewai cannot replace it"
            if functions[name] == [postgres_server.OLD_PARAMETER]:
                reason += "; db upgrade repairs it"
            yield Finding("drift", "", "", reason)
    for table, wanted in head()["tables"].items():
        if table not in present:
            yield Finding("drift", table, "", "missing table")
            continue
        existing = present[table]
        yield from _differences(table, "column", wanted["columns"], existing["columns"], extra=True)
        constraints = wanted["constraints"], existing["constraints"]
        yield from _differences(table, "constraint", *constraints, extra=True)
        yield from _differences(table, "index", wanted["indexes"], existing["indexes"], extra=False)


def _differences(
    table: str, kind: str, wanted: Mapping[str, str], found: Mapping[str, str], *, extra: bool
) -> Iterator[Finding]:
    for name, definition in wanted.items():
        column = name if kind == "column" else ""
        label = "" if column else f" {name}"
        if name not in found:
            yield Finding(
                "drift", table, column, f"missing {kind}{label}, the head has {definition}"
            )
        elif found[name] != definition:
            reason = f"different {kind}{label}, the head has {definition}, found {found[name]}"
            yield Finding("drift", table, column, reason)
    for name in found.keys() - wanted.keys() if extra else ():
        column = name if kind == "column" else ""
        label = "" if column else f" {name}"
        yield Finding("drift", table, column, f"extra {kind}{label}, found {found[name]}")


async def _find_late_sequences(connection: AsyncConnection) -> AsyncIterator[Finding]:
    """Find the sequences whose next number is in use."""
    from sqlalchemy import text

    for column in (await connection.execute(text(_SEQUENCES))).all():
        # Names come quoted from the server itself.
        statement = (
            f"SELECT (SELECT last_value + is_called::int FROM {column.sequence}) AS following,"  # noqa: S608
            f" (SELECT pg_catalog.max({column.quoted_name}) FROM {column.quoted}) AS highest"
        )
        row = (await connection.exec_driver_sql(statement)).one()
        if row.highest is not None and row.following <= row.highest:
            reason = (
                f"the next number of the sequence is {row.following}, and row {row.highest} exists"
            )
            yield Finding("sequence", column.owner, column.name, reason)
