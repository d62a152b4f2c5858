"""The home of most tests, which each module builds once as its `original`."""

from __future__ import annotations

from pathlib import Path

import pytest

from sagewai_ops.home.paths import Home
from targets import copy_of


@pytest.fixture
def home(original: Home, tmp_path: Path) -> Home:
    """A copy of the module's home for one test."""
    return copy_of(original, tmp_path / "home")
