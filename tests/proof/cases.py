"""Every command that changes anything, listed once: what it begins with, its words, what may be.

A command added here goes through every fault of `crash`, and nothing else has to be written.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import pyrage

import old_homes
from home_builder import build_home
from home_builder.recipe import Layout
from proof.faults import Ended, Fault, Mode, Step
from proof.worlds import World
from sagewai_ops.errors import EXIT_DONE, EXIT_FINDINGS
from sagewai_ops.snapshots import swap

IDENTITY = "AGE-SECRET-KEY-1N3RS2HE94SR2EY7Z5X6C554RNCKUH3GXPG2L89CE54DWULQ8YQCQTQXFZM"
_OCCUPIED = 15  # what a second run says where the first has done it all

Words = tuple[object, ...]


class Bench(Protocol):
    """What a preparation may use."""

    def run(self, words: Words, world: World, fault: Fault | None = None) -> Ended:
        """Run a command as it is run for proof."""

    def steps(self) -> list[Step]:
        """Give the steps of the last run without a fault."""


def _nothing(_world: World, _bench: Bench) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Case:
    """One command in one situation.

    Attributes:
        prepare: Makes what it begins with, in an empty world.
        begin: Done before each run, where a copy of what was prepared is not the same.
        words: Its command line.
        code: The exit code of an undisturbed run.
        variables: Added to its environment.
        again: The command line of the run after a fault; the same if None.
        codes_done: What that run may answer where the disturbed one had done all; None if it is
            not to be given again then, because it would do another thing.
        in_parts: Its promise is for each file alone: some may be old and some new.
        may_go_back: What it is to finish may also be taken back, and that is well too.
        recover: What is to be run where it was interrupted between old and new.
        on_server: It needs a database on a server.
        takes_snapshot: A snapshot more may be there after each run.
        has_verdicts: It tells what fails in its table, and its exit code comes from there.
        moves_snapshots: Snapshots may leave the list; then they rest in the trash.
        by_the_second: It writes moments that are cut to seconds, which two runs may share.
        probe: A question whose answer is the same before, after and whatever happened.
    """

    name: str
    prepare: Callable[[World, Bench], None]
    words: Callable[[World], Words]
    begin: Callable[[World, Bench], None] = _nothing
    code: int = EXIT_DONE
    variables: Callable[[World], Mapping[str, str]] = field(default=lambda _world: {})
    again: Callable[[World], Words] | None = None
    codes_done: tuple[int, ...] | None = (EXIT_DONE,)
    in_parts: bool = False
    may_go_back: bool = False
    recover: Words = ()
    on_server: bool = False
    takes_snapshot: bool = False
    has_verdicts: bool = False
    moves_snapshots: bool = False
    by_the_second: bool = False
    probe: Callable[[World, Bench], object] = field(default=lambda _world, _bench: None)


def _small(world: World, _bench: Bench) -> None:
    _build(world)


def _build(world: World, *, seed: int = 1, layout: Layout = "canonical") -> None:
    build_home(
        world.home,
        seed=seed,
        layout=layout,
        rows=1,
        vectors=0,
        artifacts=False,
        leftovers=False,
        journal="tail",
    )


def _half(world: World, _bench: Bench) -> None:
    _build(world)
    shutil.rmtree(world.home / "db")
    shutil.rmtree(world.home / "fleet")


def _flat(world: World, _bench: Bench) -> None:
    _build(world, layout="flat")
    (world.home / "secrets").mkdir(exist_ok=True)
    (world.home / "secrets/profiles.json").write_bytes(b'{"version": 1, "profiles": []}')


def _open(world: World, _bench: Bench) -> None:
    _build(world)
    for path in world.home.rglob("*"):
        path.chmod(0o777 if path.is_dir() else 0o666)


def _repair(world: World, bench: Bench) -> None:
    bench.run(("verify-perms", "--fix"), world)


def _undo_words(world: World) -> Words:
    for record in world.home.glob(".sagewai-ops-permissions-*.json"):
        return ("verify-perms", "--undo", record)
    return ("verify-perms", "--dry-run")


def _old(world: World, _bench: Bench) -> None:
    _build(world)
    for path in (world.home / "db").iterdir():
        path.unlink()
    database = world.home / "db/sagewai.db"
    old_homes.build(database, "018_fleet_schema_correction")
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("INSERT INTO agent_runs (run_id, agent_name) VALUES ('r', 'a')")
        connection.commit()
    database.chmod(0o600)


def _with_snapshot(world: World, bench: Bench) -> None:
    """Take a snapshot, then let the home go on."""
    _build(world)
    bench.run(("backup",), world)
    (world.home / "config/connections.json").write_bytes(b"[]")
    (world.home / "data/later").write_bytes(b"later")
    with contextlib.closing(sqlite3.connect(world.home / "db/sagewai.db")) as connection:
        connection.execute("DELETE FROM agent_runs")
        connection.commit()


def _restored(world: World, bench: Bench) -> None:
    _with_snapshot(world, bench)
    bench.run(("restore", "latest", "--replace"), world)


def _interrupt(world: World, bench: Bench) -> None:
    """Kill a restore of parts between its moves."""
    words = ("restore", "latest", "--only", "config,data,fleet")
    bench.run(words, world)
    renames = [number for number, step in enumerate(bench.steps(), 1) if step.call == "rename"]
    world.reset(world.folder.with_name("prepared"))
    # The last rename dooms the staging; before it three parts are exchanged, in two steps each.
    bench.run(words, world, Fault(Mode.KILL_BEFORE, renames[-4]))
    assert swap.unfinished(world.home) is not None


def _with_tree(world: World, bench: Bench) -> None:
    """Put a tree beside the home, then let the home go on."""
    _build(world)
    bench.run(("backup", "--format", "directory"), world)
    (world.home / "data/later").write_bytes(b"later")
    (world.home / "config/connections.json").write_bytes(b"[]")


def _tree_verdict(world: World, bench: Bench) -> object:
    """Read every byte of the tree."""
    shutil.rmtree(world.out / "verdict", ignore_errors=True)
    words = ("restore", world.snapshots / "tree", "--to", world.out / "verdict")
    ended = bench.run(words, world)
    shutil.rmtree(world.out / "verdict", ignore_errors=True)
    return ended.code


def _several(world: World, bench: Bench) -> None:
    _build(world)
    for turn in range(3):
        (world.home / "data/turn").write_text(str(turn))
        bench.run(("backup",), world)


def _pruned(world: World, bench: Bench) -> None:
    _several(world, bench)
    bench.run(("snapshots", "prune", "--keep-last", "1"), world)


@dataclass(frozen=True, slots=True)
class Opened:
    """What `keys check` counts: values that open, those that Sagewai would lose, bare ones."""

    code: int | None
    values: int
    lost: int
    plaintext: int


def opened(world: World, bench: Bench) -> Opened:
    """Tell how many sealed values open, and how many of them only with a key that Sagewai ignores.

    Raises:
        ValueError: `keys check` printed no result.
    """
    ended = bench.run(("keys", "check", "--json"), world)
    result = json.loads(ended.out)["result"]
    if result is None:
        raise ValueError(f"keys check, exit {ended.code}: {ended.err}")
    plaintext = len(result["plaintext"])
    return Opened(ended.code, len(result["values"]), result["lost_to_sagewai"], plaintext)


def _at(revision: str) -> Callable[[World, Bench], None]:
    def prepare(world: World, _bench: Bench) -> None:
        _build(world)
        assert world.server is not None
        world.server.drop(world.database)
        made = world.server.at(revision) if revision else world.server.create()
        world.server.run("postgres", f'ALTER DATABASE "{made}" RENAME TO "{world.database}"')

    return prepare


def _server_url(world: World) -> Mapping[str, str]:
    return {"SAGEWAI_DATABASE_URL": world.url}


def _recipient() -> str:
    return str(_identity().to_public())


def _identity() -> pyrage.x25519.Identity:
    return pyrage.x25519.Identity.from_str(IDENTITY)


def _always(*words: object) -> Callable[[World], Words]:
    return lambda _world: words


RECOVER: Words = ("restore", "--recover")

CASES = (
    Case("init", _nothing, _always("init"), in_parts=True),
    Case("init, completing", _half, _always("init"), in_parts=True),
    Case("migrate-layout", _flat, _always("migrate-layout")),
    Case("verify-perms --fix", _open, _always("verify-perms", "--fix"), in_parts=True),
    Case(
        "verify-perms --undo",
        _open,
        _undo_words,
        begin=_repair,
        in_parts=True,
        codes_done=(EXIT_DONE, EXIT_FINDINGS),
    ),
    Case("db upgrade, SQLite", _old, _always("db", "upgrade"), takes_snapshot=True),
    Case(
        "db upgrade, PostgreSQL",
        _at("018_fleet_schema_correction"),
        _always("db", "upgrade", "--no-snapshot"),
        variables=_server_url,
        on_server=True,
    ),
    Case(
        "db downgrade, PostgreSQL",
        _at("020_fleet_task_lease"),
        _always("db", "downgrade", "018_fleet_schema_correction", "--yes"),
        variables=_server_url,
        on_server=True,
    ),
    Case("backup", _small, _always("backup"), takes_snapshot=True),
    Case("backup --compact", _small, _always("backup", "--compact"), takes_snapshot=True),
    Case(
        "backup, encrypted",
        _small,
        lambda _world: ("backup", "--key", "sealed", "--recipient", _recipient()),
        takes_snapshot=True,
    ),
    Case(
        "backup --format directory",
        _with_tree,
        _always("backup", "--format", "directory"),
        probe=_tree_verdict,
    ),
    Case("backup --output", _small, _always("backup", "--output", "-")),
    Case(
        "restore to a new place",
        _with_snapshot,
        lambda world: ("restore", "latest", "--to", world.out / "copy"),
        codes_done=(_OCCUPIED,),
    ),
    Case(
        "restore --replace",
        _with_snapshot,
        _always("restore", "latest", "--replace", "--revoke-sessions"),
        by_the_second=True,
        recover=RECOVER,
    ),
    Case(
        "restore --only",
        _with_snapshot,
        _always("restore", "latest", "--only", "config,db,data"),
        recover=RECOVER,
    ),
    Case(
        "restore --undo", _restored, _always("restore", "--undo"), codes_done=None, recover=RECOVER
    ),
    Case(
        "restore --recover",
        _with_snapshot,
        _always("restore", "--recover"),
        begin=_interrupt,
        may_go_back=True,
        recover=RECOVER,
    ),
    Case(
        "snapshots extract",
        _with_snapshot,
        lambda world: ("snapshots", "extract", "latest", "--to", world.out / "taken"),
        codes_done=(_OCCUPIED,),
    ),
    Case(
        "keys escrow",
        _small,
        lambda world: (
            *("keys", "escrow", "--recipient", _recipient()),
            *("--to", world.out / "key.age", "--sheet", world.out / "sheet.txt"),
        ),
        again=lambda world: (
            *("keys", "escrow", "--recipient", _recipient(), "--force"),
            *("--to", world.out / "key.age", "--sheet", world.out / "sheet.txt"),
        ),
        in_parts=True,
    ),
    Case(
        "keys rotate",
        _small,
        lambda _world: ("keys", "rotate", "--recipient", _recipient()),
        codes_done=None,
        recover=("keys", "rotate", "--recover"),
        takes_snapshot=True,
        probe=opened,
    ),
    Case("drill", _with_snapshot, _always("drill")),
    Case(
        "preflight",
        _small,
        _always("preflight"),
        code=EXIT_FINDINGS,
        takes_snapshot=True,
        has_verdicts=True,
    ),
    Case("snapshots list --rebuild", _several, _always("snapshots", "list", "--rebuild")),
    Case(
        "snapshots prune",
        _several,
        _always("snapshots", "prune", "--keep-last", "1"),
        moves_snapshots=True,
    ),
    Case(
        "snapshots untrash",
        _pruned,
        _always("snapshots", "untrash", "--all"),
        moves_snapshots=True,
    ),
    Case(
        "export-to-postgres",
        _at(""),
        lambda world: ("export-to-postgres", world.url),
        codes_done=(_OCCUPIED,),
        on_server=True,
    ),
)
