"""Root over the home of another user: the work is done with that user's rights."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyrage
import pytest
import zstandard

from program import COMMAND, PATIENCE_SECONDS, call, run
from sagewai_ops.cli import acting
from sagewai_ops.errors import OpsError
from sagewai_ops.fs.monitor import Grant
from sagewai_ops.process import parent
from sagewai_ops.process.privileges import Account
from unprivileged import NO_USER, reachable_directory, unprivileged

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="root works on another user's home")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory of root's that every user can enter."""
    with reachable_directory() as directory:
        directory.chmod(0o755)
        yield directory


@pytest.fixture
def home(place: Path) -> Path:
    """A home that a user created in a directory of the user's."""
    (place / "user").mkdir()
    os.chown(place / "user", NO_USER, NO_USER)
    answer = run("--home", place / "user/home", "init")
    assert answer.code == 0, answer.err
    return place / "user/home"


def _owners(path: Path) -> set[int]:
    return {entry.lstat().st_uid for entry in (path, *path.rglob("*"))}


def test_backup_to_a_directory_of_roots_is_roots(place: Path, home: Path) -> None:
    """One process reads the home as its owner, the other writes where only root can."""
    answer = run("--home", home, "backup", "--snapshots", place / "safe", "--json")

    assert answer.code == 0, answer.err + answer.out
    archive = Path(answer.result["archive"])
    assert sorted(os.listdir(place / "safe")) == [archive.name, archive.name + ".json"]
    assert _owners(place / "safe") == {0}
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600
    assert stat.S_IMODE(archive.parent.stat().st_mode) == 0o700
    assert _owners(home) == {NO_USER}


def test_backup_next_to_the_home_is_the_owners(place: Path, home: Path) -> None:
    """What root leaves in the user's directory does not lock the user out."""
    assert run("--home", home, "backup").code == 0

    assert _owners(place / "user") == {NO_USER}
    assert run("--home", home, "snapshots", "verify", "latest").code == 0


def test_files_that_the_owner_cannot_read_stay_out(place: Path, home: Path) -> None:
    """A file of root's in the home is not readable with the owner's rights."""
    secret = home / "data/secret"
    secret.write_text("of root's")
    secret.chmod(0o600)

    answer = run("--home", home, "backup", "--snapshots", place / "safe", "--json")

    assert answer.code != 0
    assert "data/secret" in answer.out


def test_root_does_not_work_as_root_where_a_user_can_replace_the_home(place: Path) -> None:
    """A home of root's in a user's directory could be exchanged for any other directory."""
    home = place / "home"
    assert run("--home", home, "init").code == 0
    (place / "user").mkdir()
    os.chown(place / "user", NO_USER, NO_USER)
    home.rename(place / "user/home")

    answer = run("--home", place / "user/home", "verify-perms", "--fix")

    assert answer.code == 14
    assert f"owned by root, but uid {NO_USER} can replace a part of its path" in answer.err


def test_files_in_directories_of_the_user_are_opened_with_its_rights(
    place: Path, home: Path
) -> None:
    """A record in the home is the user's to read; a second name of root's file is not."""
    (home / "secrets/master.key").chmod(0o644)
    assert run("--home", home, "verify-perms", "--fix").code == 0
    (record,) = home.glob(".sagewai-ops-permissions-*")
    (place / "key").write_text("of root's")
    (place / "key").chmod(0o600)
    (place / "user/key").hardlink_to(place / "key")

    undo = run("--home", home, "verify-perms", "--undo", record)
    check = run("--home", home, "keys", "check", "--extra-key", place / "user/key")

    assert undo.code == 0, undo.err
    assert (check.code, "permission denied" in check.err.lower()) == (14, True), check.err


def test_restore_from_a_directory_of_roots_is_the_owners(place: Path, home: Path) -> None:
    """The archive is read by the process that remains root's."""
    (home / "data/note").write_text("x")
    assert run("--home", home, "backup", "--snapshots", place / "safe").code == 0
    (home / "data/note").unlink()

    answer = run("--home", home, "restore", "latest", "--snapshots", place / "safe", "--replace")

    assert answer.code == 0, answer.err
    assert (home / "data/note").read_text() == "x"
    assert _owners(place / "user") == {NO_USER}


def test_restore_creates_a_new_home_for_its_owner(place: Path, home: Path) -> None:
    """--owner, where root alone can create the directory; the plan names it."""
    assert run("--home", home, "backup", "--snapshots", place / "safe").code == 0
    words = ("restore", "latest", "--snapshots", place / "safe", "--to", place / "new")

    plan = run("--home", home, *words, "--owner", NO_USER, "--dry-run", "--json")
    answer = run("--home", home, *words, "--owner", NO_USER, "--install-key", _key_of(place, home))

    assert plan.result["owner"] == "nobody"
    assert answer.code == 0, answer.err
    assert _owners(place / "new") == {NO_USER}


def test_owners_of_an_archive_are_kept_only_on_request(place: Path, home: Path) -> None:
    """Nothing authenticates a clear archive's owners."""
    assert run("--home", home, "backup", "--snapshots", place / "safe").code == 0
    words = ("--home", home, "restore", "latest", "--snapshots", place / "safe")
    key = _key_of(place, home)

    assert run(*words, "--to", place / "plain", "--install-key", key).code == 0
    assert run(*words, "--to", place / "same", "--install-key", key, "--same-owner").code == 0
    refused = run(*words, "--to", place / "user/same", "--install-key", key, "--same-owner")

    assert _owners(place / "plain") == {0}
    assert NO_USER in _owners(place / "same")
    assert (refused.code, (place / "user/same").exists()) == (2, False)


def _key_of(place: Path, home: Path) -> Path:
    key = place / "key"
    key.write_bytes((home / "secrets/master.key").read_bytes())
    key.chmod(0o600)
    return key


def test_files_that_root_names_are_read_with_roots_rights(place: Path, home: Path) -> None:
    """A passphrase file of root's, which the owner cannot read."""
    passphrase = place / "passphrase"
    passphrase.write_text("correct horse")
    passphrase.chmod(0o600)
    words = ("--snapshots", place / "safe", "--passphrase-file", passphrase)

    assert run("--home", home, "backup", *words).code == 0
    assert run("--home", home, "snapshots", "verify", "latest", *words).code == 0


def test_runs_are_reported_with_roots_rights(place: Path, home: Path) -> None:
    """The log and the metrics are root's files."""
    (place / "log").mkdir(0o700)
    answer = run(
        *("--home", home, "backup", "--snapshots", place / "safe"),
        *("--log-file", place / "log/ops.log", "--metrics-file", place / "log/ops.prom"),
    )

    assert answer.code == 0, answer.err
    assert "event=end" in (place / "log/ops.log").read_text()
    assert "exit_code" in (place / "log/ops.prom").read_text()


def test_snapshots_of_roots_are_pruned_and_drilled(place: Path, home: Path) -> None:
    """Everything that changes a snapshot directory goes through root's process."""
    for _night in range(2):
        assert run("--home", home, "backup", "--snapshots", place / "safe").code == 0

    pruned = run(
        "--home", home, "snapshots", "prune", "--snapshots", place / "safe", "--keep-last", 1
    )
    drilled = run("--home", home, "drill", "--snapshots", place / "safe", "--json")

    assert pruned.code == 0, pruned.err
    assert len(list((place / "safe").glob("*.zst"))) == 1
    assert drilled.code == 0, drilled.out
    assert drilled.result["recorded"]
    assert _owners(place / "safe") == {0}


def test_permissions_of_the_home_are_checked_without_roots_snapshots(
    place: Path, home: Path
) -> None:
    """A directory that root alone can write is private; the owner of the home cannot read it."""
    assert run("--home", home, "backup", "--snapshots", place / "safe").code == 0
    home.chmod(0o755)
    (home / "secrets/master.key").chmod(0o644)

    answer = run("--home", home, "verify-perms", "--snapshots", place / "safe", "--fix")

    assert answer.code == 0, answer.out
    assert stat.S_IMODE((home / "secrets/master.key").stat().st_mode) == 0o600


def test_signal_ends_both_processes(place: Path, home: Path) -> None:
    """The partial file is removed; the exit code is the signal's."""
    (home / "data/big").write_bytes(os.urandom(1 << 20) * 64)
    words = ("--home", home, "backup", "--snapshots", place / "safe", "--level", "19")
    with subprocess.Popen([*COMMAND, *map(str, words)], stderr=subprocess.PIPE) as process:
        while not list((place / "safe").glob(".*.partial")):
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        _out, error = process.communicate(timeout=PATIENCE_SECONDS)

    assert process.returncode == 143
    assert b"interrupted by signal 15" in error
    assert os.listdir(place / "safe") == []


def test_end_of_the_process_of_the_owner_is_an_error(place: Path, home: Path) -> None:
    """Its user can kill it: the run reports it, and the next one removes what it left."""
    (home / "data/big").write_bytes(os.urandom(1 << 20) * 64)
    words = ("--home", home, "backup", "--snapshots", place / "safe", "--level", "19")
    with subprocess.Popen([*COMMAND, *map(str, words)], stderr=subprocess.PIPE) as process:
        while not list((place / "safe").glob(".*.partial")):
            assert process.poll() is None
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
        _out, error = process.communicate(timeout=PATIENCE_SECONDS)
    (home / "data/big").unlink()

    again = run("--home", home, "backup", "--snapshots", place / "safe", "--json")

    assert process.returncode == 1
    assert b"ended by signal 9" in error
    assert again.code == 0
    assert json.loads(again.out)["result"]["swept"]
    assert len(os.listdir(place / "safe")) == 2


def test_stop_of_the_process_of_the_owner_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its user can stop it, and would keep root's process, and its locks, without end."""
    monkeypatch.setattr(parent, "_PAUSE_SECONDS", 0.02)
    account = Account(NO_USER, NO_USER, ())

    with pytest.raises(OpsError, match="ended by signal 9"):
        acting.run_in_child(account, Grant(), lambda: os.kill(os.getpid(), signal.SIGSTOP), "", str)


@pytest.mark.parametrize("name", ["home", "safe"])
def test_links_of_the_user_lend_no_rights_of_root(place: Path, home: Path, name: str) -> None:
    """Neither the home nor the snapshot directory that root names is led elsewhere."""
    (place / "roots").mkdir(0o700)
    (place / "roots/config").mkdir()
    link = place / "user" / f"link-to-{name}"
    link.symlink_to(place / "roots")
    os.chown(link, NO_USER, NO_USER, follow_symlinks=False)
    words = ("verify-perms", "--fix") if name == "home" else ("backup", "--snapshots", link)

    answer = run("--home", link if name == "home" else home, *words)

    assert answer.code == {"home": 2, "safe": 14}[name]
    assert os.listdir(place / "roots") == ["config"]
    assert stat.S_IMODE((place / "roots/config").stat().st_mode) == 0o755


def test_owner_needs_root(home: Path) -> None:
    """A user cannot change owners."""
    with unprivileged():
        answer = call("--home", home, "restore", "latest", "--same-owner")

    assert answer.code == 2
    assert "only root can set owners" in answer.err


def test_snapshots_next_to_where_a_users_link_leads_are_not_read(place: Path, home: Path) -> None:
    """A link in the place of the home makes the snapshots of root's home the default."""
    assert run("--home", place / "roots", "init").code == 0
    assert run("--home", place / "roots", "backup").code == 0
    (place / "user/link").symlink_to(place / "roots")
    os.lchown(place / "user/link", NO_USER, NO_USER)
    words = ("restore", "latest", "--to", place / "user/copy", "--without-key")

    answer = run("--home", place / "user/link", *words)

    assert answer.code != 0
    assert not (place / "user/copy").exists()


_WITH_A_PIPE = """
import os, sys
from sagewai_ops.cli import main
from sagewai_ops.database.sqlite import connect
from sagewai_ops.process import pipe_watch

pipe_watch._PAUSE_SECONDS = 0.02
mode, check = int(sys.argv.pop(1), 8), connect.check_sidecars

def replace(path):
    check(path)
    if not os.path.exists(f"{path}.away"):
        os.rename(path, f"{path}.away")
        os.mkfifo(path)
        os.chmod(path, mode)

connect.check_sidecars = replace
main.main()
"""


def _waits_are_shown() -> bool:
    """Return whether the kernel shows what a thread waits for."""
    with contextlib.suppress(OSError):
        return Path("/proc/self/wchan").read_text() != ""
    return False


@pytest.mark.skipif(not _waits_are_shown(), reason="no /proc/PID/wchan")
@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_pipe_of_the_owner_does_not_stop_root(place: Path, home: Path, mode: int) -> None:
    """SQLite waits at a pipe without end; root's process, which waits for it, reports the pipe."""
    words = (f"{mode:o}", "--home", str(home), "backup", "--snapshots", str(place / "safe"))

    done = subprocess.run(
        [sys.executable, "-c", _WITH_A_PIPE, *words],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )

    assert done.returncode == 16, done.stderr
    error, hint = done.stderr.splitlines()
    assert "sagewai.db: " in error or f"{home}: " in error
    assert "pipe" in error
    assert hint.startswith("sagewai-ops: hint: ")


@pytest.mark.parametrize("mode", [0o700, 0o755])
@pytest.mark.parametrize("name", ["config", "db", "secrets", "db/sagewai.db", "secrets/master.key"])
def test_links_in_the_home_lead_to_nothing_of_roots(
    place: Path, home: Path, name: str, mode: int
) -> None:
    """Sagewai follows links at these names; what is root's stays out, readable or not."""
    (home / "config/connections.json").write_text('{"name": "canary-of-root"}')
    key = (home / "secrets/master.key").read_bytes().strip()
    (home / name).rename(place / "roots")
    for path in (place / "roots", *(place / "roots").rglob("*")):
        os.chown(path, 0, 0)
        path.chmod(mode if path.is_dir() else mode & 0o666)
    (home / name).symlink_to(place / "roots")
    os.chown(home / name, NO_USER, NO_USER, follow_symlinks=False)
    own = {"config": b"canary-of-root", "db": b"CREATE TABLE", "secrets": key}

    identity = pyrage.x25519.Identity.generate()
    words = ("--key", "sealed", "--recipient", identity.to_public())

    answer = run("--home", home, "backup", "--snapshots", place / "safe", *words)

    assert answer.code in (3, 4, 12, 14, 16), answer.err
    for archive in (place / "safe").glob("*.age"):
        compressed = pyrage.decrypt(archive.read_bytes(), [identity])
        content = zstandard.ZstdDecompressor().stream_reader(compressed, read_across_frames=True)
        assert own[name.split("/")[0]] not in content.read()


def test_litestream_gets_no_secret_of_roots(place: Path, home: Path) -> None:
    """It runs as the home's owner, who can read its environment and its input in /proc."""
    seen = place / "user/seen"
    program = place / "bin/litestream"
    program.parent.mkdir(0o755)
    program.write_text(
        f"#!/bin/sh\n[ $1 = version ] && echo 0.5.17 && exit\n{{ env; cat; }} > {seen}\nexit 1\n"
    )
    program.chmod(0o755)
    configuration = place / "litestream.yml"
    configuration.write_text("# of-the-file\n# $NAMED\n")
    configuration.chmod(0o600)
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    environment = {"PATH": path, "AWS_SECRET_ACCESS_KEY": "of-root", "NAMED": "of-root"}
    words = ("--home", home, "drill", "--from", "litestream", "--litestream-config", configuration)

    refused = run(*words, environment=environment)
    was_run = seen.exists()
    configuration.chmod(0o644)
    failed = run(*words, environment=environment)

    assert (refused.code, was_run) == (14, False), refused.err
    assert "whose rights litestream gets" in refused.err
    assert failed.code != 0
    assert "of-the-file" in seen.read_text()
    assert "of-root" not in seen.read_text()
