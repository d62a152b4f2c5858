"""The free space that a preflight compares with what its steps need."""

import os
from collections import Counter
from pathlib import Path

from sagewai_ops.database.sqlite.read_transaction import size_of
from sagewai_ops.fs.free_space import free_bytes, nearest_existing, require_free_bytes
from sagewai_ops.home.paths import SIDECAR_SUFFIXES, Home
from sagewai_ops.operations.status import walk_sizes
from sagewai_ops.records import dataclass
from sagewai_ops.remote.path import is_remote
from sagewai_ops.text import shell_word

_LEAST_ARCHIVE_SHARE = 0.2  # of the content: archives of homes have never been smaller


@dataclass(frozen=True, slots=True)
class Space:
    """Whether there is enough.

    Attributes:
        details, remedies: One line each; remedies are commands that show more.
        is_short: Whether the most that may be needed is not free.
    """

    content_bytes: int
    details: tuple[str, ...]
    remedies: tuple[str, ...]
    is_short: bool


def compare_space(home: Home, snapshots: Path, scratch: Path, *, has_snapshot: bool) -> Space:
    """Compare free space with what a snapshot, its drill and a restore need.

    Args:
        snapshots: Of a remote place the free space is unknown.
        has_snapshot: Whether a snapshot is created there.

    Raises:
        NoSpaceError: Less is free than they need at least.
    """
    content = sum(size_bytes for _part, size_bytes in walk_sizes(home.root))
    files = (home.database.with_name(home.database.name + end) for end in ("", *SIDECAR_SUFFIXES))
    database = sum(map(size_of, files))
    content += 0 if home.database.is_relative_to(home.root) else database
    paths = {"scratch": scratch, "home": home.root}
    if not is_remote(snapshots):
        paths = {"snapshots": snapshots, **paths}
    devices = {name: os.stat(nearest_existing(path)).st_dev for name, path in paths.items()}
    least, most = _needed_bytes(devices, content, database, has_snapshot=has_snapshot)
    details, remedies, is_short = [], [], False
    for name, path in paths.items():
        device = devices[name]
        require_free_bytes(path, least[device], option="--snapshots DIR, --work-dir DIR")
        # Restoring after a failed upgrade needs the size of the home on its file system.
        needed = most[device] + (content if name == "home" else 0)
        free = free_bytes(path)
        is_short = is_short or free < needed
        details.append(f"{name} {path}: {free} bytes free, up to {needed} needed")
        remedies.append(f"df -h {shell_word(nearest_existing(path))}")
    return Space(content, tuple(details), tuple(dict.fromkeys(remedies)), is_short)


def _needed_bytes(
    devices: dict[str, int], content: int, database: int, *, has_snapshot: bool
) -> tuple[Counter[int], Counter[int]]:
    """Return the least and the most bytes needed, by device number."""
    work = devices["scratch"]
    if not has_snapshot:
        return Counter({work: database}), Counter({work: database})
    copies = Counter({work: content})
    archives = devices.get("snapshots")
    if archives is None:
        return copies, copies
    # The copy of the database is removed before the drill begins.
    copies[archives] = max(database, copies[archives])
    least_archive = int(content * _LEAST_ARCHIVE_SHARE)
    return copies + Counter({archives: least_archive}), copies + Counter({archives: content})
