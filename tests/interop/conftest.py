"""Options and fixtures of the tests that run the real Sagewai.

They need the package registry and minutes, so that plain pytest skips them: `make interop`,
`pytest --interop tests/interop`, or SAGEWAI_OPS_INTEROP=1 runs them.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from interop import program
from interop.homes import Site, copy_home, make_site


def pytest_addoption(parser: pytest.Parser) -> None:
    """Offer --interop."""
    parser.addoption("--interop", action="store_true", help="run the real sagewai 1.0.1")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what is marked interop unless it was asked for."""
    asked = config.getoption("--interop", default=False)
    if asked or os.environ.get("SAGEWAI_OPS_INTEROP") == "1":
        return
    skip = pytest.mark.skip(reason="runs the real sagewai: --interop or SAGEWAI_OPS_INTEROP=1")
    for item in items:
        if item.get_closest_marker("interop"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def made_site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The home that the real Sagewai made, once for all tests."""
    return make_site(tmp_path_factory.mktemp("interop"))


@pytest.fixture
def site(made_site: Site) -> Site:
    """The home as it was when its server was killed, at its own path."""
    copy_home(made_site.frozen, made_site.home)
    return made_site


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where the servers of a test print."""
    return tmp_path / "server.log"


@pytest.fixture
def snapshots(site: Site, tmp_path: Path) -> Path:
    """A directory with one snapshot of the killed home, without its key."""
    directory = tmp_path / "snapshots"
    program.succeed(site.home, "backup", "--to", directory)
    return directory
