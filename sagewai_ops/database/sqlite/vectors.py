"""Read the vectors of a home's database: vec0 tables of any name and dimension.

A vec0 table is a virtual table over plain ones (its shadow tables). Where Python or the system
lacks sqlite-vec, the shadow tables are decoded here, to the rows that the extension returns: chunks
of slots, a bitmap of the live ones, one blob of vectors and one of each metadata column per chunk.
One chunk at a time is in memory (1,024 vectors in Sagewai's tables). Nothing is written.

Source: the tables that sqlite-vec 0.1.6 to 0.1.9 writes, compared with its own results in tests.
"""

import json
import sqlite3
import struct
from collections.abc import Iterator

from sagewai_ops.database.sqlite.read_transaction import quoted, text_of
from sagewai_ops.database.sqlite.vec0 import Column, VectorTable, vector_tables
from sagewai_ops.errors import DamagedError, SchemaAheadError
from sagewai_ops.records import dataclass

__all__ = [
    "FLOAT_BYTES",
    "Column",
    "VectorRow",
    "VectorTable",
    "count_vectors",
    "load_extension",
    "read_vectors",
    "vector_tables",
]

FLOAT_BYTES = 4
_SLOT = struct.Struct("<I12s")  # a text's length in bytes, and the text itself up to 12 of them
_INLINE_BYTES = 12
_WORD = struct.Struct("<q")
_DOUBLE = struct.Struct("<d")


@dataclass(frozen=True, slots=True)
class VectorRow:
    """A live row.

    Attributes:
        key: Text or integer, as declared.
        vector: Little-endian 32-bit floats, 4 * dimensions bytes.
        values: In the order of `VectorTable.columns`. Bytes of a text that are not UTF-8 are
            surrogates (`surrogateescape`).
    """

    key: str | int
    vector: bytes
    values: tuple[str | int | float | bytes | None, ...]


def load_extension(connection: sqlite3.Connection) -> bool:
    """Load sqlite-vec into a connection; return False where this Python cannot."""
    if not hasattr(connection, "enable_load_extension"):
        return False
    try:
        import sqlite_vec
    except ImportError:
        return False
    try:
        connection.enable_load_extension(True)
        sqlite_vec.load(connection)
        connection.enable_load_extension(False)
    except sqlite3.Error:
        return False
    return True


def count_vectors(connection: sqlite3.Connection, table: VectorTable) -> int:
    """Count the live rows, without the extension."""
    (count,) = connection.execute(f"SELECT count(*) FROM {_shadow(table, 'rowids')}").fetchone()
    return int(count)


def read_vectors(
    connection: sqlite3.Connection, table: VectorTable, *, extension: bool = False
) -> Iterator[VectorRow]:
    """Yield the live rows of a table, in an arbitrary order.

    Args:
        connection: To the database; its text factory does not matter.
        table: From `vector_tables`, without an obstacle.
        extension: Query sqlite-vec, which `load_extension` loaded into the connection.

    Raises:
        DamagedError: The shadow tables are inconsistent.
        SchemaAheadError: Another version of sqlite-vec wrote them, or the table has an obstacle.
    """
    if table.obstacle:
        raise SchemaAheadError(f"vectors {table.name}: {table.obstacle}")
    yield from (_query(connection, table) if extension else _decode(connection, table))


def _query(connection: sqlite3.Connection, table: VectorTable) -> Iterator[VectorRow]:
    # As blobs, texts are complete whatever their bytes.
    wanted = [f"CAST({table.key} AS BLOB)" if table.key_is_text else table.key, table.vector]
    wanted += [
        f"CAST({column.name} AS BLOB)" if column.kind == "text" else column.name
        for column in table.columns
    ]
    query = f"SELECT {', '.join(wanted)} FROM {quoted(table.name)}"
    texts = [column.kind == "text" for column in table.columns]
    for key, vector, *values in connection.execute(query):
        yield VectorRow(
            _decode_text(key) if table.key_is_text else key,
            vector,
            tuple(
                _decode_text(value) if is_text and value is not None else value
                for value, is_text in zip(values, texts, strict=True)
            ),
        )


def _decode(connection: sqlite3.Connection, table: VectorTable) -> Iterator[VectorRow]:
    _check_generation(connection, table)
    query = _row_query(table)
    live = 0
    partitions = [f"partition{number:02}" for number, _ in _numbered(table, "partition")]
    chunks = connection.execute(
        f"SELECT chunk_id, size, validity, rowids{''.join(', ' + name for name in partitions)}"
        f" FROM {_shadow(table, 'chunks')} ORDER BY chunk_id"
    )
    for chunk, size, validity, rowids, *keys in chunks:
        if len(validity) * 8 != size or len(rowids) != size * _WORD.size:
            raise _damaged(table, chunk, "its bitmap and its size differ")
        slots = [slot for slot in range(size) if validity[slot >> 3] >> (slot & 7) & 1]
        numbers = [_WORD.unpack_from(rowids, slot * _WORD.size)[0] for slot in slots]
        live += len(slots)
        if slots:
            yield from _decode_chunk(connection, table, query, chunk, size, slots, numbers, keys)
    counted = count_vectors(connection, table)
    if live != counted:
        raise DamagedError(f"vectors {table.name}: {counted} rows, but {live} live slots")


def _decode_chunk(
    connection: sqlite3.Connection,
    table: VectorTable,
    query: str,
    chunk: int,
    size: int,
    slots: list[int],
    numbers: list[int],
    keys: list[object],
) -> Iterator[VectorRow]:
    vectors = _blob(connection, table, "vector_chunks00", "vectors", chunk)
    width = table.dimensions * FLOAT_BYTES
    if len(vectors) != size * width:
        raise _damaged(table, chunk, f"{len(vectors)} bytes for {size} vectors of {width}")
    metadata = [
        _blob(connection, table, f"metadatachunks{number:02}", "data", chunk)
        for number, _ in _numbered(table, "metadata")
    ]
    found = connection.execute(query, (json.dumps(numbers), chunk)).fetchall()
    if [row[0] for row in found] != slots:
        raise _damaged(table, chunk, "its slots and the table of rows differ")
    for slot, number, (_, key, *stored) in zip(slots, numbers, found, strict=True):
        values = _values(table, chunk, slot, metadata, stored, keys)
        row_key = key if table.key_is_text else number
        vector = vectors[slot * width : (slot + 1) * width]
        yield VectorRow(
            _decode_text(row_key) if isinstance(row_key, (bytes, bytearray)) else row_key,
            vector,
            values,
        )


def _values(
    table: VectorTable,
    chunk: int,
    slot: int,
    metadata: list[bytes],
    stored: list[object],
    keys: list[object],
) -> tuple[str | int | float | bytes | None, ...]:
    """Collect one row's values from the chunk's blobs, the side tables and the chunk itself."""
    blobs, side, partitions = iter(metadata), iter(stored), iter(keys)
    values: list[object] = []
    for column in table.columns:
        if column.role == "partition":
            values.append(next(partitions))
        elif column.role == "auxiliary":
            values.append(next(side))
        elif column.kind == "text":
            length, prefix = _SLOT.unpack_from(next(blobs), slot * _SLOT.size)
            long = next(side)
            if length > _INLINE_BYTES and (not isinstance(long, bytes) or len(long) != length):
                raise _damaged(table, chunk, f"a text of {length} bytes is missing")
            values.append(long if length > _INLINE_BYTES else prefix[:length])
        elif column.kind == "integer":
            values.append(_WORD.unpack_from(next(blobs), slot * _WORD.size)[0])
        elif column.kind == "float":
            values.append(_DOUBLE.unpack_from(next(blobs), slot * _DOUBLE.size)[0])
        else:
            values.append(next(blobs)[slot >> 3] >> (slot & 7) & 1)
    return tuple(
        _decode_text(value)
        if isinstance(value, (bytes, bytearray)) and column.kind == "text"
        else value  # type: ignore[misc]
        for column, value in zip(table.columns, values, strict=True)
    )


def _row_query(table: VectorTable) -> str:
    """Return the query for a chunk's rows: slot, key, then long texts and auxiliary values.

    The side tables' `rowid` is a column without a type, whose index SQLite uses only for values
    without a type: so they are joined to `j.value`, not to `r.rowid`.
    """
    key = "CAST(r.id AS BLOB)" if table.key_is_text else "r.rowid"
    columns, joins = [], []
    names = iter(_numbered(table, "metadata"))
    auxiliary = iter(_numbered(table, "auxiliary"))
    for column in table.columns:
        if column.role == "auxiliary":
            number, _ = next(auxiliary)
            value = f"a.value{number:02}"
            columns.append(f"CAST({value} AS BLOB)" if column.kind == "text" else value)
        elif column.role == "metadata":
            number, _ = next(names)
            if column.kind == "text":
                columns.append(f"CAST(t{number:02}.data AS BLOB)")
                shadow = _shadow(table, f"metadatatext{number:02}")
                joins.append(f"LEFT JOIN {shadow} t{number:02} ON t{number:02}.rowid = j.value")
    if any(column.role == "auxiliary" for column in table.columns):
        joins.append(f"LEFT JOIN {_shadow(table, 'auxiliary')} a ON a.rowid = j.value")
    return (
        f"SELECT r.chunk_offset, {', '.join([key, *columns])}"
        f" FROM json_each(?) j JOIN {_shadow(table, 'rowids')} r ON r.rowid = j.value"
        f" {' '.join(joins)} WHERE r.chunk_id = ? ORDER BY j.key"
    )


def _numbered(table: VectorTable, role: str) -> list[tuple[int, Column]]:
    """Return the columns of a role, each with its number in the names of shadow tables."""
    return list(enumerate(column for column in table.columns if column.role == role))


def _blob(
    connection: sqlite3.Connection, table: VectorTable, shadow: str, column: str, chunk: int
) -> bytes:
    row = connection.execute(
        f"SELECT {column} FROM {_shadow(table, shadow)} WHERE rowid = ?",
        (chunk,),
    ).fetchone()
    if row is None or not isinstance(row[0], bytes):
        raise _damaged(table, chunk, f"no row in {table.name}_{shadow}")
    return row[0]


def _check_generation(connection: sqlite3.Connection, table: VectorTable) -> None:
    rows = connection.execute(f"SELECT key, value FROM {_shadow(table, 'info')}")
    info = {text_of(key): value for key, value in rows}
    generation = (info.get("CREATE_VERSION_MAJOR"), info.get("CREATE_VERSION_MINOR"))
    if generation != (0, 1):
        version = text_of(info.get("CREATE_VERSION"))
        raise SchemaAheadError(
            f"vectors {table.name}: written by sqlite-vec {version}, not readable without it",
            hint="pip install sqlite-vec  # and a Python that loads extensions",
        )


def _shadow(table: VectorTable, suffix: str) -> str:
    return quoted(f"{table.name}_{suffix}")


def _damaged(table: VectorTable, chunk: int, what: str) -> DamagedError:
    return DamagedError(f"vectors {table.name}: chunk {chunk}, {what}")


def _decode_text(value: bytes | bytearray) -> str:
    return value.decode("utf-8", "surrogateescape")
