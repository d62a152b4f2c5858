"""The messages after a failure of an engine, and what a killed run leaves."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path

import pytest

from engine_repositories import Repository, repository
from program import call
from sagewai_ops.snapshots.catalog import scratch_path

__all__ = ["repository"]


def test_a_dry_run_of_a_missing_repository_fails_as_the_run_does(
    home: Path, repository: Repository
) -> None:
    """Unless the run creates it."""
    words = ("--home", home, "backup", "--dry-run", *repository.words)

    missing = call(*words)
    created = call(*words, "--init-repository")

    assert missing.code == 10, missing
    assert "--init-repository" in missing.err
    assert created.code == 0, created
    assert not repository.path.exists()


@pytest.mark.parametrize("repository", ["restic"], indirect=True)
def test_a_run_that_reads_a_repository_removes_what_a_killed_one_left_next_to_the_home(
    home: Path, repository: Repository
) -> None:
    """The snapshot directory of a new home has no link to it."""
    assert call("--home", home, "backup", *repository.words, "--init-repository").code == 0
    left = scratch_path(home.parent, datetime.now(timezone.utc))
    left.mkdir(mode=0o700)
    (left / "tree").mkdir()

    answer = call("--home", home, "snapshots", "verify", "latest", *repository.words)

    assert answer.code == 0, answer
    assert not left.exists()


@pytest.mark.parametrize("repository", ["borg"], indirect=True)
def test_the_cause_in_a_traceback_of_borg_is_shown(
    home: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Not the words that precede it."""
    lines = [
        {"message": "Local Exception", "msgid": "Exception"},
        {"message": "Traceback (most recent call last):\n  File x\nOSError: planted cause\n\nPlat"},
    ]
    written = tmp_path / "messages"
    written.write_text("".join(json.dumps(line) + "\n" for line in lines))
    repository.fail(tmp_path / "bin", monkeypatch, "list", written)

    answer = call("--home", home, "snapshots", "list", *repository.words)

    assert answer.code == 1, answer
    assert "planted cause" in answer.err
    assert "Local Exception" not in answer.err
