"""Read one moment of a database wherever it is: in place, or else in a private copy.

SQLite must write to the directory of a database in WAL mode to read it, and needs locks. On a
read-only home, and on a file system without locks, the files are copied to the directory for
temporary files, and read there.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sagewai_ops.database.sqlite.online_copy import attribute_damage, copy_database
from sagewai_ops.database.sqlite.read_transaction import (
    WAIT_SECONDS,
    NeedsStagingError,
    ReadTransaction,
    open_read_transaction,
)
from sagewai_ops.fs.atomic import temporary_directory
from sagewai_ops.fs.tempdirs import working_directory
from sagewai_ops.home.paths import OWN_PREFIX


@contextmanager
def open_moment(path: Path, *, wait_seconds: float = WAIT_SECONDS) -> Iterator[ReadTransaction]:
    """Open a database, live or not, at one moment that lasts as long as the block.

    Args, Raises: As of `open_read_transaction`; the transaction's `path` may be that of a copy.
    """
    with ExitStack() as stack:
        try:
            transaction = stack.enter_context(
                open_read_transaction(path, wait_seconds=wait_seconds)
            )
        except NeedsStagingError:
            parent = temporary_directory()
            directory = stack.enter_context(working_directory(parent, f"{OWN_PREFIX}read-"))
            copy = directory / path.name
            stack.enter_context(attribute_damage(path, copy))
            copy_database(path, copy, wait_seconds=wait_seconds)
            transaction = stack.enter_context(open_read_transaction(copy))
        yield transaction
