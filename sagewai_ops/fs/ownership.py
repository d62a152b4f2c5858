"""Owners of the entries that this program creates in a home, which may be another user's.

What root creates there would be out of Sagewai's reach.
"""

import contextlib
import os
from pathlib import Path


def set_owner(entry: int | str | Path, uid: int, gid: int, *, dir_fd: int | None = None) -> None:
    """Set the user and the group of a new entry if this process is root, else change nothing.

    Args:
        entry: A descriptor, or a path; a symlink is changed itself.
        uid, gid: -1 for no change.
        dir_fd: The directory of a relative path.
    """
    if os.geteuid() != 0:
        return
    if isinstance(entry, int):
        os.fchown(entry, uid, gid)
    else:
        os.chown(entry, uid, gid, dir_fd=dir_fd, follow_symlinks=False)


def keep_owner(entry: int | Path, owner: os.stat_result) -> None:
    """Set user and group of an entry to those of the entry that it replaces.

    Raises:
        OSError: The user is another, and this process is not root.
    """
    own = os.stat(entry)
    if own.st_uid != owner.st_uid:
        os.chown(entry, owner.st_uid, owner.st_gid)
    elif own.st_gid != owner.st_gid:
        with contextlib.suppress(PermissionError):  # a group that the user has left
            os.chown(entry, -1, owner.st_gid)
