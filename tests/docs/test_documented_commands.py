"""Commands that README and docs show: those in ```sh blocks run, all others are parsed."""

import os
import re
import shlex
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from postgres_server import Server
from program import COMMAND
from sagewai_ops.cli import main

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("man/sections/*.md")])
RUN = (ROOT / "README.md", ROOT / "docs" / "tutorial.md")
DATABASE = "postgresql://sagewai@db.example.org/sagewai"  # as the pages have it
# What `age-keygen` does, for machines without it.
AGE_KEYGEN = """#!{python}
import sys
from pyrage import x25519
if sys.argv[1] == "-o":
    open(sys.argv[2], "w").write(str(x25519.Identity.generate()) + "\\n")
else:
    print(x25519.Identity.from_str(open(sys.argv[2]).read().strip()).to_public())
"""


def _scripts(page: Path) -> str:
    """Return the shell blocks of a page, in order."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    return "".join(blocks)


def _lines(page: Path) -> Iterator[str]:
    """Yield the command lines in the blocks of a page, without prompts and continuations."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        found = re.match(r"(?:    |\$ |)((?:\w+=\S+ |sudo )*sagewai-ops .*)", line)
        if found and (line[0] in " $" or line in _scripts(page).splitlines()):
            yield found[1]


def _words(line: str) -> list[str]:
    """Return the arguments of the first sagewai-ops command of a line."""
    words = shlex.split(line.replace("…", "..."), comments=True)
    words = words[words.index("sagewai-ops") + 1 :]
    for end, word in enumerate(words):
        if word in ("|", ">", "<", "&&", "||", ";", "2>"):
            return words[:end]
    return words


def _parse(words: list[str]) -> None:
    """Parse a command line as the program does, without running it."""
    command: Any = typer.main.get_command(main.build_app())
    context = command.context_class(command, info_name="sagewai-ops")
    rest = [*words]
    while True:
        _options, arguments, _order = command.make_parser(context).parse_args(rest)
        if not hasattr(command, "commands") or not arguments:
            return
        name, *rest = arguments
        assert name in command.commands, words
        command = command.commands[name]
        context = command.context_class(command, info_name=name, parent=context)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_line_is_valid(page: Path) -> None:
    """Options and commands exist; no documented line is refused."""
    for line in _lines(page):
        if not re.search(r"\[|\bCOMMAND\b|\bOPTION\b|<", line):
            _parse(_words(line))


def test_the_pages_show_commands() -> None:
    """The patterns find what they are meant to find."""
    assert sum(len(list(_lines(page))) for page in PAGES) > 60
    assert all(_scripts(page).count("sagewai-ops") >= 5 for page in RUN)
    with pytest.raises(Exception, match="no-such"):
        _parse(["backup", "--no-such-option"])


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_the_commands_of_a_page_run(page: Path, tmp_path: Path, postgres: Server) -> None:
    """A reader pastes the blocks one after the other into a shell."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "sagewai-ops").symlink_to(COMMAND[0])
    keygen = programs / "age-keygen"
    keygen.write_text(AGE_KEYGEN.format(python=sys.executable))
    keygen.chmod(stat.S_IRWXU)
    user = tmp_path / "user"
    user.mkdir(0o700)
    database = postgres.create()
    url = postgres.url(database)
    try:
        done = subprocess.run(
            ["bash", "-euxo", "pipefail", "-c", _scripts(page).replace(DATABASE, url)],
            env={
                "HOME": os.fspath(user),
                "PATH": f"{programs}:/usr/local/bin:/usr/bin:/bin",
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        postgres.drop(database)

    assert done.returncode == 0, done.stderr[-3000:]
