"""Completion in the shells that people type in: installed by the program, tried on a terminal."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from program import COMMAND
from pseudo_terminal import watched

# Where each shell's prompt is set, after what --install-completion wrote.
_PROMPTS = {
    "bash": (".bashrc", "PS1='READY> '"),
    "zsh": (".zshrc", "PS1='READY> '"),
    "fish": (
        ".config/fish/config.fish",
        # It would ask the program for a suggestion at every letter.
        "set -g fish_autosuggestion_enabled 0; function fish_prompt; echo -n 'READY> '; end",
    ),
}
# A shell wants to be the terminal's own; then it becomes the shell. zsh would ask about functions
# that others may write to.
_OWN = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.umask(0o022); "
_OWN += "os.execvp(sys.argv[1], sys.argv[1:])"
# zsh reads what was installed at the first tab, and only then knows it.
_FIRST_TAB = {"bash": "\t", "zsh": "\t\t", "fish": "\t"}


@pytest.mark.parametrize("shell", _PROMPTS)
def test_completion_finds_commands_and_options(shell: str, tmp_path: Path) -> None:
    """From `conf`, `sho` and `--orig`, though the configuration is broken at the moment."""
    if not shutil.which(shell):
        pytest.skip(f"no {shell}")
    broken = tmp_path / ".config/sagewai-ops/config.toml"
    broken.parent.mkdir(parents=True)
    broken.write_text("?")
    broken.chmod(0o600)
    environment = {
        "HOME": str(tmp_path),
        "ZDOTDIR": str(tmp_path),
        "PATH": f"{Path(COMMAND[0]).parent}:{os.environ['PATH']}",
        "TERM": "dumb" if shell == "fish" else "xterm",
        "LANG": "C.UTF-8",
    }
    # What follows keeps the shell from becoming the program, which asks who its parent is.
    install = f"umask 022; {Path(COMMAND[0]).name} --install-completion; exit"
    code, shown = watched([shell, "-c", install], environment)
    assert (code, "completion installed" in shown) == (0, True), shown
    file, prompt = _PROMPTS[shell]
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    with open(tmp_path / file, "a", encoding="utf-8") as stream:
        stream.write(f"\n{prompt}\n")

    typed = f"sagewai-ops conf{_FIRST_TAB[shell]}sho\t--orig\t--help"
    _code, shown = watched(
        [sys.executable, "-c", _OWN, shell, "-i"],
        environment,
        answers=[("READY> ", typed), ("Exit status:", "exit")],
    )

    assert "Show the value of every option." in shown
