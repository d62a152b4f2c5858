"""The comparison of a table while the server spells it: this process and the reading one share it.

What comes is cut into blocks of whole rows. The reading process gets a block when it has nothing
to do, else it is compared here; so both processors work, whichever is the quicker.
"""

from __future__ import annotations

import json
import sqlite3
from typing import TYPE_CHECKING

from sagewai_ops.database.source import quoted
from sagewai_ops.progress import Progress
from sagewai_ops.transfer import worker
from sagewai_ops.transfer.audit import trail_of
from sagewai_ops.transfer.compare import Result, read_result, same_block, target_query
from sagewai_ops.transfer.copy import Reader
from sagewai_ops.transfer.plan import PlannedTable

if TYPE_CHECKING:
    import asyncpg

BLOCK_BYTES = 256 * 1024
WAITING_BYTES = 2 * BLOCK_BYTES  # with so much before it, the reading process gets no more


async def compare_table(
    connection: asyncpg.Connection[asyncpg.Record],
    reader: Reader,
    source: sqlite3.Connection,
    table: PlannedTable,
    *,
    progress: Progress | None = None,
) -> Result:
    """Compare a table with its source, row by row.

    Args:
        source: The frozen copy, from `opened_copy`.
        progress: Told `compare <table>`, in rows.
    """
    blocks = _Blocks(reader, source, table, progress)
    await reader.order(worker.TABLE, json.dumps({"name": table.name, "by_key": False}).encode())
    await connection.copy_from_query(
        target_query(table, by_key=False), output=blocks.feed, format="text"
    )
    result = await blocks.finish()
    if result is None:
        # Perhaps only the order differs; ordered by key, that cannot be.
        result = await _compare_by_key(connection, reader, table, progress)
    return result


class _Blocks:
    """Cuts what comes into blocks, and has them compared here or there."""

    def __init__(
        self,
        reader: Reader,
        source: sqlite3.Connection,
        table: PlannedTable,
        progress: Progress | None,
    ) -> None:
        self._reader = reader
        self._source = source
        self._table = table
        self._progress = progress
        self._rowids = source.execute(
            f"SELECT rowid FROM {table.source()} ORDER BY {quoted(table.name)}.rowid"
        )
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._has_row = False
        self._rows = 0
        self._differs = False
        self._trail = trail_of(source, table)

    async def feed(self, content: bytes) -> None:
        """Take the next piece of the server's answer, cut anywhere."""
        self._waiting.append(content)
        self._waiting_bytes += len(content)
        self._has_row = self._has_row or b"\n" in content
        if self._waiting_bytes >= BLOCK_BYTES and self._has_row:
            await self._cut()

    async def finish(self) -> Result | None:
        """Compare what is left.

        Returns:
            None when there is a difference, be it in the order alone.
        """
        await self._cut()
        await self._reader.order(worker.END)
        _, content, _ = await self._reader.receive()
        there = json.loads(content)
        if self._trail and there["audit"]:
            self._trail.merge(there["audit"])
        if self._differs or there["differs"] is not None or self._rowids.fetchone() is not None:
            return None
        audit = self._trail.as_dict() if self._trail else None
        return Result(self._table.name, self._rows, self._rows, audit=audit)

    async def _cut(self) -> None:
        joined, self._has_row = b"".join(self._waiting), False
        end = joined.rfind(b"\n") + 1
        self._waiting, self._waiting_bytes = [joined[end:]], len(joined) - end
        block = joined[:end]
        count = block.count(b"\n")
        if not count or self._differs:
            return
        rowids = self._rowids.fetchmany(count)
        if len(rowids) < count:
            self._differs = True
            return
        first: int = rowids[0][0]
        if self._reader.waiting_bytes < WAITING_BYTES:
            await self._reader.order(worker.BLOCK, worker.ROWID.pack(first), block)
        else:
            differs = same_block(self._source, self._table, first, block, self._trail)
            self._differs = differs is not None
        self._rows += count
        if self._progress:
            self._progress(f"compare {self._table.name}", self._rows, self._table.rows)


async def _compare_by_key(
    connection: asyncpg.Connection[asyncpg.Record],
    reader: Reader,
    table: PlannedTable,
    progress: Progress | None,
) -> Result:
    received = 0

    async def back(content: bytes) -> None:
        nonlocal received
        received += content.count(b"\n")
        await reader.order(worker.BACK, content)
        if progress:
            progress(f"compare {table.name} by key", received, table.rows)

    await reader.order(worker.TABLE, json.dumps({"name": table.name, "by_key": True}).encode())
    await connection.copy_from_query(target_query(table, by_key=True), output=back, format="text")
    await reader.order(worker.END)
    _, content, _ = await reader.receive()
    return read_result(json.loads(content))
