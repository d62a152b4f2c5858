"""Remove trees, and what runs that were killed left."""

import contextlib
import os
import re
import stat
from pathlib import Path

from sagewai_ops.fs import beneath, locks
from sagewai_ops.fs.trust import is_trusted
from sagewai_ops.process.signals import uninterrupted


def sweep_leftovers(directory: Path, names: re.Pattern[str]) -> list[str]:
    """Remove the entries of dead runs whose names match, and return these names.

    Entries stay that a live process has locked, that another user can have put there, or that
    cannot be removed.
    """
    try:
        entries = sorted(beneath.list_directory(directory))
    except OSError:
        return []
    return [
        name for name in entries if names.fullmatch(name) and remove_abandoned(directory / name)
    ]


def remove_abandoned(path: Path, *, without_locks: bool = False) -> bool:
    """Remove an entry of a dead run; return whether it was removed.

    It stays if a live process has locked it or another user can have put it there.

    Args:
        without_locks: Also remove it on a file system without locks.
    """
    with contextlib.suppress(OSError):
        is_ours = beneath.exists(path) and (_is_private(path) or is_trusted(path))
        if is_ours and locks.is_abandoned(path, without_locks=without_locks):
            remove_tree(path)
            return True
    return False


def _is_private(path: Path) -> bool:
    """Return whether an entry is a private directory of ours in a directory such as `/tmp`.

    No other user can create one, or move one there: both need write permission for it.
    """
    found, parent = beneath.status(path), beneath.status(path.parent)
    return (
        stat.S_ISDIR(found.st_mode)
        and found.st_uid == os.geteuid()
        and not stat.S_IMODE(found.st_mode) & 0o077
        and parent.st_uid == 0
        and bool(parent.st_mode & stat.S_ISVTX)
    )


@uninterrupted()
def remove_tree(path: Path) -> None:
    """Remove a file or a directory with its content, if it exists; a symlink is not followed.

    A signal waits until it is done.
    """
    with contextlib.suppress(FileNotFoundError):
        beneath.remove_tree(path)
