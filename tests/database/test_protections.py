"""Protections of libpq that the driver lacks: refused before a connection is opened."""

from __future__ import annotations

import asyncio
import socket

import pytest

from sagewai_ops.database.postgres import connection as postgres_connection
from sagewai_ops.database.postgres import protections
from sagewai_ops.database.url import PROTECTIONS, PostgresUrl, parse
from sagewai_ops.errors import UsageError


def _parsed(query: str, port: int = 5432) -> PostgresUrl:
    url = parse(f"postgresql://u:hunter2@127.0.0.1:{port}/d?{query}")
    assert isinstance(url, PostgresUrl)
    return url


@pytest.mark.parametrize("name", sorted(PROTECTIONS))
def test_demand_of_the_url_is_refused_by_name(name: str) -> None:
    """Whatever the driver would drop, or send as a setting after the password."""
    with pytest.raises(UsageError, match=name) as caught:
        protections.check(_parsed(f"{name}=require"), {})

    assert "hunter2" not in caught.value.message


@pytest.mark.parametrize("variable", sorted(protections._VARIABLES))
def test_demand_of_a_variable_is_refused_by_name(variable: str) -> None:
    """Libpq honours it without a word in the URL."""
    with pytest.raises(UsageError, match=variable):
        protections.check(_parsed(""), {variable: "require"})


@pytest.mark.parametrize(
    "query", ["channel_binding=prefer", "channel_binding=disable", "gssencmode=prefer", "sslsni=1"]
)
def test_value_that_demands_nothing_is_accepted(query: str) -> None:
    """Many hosts put channel_binding=prefer into the URLs that they show."""
    protections.check(_parsed(query), {"PGREQUIREAUTH": "", "PGGSSENCMODE": "disable"})


def test_url_comes_before_the_variable() -> None:
    """As in libpq."""
    protections.check(_parsed("channel_binding=disable"), {"PGCHANNELBINDING": "require"})


def test_other_programs_get_no_option_of_libpq() -> None:
    """The URL in a report is for Sagewai's driver, which would send it to the server."""
    assert "channel_binding" not in _parsed("channel_binding=prefer").to_string()


async def _open(url: PostgresUrl) -> None:
    async with postgres_connection.open_transaction(url):
        pass


def test_no_connection_is_opened() -> None:
    """Nothing is sent, not even the name of the user."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        url = _parsed("require_auth=scram-sha-256", listener.getsockname()[1])

        with pytest.raises(UsageError, match="require_auth"):
            asyncio.run(_open(url))
        with pytest.raises(BlockingIOError):
            listener.accept()
