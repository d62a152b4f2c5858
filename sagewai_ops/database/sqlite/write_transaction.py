"""Change a database: a live one in one transaction, or a private copy with exclusive locking."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from sagewai_ops.database.sqlite.connect import has_locks, open_connection
from sagewai_ops.database.sqlite.read_transaction import (
    SLICE_SECONDS,
    open_reader,
    resolve_database,
    retry_while_locked,
    sidecar,
    size_of,
    translate_errors,
)
from sagewai_ops.errors import LockedError, OpsError
from sagewai_ops.process.malloc import zeroed_allocations
from sagewai_ops.process.signals import mark_completed, uninterrupted
from sagewai_ops.text import shell_word


@contextmanager
def open_write_transaction(
    path: Path, wait_seconds: float, *, is_whole: bool = False
) -> Iterator[sqlite3.Connection]:
    """Open a database for the block's one transaction, committed if the block succeeds.

    Foreign keys are off during it.

    Args:
        path: The main file, which exists.
        wait_seconds: For a writer that has it locked.
        is_whole: Whether the operation is complete with the commit.

    Raises:
        LockedError: A writer had it locked all the time.
        NotFoundError, DamagedError, NoSpaceError, PermissionDeniedError: Nothing was changed.
    """
    resolved = resolve_database(path)
    deadline = time.monotonic() + wait_seconds
    if not has_locks(resolved):
        raise OpsError(
            f"database {path}: its file system has no locks, so it cannot be changed while other"
            " processes may use it",
            hint=f"df -T {shell_word(path.parent)}  # move the home to a local file system",
        )
    with translate_errors(path), ExitStack() as reader:
        if size_of(sidecar(resolved, "-wal")):
            # Where the -shm cannot be created, closing a connection that writes may remove the -wal
            # with all its content (SQLite 3.40.1). A connection that only reads creates the -shm
            # first, and while it is open the other one is not the last to close.
            reader.enter_context(closing(open_reader(resolved, path, deadline)))
        with closing(open_connection(resolved, mode="rw", timeout=SLICE_SECONDS)) as connection:
            with zeroed_allocations():
                connection.execute("PRAGMA foreign_keys = OFF")
                _begin(connection, path, wait_seconds, deadline)
            reader.close()  # so that the last close checkpoints the -wal, as Sagewai's does
            try:
                yield connection
                with uninterrupted():  # a signal after the commit must not report a rollback
                    connection.execute("COMMIT")
                    if is_whole:
                        mark_completed()
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise


@contextmanager
def open_exclusive(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a copy that no other process uses; exclusive locking needs no shared memory file."""
    # Without locks, SQLite reports every database as locked.
    vfs = "" if has_locks(path) else "unix-none"
    with closing(open_connection(path, mode="rw", vfs=vfs)) as connection:
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        yield connection


def _begin(
    connection: sqlite3.Connection, path: Path, wait_seconds: float, deadline: float
) -> None:
    try:
        retry_while_locked(lambda: connection.execute("BEGIN IMMEDIATE"), path, deadline)
    except LockedError as error:
        raise LockedError(
            f"database {path}: locked by a writer for {wait_seconds:g} seconds",
            hint="sagewai-ops status  # shows which processes have it open",
        ) from error
