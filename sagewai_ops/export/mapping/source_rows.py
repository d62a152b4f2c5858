"""Read a frozen copy: connections that keep storage classes apart, batches of bounded size.

Text comes as `bytearray` and blobs as `bytes`, so that a blob in a text column is noticed, and text
that is not UTF-8 can be read at all.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sagewai_ops.database.sqlite.connect import open_connection
from sagewai_ops.database.sqlite.read_transaction import quoted
from sagewai_ops.export.convert.batch import Column
from sagewai_ops.export.convert.value import uuid_of
from sagewai_ops.export.mapping.findings import format_key
from sagewai_ops.export.mapping.plan import PlannedColumn, PlannedTable

# With more rows, a batch is no faster for each row, and exceeds the processor's cache.
BATCH_ROWS = 200
BATCH_BYTES = 256 * 1024  # a target, by the size of the previous rows
_FIRST_ROWS = 8
_LEAST_SECONDS = 3600.0  # of processor time: conversions and comparisons are included
_LOCK_SECONDS = 60.0  # of a run's own processes, while one of them commits a repair

UUID_FUNCTION = "ops_uuid"  # of SQLite: the UUID of an id that is cast to a blob


@contextmanager
def open_copy(path: Path, *, writable: bool = False) -> Iterator[sqlite3.Connection]:
    """Open a frozen copy for the block."""
    connection = open_connection(
        path,
        mode="rw" if writable else "ro",
        timeout=_LOCK_SECONDS,
        check_same_thread=False,
        least_seconds=_LEAST_SECONDS,
    )
    try:
        connection.text_factory = bytearray
        connection.create_function(UUID_FUNCTION, 1, _uuid_text, deterministic=True)
        if writable:
            connection.execute("PRAGMA synchronous = OFF")  # the copy is temporary
        yield connection
    finally:
        connection.close()


def compared_expression(column: PlannedColumn) -> str:
    """Return the SQL of a column's values of which two are equal if they are on the server."""
    if column.target.type.name == "uuid":
        return f"{UUID_FUNCTION}(CAST({column.expression} AS BLOB))"
    return column.expression


def read_batches(
    connection: sqlite3.Connection, query: str, size_of: "BatchSize | None" = None
) -> Iterator[list[Column]]:
    """Run a query and yield its result in batches, as columns, with at least one row each.

    Args:
        size_of: The size of the batch before, by which the next one is limited.
    """
    cursor = connection.execute(query)
    rows = _FIRST_ROWS
    sizes = size_of or BatchSize()
    while found := cursor.fetchmany(rows):
        columns: list[Column] = list(zip(*found, strict=True))
        yield columns
        fitting = int(BATCH_BYTES * len(found) / max(sizes.last, 1))
        rows = max(1, min(2 * rows, BATCH_ROWS, fitting))


class BatchSize:
    """The size in bytes of the previous batch, set by the function that encodes it."""

    __slots__ = ("last",)

    def __init__(self) -> None:
        self.last = 0


def read_key(connection: sqlite3.Connection, table: PlannedTable, rowid: int) -> dict[str, Any]:
    """Return a row's primary key, as it is stored."""
    names = table.key or ("rowid",)
    columns = ", ".join("rowid" if name == "rowid" else quoted(name) for name in names)
    row = connection.execute(
        f"SELECT {columns} FROM {quoted(table.name)} WHERE rowid = ?", (rowid,)
    ).fetchone()
    return dict(zip(names, row, strict=True))


def read_key_text(connection: sqlite3.Connection, table: PlannedTable, rowid: int) -> str:
    """Return a row's primary key for people."""
    return format_key(read_key(connection, table, rowid))


def _uuid_text(identifier: bytes | None) -> str | None:
    """Return the UUID of an id; of one that is not UTF-8, which is a finding, a unique text."""
    if identifier is None:
        return None
    try:
        return str(uuid_of(identifier.decode()))
    except UnicodeDecodeError:
        return identifier.hex()
