"""Find rows that only the server can evaluate, without changing it.

Whether an index accepts a long value depends on its compression and on the server's version. The
tables created here are temporary, and the caller continues or rolls back their transaction.
"""

from __future__ import annotations

import sqlite3
from itertools import islice
from typing import TYPE_CHECKING

from sagewai_ops.database.postgres.connection import first_line, open_savepoint
from sagewai_ops.database.sqlite.read_transaction import quoted
from sagewai_ops.export.convert.batch import SIGNATURE, TRAILER, encode_batch
from sagewai_ops.export.mapping.findings import KEYS_KEPT, Finding
from sagewai_ops.export.mapping.plan import PlannedTable
from sagewai_ops.export.mapping.source_rows import read_key_text
from sagewai_ops.export.validate.constraints import Violation, query_of

if TYPE_CHECKING:
    import asyncpg

# A B-tree row has at most 2,704 bytes on a page of 8 KiB, an element in a GIN index some more;
# four columns of text share an index at most.
SUSPICIOUS_BYTES = 600
PROBE = "sagewai_ops_probe"
_TOO_LARGE = "54000"  # program_limit_exceeded; PostgreSQL manual, appendix A


async def find_large_index_rows(
    source: sqlite3.Connection,
    table: PlannedTable,
    rows: list[int],
    server: asyncpg.Connection[asyncpg.Record],
) -> list[Violation]:
    """Insert rows into an empty copy of the target's table, one by one, to find those too large.

    Args:
        rows: Rowids of rows with long values in indexed columns.
    """
    import asyncpg

    refused: list[int] = []
    message = ""
    # With the defaults: a column that only the target has may be one that must not be NULL.
    like = f"LIKE {quoted(table.name)} INCLUDING DEFAULTS INCLUDING INDEXES INCLUDING STORAGE"
    await server.execute(f"CREATE TEMPORARY TABLE {PROBE} ({like}) ON COMMIT DROP")
    for row in rows:
        encoded = _encode_row(source, table, row)
        if encoded is None:
            continue  # a value of it is a finding
        try:
            async with open_savepoint(server, is_trial=True):
                await server.copy_to_table(
                    PROBE,
                    schema_name="pg_temp",
                    source=_once(encoded),
                    columns=[column.name for column in table.columns],
                    format="binary",
                )
        except asyncpg.PostgresError as error:
            if error.sqlstate != _TOO_LARGE:
                raise
            refused.append(row)
            message = message or first_line(error)
    await server.execute(f"DROP TABLE pg_temp.{PROBE}")
    if not refused:
        return []
    keys = tuple(read_key_text(source, table, row) for row in islice(refused, KEYS_KEPT))
    finding = Finding(table.name, "", "index-row", message, len(refused), keys, 0)
    return [Violation(finding, query_of(refused))]


def _encode_row(source: sqlite3.Connection, table: PlannedTable, row: int) -> bytes | None:
    columns = ", ".join(column.expression for column in table.columns)
    query = f"SELECT {columns} FROM {quoted(table.name)} WHERE rowid = ?"
    values = source.execute(query, (row,)).fetchone()
    tuples, refusals = encode_batch(
        [column.target for column in table.columns], [(value,) for value in values]
    )
    return None if refusals else SIGNATURE + tuples + TRAILER


async def _once(content: bytes):  # type: ignore[no-untyped-def]
    yield content
