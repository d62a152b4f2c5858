"""Where an export works: a private folder beside the home for the frozen copy, and its reports.

The copy holds what the home's database holds, secrets included: mode 0600 in a folder 0700, removed
at the end, and by the next export when a crash left it.
"""

import contextlib
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sagewai_ops import atomic
from sagewai_ops.errors import PermissionDeniedError
from sagewai_ops.home.paths import OWN_PREFIX, Home
from sagewai_ops.locks import exclusive, is_abandoned

PREFIX = f"{OWN_PREFIX}export-"


def folder_of(home: Home) -> Path:
    """Give the folder for reports: beside the home, as the snapshots are."""
    return home.root.with_name(home.root.name + ".exports")


@contextlib.contextmanager
def workplace(home: Home) -> Iterator[Path]:
    """Make a private folder for the block and remove it afterwards.

    Where nothing can be made beside the home, the system's folder for temporary files is used.

    Raises:
        NoSpaceError, PermissionDeniedError, OpsError: The system refused.
    """
    folder = folder_of(home)
    was_there = folder.is_dir()
    try:
        atomic.make_folder(folder)
        place = folder / f"{PREFIX}{secrets.token_hex(4)}"
        atomic.make_folder(place)
    except PermissionDeniedError:
        folder, was_there = atomic.temporary_folder(), True
        place = Path(tempfile.mkdtemp(prefix=PREFIX, dir=folder))
    try:
        with exclusive(place):
            _sweep(folder)
            yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        if not was_there:
            with contextlib.suppress(OSError):
                folder.rmdir()  # a plan leaves nothing; reports keep it


def _sweep(folder: Path) -> None:
    """Remove what exports left that were killed: a copy, or half a report."""
    for left in (*folder.glob(f"{PREFIX}*"), *folder.glob(".move-*.json.*.partial")):
        if is_abandoned(left):
            with contextlib.suppress(OSError):
                atomic.remove_tree(left)
