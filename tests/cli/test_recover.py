"""`recover` as people and scripts meet it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from home_builder import build_home
from json_schemas import problems
from other_process import running
from private_home import tree_of
from program import Answer, call
from sagewai_ops.database.sqlite import in_use
from sagewai_ops.fs import beneath
from sagewai_ops.home.paths import LEGACY_PLACES
from small_homes import small
from step_counter import killed


def _kill(is_last: Callable[[Path, Path], bool], *words: object) -> None:
    """Run a command and kill it before the first rename of which the predicate is true."""

    def run() -> None:
        with pytest.MonkeyPatch.context() as patch:
            rename = beneath.rename

            def step(source: Any, target: Any, **directories: int) -> None:
                below = [f"/proc/self/fd/{number}" for number in directories.values()]
                tops = [os.readlink(path) for path in below] or ["", ""]
                if is_last(Path(tops[0], source), Path(tops[1], target)):
                    os.kill(os.getpid(), signal.SIGKILL)
                rename(source, target, **directories)

            patch.setattr(beneath, "rename", step)
            patch.setattr(beneath, "exchange", lambda _first, _second: False)
            patch.setattr(in_use, "find_users", lambda *_databases, **_options: ())
            call(*words)

    assert killed(run)


def _restore(directory: Path) -> Path:
    home = small(directory / "home").root
    call("--home", home, "backup")
    (home / "extra").write_text("x")
    _kill(lambda _source, target: target == home, "--home", home, "restore", "latest", "--replace")
    return home


def _rotation(directory: Path) -> Path:
    home = small(directory / "home").root
    words = ("--home", home, "keys", "rotate", "--no-snapshot", "--yes")
    _kill(lambda _source, target: target.name == "connections.json", *words)
    return home


def _migration(directory: Path) -> Path:
    home = build_home(directory / "home", layout="flat", artifacts=False).root
    moved: list[Path] = []

    def is_last(source: Path, _target: Path) -> bool:
        moved.extend([source] if source.name in LEGACY_PLACES else [])
        return len(moved) == 2

    _kill(is_last, "--home", home, "migrate-layout")
    return home


OPERATIONS = [
    pytest.param(_restore, "restore", id="restore"),
    pytest.param(_rotation, "key rotation", id="key rotation"),
    pytest.param(_migration, "layout migration", id="layout migration"),
]


def recover(home: Path, *words: object) -> Answer:
    """Run the command."""
    return call("--home", home, "recover", *words)


@pytest.mark.parametrize(("interrupt", "operation"), OPERATIONS)
def test_pending_operation_is_completed_and_reported(
    tmp_path: Path, interrupt: Callable[[Path], Path], operation: str
) -> None:
    """Once; afterwards nothing is pending and every other command runs again."""
    home = interrupt(tmp_path)

    answer = recover(home, "--json", "--yes")
    again = recover(home)

    assert answer.code == 0
    assert problems("recover", answer.result) == []
    assert [found["operation"] for found in answer.result["pending"]] == [operation]
    (recovered,) = answer.result["recovered"]
    assert (recovered["operation"], recovered["outcome"]) == (operation, "completed")
    assert (again.code, again.out, again.err) == (0, f"home {home}: nothing pending\n", "")
    assert call("--home", home, "backup").code == 0
    assert call("--home", home, "status", "--json").document["warnings"] == []


@pytest.mark.parametrize(("interrupt", "operation"), OPERATIONS)
def test_text_names_the_operation_and_its_outcome(
    tmp_path: Path, interrupt: Callable[[Path], Path], operation: str
) -> None:
    """One line, without a terminal too."""
    home = interrupt(tmp_path)

    answer = recover(home)

    assert answer.out.startswith(f"home {home}: {operation} completed")


@pytest.mark.parametrize(("interrupt", "operation"), OPERATIONS)
def test_dry_run_shows_what_is_pending_and_changes_nothing(
    tmp_path: Path, interrupt: Callable[[Path], Path], operation: str
) -> None:
    """With the path of the journal."""
    home = interrupt(tmp_path)
    before = tree_of(tmp_path)

    text = recover(home, "--dry-run")
    answer = recover(home, "--dry-run", "--json")

    assert text.out.startswith(f"home {home}: {operation} pending, ")
    assert (text.code, answer.code) == (0, 0)
    assert problems("recover", answer.result) == []
    assert [found["operation"] for found in answer.result["pending"]] == [operation]
    assert answer.result["recovered"] == []
    assert tree_of(tmp_path) == before


@pytest.mark.parametrize(
    ("interrupt", "command", "other"),
    [(_restore, "restore", "keys rotate"), (_rotation, "keys rotate", "restore")],
)
def test_dry_run_of_an_alias_is_that_of_recover(
    tmp_path: Path, interrupt: Callable[[Path], Path], command: str, other: str
) -> None:
    """It lists the operation of its kind only."""
    home = interrupt(tmp_path)
    before = tree_of(tmp_path)
    words = (*command.split(), "--recover", "--dry-run")

    answer = call("--home", home, *words, "--json")

    assert call("--home", home, *words).out == recover(home, "--dry-run").out
    assert answer.result == recover(home, "--dry-run", "--json").result
    assert problems(command.replace(" ", "-"), answer.result) == []
    if home.exists():
        none = call("--home", home, *other.split(), "--recover", "--dry-run", "--json")
        assert (none.code, none.result["pending"]) == (0, [])
    assert tree_of(tmp_path) == before


def test_pending_layout_migration_blocks_other_commands(tmp_path: Path) -> None:
    """Exit 11 with the command to run, and a warning of `status`."""
    home = _migration(tmp_path)

    for words in (("backup",), ("init",), ("verify-perms", "--fix"), ("keys", "check")):
        answer = call("--home", home, *words)
        assert answer.code == 11, words
        assert "layout migration pending" in answer.err
        assert f"sagewai-ops: hint: sagewai-ops --home {home} recover" in answer.err

    status = call("--home", home, "status", "--json")
    assert problems("status", status.result) == []
    assert status.result["interrupted_layout_migration"]
    assert any("sagewai-ops recover" in line for line in status.document["warnings"])


def test_pending_layout_migration_is_also_completed_by_migrate_layout(tmp_path: Path) -> None:
    """As in version 0.1."""
    home = _migration(tmp_path)

    answer = call("--home", home, "migrate-layout", "--json")

    assert (answer.code, answer.result["recovered"]) == (0, "finished")
    assert recover(home).out == f"home {home}: nothing pending\n"


@pytest.mark.parametrize("interrupt", [_rotation, _migration])
def test_recovery_is_refused_while_a_process_uses_the_home(
    tmp_path: Path, interrupt: Callable[[Path], Path]
) -> None:
    """Exit 15; the operation stays pending."""
    home = interrupt(tmp_path)

    hold = "import sqlite3\nconnection = sqlite3.connect(sys.argv[1])\npause()"
    with running(hold, str(home / "db/sagewai.db")):
        answer = recover(home)

    assert answer.code == 15
    assert "in use by" in answer.err
    assert recover(home).code == 0


def test_another_run_is_named(tmp_path: Path) -> None:
    """Exit 11."""
    home = _migration(tmp_path)
    hold = (
        "import fcntl, os, sys\n"
        "fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)\n"
        "pause()\n"
    )

    with running(hold, str(home)) as other:
        answer = recover(home, "--wait", "0")

    assert answer.code == 11
    assert f"pid {other.pid}" in answer.err


def test_missing_home_is_not_found(tmp_path: Path) -> None:
    """Exit 10."""
    assert recover(tmp_path / "none").code == 10


def test_leftovers_of_dead_runs_are_removed(tmp_path: Path) -> None:
    """A staging that never became a home."""
    home = small(tmp_path / "home").root
    staging = tmp_path / ".home.restore-20240501T101112131415Z"
    staging.mkdir()

    answer = recover(home, "--json")

    assert answer.result["removed"] == [staging.name]
    assert not staging.exists()
