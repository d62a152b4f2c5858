"""What every test gets: an empty environment, a user's home of its own, PostgreSQL on request."""

import os

import pytest

from postgres_server import _postgres_session, database, every_postgres, postgres

__all__ = ["_clean_environment", "_postgres_session", "database", "every_postgres", "postgres"]


@pytest.fixture(autouse=True)
def _clean_environment(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Hide the developer's own home, keys and database from every test.

    Interop tests keep HOME: the package installer's cache is there.
    """
    for name in os.environ:
        if name.startswith("SAGEWAI_") or name == "DATABASE_URL":
            monkeypatch.delenv(name)
    if request.node.get_closest_marker("interop") is None:
        monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("user")))
