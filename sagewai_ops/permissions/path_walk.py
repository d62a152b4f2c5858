"""The directories and links through which the system resolves a path.

A user who can change one of them can redirect the path.
"""

import os
import stat
from collections.abc import Container
from contextlib import suppress
from pathlib import Path

_MOST_LINKS = 40  # the kernel's limit, path_resolution(7)


def resolution_steps(path: Path) -> tuple[Path, ...]:
    """Return each directory in which a name of a path is looked up, and each link.

    Args:
        path: Need not exist; it is resolved as far as it does.

    Returns:
        Paths without links in them, in the order of the resolution; without the entry to which the
        path resolves.
    """
    passed: dict[Path, None] = {}
    directory = Path("/")
    steps = [*reversed(path.absolute().parts[1:])]
    links = 0
    while steps and links <= _MOST_LINKS:
        step = steps.pop()
        if step == "..":
            directory = directory.parent
            continue
        passed[directory] = None
        try:
            target = Path(os.readlink(directory / step))
        except OSError:  # not a link
            directory /= step
            continue
        passed[directory / step] = None
        links += 1
        if target.is_absolute():
            directory = Path("/")
        steps.extend(reversed(target.parts[target.is_absolute() :]))
    return tuple(passed)


def find_replaceable_step(path: Path, owner: int, known: Container[Path]) -> str:
    """Return a phrase about the first step of a path that other users can replace; "" if none.

    Args:
        owner: The uid that can, besides root.
        known: Steps that are checked already.
    """
    for step in resolution_steps(path):
        if step in known:
            continue
        with suppress(OSError):
            status = os.lstat(step)
            mode = stat.S_IMODE(status.st_mode)
            # In a sticky directory only the owner of an entry can rename or remove it.
            if stat.S_ISDIR(status.st_mode) and mode & 0o022 and not mode & stat.S_ISVTX:
                return f"{step} has mode {mode:04o}, others can replace it"
            if status.st_uid not in (0, owner):
                return f"{step} is owned by uid {status.st_uid}, who can replace it"
    return ""
