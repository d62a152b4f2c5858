"""Restore the database of a snapshot to a server, in one transaction with what it replaces.

The objects of the schema move to a schema of their own, the snapshot's SQL and rows are loaded,
and every table is read back and compared with the manifest's hash. The caller commits under the
journal of the files: `swap.staging`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import queue
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

from sagewai_ops.database.postgres.connection import (
    FOREIGN_CODE,
    foreign_code_error,
    open_connection,
    pin_settings,
)
from sagewai_ops.database.postgres.pooler import require_own_session
from sagewai_ops.database.postgres.sessions import describe_sessions, find_sessions
from sagewai_ops.database.postgres.snapshot_session import SETTINGS, SnapshotSession
from sagewai_ops.database.postgres.transaction import LOST, lost_connection_errors
from sagewai_ops.database.sqlite.read_transaction import quoted
from sagewai_ops.database.url import PostgresUrl
from sagewai_ops.errors import (
    DamagedError,
    DifferenceError,
    ExtensionMissingError,
    LockedError,
    OpsError,
    PermissionDeniedError,
    RemoteError,
    TargetBusyError,
    UsageError,
)
from sagewai_ops.keys import postgres
from sagewai_ops.keys.inventory import on_server
from sagewai_ops.keys.locations import SealedValue
from sagewai_ops.process.signals import uninterrupted
from sagewai_ops.restore import server_access
from sagewai_ops.restore.access import AccessCounts
from sagewai_ops.schema.migrate_postgres import LOCK
from sagewai_ops.schema.postgres_ddl import CONSTRAINTS, SCHEMA
from sagewai_ops.schema.postgres_objects import OBJECTS, move_objects
from sagewai_ops.schema.postgres_replaced import ServerStep, has_schema
from sagewai_ops.snapshots.server_database import ServerFacts, StoredTable
from sagewai_ops.text import listed, printable

if TYPE_CHECKING:
    import asyncpg

    Server: TypeAlias = asyncpg.Connection[asyncpg.Record]

_CHUNKS = 8  # pieces of members that wait for the server
_POLL_SECONDS = 0.05
_ANSWER_SECONDS = 10.0  # for a server that closed the connection during the commit
_RETRY_SECONDS = 0.5
_ABOUT = """
SELECT pg_catalog.current_schema()::text AS schema,
  pg_catalog.current_setting('server_encoding') AS encoding,
  pg_catalog.pg_is_in_recovery() OR pg_catalog.current_setting('transaction_read_only')::bool
    AS read_only,
  coalesce(pg_catalog.has_schema_privilege(pg_catalog.current_schema(), 'CREATE'), false)
    AND pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE') AS may_create,
  EXISTS (SELECT 1 FROM pg_catalog.pg_roles r WHERE r.rolname = current_user AND r.rolsuper)
    OR EXISTS (SELECT 1 FROM pg_catalog.pg_roles r
      WHERE r.rolname IN ('pg_execute_server_program', 'pg_write_server_files',
          'pg_read_server_files')
        AND pg_catalog.pg_has_role(r.oid, 'MEMBER')) AS is_powerful,
  ARRAY(SELECT e.extname::text FROM pg_catalog.pg_extension e) AS extensions,
  pg_catalog.pg_try_advisory_xact_lock($1) AS is_locked
"""


class ServerRestore(SnapshotSession):
    """An open transaction that replaces the objects of a schema; use `open_server_restore`.

    Attributes:
        step: For the journal.
        replaced: How many objects the schema had.
    """

    def __init__(self, url: PostgresUrl, step: ServerStep) -> None:
        super().__init__(url)
        self.step = step
        self.replaced = 0
        self._schema = ""
        self._missing: tuple[str, ...] = ()
        self._facts: ServerFacts | None = None
        self._tables_by_path: dict[str, StoredTable] = {}
        self._filled: tuple[StoredTable, queue.Queue[bytes | None], Future[None]] | None = None
        self._is_abandoned = threading.Event()
        self._lost = False

    def begin(self, *, replace: bool) -> None:
        """Check the target, and move what it has out of the way.

        Raises:
            TargetBusyError: It has other sessions, or objects and not `replace`.
            PermissionDeniedError, UsageError, LockedError: It cannot be used.
        """
        self._wait(lambda: self._translated(self._begin_restore(replace=replace)))

    def expect(self, facts: ServerFacts, *, is_authentic: bool) -> None:
        """Set the database that will be loaded.

        Args:
            is_authentic: Else its SQL, of an unknown writer, runs only with the rights of a role
                that has none outside of the database.

        Raises:
            PermissionDeniedError: It is not authentic, and the role has such rights.
            UsageError: The encodings differ.
        """
        about = self._about
        if not is_authentic and about["is_powerful"]:
            raise PermissionDeniedError(
                f"{self._url.display}: the snapshot is not authentic, and the role may run programs"
                " on the server",
                hint="SAGEWAI_DATABASE_URL=postgresql://OWNER@HOST/DATABASE sagewai-ops restore ..."
                "  # a role that is no superuser",
            )
        if about["encoding"] not in ("UTF8", facts.encoding):
            raise UsageError(
                f"{self._url.display}: encoding {about['encoding']}, not UTF8",
                hint="createdb --encoding UTF8 --template template0",
            )
        self._facts = facts
        self._missing = tuple(sorted({*facts.extensions} - {*about["extensions"]}))
        self._tables_by_path = {path: table for table in facts.tables for path in table.paths}

    def add(self, path: str, content: Iterator[memoryview]) -> None:
        """Load a member of the snapshot; they come in their order.

        Raises:
            OpsError: The server refuses it.
        """
        if path in (SCHEMA, CONSTRAINTS):
            self._end_copy()
            text = b"".join(content).decode("utf-8")
            self._wait(lambda: self._translated(self._execute(text)))
        elif table := self._tables_by_path.get(path):
            if self._filled is None or self._filled[0] is not table:
                self._end_copy()
                self._begin_copy(table)
            for piece in content:
                self._put(bytes(piece))

    def sealed_values(self) -> Iterator[SealedValue]:
        """Yield the sealed values of the loaded tables."""
        assert self._facts
        names = {table.name for table in self._facts.tables}
        rows = self.run(lambda connection: postgres.read_columns(connection, names))
        with contextlib.closing(postgres.load_tables(rows)) as connection:
            yield from on_server(connection)

    def compare(self) -> None:
        """Read every table back and compare it with the snapshot's hash.

        Raises:
            DifferenceError: One differs.
        """
        assert self._facts
        for table in self._facts.tables:
            digest = hashlib.sha256()
            rows = self._hash_rows(table, digest)
            if digest.hexdigest() != table.sha256 or rows != table.rows:
                raise DifferenceError(
                    f"{self._url.display}: table {printable(table.name)} differs from the snapshot,"
                    f" {rows} rows of {table.rows}"
                )

    def _hash_rows(self, table: StoredTable, digest: hashlib._Hash) -> int:
        """Read a table, and return the number of its rows."""
        assert self._facts
        chunks = self.copy(
            self._schema, table.name, table.columns, encoding=self._facts.text_encoding
        )
        with contextlib.closing(chunks):
            while True:
                try:
                    digest.update(next(chunks))
                except StopIteration as end:
                    return int(end.value)

    def count_access(self) -> AccessCounts:
        """Count the sessions, API tokens and fleet rows that become valid again."""
        return self.run(lambda connection: server_access.count(connection, self._schema))

    def revoke_access(self) -> None:
        """End every session and revoke every API token of what was loaded.

        Raises:
            DamagedError: One is left.
        """
        self.run(lambda connection: server_access.revoke(connection, self._schema))

    def rebind_fleet(self, organisation: str) -> int:
        """Assign the loaded rows of the fleet to an organisation id; return their number."""
        return self.run(
            lambda connection: server_access.rebind(connection, self._schema, organisation)
        )

    def require_unused(self) -> None:
        """Check once more that there is no other session.

        Raises:
            TargetBusyError: There is one.
        """
        self.run(self._require_unused)

    def exchange(self, kept: str) -> None:
        """Move what an earlier restore replaced back into the schema, and remove its own."""
        self._wait(lambda: self._translated(self._move_back(kept)))

    def commit(self) -> None:
        """Commit; the caller defers signals.

        Raises:
            ConnectionError: It is unknown whether the server did.
            OpsError: It did not.
        """
        self._wait(self._commit)

    def find_outcome(self) -> bool:
        """Return, after a ConnectionError of `commit`, whether the server committed.

        Raises:
            OpsError: It cannot be found out.
        """
        deadline = time.monotonic() + _ANSWER_SECONDS
        while True:
            try:
                is_committed = has_schema(self._url, self.step.schema)
            except RemoteError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(_RETRY_SECONDS)  # a server that restarts
            else:
                self._lost = is_committed
                return is_committed

    def require_answer(self) -> None:
        """Report a commit whose answer was lost.

        Raises:
            RemoteError: It was; everything is done.
        """
        if self._lost:
            raise RemoteError(
                f"{self._url.display}: {LOST}; home and database are as requested",
                hint="sagewai-ops status",
            )

    async def _begin_restore(self, *, replace: bool) -> None:
        self._connection = connection = await open_connection(self._url)
        await require_own_session(self._url, connection)
        await connection.execute("BEGIN")
        await pin_settings(self._url, connection)
        await connection.execute(SETTINGS)
        self._about = about = await connection.fetchrow(_ABOUT, LOCK)
        place = self._url.display
        if about["schema"] is None:
            raise UsageError(f"{place}: no schema of the search_path exists")
        if about["read_only"]:
            raise PermissionDeniedError(
                f"{place}: read-only; on a standby, use the URL of the primary server",
                hint="psql URL -c 'SELECT pg_is_in_recovery()'  # t: a standby",
            )
        if not about["may_create"]:
            raise PermissionDeniedError(
                f"{place}: the role may not create schemas in it, and tables in {about['schema']}",
                hint="GRANT CREATE ON DATABASE ... TO ROLE; GRANT CREATE ON SCHEMA ... TO ROLE;",
            )
        if not about["is_locked"]:
            raise LockedError(f"{place}: locked by another restore, export or upgrade")
        await self._require_unused(connection)
        self._schema = about["schema"]
        await self._move_away(connection, replace=replace)

    async def _require_unused(self, connection: Server) -> None:
        sessions = await find_sessions(connection)
        if sessions:
            raise TargetBusyError(
                f"{self._url.display}: in use by {', '.join(describe_sessions(sessions))}",
                hint="psql URL -c 'SELECT * FROM pg_stat_activity'  # then stop its service",
            )

    async def _move_away(self, connection: Server, *, replace: bool) -> None:
        place = self._url.display
        foreign = await connection.fetchrow(FOREIGN_CODE)
        if foreign:
            raise foreign_code_error(place, *foreign)
        objects = await connection.fetch(OBJECTS)
        if objects and not replace:
            raise TargetBusyError(
                f"{place}: not empty, {len(objects)} objects such as"
                f" {printable(objects[0]['name'])}",
                hint="replace it, the previous tables are kept: --replace",
            )
        others = [item["name"] for item in objects if not item["owned"]]
        if others:
            raise PermissionDeniedError(
                f"{place}: {len(others)} objects belong to another role: {listed(others)}",
                hint="run it as the owner of the tables",
            )
        await connection.execute(f"CREATE SCHEMA {quoted(self.step.schema)}")
        await move_objects(connection, objects, self.step.schema)
        self.replaced = len(objects)

    async def _move_back(self, kept: str) -> None:
        connection = self._connection
        assert connection is not None
        await connection.execute(f"SET LOCAL search_path = {quoted(kept)}, pg_temp")
        await move_objects(connection, await connection.fetch(OBJECTS), self._schema)
        await connection.execute(f"DROP SCHEMA {quoted(kept)}")

    async def _execute(self, text: str) -> None:
        """Execute the snapshot's SQL, which may not end the transaction."""
        import asyncpg

        connection = self._connection
        assert connection is not None
        before = await connection.fetchval("SELECT pg_catalog.pg_current_xact_id()::text")
        await connection.execute(
            f"SET LOCAL search_path = {quoted(self._schema)}, pg_temp;"
            " SET LOCAL check_function_bodies = off"
        )
        try:
            # With a statement at the end: asyncpg cannot read the answer to comments alone.
            await connection.execute(f"{text}\n;SELECT")
        except (asyncpg.UndefinedObjectError, asyncpg.InvalidSchemaNameError) as error:
            if not self._missing:
                raise
            names = ", ".join(map(printable, self._missing))
            raise ExtensionMissingError(
                f"{self._url.display}: extension {names}: not installed",
                hint=f"psql URL -c 'CREATE EXTENSION {printable(self._missing[0])}'",
            ) from error
        after = await connection.fetchval("SELECT pg_catalog.pg_current_xact_id()::text")
        if before != after:
            raise DamagedError("archive: its SQL ended the transaction")

    def _begin_copy(self, table: StoredTable) -> None:
        pieces: queue.Queue[bytes | None] = queue.Queue(_CHUNKS)

        async def source() -> AsyncIterator[bytes]:
            while not self._is_abandoned.is_set():
                with contextlib.suppress(queue.Empty):
                    piece = pieces.get(timeout=_POLL_SECONDS)
                    if piece is None:
                        return
                    yield piece
            raise asyncio.CancelledError

        async def copy() -> None:
            assert self._connection is not None
            assert self._facts is not None
            await self._connection.copy_to_table(
                table.name,
                source=source(),
                schema_name=self._schema,
                columns=list(table.columns),
                format="text",
                encoding=self._facts.text_encoding,
            )

        with uninterrupted():  # as in `_wait`
            future = asyncio.run_coroutine_threadsafe(self._translated(copy()), self._loop)
            self._filled = table, pieces, future

    def _put(self, piece: bytes | None) -> None:
        assert self._filled
        _table, pieces, future = self._filled
        while not future.done():
            with contextlib.suppress(queue.Full):
                pieces.put(piece, timeout=_POLL_SECONDS)
                return
        future.result()

    def _end_copy(self) -> None:
        if self._filled is not None:
            self._put(None)
            self._filled[2].result()
            self._filled = None

    async def _commit(self) -> None:
        import asyncpg

        connection = self._connection
        assert connection is not None
        try:
            status = await connection.execute("COMMIT")
        except lost_connection_errors() as error:
            raise ConnectionError(LOST) from error
        except asyncpg.PostgresError as error:
            raise OpsError(f"{self._url.display}: not committed, {error.args[0]}") from error
        if status != "COMMIT":
            raise OpsError(f"{self._url.display}: not committed, the server rolled back")

    def abandon(self) -> None:
        """Close the socket without waiting for the server, which rolls back."""
        self._is_abandoned.set()
        super().abandon()


@contextmanager
def open_server_restore(url: PostgresUrl, schema: str, *, replace: bool) -> Iterator[ServerRestore]:
    """Open a transaction that replaces what the current schema of a database has.

    Args:
        schema: Where the previous objects go.
        replace: Whether there may be any.

    Raises:
        OpsError: As `ServerRestore.begin`.
        RemoteError: At the end, the answer to the commit was lost; everything is done.
    """
    session = ServerRestore(url, ServerStep(url.display, schema))
    with session.running():
        session.begin(replace=replace)
        yield session
        session.require_answer()
