"""`make bench`: backup and restore of a home on PostgreSQL against `pg_dump` and `pg_restore`.

All of one version and in one run: the contenders take turns with one database, and the best of the
rounds counts. pg_dump neither reads its archive back nor opens a sealed value, pg_restore compares
nothing; ours does, and includes the files of the home, which are few here. Processor time includes
the server's: on a machine with other load, its ratio is the one to trust. Memory is that of the
clients. Prints Markdown; needs Linux.

    .venv/bin/python tests/benchmarks/bench_server.py [--rows N] [--rounds N]
"""

from __future__ import annotations

import argparse
import compileall
import os
import shutil
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
for place in ("tests", "fixtures"):  # run as a script, without pytest's paths
    sys.path.insert(0, os.fspath(REPOSITORY / place))

from benchmarks.peers import program  # noqa: E402
from benchmarks.stopwatch import Cost, best, machine, measure, tree_bytes  # noqa: E402
from home_builder import build_home  # noqa: E402
from postgres_server import Server, installations  # noqa: E402
from sagewai_ops.schema.revision_graph import HEAD  # noqa: E402

ROWS = 100_000
LIMIT_TIME, LIMIT_SIZE, LIMIT_MEMORY = 1.1, 1.02, 120e6  # against the piped dump; bytes
LIMIT_DUMP, LIMIT_RESTORE = 1 / 3, 1.3  # of the times of plain pg_dump and of pg_restore
OURS, PIPED, DUMP = "sagewai-ops backup", "pg_dump -Fc -Z none, zstd -3 -T0", "pg_dump -Fc"
RESTORE, PEER_RESTORE = "sagewai-ops restore", "zstd -dc, pg_restore"
SETTLED_SECONDS = 0.5  # until the server has counted the time of a process that ended
# Half events, half sessions: JSON of words, numbers and hashes, which zstd shrinks to a quarter.
FILL = """
INSERT INTO workflow_events (run_id, event_type, data, created_at)
SELECT md5((n / 9)::text), (ARRAY['started', 'step', 'tool', 'ended'])[1 + n % 4],
  jsonb_build_object('step', n % 17, 'tool', 'search_' || n % 40, 'cost', n * 0.000173,
    'text', repeat('the agent asked for ' || n % 1000 || ' documents and found ', 1 + n % 5),
    'hash', md5(n::text)),
  timestamptz '2026-01-01' + n * interval '37 seconds'
FROM generate_series(1, {half}) n;
INSERT INTO sessions (session_id, agent_name, messages, summary)
SELECT md5(n::text), 'agent-' || n % 50,
  jsonb_build_array(jsonb_build_object('role', 'user', 'content', 'question ' || md5(n::text)),
    jsonb_build_object('role', 'assistant', 'content',
      repeat('an answer with word ' || n % 777 || ' and some more text, ', 3 + n % 9))),
  'summary of ' || n
FROM generate_series(1, {half}) n;
"""


def main() -> int:
    """Measure, print, and return the exit code: 1 where a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    # As an installer leaves them, the dependencies too.
    for directory in ("sagewai_ops", "commands", sysconfig.get_path("purelib")):
        compileall.compile_dir(REPOSITORY / directory, quiet=2)
    server = Server(installations()[0])
    server.start()
    try:
        with tempfile.TemporaryDirectory(prefix="sagewai-ops-bench-") as directory:
            return _report(server, Path(directory), arguments.rows, arguments.rounds)
    finally:
        server.stop()


def _report(server: Server, work: Path, rows: int, rounds: int) -> int:
    database = server.at(HEAD)
    server.run(database, *FILL.format(half=rows // 2).strip().split(";\n"), "VACUUM ANALYZE")
    home = work / "home"
    build_home(home, rows=1, vectors=0, artifacts=False, leftovers=False)
    print(f"Measured on {machine(REPOSITORY)}, {server.installation.name}, {rows} rows.\n")
    misses = _report_backups(server, work, server.url(database), rounds)
    misses += _report_restores(server, work, rounds)
    print(
        f"Asked for: {LIMIT_TIME} x the time and {LIMIT_SIZE} x the size of the piped dump,"
        f" {LIMIT_MEMORY / 1e6:.0f} MB, a third of the time of the plain dump,"
        f" {LIMIT_RESTORE} x pg_restore; missed: {misses}."
    )
    return int(misses > 0)


def _report_backups(server: Server, work: Path, url: str, rounds: int) -> int:
    """Measure the backups, and leave the last of ours and of the piped dump for the restores."""
    store = work / "store"
    dump = [str(server.installation.programs / "pg_dump"), "-d", url]
    piped = f"'{dump[0]}' -d '{url}' -Fc -Z none | zstd -q -3 -T0 -o '{store}/dump.zst'"
    ours = [program(), "--home", str(work / "home"), "backup", "--snapshots", str(store), "--quiet"]
    contenders: dict[str, Callable[[], Cost]] = {
        OURS: lambda: measure(ours, environment={"SAGEWAI_DATABASE_URL": url}),
        PIPED: lambda: measure(["bash", "-o", "pipefail", "-c", piped]),
        DUMP: lambda: measure([*dump, "-Fc", "-f", f"{store}/dump"]),
    }
    costs: dict[str, list[Cost]] = {name: [] for name in contenders}
    sizes = {}
    for _round in range(rounds):
        for name, run in contenders.items():
            store.mkdir()
            costs[name].append(_with_server(server, run))
            sizes[name] = tree_bytes(store)
            shutil.rmtree(work / name, ignore_errors=True)
            store.rename(work / name)
    _print_table("backup of a server", costs, PIPED, sizes)
    own, limit, plain = (best(costs[name]) for name in (OURS, PIPED, DUMP))
    misses = [
        own.wall_seconds > LIMIT_TIME * limit.wall_seconds,
        sizes[OURS] > LIMIT_SIZE * sizes[PIPED],
        own.peak_bytes > LIMIT_MEMORY,
        own.wall_seconds > LIMIT_DUMP * plain.wall_seconds,
    ]
    return sum(misses)


def _report_restores(server: Server, work: Path, rounds: int) -> int:
    target = work / "target"
    url = server.url("restored")
    # fmt: off
    ours = [
        program(), "--home", str(work / "home"), "--quiet", "restore", "latest",
        "--snapshots", str(work / OURS), "--to", str(target), "--database-url", url,
        "--without-key",
    ]
    # fmt: on
    peer = f"zstd -q -dc '{work / PIPED}/dump.zst' |"
    peer += f" '{server.installation.programs / 'pg_restore'}' -d '{url}'"
    contenders: dict[str, Callable[[], Cost]] = {
        RESTORE: lambda: measure(ours),
        PEER_RESTORE: lambda: measure(["bash", "-o", "pipefail", "-c", peer]),
    }
    costs: dict[str, list[Cost]] = {name: [] for name in contenders}
    for _round in range(rounds):
        for name, run in contenders.items():
            server.drop("restored")
            create = "CREATE DATABASE restored TEMPLATE template0"
            server.run("postgres", create, "CHECKPOINT")
            costs[name].append(_with_server(server, run))
            shutil.rmtree(target, ignore_errors=True)
    _print_table("restore to a server", costs, PEER_RESTORE, {})
    own, limit = (best(costs[name]) for name in contenders)
    return int(own.wall_seconds > LIMIT_RESTORE * limit.wall_seconds)


def _with_server(server: Server, run: Callable[[], Cost]) -> Cost:
    """Return the cost of a run, with the processor time of the server."""
    before = _server_seconds(server)
    cost = run()
    time.sleep(SETTLED_SECONDS)
    return replace(cost, cpu_seconds=cost.cpu_seconds + _server_seconds(server) - before)


def _server_seconds(server: Server) -> float:
    """Return the processor time of the server and of its processes that ended."""
    fields = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")  # utime to cstime; proc(5)


def _print_table(
    title: str, costs: dict[str, list[Cost]], peer: str, sizes: dict[str, int]
) -> None:
    limit = best(costs[peer])
    print(f"| {title} | wall | x | CPU, server's too | x | peak memory | stored | x |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for name, measured in costs.items():
        cost = best(measured)
        stored = f"{sizes[name] / 1e6:.1f} MB | {sizes[name] / sizes[peer]:.3f}" if sizes else "|"
        print(
            f"| {name} | {cost.wall_seconds:.2f} s | {cost.wall_seconds / limit.wall_seconds:.2f} |"
            f" {cost.cpu_seconds:.2f} s | {cost.cpu_seconds / limit.cpu_seconds:.2f} |"
            f" {cost.peak_bytes / 1e6:.0f} MB | {stored} |"
        )
    print()


if __name__ == "__main__":
    sys.exit(main())
