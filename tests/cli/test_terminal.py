"""What a terminal is shown while something takes its time."""

import io
import re

import pytest

from sagewai_ops.cli import terminal
from sagewai_ops.cli.terminal import Terminal


class Screen(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        """Return that it is one."""
        return True


def test_a_stage_that_is_over_is_shown_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its total was a guess: of a database in its WAL, the copy is smaller than its files."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(terminal, "_BEFORE_PROGRESS_SECONDS", 0)
    monkeypatch.setattr(terminal, "_REFRESH_SECONDS", 0)
    screen = Screen()

    with Terminal(err=screen).progress() as progress:
        assert progress
        progress("pack", 56, 100)
        progress("verify", 100, 100)

    last_shown = re.findall(
        r"(pack|verify)[^%]*?(\d+)%", re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue())
    )
    assert last_shown[-2:] == [("pack", "100"), ("verify", "100")]
