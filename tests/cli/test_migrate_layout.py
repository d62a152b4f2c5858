"""`migrate-layout` as people and scripts meet it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import program
from home_builder import build_home
from other_process import running
from private_home import KEY, tree_of
from sagewai_ops.errors import LockedError
from sagewai_ops.home.paths import LEGACY_PLACES, locate
from sagewai_ops.layout.journal import JOURNAL
from sagewai_ops.operations.migrate_layout import migrate_layout
from sagewai_ops.swap import pending
from step_counter import killed_at


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with the four legacy files and nothing else."""
    root = tmp_path / "home"
    root.mkdir()
    for name in LEGACY_PLACES:
        (root / name).write_bytes(KEY if name == "master.key" else b"{}")
        (root / name).chmod(0o600)
    return root


def migrate(home: Path, *words: object) -> program.Answer:
    """Call the command in this process."""
    return program.call("--home", home, "migrate-layout", *words)


def test_success_is_silent_without_a_terminal(home: Path) -> None:
    """Under cron nothing is printed, the first time and every time after."""
    assert migrate(home) == program.Answer(0, "", "")
    assert migrate(home) == program.Answer(0, "", "")


def test_verbose_says_what_went_where(home: Path) -> None:
    """Each of the four with its place."""
    out = migrate(home, "-v").out

    assert "move     master.key -> secrets/master.key" in out
    assert f"home {home}: is in the layout of today" in out
    assert f"home {home}: nothing of the older layout" in migrate(home, "-v").out


def test_dry_run_prints_the_plan_that_a_run_executes(home: Path) -> None:
    """The same items; nothing is written."""
    before = tree_of(home)

    planned = migrate(home, "--dry-run", "--json")
    shown = migrate(home, "--dry-run")
    assert tree_of(home) == before
    done = migrate(home, "--json")

    assert planned.result["items"] == done.result["items"]
    assert [step["step"] for step in planned.result["steps"]] == [
        step["step"] for step in done.result["steps"]
    ]
    assert (planned.result["dry_run"], done.result["dry_run"]) == (True, False)
    assert "would be in the layout of today" in shown.out


def test_json_tells_every_item(home: Path) -> None:
    """With its name, place, action and what was kept."""
    (home / "config").mkdir()
    (home / "config/connections.json").write_bytes(b"[]")

    result = migrate(home, "--json").result

    items = {item["name"]: item for item in result["items"]}
    assert items["master.key"] == {
        "name": "master.key",
        "place": "secrets/master.key",
        "action": "move",
        "detail": "",
        "kept": None,
    }
    assert items["connections.json"]["kept"].startswith("config/connections.json.legacy-20")
    assert result["complete"] is True


def test_what_had_to_be_left_is_incomplete(home: Path) -> None:
    """Exit 3, and each thing on a line of its own."""
    (home / "profiles.json").unlink()
    (home / "profiles.json").symlink_to("/mnt/gone.json")
    (home / "sagewai.db").write_bytes(b"")

    answer = migrate(home)

    reason = "a database at the root: Sagewai reads db/sagewai.db and never this one"
    assert answer.code == 3
    assert answer.err.splitlines() == [
        f"sagewai-ops: warning: {home}/profiles.json: broken link to /mnt/gone.json",
        f"sagewai-ops: warning: {home}/sagewai.db: {reason}",
    ]


def test_running_process_is_named(tmp_path: Path) -> None:
    """Exit 15, and nothing is changed."""
    built = build_home(tmp_path / "home", layout="flat", artifacts=False)
    code = "import sqlite3\nconnection = sqlite3.connect(sys.argv[1])\npause()"

    with running(code, os.fspath(built.database)) as server:
        answer = migrate(built.root)

    assert answer.code == 15
    assert f"pid {server.pid}" in answer.err
    assert (built.root / "master.key").exists()


def test_variables_of_the_environment_count(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process's own environment names what the operator manages."""
    monkeypatch.setenv("SAGEWAI_CONNECTIONS_FILE", str(home / "connections.json"))
    monkeypatch.setenv("SAGEWAI_ADMIN_STATE", str(home / "admin-state.json"))

    answer = migrate(home, "--json")

    actions = {item["name"]: item["action"] for item in answer.result["items"]}
    assert actions["connections.json"] == "managed"
    assert actions["admin-state.json"] == "managed"
    assert any("it starts empty" in warning for warning in answer.document["warnings"])


def test_interrupted_run_is_reported(home: Path) -> None:
    """The next run reports that it finished what a dead one began."""
    number = 0
    while not (home / JOURNAL).exists():
        number += 10
        assert killed_at(number, lambda: migrate_layout(locate(home, {}), {}))

    answer = migrate(home, "-v", "--json")

    assert answer.result["recovered"] in ("finished", "rolled back")
    assert sorted(path.name for path in home.iterdir()) == ["config", "secrets"]


@pytest.mark.parametrize("words", [("migrate-layout",), ("verify-perms", "--fix")])
def test_interrupted_restore_comes_first(
    home: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """A home between old and new is not touched: exit 11."""

    def refuse(target: Path, **_options: object) -> None:
        raise LockedError(f"home {target}: restore pending, interrupted before its end")

    monkeypatch.setattr(pending, "require_settled", refuse)
    before = tree_of(home)

    answer = program.call("--home", home, *words)

    assert answer.code == 11
    assert tree_of(home) == before


def test_migrated_home_passes_verify_perms(home: Path) -> None:
    """What it leaves violates no rule, whatever modes it met."""
    for name in LEGACY_PLACES:
        (home / name).chmod(0o644)
    home.chmod(0o700)
    migrate(home)

    found = program.call("--home", home, "verify-perms", "--json").result["findings"]

    assert [each for each in found if each["path"].startswith(str(home))] == []


def test_missing_home_is_not_found(tmp_path: Path) -> None:
    """Exit 10, in two lines."""
    answer = migrate(tmp_path / "none")

    assert answer.code == 10
    assert len(answer.err.splitlines()) == 2
