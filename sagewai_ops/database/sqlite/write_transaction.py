"""Change a database that others may have open, in one transaction."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from sagewai_ops.database.sqlite.read_transaction import (
    SLICE_SECONDS,
    database_uri,
    open_reader,
    resolve_database,
    sidecar,
    size_of,
    translate,
    when_free,
)
from sagewai_ops.errors import LockedError
from sagewai_ops.process.malloc import blank_blocks


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn what SQLite raises inside the block into an error that names the database."""
    try:
        yield
    except sqlite3.Error as error:
        raise translate(error, path) from error


@contextmanager
def writing(path: Path, wait_seconds: float) -> Iterator[sqlite3.Connection]:
    """Open a database for the block's one transaction, committed when the block ends well.

    Foreign keys are off during it.

    Args:
        path: The main file, which exists.
        wait_seconds: For a writer that holds it.

    Raises:
        LockedError: A writer held it all the time.
        NotFoundError, DamagedError, NoSpaceError, PermissionDeniedError: Nothing was changed.
    """
    resolved = resolve_database(path)
    uri = database_uri(resolved, mode="rw")
    deadline = time.monotonic() + wait_seconds
    with translated(path), ExitStack() as reader:
        if size_of(sidecar(resolved, "-wal")):
            # Where the -shm cannot be made, closing a connection that writes may remove the -wal
            # with all that stands in it (SQLite 3.40.1). One that only reads makes the -shm first,
            # and while it is open the other one is not the last to close.
            reader.enter_context(closing(open_reader(resolved, path, deadline)))
        with closing(
            sqlite3.connect(uri, uri=True, timeout=SLICE_SECONDS, isolation_level=None)
        ) as connection:
            with blank_blocks():
                connection.execute("PRAGMA foreign_keys = OFF")
                _begin(connection, path, wait_seconds, deadline)
            reader.close()  # so that the last close folds the -wal in, as Sagewai's does
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise


def _begin(
    connection: sqlite3.Connection, path: Path, wait_seconds: float, deadline: float
) -> None:
    try:
        when_free(lambda: connection.execute("BEGIN IMMEDIATE"), path, deadline)
    except LockedError as error:
        raise LockedError(
            f"database {path}: a writer held it for {wait_seconds:g} seconds",
            hint="sagewai-ops status  # shows who has it open",
        ) from error
