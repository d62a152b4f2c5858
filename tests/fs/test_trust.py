"""What other users can plant."""

import os
from pathlib import Path

import pytest

from sagewai_ops.errors import PermissionDeniedError
from sagewai_ops.fs import journal
from sagewai_ops.fs.removal import remove_abandoned
from sagewai_ops.fs.trust import (
    is_trusted,
    owned_target,
    require_trusted_directory,
    take_reports,
)

_OTHER = 40001
_AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    """Return a file of ours in a directory of ours."""
    take_reports()
    directory = tmp_path / "directory"
    directory.mkdir(mode=0o755)
    path = directory / "entry"
    path.touch(mode=0o600)
    return path


def test_own_entries_in_own_directories_count(entry: Path) -> None:
    """A file and a directory."""
    (entry.parent / "sub").mkdir(mode=0o700)

    assert is_trusted(entry)
    assert is_trusted(entry.parent / "sub")
    require_trusted_directory(entry.parent)
    assert take_reports() == []


@pytest.mark.parametrize("mode", [0o775, 0o777, 0o1777])
def test_directory_that_others_write_makes_its_entries_strange(entry: Path, mode: int) -> None:
    """The sticky bit keeps others from removing an entry, not from creating one."""
    entry.parent.chmod(mode)

    assert not is_trusted(entry)
    assert not remove_abandoned(entry)
    assert entry.exists()
    assert journal.trusted([entry]) == []
    assert all("writable by other users, left alone" in line for line in take_reports())
    with pytest.raises(PermissionDeniedError):
        require_trusted_directory(entry.parent)


@pytest.mark.parametrize("kind", ["link", "pipe", "mode"])
def test_other_kinds_of_entries_do_not_count(entry: Path, kind: str) -> None:
    """A link, a pipe, a file that others write."""
    if kind == "mode":
        entry.chmod(0o666)
    else:
        entry.unlink()
        if kind == "link":
            entry.symlink_to("/etc/hostname")
        else:
            os.mkfifo(entry)

    assert not is_trusted(entry)
    assert not remove_abandoned(entry)


@_AS_ROOT
@pytest.mark.parametrize("whose", ["entry", "directory"])
def test_entry_of_another_user_does_not_count(entry: Path, whose: str) -> None:
    """Its own owner, or the owner of its directory, decides what is in it."""
    os.chown(entry if whose == "entry" else entry.parent, _OTHER, _OTHER)

    assert not is_trusted(entry)
    assert [f"owned by uid {_OTHER}" in line for line in take_reports()] == [True]


def test_a_missing_entry_is_not_reported(entry: Path) -> None:
    """Only what is there is left alone."""
    entry.unlink()

    assert journal.trusted([entry]) == []
    assert take_reports() == []


@_AS_ROOT
def test_link_of_a_user_leads_only_to_his_own_files(tmp_path: Path) -> None:
    """Root's links lead anywhere."""
    (tmp_path / "root's").touch()
    (tmp_path / "his").touch()
    os.chown(tmp_path / "his", _OTHER, _OTHER)
    for name in ("root's", "his"):
        (tmp_path / f"to {name}").symlink_to(name)
        os.chown(tmp_path / f"to {name}", _OTHER, _OTHER, follow_symlinks=False)
    (tmp_path / "by root").symlink_to("his")

    assert owned_target(tmp_path / "to his")[0] == tmp_path / "his"
    assert owned_target(tmp_path / "to root's")[0] is None
    assert owned_target(tmp_path / "by root")[0] == tmp_path / "his"
    assert owned_target(tmp_path / "by root", _OTHER)[0] is None
    assert owned_target(tmp_path / "his") == (tmp_path / "his", "")


def test_a_path_that_leaves_its_directory_is_refused() -> None:
    """In a journal."""
    for path in ("/etc/passwd", "../x", "a/../../x"):
        with pytest.raises(ValueError, match="leaves"):
            journal.require_inside(path)
    journal.require_inside("a/b")
