"""The servers that the tests run on."""

from __future__ import annotations

from postgres_server import Server


def test_server_answers_on_its_socket(every_postgres: Server) -> None:
    """A fresh database is there, empty, and of the version that the fixture says."""
    name = every_postgres.create()

    version = every_postgres.rows(name, "SELECT current_setting('server_version_num')::int / 10000")
    tables = every_postgres.rows(name, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
    every_postgres.drop(name)

    assert version == [(every_postgres.installation.major,)]
    assert tables == [(0,)]
