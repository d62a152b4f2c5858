"""Repositories that the engine does not encrypt."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import old_homes
from program import call
from small_homes import small

pytestmark = pytest.mark.skipif(shutil.which("borg") is None, reason="borg is not installed")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home, and a borg whose remote repositories are on this machine."""
    shell = tmp_path / "shell"
    shell.write_text('#!/bin/sh\nshift\nexec "$@"\n')  # without the name of the host
    shell.chmod(0o755)
    monkeypatch.setenv("BORG_RSH", str(shell))
    monkeypatch.setenv("BORG_BASE_DIR", str(tmp_path / "borg"))
    monkeypatch.setenv("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK", "yes")
    root: Path = small(tmp_path / "home").root
    return root


def _words(repository: object, mode: str) -> tuple[object, ...]:
    """Create a repository; return the options that name it."""
    words = ["borg", "init", "--encryption", mode, str(repository)]
    subprocess.run(words, check=True, capture_output=True)
    return ("--engine", "borg", "--repository", repository)


@pytest.mark.parametrize("mode", ["none", "authenticated-blake2"])
def test_local_repository_without_encryption_is_warned_of(
    home: Path, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a backup and by a copy, which succeed."""
    monkeypatch.setenv("BORG_PASSPHRASE", "password")
    words = _words(tmp_path / "repository", mode)
    note = f"warning: borg:{tmp_path}/repository: a repository without encryption"

    backup = call("--home", home, "backup", *words)
    archive = call("--home", home, "backup", "--to", tmp_path / "archives")
    copy = call(
        *("--home", home, "snapshots", "copy"),
        *(tmp_path / "archives", f"borg:{tmp_path}/repository"),
    )

    assert [answer.code for answer in (backup, archive, copy)] == [0, 0, 0], (backup, copy)
    assert (note in backup.err, note in copy.err) == (True, True)


def test_remote_repository_without_encryption_is_refused(home: Path, tmp_path: Path) -> None:
    """Exit 2 and nothing is stored, unless `--allow-clear`; then automatic snapshots continue."""
    words = _words(f"ssh://host{tmp_path}/repository", "none")
    for path in (home / "db").iterdir():
        path.unlink()
    old_homes.build(home / "db/sagewai.db", "018_fleet_schema_correction")
    upgrade = ("db", "upgrade", *words)  # takes a snapshot

    refused = [
        call("--home", home, "backup", *words),
        call("--home", home, *upgrade),
    ]
    listed = call("--home", home, "snapshots", "list", "--json", *words)
    allowed = call("--home", home, "backup", "--allow-clear", *words)
    continued = call("--home", home, *upgrade)
    taken = call("--home", home, "snapshots", "list", "--json", *words)

    assert [answer.code for answer in refused] == [2, 2], refused
    assert all("or --allow-clear" in answer.err for answer in refused), refused
    assert listed.result["snapshots"] == []
    assert (allowed.code, continued.code) == (0, 0), (allowed, continued)
    assert len(taken.result["snapshots"]) == 2
    assert "a repository without encryption" in allowed.err
