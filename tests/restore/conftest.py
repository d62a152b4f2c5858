"""The home of restores to a server, which each module builds once as its `original`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sagewai_ops.backup.report import BackupReport
from server_homes import ServerHome


@pytest.fixture
def home(original: tuple[ServerHome, BackupReport]) -> ServerHome:
    """The module's home."""
    return original[0]


@pytest.fixture
def empty(home: ServerHome) -> Iterator[str]:
    """The name of an empty database."""
    name = home.server.create()
    yield name
    home.server.drop(name)
