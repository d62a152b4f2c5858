"""Write rows to the database of a home, in this process or in one of its own.

With many rows, one process converts while the other inserts and builds indexes: both cores are
used. Requests arrive on stdin and results go to stdout, as frames. A writer ends when its work is
done or a pipe is closed; it needs the standard library and us.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import marshal
import os
import signal
import sqlite3
import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

from sagewai_ops.database.sqlite.connect import has_locks, limit_seconds, open_connection
from sagewai_ops.database.sqlite.read_transaction import translate_errors
from sagewai_ops.errors import OpsError
from sagewai_ops.export.convert.sqlite_value import Value
from sagewai_ops.process import core_dumps
from sagewai_ops.process.frames import (
    ERROR,
    decode_error,
    encode_error,
    enlarge_pipe,
    read_frame,
    write_frame,
)
from sagewai_ops.records import dataclass

if TYPE_CHECKING:
    import subprocess

Row: TypeAlias = tuple[Value, ...]
# Of a row that was not inserted: its place in the block, and SQLite's message; "" if too large.
Failure: TypeAlias = tuple[int, str]
# Called with those of a block, in the order of the blocks.
OnFailures: TypeAlias = Callable[[list[Failure]], None]

MOST_ROW_BYTES = 64 * 1024 * 1024  # SQLite needs a multiple of it, and has a limit of memory
# A process of its own takes 0.1 s to start.
LEAST_BYTES = 8 * 1024 * 1024
_LENGTH_LIMIT = 0  # SQLITE_LIMIT_LENGTH, which Python has since 3.11
_CACHE_KIB = 8000  # so that a table's last pages are there when its indexes are built
_AHEAD = 2  # blocks that are sent before the result of the first
_END_SECONDS = 5.0
_ROWS, _STATEMENT, _END, _RESULT = b"r", b"s", b"e", b"d"


@dataclass(frozen=True, slots=True)
class RowBatch:
    """The rows of a block to insert.

    Attributes:
        statement: Inserts one of them.
        width: Fields of each.
        kept: Places of the fields that are inserted; None for all.
        first: Number of the first row; None if a field is the number.
        refused: Places of rows that are not inserted.
        fields: Row by row.
    """

    statement: str
    width: int
    kept: tuple[int, ...] | None
    first: int | None
    count: int
    refused: frozenset[int]
    fields: list[Value]

    def encode(self) -> bytes:
        """Return the content of a frame."""
        return marshal.dumps(tuple(getattr(self, each.name) for each in dataclasses.fields(self)))

    @staticmethod
    def decode(content: bytes) -> RowBatch:
        """Return the rows of a frame."""
        return RowBatch(*marshal.loads(content))  # noqa: S302 - of the process that started us

    def values(self) -> Iterator[Row]:
        """Yield the rows to insert."""
        if self.refused:
            return (row for _place, row in self.numbered())
        return self._all()

    def numbered(self) -> Iterator[tuple[int, Row]]:
        """Yield them after their places in the block."""
        return (each for each in enumerate(self._all()) if each[0] not in self.refused)

    def _all(self) -> Iterator[Row]:
        columns: list[Iterator[Value]] = [iter(self.fields)] * self.width
        if self.kept is not None:
            columns = [iter(self.fields[place :: self.width]) for place in self.kept]
        if self.first is not None:
            columns.insert(0, iter(range(self.first, self.first + self.count)))
        return zip(*columns, strict=False)


def seconds_for(total: int) -> float:
    """Return the limit of processor time for so many bytes of rows."""
    return 4 * limit_seconds(total)


@contextlib.contextmanager
def translate_build_errors(database: Path) -> Iterator[None]:
    """Turn errors in the block into errors that name the database, which is being built.

    A lack of memory is no damage of it.
    """
    with translate_errors(database):
        try:
            yield
        except MemoryError as error:
            raise OpsError(
                f"database {database}: not enough memory to convert its rows",
                hint="free -m; ulimit -v  # that of the machine, and that of this process",
            ) from error


@contextlib.contextmanager
def open_target(database: Path, total: int) -> Iterator[sqlite3.Connection]:
    """Open a database to fill it, and leave it in WAL mode without sidecars.

    Args:
        total: Bytes of the rows that are inserted.
    """
    vfs = "" if has_locks(database) else "unix-none"
    with contextlib.closing(
        open_connection(database, mode="rw", vfs=vfs, least_seconds=seconds_for(total))
    ) as connection:
        if hasattr(connection, "setlimit"):  # that of a small file is too low
            connection.setlimit(_LENGTH_LIMIT, 2 * MOST_ROW_BYTES)
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        # The staging is garbage until it is synced as a whole, so nothing here need be durable.
        connection.execute("PRAGMA journal_mode = DELETE").fetchall()
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        connection.execute("BEGIN")
        yield connection
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
    if os.path.exists(f"{database}-wal"):
        raise OpsError(f"{database}: not converted, its write-ahead log was not checkpointed")


def insert_rows(connection: sqlite3.Connection, rows: RowBatch) -> list[Failure]:
    """Insert the rows of a block, and return those that SQLite refuses.

    Raises:
        sqlite3.Error: It is not about a row.
    """
    failures: list[Failure] = []
    connection.execute("SAVEPOINT block")
    try:
        connection.executemany(rows.statement, rows.values())
    except (sqlite3.IntegrityError, sqlite3.DataError, MemoryError):
        connection.execute("ROLLBACK TO block")
        for place, row in rows.numbered():
            try:
                connection.execute(rows.statement, row)
            except sqlite3.IntegrityError as error:
                failures.append((place, str(error)))
            except (sqlite3.DataError, MemoryError):
                failures.append((place, ""))
    connection.execute("RELEASE block")
    return failures


class Writer:
    """Inserts rows in this process."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def insert(self, rows: RowBatch, on_failures: OnFailures) -> None:
        """Insert the rows of a block.

        Raises:
            OpsError: SQLite fails.
        """
        on_failures(insert_rows(self._connection, rows))

    def execute(self, statement: str) -> None:
        """Run a statement after the rows that came before it."""
        self._connection.execute(statement)


class ProcessWriter(Writer):
    """Inserts rows in a process of its own.

    Args:
        process: Started with `program()`.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        import queue

        from sagewai_ops.process.threads import Thread

        self._process = process
        self._waiting: deque[OnFailures] = deque()
        self._results: queue.SimpleQueue[tuple[bytes, bytes]] = queue.SimpleQueue()
        # Both processes write: one that nothing reads would stop the other.
        Thread(target=self._read, name="results", daemon=True).start()

    def insert(self, rows: RowBatch, on_failures: OnFailures) -> None:
        """Send the rows of a block; failures of an earlier one may be reported.

        Raises:
            OpsError: The process failed, or has ended.
        """
        self.send(_ROWS, rows.encode())
        self._waiting.append(on_failures)
        if len(self._waiting) > _AHEAD:
            self._receive()

    def execute(self, statement: str) -> None:
        """Send a statement."""
        self.send(_STATEMENT, statement.encode())

    def finish(self) -> None:
        """Wait for all results, the last one after the commit."""
        while self._waiting:
            self._receive()
        self.send(_END, b"")
        self._waiting.append(lambda _failures: None)
        self._receive()

    def send(self, kind: bytes, content: bytes) -> None:
        """Send a frame; the next result has the reason if the process has ended."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            write_frame(self._process.stdin.fileno(), kind, content)

    def _receive(self) -> None:
        kind, content = self._results.get()
        if kind == ERROR:
            raise decode_error(content)
        if not kind:
            raise OpsError(f"writer process: ended with status {self._process.wait()}")
        self._waiting.popleft()(marshal.loads(content))  # noqa: S302 - of a process of ours

    def _read(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(EOFError, OSError, ValueError):
            while True:
                kind, content, _rows = read_frame(self._process.stdout)
                self._results.put((kind, content))
        self._results.put((b"", b""))


@contextlib.contextmanager
def open_writer(database: Path, total: int) -> Iterator[Writer]:
    """Open what inserts rows into a database, committed at the end of the block.

    Args:
        total: Bytes of the rows; many are inserted by another process.

    Raises:
        OpsError: SQLite fails, or the process does.
    """
    if total < LEAST_BYTES:
        with open_target(database, total) as connection:
            yield Writer(connection)
        return
    from sagewai_ops.process.child import python_child

    with python_child(__name__, end_seconds=_END_SECONDS) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for pipe in (process.stdin, process.stdout):
            enlarge_pipe(pipe.fileno())
        writer = ProcessWriter(process)
        writer.send(_STATEMENT, marshal.dumps((os.fspath(database), total)))
        yield writer
        writer.finish()
        process.wait()


def main() -> None:
    """Insert the rows that arrive on stdin, and report failures on stdout."""
    from sagewai_ops.process.parent import parent_death_signal

    requests, results = sys.stdin.buffer, sys.stdout.buffer.fileno()
    parent_death_signal(signal.SIGKILL)()
    core_dumps.forbid()
    gc.disable()  # rows have no cycles
    with contextlib.suppress(BrokenPipeError, EOFError, KeyboardInterrupt):
        path, total = marshal.loads(read_frame(requests)[1])  # noqa: S302 - of our parent
        try:
            with translate_build_errors(Path(path)):
                with open_target(Path(path), total) as connection:
                    _serve(connection, requests, results)
                write_frame(results, _RESULT, marshal.dumps([]))
        except OpsError as error:
            write_frame(results, ERROR, encode_error(error))


def _serve(connection: sqlite3.Connection, requests: BinaryIO, results: int) -> None:
    while True:
        kind, content, _rows = read_frame(requests)
        if kind == _END:
            return
        if kind == _ROWS:
            failures = insert_rows(connection, RowBatch.decode(content))
            write_frame(results, _RESULT, marshal.dumps(failures))
        else:
            connection.execute(content.decode())
