"""The manual pages: current, readable by man's programs, and complete."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import man_pages
import roff
from sagewai_ops.cli import main
from sagewai_ops.cli.help import split_status
from sagewai_ops.permissions.rules import RULES

PAGES = man_pages.pages()
DIRECTORY = Path(man_pages.DIRECTORY)
PROGRAM: Any = typer.main.get_command(main.build_app())


def test_committed_pages_are_those_of_the_program() -> None:
    """What people read is what the program does; run `make man` and commit man/."""
    committed = {path.name: path.read_text(encoding="utf-8") for path in DIRECTORY.glob("*.1")}

    stale = {name for name in committed | PAGES if committed.get(name) != PAGES.get(name)}
    assert not stale, f"run `make man` and commit man/: {', '.join(sorted(stale))}"


def test_every_hand_written_section_belongs_to_a_page() -> None:
    """A command that was renamed takes its FILES with it."""
    written = {f"{path.stem}.1" for path in man_pages.SECTIONS.glob("*.md")}

    assert written <= PAGES.keys()


@pytest.mark.parametrize("words", [words for words, _command in man_pages.commands()])
def test_a_page_names_every_option_and_exit_code(words: tuple[str, ...]) -> None:
    """Nothing that `--help` reports is missing in the manual."""
    command = dict(man_pages.commands())[words]
    text = PAGES["-".join(("sagewai-ops", *words)) + ".1"].replace("\\-", "-")

    for heading in ("NAME", "SYNOPSIS", "DESCRIPTION", '"SEE ALSO"'):
        assert f"\n.SH {heading}\n" in text
    for option in command.params:
        if option.param_type_name == "option":
            assert all(f"\\fB{flag}\\fR" in text for flag in option.opts)
            assert not option.envvar or f"\\fB{option.envvar[0]}\\fR" in text
    for code, _meaning in split_status(command.help or "")[1]:
        assert f"\n\\fB{code}\\fR\n" in text


@pytest.mark.parametrize("page", sorted(PAGES))
def test_a_page_has_examples_files_and_what_its_exit_says(page: str) -> None:
    """Written by hand, for every command and group; of the codes, what they mean for the data."""
    written = man_pages.hand_written(page.removesuffix(".1"))

    assert {"EXAMPLES", "FILES", "EXIT STATUS"} <= written.keys()
    assert any("sagewai-ops" in line.replace("\\", "") for line in written["EXAMPLES"])


@pytest.mark.parametrize(
    "path", sorted(man_pages.SECTIONS.glob("*.md")), ids=lambda path: path.stem
)
def test_examples_are_lines_that_the_program_takes(path: Path) -> None:
    """Each command and option in them exists, and takes what it is given."""
    for words in _typed(path.read_text(encoding="utf-8")):
        command, name = PROGRAM, "sagewai-ops"
        while hasattr(command, "commands"):
            context = command.make_context(name, words)
            words = [*context._protected_args, *context.args]
            name = words.pop(0)
            assert name in command.commands, (path.name, name)
            command = command.commands[name]
        command.make_context(name, words)


def _typed(text: str) -> Iterator[list[str]]:
    """Yield the words of each call of the program in the indented lines of a text."""
    for line in re.findall(r"^    (.*sagewai-ops .*)$", text, re.MULTILINE):
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("|&;>"):
                words = [each for each in words if not re.match("[A-Z_]+=", each)]
                if words[:1] == ["sagewai-ops"]:
                    yield words[1:]
                words = []
            else:
                words.append(word)


def test_page_of_verify_perms_has_every_rule() -> None:
    """Each with its severity and the consequence without it."""
    text = PAGES["sagewai-ops-verify-perms.1"]

    for rule in RULES:
        assert f"\\fB{rule.id}\\fR ({rule.severity.value})" in text


@pytest.mark.skipif(not shutil.which("groff"), reason="no groff")
def test_groff_has_no_warnings() -> None:
    """All of them on, on every page, as Debian's checks have them."""
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-z", *sorted(DIRECTORY.glob("*.1"))],
        capture_output=True,
        check=False,
    )

    assert (done.returncode, done.stderr.decode()) == (0, "")


@pytest.mark.skipif(not shutil.which("mandoc"), reason="no mandoc")
def test_mandoc_has_no_warnings() -> None:
    """Where man(1) is mandoc: Alpine, the BSDs, macOS."""
    done = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", *sorted(DIRECTORY.glob("*.1"))],
        capture_output=True,
        check=False,
    )

    assert (done.returncode, done.stdout.decode()) == (0, "")


@pytest.mark.skipif(not shutil.which("groff"), reason="no groff")
@pytest.mark.parametrize(
    "text", [".hidden is no request", "'quoted' \"words\"", r"C:\new", "a-b ^ ~ ` x", "100 % - 1"]
)
def test_text_comes_out_as_it_went_in(text: str) -> None:
    """What roff takes for its own is escaped."""
    page = "\n".join([*roff.title("x", "2026-01-01", "1", "m"), ".SH A", *roff.lines(text), ""])

    plain = ["groff", "-man", "-Tascii", "-P-cbou"]
    shown = subprocess.run(plain, input=page.encode(), capture_output=True, check=True).stdout

    assert text in shown.decode()
