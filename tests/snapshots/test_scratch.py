"""Where plaintext of a home is written: on the home's side, never next to the snapshots."""

import os
from pathlib import Path
from typing import Any

import pytest

from sagewai_ops.archive.age import Encryption, temporary_identity
from sagewai_ops.archive.digest import Written
from sagewai_ops.backup.create import create_snapshot
from sagewai_ops.backup.report import BackupOptions
from sagewai_ops.backup.run import BackupRun
from sagewai_ops.errors import NotFoundError, UsageError
from sagewai_ops.home.paths import locate
from sagewai_ops.snapshots import catalog, scratch
from sagewai_ops.snapshots.scratch import memory_parent, work_parent
from small_homes import small


def test_work_is_done_next_to_the_home(tmp_path: Path) -> None:
    """Unless others can write there, or the snapshots are stored there."""
    home = tmp_path / "own" / "home"
    home.mkdir(parents=True)
    snapshots = tmp_path / "usb"

    assert work_parent(home, None, snapshots=snapshots) == home.parent
    assert work_parent(home, None, snapshots=home.parent) != home.parent
    home.parent.chmod(0o777)
    assert work_parent(home, None, snapshots=snapshots) != home.parent
    home.parent.chmod(0o1777)
    assert work_parent(home, None, snapshots=snapshots) == home.parent
    assert work_parent(None, None, snapshots=snapshots).is_dir()


def test_chosen_directory_is_checked(tmp_path: Path) -> None:
    """It exists, outside of the home, and is not that of the snapshots."""
    home, snapshots, chosen = (tmp_path / name for name in ("home", "usb", "work"))
    for path in (home, snapshots, chosen):
        path.mkdir()

    assert work_parent(home, chosen, snapshots=snapshots) == chosen
    with pytest.raises(UsageError, match="inside the home"):
        work_parent(home, home, snapshots=snapshots)
    with pytest.raises(UsageError, match="no plaintext"):
        work_parent(home, snapshots, snapshots=snapshots)
    with pytest.raises(NotFoundError):
        work_parent(home, tmp_path / "none", snapshots=snapshots)


def test_memory_is_for_what_fits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A large scratch directory would be the end of a service with little memory."""
    monkeypatch.setattr(scratch, "_MEMORY", tmp_path)
    assert memory_parent(1000) == tmp_path
    assert memory_parent(10**9) is None
    monkeypatch.setattr(scratch, "_MEMORY", tmp_path / "none")
    assert memory_parent(1000) is None


@pytest.mark.parametrize("is_chosen", [False, True])
def test_encrypted_backup_writes_no_plaintext_next_to_its_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_chosen: bool
) -> None:
    """The copy of the database is elsewhere, and is removed."""
    built = small(tmp_path / "home")
    snapshots, chosen = tmp_path / "usb", tmp_path / "work"
    chosen.mkdir()
    seen: list[Path] = []
    write = BackupRun.write

    def record(run: BackupRun, *arguments: Any) -> Written:
        seen.append(arguments[3])
        written = write(run, *arguments)
        assert not [item for item in snapshots.iterdir() if item.is_dir()]
        return written

    monkeypatch.setattr(BackupRun, "write", record)
    recipient, _identity = temporary_identity()
    options = BackupOptions(
        encryption=Encryption(recipients=(recipient,)), work_dir=chosen if is_chosen else None
    )

    create_snapshot(locate(built.root, {}), snapshots, options)

    assert [path.parent for path in seen] == [chosen if is_chosen else tmp_path]
    assert not os.path.lexists(seen[0])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes a directory such as /tmp")
def test_what_a_killed_run_left_in_a_temporary_directory_is_removed(tmp_path: Path) -> None:
    """If it is a private directory of ours; no other user can put one there."""
    tmp_path.chmod(0o1777)
    for name, mode in (("a" * 6, 0o700), ("b" * 6, 0o755)):
        left = tmp_path / f".sagewai-20260101T000000Z-{name}.staging"
        left.mkdir()
        left.chmod(mode)

    assert catalog.sweep(tmp_path) == [".sagewai-20260101T000000Z-aaaaaa.staging"]
    assert [path.name[-14:] for path in tmp_path.iterdir()] == ["bbbbbb.staging"]
