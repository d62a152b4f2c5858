"""Passwords of PostgreSQL connections whose URL has none: PGPASSWORD, else the pgpass file.

asyncpg reads the file too, but keeps the backslash of an escape in the password; libpq does not.
"""

from __future__ import annotations

import codecs
import getpass
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from sagewai_ops.database.url import DEFAULT_PORT, PostgresUrl
from sagewai_ops.errors import PermissionDeniedError, UsageError
from sagewai_ops.fs.given_files import read_given_file
from sagewai_ops.text import shell_word

_OTHERS = stat.S_IRWXG | stat.S_IRWXO
# Four fields, each ended by a colon, then the password; a backslash escapes the next character.
_FIELD = r"((?:\\.|[^:\\])*)"
_LINE = re.compile(":".join([_FIELD] * 5) + ".*")


def find(
    url: PostgresUrl, environment: Mapping[str, str], host: str | None, port: int | None
) -> str | None:
    """Find the password for a connection to one of the hosts.

    Args:
        host: None means the default socket or localhost.
        port: None means PGPORT or the default.

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
        lines = (
            read_given_file(path)
            .removeprefix(codecs.BOM_UTF8)
            .decode("utf-8", "surrogateescape")
            .splitlines()
        )
    except OSError as error:
        raise PermissionDeniedError(f"password file {path}: {error.strerror}") from error
    user = url.user or environment.get("PGUSER") or _own_name()
    database = url.database or environment.get("PGDATABASE") or user
    # In the file the name of a socket is localhost.
    name = "localhost" if host is None or host.startswith("/") else host
    number = str(port or environment.get("PGPORT") or DEFAULT_PORT)
    for line in lines:
        password = _matching(line, (name, number, database, user))
        if password is not None:
            return password
    return None


def hosts(
    url: PostgresUrl, environment: Mapping[str, str]
) -> tuple[tuple[str | None, int | None], ...]:
    """Return the hosts with their ports, in the order in which they are tried.

    Raises:
        UsageError: PGPORT has another number of ports than there are hosts.
    """
    named = [part for part in environment.get("PGHOST", "").split(",") if part]
    found = url.hosts or tuple((host, None) for host in named) or ((None, None),)
    listed = environment.get("PGPORT", "").split(",")
    ports = [int(port) if port.isascii() and port.isdecimal() else None for port in listed]
    if len(ports) == 1:
        ports *= len(found)
    if len(ports) != len(found):
        raise UsageError(f"PGPORT: {len(ports)} ports for {len(found)} hosts")
    if any(port for _, port in url.hosts):  # as in libpq, the URL comes first
        ports = [DEFAULT_PORT] * len(found)
    return tuple((host, port or other) for (host, port), other in zip(found, ports, strict=True))


def _path(url: PostgresUrl, environment: Mapping[str, str]) -> Path:
    named = url.tls.get("passfile") or environment.get("PGPASSFILE")
    return Path(named) if named else Path(os.path.expanduser("~/.pgpass"))


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


def _own_name() -> str:
    """Return the name of the user, as libpq does; "" without an entry in the user database."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""
