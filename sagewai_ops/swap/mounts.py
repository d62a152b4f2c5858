"""Which homes can be exchanged by their names: mount points cannot."""

import os
from collections.abc import Sequence
from pathlib import Path

from sagewai_ops.errors import TargetBusyError
from sagewai_ops.fs.free_space import nearest_existing
from sagewai_ops.fs.trust import is_trusted_directory
from sagewai_ops.fs.volumes import LOST_AND_FOUND, mounts
from sagewai_ops.swap.overlay import is_movable


def is_mount(path: Path) -> bool:
    """Return whether a path is a mount point, bind mounts of one file system included."""
    return os.path.ismount(path) or any(mount == path for mount, _type in mounts())


def mounts_below(path: Path) -> list[Path]:
    """Return the mount points inside a directory, itself excluded; empty without /proc."""
    return sorted(
        {mount for mount, _type in mounts() if mount != path and mount.is_relative_to(path)}
    )


def refuse_mounts(target: Path, paths: Sequence[str] | None) -> None:
    """Check that no part of a home that is exchanged is, or contains, a mount point.

    Args:
        paths: Parts of the home; None for the whole.

    Raises:
        TargetBusyError: A part is; exchanging names would leave it behind.
    """
    below = mounts_below(target)
    for part in paths if paths is not None else [""]:
        place = target / part
        mount = next((path for path in below if path.is_relative_to(place)), None)
        if mount or (part and os.path.ismount(place)):
            raise TargetBusyError(
                f"{mount or place}: a mount point, not exchangeable",
                hint="sagewai-ops restore SNAPSHOT --to DIR  # then copy from there",
            )


def can_swap_whole(target: Path) -> bool:
    """Return whether a home, which need not exist, can be exchanged or created by its name.

    It has no mounts, is not in a lower layer, and its directory is writable for this user and, in
    contrast to /tmp, for no other, who could replace staging and journal.
    """
    if not os.path.lexists(target):
        return is_trusted_directory(nearest_existing(target.parent))
    if not os.access(target.parent, os.W_OK | os.X_OK) or is_mount(target) or mounts_below(target):
        return False
    # lost+found belongs to the file system, and stays.
    if target.is_dir() and LOST_AND_FOUND in os.listdir(target):
        return False
    return is_trusted_directory(target.parent) and is_movable(target)
