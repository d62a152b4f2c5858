"""Remove trees, and what runs that were killed left."""

import contextlib
import os
import re
import secrets
import shutil
import stat
from pathlib import Path

from sagewai_ops.fs import locks
from sagewai_ops.process.signals import uninterrupted

_DEEP = ".deep-"  # directories of a tree that is being removed
_WRITABLE = 0o700


def sweep_leftovers(directory: Path, names: re.Pattern[str]) -> list[str]:
    """Remove the entries of dead runs whose names match, and return these names.

    Entries that a live process has locked, or that cannot be removed, stay.
    """
    try:
        entries = sorted(os.listdir(directory))
    except OSError:
        return []
    return [
        name for name in entries if names.fullmatch(name) and remove_abandoned(directory / name)
    ]


def remove_abandoned(path: Path) -> bool:
    """Remove an entry unless a live process has locked it; return whether it was removed."""
    with contextlib.suppress(OSError):
        if locks.is_abandoned(path):
            remove_tree(path)
            return True
    return False


@uninterrupted()
def remove_tree(path: Path) -> None:
    """Remove a file or a directory with its content, if it exists; a symlink is not followed.

    A signal waits until it is done.
    """
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            try:
                shutil.rmtree(path)
            except (RecursionError, PermissionError):
                _remove_deep_tree(path)
        else:
            os.unlink(path)


def _remove_deep_tree(path: Path) -> None:
    """Remove a tree that nests deeper than calls can, or with directories that are not writable.

    Each directory in it is made writable and moved to the top.
    """
    waiting = [path]
    while waiting:
        directory = waiting.pop()
        os.chmod(directory, _WRITABLE)
        with os.scandir(directory) as scan:
            entries = list(scan)  # before any is moved, for the top is one of these directories
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                os.chmod(entry.path, _WRITABLE)  # to move a directory is to write to it
                top = path / f"{_DEEP}{secrets.token_hex(8)}"
                os.rename(entry.path, top)
                waiting.append(top)
            else:
                os.unlink(entry.path)
        if directory != path:
            os.rmdir(directory)
    os.rmdir(path)
