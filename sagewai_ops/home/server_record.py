"""The record of the database server that a home's tables were moved to, in `db/server.json`.

Sagewai finds its server through a variable, and a shell without it finds the home's old SQLite
file. So an export writes this record, and a command that needs the database refuses to mistake that
file for it. Host, port, database and time, no user and no password; Sagewai ignores it, snapshots
include it. It is evidence, not configuration: nothing connects to what it names.
"""

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sagewai_ops.database.url import DEFAULT_PORT, VARIABLES, PostgresUrl, SqliteUrl, resolve
from sagewai_ops.errors import DamagedError, UsageError
from sagewai_ops.fs import atomic, beneath
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.home.paths import DATABASE, Home
from sagewai_ops.records import dataclass
from sagewai_ops.text import printable, shell_word

PLACE = "db/server.json"  # not in config/: a restore of that part alone would remove it
_VERSION = 1
_MOST_BYTES = 64 * 1024
_TIME = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True, slots=True)
class ServerRecord:
    """The database that a home's tables were moved to.

    Attributes:
        host: Name, address or socket directory, several with commas; "" for the default socket.
        port: As many as hosts.
        database: "" for that of the user's name.
        recorded_at: UTC, ISO 8601.
    """

    host: str
    port: str
    database: str
    recorded_at: str

    @property
    def display(self) -> str:
        """Its name in messages; the content of the file is not trusted."""
        pairs = zip(self.host.split(","), self.port.split(","), strict=False)
        hosts = ",".join(f"{host}:{port}" for host, port in pairs)
        return printable(f"postgresql://{hosts}/{self.database}")


def record_of(
    url: PostgresUrl, environment: Mapping[str, str], moment: datetime | None = None
) -> ServerRecord:
    """Return the record of a database.

    Args:
        environment: PGHOST, PGPORT and PGDATABASE complete the URL.
    """
    default = environment.get("PGPORT") or str(DEFAULT_PORT)
    hosts = [(host, str(port or default)) for host, port in url.hosts]
    if not hosts:
        named = environment.get("PGHOST", "").split(",")
        ports = default.split(",")
        hosts = [(host, ports[min(index, len(ports) - 1)]) for index, host in enumerate(named)]
    return ServerRecord(
        host=",".join(host for host, _port in hosts),
        port=",".join(port for _host, port in hosts),
        database=url.database or environment.get("PGDATABASE", ""),
        recorded_at=f"{moment or datetime.now(timezone.utc):{_TIME}}",
    )


def read_server_record(root: Path) -> ServerRecord | None:
    """Return the record of a home; None without one.

    Raises:
        DamagedError: The file is there, and is no record.
    """
    path = root / PLACE
    try:
        with open(beneath.open_file(path), "rb", buffering=0) as stream:
            document = json.loads(stream.read(_MOST_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "not JSON"
        raise _damaged(path, str(reason).lower()) from error
    return _parse(path, document)


def write_server_record(home: Home, record: ServerRecord) -> bool:
    """Write the record of a home, unless it names the same database already.

    Returns:
        Whether it was written.

    Raises:
        NoSpaceError, PermissionDeniedError, OpsError: It is unchanged.
    """
    path = home.root / PLACE
    with contextlib.suppress(DamagedError):
        before = read_server_record(home.root)
        if before and before.display == record.display:
            return False
    content = {"version": _VERSION, **asdict(record)}
    with translate_os_errors(path):
        atomic.make_directory(path.parent, owner=os.stat(home.root))
        owner = os.stat(path.parent)
        atomic.replace(path, json.dumps(content, indent=1).encode() + b"\n", owner=owner)
    return True


def resolve_database(home: Home, environment: Mapping[str, str]) -> SqliteUrl | PostgresUrl:
    """Return the database that Sagewai uses.

    Raises:
        UsageError: No variable names it, but the home's tables were moved to a server; or a
            variable is not a database URL.
        DamagedError: The home's record of the server is not readable.
    """
    require_known_database(home, environment)
    return resolve(environment, home.database)


def require_known_database(home: Home, environment: Mapping[str, str]) -> None:
    """Check that a variable names the database of a home whose tables were moved to a server.

    Raises:
        UsageError: None does.
        DamagedError: The home's record of the server is not readable.
    """
    if any(environment.get(variable) for variable in VARIABLES):
        return
    record = read_server_record(home.root)
    if record is None:
        return
    raise UsageError(
        f"home {home.root}: its database is {record.display} since {printable(record.recorded_at)},"
        f" but neither {' nor '.join(VARIABLES)} is set",
        hint=f"export {VARIABLES[0]}=postgresql://USER@HOST/DATABASE  # or --url-file FILE\n"
        f"rm {shell_word(home.root / PLACE)}"
        f"  # if the home uses {DATABASE} again; --sqlite: for one run",
    )


def server_name(home: Home, environment: Mapping[str, str]) -> str:
    """Return the name of the server's database that a home uses; "" for a home on SQLite."""
    try:
        database = resolve_database(home, environment)
    except DamagedError as error:
        return error.message
    except UsageError:
        record = None if home.server_url_variable else read_server_record(home.root)
        return record.display if record else home.server_url_variable
    return database.display if isinstance(database, PostgresUrl) else ""


def _parse(path: Path, document: Any) -> ServerRecord:
    names = [field.name for field in fields(ServerRecord)]
    if not isinstance(document, dict) or document.get("version") != _VERSION:
        raise _damaged(path, "not a record of a version that this program knows")
    if not all(isinstance(document.get(name), str) for name in names):
        raise _damaged(path, "incomplete")
    return ServerRecord(*(document[name] for name in names))


def _damaged(path: Path, reason: str) -> DamagedError:
    return DamagedError(
        f"{path}: {reason}; it names the database server of the home",
        hint=f"cat {shell_word(path)}  # sagewai-ops db upgrade writes it again",
    )
