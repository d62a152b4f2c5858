"""The database of a run: `--url-file`, `--sqlite`, else the variables, as Sagewai resolves them.

The option becomes the variable of the run, so that every part of it uses the same database. A URL
with a password is never an argument: arguments are in the process list.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sagewai_ops.database.url import VARIABLES, PostgresUrl, parse, resolve
from sagewai_ops.errors import NotFoundError, UsageError
from sagewai_ops.fs.given_files import decode_given, read_given_file
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.home.paths import DATABASE
from sagewai_ops.home.server_record import require_known_database
from sagewai_ops.text import shell_word

if TYPE_CHECKING:
    from sagewai_ops.cli.command import Run


def read_url_file(path: Path, option: str = "--url-file") -> str:
    """Read a database URL, the first line of a file.

    Args:
        option: That names the file.

    Raises:
        NotFoundError, UsageError: No such file, or its first line is empty.
    """
    with translate_os_errors(path):
        try:
            content = read_given_file(path, private="URL file")
        except FileNotFoundError:
            raise NotFoundError(
                f"{option} {path}: not found", hint=f"ls -l {shell_word(path)}"
            ) from None
    url = decode_given(content, f"{option} {path}").partition("\n")[0].strip()
    if not url:
        raise UsageError(f"{option} {path}: its first line is empty")
    return url


def scratch_server(url: str | None, url_file: Path | None) -> PostgresUrl | None:
    """Return the server on which a drill creates a database; None if no option names one.

    Raises:
        UsageError: Both options, or not the URL of a PostgreSQL database.
        NotFoundError: No such file.
    """
    if url and url_file:
        raise UsageError("--scratch-url and --scratch-url-file: one of them")
    if url_file:
        url = read_url_file(url_file, "--scratch-url-file")
    if not url:
        return None
    server = parse(url)
    if not isinstance(server, PostgresUrl):
        raise UsageError("--scratch-url: not the URL of a PostgreSQL server")
    return server


def given_server(run: Run, url: str | None, url_file: Path | None, command: str) -> PostgresUrl:
    """Return the server that an argument, a file or a variable names, in this order.

    Args:
        command: For messages.

    Raises:
        UsageError: Both of the first two, or not the URL of a PostgreSQL database.
        NotFoundError: No such file.
    """
    if url and url_file:
        raise UsageError("--url-file: the URL is given as well", hint="leave one of the two out")
    if url_file:
        url = read_url_file(url_file)
    found = parse(url) if url else resolve(run.settings.environment, run.home().database)
    if not isinstance(found, PostgresUrl):
        state = "the URL is not that" if url else "no URL"
        raise UsageError(
            f"{command}: {state} of a PostgreSQL database" + ("" if url else " is given"),
            hint=f"sagewai-ops {command} postgresql://USER@HOST/DATABASE",
        )
    return found


def with_database(
    run: Run,
    url_file: Path | None = None,
    *,
    url: str | None = None,
    sqlite: bool = False,
    required: bool = True,
) -> Run:
    """Return a run whose environment names the database that it uses.

    Args:
        url_file: Contains the URL; has priority over the variables.
        url: The URL itself.
        sqlite: Use the SQLite file of the home, whatever the variables and its record name.
        required: Whether a home whose database is on a server needs its URL.

    Raises:
        UsageError: Both options, no URL for a home whose tables were moved to a server, or none
            in the file.
        NotFoundError: No such file.
        DamagedError: The home's record of the server is not readable.
    """
    if sum(map(bool, (sqlite, url_file, url))) > 1:
        raise UsageError("--sqlite, --url-file and --database-url: one of them")
    url = read_url_file(url_file) if url_file else url
    if sqlite:
        url = f"sqlite:///{run.home().root / DATABASE}"
    if url:
        environment = {**run.settings.environment, VARIABLES[0]: url}
        return replace(run, settings=replace(run.settings, environment=environment))
    if required:
        require_known_database(run.home(), run.settings.environment)
    return run
