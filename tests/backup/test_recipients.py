"""No plain archive next to encrypted ones, unless an option demands it."""

from __future__ import annotations

import json
from pathlib import Path

import pyrage
import pytest

from program import call
from small_homes import small

RECIPIENT = str(pyrage.x25519.Identity.generate().to_public())
OTHER = str(pyrage.x25519.Identity.generate().to_public())


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home whose only snapshot is encrypted."""
    root: Path = small(tmp_path / "home", rows=1).root
    assert call("--home", root, "backup", "--recipient", RECIPIENT).code == 0
    return root


def _archives(home: Path) -> list[str]:
    return sorted(
        path.name.partition(".tar.zst")[2]
        for path in home.with_name("home.snapshots").glob("*.tar.zst*")
        if path.suffix != ".json"
    )


def _card(home: Path) -> Path:
    (path,) = home.with_name("home.snapshots").glob("*.json")
    return path


@pytest.mark.parametrize("words", [(), ("--dry-run",)])
def test_backup_that_lost_its_recipient_fails(home: Path, words: tuple[str, ...]) -> None:
    """A nightly job must not begin to write plain archives; the hint names both options."""
    answer = call("--home", home, "backup", *words)

    assert answer.code == 2
    assert "--recipient" in answer.err
    assert "--unencrypted" in answer.err
    assert _archives(home) == [".age"]


def test_plain_archive_can_be_demanded(home: Path) -> None:
    """Then later ones need no option: the newest one is plain."""
    assert call("--home", home, "backup", "--unencrypted").code == 0
    assert call("--home", home, "backup").code == 0
    assert _archives(home) == ["", "", ".age"]


def test_automatic_snapshot_is_encrypted_like_the_newest(home: Path) -> None:
    """Preflight has no recipient of its own; the drill then needs the identity."""
    answer = call("--home", home, "preflight", "--json")

    assert answer.document["result"]["snapshot"]
    assert _archives(home) == [".age", ".age"]


def test_the_recipients_outlast_a_rotation_of_the_key(home: Path) -> None:
    """The former key authenticates them; the home itself encrypts no value with it."""
    rotated = call("--home", home, "keys", "rotate", "--recipient", RECIPIENT, "--yes")
    assert rotated.code == 0, rotated.err

    answer = call("--home", home, "preflight", "--json")

    assert answer.document["result"]["snapshot"]
    assert _archives(home) == [".age"] * 3


@pytest.mark.parametrize("change", ["other key", "no recipients", "no card"])
def test_recipients_that_are_not_authentic_do_not_count(home: Path, change: str) -> None:
    """A writer of the directory cannot add a recipient, nor make the next snapshot plain."""
    path = _card(home)
    card = json.loads(path.read_text())
    if change == "other key":
        card["recipients"]["keys"].append(OTHER)
    elif change == "no recipients":
        del card["recipients"]
    path.write_text(json.dumps(card))
    if change == "no card":
        path.unlink()

    answer = call("--home", home, "preflight", "--json")

    snapshot = next(c for c in answer.document["result"]["checks"] if c["check"] == "snapshot")
    assert (answer.code, snapshot["exit_code"]) == (2, 2)
    assert _archives(home) == [".age"]


@pytest.mark.parametrize("place", ["file", "variable"])
def test_configuration_of_backup_applies_to_automatic_snapshots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Also for the first snapshot of a home."""
    home: Path = small(tmp_path / "home", rows=1).root
    words: tuple[object, ...] = ()
    if place == "file":
        (tmp_path / "c.toml").write_text(f'[backup]\nrecipient = ["{RECIPIENT}"]\n')
        words = ("--config", tmp_path / "c.toml")
    else:
        monkeypatch.setenv("SAGEWAI_OPS_BACKUP_RECIPIENT", RECIPIENT)

    call("--home", home, *words, "preflight", "--json")

    assert _archives(home) == [".age"]


def test_upgrade_writes_no_plain_archive(home: Path) -> None:
    """Its snapshot is automatic too."""
    import sqlite3

    connection = sqlite3.connect(home / "db/sagewai.db")
    connection.execute("DROP TABLE IF EXISTS fleet_tasks")
    connection.commit()
    connection.close()

    assert call("--home", home, "db", "upgrade").code in (0, 3)
    assert _archives(home) == [".age", ".age"]
