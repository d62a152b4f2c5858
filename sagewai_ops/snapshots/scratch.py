"""A private scratch directory, locked by its run and removed at its end.

`catalog.sweep` removes what a killed run left.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

from sagewai_ops.errors import NotFoundError, UsageError
from sagewai_ops.fs import atomic, beneath, locks
from sagewai_ops.fs.free_space import free_bytes
from sagewai_ops.fs.tempdirs import Keep, kept, locked_directory
from sagewai_ops.process.signals import uninterrupted
from sagewai_ops.remote.path import is_remote
from sagewai_ops.snapshots import catalog
from sagewai_ops.text import shell_word

_MEMORY = Path("/dev/shm")  # noqa: S108 - its entries get private modes and random names
MOST_MEMORY_BYTES = 128 * 1024 * 1024  # of a scratch directory; a service may have 512 MiB


def work_parent(home: Path | None, chosen: Path | None, *, snapshots: Path) -> Path:
    """Return where plaintext of a home is written for a while: never next to the snapshots.

    The disk of encrypted snapshots is not trusted with plaintext.

    Args:
        home: The root of the home; its parent is used if no other user can write to it.
        chosen: By `--work-dir`.
        snapshots: The snapshot directory.

    Raises:
        NotFoundError: The chosen directory does not exist.
        UsageError: It is inside the home, or is the snapshot directory.
    """
    real = None if is_remote(snapshots) else Path(os.path.realpath(snapshots))
    if chosen is not None:
        return _check_chosen(chosen, home, real)
    parent = Path(os.path.realpath(home)).parent if home else None
    is_next_to_snapshots = bool(parent and real and parent.is_relative_to(real))
    if parent and not is_next_to_snapshots and _is_private(parent):
        return parent
    return atomic.temporary_directory()


def memory_parent(needed_bytes: int) -> Path | None:
    """Return the file system in memory if there is one with enough space, else None."""
    if needed_bytes > MOST_MEMORY_BYTES or not _is_private(_MEMORY):
        return None
    return _MEMORY if free_bytes(_MEMORY) >= 2 * needed_bytes else None


def _check_chosen(chosen: Path, home: Path | None, snapshots: Path | None) -> Path:
    real = Path(os.path.realpath(chosen))
    if not real.is_dir():
        raise NotFoundError(f"{chosen}: not a directory", hint=f"mkdir -m 700 {shell_word(chosen)}")
    if home and real.is_relative_to(os.path.realpath(home)):
        raise UsageError(f"{chosen}: inside the home {home}", hint="choose another: --work-dir DIR")
    if real == snapshots:
        raise UsageError(
            f"--work-dir {chosen}: the snapshot directory, in which no plaintext is written",
            hint="choose another: --work-dir DIR",
        )
    return real


def _is_private(directory: Path) -> bool:
    """Return whether we can create entries in a directory that no other user can replace."""
    try:
        status = os.stat(directory)
    except OSError:
        return False
    is_shared = status.st_mode & beneath.OTHERS_WRITE
    return (
        os.access(directory, os.W_OK | os.X_OK)
        and status.st_uid in (os.geteuid(), 0)
        and (not is_shared or bool(status.st_mode & stat.S_ISVTX))
    )


@contextlib.contextmanager
def scratch_directory(
    directory: Path, link_directory: Path | None = None, *, keep: Keep | None = None
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
        and not is_remote(link_directory)
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
