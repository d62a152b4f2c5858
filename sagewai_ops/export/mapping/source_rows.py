"""Reading a frozen copy: connections that keep storage classes apart, and batches of bounded size.

Text comes as `bytearray` and blobs as `bytes`, so that a blob in a text column is noticed, and text
that is not UTF-8 can be read at all.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sagewai_ops.database.sqlite.read_transaction import database_uri, quoted
from sagewai_ops.export.convert.batch import Column
from sagewai_ops.export.convert.value import uuid_of
from sagewai_ops.export.mapping.findings import shown
from sagewai_ops.export.mapping.plan import PlannedTable

# More rows do not make a batch cheaper for each row, and leave the processor's cache.
BATCH_ROWS = 200
BATCH_BYTES = 256 * 1024  # aimed at, by the size of the rows before
_FIRST_ROWS = 8

UUID_FUNCTION = "ops_uuid"


@contextmanager
def opened_copy(path: Path, *, writable: bool = False) -> Iterator[sqlite3.Connection]:
    """Open a frozen copy for the block."""
    mode = "rw" if writable else "ro"
    connection = sqlite3.connect(
        database_uri(path, mode=mode), uri=True, isolation_level=None, check_same_thread=False
    )
    try:
        connection.text_factory = bytearray
        connection.create_function(UUID_FUNCTION, 1, _uuid_text, deterministic=True)
        if writable:
            connection.execute("PRAGMA synchronous = OFF")  # the copy is thrown away
        yield connection
    finally:
        connection.close()


def batches(
    connection: sqlite3.Connection, query: str, size_of: "SizeOf | None" = None
) -> Iterator[list[Column]]:
    """Run a query and yield its result in batches, as columns, with at least one row each.

    Args:
        size_of: Told each batch, says how many bytes it was; the next is made to fit.
    """
    cursor = connection.execute(query)
    rows = _FIRST_ROWS
    sizes = size_of or SizeOf()
    while found := cursor.fetchmany(rows):
        columns: list[Column] = list(zip(*found, strict=True))
        yield columns
        fitting = int(BATCH_BYTES * len(found) / max(sizes.last, 1))
        rows = max(1, min(2 * rows, BATCH_ROWS, fitting))


class SizeOf:
    """The size in bytes of the batch last worked on, as whoever worked on it found it."""

    __slots__ = ("last",)

    def __init__(self) -> None:
        self.last = 0


def key_of(connection: sqlite3.Connection, table: PlannedTable, rowid: int) -> dict[str, Any]:
    """Give a row's primary key, as it is stored."""
    names = table.key or ("rowid",)
    wanted = ", ".join("rowid" if name == "rowid" else quoted(name) for name in names)
    row = connection.execute(
        f"SELECT {wanted} FROM {quoted(table.name)} WHERE rowid = ?", (rowid,)
    ).fetchone()
    return dict(zip(names, row, strict=True))


def key_text(connection: sqlite3.Connection, table: PlannedTable, rowid: int) -> str:
    """Spell a row's primary key for people."""
    return shown(key_of(connection, table, rowid))


def _uuid_text(value: object) -> str | None:
    if isinstance(value, (bytearray, bytes)):
        value = bytes(value).decode("utf-8", "surrogateescape")
    return None if value is None else str(uuid_of(str(value)))
