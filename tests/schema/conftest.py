"""A database that is at the head."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator

import pytest

from sagewai_ops.schema import sqlite_head


@pytest.fixture
def fresh() -> Iterator[sqlite3.Connection]:
    """A database in memory with the schema of a fresh home."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        for statement in sqlite_head.statements():
            connection.execute(statement)
        yield connection
