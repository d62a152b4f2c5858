"""What file systems differ in: what they put into their root, and what they cannot do.

A file system without modes, locks or syncs of directories (SMB, exFAT, WebDAV, some of FUSE, NFS
without its lock daemon) is used nevertheless. Each guarantee that is missing there is noted once,
for the warnings of the run.
"""

import errno
import os
import stat

LOST_AND_FOUND = "lost+found"  # of ext2 to ext4; only root reads it

UNSUPPORTED = frozenset(
    {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOTTY, errno.ENOLCK}
)
_OTHERS = stat.S_IRWXG | stat.S_IRWXO

_notes: dict[tuple[int, str], str] = {}


def is_lost_and_found(directory: str, name: str) -> bool:
    """Return whether an entry is the directory that a file system has for its own repair.

    It is one in the root of a file system, and in a home, which can have been one.
    """
    if name != LOST_AND_FOUND:
        return False
    path = os.path.join(directory, name)
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return True


def names_in(directory: str | os.PathLike[str]) -> list[str]:
    """Return the names in a directory, without `lost+found`: of a new volume, none."""
    text = os.fspath(directory)
    return [name for name in os.listdir(text) if not is_lost_and_found(text, name)]


def lacks(error: OSError) -> bool:
    """Return whether an error means that the file system does not have the operation."""
    return error.errno in UNSUPPORTED


def accepts_mode(error: OSError, found_mode: int, mode: int) -> bool:
    """Return whether a mode that could not be set is right already, or as right as it can be.

    File systems without modes answer EPERM too, but so does any for another user's file.
    """
    if lacks(error):
        return True
    return (
        error.errno == errno.EPERM and not _excess(found_mode, mode) and not _lack(found_mode, mode)
    )


def note_mode(status: os.stat_result, mode: int, path: str) -> None:
    """Note that the file system did not keep a mode, if other users have more access by that."""
    if _excess(status.st_mode, mode):
        note(
            status.st_dev,
            "modes",
            f"{path}: mode {stat.S_IMODE(status.st_mode):04o} instead of {mode & 0o7777:04o}:"
            " this file system keeps no modes, and other users may read what is written there",
        )


def note(device: int, guarantee: str, text: str) -> None:
    """Note a guarantee that is missing on a file system, once for each."""
    _notes.setdefault((device, guarantee), text)


def take_notes() -> list[str]:
    """Return the notes since the last call."""
    notes = list(_notes.values())
    _notes.clear()
    return notes


def _excess(found: int, mode: int) -> int:
    return found & ~mode & _OTHERS


def _lack(found: int, mode: int) -> int:
    return mode & ~found & stat.S_IRWXU
