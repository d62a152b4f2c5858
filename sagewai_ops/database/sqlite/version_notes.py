"""The SQLite library that this Python runs: what is known against a version of it.

Nothing here opens a database. Another program on the same home, Sagewai among them, may run another
version; a distribution may have mended its own without a new number.
"""

# The WAL-reset bug: a checkpoint that races with a commit can lose what was committed, or damage
# the file. It needs WAL mode and two connections that write or checkpoint at the same moment.
# Source: https://sqlite.org/wal.html#walresetbug
FIRST_WITH_WAL = (3, 7, 0)
WAL_RESET_FIXED = ((3, 44, 6), (3, 50, 7), (3, 51, 3))  # the first two for their branches alone

Version = tuple[int, int, int]


def has_wal_reset_bug(version: Version) -> bool:
    """Tell whether a version of SQLite can damage a WAL database under two writers."""
    *branches, fixed = WAL_RESET_FIXED
    if not FIRST_WITH_WAL <= version < fixed:
        return False
    return not any(version[:2] == branch[:2] and version >= branch for branch in branches)


def version_note(version: Version, journal_mode: str) -> str:
    """Say what a person should know of a library and a database together; "" if nothing.

    Args:
        version: As `sqlite3.sqlite_version_info` has it.
        journal_mode: Of the database, as `PRAGMA journal_mode` names it.
    """
    if journal_mode != "wal" or not has_wal_reset_bug(version):
        return ""
    spelled = ".".join(map(str, version))
    return (
        f"SQLite {spelled} has the WAL-reset bug, which can damage a database with two writers"
        " (rare; mended in 3.51.3): docs/database.md"
    )
