"""Variables of options: one for each command, and what is accepted on the command line only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from json_schemas import problems
from program import call
from sagewai_ops.cli import main
from sagewai_ops.cli.variables import ACTING, FORMER_FLAGS
from small_homes import small

# The options of the issue that introduced the rule: none of them may leave the set.
ISSUE = (
    "--fix --undo --recover --replace --yes --force --revoke-sessions --rebind-fleet --without-key "
    "--leave-unopened --no-snapshot --allow-live --all --dry-run"
)


def _options() -> Iterator[tuple[str, str, Any]]:
    """Yield every command, long name of an option, and the option."""

    def walk(name: str, command: Any) -> Iterator[tuple[str, str, Any]]:
        for word, below in getattr(command, "commands", {}).items():
            yield from walk(f"{name} {word}".strip(), below)
        for option in command.params:
            for flag in option.opts:
                if flag.startswith("--") and not hasattr(command, "commands"):
                    yield name, flag, option

    yield from walk("", typer.main.get_command(main.build_app()))


OPTIONS = list(_options())
ACTS = [(name, flag) for name, flag, _option in OPTIONS if flag in ACTING]
REST = [
    (name, flag, option.envvar)
    for name, flag, option in OPTIONS
    if option.envvar and flag == option.opts[0]
]


def _key(words: str) -> str:
    return words.replace("--", "").replace("-", "_").replace(" ", "_").upper()


def _file(directory: Path, text: str) -> Path:
    path = directory / "config.toml"
    path.write_text(text)
    path.chmod(0o600)
    return path


def _words(name: str) -> list[str]:
    """Return a command with arguments that it can be parsed with."""
    arguments = {
        "db downgrade": ["base"],
        "remote check": ["s3://bucket"],
        "remote init": ["s3://bucket"],
        "schedule litestream": ["replica"],
        "snapshots copy": ["from", "to"],
        "snapshots extract": ["latest", "--to", "out"],
        "snapshots show": ["latest"],
        "snapshots verify": ["latest"],
    }
    return [*name.split(), *arguments.get(name, [])]


def test_every_option_of_the_issue_is_accepted_on_the_command_line_only() -> None:
    """Each exists, and no command has it without the rule."""
    assert set(ISSUE.split()) <= ACTING
    assert {flag for _name, flag in ACTS} == ACTING


@pytest.mark.parametrize(("name", "flag"), ACTS)
def test_an_acting_option_in_the_file_is_an_error_that_names_the_line(
    tmp_path: Path, name: str, flag: str
) -> None:
    """Whatever the command and the value: `fix = true` would change modes at a plain check."""
    table = ".".join(name.split())
    file = _file(tmp_path, f"quiet = false\n\n[{table}]\n{flag[2:]} = false\n# end\n")

    answer = call("--config", file, "db", "history")

    assert (answer.code, answer.out) == (2, "")
    assert f"{file}:4: [{table}] {flag[2:]}: accepted on the command line only" in answer.err
    assert f"hint: sagewai-ops {name} {flag}\n" in answer.err


@pytest.mark.parametrize(("name", "flag"), ACTS)
@pytest.mark.parametrize("kind", ["own", "former"])
def test_an_acting_option_in_the_environment_is_an_error_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, flag: str, kind: str
) -> None:
    """Nothing is run: an old script that relied on it fails, with the reason."""
    variable = f"SAGEWAI_OPS_{_key(flag) if kind == 'former' else _key(f'{name} {flag}')}"
    monkeypatch.setenv(variable, "0")

    answer = call("--home", tmp_path / "none", *_words(name))

    assert (answer.code, answer.out) == (2, "")
    planned = name in ("export-to-postgres", "import-from-postgres")
    shown = "--plan" if planned and flag == "--dry-run" else flag
    assert f"variable {variable}: {shown} is accepted on the command line only" in answer.err
    assert f"hint: unset {variable}\n" in answer.err
    assert not (tmp_path / "none").exists()


def test_an_acting_variable_does_not_disturb_the_other_commands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only commands that have the option refuse it."""
    monkeypatch.setenv("SAGEWAI_OPS_FIX", "1")
    monkeypatch.setenv("SAGEWAI_OPS_VERIFY_PERMS_FIX", "1")

    assert call("db", "history").code == 0


def test_variables_are_unique_in_the_whole_program() -> None:
    """`SAGEWAI_OPS_<COMMAND>_<OPTION>`, except for the global ones and the snapshot directory."""
    shared = {"HOME", "CONFIG", "JSON", "QUIET", "VERBOSE", "DEBUG", "SNAPSHOTS"}
    own = [(name, flag, names[0]) for name, flag, names in REST if _key(flag) not in shared]

    assert len({variable for _name, _flag, variable in own}) == len(own)
    for name, flag, variable in own:
        assert variable == f"SAGEWAI_OPS_{_key(f'{name} {flag}')}"


@pytest.mark.parametrize("variable", ["FORMAT", "KEY_FILE", "TAG", "TO", "USER", "WAIT"])
def test_an_ambiguous_variable_is_refused_where_it_would_be_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    """A backup must not go elsewhere, nor a restore to the backups, because of another command."""
    former = f"SAGEWAI_OPS_{variable}"
    monkeypatch.setenv(former, "x")
    names = {
        name: names[0]
        for name, flag, names in REST
        if variable in (_key(flag), _key(FORMER_FLAGS.get(flag, "")))
    }
    if variable == "TO":
        names["backup"] = "SAGEWAI_OPS_SNAPSHOTS"

    assert len(names) > 1
    for name, own in names.items():
        words = [word for word in _words(name) if word not in ("--to", "out")]
        answer = call("--home", tmp_path / "none", *words)
        if name == "snapshots extract" and variable == "TO":
            continue  # its option is required
        assert answer.code == 2, name
        assert f"variable {former}: ambiguous" in answer.err
        assert f'hint: export {own}="${former}"; unset {former}\n' in answer.err


def test_what_is_given_otherwise_makes_an_ambiguous_variable_harmless(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A flag or the command's own variable: both may be set for an older version."""
    home = small(tmp_path / "home").root
    monkeypatch.setenv("SAGEWAI_OPS_TO", str(tmp_path / "old"))
    flag = call("--home", home, "backup", "--to", tmp_path / "flag")
    monkeypatch.setenv("SAGEWAI_OPS_SNAPSHOTS", str(tmp_path / "own"))
    own = call("--home", home, "backup")

    assert (flag.code, flag.err, own.code, own.err) == (0, "", 0, "")
    assert {path.name for path in tmp_path.iterdir()} == {"home", "flag", "own"}


def test_a_deprecated_variable_works_and_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On stderr, or among the warnings of the JSON envelope, also of a command that fails."""
    home = small(tmp_path / "home").root
    monkeypatch.setenv("SAGEWAI_OPS_TAG", "")  # empty is not set
    monkeypatch.setenv("SAGEWAI_OPS_LEVEL", "7")
    note = "variable SAGEWAI_OPS_LEVEL: deprecated, use SAGEWAI_OPS_BACKUP_LEVEL"

    done = call("--home", home, "backup")
    failed = call("--home", tmp_path / "none", "backup", "--json")

    assert (done.code, done.err) == (0, f"sagewai-ops: warning: {note}\n")
    assert (failed.code, failed.document["warnings"], failed.err) == (10, [note], "")
    assert problems("envelope", failed.document) == []
    monkeypatch.setenv("SAGEWAI_OPS_BACKUP_LEVEL", "3")
    assert call("--home", home, "backup").err == ""


def test_show_reports_the_variable_that_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command's own is stronger than the former one."""
    monkeypatch.setenv("SAGEWAI_OPS_LEVEL", "7")
    former = call("config", "show", "--origin", "backup").out
    monkeypatch.setenv("SAGEWAI_OPS_BACKUP_LEVEL", "5")
    own = call("config", "show", "--origin", "backup").out

    lines = [next(line for line in text.splitlines() if ".level" in line) for text in (former, own)]
    assert lines[0].split() == ["backup.level", "7", "SAGEWAI_OPS_LEVEL"]
    assert lines[1].split() == ["backup.level", "5", "SAGEWAI_OPS_BACKUP_LEVEL"]


def test_a_variable_of_one_command_is_ignored_by_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`SAGEWAI_OPS_BACKUP_FORMAT` once made `verify-perms` fail."""
    home = small(tmp_path / "home").root
    monkeypatch.setenv("SAGEWAI_OPS_BACKUP_FORMAT", "directory")

    assert call("--home", home, "verify-perms").code in (0, 4)
    assert call("--home", home, "backup", "--json").result["format"] == "directory"


@pytest.mark.parametrize(
    ("former", "words"),
    [
        ("--key-file", ["restore", "latest"]),
        ("--key-file", ["drill"]),
        ("--key-file", ["preflight"]),
        ("--key-file", ["keys", "check"]),
        ("--key-file", ["keys", "rotate", "--dry-run"]),
        ("--scratch", ["drill"]),
        ("--scratch", ["preflight"]),
        ("--to", ["backup"]),
        ("--to", ["schedule", "cron"]),
    ],
)
def test_former_names_of_options_are_accepted(
    tmp_path: Path, former: str, words: list[str]
) -> None:
    """With the same effect; what they are missing is reported as of the new names."""
    answer = call("--home", tmp_path / "none", *words, former, tmp_path / "x")
    refused = call("--home", tmp_path / "none", *words, former, "")

    assert "no such option" not in answer.err
    assert (refused.code, "is empty" in refused.err) == (2, True)


def test_invalid_value_is_reported_with_its_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With that one only, and with none if the value is on the command line."""
    words = ("--home", tmp_path / "none", "backup")
    typed = call(*words, "--level", "77")
    assert "invalid value for '--level': 77" in typed.err

    monkeypatch.setenv("SAGEWAI_OPS_LEVEL", "77")
    general = call(*words)
    monkeypatch.setenv("SAGEWAI_OPS_BACKUP_LEVEL", "78")
    special = call(*words)

    assert "invalid value for '--level' (SAGEWAI_OPS_LEVEL): 77" in general.err
    assert "invalid value for '--level' (SAGEWAI_OPS_BACKUP_LEVEL): 78" in special.err


def test_former_flags_and_keys_have_the_same_effect(tmp_path: Path) -> None:
    """Of options and of a command, on the line and in the file, where both at once are refused."""
    file = _file(
        tmp_path,
        'snapshots.untrash.wait = 7\n[backup]\nto = "b"\nany-place = true\n[drill]\nscratch = "s"\n'
        '[restore]\nkey-file = "k"\n[keys.check]\nkey-file = "c"\n',
    )
    shown = call("--config", file, "config", "show").out
    _file(tmp_path, "[drill]\nscratch = 's'\nwork-dir = 's'\n")

    for line in (
        f'snapshots = "{tmp_path}/b"',
        "all-paths = true",
        f'work-dir = "{tmp_path}/s"',
        f'install-key = "{tmp_path}/k"',
        f'extra-key = "{tmp_path}/c"',
        "wait = 7.0",
    ):
        assert f"\n{line}\n" in shown
    assert "set twice" in call("--config", file, "db", "history").err
    assert call("--home", tmp_path, "snapshots", "untrash").err.startswith(
        "sagewai-ops: error: snapshots undelete: "
    )


def test_no_help_shows_a_former_name() -> None:
    """They are for scripts that exist."""
    for words in ("backup", "drill", "preflight", "restore", "keys check", "snapshots"):
        shown = call(*words.split(), "--help").out

        assert not {former for former in ("--scratch", "--key-file", "--any-place", "untrash")
                    if f"{former} " in shown}  # fmt: skip
