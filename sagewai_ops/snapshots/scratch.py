"""A directory to try things in: private, locked while its run lives, and gone afterwards.

What a killed run leaves has a name that `catalog.sweep` knows.
"""

import contextlib
import os
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

from sagewai_ops.fs import locks
from sagewai_ops.fs.tempdirs import locked_directory
from sagewai_ops.process.signals import uninterrupted
from sagewai_ops.snapshots import catalog


@contextlib.contextmanager
def scratch_directory(directory: Path, noted_in: Path | None = None) -> Iterator[Path]:
    """Make a private directory that is locked while this run lives, and removed in any case.

    Args:
        directory: Where; `catalog.sweep` removes there what a killed run left.
        noted_in: Another directory that is swept: a link in it says where the scratch directory is.
            Where it cannot be written, there is none.

    Raises:
        PermissionDeniedError, NoSpaceError, OpsError: The system refused.
    """
    path = catalog.scratch_path(directory, datetime.now(timezone.utc))
    note = None
    if noted_in and noted_in != directory and os.access(noted_in, os.R_OK | os.W_OK):
        note = noted_in / path.name
    with contextlib.ExitStack() as stack:
        with uninterrupted(), contextlib.ExitStack() as making:
            if note:
                # Until the directory is there and locked, the link looks like a dead run's.
                making.enter_context(locks.sweep_guard(note.parent))
                stack.callback(_forget, note, path)
                with contextlib.suppress(OSError):  # a file system without links
                    note.symlink_to(path)
            stack.enter_context(locked_directory(path))
        yield path


def _forget(note: Path, path: Path) -> None:
    """Remove the link, unless it leads to what could not be removed."""
    if not os.path.lexists(path):
        with contextlib.suppress(OSError):
            note.unlink()
