"""Send the rows that a worker process encodes to the server.

The worker reads and encodes while this process sends; a buffer between them lets the worker
continue while the server creates a table's indexes. A third process compares: see `comparer`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagewai_ops.errors import DifferenceError, OpsError, RemoteError
from sagewai_ops.export.convert.batch import SIGNATURE
from sagewai_ops.export.mapping.findings import Finding
from sagewai_ops.export.mapping.plan import Plan, PlannedTable, as_job
from sagewai_ops.export.pipeline import worker
from sagewai_ops.export.pipeline.deferred_indexes import DeferredIndexes
from sagewai_ops.process.frames import ERROR, HEADER, decode_error, enlarge_pipe
from sagewai_ops.process.interpreter import find_interpreter
from sagewai_ops.process.parent import end_if_stopped
from sagewai_ops.progress import Progress
from sagewai_ops.records import dataclass

if TYPE_CHECKING:
    import asyncpg

LAST_MESSAGE_SECONDS = 0.5  # for the server's error message after it closed the connection
AHEAD_BYTES = 4 * 1024 * 1024  # that a worker may be ahead of the server; asyncio doubles it


@dataclass(slots=True)
class TableCopy:
    """The rows and bytes sent of one table, and the time they took."""

    table: str
    rows: int = 0
    size_bytes: int = 0
    seconds: float = 0.0
    index_seconds: float = 0.0


@dataclass(slots=True)
class SendResult:
    """The tables that were sent; with findings, rows are missing, and the caller rolls back."""

    tables: list[TableCopy] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


class _RefusedError(Exception):
    """The worker met a value that cannot be encoded: the current COPY is abandoned."""


class Worker:
    """A worker process, which waits for `begin`.

    Args:
        process: It runs `worker.main`.
        copy: The frozen database that it reads.
    """

    def __init__(self, process: asyncio.subprocess.Process, copy: Path) -> None:
        self.copy = copy
        self._process = process
        assert process.stdout is not None
        assert process.stdin is not None
        self._results = process.stdout
        self._requests = process.stdin

    async def begin(self, plan: Plan, *, stream: bool) -> None:
        """Start encoding the tables of a plan, or comparing them.

        Args:
            stream: False for a worker that compares.
        """
        job = {"path": str(self.copy), "tables": as_job(plan), "stream": stream}
        await self.send(worker.JOB, json.dumps(job).encode())

    async def receive(self) -> tuple[bytes, bytes, int]:
        """Wait for the next frame: kind, content, rows.

        Raises:
            OpsError: The worker failed, or has ended.
        """
        try:
            header = await self._results.readexactly(HEADER.size)
            kind, length, rows = HEADER.unpack(header)
            content = await self._results.readexactly(length)
        except asyncio.IncompleteReadError as error:
            status = await self._process.wait()
            raise OpsError(f"worker process: ended with status {status}") from error
        if kind == ERROR:
            raise decode_error(content)
        return kind, content, rows

    async def send(self, kind: bytes, *contents: bytes) -> None:
        """Send a frame, and wait while the worker is behind."""
        if self._requests.is_closing():
            return  # the next `receive` raises the reason; asyncio would complain on stderr
        self._requests.write(HEADER.pack(kind, sum(map(len, contents)), 0))
        self._requests.writelines(contents)
        with suppress(ConnectionError):
            await self._requests.drain()


@asynccontextmanager
async def start_workers(copy: Path, count: int) -> AsyncIterator[tuple[Worker, ...]]:
    """Run worker processes for the block; they start while this process connects.

    Args:
        copy: The frozen database; need not exist before a worker begins.
        count: One that encodes, one that compares, or both.
    """
    async with AsyncExitStack() as stack:
        yield tuple([await stack.enter_async_context(_start_worker(copy)) for _ in range(count)])


@asynccontextmanager
async def _start_worker(copy: Path) -> AsyncIterator[Worker]:
    interpreter = find_interpreter()
    process = await asyncio.create_subprocess_exec(
        *interpreter.module_command(worker.__name__),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=AHEAD_BYTES,
        env=interpreter.variables,
        pass_fds=interpreter.descriptors,
    )
    _enlarge_pipes(process)
    end_if_stopped(process.pid)
    try:
        yield Worker(process, copy)
    finally:
        # Before its stdin is closed, at which it exits: asyncio complains on stderr if the kill
        # itself finds that the process has ended.
        with suppress(ProcessLookupError):
            process.kill()
        # Both pipes: of one that is not read, since the worker is far ahead, asyncio never sees the
        # end, and waits for it.
        for pipe in _pipes(process):
            pipe.close()
        await process.wait()


def _enlarge_pipes(process: asyncio.subprocess.Process) -> None:
    """Enlarge the pipes from 64 KiB, for fewer iterations of the event loop."""
    for transport in _pipes(process):
        enlarge_pipe(transport.get_extra_info("pipe").fileno())


def _pipes(process: asyncio.subprocess.Process) -> list[asyncio.BaseTransport]:
    """Return the transports of stdin and stdout."""
    transport = process._transport  # type: ignore[attr-defined] # noqa: SLF001
    return [transport.get_pipe_transport(number) for number in (0, 1)]


async def send_tables(
    connection: asyncpg.Connection[asyncpg.Record],
    reader: Worker,
    plan: Plan,
    deferred: DeferredIndexes,
    truncated: Collection[str],
    *,
    after_rows: Callable[[PlannedTable], Awaitable[None]] | None = None,
    progress: Progress | None = None,
) -> SendResult:
    """Copy every table, and create its indexes while the worker continues with the next.

    Args:
        deferred: Indexes to create after each table.
        truncated: Tables that were truncated in this transaction, so that COPY can freeze them.
        after_rows: Called with each table after its rows are stored and before its indexes.
        progress: Called with `copy <table>`, in rows.

    Raises:
        DifferenceError: The server stored another number of rows than were read.
    """
    sent = SendResult()
    abandoned = False
    while True:
        kind, content, _ = await reader.receive()
        if kind == worker.FINDINGS:
            sent.findings = worker.read_findings(content)
            return sent
        if kind != worker.TABLE or abandoned:
            continue  # the remaining frames of the abandoned table and of all others
        table = plan.table(content.decode())
        copy = TableCopy(table.name)
        try:
            freeze = table.name in truncated
            await _send_table(connection, reader, table, copy, freeze=freeze, progress=progress)
        except _RefusedError:
            abandoned = True
            continue
        if after_rows is not None:
            await after_rows(table)
        started = time.monotonic()
        for statement in deferred.indexes.get(table.name, ()):
            await connection.execute(statement)
        copy.index_seconds = time.monotonic() - started
        sent.tables.append(copy)


async def _send_table(
    connection: asyncpg.Connection[asyncpg.Record],
    reader: Worker,
    table: PlannedTable,
    copy: TableCopy,
    *,
    freeze: bool,
    progress: Progress | None,
) -> None:
    started = time.monotonic()

    failures: list[Exception] = []

    async def rows() -> AsyncIterator[bytes]:
        # Returns instead of raising: after an exception asyncpg asks the server to cancel the COPY,
        # which may have failed already, and then the next statement never ends.
        try:
            while True:
                kind, content, count = await reader.receive()
                if kind == worker.END:
                    return
                if not content:
                    failures.append(_RefusedError())
                    break
                copy.rows += count
                copy.size_bytes += len(content)
                yield content
                if progress:
                    progress(f"copy {table.name}", copy.rows, table.rows)
        except OpsError as error:
            failures.append(error)
        if not copy.size_bytes:
            yield SIGNATURE  # without it the server reports an error of its own

    status = await wait_for_copy(
        connection,
        connection.copy_to_table(
            table.name,
            source=rows(),
            columns=[column.name for column in table.columns],
            format="binary",
            freeze=freeze,
        ),
    )
    if failures:
        raise failures[0]
    copy.seconds = time.monotonic() - started
    stored = int(status.rpartition(" ")[2])
    if not stored == copy.rows == table.rows:
        raise DifferenceError(
            f"table {table.name}: {table.rows} rows to copy, {copy.rows} sent, {stored} stored"
        )


async def wait_for_copy(
    connection: asyncpg.Connection[asyncpg.Record], copying: Coroutine[Any, Any, str]
) -> str:
    """Wait for a COPY until it ends or its connection is lost.

    asyncpg never returns if the server closes the connection while its write buffer is full.

    Raises:
        RemoteError: The connection was lost.
    """
    lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_termination(_connection: object) -> None:
        if not lost.done():
            lost.set_result(None)

    connection.add_termination_listener(on_termination)
    task = asyncio.ensure_future(copying)
    try:
        either: set[asyncio.Future[Any]] = {task, lost}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            # Usually the task ends by itself, with the server's own message.
            await asyncio.wait({task}, timeout=LAST_MESSAGE_SECONDS)
        if not task.done():
            raise RemoteError("connection closed by the server during a COPY")
        return task.result()
    finally:
        connection.remove_termination_listener(on_termination)
        if not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=LAST_MESSAGE_SECONDS)
