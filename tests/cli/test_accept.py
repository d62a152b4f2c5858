"""`backup --accept`: a known, harmless cause neither alerts every night nor disables retention."""

from __future__ import annotations

import contextlib
import socket
import sqlite3
from pathlib import Path

import pytest

from program import call
from small_homes import small


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a socket."""
    root = small(tmp_path / "home").root
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "data/x.sock"))
    return root


def test_incomplete_snapshot_is_named_with_what_to_do(home: Path) -> None:
    """It was created, where it is, and the option for a file that is not needed."""
    answer = call("--home", home, "backup")

    assert answer.code == 3
    assert "created, but not complete; it is " in answer.err
    assert "sagewai-ops backup --exclude data/x.sock" in answer.err


@pytest.mark.parametrize("accepted", ["special", "data/x.sock", "data/*.sock"])
def test_cause_is_accepted_by_rule_or_path(home: Path, accepted: str) -> None:
    """Exit 0, retention is applied, and the snapshot records what was accepted."""
    answer = call("--home", home, "backup", "--accept", accepted, "--keep-last", "1", "--json")

    assert answer.code == 0
    assert [cause["name"] for cause in answer.result["accepted"]] == ["data/x.sock"]
    assert answer.result["complete"]
    assert answer.result["retention"]["applied"]


def test_cause_is_accepted_in_the_configuration(home: Path, tmp_path: Path) -> None:
    """The timer has no command line to edit."""
    file = tmp_path / "config.toml"
    file.write_text('[backup]\naccept = ["special"]\n')
    file.chmod(0o600)

    assert call("--config", file, "--home", home, "backup").code == 0


def test_another_cause_is_not_accepted(home: Path) -> None:
    """Only what is named."""
    assert call("--home", home, "backup", "--accept", "data/other.sock").code == 3


def test_broken_references_are_accepted_by_rule(home: Path) -> None:
    """A known finding of the database; damage of the file is never accepted by its path."""
    with contextlib.closing(sqlite3.connect(home / "db/sagewai.db")) as connection:
        connection.execute("CREATE TABLE a (id INTEGER PRIMARY KEY)")
        connection.execute("CREATE TABLE b (a INTEGER REFERENCES a (id))")
        connection.execute("INSERT INTO b VALUES (7)")
        connection.commit()

    found = call("--home", home, "backup", "--exclude", "data/*.sock")
    accepted = call(
        "--home", home, "backup", "--exclude", "data/*.sock", "--accept", "foreign-keys"
    )

    assert (found.code, accepted.code) == (4, 0)
    assert "sagewai-ops backup --accept foreign-keys" in found.err
