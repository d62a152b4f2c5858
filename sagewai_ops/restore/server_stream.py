"""Read the rows of a server's tables from the server itself, in one snapshot of it.

The same transaction returns the same rows in the same order as often as they are read: its tables
are locked against rewriting, and scans are neither synchronised nor parallel.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from sagewai_ops.backup.server import server_facts, text_encoding
from sagewai_ops.database.sqlite.read_transaction import quoted
from sagewai_ops.errors import RemoteError
from sagewai_ops.restore.server_rows import BLOCK_BYTES, Block, TableReader
from sagewai_ops.schema.postgres_ddl import member_stem, stored_columns
from sagewai_ops.snapshots.server_database import ServerFacts, StoredTable
from sagewai_ops.text import printable

if TYPE_CHECKING:
    from sagewai_ops.database.postgres.snapshot_session import Server, SnapshotSession
    from sagewai_ops.schema.postgres_catalog import ServerCatalog, ServerTable


Answer = TypeVar("Answer")
# The number of a table's rows, and the sum of the transactions that wrote them: an update writes a
# row of its own transaction, and nothing else changes it, neither VACUUM nor a lock.
_Mark: TypeAlias = tuple[int, int]


class ServerStream:
    """The tables of an open snapshot of a server."""

    def __init__(self, session: SnapshotSession, catalog: ServerCatalog) -> None:
        self._session = session
        self._catalog = catalog
        self._tables = {table.name: table for table in catalog.tables}
        self._marks: list[_Mark] = []

    def run(self, read: Callable[[Server], Coroutine[Any, Any, Answer]]) -> Answer:
        """Run a coroutine function in the transaction, as `SnapshotSession.run`."""
        return self._session.run(read)

    def facts(self) -> ServerFacts:
        """Count the rows, and return the record of the database.

        The bytes of a table are an estimate, and it has no hash.

        Raises:
            OpsError: The server refuses, or the connection is lost.
        """
        self._marks = self._session.run(self._count)
        tables = [
            StoredTable(
                schema=table.schema,
                name=table.name,
                columns=tuple(stored_columns(table)),
                rows=rows,
                bytes=table.size_bytes,
                sha256="",
                stem=member_stem(table.schema, table.name),
                members=0,
            )
            for table, (rows, _) in zip(self._catalog.tables, self._marks, strict=True)
        ]
        return server_facts(self._catalog, tables, text_encoding(self._catalog))

    def computed_columns(self) -> Iterator[tuple[str, str]]:
        """Yield table and name of the columns that the server computes, which are not read."""
        for table in self._catalog.tables:
            yield from ((table.name, each.name) for each in table.columns if each.is_computed)

    def rows(
        self, tables: Iterable[StoredTable], on_bytes: Callable[[int], None] | None = None
    ) -> Iterator[Block]:
        """Yield the rows of some tables.

        Args:
            on_bytes: Called with the number of bytes read since the last call.

        Raises:
            RemoteError: The server sends other rows than it counted.
            OpsError: As `facts`.
        """
        for stored in tables:
            reader = TableReader(stored, self._damage)
            with contextlib.closing(self._pieces(stored)) as pieces:
                for piece in pieces:
                    yield from reader.add(piece)
                    if reader.rows > stored.rows:  # else such a server could fill the disk
                        raise self._damage(stored, f"more than {stored.rows} rows")
                    if on_bytes:
                        on_bytes(len(piece))
            reader.finish(stored.rows)

    def changed_tables(self, later: SnapshotSession) -> list[str]:
        """Return the tables whose rows were changed since `facts`.

        Args:
            later: A newer snapshot of the database, opened while the locks of this one prevent
                that its tables are rewritten.

        Raises:
            OpsError: As `facts`.
        """
        marks = later.run(self._count)
        return [
            f"{table.schema}.{table.name}"
            for table, before, after in zip(self._catalog.tables, self._marks, marks, strict=True)
            if before != after
        ]

    async def _count(self, connection: Server) -> list[_Mark]:
        await connection.execute("SET LOCAL max_parallel_workers_per_gather = 0")
        return [await _count_rows(connection, table) for table in self._catalog.tables]

    def _pieces(self, stored: StoredTable) -> Generator[bytes, None, None]:
        """Yield the text of a table in pieces of about `BLOCK_BYTES`."""
        table = self._tables[stored.name]
        chunks = self._session.copy(
            table.schema,
            table.name,
            stored.columns,
            encoding=text_encoding(self._catalog),
            whole=table.has_partitions,
        )
        pending: list[bytes] = []
        pending_bytes = 0
        with contextlib.closing(chunks):
            for chunk in chunks:
                pending.append(chunk)
                pending_bytes += len(chunk)
                if pending_bytes >= BLOCK_BYTES:
                    yield b"".join(pending)
                    pending, pending_bytes = [], 0
        if pending:
            yield b"".join(pending)

    def _damage(self, table: StoredTable, reason: str) -> RemoteError:
        return RemoteError(
            f"server: table {printable(table.name)}: {reason}",
            hint="is something between this program and the server that changes what it sends?",
        )


async def _count_rows(connection: Server, table: ServerTable) -> _Mark:
    place = f"{quoted(table.schema)}.{quoted(table.name)}"
    only = "" if table.has_partitions else "ONLY "
    query = f"SELECT count(*), sum(xmin::text::bigint) FROM {only}{place}"  # noqa: S608
    count, writers = await connection.fetchrow(query)
    return count, int(writers or 0)
