"""`make bench`: what `export-to-postgres` costs against the ways that people have, in one run.

All fill a database at head, on one server, with the rows of one home: COPY of ready CSV files with
the indexes in place, which is the limit as people meet it; the making of those files before it;
INSERTs by executemany; pgloader where it is installed. Ours is the whole command, and the same
without its comparison, and the seconds that Sagewai is stopped with --live-first, if one row in a
hundred changed. Then the larger home, and the vectors. Processor time is that of the clients
and of the server's sessions together. Prints Markdown; needs Linux.

    .venv/bin/python tests/benchmarks/bench_export.py [--rows N] [--vectors N] [--skip-large]
    .venv/bin/python tests/benchmarks/bench_export.py --stopped [--rows N]  # --live-first alone
"""

import argparse
import compileall
import contextlib
import json
import os
import shlex
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
for place in ("tests", "fixtures"):  # run as a script, without pytest's paths
    sys.path.insert(0, os.fspath(REPOSITORY / place))

from benchmarks import large_home  # noqa: E402
from benchmarks.peers import program  # noqa: E402
from benchmarks.stopwatch import Cost, best, machine, measure, version  # noqa: E402
from home_builder import vectors as vector_tables  # noqa: E402
from postgres_server import Server, installations  # noqa: E402
from sagewai_ops.schema.create import create_database  # noqa: E402
from sagewai_ops.schema.revision_graph import HEAD  # noqa: E402

ROWS, VECTORS = 100_222, 5_028  # of a home that served for some months
LARGE_ROWS, LARGE_VECTORS = 2_000_000, 100_000
VECTOR_BYTES = 4 * large_home.DIMENSIONS
# Against the COPY of ready files; bytes of all processes; bytes a second.
LIMIT_BARE, LIMIT_COMPARED, LIMIT_MEMORY, LIMIT_VECTORS = 1.3, 2.0, 200e6, 40e6
LIMIT_RESUMABLE = 1.1  # processor time against that of the plain move to an empty database
LIMIT_STOPPED = 10.0  # seconds, of the large home
# Between the copies one row in a hundred is updated or deleted, in pages all over the file.
CHANGE = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
for statement in (
    "UPDATE agent_runs SET output_text = output_text || '.'",
    "UPDATE sessions SET summary = 'later'",
    "UPDATE workflow_runs SET status = 'failed', error = 'later'",
    "UPDATE cost_records SET model = model || '.'",
    "DELETE FROM prompt_logs",
):
    connection.execute(statement + " WHERE rowid % 67 = 7")
connection.commit()
"""
PEERS = REPOSITORY / "tests" / "benchmarks" / "sqlite_to_postgres.py"
# The whole command but its comparison, which no option of it leaves out.
BARE = """
import sys
from pathlib import Path
from sagewai_ops.database.url import parse
from sagewai_ops.home.paths import locate
from sagewai_ops.export.export import Options, export
assert export(locate(Path(sys.argv[1]), {}), parse(sys.argv[2]), Options(compare=False)).committed
"""
# It exits 0 with rows missing, so its own summary is looked at.
PGLOADER = """
cd "$0"
sed "s,TARGET,$2,; s,SOURCE,$1," "$3" > pgloader.load
cp "$4" pgloader.lisp  # it is compiled, and the result is next to it
pgloader --root-dir "$0/pgloader" --load-lisp-file pgloader.lisp pgloader.load > output 2>&1
! grep -q ERROR output || { cat output >&2; exit 1; }
"""


@dataclass(frozen=True, slots=True)
class Site:
    """What is measured on: a home, a server, and a directory for files."""

    home: Path
    server: Server
    work: Path

    @property
    def database(self) -> Path:
        """The home's."""
        return self.home / "db" / "sagewai.db"


def main() -> int:
    """Measure, print, and return the exit code: 1 where a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--vectors", type=int, default=VECTORS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--skip-large", action="store_true")
    parser.add_argument("--stopped", action="store_true")
    arguments = parser.parse_args()
    for directory in ("sagewai_ops", "commands"):  # as an installer leaves them
        compileall.compile_dir(REPOSITORY / directory, quiet=1)
    server = Server(max(installations(), key=lambda found: found.major))
    server.start()
    try:
        print(f"Measured on {machine(REPOSITORY)}, {server.installation.name}.\n")
        if arguments.stopped:
            return 0 if _stopped(server, arguments.rows) <= LIMIT_STOPPED else 1
        kept = _measure(server, arguments.rows, arguments.vectors, arguments.rounds, slow=True)
        if not arguments.skip_large:
            kept &= _measure(server, LARGE_ROWS, LARGE_VECTORS, 1, slow=False)
    finally:
        server.stop()
    print(
        f"Asked for: {LIMIT_BARE} x without the comparison, {LIMIT_COMPARED} x with it,"
        f" --resumable {LIMIT_RESUMABLE} x the processor time,"
        f" {LIMIT_MEMORY / 1e6:.0f} MB, vectors {LIMIT_VECTORS / 1e6:.0f} MB/s."
    )
    return 0 if kept else 1


def _measure(server: Server, rows: int, vectors: int, rounds: int, *, slow: bool) -> bool:
    """Compare all ways on a home of one size.

    Args:
        slow: Also those that take many times as long as the others.
    """
    with tempfile.TemporaryDirectory(prefix="sagewai-ops-bench-") as directory:
        site = Site(Path(directory) / "home", server, Path(directory))
        rows = _build(site, rows, vectors)
        ways = _ways(site, slow=slow)
        costs: dict[str, list[Cost]] = {name: [] for name in ways}
        for _round in range(rounds):
            for name, method in ways.items():
                costs[name].append(method())
        size = site.database.stat().st_size
        limit = best(costs["COPY of ready CSV files"])
        print(f"| {rows} rows, {vectors} vectors, {size / 1e6:.0f} MB | seconds | rows/s | ratio |"
              " processor | memory |\n|---|---|---|---|---|---|")  # fmt: skip
        for name, measured in costs.items():
            cost = best(measured)
            print(f"| {name} | {cost.wall_seconds:.2f} | {rows / cost.wall_seconds:.0f} |"
                  f" {cost.wall_seconds / limit.wall_seconds:.2f} | {cost.cpu_seconds:.1f} |"
                  f" {cost.peak_bytes / 1e6:.0f} MB |")  # fmt: skip
        print()
        stopped = _stopped_seconds(site)
        bare, ours = best(costs["ours, not compared"]), best(costs["ours"])
        plain, parts = (
            min(cost.cpu_seconds for cost in costs[name])
            for name in ("ours, into an empty database", "ours, --resumable")
        )
        print(f"--resumable: {parts / plain:.2f} times the processor time of a plain move.\n")
        speed = _vector_speed(site) if vectors else LIMIT_VECTORS
    return (
        bare.wall_seconds <= LIMIT_BARE * limit.wall_seconds
        and ours.wall_seconds <= LIMIT_COMPARED * limit.wall_seconds
        and max(bare.peak_bytes, ours.peak_bytes) <= LIMIT_MEMORY
        and speed >= LIMIT_VECTORS
        and parts <= LIMIT_RESUMABLE * plain
        and stopped <= LIMIT_STOPPED
    )


def _stopped(server: Server, rows: int) -> float:
    """Return how many seconds --live-first stops a home of one size."""
    with tempfile.TemporaryDirectory(prefix="sagewai-ops-bench-") as directory:
        site = Site(Path(directory) / "home", server, Path(directory))
        print(f"{_build(site, rows, 0)} rows, {site.database.stat().st_size / 1e6:.0f} MB.\n")
        return _stopped_seconds(site)


def _build(site: Site, rows: int, vectors: int) -> int:
    site.database.parent.mkdir(parents=True)
    create_database(site.database)
    filled = large_home.fill(site.database, rows)
    if vectors:
        with contextlib.closing(sqlite3.connect(site.database)) as connection:
            vector_tables.create(
                connection,
                "vec_learnings",
                count=vectors,
                dimension=large_home.DIMENSIONS,
                seed=1,
            )
            connection.commit()
    return filled


def _ways(site: Site, *, slow: bool) -> dict[str, Callable[[], Cost]]:
    """Return the ways by name, in the order in which they are measured."""
    files = site.work / "csv"
    script = files / "load.sql"
    python, home = sys.executable, os.fspath(site.home)
    make = [python, os.fspath(PEERS), "csv", os.fspath(site.database), os.fspath(files)]

    def into(*command: str, is_empty: bool = False) -> Callable[[], Cost]:
        """Run a command on a database of its own, whose URL takes the place of the word {}."""

        def run() -> Cost:
            name = site.server.create() if is_empty else site.server.at(HEAD)
            url = site.server.tcp_url(name)
            before = _server_seconds(site.server)
            try:
                cost = measure([url if word == "{}" else word for word in command])
            finally:
                site.server.drop(name)  # which waits for the sessions
            served = _server_seconds(site.server) - before
            return replace(cost, cpu_seconds=cost.cpu_seconds + served)

        return run

    ours = [program(), "--home", home, "export-to-postgres", "{}", "--json"]
    psql = os.fspath(site.server.installation.programs / "psql")
    copy = [psql, "-q", "-1", "-v", "ON_ERROR_STOP=1", "-f", os.fspath(script), "{}"]
    measured = {
        "making CSV files": lambda: measure([*make, site.server.url(site.server.at(HEAD))]),
        "COPY of ready CSV files": into(*copy),
        "ours, not compared": into(python, "-c", BARE, home, "{}"),
        "ours": into(*ours),
        "ours, into an empty database": into(*ours, is_empty=True),
        "ours, --resumable": into(*ours, "--resumable", is_empty=True),
    }
    if slow:
        measured["executemany"] = into(
            python, os.fspath(PEERS), "insert", os.fspath(site.database), "{}"
        )
        if shutil.which("pgloader"):
            recipe = [os.fspath(PEERS.with_name(f"pgloader.{end}")) for end in ("load", "lisp")]
            measured[version(["pgloader", "--version"])] = into(
                *("sh", "-ec", PGLOADER, os.fspath(site.work), os.fspath(site.database), "{}"),
                *recipe,
            )
        else:
            print("pgloader: skipped, not installed\n")
    return measured


def _server_seconds(server: Server) -> float:
    """Return the processor time of the server's sessions that have ended."""
    fields = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")  # proc(5): 16, 17


def _stopped_seconds(site: Site) -> float:
    """Export while the home changes, print how long that was stopped, and return the seconds."""
    name = site.server.at(HEAD)
    changer = site.work / "change.py"
    changer.write_text(CHANGE)
    command = shlex.join([sys.executable, os.fspath(changer), os.fspath(site.database)])
    done = subprocess.run(
        [program(), "--home", os.fspath(site.home), "export-to-postgres", site.server.url(name),
         "--live-first", "--stop-command", command, "--json"],
        check=True, capture_output=True,
    )  # fmt: skip
    site.server.drop(name)
    (site.home / "db" / "server.json").unlink()
    result = json.loads(done.stdout)["result"]
    caught_up = result["caught_up"]
    stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in result["stages"].items())
    stopped: float = caught_up["stopped_seconds"]
    print(f"With --live-first, stopped for {stopped:.2f} s: {caught_up['changed_pages']} of"
          f" {caught_up['pages']} pages changed, {caught_up['deleted']} rows deleted and"
          f" {caught_up['sent']} sent, of {result['rows']}.\nSeconds: {stages}.\n")  # fmt: skip
    return stopped


def _vector_speed(site: Site) -> float:
    """Export with vectors, print how long they took, and return their bytes a second."""
    name = site.server.at(HEAD)
    done = subprocess.run(
        [program(), "--home", os.fspath(site.home), "export-to-postgres", site.server.url(name),
         "--learnings", "pgvector", "--json"],
        check=True, capture_output=True,
    )  # fmt: skip
    site.server.drop(name)
    (table,) = json.loads(done.stdout)["result"]["learnings"]["tables"]
    sent = table["sent"] * VECTOR_BYTES
    speed: float = sent / table["copy_seconds"]
    print(f"{table['sent']} vectors, {sent / 1e6:.0f} MB: copied in {table['copy_seconds']:.2f} s,"
          f" {speed / 1e6:.0f} MB/s; compared in {table['compare_seconds']:.2f} s, index in"
          f" {table['index_seconds']:.1f} s.\n")  # fmt: skip
    return speed


if __name__ == "__main__":
    sys.exit(main())
