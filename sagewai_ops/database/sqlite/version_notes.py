"""Known bugs of the SQLite library that this Python loads.

Nothing here opens a database. Another program on the same home, such as Sagewai, may load another
version; a distribution may have fixed a bug without a new version number.
"""

# The WAL-reset bug: a checkpoint that races with a commit can lose committed transactions, or
# damage the file. It needs WAL mode and two connections that write or checkpoint at the same time.
# Source: https://sqlite.org/wal.html#walresetbug
FIRST_WITH_WAL = (3, 7, 0)
WAL_RESET_FIXED = ((3, 44, 6), (3, 50, 7), (3, 51, 3))  # the first two for their branches alone

Version = tuple[int, int, int]


def has_wal_reset_bug(version: Version) -> bool:
    """Return whether a version of SQLite can damage a WAL database that has two writers."""
    *branches, fixed = WAL_RESET_FIXED
    if not FIRST_WITH_WAL <= version < fixed:
        return False
    return not any(version[:2] == branch[:2] and version >= branch for branch in branches)


def version_note(version: Version, journal_mode: str) -> str:
    """Return a warning about a library and a database that it opens, or "".

    Args:
        version: From `sqlite3.sqlite_version_info`.
        journal_mode: Of the database, from `PRAGMA journal_mode`.
    """
    if journal_mode != "wal" or not has_wal_reset_bug(version):
        return ""
    number = ".".join(map(str, version))
    return (
        f"SQLite {number} has the WAL-reset bug, which can damage a database with two writers"
        " (rare): let one program write at a time, or use a Python with SQLite 3.51.3;"
        " docs/database.md"
    )
