"""What a message has to state for someone who is woken at night by it."""

from __future__ import annotations

from pathlib import Path

import pytest

from program import call
from small_homes import small


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A small home with encrypted values."""
    return small(tmp_path / "home").root


def test_restore_into_the_home_is_refused(home: Path) -> None:
    """Its next backup would contain the copy."""
    assert call("--home", home, "backup").code == 0

    inside = call("--home", home, "restore", "latest", "--to", home / "data/copy")
    named = inside.err.partition("--to ")[2]

    assert inside.code == 2
    assert "inside the home" in named
    assert not (home / "data/copy").exists()


def test_lost_key_is_one_warning_with_a_command(home: Path) -> None:
    """With the number of values, by backup and by status."""
    (home / "secrets/master.key").unlink()

    backup = call("--home", home, "backup")
    status = call("--home", home, "status")

    assert backup.code == 3
    assert backup.err.count("no key opens them") == 1
    assert "sealed, " in backup.err
    assert len(backup.err.splitlines()) < 8
    assert "sagewai-ops keys check --extra-key FILE" in backup.err
    assert status.code == 4
    assert "encrypted values: no key opens them" in status.err


def test_status_of_a_home_with_its_key_is_fine(home: Path) -> None:
    """The values are counted."""
    answer = call("--home", home, "status", "--json")

    assert answer.code == 0
    assert answer.result["sealed"] == answer.result["opened"] > 0


def test_preflight_ends_with_commands_that_go_back(home: Path) -> None:
    """By the snapshot's id: `latest` may be another one by then."""
    answer = call("--home", home, "preflight", "--json")
    snapshot = answer.result["snapshot"]

    assert snapshot
    assert any(f"restore {snapshot} --replace" in line for line in answer.result["go_back"])


def test_key_in_the_wrong_section_is_reported_with_the_right_one(
    home: Path, tmp_path: Path
) -> None:
    """Not as unknown."""
    file = tmp_path / "config.toml"
    file.write_text("keep-daily = 7\n")
    file.chmod(0o600)

    answer = call("--config", file, "--home", home, "status")

    assert answer.code == 2
    assert "keep-daily: in the wrong section" in answer.err
    assert "[backup]" in answer.err
