"""The private directory of a moment's work."""

import os
import stat
from pathlib import Path

import pytest

from sagewai_ops.errors import OpsError
from sagewai_ops.fs.tempdirs import working_directory


def test_it_is_private_and_gone_afterwards_however_the_block_ends(tmp_path: Path) -> None:
    """Nobody else reads in it, whatever the umask; nothing stays."""
    modes = []

    def work() -> None:
        with working_directory(tmp_path, ".w-") as place:
            (place / "copy").write_bytes(b"content")
            modes.append(stat.S_IMODE(place.stat().st_mode))
            raise ZeroDivisionError

    before = os.umask(0)
    try:
        with pytest.raises(ZeroDivisionError):
            work()
    finally:
        os.umask(before)

    assert (modes, list(tmp_path.iterdir())) == ([0o700], [])


def test_what_a_dead_run_left_goes_and_what_a_living_one_holds_stays(tmp_path: Path) -> None:
    """A directory whose lock nobody holds is a dead run's; other names are nobody's business."""
    (tmp_path / ".w-dead0000").mkdir()
    (tmp_path / ".w-dead0000/copy").write_bytes(b"content")
    (tmp_path / "kept").mkdir()

    with working_directory(tmp_path, ".w-") as first, working_directory(tmp_path, ".w-") as second:
        names = {path.name for path in tmp_path.iterdir()}

    assert names == {"kept", first.name, second.name}


def test_a_link_under_the_prefix_is_not_followed(tmp_path: Path) -> None:
    """In a directory that everybody writes to, somebody may plant one."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_bytes(b"content")
    (tmp_path / ".w-link").symlink_to(elsewhere)

    with working_directory(tmp_path, ".w-"):
        pass

    assert (elsewhere / "file").read_bytes() == b"content"


def test_where_nothing_can_be_made_the_error_names_the_place(tmp_path: Path) -> None:
    """A file stands where the parent should be."""
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(OpsError, match="file"), working_directory(tmp_path / "file", ".w-"):
        pass
