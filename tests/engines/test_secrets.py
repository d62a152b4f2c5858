"""Secrets of root do not reach an engine that runs with the rights of a home's owner."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from engine_repositories import PASSWORD, Repository, repository
from program import call, run
from sagewai_ops.engines.repository import Connection, open_engine
from small_homes import small
from unprivileged import NO_USER, reachable_directory

__all__ = ["repository"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize(
    "source", ["variable", "credential", "file", "command", "engine's command", "readable"]
)
@pytest.mark.parametrize("repository", ["restic"], indirect=True)
def test_secret_of_root_is_refused_before_the_engine_gets_it(
    repository: Repository, source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A password that the owner of the home can read is used."""
    with reachable_directory() as place:
        home = small(place / "user/home").root
        for path in (place / "user", *(place / "user").rglob("*")):
            os.chown(path, NO_USER, NO_USER, follow_symlinks=False)
        (place / "record").touch()
        (place / "record").chmod(0o666)
        programs = place / "bin"
        programs.mkdir()
        (programs / "restic").write_text(
            f'#!/bin/sh\nenv >> {place}/record\nexec {shutil.which("restic")} "$@"\n'
        )
        for path in (programs, programs / "restic"):
            path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        secret = place / "password" if source == "readable" else tmp_path / "password"
        secret.write_text(PASSWORD)
        words: list[object] = []
        if source == "command":
            words = ["--passphrase-command", f"cat {secret}"]
        elif source != "variable":
            words = ["--passphrase-file", secret]
        if source == "engine's command":
            words = []
            monkeypatch.setenv("RESTIC_PASSWORD_COMMAND", f"echo {PASSWORD}")
        if source == "credential":
            words = []
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-key")
        if source != "variable":
            monkeypatch.delenv("RESTIC_PASSWORD")

        answer = run(
            *("--home", home, "backup", "--engine", "restic", "--init-repository"),
            *("--repository", place / "user/repository", *words),
        )

        seen = (place / "record").read_text()
    if source == "readable":
        assert answer.code in (0, 3), answer
        assert seen
        assert f"HOME={os.environ['HOME']}" not in seen.splitlines()
    else:
        assert answer.code == 14, answer
        assert "hint: sudo -u " in answer.err
        assert seen == ""


def test_password_of_a_passed_descriptor_is_read_once_for_all_runs(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """BORG_PASSPHRASE_FD, and RESTIC_PASSWORD_FILE with a descriptor."""
    home = small(tmp_path / "home").root
    reading, writing = os.pipe()
    os.write(writing, f"{PASSWORD}\n".encode())
    os.close(writing)
    for name in repository.password_variables:
        monkeypatch.delenv(name)
    variable, value = {
        "borg": ("BORG_PASSPHRASE_FD", str(reading)),
        "restic": ("RESTIC_PASSWORD_FILE", f"/dev/fd/{reading}"),
    }[repository.engine]
    monkeypatch.setenv(variable, value)

    try:
        first = call("--home", home, "backup", *repository.words, "--init-repository")
    finally:
        os.close(reading)
    closed = call("--home", home, "backup", *repository.words)
    monkeypatch.delenv(variable)
    repository.set_password(PASSWORD, monkeypatch)
    second = call("--home", home, "snapshots", "list", *repository.words)

    assert first.code in (0, 3), first
    assert closed.code == 12, closed
    assert second.code == 0, second


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("owner", [0, NO_USER])
def test_root_does_not_use_the_configuration_of_another_user(
    owner: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HOME under `sudo`: the configuration of rclone there names commands."""
    with reachable_directory() as place:
        (place / "user").mkdir()
        os.chown(place / "user", owner, owner)
        (tmp_path / "restic").write_text(f'#!/bin/sh\nenv > "{tmp_path}/seen"\necho "[]"\n')
        (tmp_path / "restic").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        monkeypatch.setenv("HOME", str(place / "user"))
        monkeypatch.setenv("XDG_CONFIG_HOME", str(place / "user/.config"))
        named = Connection("restic", "restic:/none", "/none", dict(os.environ))
        open_engine(named).list()

    seen = (tmp_path / "seen").read_text().splitlines()
    assert (f"HOME={place}/user" in seen) == (owner == 0)
    assert any(line.startswith("XDG_") for line in seen) == (owner == 0)
    assert any(line.startswith("HOME=/") for line in seen)
