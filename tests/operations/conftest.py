"""Homes whose database is on a server, each made once for a module."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from returned_homes import real_on_server, small_on_server
from server_homes import ServerHome


@pytest.fixture(scope="module")
def small(
    _postgres_session: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerHome]:
    """A small home on a server, without rows that a home cannot have."""
    with small_on_server(tmp_path_factory.mktemp("small")) as made:
        yield made


@pytest.fixture(scope="module")
def original(
    _postgres_session: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ServerHome, dict[str, list[Any]]]]:
    """A home of the real Sagewai on a server; and its values before the move."""
    with real_on_server(tmp_path_factory.mktemp("original")) as made:
        yield made
