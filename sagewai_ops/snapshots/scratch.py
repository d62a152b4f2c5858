"""A folder to try things in: private, locked while its run lives, and gone afterwards.

What a killed run leaves has a name that `catalog.sweep` knows.
"""

import contextlib
import os
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

from sagewai_ops import atomic, locks
from sagewai_ops.errors import InterruptedRunError
from sagewai_ops.snapshots import catalog


@contextlib.contextmanager
def scratch_in(folder: Path, noted_in: Path | None = None) -> Iterator[Path]:
    """Make a private folder that is locked while this run lives, and removed in any case.

    Args:
        folder: Where; `catalog.sweep` removes there what a killed run left.
        noted_in: Another folder that is swept: a link in it says where the scratch folder is. Where
            it cannot be written, there is none.

    Raises:
        PermissionDeniedError, NoSpaceError, OpsError: The system refused.
    """
    path = catalog.scratch_path(folder, datetime.now(timezone.utc))
    note = None
    if noted_in and noted_in != folder and os.access(noted_in, os.R_OK | os.W_OK):
        note = noted_in / path.name
    try:
        with contextlib.ExitStack() as stack:
            if note:
                # Until the folder is there and locked, the link looks like a dead run's.
                stack.enter_context(locks.guarded(note.parent))
                with contextlib.suppress(OSError):  # a file system without links
                    note.symlink_to(path)
            stack.enter_context(atomic.naming(path))
            stack.enter_context(locks.guarded(folder))
            os.mkdir(path, atomic.PRIVATE_FOLDER)
            os.chmod(path, atomic.PRIVATE_FOLDER)  # the umask may have shut it even for us
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            locks.hold_open(descriptor)
        try:
            yield path
        finally:
            try:
                atomic.remove_tree(path)
            except InterruptedRunError:
                atomic.remove_tree(path)  # a signal comes once; the next ones are ignored
                raise
            finally:
                os.close(descriptor)
    finally:
        if note and not os.path.lexists(path):
            with contextlib.suppress(OSError):
                note.unlink()
