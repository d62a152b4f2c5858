"""Compare all tables while the server sends them, in two processes.

The server's output is cut into blocks of whole rows, which queue for the comparing process; if the
queue is long, this process compares a block itself. So a table is read back as soon as its rows
are stored, and compared while the server creates its indexes and receives the next table.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from sagewai_ops.export.compare.rows import ComparisonInOrder, Result, read_result, target_query
from sagewai_ops.export.compare.source_order import SourceOrder
from sagewai_ops.export.mapping.plan import Plan, PlannedTable
from sagewai_ops.export.mapping.source_rows import open_copy
from sagewai_ops.export.pipeline import worker
from sagewai_ops.export.pipeline.sender import Worker
from sagewai_ops.progress import Progress

if TYPE_CHECKING:
    import asyncpg

BLOCK_BYTES = 256 * 1024
QUEUE_BYTES = 8 * 1024 * 1024  # of blocks for the other process; beyond, this process helps


@asynccontextmanager
async def open_comparison(
    connection: asyncpg.Connection[asyncpg.Record],
    comparer: Worker,
    plan: Plan,
    *,
    progress: Progress | None = None,
) -> AsyncIterator[Comparison]:
    """Yield a comparison of the target's tables with their source.

    Args:
        comparer: A worker that compares, which has the plan.
        progress: Called with `compare <table>`, in rows.
    """
    with open_copy(comparer.copy) as source:
        comparison = Comparison(connection, comparer, source, plan, progress)
        forwarding = asyncio.create_task(comparison.forward_blocks())
        try:
            yield comparison
        finally:
            forwarding.cancel()
            await asyncio.wait({forwarding})


class Comparison:
    """Reads tables back, distributes their blocks and collects the results.

    Args:
        connection: To the target.
        comparer: A worker that compares, which has the plan.
        source: The frozen copy, for the blocks that this process compares.
        progress: Called with `compare <table>`, in rows.
    """

    def __init__(
        self,
        connection: asyncpg.Connection[asyncpg.Record],
        comparer: Worker,
        source: sqlite3.Connection,
        plan: Plan,
        progress: Progress | None,
    ) -> None:
        self._connection = connection
        self._comparer = comparer
        self._source = source
        self._plan = plan
        self._progress = progress
        self._local = [ComparisonInOrder(source, table) for table in plan.tables]
        self._rows = [0] * len(plan.tables)  # received from the server
        self._queue: deque[tuple[int, int, bytes]] = deque()
        self._queue_bytes = 0
        self._has_blocks = asyncio.Event()

    async def read_back(self, table: PlannedTable, *, sort: bool = False) -> None:
        """Read a table's rows from the server; `finish` waits until they are compared.

        Args:
            sort: The server may have stored some rows in another order.
        """
        number = self._plan.tables.index(table)
        blocks = _Blocks()
        order = SourceOrder(self._source, table) if sort and table.key else None

        async def add(block: bytes) -> None:
            if block and order:
                block = order.sort(block)
            if block:
                await self._add_block(number, block)

        async def feed(content: bytes) -> None:
            await add(blocks.cut(content))

        await self._connection.copy_from_query(
            target_query(table, by_key=False), output=feed, format="text"
        )
        await add(blocks.flush())
        if order and (rest := order.flush()):
            await self._add_block(number, rest)

    async def finish(self) -> None:
        """Compare the blocks that are still queued, without the server."""
        while self._queue:
            self._compare_block()
            await asyncio.sleep(0)  # the other process gets the next one
        await self._comparer.send(worker.END)
        _, content, _ = await self._comparer.receive()
        remote = json.loads(content)
        for local, table in zip(self._local, self._plan.tables, strict=True):
            if table.name in remote:
                local.merge(remote[table.name])

    async def results(self) -> list[Result]:
        """Return the result of each table, in the plan's order; after `finish`."""
        results = []
        for local, rows, table in zip(self._local, self._rows, self._plan.tables, strict=True):
            if local.differs is None and rows == table.rows:
                results.append(Result(table.name, rows, rows, audit=local.audit))
            else:
                # Possibly only the order differs, which a comparison by key excludes.
                results.append(await self._compare_by_key(table))
        return results

    async def forward_blocks(self) -> None:
        """Send queued blocks to the comparing process, as fast as it reads them."""
        while True:
            await self._has_blocks.wait()
            while self._queue:
                number, first, block = self._next()
                place = worker.PLACE.pack(number, first)
                await self._comparer.send(worker.BLOCK, place, block)
            self._has_blocks.clear()

    async def _add_block(self, number: int, block: bytes) -> None:
        self._queue.append((number, self._rows[number], block))
        self._queue_bytes += len(block)
        self._rows[number] += block.count(b"\n")
        self._has_blocks.set()
        if self._progress:
            table = self._plan.tables[number]
            self._progress(f"compare {table.name}", self._rows[number], table.rows)
        await asyncio.sleep(0)
        while self._queue_bytes > QUEUE_BYTES:
            self._compare_block()
            await asyncio.sleep(0)

    def _compare_block(self) -> None:
        number, first, block = self._next()
        self._local[number].feed(first, block)

    def _next(self) -> tuple[int, int, bytes]:
        number, first, block = self._queue.popleft()
        self._queue_bytes -= len(block)
        return number, first, block

    async def _compare_by_key(self, table: PlannedTable) -> Result:
        received = 0

        async def forward(content: bytes) -> None:
            nonlocal received
            received += content.count(b"\n")
            await self._comparer.send(worker.ORDERED, content)
            if self._progress:
                self._progress(f"compare {table.name} by key", received, table.rows)

        await self._comparer.send(worker.TABLE, table.name.encode())
        await self._connection.copy_from_query(
            target_query(table, by_key=True), output=forward, format="text"
        )
        await self._comparer.send(worker.END)
        _, content, _ = await self._comparer.receive()
        return read_result(json.loads(content))


class _Blocks:
    """Splits the server's output, which arrives in arbitrary pieces, into blocks of whole lines."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._bytes = 0
        self._has_line = False

    def cut(self, content: bytes) -> bytes:
        """Add a piece, and return a block if one is complete, else nothing."""
        self._pieces.append(content)
        self._bytes += len(content)
        self._has_line = self._has_line or b"\n" in content
        return self.flush() if self._bytes >= BLOCK_BYTES and self._has_line else b""

    def flush(self) -> bytes:
        """Return all whole lines."""
        joined, self._has_line = b"".join(self._pieces), False
        end = joined.rfind(b"\n") + 1
        self._pieces, self._bytes = [joined[end:]], len(joined) - end
        return joined[:end]
