"""Checks of free space before anything is written."""

import shutil
from pathlib import Path

import pytest

from sagewai_ops.errors import NoSpaceError
from sagewai_ops.fs.free_space import free_bytes, nearest_existing, require_free_bytes


def test_too_little_space_is_refused_with_both_numbers(tmp_path: Path) -> None:
    """The directory need not exist; the hint shows the file system that it would be on."""
    directory = tmp_path / "missing/below"

    with pytest.raises(NoSpaceError) as caught:
        require_free_bytes(directory, 1 << 60, option="--to DIR")

    assert caught.value.message.startswith(f"{directory}: ")
    assert caught.value.message.endswith(f" bytes free, at least {1 << 60} needed")
    assert caught.value.hint == f"df -h {tmp_path}  # or another directory: --to DIR"


def test_enough_space_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly as much as is needed is enough."""
    usage = shutil.disk_usage(tmp_path)._replace(free=5)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)

    assert free_bytes(tmp_path / "missing") == 5
    require_free_bytes(tmp_path, 5, option="--to DIR")


def test_nearest_existing_path_is_the_path_itself_if_it_exists(tmp_path: Path) -> None:
    """A missing path is replaced by the closest directory above it."""
    assert nearest_existing(tmp_path) == tmp_path
    assert nearest_existing(tmp_path / "a/b") == tmp_path
