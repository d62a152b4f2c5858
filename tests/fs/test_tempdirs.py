"""Private temporary directories."""

import os
import stat
import time
from pathlib import Path

import pytest

from sagewai_ops.errors import OpsError
from sagewai_ops.fs import locks
from sagewai_ops.fs.tempdirs import working_directory


def test_directory_is_private_and_removed_however_the_block_ends(tmp_path: Path) -> None:
    """Other users cannot read it, whatever the umask; nothing remains."""
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


def test_leftovers_of_dead_runs_are_removed_and_locked_ones_stay(tmp_path: Path) -> None:
    """A directory without a lock belongs to a dead run; other names are not touched."""
    (tmp_path / ".w-dead0000").mkdir()
    (tmp_path / ".w-dead0000/copy").write_bytes(b"content")
    (tmp_path / "kept").mkdir()

    with working_directory(tmp_path, ".w-") as first, working_directory(tmp_path, ".w-") as second:
        names = {path.name for path in tmp_path.iterdir()}

    assert names == {"kept", first.name, second.name}


def test_a_link_under_the_prefix_is_not_followed(tmp_path: Path) -> None:
    """In a shared directory another user can create one."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_bytes(b"content")
    (tmp_path / ".w-link").symlink_to(elsewhere)

    with working_directory(tmp_path, ".w-"):
        pass

    assert (elsewhere / "file").read_bytes() == b"content"


def test_error_names_the_path(tmp_path: Path) -> None:
    """The parent is a file."""
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(OpsError, match="file"), working_directory(tmp_path / "file", ".w-"):
        pass


def test_directory_that_this_run_has_locked_needs_no_wait(tmp_path: Path) -> None:
    """Else each entry in it would take the five seconds of the guard."""
    (tmp_path / ".v-dead").mkdir()
    started = time.monotonic()

    with locks.exclusive(tmp_path), working_directory(tmp_path, ".v-") as outer:
        with working_directory(outer, ".w-"), locks.sweep_guard(outer):
            pass
        assert list(tmp_path.iterdir()) == [outer]

    assert time.monotonic() - started < 2
