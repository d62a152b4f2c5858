"""Passwords of PostgreSQL connections whose URL has none: PGPASSWORD, else the pgpass file.

asyncpg reads the file too, but keeps the backslash of an escape in the password; libpq does not.
"""

from __future__ import annotations

import getpass
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from sagewai_ops.database.url import DEFAULT_PORT, PostgresUrl
from sagewai_ops.errors import PermissionDeniedError
from sagewai_ops.text import shell_word

_OTHERS = stat.S_IRWXG | stat.S_IRWXO
# Four fields, each ended by a colon, then the password; a backslash escapes the next character.
_FIELD = r"((?:\\.|[^:\\])*)"
_LINE = re.compile(":".join([_FIELD] * 5) + ".*")


def find(url: PostgresUrl, environment: Mapping[str, str]) -> str | None:
    """Find the password for a connection.

    Raises:
        PermissionDeniedError: The password file is readable by others, so libpq would not use it.

    Source: PostgreSQL manual, "The Password File".
    """
    if url.password is not None or "PGPASSWORD" in environment:
        return url.password or environment.get("PGPASSWORD")
    path = _path(url, environment)
    try:
        if not path.is_file():
            return None
        if path.stat().st_mode & _OTHERS:
            raise PermissionDeniedError(
                f"password file {path}: readable by others, so not used",
                hint=f"chmod 600 {shell_word(path)}",
            )
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError as error:
        raise PermissionDeniedError(f"password file {path}: {error.strerror}") from error
    user = url.user or environment.get("PGUSER") or getpass.getuser()
    database = url.database or environment.get("PGDATABASE") or user
    for host, port in _hosts(url, environment):
        # In the file the name of a socket is localhost.
        name = "localhost" if host.startswith("/") else host
        for line in lines:
            password = _matching(line, (name, port, database, user))
            if password is not None:
                return password
    return None


def _path(url: PostgresUrl, environment: Mapping[str, str]) -> Path:
    named = url.tls.get("passfile") or environment.get("PGPASSFILE")
    return Path(named) if named else Path(os.path.expanduser("~/.pgpass"))


def _hosts(url: PostgresUrl, environment: Mapping[str, str]) -> list[tuple[str, str]]:
    default = environment.get("PGPORT") or str(DEFAULT_PORT)
    if url.hosts:
        return [(host, str(port) if port else default) for host, port in url.hosts]
    return [(host, default) for host in (environment.get("PGHOST") or "localhost").split(",")]


def _matching(line: str, wanted: tuple[str, ...]) -> str | None:
    """Return the password of a line whose first four fields match the connection."""
    match = _LINE.fullmatch(line)
    if not match or line.startswith("#"):
        return None
    *fields, password = match.groups()
    for field, value in zip(fields, wanted, strict=True):
        if field not in ("*", value) and _unescape(field) != value:
            return None
    return _unescape(password)


def _unescape(field: str) -> str:
    return re.sub(r"\\(.)", r"\1", field)
