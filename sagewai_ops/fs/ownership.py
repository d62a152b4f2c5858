"""Owners of the entries that this program creates in a home, which may be another user's.

What root creates there would be out of Sagewai's reach.
"""

import contextlib
import os
from pathlib import Path

from sagewai_ops.fs import beneath


def set_owner(entry: int | str | Path, uid: int, gid: int, *, dir_fd: int | None = None) -> None:
    """Set the user and the group of a new entry if this process is root, else change nothing.

    Args:
        entry: A descriptor, or a path; a symlink is changed itself.
        uid, gid: -1 for no change.
        dir_fd: The directory of a symlink that is given by its name.
    """
    if os.geteuid() != 0:
        return
    if dir_fd is not None:
        beneath.set_link_owner(str(entry), uid, gid, dir_fd=dir_fd)
    else:
        beneath.set_owner(entry, uid, gid)


def keep_owner(entry: int | Path, owner: os.stat_result) -> None:
    """Set user and group of an entry to those of the entry that it replaces.

    Raises:
        OSError: The user is another, and this process is not root.
    """
    own = os.fstat(entry) if isinstance(entry, int) else beneath.status(entry)
    if own.st_uid != owner.st_uid:
        beneath.set_owner(entry, owner.st_uid, owner.st_gid)
    elif own.st_gid != owner.st_gid:
        with contextlib.suppress(PermissionError):  # a group that the user has left
            beneath.set_owner(entry, -1, owner.st_gid)
