"""Pending operations: found, refused and recovered, also from the journals of version 0.1."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from home_builder import BuiltHome
from opened_values import CLOSED, opened
from sagewai_ops.database.sqlite import in_use
from sagewai_ops.errors import LockedError, OpsError
from sagewai_ops.fs import beneath, journal
from sagewai_ops.home.paths import LEGACY_PLACES, locate
from sagewai_ops.keys import rotation_journal
from sagewai_ops.layout.journal import JOURNAL
from sagewai_ops.operations.migrate_layout import migrate_layout
from sagewai_ops.operations.recover import recover_home
from sagewai_ops.operations.rotate_keys import Options, rotate
from sagewai_ops.swap import pending, swap
from small_homes import everything_of, small
from step_counter import killed, killed_at

GOLDEN = Path(__file__).parent / "journals-0.1"


@pytest.fixture(autouse=True)
def _unused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the search for processes, which other tests cover."""
    monkeypatch.setattr(in_use, "find_users", lambda *_databases, **_options: ())


def _golden(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
    return document


def _write(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document))
    path.chmod(0o600)


def _restore(tmp_path: Path) -> Path:
    """Leave a home whose restore 0.1 killed between its two renames."""
    document = _golden("restore")
    (move,) = document["moves"]
    fresh, kept = tmp_path / move["fresh"], tmp_path / move["kept"]
    for directory, text in ((fresh, "new"), (kept, "old")):
        directory.mkdir()
        (directory / "note").write_text(text)
    move |= {"fresh_inode": fresh.stat().st_ino, "old_inode": kept.stat().st_ino}
    _write(tmp_path / f"{move['fresh']}.json", document)
    return tmp_path / "home"


def _flat(home: Path) -> None:
    home.mkdir()
    for name in LEGACY_PLACES:
        (home / name).write_text(name)
        (home / name).chmod(0o600)


def _migration(tmp_path: Path) -> Path:
    """Leave a home whose layout migration 0.1 killed after its first move."""
    home = tmp_path / "home"
    _flat(home)
    document = _golden("layout-migration")
    for step in document["steps"]:
        if step["kind"] == "folder":
            (home / step["target"]).mkdir(0o700)
        else:
            step["inode"] = (home / step["source"]).stat().st_ino
    (home / "admin-state.json").rename(home / "config/admin-state.json")
    _write(home / JOURNAL, document)
    return home


def _kill_rotation(home: Path) -> None:
    """Kill a key rotation before the second of its documents."""

    def run() -> None:
        with pytest.MonkeyPatch.context() as patch:
            rename = beneath.rename

            def replace(old: Path, new: Path) -> None:
                if new.name == "connections.json":
                    os.kill(os.getpid(), signal.SIGKILL)
                rename(old, new)

            patch.setattr(beneath, "rename", replace)
            rotate(locate(home, {}), {}, Options())

    assert killed(run)


def _rotation(tmp_path: Path) -> BuiltHome:
    """Leave a home whose key rotation was killed, with a journal as 0.1 wrote it."""
    built = small(tmp_path / "home")
    _kill_rotation(built.root)
    path = built.root / rotation_journal.DIRECTORY / "journal.json"
    content = journal.read(path, rotation_journal.NAME)
    document = _golden("key-rotation")
    assert document.keys() == {"version", *content}
    _write(path, document | content)
    return built


def test_restore_journal_of_version_0_1_is_recovered(tmp_path: Path) -> None:
    """Its moves are completed, and the previous home is kept."""
    home = _restore(tmp_path)

    with pytest.raises(LockedError, match="restore pending"):
        pending.require_settled(home)
    report = recover_home(locate(home, {}), {})

    assert [recovery.outcome for recovery in report.recovered] == ["completed"]
    assert (home / "note").read_text() == "new"
    assert [(path / "note").read_text() for path in swap.kept_before(home)] == ["old"]
    assert pending.pending_operations(home) == ()


def test_layout_journal_of_version_0_1_is_recovered(tmp_path: Path) -> None:
    """The other documents are moved too."""
    home = _migration(tmp_path)

    with pytest.raises(LockedError, match="layout migration pending"):
        pending.require_settled(home)
    report = recover_home(locate(home, {}), {})

    assert [recovery.outcome for recovery in report.recovered] == ["completed"]
    places = sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())
    assert places == sorted(LEGACY_PLACES.values())


def test_rotation_journal_of_version_0_1_is_recovered(tmp_path: Path) -> None:
    """All values are under the new key."""
    built = _rotation(tmp_path)

    with pytest.raises(LockedError, match="key rotation pending"):
        pending.require_settled(built.root)
    report = recover_home(locate(built.root, {}), {})

    assert [recovery.outcome for recovery in report.recovered] == ["completed"]
    new = built.master_key.read_bytes()
    assert new != built.master_keys[0]
    assert CLOSED not in opened(built.root, new, built.data_keys.values())


def test_two_pending_operations_are_recovered_in_one_run(tmp_path: Path) -> None:
    """Version 0.1 let a rotation begin during a migration."""
    built = small(tmp_path / "home")
    _kill_rotation(built.root)
    document = _golden("layout-migration")
    (built.root / "spare").write_text("x")
    document["steps"] = [
        {**document["steps"][1], "source": "spare", "target": "config/spare",
         "inode": (built.root / "spare").stat().st_ino}
    ]  # fmt: skip
    _write(built.root / JOURNAL, document)

    report = recover_home(locate(built.root, {}), {})

    assert [(found.operation, found.outcome) for found in report.recovered] == [
        ("key rotation", "completed"),
        ("layout migration", "completed"),
    ]
    assert (built.root / "config/spare").exists()


def test_migration_killed_before_its_first_move_is_rolled_back(tmp_path: Path) -> None:
    """It had made a directory, so it is pending too."""
    home = tmp_path / "home"
    _flat(home)
    before = everything_of(home)
    number = 0
    while not (home / JOURNAL).exists():
        number += 1
        assert killed_at(number, lambda: migrate_layout(locate(home, {}), {}))

    assert [found.operation for found in pending.pending_operations(home)] == ["layout migration"]
    report = recover_home(locate(home, {}), {})
    assert [recovery.outcome for recovery in report.recovered] == ["rolled back"]
    assert everything_of(home) == before


@pytest.mark.parametrize(
    ("mode", "reason"), [(0o666, "writable by other users"), (0o620, "writable by other users")]
)
def test_journal_that_others_can_write_is_not_followed(
    tmp_path: Path, mode: int, reason: str
) -> None:
    """Its writer would decide what is moved; the home stays blocked."""
    home = _restore(tmp_path)
    (path,) = tmp_path.glob("*.json")
    path.chmod(mode)
    before = everything_of(tmp_path)

    with pytest.raises(LockedError):
        pending.require_settled(home)
    with pytest.raises(OpsError, match=reason):
        recover_home(locate(home, {}), {})

    assert everything_of(tmp_path) == before


def test_journal_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    """Its target may be the file of another user."""
    home = _restore(tmp_path)
    (path,) = tmp_path.glob("*.json")
    path.rename(tmp_path / "elsewhere")
    path.symlink_to("elsewhere")

    with pytest.raises(LockedError):
        pending.require_settled(home)
    with pytest.raises(OpsError, match="symbolic links"):
        recover_home(locate(home, {}), {})


def test_journal_of_a_live_run_is_not_pending(tmp_path: Path) -> None:
    """Only its end decides; the home's own lock keeps others out."""
    home = _restore(tmp_path)
    (path,) = tmp_path.glob("*.json")
    content = json.loads(path.read_text())
    path.unlink()

    with journal.recording(path, "restore", draft=tmp_path / "draft") as write:
        write({name: content[name] for name in ("opening", "closing", "moves")})
        assert pending.pending_operations(home) == ()

    assert [found.journal for found in pending.pending_operations(home)] == [path]


def test_journal_moves_nothing_through_a_link(tmp_path: Path) -> None:
    """Each path is below the directory by its names, and one leads out by a link in it."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    (tmp_path / "outside").mkdir()
    (home / "link").symlink_to(tmp_path / "outside")
    (home / "library").write_text("x")
    path = home / ".sagewai-ops-restore-20260101T000000000000Z.json"
    _write(path, {"version": 1, "moves": [], "opening": ["library", "link/y"], "closing": None})

    pending.sweep(home)
    with contextlib.suppress(OpsError):
        recover_home(locate(home, {}), {})

    assert os.listdir(tmp_path / "outside") == []
    assert (home / "library").exists()
