"""Copies between archives and repositories, in both directions."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyrage
import pytest

from engine_repositories import PASSWORD, Repository, repository
from program import Answer, call
from small_homes import everything_of, rows_of, small

__all__ = ["repository"]


def _listed(home: Path, place: object) -> list[dict[str, object]]:
    answer = call("--home", home, "snapshots", "list", "--json", "--snapshots", place)
    assert answer.code == 0, answer
    found: list[dict[str, object]] = answer.result["snapshots"]
    return found


def _copy(home: Path, *words: object) -> Answer:
    return call("--home", home, "snapshots", "copy", "--json", *words)


def test_snapshots_are_copied_to_a_repository_and_back(
    tmp_path: Path, repository: Repository
) -> None:
    """Ids, rows, authenticity and the chain stay; a second copy finds them present."""
    home: Path = small(tmp_path / "home").root
    key = pyrage.x25519.Identity.generate()
    identity = tmp_path / "identity"
    identity.write_text(f"{key}\n")
    identity.chmod(0o600)
    source, back = tmp_path / "home.snapshots", tmp_path / "back"
    to_repository = (source, repository.place, "--all", "--identity", identity)
    for _night in range(2):
        assert call("--home", home, "backup", "--recipient", str(key.to_public())).code == 0

    missing = _copy(home, *to_repository)
    stored = _copy(home, *to_repository, "--init-repository")
    again = _copy(home, *to_repository)
    returned = _copy(home, repository.place, back, "--all", "--recipient", str(key.to_public()))

    assert missing.code == 10, missing
    assert stored.code == again.code == returned.code == 0, (stored, again, returned)
    assert len(stored.result["copied"]) == len(returned.result["copied"]) == 2
    assert (again.result["copied"], len(again.result["present"])) == ([], 2)
    ids = [item["id"] for item in _listed(home, source)]
    for place in (repository.place, back):
        found = _listed(home, place)
        assert [item["id"] for item in found] == ids
        assert {item["authenticity"] for item in found} == {"authentic"}
        chain = call("--home", home, "snapshots", "verify", "--chain", "--snapshots", place)
        assert chain.code == 0, chain
    assert len(list(back.glob("*.tar.zst.age"))) == 2
    new = tmp_path / "new"
    words = ("--to", new, "--identity", identity, "--install-key", home / "secrets/master.key")
    restored = call("restore", "latest", "--snapshots", back, *words)
    assert restored.code == 0, restored
    assert rows_of(new / "db/sagewai.db") == rows_of(home / "db/sagewai.db")


def test_a_snapshot_with_the_key_is_not_copied_to_a_repository(tmp_path: Path) -> None:
    """Exit 2; a plain archive is not made in a remote place without a word."""
    if shutil.which("restic") is None:
        pytest.skip("restic is not installed")
    home: Path = small(tmp_path / "home").root
    key = pyrage.x25519.Identity.generate()
    identity = tmp_path / "identity"
    identity.write_text(f"{key}\n")
    identity.chmod(0o600)
    words = ("--recipient", str(key.to_public()), "--key", "sealed")
    assert call("--home", home, "backup", *words).code == 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESTIC_PASSWORD", "password")
        place = f"restic:{tmp_path}/repository"
        answer = _copy(
            home, f"{home}.snapshots", place, "--init-repository", "--identity", identity
        )

        assert answer.code == 2, answer
        assert _listed(home, place) == []
    for refused in (("--recipient", str(key.to_public())), ("--init-repository",)):
        assert _copy(home, f"{home}.snapshots", tmp_path / "copy", *refused).code == 2


def test_archives_with_a_passphrase_are_copied_to_a_repository_and_back(
    tmp_path: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The passphrase of archives and the password of the repository are two options."""
    home: Path = small(tmp_path / "home").root
    password, passphrase = tmp_path / "password", tmp_path / "passphrase"
    for file, text in ((password, PASSWORD), (passphrase, "of the archives")):
        file.write_text(f"{text}\n")
        file.chmod(0o600)
    for name in repository.password_variables:
        monkeypatch.delenv(name)
    source, back = tmp_path / "home.snapshots", tmp_path / "back"
    backup = call("--home", home, "backup", "--passphrase-file", passphrase)
    assert backup.code == 0, backup
    of_repository = ("--passphrase-file", password)
    of_archives = ("--archive-passphrase-file", passphrase)
    to_repository = (source, repository.place, *of_repository, "--init-repository")

    missing = _copy(home, *to_repository)
    exchanged = _copy(home, *to_repository, "--archive-passphrase-file", password)
    stored = _copy(home, *to_repository, *of_archives)
    returned = _copy(home, repository.place, back, *of_repository, *of_archives)
    without = _copy(home, source, tmp_path / "plain", *of_archives)

    assert (missing.code, exchanged.code, without.code) == (12, 12, 2), (missing, exchanged)
    assert "--archive-passphrase-file" in missing.out
    assert stored.code == returned.code == 0, (stored, returned)
    assert len(list(back.glob("*.tar.zst.age"))) == 1
    restored = call(
        *("restore", "latest", "--snapshots", back, "--to", tmp_path / "new"),
        *("--passphrase-file", passphrase, "--install-key", home / "secrets/master.key"),
    )
    assert restored.code == 0, restored
    assert rows_of(tmp_path / "new/db/sagewai.db") == rows_of(home / "db/sagewai.db")


def test_a_repository_does_not_get_the_old_key_of_a_rotation(
    tmp_path: Path, repository: Repository
) -> None:
    """Exit 2 before anything is changed; the hint names a directory."""
    home: Path = small(tmp_path / "home").root
    recipient = ("--recipient", str(pyrage.x25519.Identity.generate().to_public()))
    before = everything_of(home)

    for words in (repository.words, ("--snapshots", repository.place)):
        answer = call("--home", home, "keys", "rotate", *recipient, *words)
        assert answer.code == 2, answer
        assert "no repository gets the old key" in answer.err
        assert "--snapshots DIR" in answer.err
    assert everything_of(home) == before
    assert not repository.path.exists()
