"""In memory: borg syncs each segment, which takes most of the time on a busy disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from memory_directory import memory_directory
from small_homes import small


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Replace pytest's own."""
    with memory_directory() as directory:
        yield directory


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A small home, with everything in its WAL."""
    return small(tmp_path / "home").root
