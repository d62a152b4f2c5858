"""Directories of an overlay's lower layers, such as those of an image: they cannot be renamed.

Their files can. So the parts of such a home are exchanged file by file, and its directories stay.
"""

import contextlib
import errno
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from sagewai_ops.errors import TargetBusyError
from sagewai_ops.fs import beneath, volumes
from sagewai_ops.fs.tempdirs import working_directory
from sagewai_ops.home.paths import OWN_PREFIX, SIDECAR_SUFFIXES

_UNIONS = re.compile(r"overlay|aufs|unionfs")
_OCCUPIED = (errno.ENOTEMPTY, errno.EEXIST)


def is_movable(directory: Path) -> bool:
    """Return whether a directory can be renamed.

    On an overlay that is only known by trying, with a name that is not free.
    """
    if not _is_union(directory):
        return True
    with working_directory(directory.parent, f"{OWN_PREFIX}probe-") as probe:
        os.close(beneath.create_file(probe / "occupied", 0o600))
        return _can_rename(directory, probe)


def movable_paths(target: Path, content: Path, paths: Sequence[str]) -> tuple[str, ...]:
    """Return the parts of a home to exchange, with the entries of directories that cannot move.

    Args:
        content: The staged parts, in a directory that is not empty.
        paths: Relative to both.

    Raises:
        TargetBusyError: A directory that cannot move is to be replaced by a file.
    """
    if not _is_union(target):
        return tuple(paths)
    return tuple(found for path in paths for found in _expand(target, content, path))


def _expand(target: Path, content: Path, path: str) -> Iterator[str]:
    place, fresh = target / path, content / path
    if not beneath.is_directory(place):
        with contextlib.suppress(FileNotFoundError):
            # Copied to the upper layer by this, where its inode is the one that it keeps.
            status = beneath.status(place)
            beneath.set_times(place, status.st_mtime_ns, status.st_atime_ns)
        yield path
        return
    if _can_rename(place, content):
        yield path
        return
    names = set(beneath.list_directory(place))
    if beneath.is_directory(fresh):
        names.update(beneath.list_directory(fresh))
    elif beneath.exists(fresh):
        raise TargetBusyError(
            f"{place}: a directory of an overlay's lower layer, not replaceable by a file",
            hint="sagewai-ops restore SNAPSHOT --to DIR  # then copy from there",
        )
    # Logs first: SQLite would apply those of the previous database to the restored one.
    for name in sorted(names, key=lambda name: (not name.endswith(SIDECAR_SUFFIXES), name)):
        yield from _expand(target, content, f"{path}/{name}")


def _can_rename(directory: Path, occupied: Path) -> bool:
    """Return whether a directory could be renamed, by its rename to one that is not empty."""
    try:
        beneath.rename(directory, occupied)
    except OSError as error:
        if error.errno == errno.EXDEV:
            return False
        if error.errno not in _OCCUPIED:
            raise
    return True


def _is_union(path: Path) -> bool:
    """Return whether a path is in a file system of several layers."""
    return bool(_UNIONS.search(volumes.file_system(path)))
