"""The sending half of the copy: what the reading process encoded goes to the server as it comes.

Two processes work at once, one reads and encodes, this one sends; between them a buffer, so that
the reading goes on while the server builds a table's indexes.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sagewai_ops import errors
from sagewai_ops.errors import DifferenceError, OpsError
from sagewai_ops.progress import Progress
from sagewai_ops.transfer import worker
from sagewai_ops.transfer.aside import Aside
from sagewai_ops.transfer.compare import Result, read_result, target_query
from sagewai_ops.transfer.findings import Finding
from sagewai_ops.transfer.plan import Plan, PlannedTable, as_job

if TYPE_CHECKING:
    import asyncpg

AHEAD_BYTES = 8 * 1024 * 1024  # that the reader may be ahead of the server; asyncio doubles it


@dataclass(slots=True)
class Copied:
    """What was sent of one table."""

    table: str
    rows: int = 0
    size_bytes: int = 0
    seconds: float = 0.0
    index_seconds: float = 0.0


@dataclass(slots=True)
class Sent:
    """What was sent of all tables; with findings, something was not, and must be rolled back."""

    tables: list[Copied] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


class _RefusedError(Exception):
    """The reader met a value that cannot be carried: the COPY under way is given up."""


class Reader:
    """The reading process, from this side.

    Args:
        process: Started with `worker.command()`.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        assert process.stdout is not None
        assert process.stdin is not None
        self._results = process.stdout
        self._orders = process.stdin

    async def receive(self) -> tuple[bytes, bytes, int]:
        """Wait for the next frame: kind, content, rows.

        Raises:
            OpsError: The process says what went wrong, or is gone.
        """
        try:
            header = await self._results.readexactly(worker.HEADER.size)
            kind, length, rows = worker.HEADER.unpack(header)
            content = await self._results.readexactly(length)
        except asyncio.IncompleteReadError as error:
            status = await self._process.wait()
            raise OpsError(f"the reading process: ended with status {status}") from error
        if kind == worker.ERROR:
            told = json.loads(content)
            kinds = {each.__name__: each for each in OpsError.__subclasses__()}
            raise kinds.get(told["type"], errors.OpsError)(told["message"], hint=told["hint"])
        return kind, content, rows

    async def order(self, kind: bytes, content: bytes) -> None:
        """Send a frame, and wait while the process is behind."""
        self._orders.write(worker.HEADER.pack(kind, len(content), 0))
        self._orders.write(content)
        with suppress(ConnectionError):  # the next `receive` says why it is gone
            await self._orders.drain()


@asynccontextmanager
async def reading(copy: Path, plan: Plan, *, stream: bool = True) -> AsyncIterator[Reader]:
    """Run the reading process for the block; it begins to encode at once.

    Args:
        copy: The frozen database.
        plan: Whose tables it reads.
        stream: False for a process that only compares.
    """
    process = await asyncio.create_subprocess_exec(
        *worker.command(),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=AHEAD_BYTES,
    )
    reader = Reader(process)
    try:
        job = {"path": str(copy), "tables": as_job(plan), "stream": stream}
        await reader.order(worker.TABLE, json.dumps(job).encode())
        yield reader
    finally:
        if process.stdin is not None:
            process.stdin.close()
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def send_tables(
    connection: asyncpg.Connection[asyncpg.Record],
    reader: Reader,
    plan: Plan,
    aside: Aside,
    renewed: Collection[str],
    *,
    progress: Progress | None = None,
) -> Sent:
    """Copy every table, and build its indexes while the reader goes on to the next.

    Args:
        renewed: Tables that were truncated in this transaction: their rows can be written as old
            ones.
        progress: Told `copy <table>`, in rows.

    Raises:
        DifferenceError: The server counts other rows than were read.
    """
    sent = Sent()
    while True:
        kind, content, _ = await reader.receive()
        if kind == worker.FINDINGS:
            sent.findings = worker.read_findings(content)
            return sent
        if kind != worker.TABLE:
            continue  # what is left of a table that was given up
        table = plan.table(content.decode())
        copied = Copied(table.name)
        try:
            freeze = table.name in renewed
            await _send_table(connection, reader, table, copied, freeze=freeze, progress=progress)
        except _RefusedError:
            continue
        started = time.monotonic()
        for statement in aside.indexes.get(table.name, ()):
            await connection.execute(statement)
        copied.index_seconds = time.monotonic() - started
        sent.tables.append(copied)


async def compare_table(
    connection: asyncpg.Connection[asyncpg.Record],
    reader: Reader,
    table: PlannedTable,
    *,
    progress: Progress | None = None,
) -> Result:
    """Compare a table with its source, row by row.

    Args:
        progress: Told `compare <table>`, in bytes; their number is not known before.
    """
    result = await _compare(connection, reader, table, by_key=False, progress=progress)
    if not result.same:
        # Perhaps only the order differs; ordered by key, that cannot be.
        audit = result.audit
        result = await _compare(connection, reader, table, by_key=True, progress=progress)
        result.audit = audit
    return result


async def _send_table(
    connection: asyncpg.Connection[asyncpg.Record],
    reader: Reader,
    table: PlannedTable,
    copied: Copied,
    *,
    freeze: bool,
    progress: Progress | None,
) -> None:
    started = time.monotonic()

    async def rows() -> AsyncIterator[bytes]:
        while True:
            kind, content, count = await reader.receive()
            if kind == worker.END:
                return
            if not content:
                raise _RefusedError
            copied.rows += count
            copied.size_bytes += len(content)
            yield content
            if progress:
                progress(f"copy {table.name}", copied.rows, table.rows)

    status = await connection.copy_to_table(
        table.name,
        source=rows(),
        columns=[column.name for column in table.columns],
        format="binary",
        freeze=freeze,
    )
    copied.seconds = time.monotonic() - started
    stored = int(status.rpartition(" ")[2])
    if not stored == copied.rows == table.rows:
        raise DifferenceError(
            f"table {table.name}: {table.rows} rows to copy, {copied.rows} sent, {stored} stored"
        )


async def _compare(
    connection: asyncpg.Connection[asyncpg.Record],
    reader: Reader,
    table: PlannedTable,
    *,
    by_key: bool,
    progress: Progress | None,
) -> Result:
    waiting: list[bytes] = []
    waiting_bytes = received = 0

    async def back(content: bytes) -> None:
        nonlocal received, waiting_bytes
        # Copied: asyncpg's buffer is its own. Frames of their size spare the reader small reads.
        waiting.append(bytes(content))
        waiting_bytes += len(content)
        if waiting_bytes >= worker.FRAME_BYTES:
            received += waiting_bytes
            await flush()
            if progress:
                progress(f"compare {table.name}", received, 0)

    async def flush() -> None:
        nonlocal waiting_bytes
        await reader.order(worker.BACK, b"".join(waiting))
        waiting.clear()
        waiting_bytes = 0

    asked = {"name": table.name, "by_key": by_key}
    await reader.order(worker.TABLE, json.dumps(asked).encode())
    await connection.copy_from_query(target_query(table, by_key=by_key), output=back, format="text")
    await flush()
    await reader.order(worker.END, b"")
    _, content, _ = await reader.receive()
    return read_result(json.loads(content))
