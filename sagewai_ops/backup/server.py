"""The database of a server as members of a snapshot, streamed from one transaction.

Nothing is staged on the disk: the rows of a table are cut into members while they arrive.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Generator, Iterable, Iterator
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from sagewai_ops.archive.manifest import Entry, EntryType
from sagewai_ops.archive.writer import MemberWriter
from sagewai_ops.backup.report import BackupOptions
from sagewai_ops.home.paths import Home
from sagewai_ops.home.server_record import read_server_record
from sagewai_ops.keys.locations import SealedValue
from sagewai_ops.records import dataclass, from_fields
from sagewai_ops.snapshots.member_paths import SERVER_DIRECTORY
from sagewai_ops.snapshots.server_database import (
    ServerFacts,
    StoredSequence,
    StoredTable,
    UnstoredObject,
)

if TYPE_CHECKING:
    from sagewai_ops.database.postgres.snapshot_session import SnapshotSession
    from sagewai_ops.schema.postgres_catalog import ServerCatalog, ServerTable

# At most 16 MiB, by docs/format.md; less needs less memory, and lets a mirror keep more of them.
MEMBER_BYTES = 2 * 1024 * 1024
_WAIT_SECONDS = 30.0  # for a table that another session alters, at least
_TEXT_ENCODING = "UTF8"
_NO_ENCODING = "SQL_ASCII"  # of databases whose texts have no encoding: stored as they are


@dataclass(slots=True)
class ServerSource:
    """The database of a server while its snapshot is open.

    Attributes:
        sealed: The columns that can contain sealed values, as tables in memory.
    """

    session: SnapshotSession
    catalog: ServerCatalog
    sealed: sqlite3.Connection

    @property
    def moment(self) -> float:
        """When the snapshot was taken, in seconds since 1970."""
        return self.session.moment

    @property
    def level(self) -> str:
        """The revision; "" without one."""
        return self.catalog.revisions[0] if self.catalog.revisions else ""

    def sealed_values(self) -> Iterator[SealedValue]:
        """Yield the sealed values of the server's tables."""
        from sagewai_ops.keys.inventory import on_server

        return on_server(self.sealed)

    @property
    def size_bytes(self) -> int:
        """An estimate of the text of all rows."""
        return sum(table.size_bytes for table in self.catalog.tables)

    def write(self, writer: MemberWriter, mtime_ns: int) -> ServerFacts:
        """Write the rows of every table and the SQL that restores them.

        Raises:
            OpsError: The server refuses, or the connection is lost.
        """
        from sagewai_ops.schema import postgres_ddl

        def add(path: str, content: bytes) -> Entry:
            return writer.add_bytes(Entry(path, EntryType.FILE, 0o600, mtime_ns), content)

        catalog = self.catalog
        encoding = text_encoding(catalog)
        writer.add_directory_or_link(Entry(SERVER_DIRECTORY, EntryType.DIRECTORY, 0o700, mtime_ns))
        add(postgres_ddl.SCHEMA, postgres_ddl.schema_sql(catalog).encode())
        groups: dict[str, list[list[str]]] = {}
        tables = []
        for table in catalog.tables:
            stored = _StoredRows()
            names = postgres_ddl.member_names(table)
            with contextlib.closing(self._rows(table, encoding, stored)) as chunks:
                for content in split_rows(chunks, MEMBER_BYTES):
                    name = next(names)
                    stored.add(add(name, content), content)
                    if stored.is_at_row:
                        groups.setdefault(table.name, []).append([name])
                    else:
                        groups[table.name][-1].append(name)
                    stored.is_at_row = content.endswith(b"\n")
            tables.append(stored.facts(table, postgres_ddl.stored_columns(table)))
        add(postgres_ddl.CONSTRAINTS, postgres_ddl.constraints_sql(catalog).encode())
        add(postgres_ddl.RESTORE, postgres_ddl.restore_sql(catalog, groups, encoding).encode())
        return server_facts(catalog, tables, encoding)

    def _rows(
        self, table: ServerTable, encoding: str, stored: _StoredRows
    ) -> Generator[bytes, None, None]:
        from sagewai_ops.schema.postgres_ddl import stored_columns

        stored.rows = yield from self.session.copy(
            table.schema,
            table.name,
            stored_columns(table),
            encoding=encoding,
            whole=table.has_partitions,
        )


def text_encoding(catalog: ServerCatalog) -> str:
    """Return the encoding in which the rows of a database are read."""
    return _NO_ENCODING if catalog.encoding == _NO_ENCODING else _TEXT_ENCODING


def server_facts(
    catalog: ServerCatalog, tables: Iterable[StoredTable], encoding: str
) -> ServerFacts:
    """Return the record of a database.

    Args:
        encoding: Of the text of its rows.
    """
    return from_fields(
        ServerFacts,
        catalog,
        revision=catalog.revisions,
        text_encoding=encoding,
        standby=catalog.is_standby,
        tables=tuple(tables),
        sequences=tuple(from_fields(StoredSequence, item) for item in catalog.sequences),
        unstored=_unstored(catalog),
        moments={},
        distance_ms=0,
    )


@dataclass(slots=True)
class _StoredRows:
    """The rows of a table while they are written.

    Attributes:
        rows: Their number, once the server has sent all.
    """

    rows: int = 0
    size_bytes: int = 0
    members: int = 0
    is_at_row: bool = True
    _first: tuple[bytes, bytes] | None = None  # hash and content of the only member so far
    _digest: hashlib._Hash | None = None

    def add(self, entry: Entry, content: bytes) -> None:
        self.members += 1
        self.size_bytes += len(content)
        if self.members == 1:
            self._first = entry.sha256, content
            return
        if self._first:
            self._digest = hashlib.sha256(self._first[1])
            self._first = None
        assert self._digest is not None
        self._digest.update(content)

    def facts(self, table: ServerTable, columns: list[str]) -> StoredTable:
        from sagewai_ops.schema.postgres_ddl import member_stem

        if self._digest:
            sha256 = self._digest.digest()
        else:
            sha256 = self._first[0] if self._first else hashlib.sha256().digest()
        return StoredTable(
            schema=table.schema,
            name=table.name,
            columns=tuple(columns),
            rows=self.rows,
            bytes=self.size_bytes,
            sha256=sha256.hex(),
            stem=member_stem(table.schema, table.name),
            members=self.members,
        )


@dataclass(frozen=True, slots=True)
class ServerPlan:
    """What a snapshot would contain of a server.

    Attributes:
        size_bytes: An estimate.
    """

    version: str
    tables: int
    size_bytes: int
    excluded: tuple[str, ...]
    unstored: tuple[UnstoredObject, ...]


def plan_server(home: Home, options: BackupOptions) -> ServerPlan | None:
    """Return what a snapshot would contain of the server of a home; None without one.

    Raises:
        OpsError: As `open_server`.
    """
    with open_server(home, options) as server:
        if server is None:
            return None
        catalog = server.catalog
        return ServerPlan(
            version=catalog.version,
            tables=len(catalog.tables),
            size_bytes=server.size_bytes,
            excluded=catalog.excluded,
            unstored=_unstored(catalog),
        )


def _unstored(catalog: ServerCatalog) -> tuple[UnstoredObject, ...]:
    return tuple(from_fields(UnstoredObject, item) for item in catalog.unstored)


def has_server(home: Home) -> bool:
    """Return whether the database of a home is on a server, by a variable or the home's record."""
    return bool(home.server_url_variable) or read_server_record(home.root) is not None


@contextlib.contextmanager
def open_server(home: Home, options: BackupOptions) -> Iterator[ServerSource | None]:
    """Open a snapshot of the server of Sagewai's tables for the block; None without a server.

    Raises:
        OpsError: The server is not reachable, or refuses.
    """
    if not home.server_url_variable or options.without_database:
        yield None
        return
    from sagewai_ops.database.postgres.snapshot_session import open_snapshot
    from sagewai_ops.keys import postgres
    from sagewai_ops.keys.inventory import database_server
    from sagewai_ops.schema.postgres_catalog import read_catalog

    def is_wanted(schema: str, name: str) -> bool:
        return not any(
            fnmatchcase(name, pattern) or fnmatchcase(f"{schema}.{name}", pattern)
            for pattern in options.exclude_tables
        )

    url = database_server(home, options.key_environment)
    wait = max(options.wait_seconds, _WAIT_SECONDS)
    with open_snapshot(url, is_wanted, wait_seconds=wait) as session:
        catalog = session.run(lambda connection: read_catalog(connection, is_wanted))
        stored = {table.name for table in catalog.tables}
        rows = session.run(lambda connection: postgres.read_columns(connection, stored))
        with contextlib.closing(postgres.load_tables(rows)) as sealed:
            yield ServerSource(session, catalog, sealed)


def split_rows(chunks: Iterable[bytes], most_bytes: int) -> Iterator[bytes]:
    """Cut the text of a COPY into pieces of at most `most_bytes` that end with a row.

    Only a row that is longer is cut itself; in this text a newline always ends a row.
    """
    pending: list[bytes | memoryview] = []
    pending_bytes = 0
    for chunk in chunks:
        start = 0
        while pending_bytes + len(chunk) - start > most_bytes:
            most = start + most_bytes - pending_bytes
            end = chunk.rfind(b"\n", start, most) + 1
            piece = b"".join((*pending, memoryview(chunk)[start : end or most]))
            if not end:  # the row began in an earlier chunk
                end, cut = most, piece.rfind(b"\n") + 1
                piece, rest = piece[: cut or None], piece[cut or len(piece) :]
            else:
                rest = b""
            yield piece
            pending, pending_bytes = [rest], len(rest)
            start = end
        pending.append(memoryview(chunk)[start:])
        pending_bytes += len(chunk) - start
    if pending_bytes:
        yield b"".join(pending)
