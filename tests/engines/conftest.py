"""Repositories in memory: borg syncs each segment, which takes most of the time on a busy disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from memory_directory import memory_directory


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Replace pytest's own."""
    with memory_directory() as directory:
        yield directory
