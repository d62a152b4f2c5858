"""What the sealed values of a home open to, found without a line of the code under test.

Every token in every file of `config/` and `secrets/`, at the top, and in every cell of every table
counts, wherever it is; so a value that a rotation forgot shows as closed.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken

CLOSED = "closed"
_TOKEN = re.compile(rb"fernet:[A-Za-z0-9_=-]+")
_DIRECTORIES = ("", "config", "secrets")


def opened(root: Path, key: bytes, data_keys: Iterable[bytes] = ()) -> list[str]:
    """Open every token of a home with its one key.

    Args:
        data_keys: Of its projects, which open values too.

    Returns:
        What was in each, sorted; `closed` for one that does not open.
    """
    keys = [Fernet(each) for each in (key, *data_keys)]
    return sorted(_open(token, keys) for token in tokens(root))


def tokens(root: Path) -> Iterator[bytes]:
    """Yield every token of a home, as often as it is there."""
    for directory in _DIRECTORIES:
        for path in sorted((root / directory).iterdir()) if (root / directory).is_dir() else ():
            if path.is_file():
                yield from _TOKEN.findall(path.read_bytes())
    database = root / "db/sagewai.db"
    if database.exists():
        with contextlib.closing(sqlite3.connect(database)) as connection:
            connection.text_factory = bytes
            for cell in _cells(connection):
                yield from _TOKEN.findall(cell)


def _cells(connection: sqlite3.Connection) -> Iterator[bytes]:
    names = connection.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND sql NOT LIKE 'CREATE VIRTUAL%'"
    ).fetchall()
    for (name,) in names:
        for row in connection.execute(f'SELECT * FROM "{name.decode()}"'):
            yield from (cell for cell in row if isinstance(cell, bytes))


def _open(token: bytes, keys: list[Fernet]) -> str:
    for key in keys:
        with contextlib.suppress(InvalidToken):
            return key.decrypt(token[len(b"fernet:") :]).decode()
    return CLOSED
