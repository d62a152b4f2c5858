"""What must hold before a home's key is exchanged."""

from sagewai_ops.database.sqlite.in_use import holders
from sagewai_ops.database.url import PostgresUrl
from sagewai_ops.errors import TargetBusyError
from sagewai_ops.fs import atomic
from sagewai_ops.home.paths import DATABASE, Home
from sagewai_ops.keys import postgres
from sagewai_ops.keys.rotation_journal import Journal
from sagewai_ops.process.procfs import describe


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
    who = [*users.values(), *(postgres.sessions(url) if url else ())]
    if who:
        raise TargetBusyError(
            f"home {home.root}: in use by {', '.join(who)}",
            hint="stop it, then run it again: it would go on to seal with the old key",
        )


def refuse_unwritable(home: Home, journal: Journal) -> None:
    """Make sure that every directory may be written in which something is to be replaced.

    Raises:
        PermissionDeniedError: One may not.
    """
    files = [*journal.documents, *filter(None, [journal.database])]
    directories = [home.root, *((home.root / name).parent for name in files)]
    if journal.place:
        directories.append((home.root / journal.place).parent)
    atomic.require_writable(
        directory for directory in dict.fromkeys(directories) if directory.is_dir()
    )
