"""Other sessions on a database, as a role sees them."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from postgres_server import Server
from sagewai_ops.database.postgres.sessions import (
    ServerSession,
    describe_sessions,
    read_sessions,
    require_home_unused,
)
from sagewai_ops.errors import TargetBusyError
from sagewai_ops.home.paths import locate
from targets import url_of


@pytest.fixture
def watch(postgres: Server, database: str) -> Callable[..., tuple[ServerSession, ...]]:
    """Return what a role sees while another session exists, which executed a statement."""

    def see(
        *, user: str = "postgres", application: str = "", statement: str = "SELECT 1"
    ) -> tuple[ServerSession, ...]:
        async def both() -> tuple[ServerSession, ...]:
            other = await postgres.connect(database)
            try:
                await other.execute(f"SET application_name = '{application}'")
                await other.execute(statement)
                return await asyncio.to_thread(read_sessions, url_of(postgres, database, user=user))
            finally:
                await other.close()

        return asyncio.run(both())

    return see


@pytest.fixture
def role(postgres: Server) -> Iterator[str]:
    """A role without privileges."""
    postgres.run("postgres", "DROP ROLE IF EXISTS plain", "CREATE ROLE plain LOGIN")
    yield "plain"
    postgres.run("postgres", "DROP ROLE plain")


def test_idle_session_is_use(watch: Callable[..., tuple[ServerSession, ...]]) -> None:
    """Sagewai's pool, which sets no name, between two requests."""
    (found,) = watch()

    assert (found.role, found.application, found.state) == ("postgres", "", "idle")
    assert found.display == f"session of postgres (server process {found.pid})"


def test_session_of_another_role_is_use(
    watch: Callable[..., tuple[ServerSession, ...]], role: str
) -> None:
    """Although the server hides its state and its kind from a role without privileges."""
    (found,) = watch(user=role, application="worker")

    assert (found.role, found.application, found.state) == ("postgres", "worker", "")


@pytest.mark.parametrize(
    ("application", "statement"),
    [("sagewai-ops", "SELECT 1"), ("", "DISCARD ALL"), ("PgBouncer", "SELECT 1")],
    ids=["our own", "reset by a pooler", "a pooler's"],
)
def test_sessions_that_are_no_use(
    watch: Callable[..., tuple[ServerSession, ...]], application: str, statement: str
) -> None:
    """Our own runs exclude each other by locks; a pooler's spare connections have no client."""
    if statement == "DISCARD ALL":
        application = ""

    assert watch(application=application, statement=statement) == ()


def test_a_client_on_this_machine_is_named_by_its_own_process() -> None:
    """Not by the server's, which must not be stopped."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.getsockname()) as client:
            address, port = client.getsockname()
            here = ServerSession(7, "r", "pool", address, "idle", port)
            shown = here.display
        other = ServerSession(7, "r", "pool", "192.0.2.1", "idle", port)

    assert f"session of r (pid {os.getpid()} (" in shown
    assert shown.endswith("pool)")
    assert other.display == "session of r (server process 7, pool, from 192.0.2.1)"


def test_names_are_bounded_and_escaped() -> None:
    """A client names itself as it likes."""
    session = ServerSession(7, "r", "\x1b[2J\n", "10.0.0.5", "idle")
    shown = describe_sessions([session] * 7)

    assert "\x1b" not in shown[0]
    assert "from 10.0.0.5" in shown[0]
    assert (len(shown), shown[-1]) == (6, "2 more sessions")


def test_home_on_a_server_is_in_use(tmp_path: Path, postgres: Server, database: str) -> None:
    """Named with its process; nothing of the home is open."""
    environment = {"SAGEWAI_DATABASE_URL": postgres.url(database)}
    home = locate(tmp_path, environment)
    require_home_unused(home, environment)

    async def while_connected() -> None:
        other = await postgres.connect(database)
        try:
            await asyncio.to_thread(require_home_unused, home, environment)
        finally:
            await other.close()

    with pytest.raises(
        TargetBusyError, match=r"in use by session of postgres \(server process \d+\)"
    ):
        asyncio.run(while_connected())
