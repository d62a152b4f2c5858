"""What file systems differ in: what they put into their root, and what they cannot do.

A file system without modes, locks or syncs of directories (SMB, exFAT, WebDAV, some of FUSE, NFS
without its lock daemon) is used nevertheless. Each guarantee that is missing there is noted once,
for the warnings of the run.
"""

import errno
import os
import re
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

LOST_AND_FOUND = "lost+found"  # of ext2 to ext4; only root reads it

_LOST_AND_FOUND_INODE = 11  # the first one of ext4; a bind mount is not seen as a mount

_MOST_DIRECTORIES = 1000

_MOUNT_TABLE = Path("/proc/self/mountinfo")
_OCTAL = re.compile(r"\\(\d{3})")  # proc(5): blanks and backslashes in a path

UNSUPPORTED = frozenset(
    {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOTTY, errno.ENOLCK}
)
_OTHERS = stat.S_IRWXG | stat.S_IRWXO

_notes: dict[tuple[int, str], str] = {}


def is_lost_and_found(
    directory: str | os.PathLike[str], name: str, *, is_top: bool = False
) -> bool:
    """Return whether an entry is the directory that a file system has for its own repair.

    Args:
        is_top: Whether the directory is a home or a snapshot directory: each can be a volume that
            was copied.
    """
    if name != LOST_AND_FOUND:
        return False
    try:
        found = os.lstat(os.path.join(directory, name))
    except OSError:
        return False
    is_root = is_top or found.st_ino == _LOST_AND_FOUND_INODE or os.path.ismount(directory)
    return stat.S_ISDIR(found.st_mode) and is_root


def names_in(directory: str | os.PathLike[str]) -> list[str]:
    """Return the names in a directory without `lost+found`: a new volume is empty."""
    return [
        name
        for name in os.listdir(directory)
        if not is_lost_and_found(directory, name, is_top=True)
    ]


def has_only_directories(directory: str | os.PathLike[str], besides: Collection[str] = ()) -> bool:
    """Return whether nothing would be lost with what a directory contains: no file, no link.

    One that cannot be read, or has more than a thousand directories, counts as content.

    Args:
        besides: Names in it that are not examined.
    """
    remaining = [
        os.path.join(directory, name) for name in names_in(directory) if name not in besides
    ]
    for _number in range(_MOST_DIRECTORIES):
        if not remaining:
            return True
        path = remaining.pop()
        try:
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                return False
            with os.scandir(path) as entries:
                for entry in entries:
                    if not entry.is_dir(follow_symlinks=False):
                        return False
                    remaining.append(entry.path)
        except OSError:
            return False
    return not remaining


def mounts() -> Iterator[tuple[Path, str]]:
    """Yield the mount points and the types of their file systems; none without /proc."""
    # A bind mount has the device of its parent, so `ismount` does not see it; Linux lists it.
    try:
        lines = _MOUNT_TABLE.read_bytes().splitlines()
    except OSError:
        return
    for line in lines:
        words, _, more = line.partition(b" - ")
        name = os.fsdecode(words.split()[4])
        kind = os.fsdecode(more.split()[0]) if more else ""
        yield Path(_OCTAL.sub(lambda match: chr(int(match[1], 8)), name)), kind


def file_system(path: Path) -> str:
    """Return the type of the file system of a resolved path, such as ext4; "" if unknown."""
    found, longest = "", -1
    for mount, kind in mounts():
        if path.is_relative_to(mount) and len(mount.parts) >= longest:  # a later one is on top
            found, longest = kind, len(mount.parts)
    return found


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
