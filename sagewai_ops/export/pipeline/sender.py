"""The sending half of the copy: what the reading process encoded goes to the server as it comes.

Two processes work at once, one reads and encodes, this one sends; between them a buffer, so that
the reading goes on while the server builds a table's indexes. A third compares: `comparing`.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagewai_ops import errors
from sagewai_ops.errors import DifferenceError, OpsError, RemoteError
from sagewai_ops.export.convert.batch import SIGNATURE
from sagewai_ops.export.mapping.findings import Finding
from sagewai_ops.export.mapping.plan import Plan, PlannedTable, as_job
from sagewai_ops.export.pipeline import worker
from sagewai_ops.export.pipeline.deferred_indexes import Aside
from sagewai_ops.process.procfs import bare_environment
from sagewai_ops.progress import Progress

if TYPE_CHECKING:
    import asyncpg

LAST_WORDS_SECONDS = 0.5
PIPE_BYTES = 1024 * 1024  # the most that Linux lets anybody ask for, unless told otherwise
AHEAD_BYTES = 4 * 1024 * 1024  # that the reader may be ahead of the server; asyncio doubles it


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
    """A process that reads, from this side; it waits for `begin`.

    Args:
        process: Started with `worker.command()`.
        copy: The frozen database that it reads.
    """

    def __init__(self, process: asyncio.subprocess.Process, copy: Path) -> None:
        self.copy = copy
        self._process = process
        assert process.stdout is not None
        assert process.stdin is not None
        self._results = process.stdout
        self._orders = process.stdin

    async def begin(self, plan: Plan, *, stream: bool) -> None:
        """Have it encode the tables of a plan at once, or compare what it gets of them.

        Args:
            stream: False for a process that compares.
        """
        job = {"path": str(self.copy), "tables": as_job(plan), "stream": stream}
        await self.order(worker.JOB, json.dumps(job).encode())

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

    async def order(self, kind: bytes, *contents: bytes) -> None:
        """Send a frame, and wait while the process is behind."""
        if self._orders.is_closing():
            return  # the next `receive` says why it is gone; asyncio would complain on stderr
        self._orders.write(worker.HEADER.pack(kind, sum(map(len, contents)), 0))
        self._orders.writelines(contents)
        with suppress(ConnectionError):
            await self._orders.drain()


@asynccontextmanager
async def reading(copy: Path, count: int) -> AsyncIterator[tuple[Reader, ...]]:
    """Run reading processes for the block; they start while this one still connects.

    Args:
        copy: The frozen database; it need not be there before a process gets its job.
        count: One that encodes, one that compares, or both.
    """
    async with AsyncExitStack() as stack:
        yield tuple([await stack.enter_async_context(_reading(copy)) for _ in range(count)])


@asynccontextmanager
async def _reading(copy: Path) -> AsyncIterator[Reader]:
    process = await asyncio.create_subprocess_exec(
        *worker.command(),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=AHEAD_BYTES,
        env=bare_environment(),
    )
    _widen(process)
    try:
        yield Reader(process, copy)
    finally:
        # First, for at the end of its orders it ends, and asyncio complains on stderr of a process
        # whose end the killing itself has noticed.
        with suppress(ProcessLookupError):
            process.kill()
        if process.stdin is not None:
            process.stdin.close()
        await process.wait()


def _widen(process: asyncio.subprocess.Process) -> None:
    """Let more fit into the pipes than the usual 64 KiB: fewer turns of the event loop."""
    transport = process._transport  # type: ignore[attr-defined] # noqa: SLF001
    for number in (0, 1):
        pipe = transport.get_pipe_transport(number).get_extra_info("pipe")
        with suppress(AttributeError, OSError):  # Linux alone, within the system's limit
            fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)


async def send_tables(
    connection: asyncpg.Connection[asyncpg.Record],
    reader: Reader,
    plan: Plan,
    aside: Aside,
    renewed: Collection[str],
    *,
    stored: Callable[[PlannedTable], Awaitable[None]] | None = None,
    progress: Progress | None = None,
) -> Sent:
    """Copy every table, and build its indexes while the reader goes on to the next.

    Args:
        stored: Called with each table when its rows are there, and its indexes not yet.
        renewed: Tables that were truncated in this transaction: their rows can be written as old
            ones.
        progress: Told `copy <table>`, in rows.

    Raises:
        DifferenceError: The server counts other rows than were read.
    """
    sent = Sent()
    given_up = False
    while True:
        kind, content, _ = await reader.receive()
        if kind == worker.FINDINGS:
            sent.findings = worker.read_findings(content)
            return sent
        if kind != worker.TABLE or given_up:
            continue  # what is left of a table that was given up, and of all others
        table = plan.table(content.decode())
        copied = Copied(table.name)
        try:
            freeze = table.name in renewed
            await _send_table(connection, reader, table, copied, freeze=freeze, progress=progress)
        except _RefusedError:
            given_up = True
            continue
        if stored is not None:
            await stored(table)
        started = time.monotonic()
        for statement in aside.indexes.get(table.name, ()):
            await connection.execute(statement)
        copied.index_seconds = time.monotonic() - started
        sent.tables.append(copied)


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

    failures: list[Exception] = []

    async def rows() -> AsyncIterator[bytes]:
        # It ends where another would raise: after an exception asyncpg asks the server to cancel
        # what may have failed already, and then its next statement waits for ever.
        try:
            while True:
                kind, content, count = await reader.receive()
                if kind == worker.END:
                    return
                if not content:
                    failures.append(_RefusedError())
                    break
                copied.rows += count
                copied.size_bytes += len(content)
                yield content
                if progress:
                    progress(f"copy {table.name}", copied.rows, table.rows)
        except OpsError as error:
            failures.append(error)
        if not copied.size_bytes:
            yield SIGNATURE  # without it the server has words of its own

    status = await unless_lost(
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
    copied.seconds = time.monotonic() - started
    stored = int(status.rpartition(" ")[2])
    if not stored == copied.rows == table.rows:
        raise DifferenceError(
            f"table {table.name}: {table.rows} rows to copy, {copied.rows} sent, {stored} stored"
        )


async def unless_lost(
    connection: asyncpg.Connection[asyncpg.Record], copying: Coroutine[Any, Any, str]
) -> str:
    """Wait for a COPY, but not longer than its connection lives.

    asyncpg waits for ever for room to write when the server hangs up while there is none.

    Raises:
        RemoteError: The connection is gone.
    """
    lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def hung_up(_connection: object) -> None:
        if not lost.done():
            lost.set_result(None)

    connection.add_termination_listener(hung_up)
    task = asyncio.ensure_future(copying)
    try:
        either: set[asyncio.Future[Any]] = {task, lost}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            # It usually notices by itself, and then has the server's own words.
            await asyncio.wait({task}, timeout=LAST_WORDS_SECONDS)
        if not task.done():
            raise RemoteError("the server ended the connection in the middle of a copy")
        return task.result()
    finally:
        connection.remove_termination_listener(hung_up)
        if not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=LAST_WORDS_SECONDS)
