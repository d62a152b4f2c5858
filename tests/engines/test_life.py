"""The life of a repository, with the real restic and borg."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from engine_repositories import ENGINES, PASSWORD, Repository, repository
from program import Answer, call
from small_homes import everything_of, rows_of

__all__ = ["repository"]


def _ids(answer: Answer) -> list[str]:
    return [item["id"] for item in answer.result["snapshots"]]


def test_every_command_works_on_a_repository(home: Path, repository: Repository) -> None:
    """Two nights; listed, shown, verified, extracted, compared, drilled, restored, pruned."""
    words = repository.words

    def run(*parts: object, code: int = 0) -> dict[str, Any]:
        answer = call("--home", home, *parts, *words, "--json")
        assert answer.code == code, answer
        return answer.result

    missing = call("--home", home, "backup", *words)
    first = run("backup", "--init-repository")
    repository.weaken()
    (home / "data/new.txt").write_text("new")
    second = run("backup", "--read-back", "full")

    assert missing.code == 10, missing
    assert "--init-repository" in missing.err
    assert second["read_back_bytes"] == second["archive_bytes"]
    listed = run("snapshots", "list")["snapshots"]
    assert [item["id"] for item in listed] == [first["id"], second["id"]]
    assert {item["authenticity"] for item in listed} == {"authentic"}
    assert all(item["verified_at"] for item in listed)
    by_place = call("--home", home, "snapshots", "list", "--json", "--snapshots", repository.place)
    assert _ids(by_place) == [first["id"], second["id"]]
    assert run("snapshots", "show", "latest")["id"] == second["id"]
    for part in (("latest",), (first["id"],), ("latest", "--hash"), ("--chain",)):
        run("snapshots", "verify", *part)
    out = home.with_name("out")
    run("snapshots", "extract", "latest", "data/new.txt", "--to", out)
    assert [path.name for path in out.rglob("*") if path.is_file()] == ["new.txt"]
    changes = run("snapshots", "diff")
    assert "data/new.txt" in json.dumps(changes)
    run("drill", "latest")
    status = run("status")["snapshots"]
    assert status["newest"]["id"] == second["id"]
    assert status["newest"]["proved_restorable_at"]
    copy = home.with_name("copy")
    run("restore", "latest", "--to", copy, "--install-key", home / "secrets/master.key")
    assert rows_of(copy / "db/sagewai.db") == rows_of(home / "db/sagewai.db")
    pruned = run("snapshots", "prune", "--keep-last", "1")
    assert pruned["removed"] == [first["id"]]
    run("snapshots", "undelete", first["id"])
    assert _ids(call("--home", home, "snapshots", "list", "--json", *words)) == [
        first["id"],
        second["id"],
    ]
    before = repository.size_bytes()
    for _night in range(2):
        run("snapshots", "prune", "--keep-last", "1")
    assert run("snapshots", "prune", "--keep-last", "1", "--reclaim")["reclaimed"]
    assert repository.size_bytes() < before
    assert len(repository.stored()) == 3, "the tree, its card and the record of what was removed"
    leftovers = [path.name for path in home.parent.iterdir() if path.name.startswith(".sagewai")]
    assert leftovers == []


def test_password_of_a_file_or_command_reaches_the_engine_through_no_argument(
    home: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nor does the master key or another variable of Sagewai reach it at all."""
    for name in repository.password_variables:
        monkeypatch.delenv(name, raising=False)
    secret = tmp_path / "password"
    secret.write_text(f"{PASSWORD}\n")
    secret.chmod(0o600)
    record = repository.wrap(tmp_path / "bin", monkeypatch)
    monkeypatch.setenv("SAGEWAI_MASTER_KEY", "planted-key")
    monkeypatch.setenv("SAGEWAI_DATABASE_PASSWORD", "planted-password")

    by_file = call(
        *("--home", home, "backup", "--init-repository", "--passphrase-file", secret),
        *repository.words,
    )
    by_command = call(
        *("--home", home, "snapshots", "list", "--passphrase-command", f"cat {secret}"),
        *repository.words,
    )
    others = [
        call("--home", home, *words, "--passphrase-file", secret, *repository.words)
        for words in (
            ("snapshots", "prune", "--keep-last", "1"),
            ("snapshots", "undelete", "--all"),
            ("status", "--json"),
            ("db", "upgrade"),
        )
    ]
    without = call("--home", home, "snapshots", "list", *repository.words)

    assert by_file.code in (0, 3), by_file
    assert by_command.code == 0, by_command
    assert [answer.code for answer in others] == [0, 0, 0, 0], others
    assert others[2].result["snapshots"]["newest"]
    assert (without.code, without.out) == (12, ""), without
    seen = record.read_text()
    assert seen.count("ARGUMENTS") > 3
    assert PASSWORD not in seen
    assert "planted" not in seen
    assert str(repository.path) in seen  # in its environment
    arguments = [line for line in seen.splitlines() if line.startswith("ARGUMENTS")]
    assert not any(str(repository.path) in line for line in arguments)


def test_wrong_password_is_exit_12_and_the_home_is_unchanged(
    home: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a list and for a backup, in two lines."""
    assert call("--home", home, "backup", "--init-repository", *repository.words).code == 0
    repository.set_password("wrong", monkeypatch)
    before = everything_of(home)

    answers = [
        call("--home", home, *words, *repository.words)
        for words in (("backup",), ("snapshots", "list"), ("restore", "latest", "--dry-run"))
    ]

    assert [answer.code for answer in answers] == [12, 12, 12], answers
    assert all(len(answer.err.splitlines()) == 2 for answer in answers)
    assert everything_of(home) == before


def test_changed_tree_is_not_listed_and_the_next_run_continues(
    home: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An engine that returns other bytes: 16, and nothing is listed; then an honest one."""
    assert call("--home", home, "backup", "--init-repository", *repository.words).code == 0
    repository.weaken()
    with monkeypatch.context() as patch:
        repository.alter(tmp_path / "bin", patch)
        damaged = call("--home", home, "backup", *repository.words)
    stored = repository.stored()
    listed = call("--home", home, "snapshots", "list", "--json", *repository.words)
    again = call("--home", home, "backup", *repository.words)

    assert damaged.code == 16, damaged
    assert len(_ids(listed)) == 1
    assert len(stored) == 2, "the first tree and its card"
    assert again.code == 0, again


@pytest.mark.parametrize("answer", ["echo '{' ; exit 0", "echo '[{}]'", "exit 77", "kill -9 $$"])
@pytest.mark.parametrize("engine", ENGINES)
def test_unknown_answer_of_an_engine_is_an_error(
    home: Path, engine: str, answer: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither an unknown exit code nor unknown JSON is success, nor a traceback."""
    program = tmp_path / "bin" / engine
    program.parent.mkdir()
    version = {"restic": "restic 0.16.4 compiled with go", "borg": "borg 1.2.4"}[engine]
    program.write_text(
        f'#!/bin/sh\ncase "$*" in *ersion) echo "{version}"; exit 0;; esac\n{answer}\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    found = call("--home", home, "snapshots", "list", "--snapshots", f"{engine}:/none")

    assert found.code == 1, found
    assert found.err.startswith(f"sagewai-ops: error: {engine}: ")
    assert len(found.err.splitlines()) == 2


@pytest.mark.parametrize(
    ("engine", "version"),
    [("restic", "restic 0.9.6 compiled"), ("borg", "borg 1.1.16"), ("borg", "borg 2.0.0b5")],
)
def test_unknown_version_is_refused(
    home: Path, engine: str, version: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Too old, or with other commands."""
    program = tmp_path / "bin" / engine
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "{version}"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    found = call("--home", home, "snapshots", "list", "--snapshots", f"{engine}:/none")

    assert found.code == 1, found
    assert "required" in found.err


def test_options_that_contradict_a_repository_are_refused(home: Path) -> None:
    """In words, before the engine is started."""
    place = ("--engine", "restic", "--repository", "/none")
    for words in (
        ("backup", *place, "--compact"),
        ("backup", *place, "--key", "sealed"),
        ("backup", *place, "--output", "-"),
        ("backup", "--init-repository"),
        ("backup", "--repository", "/none"),
        ("backup", "--engine", "kopia", "--repository", "/none"),
        ("snapshots", "list", *place, "--snapshots", "/elsewhere"),
        ("snapshots", "prune", "--keep-last", "1", "--passphrase-file", "/none"),
        ("snapshots", "undelete", "--all", "--passphrase-file", "/none"),
        ("status", "--passphrase-command", "false"),
        ("db", "upgrade", "--passphrase-file", "/none"),
        ("snapshots", "list", "--snapshots", "restic:rest:http://user:secret@host/"),
    ):
        answer = call("--home", home, *words)
        assert answer.code == 2, (words, answer)
        assert "secret" not in answer.err


def test_a_missing_engine_is_not_found(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 10 with the command that installs it."""
    monkeypatch.setenv("PATH", "/nonexistent")

    answer = call("--home", home, "snapshots", "list", "--snapshots", "borg:/none")

    assert answer.code == 10, answer
    assert "apt install borgbackup" in answer.err


def test_restic_opens_everything_without_us(home: Path, tmp_path: Path) -> None:
    """No lock-in: `restic restore` writes the mirror, and `restore` reads it."""
    if shutil.which("restic") is None:
        pytest.skip("restic is not installed")
    environment = {**os.environ, "RESTIC_PASSWORD": PASSWORD}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESTIC_PASSWORD", PASSWORD)
        place = f"restic:{tmp_path}/repository"
        words = ("--engine", "restic", "--repository", tmp_path / "repository")
        assert call("--home", home, "backup", *words, "--init-repository").code == 0
        assert call("--home", home, "snapshots", "list", "--snapshots", place).code == 0
    arguments = ["-r", str(tmp_path / "repository"), "--path", f"{home}.snapshots/tree"]
    subprocess.run(
        ["restic", "restore", "latest", *arguments, "--target", str(tmp_path / "back")],
        env=environment,
        check=True,
        capture_output=True,
    )
    key = home / "secrets/master.key"
    answer = call("restore", tmp_path / "back/tree", "--to", tmp_path / "new", "--install-key", key)

    assert answer.code == 0, answer
    assert rows_of(tmp_path / "new/db/sagewai.db") == rows_of(home / "db/sagewai.db")
