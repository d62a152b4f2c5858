"""A home that litestream replicates: what it adds is known, and not left to another database."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

import litestream
from litestream import needs_litestream
from postgres_server import Server
from program import call
from sagewai_ops.backup import scanner
from sagewai_ops.database.sqlite.companions import remove_companions
from sagewai_ops.fs import beneath
from sagewai_ops.home.companions import DISCARDED
from sagewai_ops.home.paths import COMPANION, DATABASE, Kind
from sagewai_ops.restore import undo
from small_homes import small

pytestmark = needs_litestream


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a replica, and litestream stopped."""
    root = small(tmp_path / "home").root
    litestream.replicate(litestream.configure(tmp_path, root / DATABASE))
    assert (root / COMPANION / "ltx").is_dir()
    return root


def _tables(database: Path) -> set[str]:
    with closing(sqlite3.connect(database)) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}


def _assert_replicates(home: Path, tmp_path: Path, name: str) -> None:
    """Check that the replica follows the database as it is now."""
    with closing(sqlite3.connect(home / DATABASE)) as connection, connection:
        connection.execute(f"CREATE TABLE {name} (x)")
    litestream.replicate(tmp_path / "litestream.yml")
    target = litestream.restored(
        tmp_path / "litestream.yml", home / DATABASE, tmp_path / f"{name}.db"
    )
    assert _tables(target) == _tables(home / DATABASE)
    with closing(sqlite3.connect(target)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_its_tables_are_no_finding(home: Path) -> None:
    """Neither drift, nor the user's own, nor in the way of an upgrade; and they are copied."""
    checked = call("--json", "--home", home, "db", "check")
    upgraded = call("--json", "--home", home, "db", "upgrade", "--rehearse")

    assert {"_litestream_seq", "_litestream_lock"} <= _tables(home / DATABASE)
    assert (checked.code, upgraded.code) == (0, 0)
    assert checked.result["unknown_tables"] == []
    assert checked.result["findings"] == []
    assert upgraded.result["unknown_tables"] == []


def test_its_tables_are_not_exported_and_named(home: Path, postgres: Server, database: str) -> None:
    """They are no part of the home's data; a plan with them is one that can be executed."""
    url = postgres.url(database)

    answer = call("--json", "--home", home, "export-to-postgres", url, "--plan")

    assert answer.code == 0
    assert "table _litestream_seq: omitted, of litestream" in answer.result["notes"]
    assert "_litestream" not in str(answer.result["findings"])


def test_its_directory_is_omitted_with_the_reason(home: Path, tmp_path: Path) -> None:
    """As the pages in it: the snapshot has one copy of the database."""
    answer = call("--json", "--home", home, "backup")

    assert answer.code == 0
    omitted = {item["path"]: item["reason"] for item in answer.result["left_out"]}
    assert omitted[COMPANION] == "companion"
    shown = call("--json", "--home", home, "snapshots", "show", "latest", "--files")
    assert not [item for item in shown.result["files"] if "litestream" in item["path"]]


def test_a_running_litestream_is_named_with_its_commands(home: Path, tmp_path: Path) -> None:
    """A restore under it would be replicated as damage."""
    assert call("--home", home, "backup").code == 0

    with litestream.running(tmp_path / "litestream.yml", home / DATABASE) as pid:
        answer = call("--home", home, "restore", "latest", "--replace")

    assert answer.code == 15
    assert f"in use by pid {pid} ({litestream.PROGRAM} replicate" in answer.err
    assert "hint: systemctl stop litestream\n" in answer.err
    assert (
        f"hint: litestream stop -socket /run/litestream/litestream.sock {home / DATABASE}"
        in answer.err
    )
    assert (home / COMPANION).is_dir()


@pytest.mark.parametrize("only", [(), ("--only", "db"), ("--only", DATABASE)])
def test_restore_and_undo_leave_no_base_of_the_other_database(
    home: Path, tmp_path: Path, only: tuple[str, ...]
) -> None:
    """The replica follows the restored database, and after the undo the previous one."""
    (home / "db" / "other").write_text("so that files are exchanged, not the directory")
    assert call("--home", home, "backup").code == 0
    _assert_replicates(home, tmp_path, "later")
    note = "removed, so litestream begins again with the whole database"

    dry = call("--home", home, "restore", "latest", "--replace", *only, "--dry-run")
    done = call("--home", home, "restore", "latest", "--replace", *only)

    assert (dry.code, done.code) == (0, 0)
    assert f"{home / COMPANION}: {note}" in dry.err
    assert f"{home / COMPANION}: {note}" in done.err
    assert not (home / COMPANION).exists()
    assert "later" not in _tables(home / DATABASE)
    _assert_replicates(home, tmp_path, "after_restore")

    undone = call("--home", home, "restore", "--undo")

    assert undone.code == 0
    assert note in undone.err
    assert not (home / COMPANION).exists()
    assert "later" in _tables(home / DATABASE)
    _assert_replicates(home, tmp_path, "after_undo")


def test_rotation_removes_its_base(home: Path, tmp_path: Path) -> None:
    """The re-encrypted rows are in the replica."""
    answer = call("--json", "--home", home, "keys", "rotate", "--no-snapshot", "--yes")

    assert answer.code == 0
    assert any(str(home / COMPANION) in note for note in answer.result["notes"])
    assert not (home / COMPANION).exists()
    _assert_replicates(home, tmp_path, "rotated")


def test_a_snapshot_of_an_older_version_that_has_the_directory_is_restored_without_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version 0.2.0 included it."""
    with monkeypatch.context() as patch:
        kinds = {**scanner._OMITTED_KINDS}
        del kinds[Kind.COMPANION]
        patch.setattr(scanner, "_OMITTED_KINDS", kinds)
        patch.setattr(scanner, "companion_directory", lambda _database: "")
        assert call("--home", home, "backup").code == 0

    target = home.with_name("target")
    assert call("--home", home, "restore", "latest", "--to", target).code == 0

    assert (target / DATABASE).exists()
    assert not (target / COMPANION).exists()


def test_a_killed_removal_is_completed_by_the_next(home: Path) -> None:
    """Litestream never sees a part of its directory, and no snapshot has it."""
    beneath.rename(home / COMPANION, (home / COMPANION).with_name(DISCARDED))

    answer = call("--json", "--home", home, "backup")
    removed = remove_companions(home / DATABASE)

    assert [item["path"] for item in answer.result["left_out"] if "discard" in item["path"]]
    assert removed == ()
    assert not [name for name in os.listdir(home / "db") if "litestream" in name]


def test_its_directory_is_private(home: Path) -> None:
    """It contains the pages of the database, whatever the mode of its files."""
    (home / COMPANION).chmod(0o755)

    found = call("--json", "--home", home, "verify-perms")
    fixed = call("--home", home, "verify-perms", "--fix")

    rules = {item["rule"] for item in found.result["findings"] if COMPANION in item["path"]}
    assert (found.code, rules, fixed.code) == (4, {"P033"}, 0)
    assert (home / COMPANION).stat().st_mode & 0o777 == 0o700


def test_an_undo_whose_removal_is_refused_changes_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the previous home would begin with a wrong base."""
    assert call("--home", home, "backup").code == 0
    assert call("--home", home, "restore", "latest", "--replace").code == 0

    def refuse(_database: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(undo, "remove_companions", refuse)
    answer = call("--home", home, "restore", "--undo")

    assert answer.code == 14
    assert not (home / COMPANION).exists()
