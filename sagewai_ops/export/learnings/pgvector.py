"""Learnings as pgvector vectors, in tables like those of the home."""

from __future__ import annotations

import struct
import time
from array import array
from collections.abc import AsyncIterator, Iterator
from math import isfinite
from typing import TYPE_CHECKING

from sagewai_ops.database.sqlite.read_transaction import quoted
from sagewai_ops.database.sqlite.vectors import FLOAT_BYTES, VectorRow, VectorTable
from sagewai_ops.errors import TargetBusyError, UsageError
from sagewai_ops.export.convert.batch import NULL, SIGNATURE, TRAILER
from sagewai_ops.export.learnings.vector_rows import (
    Rows,
    VectorCopy,
    compare,
    compare_any_order,
    find_table,
)
from sagewai_ops.export.pipeline.sender import wait_for_copy
from sagewai_ops.progress import Progress

if TYPE_CHECKING:
    import asyncpg

SEND_BYTES = 256 * 1024
LARGEST_INDEXED = 2000  # dimensions of pgvector's HNSW index over `vector`
_OPERATORS = {"l2": "vector_l2_ops", "cosine": "vector_cosine_ops", "l1": "vector_l1_ops"}
_TYPES = {
    "text": "text",
    "integer": "bigint",
    "int": "bigint",
    "float": "double precision",
    "real": "double precision",
    "double": "double precision",
    "boolean": "boolean",
    "blob": "bytea",
}


_SCHEMA = """
SELECT pg_catalog.quote_ident(n.nspname)
FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace
WHERE e.extname = 'vector'
"""


async def ensure_extension(server: asyncpg.Connection[asyncpg.Record]) -> None:
    """Create the extension pgvector in the database if it is missing.

    Raises:
        UsageError: The server lacks pgvector.
    """
    query = "SELECT installed_version FROM pg_catalog.pg_available_extensions WHERE name = 'vector'"
    row = await server.fetchrow(query)
    if row is None:
        raise UsageError(
            "--learnings pgvector: the server has no extension vector",
            hint="install pgvector on the server, or use --learnings facts",
        )
    if row["installed_version"] is None:
        await server.execute("CREATE EXTENSION vector")


async def _schema(server: asyncpg.Connection[asyncpg.Record]) -> str:
    """Return the schema of the extension, quoted; it need not be the session's."""
    return str(await server.fetchval(_SCHEMA))


async def copy_vectors(
    server: asyncpg.Connection[asyncpg.Record],
    rows: Rows,
    result: VectorCopy,
    progress: Progress | None,
) -> None:
    """Copy a table's rows, compare them, and create the index.

    Args:
        progress: Called with `learnings <table>`, in rows.

    Raises:
        TargetBusyError: The target has a table of that name.
        DifferenceError: The rows stored differ from those sent.
    """
    table = rows.table
    await _create_table(server, table)
    names = [table.key, table.vector, *(column.name for column in table.columns)]
    started = time.monotonic()
    copying = server.copy_to_table(
        table.name, source=_encoded(rows, result, progress), columns=names, format="binary"
    )
    await wait_for_copy(server, copying)
    result.copy_seconds = time.monotonic() - started
    started = time.monotonic()
    await compare(
        server, f"{await _query(server, rows)} ORDER BY ctid", [], _expected(rows), result
    )
    result.compare_seconds = time.monotonic() - started
    started = time.monotonic()
    operators = _OPERATORS.get(table.metric)
    if operators and table.dimensions <= LARGEST_INDEXED:
        await server.execute(
            f"CREATE INDEX ON {quoted(table.name)} USING hnsw"
            f" ({quoted(table.vector)} {await _schema(server)}.{operators})"
        )
    result.index_seconds = time.monotonic() - started
    result.to = table.name


async def check_rows(server: asyncpg.Connection[asyncpg.Record], rows: Rows) -> None:
    """Create the table, and refuse the rows that pgvector cannot store.

    Raises:
        TargetBusyError: The target has a table of that name.
    """
    await _create_table(server, rows.table)
    for row in rows.every_row():
        _fitting(rows, row)


async def _create_table(server: asyncpg.Connection[asyncpg.Record], table: VectorTable) -> None:
    if await find_table(server, table.name):
        raise TargetBusyError(
            f"table {table.name}: exists already", hint="export with --learnings keep"
        )
    key_type = "text" if table.key_is_text else "bigint"
    columns = "".join(
        f", {quoted(column.name)} {_TYPES.get(column.kind, 'text')}" for column in table.columns
    )
    await server.execute(
        f"CREATE TABLE {quoted(table.name)} ({quoted(table.key)} {key_type} PRIMARY KEY,"
        f" {quoted(table.vector)} {await _schema(server)}.vector({table.dimensions}) NOT NULL"
        f"{columns})"
    )


async def verify(
    server: asyncpg.Connection[asyncpg.Record], rows: Rows, result: VectorCopy
) -> None:
    """Compare a table's rows again.

    Raises:
        DifferenceError: They differ.
    """
    for row in rows.every_row():
        result.sent += _fitting(rows, row) is not None
    await compare_any_order(server, await _query(server, rows), _expected(rows), rows.table.name)
    result.to = rows.table.name


async def _encoded(
    rows: Rows, result: VectorCopy, progress: Progress | None
) -> AsyncIterator[bytes]:
    """Encode rows for binary COPY, and omit those that pgvector cannot store.

    Source: vector_recv in pgvector's vector.c.
    """
    table = rows.table
    header = struct.pack(">h", 2 + len(table.columns))
    size = 4 + table.dimensions * FLOAT_BYTES
    head = struct.pack(">iHH", size, table.dimensions, 0)
    kinds = [_TYPES.get(column.kind, "text") for column in table.columns]
    parts: list[bytes] = [SIGNATURE]
    waiting = 0
    for number, row in enumerate(rows.every_row(), 1):
        floats = _fitting(rows, row)
        if floats is None:
            continue
        floats.byteswap()
        parts += (header, _field("text" if table.key_is_text else "bigint", row.key), head)
        parts.append(floats.tobytes())
        parts += map(_field, kinds, row.values)
        waiting += size + 200
        result.sent += 1
        if waiting >= SEND_BYTES:
            yield b"".join(parts)
            parts, waiting = [], 0
            if progress:
                progress(f"learnings {result.table}", number, result.rows)
    yield b"".join([*parts, TRAILER])


def _fitting(rows: Rows, row: VectorRow) -> array[float] | None:
    """Return a row's vector, or None if pgvector cannot store the row."""
    if rows.refuse_texts(row):
        return None
    floats = array("f", row.vector)
    if not isfinite(sum(floats)):
        detail = "has an infinity in it, or a value that is not a number"
        rows.refuse(row.key, "not-finite", rows.table.vector, detail)
        return None
    return floats


def _field(kind: str, value: str | float | bytes | None) -> bytes:
    if value is None:
        return NULL
    if isinstance(value, str):
        raw = value.encode()
    elif isinstance(value, bytes):
        raw = value
    elif kind == "boolean":
        raw = b"\1" if value else b"\0"
    elif kind == "bigint":
        raw = struct.pack(">q", value)
    else:
        raw = struct.pack(">d", value)
    return struct.pack(">i", len(raw)) + raw


async def _query(server: asyncpg.Connection[asyncpg.Record], rows: Rows) -> str:
    table = rows.table
    others = "".join(f", {quoted(column.name)}" for column in table.columns)
    schema = await _schema(server)
    wanted = f"{quoted(table.key)}, {schema}.vector_send({quoted(table.vector)}){others}"
    return f"SELECT {wanted} FROM {quoted(table.name)}"


def _expected(rows: Rows) -> Iterator[tuple[object, ...]]:
    """Yield the rows as the server should return them."""
    count = rows.table.dimensions
    kinds = [column.kind for column in rows.table.columns]
    for row in rows.copied():
        vector = struct.pack(f">HH{count}f", count, 0, *struct.unpack(f"<{count}f", row.vector))
        values = (
            bool(value) if kind == "boolean" else value
            for kind, value in zip(kinds, row.values, strict=True)
        )
        yield (row.key, vector, *values)
