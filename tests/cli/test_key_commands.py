"""`--passphrase-command` and `--identity-command`: the key of a vault, which is shown nowhere."""

from __future__ import annotations

import json
import os
import shlex
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pyrage
import pytest

from program import Answer, call, run, started
from small_homes import small
from unprivileged import NO_USER, reachable_directory

PASSPHRASE = "correct horse battery"
SHOW = f"echo {shlex.quote(PASSPHRASE)}"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A small home."""
    return small(tmp_path / "home").root


@pytest.fixture
def identity() -> pyrage.x25519.Identity:
    """An age identity."""
    return pyrage.x25519.Identity.generate()


def _print(text: str) -> str:
    """Return a command that prints a text without having it in its arguments as one word."""
    return shlex.join(["printf", "%s\\n", *text.splitlines()])


def test_a_passphrase_encrypts_and_decrypts_in_every_command(home: Path, tmp_path: Path) -> None:
    """It is the same as that of a file with this line."""
    file = tmp_path / "passphrase"
    file.write_text(PASSPHRASE + "\n")
    opening = ("--passphrase-command", SHOW)
    for _night in range(2):
        assert call("--home", home, "backup", *opening).code == 0

    answers: list[Answer] = [
        call("--home", home, *words, *opening, "--json")
        for words in (
            ("snapshots", "verify", "latest"),
            ("snapshots", "show", "latest"),
            ("snapshots", "diff"),
            ("snapshots", "list", "--rebuild"),
            ("snapshots", "extract", "latest", "--to", tmp_path / "files"),
            ("restore", "latest", "--to", tmp_path / "copy"),
            ("drill",),
        )
    ]
    by_file = call("--home", home, "snapshots", "verify", "latest", "--passphrase-file", file)

    assert [answer.code for answer in (*answers, by_file)] == [0] * 8
    assert call("--home", home, "snapshots", "verify", "latest").code == 12


def test_an_identity_decrypts(home: Path, identity: pyrage.x25519.Identity) -> None:
    """The command prints an age identity file, with comments."""
    recipient = str(identity.to_public())
    assert call("--home", home, "backup", "--recipient", recipient).code == 0
    command = _print(f"# created: today\n# public key: {recipient}\n{identity}")

    assert call("--home", home, "drill", "--identity-command", command).code == 0
    assert call("--home", home, "drill", "--identity-command", _print(PASSPHRASE)).code == 2


def test_other_commands_encrypt_as_backup_does(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The snapshot before a rotation, by the variable of `backup` or by the configuration."""
    monkeypatch.setenv("SAGEWAI_OPS_BACKUP_PASSPHRASE_COMMAND", SHOW)
    by_variable = call("--home", home, "keys", "rotate", "--json")
    monkeypatch.delenv("SAGEWAI_OPS_BACKUP_PASSPHRASE_COMMAND")
    file = tmp_path / "config.toml"
    file.write_text(f"[backup]\npassphrase-command = {json.dumps(['echo', PASSPHRASE])}\n")
    by_file = call("--home", home, "--config", file, "keys", "rotate", "--json")
    by_option = call("--home", home, "keys", "rotate", "--passphrase-command", SHOW, "--json")

    answers = (by_variable, by_file, by_option)
    assert [answer.code for answer in answers] == [0, 0, 0], [answer.out for answer in answers]
    for answer in answers:
        words = ("snapshots", "verify", answer.result["snapshot"])
        assert call("--home", home, *words, "--passphrase-command", SHOW).code == 0


def test_preflight_creates_and_drills_with_it(home: Path) -> None:
    """One passphrase for both."""
    answer = call("--home", home, "preflight", "--passphrase-command", SHOW, "--json")

    checks = {row["check"]: row["verdict"] for row in answer.result["checks"]}
    assert (checks["snapshot"], checks["drill"]) == ("ok", "ok"), answer.out
    assert answer.result["archive"].endswith(".age")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("backup", "--passphrase-file", "-"), "--passphrase-command: contradicts"),
        (("backup", "--recipient", "age1x"), "--passphrase-command: age takes"),
        (("drill", "--passphrase-file", "x"), "--passphrase-command: contradicts"),
    ],
)
def test_two_sources_contradict_each_other(
    home: Path, words: tuple[str, ...], message: str
) -> None:
    """Nothing is run."""
    assert call("--home", home, "backup").code == 0
    touched = home.with_name("touched")

    answer = call("--home", home, *words, "--passphrase-command", f"touch {touched}")

    assert answer.code == 2
    assert message in answer.err
    assert not touched.exists()


def test_an_identity_file_and_a_command_contradict_each_other(home: Path) -> None:
    """Nothing is run."""
    assert call("--home", home, "backup").code == 0

    answer = call("--home", home, "drill", "--identity", "x", "--identity-command", "/nowhere")

    assert (answer.code, answer.err.splitlines()[0]) == (
        2,
        "sagewai-ops: error: --identity-command: contradicts --identity",
    )


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("'echo", 2, "no closing quotation"),
        ("", 2, "empty"),
        ("/nowhere/vault kv get x", 10, "passphrase command /nowhere/vault: no such file"),
        ("true", 2, "output of --passphrase-command: first line empty"),
        ("printf '\\377'", 2, "output of --passphrase-command: not text in UTF-8"),
        ("cat", 2, "output of --passphrase-command: first line empty"),
        ("yes", 2, "passphrase command yes: prints more than 65536 bytes"),
        ("false", 12, "passphrase command false: exit code 1"),
    ],
)
def test_a_command_without_a_passphrase_is_refused(
    home: Path, command: str, code: int, message: str
) -> None:
    """No snapshot is created, and none is left in part."""
    answer = call("--home", home, "backup", "--passphrase-command", command)

    assert answer.code == code, answer.err
    assert message in answer.err.splitlines()[0]
    assert not home.with_name("home.snapshots").exists()


@pytest.mark.parametrize("code", [0, 3])
@pytest.mark.parametrize("words", [("--json",), ("--debug", "-v")])
def test_the_output_is_shown_nowhere(
    home: Path, tmp_path: Path, code: int, words: tuple[str, ...]
) -> None:
    """Neither where it opens the archive nor where the command fails, nor to other processes."""
    assert call("--home", home, "backup", "--passphrase-command", SHOW).code == 0
    script = tmp_path / "vault"
    seen = tmp_path / "seen"
    script.write_text(
        f"#!/bin/sh\nps -eo args >{seen} 2>/dev/null\n{SHOW}\n{SHOW} >&2\nexit {code}\n"
    )
    script.chmod(0o700)
    log = tmp_path / "log"

    answer = call(
        *("--home", home, "drill", "--passphrase-command", script, *words),
        *("--log-file", log, "--metrics-file", tmp_path / "metrics"),
    )

    assert answer.code == (12 if code else 0), answer.out
    files = (path.read_text() for path in (log, tmp_path / "metrics", seen) if path.exists())
    everything = "".join((answer.out, answer.err, *files))
    assert "event=end" in everything
    assert PASSPHRASE not in everything


def test_a_signal_ends_the_command_and_the_run(home: Path, tmp_path: Path) -> None:
    """Exit code 130, two seconds after ^C at most, and no process remains."""
    pid = tmp_path / "pid"
    command = shlex.join(["sh", "-c", f"echo $$ >{pid}; exec sleep 60"])
    with started("--home", home, "backup", "--passphrase-command", command) as process:
        while not pid.exists() or not pid.read_text().endswith("\n"):
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _out, err = process.communicate(timeout=30)

    assert process.returncode == 130
    assert b"interrupted by signal 2" in err
    assert not Path(f"/proc/{pid.read_text().strip()}").exists()
    assert not home.with_name("home.snapshots").exists()


def test_a_list_and_a_text_of_the_configuration_are_the_same(home: Path, tmp_path: Path) -> None:
    """A list needs no quotes."""
    file = tmp_path / "config.toml"
    found = []
    for value in (["echo", PASSPHRASE], SHOW):
        file.write_text(f"[backup]\npassphrase-command = {json.dumps(value)}\n")
        assert call("--home", home, "--config", file, "backup").code == 0
        shown = call("--config", file, "config", "show", "backup", "--json").result["values"]
        found += [row["value"] for row in shown if row["key"] == "passphrase-command"]

    assert found == [SHOW, SHOW]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[]", "not a list of words"),
        ("['a', 1]", "not a list of words"),
        ('"echo \'a"', "no closing quotation"),
        ("3", "not a text"),
        ("['curl', 'https://u:hunter2@vault']", "secrets are not allowed"),
    ],
)
def test_a_wrong_command_in_the_configuration(tmp_path: Path, value: str, message: str) -> None:
    """It is reported by every command, not at night."""
    file = tmp_path / "config.toml"
    file.write_text(f"[backup]\npassphrase-command = {value}\n")

    answer = call("--config", file, "db", "history")

    assert answer.code == 2
    assert f"config.toml:2: [backup] passphrase-command: {message}" in answer.err


def test_no_command_comes_from_a_file_that_others_can_replace(tmp_path: Path) -> None:
    """Its own mode is right, but not that of its directory."""
    tmp_path.chmod(0o770)
    file = tmp_path / "config.toml"
    file.write_text("[backup]\npassphrase-command = 'true'\n")
    file.chmod(0o600)

    refused = call("--config", file, "db", "history")
    tmp_path.chmod(0o700)
    accepted = call("--config", file, "db", "history")

    assert (refused.code, accepted.code) == (2, 0)
    assert "a command, in a file that another user can replace" in refused.err


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory of root's, with a user's directory in it."""
    with reachable_directory() as directory:
        directory.chmod(0o755)
        (directory / "user").mkdir()
        os.chown(directory / "user", NO_USER, NO_USER)
        yield directory


@pytest.mark.skipif(os.geteuid() != 0, reason="root works on another user's home")
def test_root_runs_it_with_its_own_rights(place: Path, identity: pyrage.x25519.Identity) -> None:
    """On another user's home too, with root's environment; that user's rights would not do."""
    home = place / "user/home"
    assert run("--home", home, "init").code == 0
    (place / "secret").write_text(str(identity))
    (place / "secret").chmod(0o600)
    script = place / "vault"
    script.write_text(f"#!/bin/sh\necho $(id -u) $TOKEN >>{place}/seen\ncat {place}/secret\n")
    script.chmod(0o700)
    words = ("--home", home, "--snapshots", place / "safe")
    assert run(*words[:2], "backup", *words[2:], "--recipient", identity.to_public()).code == 0

    answer = run(
        *(*words[:2], "snapshots", "verify", "latest", *words[2:]),
        *("--identity-command", script),
        environment={"TOKEN": "t"},
    )

    assert answer.code == 0, answer.err
    assert (place / "seen").read_text() == "0 t\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="root works on another user's home")
def test_a_failed_command_of_roots_is_reported_where_it_is_needed(place: Path) -> None:
    """An undo needs no passphrase, so an unreachable vault does not prevent it."""
    home = place / "user/home"
    assert run("--home", home, "init").code == 0
    command = ("--passphrase-command", "false")

    backup = run("--home", home, "backup", *command)
    undo = run("--home", home, "restore", "--undo", *command)

    assert (backup.code, undo.code) == (12, 10)
    assert "passphrase command false: exit code 1" in backup.err


@pytest.mark.skipif(os.geteuid() != 0, reason="root works on another user's home")
def test_root_takes_no_command_from_a_users_directory(place: Path) -> None:
    """The file is root's, but its owner could put another file of root's in its place."""
    file = place / "user/config.toml"
    file.write_text("[backup]\npassphrase-command = 'true'\n")
    file.chmod(0o600)

    answer = run("--config", file, "db", "history")

    assert answer.code == 2
    assert "another user can replace" in answer.err
