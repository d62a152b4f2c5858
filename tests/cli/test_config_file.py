"""The configuration file: which value wins, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from json_schemas import problems
from program import Answer, call, run
from sagewai_ops.cli import config_file
from unprivileged import reachable_directory, unprivileged

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return what writes a configuration file."""

    def written(text: str) -> Path:
        path = tmp_path / "config.toml"
        path.write_text(text, encoding="utf-8")
        path.chmod(0o600)
        return path

    return written


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with nothing in it."""
    root = tmp_path / "home"
    root.mkdir(mode=0o700)
    return root


def _values(answer: Answer) -> dict[str, tuple[object, str, str | None]]:
    assert problems("config-show", answer.result) == []
    return {
        f"{each['table']}.{each['key']}".lstrip("."): (
            each["value"],
            each["source"],
            each["origin"],
        )
        for each in answer.result["values"]
    }


def _directory(home: Path, *words: object) -> str:
    return str(call("--home", home, "snapshots", "list", "--json", *words).result["folder"])


def test_a_flag_beats_the_environment_and_that_the_file(
    home: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each in turn is taken away, and the next one holds."""
    file = write('snapshot-directory = "/all"\n[snapshots.list]\nsnapshots = "/file"\n')
    named = ("--config", file)
    monkeypatch.setenv("SAGEWAI_OPS_SNAPSHOTS", "/environment")

    assert _directory(home, *named, "--snapshots", "/flag") == "/flag"
    assert _directory(home, *named) == "/environment"
    monkeypatch.delenv("SAGEWAI_OPS_SNAPSHOTS")
    assert _directory(home, *named) == "/file"
    write('snapshot-directory = "/all"\n')
    assert _directory(home, *named) == "/all"
    assert _directory(home) == f"{home}.snapshots"


@pytest.mark.parametrize("place", ["--config", "variable", "XDG_CONFIG_HOME", "HOME"])
def test_the_file_is_found(
    home: Path, write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str
) -> None:
    """Named by an option, by a variable, or in the two standard places."""
    monkeypatch.setattr("sys.platform", "linux")
    file = write('snapshot-directory = "/found"\n')
    words: list[object] = []
    if place == "--config":
        words = ["--config", file]
    elif place == "variable":
        monkeypatch.setenv("SAGEWAI_OPS_CONFIG", str(file))
    else:
        base = tmp_path if place == "XDG_CONFIG_HOME" else tmp_path / ".config"
        monkeypatch.setenv(place, str(tmp_path))
        (base / "sagewai-ops").mkdir(parents=True)
        file.rename(base / "sagewai-ops" / "config.toml")

    assert _directory(home, *words) == "/found"


def test_sagewais_own_variable_is_of_the_environment(
    write: Write, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SAGEWAI_HOME is stronger than the file's home, which is stronger than ~/.sagewai."""
    file = write('home = "/file"\n')

    words = ("--config", file, "snapshots", "list", "--json")
    assert call(*words).document["home"] == "/file"
    monkeypatch.setenv("SAGEWAI_HOME", str(home))
    assert call(*words).document["home"] == str(home)


def test_no_file_is_read_from_the_null_device(
    home: Path, monkeypatch: pytest.MonkeyPatch, write: Write
) -> None:
    """For a script that wants the defaults, whatever its user has configured."""
    monkeypatch.setenv("SAGEWAI_OPS_CONFIG", str(write('snapshot-directory = "/x"\n')))

    assert _directory(home, "--config", os.devnull) == f"{home}.snapshots"


def test_paths_are_seen_from_the_file(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cron's working directory is not chosen by a user; ~ is the user's home."""
    monkeypatch.setenv("HOME", "/u")
    file = write(
        '[backup]\nrecipients-file = "team.txt"\npassphrase-file = "-"\nto = "~/b"\n'
        'exclude = ["data/*"]\n[snapshots.verify]\nidentity = ["a", "/b"]\n'
    )

    found = _values(call("--config", file, "config", "show", "--json"))

    assert found["backup.recipients-file"] == (f"{file.parent}/team.txt", "file", str(file))
    assert found["backup.passphrase-file"][0] == "-"
    assert found["backup.snapshots"][0] == "/u/b"
    assert found["backup.exclude"][0] == ["data/*"]
    assert found["snapshots.verify.identity"][0] == [f"{file.parent}/a", "/b"]


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("levle = 3", "levle: unknown", "known here"),
        ("[backup]\nlevle = 3", "[backup] levle: unknown", "did you mean level?"),
        ("[backpu]\nlevel = 3", "backpu: unknown", "did you mean backup?"),
        ("[snapshots.lits]\n", "[snapshots] lits: unknown", "did you mean list?"),
        ("backup = 3", "backup: unknown", ""),
        ("[backup]\nlevel = '3'", "[backup] level: not a number, '3'", ""),
        ("[backup]\nlevel = true", "[backup] level: not a number, True", "config show"),
        ("[backup]\nlevel = [3]", "[backup] level: takes one value", ""),
        ("[backup]\nlevel = 99", "[backup] level: ", ""),
        ("[backup]\ncompact = 1", "[backup] compact: not true or false, 1", "config show"),
        ("[backup]\nkey = 3", "[backup] key: not a text, 3", ""),
        ("[backup]\nexclude = [1]", "[backup] exclude: not a text, 1", ""),
        ("[backup]\nto = 2026-11-24", "[backup] to: not a text", ""),
        ("[backup]\nto = ''", "[backup] to: is empty", ""),
        ("[verify-perms]\nformat = 'yaml'", "[verify-perms] format: ", ""),
        ("snapshot-directory = 3", "snapshot-directory: not a directory's path, 3", ""),
        ("config = 'x'", "config: unknown", ""),
        ("[backup]\nrecipient = ['AGE-SECRET-KEY-1QQ']", "secrets are not allowed", "name a file"),
        ("[backup]\nto = 'postgresql://u:hunter2@h/d'", "secrets are not allowed", "name a file"),
        ("level = ", "not TOML", ""),
        ("a = '\\ud800'\x00", "not TOML", ""),
    ],
)
def test_what_cannot_be_meant_is_refused(write: Write, text: str, message: str, hint: str) -> None:
    """Whatever the command: a typo that is found at night is found too late."""
    answer = call("--config", write(text), "db", "history")

    assert (answer.code, answer.out) == (2, "")
    assert message in answer.err
    assert hint in answer.err
    assert "hunter2" not in answer.err
    assert "AGE-SECRET" not in answer.err


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_can_write_is_refused(write: Write, mode: int) -> None:
    """Who writes it decides what is backed up, and to whom it is encrypted."""
    file = write("")
    file.chmod(mode)

    answer = call("--config", file, "db", "history")

    assert answer.code == 2
    assert f"mode {mode:04o} lets others write" in answer.err
    assert f"chmod go-w {file}" in answer.err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the owner of a file")
def test_a_file_of_another_user_is_refused(write: Write) -> None:
    """Its owner could change it at any moment."""
    file = write("")
    os.chown(file, 12345, 12345)

    answer = call("--config", file, "db", "history")

    assert (answer.code, "owned by uid 12345" in answer.err) == (2, True)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """A name that was given must be there; a pipe does not hang the run."""
    os.mkfifo(tmp_path / "pipe", 0o600)

    for name, message in (
        ("none", "not found"),
        ("", "not a regular file"),
        ("pipe", "not a regular file"),
    ):
        answer = call("--config", tmp_path / name, "db", "history")

        assert (answer.code, message in answer.err) == (2, True), answer.err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_home_of_another_user_has_no_configuration_for_us() -> None:
    """As under `sudo -u` with HOME kept: it cannot be looked into; a file in sight must be read."""
    with reachable_directory() as directory:
        file = directory / "user/config.toml"
        file.parent.mkdir(mode=0o700)
        file.write_text("x = 1")
        file.chmod(0o600)
        with unprivileged():
            assert config_file.read(None, {"XDG_CONFIG_HOME": str(file)}, lambda: None).path is None
            assert "not found" in call("--config", file, "db", "history").err
        file.parent.chmod(0o755)
        with unprivileged():
            assert "permission denied" in call("--config", file, "db", "history").err


def test_a_file_of_a_gigabyte_is_refused(write: Write) -> None:
    """It is no configuration, and its memory is not spent."""
    file = write("")
    os.truncate(file, 1 << 30)

    assert "not a configuration" in call("--config", file, "db", "history").err


def test_help_works_where_the_file_does_not(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user who must repair it may need the help."""
    monkeypatch.setenv("SAGEWAI_OPS_CONFIG", str(write("?")))

    assert call("db", "history").code == 2
    for words in (["--help"], ["backup", "-h"], ["--version"]):
        assert run(*words).code == 0


def test_a_refusal_in_json_is_an_envelope(write: Write) -> None:
    """Scripts see it like any other error."""
    answer = call("--config", write("x = 1"), "backup", "--json")

    assert problems("envelope", answer.document) == []
    assert answer.document["error"]["code"] == "usage"


def test_show_names_each_origin(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag, a variable, the file, a default."""
    file = write("quiet = false\n[backup]\nlevel = 7\ncompact = true\nverbose = true\n")
    monkeypatch.setenv("SAGEWAI_OPS_BACKUP_LEVEL", "5")

    found = _values(call("--config", file, "config", "show", "--json", "--home", "/h"))
    answer = call("--config", file, "config", "show", "--origin", "backup")

    assert found["backup.level"] == (5, "environment", "SAGEWAI_OPS_BACKUP_LEVEL")
    assert found["backup.compact"] == (True, "file", str(file))
    assert found["backup.verbose"] == (True, "file", str(file))
    assert found["backup.key"] == ("exclude", "default", None)
    assert found["quiet"] == (False, "file", str(file))
    level = next(line for line in answer.out.splitlines() if line.startswith("backup.level "))
    assert level.split() == ["backup.level", "5", "SAGEWAI_OPS_BACKUP_LEVEL"]
    assert "restore.to" not in answer.out


def test_what_show_prints_is_a_configuration(write: Write) -> None:
    """Read again it is the same."""
    file = write(
        'home = "/h"\nsnapshot-directory = "/s"\n[backup]\nlevel = 7\nexclude = ["a b", "ü\\"x"]\n'
    )
    before = _values(call("--config", file, "config", "show", "--json"))

    write(call("--config", file, "config", "show").out)

    after = _values(call("--config", file, "config", "show", "--json"))
    assert {key: value for key, (value, *_) in after.items()} == {
        key: value for key, (value, *_) in before.items()
    }


def test_show_of_an_unknown_command_is_not_found() -> None:
    """Exit 10, and where to look."""
    assert call("config", "show", "snapshots", "frobnicate").code == 10


def test_a_user_without_a_home_has_no_standard_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is looked for in the working directory."""
    monkeypatch.setattr("os.path.expanduser", lambda text: text)

    assert config_file.standard_path({}) is None
    assert config_file.standard_path({"XDG_CONFIG_HOME": "relative"}) is None


def test_the_platform_chooses_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """On macOS it has a directory of its own for this."""
    for platform, place in (("darwin", "Library/Application Support"), ("linux", ".config")):
        monkeypatch.setattr("sys.platform", platform)

        found = config_file.standard_path({"HOME": "/u"})

        assert found == Path("/u", place, "sagewai-ops/config.toml")


def test_the_file_costs_nothing_where_there_is_none() -> None:
    """Its reader is imported only when there is something to read."""
    code = (
        "import sys; from sagewai_ops.cli.main import run; run(['snapshots', 'list'])\n"
        "sys.exit(bool({'tomllib', 'tomli'} & sys.modules.keys()))"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
