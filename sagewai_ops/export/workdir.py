"""Where an export works: a private directory beside the home for the frozen copy, and its reports.

The copy holds what the home's database holds, secrets included: mode 0600 in a directory 0700,
removed at the end, and by the next export when a crash left it.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from sagewai_ops.errors import PermissionDeniedError
from sagewai_ops.export.target_session import MOVE, VERIFY
from sagewai_ops.fs import atomic
from sagewai_ops.fs.removal import sweep_leftovers
from sagewai_ops.fs.tempdirs import working_directory
from sagewai_ops.home.paths import OWN_PREFIX, Home
from sagewai_ops.process.signals import uninterrupted

PREFIX = f"{OWN_PREFIX}export-"


def directory_of(home: Home) -> Path:
    """Give the directory for reports: beside the home, as the snapshots are."""
    return home.root.with_name(home.root.name + ".exports")


@contextlib.contextmanager
def workplace(home: Home) -> Iterator[Path]:
    """Make a private directory for the block and remove it afterwards.

    Where nothing can be made beside the home, the system's directory for temporary files is used.

    Raises:
        NoSpaceError, PermissionDeniedError, OpsError: The system refused.
    """
    directory = directory_of(home)
    with contextlib.ExitStack() as stack:
        try:
            with uninterrupted():
                atomic.make_directory(directory)
                stack.callback(_remove_empty, directory)
            place = stack.enter_context(working_directory(directory, PREFIX))
        except PermissionDeniedError:
            directory = atomic.temporary_directory()
            place = stack.enter_context(working_directory(directory, PREFIX))
        for purpose in (MOVE, VERIFY):  # halves of reports
            sweep_leftovers(directory, atomic.partial_names(rf"{purpose}-.*\.json"))
        yield place


def _remove_empty(directory: Path) -> None:
    """Remove the directory for reports if it is empty: a plan leaves nothing."""
    with contextlib.suppress(OSError):
        directory.rmdir()
