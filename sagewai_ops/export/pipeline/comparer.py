"""The comparison of all tables while the server spells them: two processes share it.

What comes is cut into blocks of whole rows, and these wait for the comparing process; when too many
do, this process compares one itself. So a table can be read back as soon as its rows are stored:
it is compared while the server builds its indexes and takes the next one.
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
from sagewai_ops.export.mapping.plan import Plan, PlannedTable
from sagewai_ops.export.mapping.source_rows import opened_copy
from sagewai_ops.export.pipeline import worker
from sagewai_ops.export.pipeline.sender import Reader
from sagewai_ops.progress import Progress

if TYPE_CHECKING:
    import asyncpg

BLOCK_BYTES = 256 * 1024
WAITING_BYTES = 8 * 1024 * 1024  # with more blocks than these before it, a process needs help


@asynccontextmanager
async def comparing(
    connection: asyncpg.Connection[asyncpg.Record],
    comparer: Reader,
    plan: Plan,
    *,
    progress: Progress | None = None,
) -> AsyncIterator[Comparison]:
    """Compare tables with their source inside the block, row by row.

    Args:
        comparer: A process that compares, which has the plan.
        progress: Told `compare <table>`, in rows.
    """
    with opened_copy(comparer.copy) as source:
        comparison = Comparison(connection, comparer, source, plan, progress)
        passing = asyncio.create_task(comparison.pass_on())
        try:
            yield comparison
        finally:
            passing.cancel()
            await asyncio.wait({passing})


class Comparison:
    """Reads tables back, shares their blocks out and gathers what was found; see `comparing`."""

    def __init__(
        self,
        connection: asyncpg.Connection[asyncpg.Record],
        comparer: Reader,
        source: sqlite3.Connection,
        plan: Plan,
        progress: Progress | None,
    ) -> None:
        self._connection = connection
        self._comparer = comparer
        self._plan = plan
        self._progress = progress
        self._here = [ComparisonInOrder(source, table) for table in plan.tables]
        self._rows = [0] * len(plan.tables)  # that came back
        self._waiting: deque[tuple[int, int, bytes]] = deque()
        self._waiting_bytes = 0
        self._some_wait = asyncio.Event()

    async def read_back(self, table: PlannedTable) -> None:
        """Take a table's rows from the server; they are compared from now on, and by `settle`."""
        number = self._plan.tables.index(table)
        blocks = _Blocks()

        async def feed(content: bytes) -> None:
            if block := blocks.cut(content):
                await self._share(number, block)

        await self._connection.copy_from_query(
            target_query(table, by_key=False), output=feed, format="text"
        )
        if block := blocks.rest():
            await self._share(number, block)

    async def settle(self) -> None:
        """Compare what still waits; the server is not needed for it."""
        while self._waiting:
            self._compare_here()
            await asyncio.sleep(0)  # the other process gets the next
        await self._comparer.order(worker.END)
        _, content, _ = await self._comparer.receive()
        there = json.loads(content)
        for here, table in zip(self._here, self._plan.tables, strict=True):
            if table.name in there:
                here.merge(there[table.name])

    async def results(self) -> list[Result]:
        """Give the result of each table, in the plan's order, once all is settled."""
        results = []
        for here, rows, table in zip(self._here, self._rows, self._plan.tables, strict=True):
            if here.differs is None and rows == table.rows:
                results.append(Result(table.name, rows, rows, audit=here.audit))
            else:
                # Perhaps only the order differs; ordered by key, that cannot be.
                results.append(await self._by_key(table))
        return results

    async def pass_on(self) -> None:
        """Give the comparing process block after block, as fast as it takes them."""
        while True:
            await self._some_wait.wait()
            while self._waiting:
                number, first, block = self._next()
                place = worker.PLACE.pack(number, first)
                await self._comparer.order(worker.BLOCK, place, block)
            self._some_wait.clear()

    async def _share(self, number: int, block: bytes) -> None:
        self._waiting.append((number, self._rows[number], block))
        self._waiting_bytes += len(block)
        self._rows[number] += block.count(b"\n")
        self._some_wait.set()
        if self._progress:
            table = self._plan.tables[number]
            self._progress(f"compare {table.name}", self._rows[number], table.rows)
        await asyncio.sleep(0)
        while self._waiting_bytes > WAITING_BYTES:
            self._compare_here()
            await asyncio.sleep(0)

    def _compare_here(self) -> None:
        number, first, block = self._next()
        self._here[number].feed(first, block)

    def _next(self) -> tuple[int, int, bytes]:
        number, first, block = self._waiting.popleft()
        self._waiting_bytes -= len(block)
        return number, first, block

    async def _by_key(self, table: PlannedTable) -> Result:
        received = 0

        async def back(content: bytes) -> None:
            nonlocal received
            received += content.count(b"\n")
            await self._comparer.order(worker.BACK, content)
            if self._progress:
                self._progress(f"compare {table.name} by key", received, table.rows)

        await self._comparer.order(worker.TABLE, table.name.encode())
        await self._connection.copy_from_query(
            target_query(table, by_key=True), output=back, format="text"
        )
        await self._comparer.order(worker.END)
        _, content, _ = await self._comparer.receive()
        return read_result(json.loads(content))


class _Blocks:
    """Cuts the server's answer, which comes in pieces cut anywhere, into blocks of whole lines."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._bytes = 0
        self._has_line = False

    def cut(self, content: bytes) -> bytes:
        """Take a piece, and give a block; empty as long as there is none."""
        self._pieces.append(content)
        self._bytes += len(content)
        self._has_line = self._has_line or b"\n" in content
        return self.rest() if self._bytes >= BLOCK_BYTES and self._has_line else b""

    def rest(self) -> bytes:
        """Give all whole lines."""
        joined, self._has_line = b"".join(self._pieces), False
        end = joined.rfind(b"\n") + 1
        self._pieces, self._bytes = [joined[end:]], len(joined) - end
        return joined[:end]
