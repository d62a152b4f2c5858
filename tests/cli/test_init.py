"""`init` as people meet it."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from program import COMMAND, Answer, call, run
from small_homes import everything_of


def test_a_home_is_created_silently(tmp_path: Path) -> None:
    """A script gets the exit code; the home is ready for a backup at once."""
    answer = run("--home", tmp_path / "home", "init")

    assert answer == Answer(0, "", "")
    assert call("--home", tmp_path / "home", "backup") == Answer(0, "", "")


def test_the_default_home_is_in_the_users_directory(tmp_path: Path) -> None:
    """Without any option it is `~/.sagewai`, and a relative one is below the working directory."""
    run("init", environment={"HOME": str(tmp_path)})

    assert (tmp_path / ".sagewai/secrets/master.key").exists()


def test_json_lists_the_created_paths(tmp_path: Path) -> None:
    """And never the key."""
    answer = run("--home", tmp_path / "home", "init", "--json")

    assert answer.result["made"][0] == "."
    assert "secrets/master.key" in answer.result["made"]
    assert answer.result["swept"] == []
    key = (tmp_path / "home/secrets/master.key").read_text()
    assert key not in answer.out
    assert json.loads(answer.out)["command"] == "init"


def test_verbose_lists_the_created_paths_and_the_key(tmp_path: Path) -> None:
    """Each path on a line; the fingerprint, not the key."""
    answer = call("--home", tmp_path / "home", "init", "-v")

    assert "made  db/sagewai.db" in answer.out
    assert "keep a copy" in answer.out
    assert (tmp_path / "home/secrets/master.key").read_text() not in answer.out


def test_no_key_creates_no_key(tmp_path: Path) -> None:
    """Where the key comes from elsewhere."""
    call("--home", tmp_path / "home", "init", "--no-key")

    assert list((tmp_path / "home/secrets").iterdir()) == []


def test_a_file_instead_of_the_home_exits_2(tmp_path: Path) -> None:
    """Two lines name it."""
    (tmp_path / "home").write_text("a file")

    answer = run("--home", tmp_path / "home", "init")

    assert answer.code == 2
    assert answer.err.count("\n") == 2
    assert f"{tmp_path}/home: not a directory" in answer.err


def test_a_home_in_proc_exits_10_or_14(tmp_path: Path) -> None:
    """No user can create a directory in /proc."""
    answer = run("--home", "/proc/home", "init")

    assert answer.code in (10, 14)
    assert "error: /proc/home: " in answer.err


def test_an_interruption_reports_what_remains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The home is kept as far as it was made, and the next run completes it."""
    monkeypatch.setattr(
        "sagewai_ops.operations.init.create_database",
        lambda _path: os.kill(os.getpid(), signal.SIGTERM),
    )

    answer = call("--home", tmp_path / "home", "init")

    assert answer.code == 128 + signal.SIGTERM
    assert "created files are complete, and a second run creates the others" in answer.err
    assert (tmp_path / "home/secrets/master.key").exists()


def test_a_killed_run_is_completed_by_the_next(tmp_path: Path) -> None:
    """After SIGKILL at the first file, the next run completes the home."""
    home = tmp_path / "home"
    with subprocess.Popen([*COMMAND, "--home", home, "init"]) as process:
        while not home.exists():
            assert process.poll() is None
        os.kill(process.pid, signal.SIGKILL)

    answer = run("--home", home, "init")

    assert answer.code == 0
    assert sorted(everything_of(home)) == [
        "config",
        "data",
        "data/artifacts",
        "data/blueprints",
        "data/scratch",
        "db",
        "db/sagewai.db",
        "secrets",
        "secrets/master.key",
    ]
