"""What `--json` prints has the shapes of docs/json/."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from json_schemas import DIRECTORY, problems
from program import Answer, call
from sagewai_ops.cli import main
from small_homes import small

ENVELOPE = "envelope"
DRY_RUN = "dry-run"  # of commands without a plan of their own


def _commands() -> set[str]:
    """Return every command, groups apart, with dashes."""

    def walk(name: str, command: object) -> set[str]:
        below = getattr(command, "commands", None)
        if below is None:
            return {name}
        return {each for word in below for each in walk(f"{name}-{word}".strip("-"), below[word])}

    return walk("", typer.main.get_command(main.build_app()))


def _held(name: str, answer: Answer) -> dict[str, object]:
    """Return a result, after it and its envelope were held against their schemas."""
    assert problems(ENVELOPE, answer.document) == []
    assert problems(name, answer.result) == []
    return answer.result


def test_every_command_has_a_schema() -> None:
    """And no schema describes a command that is gone."""
    assert {path.stem for path in DIRECTORY.glob("*.json")} - {ENVELOPE, DRY_RUN} == _commands()


def test_a_failure_is_an_envelope_too(tmp_path: Path) -> None:
    """With no result, and an error in words."""
    answer = call("--home", tmp_path / "none", "backup", "--json")

    assert problems(ENVELOPE, answer.document) == []
    assert (answer.document["status"], answer.document["result"]) == ("error", None)


@pytest.mark.parametrize("words", [["init"], ["init", "--no-key"]])
def test_init(tmp_path: Path, words: list[str]) -> None:
    """The first time and on what it made itself."""
    made = _held("init", call("--home", tmp_path / "home", *words, "--json"))

    assert made["made"]
    assert _held("init", call("--home", tmp_path / "home", *words, "--json"))["left"]


def test_verify_perms(tmp_path: Path) -> None:
    """Found, repaired, and undone."""
    home = small(tmp_path / "home").root
    (home / "config").chmod(0o777)
    (home / "secrets/master.key").chmod(0o644)
    words = ("--home", home, "verify-perms", "--json")

    assert _held("verify-perms", call(*words))["findings"]
    repaired = _held("verify-perms", call(*words, "--fix"))
    assert repaired["changes"]
    undone = _held("verify-perms", call(*words, "--undo", repaired["record"]))
    assert undone["changes"]


def test_migrate_layout(tmp_path: Path) -> None:
    """Planned, done, and with nothing left to do."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "connections.json").write_text("{}")
    words = ("--home", home, "migrate-layout", "--json")

    assert _held("migrate-layout", call(*words, "--dry-run"))["steps"]
    assert _held("migrate-layout", call(*words))["items"]
    assert _held("migrate-layout", call(*words))["items"] == []


def test_restore(tmp_path: Path) -> None:
    """Planned, done, undone, and nothing to recover."""
    home = small(tmp_path / "home").root
    call("--home", home, "backup")
    words = ("--home", home, "restore", "--json")

    assert _held("restore", call(*words, "latest", "--replace", "--dry-run"))["snapshot"]
    assert _held("restore", call(*words, "latest", "--replace"))["before"]
    assert _held("restore", call(*words, "--undo"))["brought_back"]
    assert _held("restore", call(*words, "--recover"))["recovery"] == "nothing to do"
