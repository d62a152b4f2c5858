"""Processes that have files of a directory open, or locked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from other_process import running
from sagewai_ops.process import open_files
from sagewai_ops.process.open_files import find_openers

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")

OPENS = "file = open(sys.argv[1], sys.argv[2])\npause()"
LOCKS = """
import fcntl, os
file = open(sys.argv[1], "rb")
fcntl.flock(file, fcntl.LOCK_EX)
pause()
"""


@pytest.mark.parametrize("mode", ["rb", "ab"])
def test_open_file_is_found(tmp_path: Path, mode: str) -> None:
    """To read or to write, at any depth."""
    (tmp_path / "data/deep").mkdir(parents=True)
    file = tmp_path / "data/deep/file"
    file.touch()

    with running(OPENS, str(file), mode) as other:
        assert find_openers(tmp_path) == {other.pid}
        assert find_openers(tmp_path / "data/deep") == {other.pid}
        assert find_openers(tmp_path / "data/deep", ignored="fi") == set()
    assert find_openers(tmp_path) == set()


def test_what_is_no_file_of_the_directory_is_not_found(tmp_path: Path) -> None:
    """A removed file, a directory with a longer name, a device."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home.snapshots").mkdir()
    near = tmp_path / "home.snapshots/file"
    gone = tmp_path / "home/gone"
    near.touch()
    gone.touch()

    with running(OPENS, str(near), "rb"), running(OPENS, str(gone), "rb") as other:
        assert find_openers(tmp_path / "home") == {other.pid}
        gone.unlink()
        assert find_openers(tmp_path / "home") == set()


def test_lock_is_found_where_the_file_is_known(tmp_path: Path) -> None:
    """By the kernel's list, which also has the processes whose files are hidden."""
    file = tmp_path / "file"
    file.touch()

    with running(LOCKS, str(file)) as other:
        assert find_openers(tmp_path / "other", [file]) == {other.pid}


def test_processes_are_not_asked_about_a_missing_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restore to a new path; one that cannot be looked at is not missing."""
    asked: list[str] = []

    def descriptors() -> list[object]:
        asked.append("all")
        return []

    monkeypatch.setattr(open_files, "open_descriptors", descriptors)

    assert find_openers(tmp_path / "new", [tmp_path / "new/file"]) == set()
    assert asked == []

    (tmp_path / "loop").symlink_to("loop")
    assert find_openers(tmp_path / "loop/home") == set()
    assert asked == ["all"]


def test_own_files_are_no_use(tmp_path: Path) -> None:
    """Nor those of a shell that started the program with its output in the directory."""
    file = tmp_path / "file"
    with file.open("wb"):
        assert find_openers(tmp_path, [file]) == set()
        code = (
            "from pathlib import Path\n"
            "from sagewai_ops.process.open_files import find_openers\n"
            "pause(find_openers(Path(sys.argv[1])))"
        )
        with running("pause()\n" + code, str(tmp_path)) as other:
            assert other.next() == "set()"
