"""Paths on the command line that lead through links of the user."""

import os
from pathlib import Path

import pytest

from program import call
from small_homes import small


@pytest.fixture
def alias(tmp_path: Path) -> Path:
    """Return a link to the directory of a home, whose default snapshot directory is a link."""
    (tmp_path / "real" / "disk").mkdir(parents=True, mode=0o700)
    small(tmp_path / "real" / "home")
    (tmp_path / "real" / "home.snapshots").symlink_to("disk")
    (tmp_path / "alias").symlink_to("real")
    return tmp_path / "alias"


def test_every_path_of_a_run_may_lead_through_links(alias: Path) -> None:
    """Home, snapshots, scratch directory, target, metrics and log."""
    home = alias / "home"
    for words in (
        ("backup", "--metrics-file", alias / "metrics", "--log-file", alias / "log"),
        ("backup", "--to", alias / "disk"),
        ("drill", "--work-dir", alias),
        ("restore", "latest", "--replace"),
        ("restore", "latest", "--to", alias / "new/deep"),
        ("snapshots", "extract", "latest", "config", "--to", alias / "extracted"),
    ):
        answer = call("--home", home, *words, "--json")
        assert answer.code == 0, answer

    names = os.listdir(alias)
    assert {"metrics", "log", "new", "extracted"} <= set(names)
    assert len(list((alias / "disk").glob("*.tar.zst"))) == 2
    assert not [name for name in names if name.startswith(".")]
