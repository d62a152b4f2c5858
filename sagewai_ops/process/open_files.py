"""Find the processes that have files of a directory open, or locked.

Linux shows them in `/proc`: those of other users to root only, and those of other containers by
name only, because their paths differ. On other systems the result is empty, never wrong.
"""

import os
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from sagewai_ops.process.procfs import open_descriptors, read_locks, stat_fields


def find_openers(root: Path, files: Iterable[Path] = (), *, ignored: str = "") -> set[int]:
    """Return the numbers of the processes with a regular file below a directory open or locked.

    Not this process; nor, unless it is one of `files`, those that started it: a shell whose output
    is a file there.

    Args:
        root: The directory, resolved.
        files: Also found where another container has another path for them.
        ignored: Begins the names directly in the directory that do not count.
    """
    known = identities(files)
    if not known and _is_missing(root):
        return set()  # no process is asked: that takes as long as 20 MB of a restore
    prefix = os.fsencode(root) + b"/"
    names = {os.fsencode(path.name) for path in known.values()}
    users = {pid for _kind, pid, file in read_locks() if file in known}
    others: set[int] = set()
    for pid, links in open_descriptors():
        for link in links:
            path = _open_path(link, prefix, names, known)
            if path in known.values():
                users.add(pid)
            elif path and not os.fspath(path.relative_to(root)).startswith(ignored or "/"):
                others.add(pid)
    return users - {os.getpid()} | others - _own_ancestors()


def _open_path(
    link: str, prefix: bytes, names: set[bytes], known: Mapping[tuple[int, int], Path]
) -> Path | None:
    """Return the file of a descriptor, if it is known or a regular file below the directory."""
    try:
        # By name first: the status of a file on a dead file server can hang.
        path = os.readlink(os.fsencode(link))
        is_inside = path.startswith(prefix)
        if not is_inside and os.path.basename(path) not in names:
            return None
        status = os.stat(link)
        found = known.get((status.st_dev, status.st_ino))
        # The same path in another container is another file.
        if not found and is_inside and stat.S_ISREG(status.st_mode):
            found = Path(os.fsdecode(path)) if os.path.samestat(status, os.lstat(path)) else None
    except OSError:
        return None
    return found


def _is_missing(path: Path) -> bool:
    try:
        path.lstat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def identities(files: Iterable[Path]) -> dict[tuple[int, int], Path]:
    """Return the files that exist, by device and inode."""
    found = {}
    for path in files:
        with suppress(OSError):
            status = path.stat()
            found[status.st_dev, status.st_ino] = path
    return found


def _own_ancestors() -> set[int]:
    """Return this process and those that started it."""
    found, pid = set[int](), os.getpid()
    while pid > 1:
        found.add(pid)
        try:
            pid = int(stat_fields(pid)[1])
        except (OSError, ValueError, IndexError):
            break
    return found
