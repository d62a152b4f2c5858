"""Where an export works: a private folder beside the home for the frozen copy, and its reports.

The copy holds what the home's database holds, secrets included: mode 0600 in a folder 0700, removed
at the end, and by the next export when a crash left it.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from sagewai_ops.errors import PermissionDeniedError
from sagewai_ops.export.target_session import MOVE, VERIFY
from sagewai_ops.fs import atomic
from sagewai_ops.fs.tempdirs import sweep_abandoned, working_folder
from sagewai_ops.home.paths import OWN_PREFIX, Home
from sagewai_ops.process.signals import uninterrupted

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
    with contextlib.ExitStack() as stack:
        try:
            with uninterrupted():
                atomic.make_folder(folder)
                stack.callback(_remove_empty, folder)
            place = stack.enter_context(working_folder(folder, PREFIX))
        except PermissionDeniedError:
            folder = atomic.temporary_folder()
            place = stack.enter_context(working_folder(folder, PREFIX))
        for purpose in (MOVE, VERIFY):  # halves of reports
            sweep_abandoned(folder, f".{purpose}-*.json.*.partial")
        yield place


def _remove_empty(folder: Path) -> None:
    """Remove the folder for reports: a plan leaves nothing, and a run that was killed made it."""
    with contextlib.suppress(OSError):
        folder.rmdir()
