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

from postgres_server import Server, _free_port, _servant
from sagewai_ops.database.postgres.connection import open_transaction
from sagewai_ops.database.url import PostgresUrl, parse
from sagewai_ops.errors import RemoteError
from sagewai_ops.schema import check_postgres, migrate_postgres, rehearse_postgres

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
pytestmark = pytest.mark.skipif(PGBOUNCER is None, reason="PgBouncer is not installed")

LEFT = """
SELECT (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'),
  (SELECT count(*) FROM pg_prepared_statements),
  current_setting('statement_timeout'), current_setting('TimeZone'),
  current_setting('search_path'), current_setting('row_security')
"""


class Pooler:
    """A PgBouncer in front of a server, with one server connection for each database."""

    def __init__(self, server: Server, mode: str) -> None:
        self.port = _free_port()
        user, group = _servant()
        self._directory = Path(tempfile.mkdtemp(prefix="ops-pooler-"))
        self._directory.chmod(0o755)
        settings = self._directory / "pgbouncer.ini"
        settings.write_text(
            f"[databases]\n* = host={server.sockets} port={server.port} user=postgres\n"
            f"[pgbouncer]\nlisten_addr=127.0.0.1\nlisten_port={self.port}\nauth_type=any\n"
            f"pool_mode={mode}\ndefault_pool_size=1\nunix_socket_dir=\n"
        )
        assert PGBOUNCER is not None
        self._process = subprocess.Popen(
            [PGBOUNCER, "-q", settings],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=user,
            group=group,
        )
        deadline = time.monotonic() + 30
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


def test_pool_mode_statement_is_refused(postgres: Server, database: str) -> None:
    """A transaction is refused by the pooler, in its own words."""
    pooler = Pooler(postgres, "statement")
    try:
        with pytest.raises(RemoteError, match=r"connect to the server itself"):
            asyncio.run(migrate_postgres.upgrade(pooler.url(database)))
    finally:
        pooler.stop()
