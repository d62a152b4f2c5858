"""A private scratch directory, locked by its run and removed at its end.

`catalog.sweep` removes what a killed run left.
"""

import contextlib
import os
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

from sagewai_ops.fs import locks
from sagewai_ops.fs.tempdirs import Keep, kept, locked_directory
from sagewai_ops.process.signals import uninterrupted
from sagewai_ops.snapshots import catalog


@contextlib.contextmanager
def scratch_directory(
    directory: Path,
    link_directory: Path | None = None,
    *,
    keep: Keep | None = None,
) -> Iterator[Path]:
    """Create a scratch directory for the block.

    Args:
        directory: Where to create it.
        link_directory: A snapshot directory that gets a link to it if writable, so that the next
            run on the snapshots removes what a killed one left.
        keep: As for `kept`.

    Raises:
        PermissionDeniedError, NoSpaceError, OpsError: It cannot be created.
    """
    path = catalog.scratch_path(directory, datetime.now(timezone.utc))
    link = None
    if (
        link_directory
        and link_directory != directory
        and os.access(link_directory, os.R_OK | os.W_OK)
    ):
        link = link_directory / path.name
    with contextlib.ExitStack() as stack:
        with uninterrupted(), contextlib.ExitStack() as creation:
            if link:
                # Until the directory exists and is locked, the link looks like a crashed run's.
                creation.enter_context(locks.sweep_guard(link.parent))
                stack.callback(_remove_link, link, path)
                with contextlib.suppress(OSError):  # a file system without links
                    link.symlink_to(path)
            stack.enter_context(locked_directory(path))
        with kept(path, keep):
            yield path


def _remove_link(link: Path, path: Path) -> None:
    """Remove the link, unless the scratch directory still exists."""
    if not os.path.lexists(path):
        with contextlib.suppress(OSError):
            link.unlink()
