"""The command line: where the global options may be, which of them wins, and lines without."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import program
from sagewai_ops import __version__
from sagewai_ops.cli import main
from small_homes import small

PLACES = {
    "before": ["--home", "/flag", "snapshots", "list"],
    "between": ["snapshots", "--home", "/flag", "list"],
    "after": ["snapshots", "list", "--home", "/flag"],
    "joined": ["--home=/flag", "snapshots", "list"],
    "last": ["--home", "/first", "snapshots", "--home", "/second", "list", "--home", "/flag"],
}


def _home(*words: object) -> str:
    return str(program.call(*words, "--json").document["home"])


@pytest.mark.parametrize("place", PLACES)
def test_home_of_the_line_is_stronger_wherever_it_stands(
    place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever a variable and the file set: another home would be restored, or pruned."""
    file = tmp_path / "config.toml"
    file.write_text('home = "/file"\n[snapshots.list]\nhome = "/table"\n')
    file.chmod(0o600)
    monkeypatch.setenv("SAGEWAI_OPS_CONFIG", str(file))
    words = PLACES[place]
    without = [word for word in words if word in ("snapshots", "list")]

    assert (_home(*words), _home(*without)) == ("/flag", "/table")
    monkeypatch.setenv("SAGEWAI_OPS_HOME", "/variable")
    assert (_home(*words), _home(*without)) == ("/flag", "/variable")
    assert _home(*words, "--bogus") == "/flag"


def test_sagewais_variable_is_stronger_than_every_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The file is the weaker one, above the tables and in them."""
    file = tmp_path / "config.toml"
    file.write_text('home = "/file"\n[snapshots.list]\nhome = "/table"\n')
    file.chmod(0o600)
    monkeypatch.setenv("SAGEWAI_HOME", "/sagewai")

    assert _home("--config", file, "snapshots", "list") == "/sagewai"
    assert _home("--config", file, "status") == "/sagewai"


def test_show_tells_the_home_of_its_own_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is does not matter there either."""
    monkeypatch.setenv("SAGEWAI_OPS_HOME", "/variable")

    for words in (["--home", "/flag", "config", "show"], ["config", "show", "--home", "/flag"]):
        answer = program.call(*words, "--origin")
        assert answer.out.splitlines()[1].split() == ["home", '"/flag"', "flag"]


@pytest.mark.parametrize("switch", ["--json", "--quiet", "--verbose"])
def test_a_switch_holds_in_every_place(switch: str, tmp_path: Path) -> None:
    """Before, between and after, the result is the same."""
    home = ["--home", tmp_path / "home"]

    answers = {
        program.call(*home, *words).code
        for words in (
            [switch, "snapshots", "list"],
            ["snapshots", switch, "list"],
            ["snapshots", "list", switch],
        )
    }

    assert answers == {0}
    assert program.call(*home, "snapshots", "--json", "list").document["status"] == "ok"


def test_a_home_that_is_empty_text_is_refused_in_every_place() -> None:
    """It is `"$UNSET"` in a script, and would mean the working directory."""
    for words in (
        ["--home", "", "snapshots", "list"],
        ["snapshots", "--home", "", "list"],
        ["snapshots", "list", "--home", ""],
    ):
        answer = program.call(*words)
        assert (answer.code, "--home" in answer.err) == (2, True), words


@pytest.mark.parametrize("words", [[], ["snapshots"], ["keys", "--quiet"], ["db"]], ids=str)
def test_a_line_without_a_command_says_which_there_are(words: list[str]) -> None:
    """Two lines, exit code 2; the same as JSON."""
    answer = program.call(*words)
    as_json = program.call(*words, "--json")

    error, hint = answer.err.splitlines()
    assert (answer.code, answer.out) == (2, "")
    assert error.startswith("sagewai-ops: error: ")
    assert "command" in error
    assert hint.split() == ["sagewai-ops:", "hint:", "sagewai-ops", *words[:1], "--help"]
    assert as_json.document["error"]["code"] == "usage"


def test_commands_of_a_group_are_named_where_none_is_given() -> None:
    """Who forgot what it is called need not ask again."""
    snapshots = program.call("snapshots")

    assert "known are list, show, verify, extract, diff, copy, prune" in snapshots.err
    assert "init, status" in program.call().err


@pytest.mark.parametrize("words", ["backup --version", "--json db --version", "db check --version"])
def test_the_version_is_printed_wherever_it_is_asked_for(words: str) -> None:
    """Before and after a command's name, and as JSON in every command's envelope."""
    answer = program.call(*words.split())

    if "--json" in words:
        assert answer.document["result"] == {"version": __version__}
        assert (answer.code, answer.document["status"], answer.err) == (0, "ok", "")
    else:
        assert (answer.code, answer.out, answer.err) == (0, f"sagewai-ops {__version__}\n", "")


def test_a_mistake_of_ours_is_an_object_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A script that parses stdout finds exit code 1 there; what the message was, it does not."""
    small(tmp_path / "home")

    def broken(*_words: object, **_options: object) -> None:
        raise ZeroDivisionError("hunter2")

    monkeypatch.setattr("sagewai_ops.operations.status.read_status", broken)
    with pytest.raises(ZeroDivisionError):
        main.run(["--home", str(tmp_path / "home"), "status", "--json"])
    (line,) = capsys.readouterr().out.splitlines()

    assert (json.loads(line)["exit_code"], json.loads(line)["error"]["code"]) == (1, "failed")
    assert "hunter2" not in line


@pytest.mark.parametrize("words", [["status"], ["status", "--json"]], ids=str)
def test_an_interruption_while_it_loads_is_no_traceback(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half a second goes into imports, and Ctrl-C may come in each of them."""

    def interrupted(*_names: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sagewai_ops.cli.main.build_app", interrupted)
    with pytest.raises(SystemExit) as left:
        main.main(words)
    output = capsys.readouterr()

    assert left.value.code == 130
    if "--json" in words:
        assert json.loads(output.out)["error"]["code"] == "interrupted"
    else:
        assert output.err.startswith("sagewai-ops: error: interrupted")
