"""Small homes for the tests of snapshots, and what there is to compare of them."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
from pathlib import Path
from typing import Any

from home_builder import BuiltHome, build_home

# What a snapshot does not contain of a home, by its name alone.
SCRATCH = ("db/sagewai.db-wal", "db/sagewai.db-shm", "config/admin-state.json.lock")

MARK = ".sagewai-ops-snapshots.json"


def small(root: Path, **recipe: Any) -> BuiltHome:
    """Build a home of 1.4 MB with a row in each table and everything in its WAL."""
    choices = {"rows": 1, "vectors": 0, "artifacts": False, "leftovers": False} | recipe
    return build_home(root, **{"journal": "everything", **choices})


def everything_of(root: Path) -> dict[str, tuple[int, int, bytes | str]]:
    """Map each path below a directory to its mode, time in ns, and content or link target.

    Of a `-shm` only the name counts: it is scratch memory, which SQLite may rewrite at any look.
    The high-water mark of the snapshots is left out: every backup writes it.
    """
    found: dict[str, tuple[int, int, bytes | str]] = {}
    for directory, directories, files in os.walk(root):
        for name in (*directories, *files):
            path = os.path.join(directory, name)
            relative = os.path.relpath(path, root)
            if relative == MARK:
                continue
            status = os.lstat(path)
            content: bytes | str = ""
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(status.st_mode) and not name.endswith("-shm"):
                content = Path(path).read_bytes()
            moment = 0 if name.endswith("-shm") else status.st_mtime_ns
            found[relative] = (status.st_mode, moment, content)
    return found


def rows_of(database: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Read every row of every ordinary table of a database, in the order of its rowids.

    The database may have a `-wal` next to it, and is left as it is but for its sidecars.
    """
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.text_factory = bytes
        names = connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table'"
            " AND sql NOT LIKE 'CREATE VIRTUAL%' AND name NOT LIKE 'sqlite~_%' ESCAPE '~'"
        ).fetchall()
        return {
            name.decode(): connection.execute(f'SELECT * FROM "{name.decode()}"').fetchall()
            for (name,) in names
        }


def recode(database: Path, encoding: str) -> None:
    """Recode a database, which SQLite does for an empty one only; no vec0 in it."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        script = "\n".join(connection.iterdump())
    for suffix in ("", "-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute(f"PRAGMA encoding = '{encoding}'")
        connection.executescript(script)
    database.chmod(0o600)
