"""Questions that only the server can answer, asked of it without leaving a trace.

Whether an index takes a long value depends on how well it compresses, and on the server's version;
what jsonb makes of a number is its own affair. Tables made here are temporary, and their
transaction goes on or is rolled back by the caller.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING

from sagewai_ops.database.sqlite.read_transaction import quoted
from sagewai_ops.export.convert.batch import SIGNATURE, TRAILER, encode
from sagewai_ops.export.mapping.findings import KEYS_KEPT, Finding
from sagewai_ops.export.mapping.plan import PlannedTable
from sagewai_ops.export.mapping.source_rows import key_text
from sagewai_ops.export.validate.constraints import Trouble, listed

if TYPE_CHECKING:
    import asyncpg

# A B-tree row has at most 2,704 bytes on a page of 8 KiB, an element in a GIN index some more;
# four columns of text share an index at most.
SUSPICIOUS_BYTES = 600
PROBE = "sagewai_ops_probe"
_ASKED_AT_ONCE = 500
_TOO_LARGE = "54000"  # program_limit_exceeded; PostgreSQL manual, appendix A


async def refused_by_indexes(
    source: sqlite3.Connection,
    table: PlannedTable,
    rows: list[int],
    server: asyncpg.Connection[asyncpg.Record],
) -> list[Trouble]:
    """Try rows on an empty copy of the target's table, one by one, and tell which are too large.

    Args:
        rows: Rowids of rows with long values in indexed columns.
    """
    import asyncpg

    refused: list[int] = []
    said = ""
    # With the defaults: a column that only the target has may be one that must not be NULL.
    like = f"LIKE {quoted(table.name)} INCLUDING DEFAULTS INCLUDING INDEXES INCLUDING STORAGE"
    await server.execute(f"CREATE TEMPORARY TABLE {PROBE} ({like}) ON COMMIT DROP")
    for row in rows:
        encoded = _encoded(source, table, row)
        if encoded is None:
            continue  # it has been refused for something else
        trial = server.transaction()
        await trial.start()
        try:
            await server.copy_to_table(
                PROBE,
                source=_once(encoded),
                columns=[column.name for column in table.columns],
                format="binary",
            )
        except asyncpg.PostgresError as error:
            if error.sqlstate != _TOO_LARGE:
                raise
            refused.append(row)
            said = said or str(error.args[0]).splitlines()[0]
        finally:
            await trial.rollback()
    await server.execute(f"DROP TABLE {PROBE}")
    if not refused:
        return []
    keys = tuple(key_text(source, table, row) for row in islice(refused, KEYS_KEPT))
    finding = Finding(table.name, "", "index-row", said, len(refused), keys)
    return [Trouble(finding, listed(refused))]


async def as_jsonb(
    server: asyncpg.Connection[asyncpg.Record], documents: Iterable[tuple[str, str]]
) -> list[tuple[str, str, str]]:
    """Ask how jsonb spells some documents; one that it refuses is left out.

    Args:
        documents: A key and a document each.

    Returns:
        Key, document and its spelling, one for each.
    """
    import asyncpg

    spelled: list[tuple[str, str, str]] = []
    remaining = iter(documents)
    while asked := list(islice(remaining, _ASKED_AT_ONCE)):
        trial = server.transaction()
        await trial.start()
        try:
            records = await server.fetch(
                "SELECT document::jsonb::text FROM unnest($1::text[]) WITH ORDINALITY"
                " AS u(document, n) ORDER BY n",
                [document for _, document in asked],
            )
        except asyncpg.PostgresError:
            await trial.rollback()
            if len(asked) > 1:
                # One of them is refused, which is the values' finding: ask for each alone.
                for one in asked:
                    spelled += await as_jsonb(server, [one])
            continue
        await trial.rollback()
        spelled += [
            (key, document, record[0])
            for (key, document), record in zip(asked, records, strict=True)
        ]
    return spelled


def _encoded(source: sqlite3.Connection, table: PlannedTable, row: int) -> bytes | None:
    wanted = ", ".join(column.expression for column in table.columns)
    query = f"SELECT {wanted} FROM {quoted(table.name)} WHERE rowid = ?"
    values = source.execute(query, (row,)).fetchone()
    tuples, refusals = encode(
        [column.target for column in table.columns], [(value,) for value in values]
    )
    return None if refusals else SIGNATURE + tuples + TRAILER


async def _once(content: bytes):  # type: ignore[no-untyped-def]
    yield content
