"""A database for the values of a test."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    """A database in memory, without a table."""
    with closing(sqlite3.connect(":memory:")) as opened:
        yield opened
