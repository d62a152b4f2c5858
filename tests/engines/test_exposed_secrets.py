"""What other users can see of an engine: its arguments, and the environment for its own user."""

from __future__ import annotations

from pathlib import Path

import pyrage
import pytest

from engine_repositories import PASSWORD, Repository, repository
from program import call
from small_homes import small

__all__ = ["repository"]


def test_no_run_of_an_engine_has_a_secret_that_is_not_its_own(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In every command with a repository; the password reaches it through a pipe."""
    home = small(tmp_path / "home").root
    key, password = home / "secrets/master.key", tmp_path / "password"
    identity = pyrage.x25519.Identity.generate()
    (tmp_path / "identity").write_text(f"{identity}\n")
    password.write_text(PASSWORD)
    for file in (password, tmp_path / "identity"):
        file.chmod(0o600)
    for name in repository.password_variables:
        monkeypatch.delenv(name)
    for name in ("SAGEWAI_DATABASE_PASSWORD", "PGPASSWORD", "SAGEWAI_OPS_NOTIFY_TOKEN"):
        monkeypatch.setenv(name, "planted-credential")
    record = repository.wrap(tmp_path / "bin", monkeypatch)
    words = (*repository.words, "--passphrase-file", password)
    first = call("--home", home, "backup", "--init-repository", *words)
    assert first.code == 0, first
    repository.weaken()
    archives = tmp_path / "archives"
    recipient = ("--recipient", str(identity.to_public()))
    assert call("--home", home, "backup", "--to", archives, *recipient).code == 0
    commands: list[tuple[object, ...]] = [
        ("backup", "--read-back", "full"),
        ("snapshots", "list"),
        ("snapshots", "show", "latest"),
        ("snapshots", "verify", "latest"),
        ("snapshots", "diff"),
        ("snapshots", "extract", "latest", "config", "--to", tmp_path / "out"),
        ("restore", "latest", "--to", tmp_path / "new", "--install-key", key),
        ("drill", "latest"),
        ("status",),
        ("preflight",),
        ("snapshots", "prune", "--keep-last", "1", "--reclaim"),
        ("snapshots", "undelete", "--all"),
    ]
    copies: list[tuple[object, ...]] = [
        (archives, repository.place, "--identity", tmp_path / "identity"),
        (repository.place, tmp_path / "back", *recipient),
    ]
    commands += [("snapshots", "copy", *copy, "--passphrase-file", password) for copy in copies]

    unused = []
    for command in commands:
        before = record.read_text().count("ARGUMENTS")
        given = words if command[:2] != ("snapshots", "copy") else ()
        answer = call("--home", home, *command, *given)
        assert answer.code in (0, 3, 4, 10), (command, answer)
        if record.read_text().count("ARGUMENTS") == before:
            unused.append(command)

    assert unused == [], "a command started no engine, so the test proves nothing of it"
    seen = record.read_text()
    for secret in (PASSWORD, key.read_text().strip(), "planted", str(identity)):
        assert secret not in seen
