"""A sample of what `make attack` does in full: another user replaces names while root works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from proof import attack, crash, faults
from proof.attack import Attack

needs_attacks = pytest.mark.skipif(
    not faults.is_possible() or os.geteuid() != 0,
    reason="the attacks need Linux, a C compiler and root",
)


def _run(script: str, report: Path, *words: str) -> tuple[int, dict[str, Any], str]:
    done = subprocess.run(
        [sys.executable, script, "--jobs", "1", "--json", str(report), *words],
        capture_output=True,
        text=True,
        check=False,
    )
    document = json.loads(report.read_text()) if report.exists() else {}
    return done.returncode, document, done.stdout + done.stderr


@needs_attacks
@pytest.mark.timeout(300)
def test_a_run_that_follows_links_is_noticed(tmp_path: Path) -> None:
    """What root reads, transfers and changes through a name that was replaced is found."""
    words = ("--planted", "--attack", "named at 3", "--attack", "parent at 3 until 9")

    code, document, text = _run(attack.__file__, tmp_path / "report", *words)

    assert code == 1, text
    kinds = set(document["kinds"])
    assert {"canary given away", "canary's mode changed", "canary's content"} <= kinds, text


@needs_attacks
@pytest.mark.timeout(600)
def test_no_attack_reaches_what_is_roots(tmp_path: Path) -> None:
    """A sample: one attack of the commands that write most, for each place of the snapshots."""
    only = ("--only", "restore --only", "--only", "verify-perms --fix", "--only", "init, ")

    code, document, output = _run(attack.__file__, tmp_path / "report", "--sample", "1", *only)

    assert (code, document["violations"]) == (0, 0), output
    assert document["struck"] >= 3


@needs_attacks
@pytest.mark.timeout(600)
def test_promises_hold_on_the_home_of_another_user(tmp_path: Path) -> None:
    """Killed or refused at a step, both processes of a run leave old or new, all the user's."""
    words = ("--other-owner", "--sample", "2", "--only", "restore --only", "--only", "keys escrow")

    code, document, output = _run(crash.__file__, tmp_path / "report", *words)

    assert (code, document["violations"]) == (0, 0), output
    assert document["struck"] >= 4  # two of each command, and of one next to litestream


def test_an_attack_is_read_as_it_is_shown() -> None:
    """What a violation names can be pasted after --attack."""
    for item in (Attack("named", 12), Attack("hard links", 3, 9), Attack("all", 1, 2, True)):
        assert attack.parsed(str(item)) == item
