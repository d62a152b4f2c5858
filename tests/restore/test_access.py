"""What a restore changes on request: sessions and tokens ended, the fleet given to the new path."""

import contextlib
import json
import sqlite3
from pathlib import Path

from home_builder import build_home
from sagewai_ops.backup.create import create_snapshot
from sagewai_ops.backup.report import BackupOptions
from sagewai_ops.home.paths import locate
from sagewai_ops.restore.access import organisation_id
from sagewai_ops.restore.plan import RestoreOptions
from sagewai_ops.restore.restore import RestoreReport, restore


def restored(tmp_path: Path, options: RestoreOptions) -> tuple[RestoreReport, Path]:
    """Back up a built home and restore it to another directory."""
    build_home(tmp_path / "home", artifacts=False)
    home = locate(tmp_path / "home", {})
    report = create_snapshot(home, tmp_path / "snapshots", BackupOptions())
    assert report.path is not None
    target = locate(tmp_path / "restored", {})
    return restore(report.path, target, options), target.root


def rows(root: Path, statement: str) -> list[tuple[object, ...]]:
    """Ask the restored database."""
    with contextlib.closing(sqlite3.connect(root / "db" / "sagewai.db")) as connection:
        return connection.execute(statement).fetchall()


def test_revoked_access_is_gone_from_state_and_database(tmp_path: Path) -> None:
    """No session and no API token is valid, and everything else of the state is as it was."""
    home = locate(tmp_path / "home", {})
    options = RestoreOptions(revoke_sessions=True, key_home=home)

    report, root = restored(tmp_path, options)

    assert (report.access.sessions, report.access.api_tokens) == (0, 0)
    state = json.loads((root / "config" / "admin-state.json").read_bytes())
    before = json.loads(home.admin_state.read_bytes())
    assert state["active_tokens"] == []
    assert before["active_tokens"]
    assert all(token["revoked"] for token in state["api_tokens"])
    assert state["providers"] == before["providers"]
    assert rows(root, "SELECT count(*) FROM user_session") == [(0,)]
    assert rows(root, "SELECT count(*) FROM api_token WHERE revoked_at IS NULL") == [(0,)]
    assert sorted(path.name for path in (root / "db").iterdir()) == ["sagewai.db"]


def test_without_the_option_access_is_valid_again(tmp_path: Path) -> None:
    """The sessions and tokens of the snapshot come back, and are counted."""
    report, _root = restored(tmp_path, RestoreOptions(key_home=locate(tmp_path / "home", {})))

    assert report.access.sessions > 0
    assert report.access.api_tokens > 0
    assert any("fleet rows" in warning for warning in report.warnings)


def test_a_rebound_fleet_belongs_to_the_new_path(tmp_path: Path) -> None:
    """Every row has the organisation id that Sagewai makes from the new state file's path."""
    home = locate(tmp_path / "home", {})
    options = RestoreOptions(rebind_fleet=True, key_home=home)

    report, root = restored(tmp_path, options)

    state = (root / "config" / "admin-state.json").read_bytes()
    expected = organisation_id({"config/admin-state.json": state}, locate(root, {}))
    assert report.rebound_rows > 0
    assert rows(root, "SELECT DISTINCT org_id FROM workers") == [(expected,)]
    assert not any("fleet rows" in warning for warning in report.warnings)


def test_only_the_database_is_rebound_by_the_state_that_stays(tmp_path: Path) -> None:
    """With --only db the administrator's id is read from the home that is completed."""
    report, root = restored(tmp_path, RestoreOptions(key_home=locate(tmp_path / "home", {})))
    target = locate(root, {})
    archive = report.plan.archive

    again = restore(archive, target, RestoreOptions(only=("db",), rebind_fleet=True))

    state = target.admin_state.read_bytes()
    expected = organisation_id({"config/admin-state.json": state}, target)
    assert again.rebound_rows > 0
    assert rows(root, "SELECT DISTINCT org_id FROM workers") == [(expected,)]
