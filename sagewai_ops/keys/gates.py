"""What must hold before a home's key is exchanged."""

import os
from pathlib import Path

from sagewai_ops.database.urls import PostgresUrl
from sagewai_ops.database.usage import holders
from sagewai_ops.errors import PermissionDeniedError, TargetBusyError, shell_word
from sagewai_ops.home.paths import DATABASE, Home
from sagewai_ops.keys import server
from sagewai_ops.keys.rotation_journal import Journal
from sagewai_ops.processes import describe


def refuse_users(home: Home, url: PostgresUrl | None) -> None:
    """Make sure that nobody has the home open, who would go on with the old key.

    Raises:
        TargetBusyError: Somebody has; the message says who.
    """
    users = {
        user.pid: describe(user)
        for database in dict.fromkeys((home.database, home.root / DATABASE))
        for user in holders(database)
    }
    who = [*users.values(), *(server.sessions(url) if url else ())]
    if who:
        raise TargetBusyError(
            f"home {home.root}: in use by {', '.join(who)}",
            hint="stop it, then run it again: it would go on to seal with the old key",
        )


def refuse_unwritable(home: Home, journal: Journal) -> None:
    """Make sure that every folder may be written in which something is to be replaced.

    Raises:
        PermissionDeniedError: One may not.
    """
    files = [*journal.documents, *filter(None, [journal.database])]
    folders = [home.root, *((home.root / name).parent for name in files)]
    if journal.place:
        folders.append((home.root / journal.place).parent)
    for folder in dict.fromkeys(folders):
        if folder.is_dir() and not may_write(folder):
            raise PermissionDeniedError(
                f"{folder}: may not be written by uid {os.geteuid()}, nothing was changed",
                hint=f"ls -ld {shell_word(folder)}  # run as its owner, or mount it writable",
            )


def may_write(folder: Path) -> bool:
    """Tell whether files of a folder can be replaced."""
    effective = os.access in os.supports_effective_ids
    return os.access(folder, os.W_OK | os.X_OK, effective_ids=effective)
