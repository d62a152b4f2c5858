"""`--dry-run`: every command that changes something has it, and it changes nothing."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyrage
import pytest
import typer

import litestream
from json_schemas import problems
from program import call
from remote_servers import local_ssh
from sagewai_ops.cli import main
from sagewai_ops.cli.variables import ACTING
from small_homes import small

RECIPIENT = str(pyrage.x25519.Identity.generate().to_public())


@dataclass(frozen=True)
class World:
    """A directory with a home, its snapshots, and things to repair."""

    directory: Path
    home: Path
    record: str
    removed: str


def _commands() -> dict[str, Any]:
    found: dict[str, Any] = {}

    def walk(name: str, command: Any) -> None:
        for word, below in getattr(command, "commands", {}).items():
            walk(f"{name} {word}".strip(), below)
        if name and not hasattr(command, "commands"):
            found[name] = command

    walk("", typer.main.get_command(main.build_app()))
    return found


def _schedule(kind: str) -> Callable[[World], list[object]]:
    return lambda world: ["schedule", kind, "--into", world.directory]


def _schedule_litestream(world: World) -> list[object]:
    program = ["--program", world.directory / "litestream"]
    place = world.directory / "replica"
    return ["schedule", "litestream", place, *program, "--into", world.directory]


COMMANDS = _commands()
# Arguments that make each command change something without --dry-run, and what the plan names.
CASES: dict[str, list[tuple[Callable[[World], list[object]], str]]] = {
    "init": [(lambda world: ["--home", world.directory / "new", "init"], "would create ")],
    "backup": [
        (lambda _world: ["backup", "--keep-last", 1], "would copy "),
        (lambda _world: ["backup", "--format", "directory"], "home.snapshots/tree"),
        (lambda world: ["backup", "--metrics-file", world.directory / "metrics"], "would create"),
    ],
    "restore": [
        (lambda _world: ["restore", "latest", "--replace"], "would be restored"),
        (lambda _world: ["restore", "latest", "--if-empty"], "exists"),
        (lambda _world: ["restore", "--undo"], "would be"),
    ],
    "recover": [(lambda _world: ["recover"], "")],
    "verify-perms": [
        (lambda _world: ["verify-perms", "--fix"], "would change"),
        (lambda world: ["verify-perms", "--undo", world.record], "would revert"),
    ],
    "migrate-layout": [(lambda _world: ["migrate-layout"], "connections.json")],
    "keys escrow": [
        (
            lambda world: [
                "keys",
                "escrow",
                "--recipient",
                RECIPIENT,
                "--to",
                world.directory / "k",
            ],
            "would be written",
        )
    ],
    "keys rotate": [(lambda _world: ["keys", "rotate", "--recipient", RECIPIENT], "would be")],
    "db upgrade": [(lambda _world: ["db", "upgrade"], "would add ")],
    "drill": [(lambda _world: ["drill"], "would restore ")],
    "preflight": [(lambda _world: ["preflight"], "not requested")],
    "snapshots list": [(lambda _world: ["snapshots", "list", "--rebuild"], "would write")],
    "snapshots extract": [
        (
            lambda world: ["snapshots", "extract", "latest", "--to", world.directory / "out"],
            "would write",
        )
    ],
    "snapshots prune": [(lambda _world: ["snapshots", "prune", "--keep-last", 1], "would be")],
    "snapshots copy": [
        (
            lambda world: [
                *("snapshots", "copy", world.directory / "home.snapshots", world.directory / "copy")
            ],
            "would copy",
        )
    ],
    "snapshots undelete": [(lambda _world: ["snapshots", "undelete", "--all"], "would move")],
    "remote init": [
        (lambda world: ["remote", "init", f"sftp://host{world.directory}/place"], "would create")
    ],
    "remote check": [
        (
            lambda world: ["remote", "check", f"sftp://host{world.directory}/initialised"],
            "would probe",
        )
    ],
    "notify test": [
        (
            lambda _world: ["notify", "test", "--notify", "https://h.example/s"],
            "would send a notification to h.example",
        )
    ],
    "schedule run": [
        (lambda _world: ["schedule", "run", "--jitter", "15m", "backup"], "run backup at ")
    ],
    **{
        f"schedule {kind}": [(_schedule(kind), "would write")]
        for kind in ("systemd", "cron", "compose", "kubernetes")
    },
    "schedule litestream": [(_schedule_litestream, "would write")],
}
# Their databases are on a server: tests/cli/test_db.py, tests/cli/test_export_to_postgres.py and
# tests/operations/test_import_from_postgres.py.
ON_SERVERS = {"db downgrade", "export-to-postgres", "import-from-postgres"}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Something to do for every command, next to a home that a restore replaced."""
    tmp_path.chmod(0o700)
    local_ssh(tmp_path, monkeypatch)
    litestream.stub(tmp_path)
    for name in ("place", "initialised"):
        (tmp_path / name).mkdir()
    assert call("remote", "init", f"sftp://host{tmp_path}/initialised").code == 0
    home = small(tmp_path / "home").root
    for _number in range(3):
        assert call("--home", home, "backup").code == 0
    removed = call("--home", home, "snapshots", "prune", "--keep-last", 2, "--json")
    assert call("--home", home, "restore", "latest", "--replace").code == 0
    (home / "config").chmod(0o777)
    fixed = call("--home", home, "verify-perms", "--fix", "--json")
    (home / "config").chmod(0o755)
    (home / "connections.json").write_text("{}")
    return World(tmp_path, home, fixed.result["record"], removed.result["removed"][0])


def _digest(directory: Path) -> dict[str, str]:
    """Return the mode, change time and content of everything below a directory."""
    found = {}
    for path in [directory, *sorted(directory.rglob("*"))]:
        facts = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        text = f"{facts.st_mode:o} {facts.st_ctime_ns} {hashlib.sha256(content).hexdigest()}"
        # SQLite keeps an index of its log while a database is read.
        if not path.name.endswith(("-shm", "-wal")) and path.name != "db":
            found[os.fspath(path)] = text
    return found


def test_every_command_that_changes_something_has_a_dry_run() -> None:
    """And accepts --yes, whether or not it asks; no other command has either."""
    for name, command in COMMANDS.items():
        flags = {flag for option in command.params for flag in option.opts}
        is_changing = name in CASES or name in ON_SERVERS

        assert {"--dry-run", "--yes"} & flags == ({"--dry-run", "--yes"} if is_changing else set())
        assert flags & ACTING <= {"--all", "--sqlite"} or is_changing, name


@pytest.mark.parametrize(
    ("name", "number"),
    [(name, number) for name, cases in CASES.items() for number in range(len(cases))],
)
def test_a_dry_run_writes_nothing(world: World, name: str, number: int) -> None:
    """Neither in the home, nor in the snapshot directory, the database, nor next to them."""
    words, planned = CASES[name][number]
    if name == "db upgrade":
        import sqlite3

        with sqlite3.connect(world.home / "db/sagewai.db") as connection:
            connection.execute("DROP TABLE sessions")
        connection.close()
    before = _digest(world.directory)

    answer = call("--home", world.home, *words(world), "--dry-run", "--yes")
    as_json = call("--home", world.home, *words(world), "--dry-run", "--json")

    assert (answer.code, as_json.code) in ((0, 0), (4, 4)), answer
    assert planned in answer.out
    assert _digest(world.directory) == before
    if as_json.result.keys() == {"dry_run", "steps"}:
        assert problems("dry-run", as_json.result) == []
    else:
        assert problems(name.replace(" ", "-"), as_json.result) == []
