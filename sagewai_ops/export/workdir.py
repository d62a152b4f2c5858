"""The directory next to the home, `HOME.exports`, for the frozen copy and the reports.

The copy has all content of the home's database, secrets included: mode 0600 in a directory 0700,
removed at the end, or by the next export after a crash.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from sagewai_ops.errors import PermissionDeniedError
from sagewai_ops.fs import atomic, beneath
from sagewai_ops.fs.removal import sweep_leftovers
from sagewai_ops.fs.tempdirs import Keep, kept, working_directory
from sagewai_ops.home.paths import Home
from sagewai_ops.process.signals import uninterrupted
from sagewai_ops.swap import unfinished_export
from sagewai_ops.swap.unfinished_export import TEMPORARY


def export_directory(home: Home) -> Path:
    """Return the directory for reports, next to the home like its snapshots."""
    return home.root.with_name(home.root.name + ".exports")


def directory_of(home: Home, chosen: Path | None) -> Path:
    """Return the directory of a home's unfinished export, whether or not it has one.

    Args:
        chosen: As for `copy_directory`.
    """
    return unfinished_export.directory_of(home.root, chosen or export_directory(home))


@contextlib.contextmanager
def copy_directory(
    home: Home, chosen: Path | None = None, keep: Keep | None = None
) -> Iterator[Path]:
    """Create a private directory for the block and remove it afterwards.

    Args:
        chosen: Its parent; None for next to the home or, if that is not writable, the system's
            directory for temporary files.
        keep: As for `tempdirs.kept`.

    Raises:
        NoSpaceError, PermissionDeniedError, OpsError: It cannot be created.
    """
    directory = chosen or export_directory(home)
    with contextlib.ExitStack() as stack:
        try:
            with uninterrupted():
                if not chosen:
                    atomic.make_directory(directory)
                    stack.callback(_remove_empty, directory)
            place = stack.enter_context(working_directory(directory, TEMPORARY))
        except PermissionDeniedError:
            if chosen:
                raise
            directory = atomic.temporary_directory()
            place = stack.enter_context(working_directory(directory, TEMPORARY))
        sweep_reports(directory)
        yield stack.enter_context(kept(place, keep))


def sweep_reports(directory: Path) -> None:
    """Remove the halves of reports of killed runs."""
    from sagewai_ops.export.target_session import MOVE, VERIFY  # `status` needs no asyncio

    for purpose in (MOVE, VERIFY) if beneath.exists(directory) else ():
        sweep_leftovers(directory, atomic.partial_names(rf"{purpose}-.*\.json"))


def _remove_empty(directory: Path) -> None:
    """Remove the directory for reports if it is empty: a plan leaves nothing."""
    with contextlib.suppress(OSError):
        beneath.remove_directory(directory)
