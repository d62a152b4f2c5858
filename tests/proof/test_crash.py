"""A sample of what `make proof` does in full: every command is killed and fails at its steps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import typer.main

from proof import crash, faults, plans
from proof.cases import CASES
from proof.faults import Fault, Mode, Step
from proof.worlds import World
from sagewai_ops.cli.main import build_app

CRASH = Path(crash.__file__)
GROUPS = (
    ("init", "migrate-layout", "verify-perms", "db", "schedule"),
    ("backup", "drill", "preflight", "keys"),
    ("restore", "recover", "snapshots", "status", "config", "remote", "notify"),
    ("export-to-postgres", "import-from-postgres"),
)
# Options that name a file or a directory that is only read.
READ = {
    *("--home", "--config", "--snapshots", "--recipients-file", "--passphrase-file", "--identity"),
    "--archive-passphrase-file",
    *(
        "--key-file",
        "--extra-key",
        "--install-key",
        "--new-key-file",
        "--url-file",
        "--scratch-url-file",
        "--ping-url-file",
        "--notify-file",
        "--credentials",
        "--undo",
        "--program",
        "--ssh-key",
        "--litestream-config",
        "--host-key",
    ),
}

needs_steps = pytest.mark.skipif(
    not faults.is_possible(), reason="steps are numbered on Linux, with a C compiler"
)


def _prove(report: Path, *words: str) -> tuple[int, dict[str, Any], str]:
    done = subprocess.run(
        [sys.executable, CRASH, "--jobs", "1", "--json", str(report), *words],
        capture_output=True,
        text=True,
        check=False,
    )
    document = json.loads(report.read_text()) if report.exists() else {}
    return done.returncode, document, done.stdout + done.stderr


@needs_steps
@pytest.mark.timeout(1200)  # a minute on a machine of its own; it may be one of many
@pytest.mark.parametrize("group", GROUPS, ids=" ".join)
def test_a_command_whose_step_goes_wrong_keeps_its_promises(
    group: tuple[str, ...], tmp_path: Path
) -> None:
    """Killed or refused at steps drawn with a fixed seed, it leaves old or new and goes on."""
    only = [word for name in group for word in ("--only", name)]

    code, document, output = _prove(tmp_path / "report", "--sample", "2", "--seed", "7", *only)

    assert (code, document["violations"]) == (0, 0), output
    assert document["commands"] == sum(case.name.startswith(group) for case in CASES)
    idle = {case.name for case in CASES if case.is_idle}
    assert all(bool(case["struck"]) != (case["name"] in idle) for case in document["cases"])


@needs_steps
@pytest.mark.timeout(600)
def test_a_signal_ends_a_command_with_nothing_left_over(tmp_path: Path) -> None:
    """SIGTERM at each step, those of cleaning up among them; at 40 of those with a server."""
    only = ("--only", "restore --undo", "--only", "keys escrow", "--only", "restore --recover")

    code, document, output = _prove(tmp_path / "report", "--sample", "40", "--signals", *only)

    assert (code, document["violations"]) == (0, 0), output
    assert document["struck"] >= 30


@needs_steps
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("case", "step"),
    [
        ("backup --format", "unlink "),  # of the old tree, when the new one has its place
        ("db upgrade --rehearse", "mkdir "),
        ("export-to-postgres, with", "mkdir "),
        ("migrate-layout, over", "chmod "),  # in taking back what cannot be moved
    ],
)
def test_a_signal_while_it_makes_or_removes_leaves_nothing(
    case: str, step: str, tmp_path: Path
) -> None:
    """Where a signal once left a directory or a journal behind."""
    words = ("--every", "--signals", "--only", case, "--at", step)

    code, document, output = _prove(tmp_path / "report", *words)

    assert (code, document["violations"]) == (0, 0), output
    assert document["struck"]


@needs_steps
@pytest.mark.timeout(600)
def test_a_shm_that_cannot_be_made_costs_nothing(tmp_path: Path) -> None:
    """SQLite 3.40.1 would remove a -wal with content as it closes the connection that writes."""
    words = ("--every", "--at", "truncate ", "--only", "keys rotate, PostgreSQL")

    code, document, output = _prove(tmp_path / "report", *words)

    assert (code, document["violations"]) == (0, 0), output
    assert document["struck"] >= 32


@needs_steps
def test_a_write_that_is_not_atomic_is_noticed(tmp_path: Path) -> None:
    """The harness finds what is broken on purpose, and its exit code shows it."""
    words = ("--planted", "--only", "keys escrow", "--fault", "kill after at 1")

    code, document, output = _prove(tmp_path / "report", *words)

    assert code == 1, output
    assert "neither old nor new: out/key.age" in document["cases"][0]["violations"][0]


def test_every_case_is_in_a_group_and_every_command_is_a_case() -> None:
    """A command that is added goes through the faults, or is proved to take no step."""
    together = tuple(name for group in GROUPS for name in group)
    assert all(case.name.startswith(together) for case in CASES)
    missing = {
        name for name in _commands() if not any(case.name.startswith(name) for case in CASES)
    }
    assert not missing


def test_every_option_that_names_what_is_written_is_in_a_case() -> None:
    """An option that is added and writes a file goes through the faults, too."""
    places = {
        flag
        for command in _commands().values()
        for option in command.params
        if (option.metavar or "").rstrip("?") in ("F", "FILE", "DIR", "-")
        for flag in option.opts
    }
    server = mock.Mock(url=str)
    given = {str(word) for case in CASES for word in case.words(World(Path("/w"), server))}

    assert {"--report", "--into", "--metrics-file", "--sheet", "--output"} < places
    assert places - READ - given == set()


def _commands() -> dict[str, Any]:
    """Return every command by the words that call it."""
    top = typer.main.get_command(build_app())
    found: dict[str, Any] = {}
    for name, command in top.commands.items():  # type: ignore[attr-defined]
        below = getattr(command, "commands", {"": command})
        found |= {f"{name} {word}".rstrip(): each for word, each in below.items()}
    return found


def test_of_alike_steps_the_ends_and_some_between_are_taken() -> None:
    """A file written in a hundred pieces is killed at a few of them, other steps at each."""
    steps = [Step("create", "a"), *[Step("write", "a")] * 100, Step("rename", "a")]

    chosen = plans.thinned(steps, 7)

    assert {1, 2, 3, 100, 101, 102} < set(chosen)
    assert len(chosen) == 10


def test_a_fault_is_read_as_it_is_shown() -> None:
    """What a violation names can be pasted after --fault."""
    for fault in (Fault(Mode.KILL_BEFORE, 12), Fault(Mode.FAIL_ON, 3, 28), Fault(Mode.TEAR, 1)):
        assert plans.parsed(str(fault)) == fault
