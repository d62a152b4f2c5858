"""Free space on the file systems that a command writes to."""

import shutil
from pathlib import Path

from sagewai_ops.errors import NoSpaceError
from sagewai_ops.text import shell_word

_RESERVE_BYTES, _RESERVE_PART = 64 * 1024 * 1024, 20  # /dev/shm of a container has 64 MiB


def free_bytes(path: Path) -> int:
    """Return the free bytes of the file system of a path, which need not exist."""
    return shutil.disk_usage(nearest_existing(path)).free


def usable_bytes(path: Path) -> int:
    """Return the bytes that a file may get on a file system, some are left for other programs."""
    usage = shutil.disk_usage(nearest_existing(path))
    return max(0, usage.free - min(_RESERVE_BYTES, usage.total // _RESERVE_PART))


def require_free_bytes(path: Path, needed_bytes: int, *, option: str = "") -> None:
    """Check that a file system has enough free space.

    Args:
        path: Where the bytes are to be written; need not exist.
        option: The option that names another directory, for the hint; "" if the command has none.

    Raises:
        NoSpaceError: It has less.
    """
    free = free_bytes(path)
    if free < needed_bytes:
        other = f"or another directory: {option}" if option else "make room there"
        raise NoSpaceError(
            f"{path}: {free} bytes free, at least {needed_bytes} needed",
            hint=f"df -h {shell_word(nearest_existing(path))}  # {other}",
        )


def nearest_existing(path: Path) -> Path:
    """Return the path, or the closest directory above it that exists."""
    while not path.exists():
        path = path.parent
    return path
