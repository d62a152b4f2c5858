"""Remove what litestream keeps next to a database that is to be replaced."""

import contextlib
import os
from pathlib import Path

from sagewai_ops.fs import beneath
from sagewai_ops.home.companions import DISCARDED, companion_directory
from sagewai_ops.process.signals import uninterrupted


def remove_companions(database: Path) -> tuple[Path, ...]:
    """Remove the directories of litestream, which no process has open, and return their paths.

    Each is renamed first, so that a killed removal leaves no part of it to litestream; the next
    removal completes that one. Without it, litestream begins again with the whole database, so it
    can be removed before the database changes, whatever becomes of that.

    Args:
        database: The path that litestream was given, or the same through links; need not exist.

    Raises:
        OSError: The system refused.
    """
    removed = []
    for path in find_companions(database):
        discarded = path.with_name(DISCARDED)
        with contextlib.suppress(FileNotFoundError):
            beneath.remove_tree(discarded)
        if path.name != DISCARDED:
            with uninterrupted():  # a signal leaves all of it or nothing
                beneath.rename(path, discarded)
                beneath.sync_directory(path.parent)
                beneath.remove_tree(discarded)
            removed.append(path)
    return tuple(removed)


def find_companions(database: Path) -> tuple[Path, ...]:
    """Return the directories of litestream for a database, with those whose removal was killed."""
    found: dict[Path, None] = {}
    for name in (database, Path(os.path.realpath(database))):
        # Only the last part of a path may be a link here.
        directory = Path(os.path.realpath(name.parent))
        for own in (Path(companion_directory(name.name)).name, DISCARDED):
            if beneath.exists(directory / own):
                found[directory / own] = None
    return tuple(found)
