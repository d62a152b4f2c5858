"""What the system passes on the way to a path: who can change one of these leads it elsewhere."""

import os
import stat
from collections.abc import Container
from contextlib import suppress
from pathlib import Path

_MOST_LINKS = 40  # the kernel's own bound, path_resolution(7)


def way_to(path: Path) -> tuple[Path, ...]:
    """List each directory in which a name is looked up, and each link that is followed.

    Args:
        path: Need not exist; it leads as far as it goes.

    Returns:
        Without links in their own paths, in the order in which they are passed; what the path
        leads to at last is not among them.
    """
    passed: dict[Path, None] = {}
    at = Path("/")
    steps = [*reversed(path.absolute().parts[1:])]
    links = 0
    while steps and links <= _MOST_LINKS:
        step = steps.pop()
        if step == "..":
            at = at.parent
            continue
        passed[at] = None
        try:
            target = Path(os.readlink(at / step))
        except OSError:  # no link
            at /= step
            continue
        passed[at / step] = None
        links += 1
        if target.is_absolute():
            at = Path("/")
        steps.extend(reversed(target.parts[target.is_absolute() :]))
    return tuple(passed)


def weak_spot(path: Path, owner: int, known: Container[Path]) -> str:
    """Say in a phrase where somebody else can lead a path elsewhere; "" if nobody can.

    Args:
        owner: The uid that may, besides root.
        known: Directories and links that are judged already.
    """
    for passed in way_to(path):
        if passed in known:
            continue
        with suppress(OSError):
            status = os.lstat(passed)
            mode = stat.S_IMODE(status.st_mode)
            # In a sticky directory only the owner of an entry may rename or remove it.
            if stat.S_ISDIR(status.st_mode) and mode & 0o022 and not mode & stat.S_ISVTX:
                return f"{passed} has mode {mode:04o}, others can replace it"
            if status.st_uid not in (0, owner):
                return f"{passed} is owned by uid {status.st_uid}, who can replace it"
    return ""
