"""The sealed values of tables on a PostgreSQL server: read them, and replace their tokens.

They are read into a small SQLite database in memory with the same tables, so that the same code
inspects both engines. They are written in one transaction, under locks that block other writers.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Container, Mapping
from typing import TYPE_CHECKING, TypeAlias

from sagewai_ops.database.postgres.connection import (
    FOREIGN_CODE,
    foreign_code_error,
    open_transaction,
)
from sagewai_ops.database.sqlite.connect import open_connection
from sagewai_ops.database.sqlite.read_transaction import quoted
from sagewai_ops.database.url import PostgresUrl
from sagewai_ops.keys.locations import COLUMNS, PREFIX
from sagewai_ops.keys.reencrypt import replace_tokens
from sagewai_ops.process.signals import run_interruptibly

if TYPE_CHECKING:
    import asyncpg

    Server: TypeAlias = asyncpg.Connection[asyncpg.Record]

# Table -> columns, and rows as texts in their order.
Rows: TypeAlias = dict[str, tuple[list[str], list[tuple["str | None", ...]]]]

# The tables that can contain a sealed value or a secret, with the columns that are read.
_TABLES: Mapping[str, tuple[str, ...]] = {
    "project": ("id", "data_key_ref"),
    "provider": ("id", "project_id", "data"),
    "admin_resources": ("kind", "resource_id", "project_id", "data"),
    "connection": ("id", "protocol", "last_test_ok", "protocol_data", "credentials_backend"),
    "connector_credentials": ("id", "config", "access_token", "refresh_token"),
    "notification_channels": ("id", "config"),
}
_TYPES = """
SELECT a.attname::text AS name, pg_catalog.format_type(a.atttypid, a.atttypmod) AS type
FROM pg_catalog.pg_attribute a
WHERE a.attrelid = pg_catalog.to_regclass($1)::oid AND a.attnum > 0 AND NOT a.attisdropped
"""


def read_tables(url: PostgresUrl) -> sqlite3.Connection:
    """Copy the columns that can contain a secret into a database in memory; the caller closes it.

    Raises:
        OpsError: The server is not reachable, or refuses.
    """
    return load_tables(run_interruptibly(_read, url))


def load_tables(tables: Rows) -> sqlite3.Connection:
    """Return a database in memory with the columns of `read_columns`; the caller closes it."""
    connection = open_connection(None)
    for table, (columns, rows) in tables.items():
        names = ", ".join(map(quoted, columns))
        connection.execute(f"CREATE TABLE {quoted(table)} ({names})")
        marks = ", ".join("?" * len(columns))
        connection.executemany(f"INSERT INTO {quoted(table)} VALUES ({marks})", rows)  # noqa: S608
    return connection


def replace_tokens_on_server(url: PostgresUrl, tokens: Mapping[bytes, bytes]) -> None:
    """Replace tokens in every column that contains sealed values, in one transaction.

    Raises:
        OpsError: The server is not reachable, or refuses; it may have committed, and it can be
            repeated.
    """
    run_interruptibly(_substitute, url, tokens)


async def _read(url: PostgresUrl) -> Rows:
    async with open_transaction(url, isolation="repeatable_read", readonly=True) as server:
        return await read_columns(server, _TABLES)


async def read_columns(server: Server, tables: Container[str]) -> Rows:
    """Read the columns that can contain a secret, of these tables alone."""
    found = {}
    for table, wanted in _TABLES.items():
        types = await _types(server, table) if table in tables else {}
        columns = [name for name in wanted if name in types]
        if not columns:
            continue
        # Booleans as in SQLite: 1 and 0.
        expressions = ", ".join(
            f"{quoted(name)}::int::text" if types[name] == "boolean" else f"{quoted(name)}::text"
            for name in columns
        )
        query = f"SELECT {expressions} FROM {quoted(table)}"  # noqa: S608
        found[table] = (columns, [tuple(row) for row in await server.fetch(query)])
    return found


async def _substitute(url: PostgresUrl, tokens: Mapping[bytes, bytes]) -> None:
    async with open_transaction(url) as server:
        foreign = await server.fetchrow(FOREIGN_CODE)
        if foreign:
            raise foreign_code_error(url.display, *foreign)
        for column in COLUMNS:
            types = await _types(server, column.table)
            if column.name in types:
                await _replace(server, column.table, column.name, types[column.name], tokens)


async def _replace(
    server: Server, table: str, column: str, kind: str, tokens: Mapping[bytes, bytes]
) -> None:
    name = quoted(column)
    await server.execute(f"LOCK TABLE {quoted(table)} IN SHARE ROW EXCLUSIVE MODE")
    rows = await server.fetch(
        f"SELECT ctid::text AS place, {name}::text AS content FROM {quoted(table)}"  # noqa: S608
        f" WHERE pg_catalog.strpos({name}::text, $1) > 0",
        PREFIX,
    )
    changed = []
    for row in rows:
        content = row["content"].encode()
        other = replace_tokens(content, tokens)
        if other != content:
            changed.append((row["place"], other.decode()))
    await server.executemany(
        f"UPDATE {quoted(table)} SET {name} = $2::text::{kind}"  # noqa: S608 (a type name of the server)
        " WHERE ctid = $1::text::tid",
        changed,
    )


async def _types(server: Server, table: str) -> dict[str, str]:
    return {row["name"]: row["type"] for row in await server.fetch(_TYPES, quoted(table))}
