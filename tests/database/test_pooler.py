"""Through PgBouncer in transaction mode: commands work, and nothing is left in its sessions."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from postgres_server import Server, _servant, free_port
from program import PATIENCE_SECONDS, call
from sagewai_ops.database.postgres.connection import open_transaction
from sagewai_ops.database.url import PostgresUrl, parse
from sagewai_ops.errors import RemoteError
from sagewai_ops.schema import check_postgres, migrate_postgres, rehearse_postgres
from sagewai_ops.snapshots.catalog import list_snapshots
from server_homes import make_server_home

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
pytestmark = pytest.mark.skipif(PGBOUNCER is None, reason="PgBouncer is not installed")

LEFT = """
SELECT (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'),
  (SELECT count(*) FROM pg_prepared_statements),
  current_setting('statement_timeout'), current_setting('TimeZone'),
  current_setting('search_path'), current_setting('row_security')
"""


class Pooler:
    """A PgBouncer in front of a server, with few server connections for each database."""

    def __init__(self, server: Server, mode: str, connections: int = 1) -> None:
        self.port = free_port()
        user, group = _servant()
        self._directory = Path(tempfile.mkdtemp(prefix="ops-pooler-"))
        self._directory.chmod(0o755)
        settings = self._directory / "pgbouncer.ini"
        settings.write_text(
            f"[databases]\n* = host={server.sockets} port={server.port} user=postgres\n"
            f"[pgbouncer]\nlisten_addr=127.0.0.1\nlisten_port={self.port}\nauth_type=any\n"
            f"pool_mode={mode}\ndefault_pool_size={connections}\nunix_socket_dir=\n"
        )
        assert PGBOUNCER is not None
        self._process = subprocess.Popen(
            [PGBOUNCER, "-q", settings],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=user,
            group=group,
        )
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
            except OSError:
                time.sleep(0.02)
            else:
                return

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._directory)

    def url(self, database: str, options: str = "") -> PostgresUrl:
        """Return the URL of a database through it."""
        url = parse(f"postgresql://postgres@127.0.0.1:{self.port}/{database}{options}")
        assert isinstance(url, PostgresUrl)
        return url

    def left(self, database: str) -> tuple[object, ...]:
        """Return what the next client of the database's server connection finds."""

        async def ask() -> tuple[object, ...]:
            client = await asyncpg.connect(
                host="127.0.0.1",
                port=self.port,
                user="postgres",
                database=database,
                statement_cache_size=0,
            )
            try:
                return tuple(await client.fetchrow(LEFT) or ())
            finally:
                await client.close()

        return asyncio.run(ask())


@pytest.fixture
def pooler(postgres: Server, tmp_path: Path) -> Iterator[Pooler]:
    """A PgBouncer in transaction mode."""
    tmp_path.chmod(0o711)
    made = Pooler(postgres, "transaction")
    yield made
    made.stop()


def test_nothing_is_left_in_a_shared_session(pooler: Pooler, database: str) -> None:
    """No lock, prepared statement or setting; and each command works."""
    before = pooler.left(database)

    upgraded = asyncio.run(migrate_postgres.upgrade(pooler.url(database)))
    found = [pooler.left(database)]
    for _ in range(2):
        asyncio.run(migrate_postgres.inspect_database(pooler.url(database)))
        found.append(pooler.left(database))
    rehearsed = asyncio.run(rehearse_postgres.rehearse(pooler.url(database)))
    checked = asyncio.run(check_postgres.check_postgres(pooler.url(database)))
    found.append(pooler.left(database))

    assert upgraded.after
    assert (rehearsed.ran, checked.findings) == ((), ())
    assert found == [before] * 4


def test_what_needs_a_session_is_refused(pooler: Pooler, database: str) -> None:
    """A setting in the URL is a start-up parameter, which a pooler cannot keep for one client."""

    async def ask() -> None:
        async with open_transaction(pooler.url(database, "?search_path=other")):
            pass

    with pytest.raises(RemoteError, match=r"search_path; .*connect to the server itself"):
        asyncio.run(ask())


def test_snapshot_and_restore_need_a_session_of_their_own(
    pooler: Pooler, postgres: Server, tmp_path: Path
) -> None:
    """A pooler in transaction mode is recognised: exit 19, nothing made, nothing left in it."""
    home = make_server_home(tmp_path / "home", postgres)
    report = home.back_up()
    empty = postgres.create()
    before = [pooler.left(name) for name in (home.database, empty)]
    words = {
        home.database: ("--home", home.root, "backup", "--url-file"),
        empty: ("--home", home.root, "restore", report.path, "--to", tmp_path / "copy"),
    }
    words[empty] = (*words[empty], "--url-file")
    for database, command in words.items():
        file = tmp_path / database
        file.write_text(f"postgresql://postgres@127.0.0.1:{pooler.port}/{database}")
        file.chmod(0o600)

        answer = call(*command, file)

        assert answer.code == 19, answer.err
        error, hint = answer.err.splitlines()
        assert "a pooler in transaction mode" in error
        assert "SAGEWAI_DATABASE_URL" in hint

    assert [pooler.left(name) for name in (home.database, empty)] == before
    assert not (tmp_path / "copy").exists()
    assert len(list_snapshots(home.snapshots)) == 1
    for name in (home.database, empty):
        postgres.run("postgres", f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.mark.parametrize("clients", [1, 3])
def test_a_pooler_that_keeps_sessions_is_enough(
    clients: int, postgres: Server, tmp_path: Path
) -> None:
    """In session mode, also where its pool has no second session for the question."""
    tmp_path.chmod(0o711)
    home = make_server_home(tmp_path / "home", postgres)
    pooler = Pooler(postgres, "session", clients)
    file = tmp_path / "url"
    file.write_text(f"postgresql://postgres@127.0.0.1:{pooler.port}/{home.database}")
    file.chmod(0o600)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sagewai_ops.database.postgres.pooler._PATIENCE_SECONDS", 0.5)
            answer = call("--home", home.root, "backup", "--url-file", file)
    finally:
        pooler.stop()

    assert answer.code == 0, answer.err
    postgres.drop(home.database)


def test_pool_mode_statement_is_refused(postgres: Server, database: str) -> None:
    """A transaction is refused by the pooler, in its own words."""
    pooler = Pooler(postgres, "statement")
    try:
        with pytest.raises(RemoteError, match=r"connect to the server itself"):
            asyncio.run(migrate_postgres.upgrade(pooler.url(database)))
    finally:
        pooler.stop()
