"""Tables of remote places in the configuration file."""

from __future__ import annotations

from pathlib import Path

import pytest

from memory_store import MemoryStore
from program import Answer, call
from sagewai_ops.remote import address as addresses
from sagewai_ops.remote import marker
from small_homes import small

TABLE = '[remote.offsite]\nurl = "s3://backups/sagewai"\nkeep-last = 1\n'


def _backup(tmp_path: Path, text: str, *words: object) -> Answer:
    configuration = tmp_path / "config.toml"
    configuration.write_text(text)
    configuration.chmod(0o600)
    home = small(tmp_path / "home").root
    return call("--home", home, "--config", configuration, "backup", "--json", *words)


def test_name_opens_the_url_and_has_its_rules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`offsite:` is a place, and its rules apply to copies there."""
    store, opened = MemoryStore(), []

    def open_store(address: addresses.Address, _environment: object) -> MemoryStore:
        opened.append(str(address))
        return store

    monkeypatch.setattr(addresses, "open_store", open_store)
    monkeypatch.setattr(marker, "require_marker", lambda _store: None)
    answer = _backup(tmp_path, TABLE, "--also", "offsite:", "--allow-clear")

    assert answer.code == 0, answer
    assert opened == ["s3://backups/sagewai"]
    (copy,) = answer.document["result"]["copies"]
    assert copy["to"] == "offsite:"
    assert copy["retention"]["policy"]["last"] == 1
    assert len([name for name in store.names() if name.endswith(".json")]) == 1


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[remote.offsite]\nkeep-last = 1\n", "no url"),
        (TABLE + "keep-forever = 1\n", "keep-forever: unknown"),
        (TABLE.replace("1", '"1"'), "keep-last: not of the type"),
        (TABLE + "colour = 1\n", "colour: unknown"),
        (TABLE.replace("offsite", "x"), "not a name"),
        (TABLE.replace("backups", "user:password@backups"), "not allowed in an address"),
    ],
)
def test_invalid_table_is_an_error_of_every_command(tmp_path: Path, text: str, part: str) -> None:
    """It names the file; a typo must not wait for the nightly run."""
    answer = _backup(tmp_path, text)

    assert answer.code == 2
    assert part in answer.document["error"]["message"]
    assert "config.toml" in answer.document["error"]["message"]
    assert "password" not in answer.out.replace("user, password and signature", "")


def test_unknown_name_is_no_directory(tmp_path: Path) -> None:
    """A typo in a name must not create a directory for the snapshots."""
    answer = _backup(tmp_path, "", "--to", "ofsite:", "--allow-clear")

    assert answer.code == 2
    assert "ofsite" in answer.document["error"]["message"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.toml", "home"]
