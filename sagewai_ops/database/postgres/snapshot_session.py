"""One moment of a PostgreSQL database, read by code without asyncio.

The transaction is `REPEATABLE READ READ ONLY`. Its tables are locked (`ACCESS SHARE`, as pg_dump
does, which blocks no writer) before it takes its snapshot: no table changes between the two, and
none is altered or dropped until the end.

The event loop runs in a thread of its own, which reads the next rows while the caller packs the
previous ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Coroutine, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from sagewai_ops.database.postgres.connection import (
    CLOSE_SECONDS,
    open_connection,
    pin_settings,
    translate_errors,
)
from sagewai_ops.database.postgres.pooler import require_own_session
from sagewai_ops.database.sqlite.read_transaction import quoted
from sagewai_ops.database.url import PostgresUrl
from sagewai_ops.errors import LockedError, OpsError, PermissionDeniedError
from sagewai_ops.process.signals import uninterrupted
from sagewai_ops.process.threads import Thread
from sagewai_ops.records import dataclass
from sagewai_ops.text import listed, shell_word

if TYPE_CHECKING:
    import asyncpg

    Server: TypeAlias = asyncpg.Connection[asyncpg.Record]

Answer = TypeVar("Answer")

_ATTEMPTS = 10  # to lock tables that other sessions create and drop
_BLOCK_BYTES = 256 * 1024  # of rows that are passed to the caller at once
_BLOCKS = 2  # that wait for the caller
_POLL_SECONDS = 0.05
# Besides those of every transaction: one text for amounts of money, and rows in one order.
SETTINGS = "SET LOCAL lc_monetary = 'C'; SET LOCAL synchronize_seqscans = off"
# Before the first query of a transaction, which would take the snapshot.
_WAITS = """
SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0;
SET LOCAL lock_timeout = {milliseconds}
"""
_FOUND = """
SELECT c.oid::bigint AS oid, n.nspname::text AS schema, c.relname::text AS name,
  pg_catalog.has_table_privilege(c.oid, 'SELECT')
    AND pg_catalog.has_schema_privilege(n.oid, 'USAGE') AS readable,
  pg_catalog.row_security_active(c.oid) AS filtered
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = pg_catalog.current_schema() AND c.relkind IN ('r', 'p')
  AND NOT c.relispartition
  AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend d WHERE d.objid = c.oid
    AND d.classid = 'pg_catalog.pg_class'::regclass::oid AND d.deptype = 'e')
ORDER BY c.relname COLLATE "C"
"""


@dataclass(frozen=True, slots=True)
class _Table:
    oid: int
    schema: str
    name: str
    is_readable: bool
    is_filtered: bool  # by row security


class SnapshotSession:
    """An open snapshot of a database; use `open_snapshot`.

    Attributes:
        moment: When the snapshot was taken, in seconds since 1970.
    """

    def __init__(self, url: PostgresUrl, *, is_selective: bool = True) -> None:
        self._url = url
        self._loop = asyncio.new_event_loop()
        self._is_selective = is_selective
        self._connection: Server | None = None
        self.moment = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the session's loop in a thread for the block, and close the socket at its end."""
        thread = Thread(target=self._loop.run_forever, name="server", daemon=True)
        try:
            thread.start()  # raises after the start if a signal came
            yield
        finally:
            if thread.ident is not None:
                self.abandon()
                self._loop.call_soon_threadsafe(self._loop.stop)
                thread.join(CLOSE_SECONDS)
            if not thread.is_alive():
                self._loop.close()

    def run(self, read: Callable[[Server], Coroutine[Any, Any, Answer]]) -> Answer:
        """Run a coroutine function on the connection, in the transaction.

        Raises:
            OpsError: The server refuses, or the connection is lost.
        """
        assert self._connection is not None
        connection = self._connection
        return self._wait(lambda: self._translated(read(connection)))

    def copy(
        self, schema: str, table: str, columns: Sequence[str], *, encoding: str, whole: bool = False
    ) -> Generator[bytes, None, int]:
        """Yield the rows of a table as `COPY ... TO STDOUT` sends them, in chunks.

        Args:
            columns: Those to read; empty for a table without columns.
            encoding: Of the text.
            whole: Also the rows of its partitions.

        Returns:
            The number of rows, by the server's own count.

        Raises:
            OpsError: As `run`.
        """
        blocks: queue.Queue[list[bytes]] = queue.Queue(_BLOCKS)
        is_abandoned = threading.Event()
        options = {"format": "text", "encoding": encoding}
        block: list[bytes] = []
        block_bytes = 0

        def put() -> None:
            # The loop has nothing else to do, so it may wait for the caller.
            while not is_abandoned.is_set():
                with contextlib.suppress(queue.Full):
                    blocks.put(block, timeout=_POLL_SECONDS)
                    return

        async def add(chunk: bytes) -> None:
            nonlocal block, block_bytes
            block.append(chunk)
            block_bytes += len(chunk)
            if block_bytes >= _BLOCK_BYTES:
                put()
                block, block_bytes = [], 0

        async def copy(connection: Server) -> str:
            nonlocal block
            try:
                await connection.execute("SET LOCAL search_path = ''")
                if whole:
                    names = ", ".join(map(quoted, columns))
                    query = f"SELECT {names} FROM {quoted(schema)}.{quoted(table)}"  # noqa: S608
                    status: str = await connection.copy_from_query(query, output=add, **options)
                else:
                    status = await connection.copy_from_table(
                        table, schema_name=schema, columns=list(columns), output=add, **options
                    )
                return status
            finally:
                if block:
                    put()
                block = []
                put()

        assert self._connection is not None
        connection = self._connection
        with uninterrupted():  # as in `_wait`
            work = self._translated(copy(connection))
            copying = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            while received := blocks.get():
                yield from received
            return int(copying.result().rpartition(" ")[2])  # COPY 4711
        finally:
            is_abandoned.set()
            copying.cancel()

    async def _translated(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        with translate_errors(self._url):
            return await work

    def _wait(self, work: Callable[[], Coroutine[Any, Any, Answer]]) -> Answer:
        with uninterrupted():  # else Python reports a coroutine that was never awaited
            future = asyncio.run_coroutine_threadsafe(work(), self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def open(self, is_wanted: Callable[[str, str], bool], wait_seconds: float) -> None:
        """Connect, lock the tables and take the snapshot."""
        self._wait(lambda: self._translated(self._open(is_wanted, wait_seconds)))

    def close(self) -> None:
        """End the transaction and close the connection."""
        if self._connection is not None:
            self._wait(self._close)

    async def _open(self, is_wanted: Callable[[str, str], bool], wait_seconds: float) -> None:
        self._connection = connection = await open_connection(self._url)
        await require_own_session(self._url, connection)
        for _attempt in range(_ATTEMPTS):
            if await self._begin(connection, is_wanted, wait_seconds):
                return
            await connection.execute("ROLLBACK")
        raise LockedError(
            f"{self._url.display}: tables created or dropped at each of {_ATTEMPTS} attempts",
            hint="psql URL -c 'SELECT * FROM pg_stat_activity'",
        )

    async def _begin(
        self, connection: Server, is_wanted: Callable[[str, str], bool], wait_seconds: float
    ) -> bool:
        """Begin the transaction; False if a table was created, dropped or renamed since."""
        import asyncpg

        async with connection.transaction(isolation="repeatable_read", readonly=True):
            await pin_settings(self._url, connection)
            before = await self._tables(connection, is_wanted)
        self._require_readable(before)
        await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        await connection.execute(_WAITS.format(milliseconds=max(1, int(wait_seconds * 1000))))
        if before:
            names = ", ".join(f"{quoted(row.schema)}.{quoted(row.name)}" for row in before)
            try:
                # Before any query, which would take a snapshot older than the locks.
                await connection.execute(f"LOCK TABLE {names} IN ACCESS SHARE MODE")
            except (asyncpg.UndefinedTableError, asyncpg.WrongObjectTypeError):
                return False
        await pin_settings(self._url, connection)
        await connection.execute(SETTINGS)
        self.moment = time.time()
        return await self._tables(connection, is_wanted) == before

    async def _tables(
        self, connection: Server, is_wanted: Callable[[str, str], bool]
    ) -> list[_Table]:
        rows = await connection.fetch(_FOUND)
        return [_Table(*row) for row in rows if is_wanted(row["schema"], row["name"])]

    def _require_readable(self, tables: Sequence[_Table]) -> None:
        """Check the privileges on every table.

        Raises:
            PermissionDeniedError: Some cannot be read, or only some of their rows.
        """
        closed = [table for table in tables if not table.is_readable]
        if not (closed or any(table.is_filtered for table in tables)):
            return
        reason, hint = "not readable by this role", "GRANT pg_read_all_data TO ROLE;"
        if not closed:
            closed = [table for table in tables if table.is_filtered]
            reason = "row security would hide rows from this role"
            hint = "ALTER ROLE ... BYPASSRLS;  # or run it as the owner of the tables"
        names = [f"{table.schema}.{table.name}" for table in closed]
        if self._is_selective:
            hint += f"\nsagewai-ops backup --exclude-table {shell_word(names[0])}"
        raise PermissionDeniedError(
            f"{self._url.display}: {len(names)} tables {reason}: {listed(names)}",
            hint=hint,
        )

    async def _close(self) -> None:
        assert self._connection is not None
        connection, self._connection = self._connection, None
        if connection.is_closed():
            return
        with contextlib.suppress(Exception):
            await connection.close(timeout=CLOSE_SECONDS)
            return
        connection.terminate()

    def abandon(self) -> None:
        """Close the socket without waiting for the server."""

        async def terminate() -> None:
            if self._connection is not None:
                self._connection.terminate()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(terminate(), self._loop).result(CLOSE_SECONDS)


@contextmanager
def open_snapshot(
    url: PostgresUrl, is_wanted: Callable[[str, str], bool] | None = None, *, wait_seconds: float
) -> Iterator[SnapshotSession]:
    """Open a snapshot of the current schema of a database for the block.

    Args:
        is_wanted: Selects the tables to lock, by schema and name; None for all.
        wait_seconds: For each table that another session has locked, to change it.

    Raises:
        RemoteError, PermissionDeniedError, NotFoundError, UsageError: It cannot be opened.
        LockedError: A table remained locked, or tables are created all the time.
    """
    session = SnapshotSession(url, is_selective=is_wanted is not None)
    with session.running():
        session.open(is_wanted or (lambda _schema, _name: True), wait_seconds)
        yield session
        with contextlib.suppress(OpsError):
            session.close()
