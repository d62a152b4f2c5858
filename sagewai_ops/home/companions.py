"""Programs that work next to Sagewai on its database, and what they add to a home: litestream.

litestream creates two tables in the database, and next to it a directory with copies of its pages
that it has not sent yet, and with the position of its replica. The tables belong in copies of the
file. The directory belongs to one file: next to another one it describes changes that never
happened, so a backup omits it, and what replaces the database removes it; litestream then begins
again with the whole database.
"""

import os

NAME = "litestream"
TABLES = frozenset(("_litestream_seq", "_litestream_lock"))
_SUFFIX = "-litestream"  # litestream.go, MetaDirSuffix
# Waits for its removal: litestream must not see a part of its directory.
DISCARDED = ".sagewai-ops-discard-litestream"
SOCKET = f"/run/{NAME}/{NAME}.sock"  # of the configuration that `schedule litestream` prints
STOP = f"systemctl stop {NAME}"


def companion_directory(database: str) -> str:
    """Return the path of litestream's directory for a database."""
    directory, name = os.path.split(database)
    return os.path.join(directory, f".{name}{_SUFFIX}")


def removal_note(directory: str) -> str:
    """Return the remark about a directory that the result of a command does not have."""
    return f"{directory}: removed, so litestream begins again with the whole database"


def is_companion_process(command: str) -> bool:
    """Return whether a command line is that of litestream."""
    return os.path.basename(command.split(" ", 1)[0]) == NAME
