"""Stepping back: undo and recover, under the gates that a restore goes through."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from archives import small as small_archive
from memory_folder import memory_folder
from other_process import running
from round_trips import bring_back, leftovers_beside, snapshot_of
from sagewai_ops.errors import LockedError, NotFoundError, TargetBusyError
from sagewai_ops.fs import atomic, locks
from sagewai_ops.home.paths import locate
from sagewai_ops.restore.undo import recover_restore, undo_restore
from sagewai_ops.swap import swap
from small_homes import everything_of, small
from step_counter import killed_at


@pytest.fixture
def folder() -> Iterator[Path]:
    """Make a folder in memory."""
    with memory_folder() as path:
        yield path


def _restored(folder: Path) -> Path:
    """Make a home that was restored over another one."""
    home = folder / "home"
    home.mkdir()
    (home / "note").write_text("old")
    bring_back(small_archive(folder / "a.tar.zst"), home, replace=True)
    return home


def test_undo_brings_back_what_was_there(folder: Path) -> None:
    """It says what came back and where the other went."""
    home = _restored(folder)
    (kept,) = swap.kept_before(home)

    undone = undo_restore(locate(home, {}))

    assert os.listdir(home) == ["note"]
    assert undone.brought_back == kept
    assert undone.before is not None
    assert (undone.before / "config/admin-state.json").exists()
    assert not kept.exists()


def test_dry_run_changes_nothing(folder: Path) -> None:
    """It names what would come back."""
    home = _restored(folder)
    before = everything_of(folder)

    undone = undo_restore(locate(home, {}), dry_run=True)

    assert (undone.brought_back, undone.before) == (swap.kept_before(home)[-1], None)
    assert everything_of(folder) == before


def test_the_last_restore_is_undone_first(folder: Path) -> None:
    """Of several that are kept, the newest comes back."""
    home = _restored(folder)
    (home / "second").write_text("x")
    bring_back(folder / "a.tar.zst", home, replace=True)

    undo_restore(locate(home, {}))

    assert (home / "second").exists()
    assert len(swap.kept_before(home)) == 2


def test_home_that_is_gone_comes_back(folder: Path) -> None:
    """A home that was removed since the restore is no hindrance."""
    home = _restored(folder)
    os.rename(home, folder / "elsewhere")

    undone = undo_restore(locate(home, {}))

    assert os.listdir(home) == ["note"]
    assert undone.before is None


def test_nothing_kept_is_not_found(folder: Path) -> None:
    """A restore into an empty place keeps nothing, so there is nothing to undo."""
    bring_back(small_archive(folder / "a.tar.zst"), folder / "home")

    with pytest.raises(NotFoundError, match="nothing kept"):
        undo_restore(locate(folder / "home", {}))


def test_home_in_use_is_not_undone(folder: Path) -> None:
    """The same gate as for a restore: the process is named."""
    root = small(folder / "home").root
    bring_back(snapshot_of(root), root, replace=True)
    hold = (
        "import sqlite3\nc = sqlite3.connect(sys.argv[1])\n"
        "c.execute('SELECT count(*) FROM sqlite_master').fetchall()\npause()\npause()\n"
    )
    with (
        running(hold, str(root / "db/sagewai.db")) as other,
        pytest.raises(TargetBusyError, match=f"pid {other.pid} "),
    ):
        undo_restore(locate(root, {}))

    assert len(swap.kept_before(root)) == 1


def test_home_that_another_run_holds_is_left_alone(folder: Path) -> None:
    """Neither undone nor recovered."""
    home = _restored(folder)

    with locks.exclusive(home):
        for step in (undo_restore, recover_restore):
            with pytest.raises(LockedError):
                step(locate(home, {}))


def test_interrupted_restore_is_recovered_before_it_is_undone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Undo refuses between old and new; recover ends it and is not needed twice."""
    monkeypatch.setattr(atomic, "exchange", lambda _first, _second: False)
    home = _restored(folder)
    target = locate(home, {})
    for number in range(1, 99):
        killed_at(number, lambda: undo_restore(target))
        if swap.unfinished(home) is not None:
            break

    with pytest.raises(LockedError, match="interrupted"):
        undo_restore(target)
    assert recover_restore(target) == "finished"
    assert recover_restore(target) == "nothing to do"

    assert os.listdir(home) == ["note"]
    assert leftovers_beside(home) == []


def test_recover_sweeps_what_a_kill_left(folder: Path) -> None:
    """A restore that died while it extracted leaves garbage, not a question."""
    archive = small_archive(folder / "a.tar.zst")
    for number in (3, 9):
        assert killed_at(number, lambda: bring_back(archive, folder / "home"))

    assert recover_restore(locate(folder / "home", {})) == "nothing to do"
    assert os.listdir(folder) == ["a.tar.zst"]
