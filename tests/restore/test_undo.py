"""Undo and recover, under the checks of a restore."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from archives import small as small_archive
from memory_directory import memory_directory
from other_process import running
from round_trips import bring_back, leftovers_beside, snapshot_of
from sagewai_ops.errors import LockedError, NotFoundError, TargetBusyError
from sagewai_ops.fs import beneath, locks
from sagewai_ops.home.paths import Home, locate
from sagewai_ops.operations.recover import recover_home
from sagewai_ops.restore.undo import undo_restore
from sagewai_ops.swap import pending, swap
from small_homes import everything_of, small
from step_counter import killed_at


@pytest.fixture
def directory() -> Iterator[Path]:
    """Make a directory in memory."""
    with memory_directory() as path:
        yield path


def recover_restore(target: Home) -> str:
    """Recover a restore; return the outcome."""
    report = recover_home(target, {}, kinds=[pending.RESTORE])
    return report.recovered[-1].outcome if report.recovered else "nothing to do"


def _restored(directory: Path) -> Path:
    """Make a home that was restored over another one."""
    home = directory / "home"
    home.mkdir()
    (home / "note").write_text("old")
    bring_back(small_archive(directory / "a.tar.zst"), home, replace=True)
    return home


def test_undo_brings_back_what_was_there(directory: Path) -> None:
    """It returns the restored directory and where the replaced home is kept."""
    home = _restored(directory)
    (kept,) = swap.kept_before(home)

    undone = undo_restore(locate(home, {}))

    assert os.listdir(home) == ["note"]
    assert undone.restored_from == kept
    assert undone.previous is not None
    assert (undone.previous / "config/admin-state.json").exists()
    assert not kept.exists()


def test_dry_run_changes_nothing(directory: Path) -> None:
    """It names what would come back."""
    home = _restored(directory)
    before = everything_of(directory)

    undone = undo_restore(locate(home, {}), dry_run=True)

    assert (undone.restored_from, undone.previous) == (swap.kept_before(home)[-1], None)
    assert everything_of(directory) == before


def test_the_last_restore_is_undone_first(directory: Path) -> None:
    """Of several that are kept, the newest comes back."""
    home = _restored(directory)
    (home / "second").write_text("x")
    bring_back(directory / "a.tar.zst", home, replace=True)

    undo_restore(locate(home, {}))

    assert (home / "second").exists()
    assert len(swap.kept_before(home)) == 2


def test_home_that_is_gone_comes_back(directory: Path) -> None:
    """A home that was removed since the restore is no hindrance."""
    home = _restored(directory)
    os.rename(home, directory / "elsewhere")

    undone = undo_restore(locate(home, {}))

    assert os.listdir(home) == ["note"]
    assert undone.previous is None


def test_nothing_kept_is_not_found(directory: Path) -> None:
    """A restore into an empty place keeps nothing, so there is nothing to undo."""
    bring_back(small_archive(directory / "a.tar.zst"), directory / "home")

    with pytest.raises(NotFoundError, match="no previous home"):
        undo_restore(locate(directory / "home", {}))


def test_home_in_use_is_not_undone(directory: Path) -> None:
    """The same gate as for a restore: the process is named."""
    root = small(directory / "home").root
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


def test_home_that_another_run_holds_is_left_alone(directory: Path) -> None:
    """Neither undone nor recovered."""
    home = _restored(directory)

    with locks.exclusive(home):
        for step in (undo_restore, recover_restore):
            with pytest.raises(LockedError):
                step(locate(home, {}))


def test_interrupted_restore_is_recovered_before_it_is_undone(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Undo refuses between old and new; recover ends it and is not needed twice."""
    monkeypatch.setattr(beneath, "exchange", lambda _first, _second: False)
    home = _restored(directory)
    target = locate(home, {})
    for number in range(1, 99):
        killed_at(number, lambda: undo_restore(target))
        if pending.pending_operations(home):
            break

    with pytest.raises(LockedError, match="interrupted"):
        undo_restore(target)
    assert recover_restore(target) == "completed"
    assert recover_restore(target) == "nothing to do"

    assert os.listdir(home) == ["note"]
    assert leftovers_beside(home) == []


def test_recover_sweeps_what_a_kill_left(directory: Path) -> None:
    """A restore that died while it extracted leaves garbage, not a question."""
    archive = small_archive(directory / "a.tar.zst")
    for number in (3, 9):
        assert killed_at(number, lambda: bring_back(archive, directory / "home"))

    assert recover_restore(locate(directory / "home", {})) == "nothing to do"
    assert os.listdir(directory) == ["a.tar.zst"]
