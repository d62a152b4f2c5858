"""Create a database with the schema of a fresh Sagewai home."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import sqlite3
from pathlib import Path

from sagewai_ops.database.sqlite.write_transaction import open_exclusive
from sagewai_ops.errors import NoSpaceError, OpsError, TargetBusyError
from sagewai_ops.fs import atomic, beneath
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.fs.removal import remove_tree
from sagewai_ops.process.signals import uninterrupted
from sagewai_ops.schema import sqlite_head
from sagewai_ops.text import shell_word

# Without hard links (FAT, some network shares), the file is renamed into place.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def create_database(path: Path) -> None:
    """Create a database in WAL mode with all tables and no rows, mode 0600, without side files.

    A temporary file in the same directory gets the name last, so that a crash leaves no partial
    database.

    Args:
        path: Must not exist; its directory must.

    Raises:
        TargetBusyError: The path exists.
        NoSpaceError, PermissionDeniedError, OpsError: Not created; `path` does not exist.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    with translate_os_errors(path):
        if os.path.lexists(path):
            raise _exists(path)
        with contextlib.ExitStack() as stack:
            with uninterrupted():
                descriptor = beneath.create_file(temporary, atomic.PRIVATE_FILE)
                for suffix in ("", "-wal", "-shm"):
                    stack.callback(remove_tree, Path(f"{temporary}{suffix}"))
                stack.callback(os.close, descriptor)
            _create_tables(temporary, path)
            beneath.sync(descriptor)
            _link(temporary, path)
        beneath.sync_directory(path.parent)


def _create_tables(file: Path, shown: Path) -> None:
    try:
        with open_exclusive(file) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("BEGIN IMMEDIATE")
            for statement in sqlite_head.statements():
                connection.execute(statement)
            connection.execute("COMMIT")
            # Closing does the same, but reports no error: the tables would be lost with the -wal.
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    except sqlite3.OperationalError as error:
        if "full" in str(error):
            raise NoSpaceError(
                f"{shown}: {error}", hint=f"df -h {shell_word(shown.parent)}"
            ) from error
        raise OpsError(f"{shown}: not created, {error}") from error
    if os.path.exists(f"{file}-wal"):
        raise OpsError(f"{shown}: not created, its write-ahead log was not checkpointed")


def _link(temporary: Path, path: Path) -> None:
    """Link the finished file to its path, without ever replacing another file."""
    try:
        beneath.make_hard_link(path, temporary)
    except FileExistsError as error:
        raise _exists(path) from error
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(path):
            raise _exists(path) from error
        beneath.rename(temporary, path)


def _exists(path: Path) -> TargetBusyError:
    return TargetBusyError(
        f"{path}: exists",
        hint=f"sagewai-ops --home {shell_word(path.parent.parent)} db current",
    )
