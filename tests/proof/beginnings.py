"""What the commands of `cases` begin with, and what is asked of their worlds before and after."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import pyrage

import litestream
import old_homes
from engine_repositories import PASSWORD, Repository
from home_builder import build_home
from home_builder.recipe import Layout
from proof.faults import Ended, Fault, Mode, Step
from proof.worlds import World, rights_of
from sagewai_ops.database.url import PostgresUrl, parse
from sagewai_ops.errors import RemoteError
from sagewai_ops.export.export import Options
from sagewai_ops.export.resumable import export_resumably
from sagewai_ops.home.paths import locate
from sagewai_ops.schema import sqlite_head
from sagewai_ops.snapshots.mark import read_copies
from sagewai_ops.swap import pending

IDENTITY = "AGE-SECRET-KEY-1N3RS2HE94SR2EY7Z5X6C554RNCKUH3GXPG2L89CE54DWULQ8YQCQTQXFZM"
OLD = "018_fleet_schema_correction"
_OTHERS_METRIC = 'sagewai_ops_last_run_exit_code{command="drill",home="/other"} 0'
_OTHERS_LINE = "2026-01-02T03:04:05Z sagewai-ops event=end pid=1 command=drill exit=0"

Words = tuple[object, ...]


class Bench(Protocol):
    """What a preparation may use."""

    def run(
        self,
        words: Words,
        world: World,
        fault: Fault | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> Ended:
        """Run a command as it is run for proof."""

    def steps(self) -> list[Step]:
        """Return the steps of the last run without a fault."""


def nothing(_world: World, _bench: Bench) -> None:
    """Begin without a home."""


def small(world: World, _bench: Bench) -> None:
    """Make a home."""
    build(world)


def build(world: World, *, seed: int = 1, layout: Layout = "canonical") -> None:
    """Make a home that is small, because each run begins with a copy of it."""
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


def partial(world: World, _bench: Bench) -> None:
    """Make a home that lacks parts."""
    build(world)
    shutil.rmtree(world.home / "db")
    shutil.rmtree(world.home / "fleet")


def flat(world: World, _bench: Bench) -> None:
    """Make a home of the older layout, with a document in both places and one behind a link."""
    build(world, layout="flat")
    (world.home / "secrets").mkdir(exist_ok=True)
    (world.home / "secrets/profiles.json").write_bytes(b'{"version": 1, "profiles": []}')
    connections = world.home / "connections.json"
    away = connections.rename(world.out / "connections.json")
    connections.symlink_to(away)


def open_to_all(world: World, _bench: Bench) -> None:
    """Make a home whose modes let everybody in."""
    build(world)
    for path in world.home.rglob("*"):
        path.chmod(0o777 if path.is_dir() else 0o666)


def repair(world: World, bench: Bench) -> None:
    """Repair it by `verify-perms`."""
    bench.run(("verify-perms", "--fix"), world)


def undo_words(world: World) -> Words:
    """Undo that repair."""
    for record in world.home.glob(".sagewai-ops-permissions-*.json"):
        return ("verify-perms", "--undo", record)
    return ("verify-perms", "--dry-run")


def old(world: World, _bench: Bench) -> None:
    """Make a home whose database is of an older version."""
    build(world)
    for path in (world.home / "db").iterdir():
        path.unlink()
    database = world.home / "db/sagewai.db"
    old_homes.build(database, OLD)
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("INSERT INTO agent_runs (run_id, agent_name) VALUES ('r', 'a')")
        connection.commit()
    database.chmod(0o600)


def with_snapshot(world: World, bench: Bench) -> None:
    """Create a snapshot, then change the home."""
    build(world)
    bench.run(("backup",), world)
    (world.home / "config/connections.json").write_bytes(b'{"version": 1, "connections": []}')
    (world.home / "data/later").write_bytes(b"later")
    with contextlib.closing(sqlite3.connect(world.home / "db/sagewai.db")) as connection:
        connection.execute("DELETE FROM agent_runs")
        connection.commit()


def without_key(world: World, bench: Bench) -> None:
    """Create a snapshot, then lose the home, but for its key."""
    with_snapshot(world, bench)
    shutil.move(world.home / "secrets/master.key", world.out / "key")
    shutil.rmtree(world.home)


def restored(world: World, bench: Bench) -> None:
    """Bring a home back from a snapshot."""
    with_snapshot(world, bench)
    bench.run(("restore", "latest", "--replace"), world)


def with_litestream(world: World, _bench: Bench) -> None:
    """Make a home, and a program that prints the version of litestream."""
    build(world)
    litestream.stub(world.out)


def replicated(world: World, bench: Bench) -> None:
    """Make a home with a snapshot, and next to its database what litestream keeps there."""
    with_snapshot(world, bench)
    directory = world.home / "db/.sagewai.db-litestream/ltx/0"
    directory.mkdir(mode=0o700, parents=True)
    (directory / "0000000000000001-0000000000000001.ltx").write_bytes(b"LTX1")


def with_replica(world: World, bench: Bench) -> None:
    """Make a home with a snapshot, and a replica with a later change."""
    with_snapshot(world, bench)
    with contextlib.closing(sqlite3.connect(world.home / "db/sagewai.db")) as connection:
        connection.execute("CREATE TABLE later (x)")
        connection.commit()
    litestream.replicate(litestream.configure(world.out, world.home / "db/sagewai.db"))


def litestream_on_path(_world: World) -> Mapping[str, str]:
    """Have the program find litestream."""
    return {"PATH": f"{litestream.PROGRAM.parent}{os.pathsep}{os.environ['PATH']}"}


def replicated_and_restored(world: World, bench: Bench) -> None:
    """Restore that home, so that its directory of litestream is kept."""
    replicated(world, bench)
    bench.run(("restore", "latest", "--replace"), world)


def interrupt(world: World, bench: Bench) -> None:
    """Kill a restore of parts between its moves."""
    words = ("restore", "latest", "--only", "config,data,fleet")
    bench.run(words, world)
    renames = [number for number, step in enumerate(bench.steps(), 1) if step.call == "rename"]
    world.reset(world.directory.with_name("prepared"))
    # The last rename dooms the staging; before it three parts are exchanged, in two steps each.
    bench.run(words, world, Fault(Mode.KILL_BEFORE, renames[-4]))
    with rights_of(world):
        assert pending.pending_operations(world.home)


def interrupt_migration(world: World, bench: Bench) -> None:
    """Kill a layout migration between its moves."""
    bench.run(("migrate-layout",), world)
    moves = [
        number
        for number, step in enumerate(bench.steps(), 1)
        if step.call == "rename" and "layout.json" not in step.path
    ]
    world.reset(world.directory.with_name("prepared"))
    bench.run(("migrate-layout",), world, Fault(Mode.KILL_BEFORE, moves[1]))
    with rights_of(world):
        assert pending.pending_operations(world.home)


def with_tree(world: World, bench: Bench) -> None:
    """Put a tree next to the home, then let the home go on."""
    build(world)
    bench.run(("backup", "--format", "directory"), world)
    (world.home / "data/later").write_bytes(b"later")
    (world.home / "config/connections.json").write_bytes(b'{"version": 1, "connections": []}')


def tree_verdict(world: World, bench: Bench) -> object:
    """Read every byte of the tree."""
    shutil.rmtree(world.out / "verdict", ignore_errors=True)
    words = ("restore", world.snapshots / "tree", "--to", world.out / "verdict")
    ended = bench.run(words, world)
    shutil.rmtree(world.out / "verdict", ignore_errors=True)
    return ended.code


def in_repository(engine: str) -> Callable[[World, Bench], None]:
    """Store a snapshot of a home in a repository of an engine, then let the home go on."""

    def prepare(world: World, bench: Bench) -> None:
        build(world)
        world.engine.mkdir(mode=0o700)
        words = ("backup", *repository_words(engine)(world), "--init-repository", "--json")
        ended = bench.run(words, world, variables=engine_variables(world))
        Repository(engine, world.engine / "repository").weaken()
        (world.engine / "first").write_text(json.loads(ended.out)["result"]["id"])
        (world.home / "data/later").write_bytes(b"later")

    return prepare


def repository_words(engine: str) -> Callable[[World], Words]:
    """Return the options that name the repository."""
    return lambda world: ("--engine", engine, "--repository", world.engine / "repository")


def engine_variables(world: World) -> Mapping[str, str]:
    """Have the engines and this program keep all that they do in one directory."""
    return {
        "RESTIC_PASSWORD": PASSWORD,
        "BORG_PASSPHRASE": PASSWORD,
        "RESTIC_CACHE_DIR": str(world.engine / "restic"),
        "BORG_BASE_DIR": str(world.engine / "borg"),
        "XDG_CACHE_HOME": str(world.engine / "cache"),
    }


def repository_verdict(engine: str) -> Callable[[World, Bench], object]:
    """See that what the repository lists is whole, has what it had, and all that is recorded."""

    def probe(world: World, bench: Bench) -> object:
        def run(*words: object) -> Ended:
            place = repository_words(engine)(world)
            return bench.run((*words, *place), world, variables=engine_variables(world))

        listed = run("snapshots", "list", "--json")
        if listed.code != 0:
            return listed.code, listed.err
        ids = [item["id"] for item in json.loads(listed.out)["result"]["snapshots"]]
        first = (world.engine / "first").read_text()
        added = [each for each in ids if each != first]
        broken = [each for each in added or ids if run("snapshots", "verify", each).code != 0]
        recorded = {copy.id for copy in read_copies(locate(world.home, {}))}
        return broken, first in ids, recorded <= set(ids), tree_verdict(world, bench)

    return probe


def several(world: World, bench: Bench) -> None:
    """Create three snapshots."""
    build(world)
    for turn in range(3):
        (world.home / "data/turn").write_text(str(turn))
        bench.run(("backup",), world)


def pruned(world: World, bench: Bench) -> None:
    """Move two of three snapshots to the trash."""
    several(world, bench)
    bench.run(("snapshots", "prune", "--keep-last", "1"), world)


def watched(world: World, bench: Bench) -> None:
    """Have a log and a file of metrics to which others write too."""
    several(world, bench)
    (world.out / "run.log").write_text(_OTHERS_LINE + "\n")
    (world.out / "run.prom").write_text(_OTHERS_METRIC + "\n")


def watched_verdict(world: World, _bench: Bench) -> object:
    """See that no line of the log has two events, and that what others wrote is there."""
    lines = (world.out / "run.log").read_text().splitlines()
    metrics = (world.out / "run.prom").read_text()
    mixed = [line for line in lines if line.count(" event=") > 1]
    return (lines[0] == _OTHERS_LINE, _OTHERS_METRIC in metrics, metrics[-1:] == "\n", mixed)


@dataclass(frozen=True, slots=True)
class Opened:
    """What `keys check` counts: values that open, those that Sagewai would lose, bare ones."""

    code: int | None
    values: int
    lost: int
    plaintext: int


def opened(world: World, bench: Bench, variables: Mapping[str, str] | None = None) -> Opened:
    """Return how many sealed values open, and how many only with a key that Sagewai ignores.

    Raises:
        ValueError: `keys check` printed no result.
    """
    ended = bench.run(("keys", "check", "--json"), world, variables=variables)
    result = json.loads(ended.out)["result"]
    if result is None:
        raise ValueError(f"keys check, exit {ended.code}: {ended.err}")
    plaintext = len(result["plaintext"])
    return Opened(ended.code, len(result["values"]), result["lost_to_sagewai"], plaintext)


def opened_on_server(world: World, bench: Bench) -> Opened:
    """Return the same of a home whose tables are on the server."""
    return opened(world, bench, server_url(world))


def at(revision: str) -> Callable[[World, Bench], None]:
    """Make a home, and a database on the server at a revision, or empty."""

    def prepare(world: World, _bench: Bench) -> None:
        build(world)
        assert world.server is not None
        world.server.drop(world.database)
        made = world.server.at(revision) if revision else world.server.create()
        world.server.run("postgres", f'ALTER DATABASE "{made}" RENAME TO "{world.database}"')

    return prepare


def moved_with_snapshot(world: World, bench: Bench) -> None:
    """Move a home to the server and create a snapshot, then change both."""
    exported(world, bench)
    bench.run(("backup",), world, variables=server_url(world))
    assert world.server is not None
    world.server.run(world.database, "DELETE FROM rate_limits")
    (world.home / "data/later").write_bytes(b"later")


def exported(world: World, bench: Bench) -> None:
    """Move a home to the server."""
    at("")(world, bench)
    bench.run(("export-to-postgres", world.url), world)
    shutil.rmtree(world.home.with_name("home.exports"))


def emptied(world: World, bench: Bench) -> None:
    """Move a home to the server, and remove its rows from the file."""
    exported(world, bench)
    with contextlib.closing(sqlite3.connect(world.home / "db/sagewai.db")) as connection:
        for name in sqlite_head.tables():
            connection.execute(f"DELETE FROM {name}")
        connection.commit()


def with_own_table(world: World, bench: Bench) -> None:
    """Move a home to the server, where a table of the user's own has a row."""
    exported(world, bench)
    assert world.server is not None
    world.server.run(world.database, "CREATE TABLE own (x text)", "INSERT INTO own VALUES ('x')")


def exported_with_snapshot(world: World, bench: Bench) -> None:
    """Move a home to the server, and create a snapshot of both."""
    exported(world, bench)
    bench.run(("backup",), world, variables=server_url(world))


def lost_with_server(world: World, bench: Bench) -> None:
    """Lose a home whose tables are on the server, and the rows there; a snapshot has both."""
    exported_with_snapshot(world, bench)
    shutil.copyfile(world.home / "secrets/master.key", world.out / "key")
    (world.out / "key").chmod(0o600)
    shutil.rmtree(world.home)
    assert world.server is not None
    world.server.drop(world.database)
    world.server.run("postgres", f'CREATE DATABASE "{world.database}" TEMPLATE template0')


def changed_on_server(world: World, bench: Bench) -> None:
    """Change a home and its rows on the server after a snapshot."""
    exported_with_snapshot(world, bench)
    (world.home / "data/later").write_bytes(b"later")
    assert world.server is not None
    world.server.run(
        world.database,
        "DELETE FROM workflow_events",
        "INSERT INTO sessions (session_id, agent_name) VALUES ('later', 'a')",
    )


def restored_on_server(world: World, bench: Bench) -> None:
    """Bring both back from that snapshot."""
    changed_on_server(world, bench)
    bench.run(("restore", "latest", "--replace"), world, variables=server_url(world))


def refused(world: World, bench: Bench) -> None:
    """Have a row in the home that a server refuses, and an empty database on the server."""
    at("")(world, bench)
    with contextlib.closing(sqlite3.connect(world.home / "db/sagewai.db")) as connection:
        connection.execute(
            "INSERT INTO agent_runs (run_id, agent_name) VALUES ('r', 'a' || char(0))"
        )
        connection.commit()


def unfinished(world: World, bench: Bench) -> None:
    """Have rows of a resumable export on the server, and its copy in the chosen directory."""
    refused(world, bench)

    def stop(stage: str, _done: int, _total: int) -> None:
        if stage.startswith("copy "):
            raise RemoteError("stopped")

    url = parse(world.url)
    assert isinstance(url, PostgresUrl)
    options = Options(policy="quarantine", work_dir=world.out)
    with contextlib.suppress(RemoteError):
        export_resumably(locate(world.home, {}), url, options, progress=stop)
    shutil.rmtree(world.home.with_name("home.exports"))


def server_url(world: World) -> Mapping[str, str]:
    """Return the database on the server, as a person does."""
    return {"SAGEWAI_DATABASE_URL": world.url}


def recipient() -> str:
    """Return the public half of `IDENTITY`."""
    return str(pyrage.x25519.Identity.from_str(IDENTITY).to_public())
