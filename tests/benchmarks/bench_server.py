"""`make bench`: a backup of a home on PostgreSQL against `pg_dump` of the same version, in one run.

The contenders read one database in turns, and the best of the rounds counts. pg_dump neither reads
its archive back nor opens a sealed value; ours does both, and includes the files of the home, which
are few here. Memory is that of the clients, without the server. Prints Markdown; needs Linux.

    .venv/bin/python tests/benchmarks/bench_server.py [--rows N] [--rounds N]
"""

from __future__ import annotations

import argparse
import compileall
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
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
OURS, PIPED, DUMP = "sagewai-ops backup", "pg_dump -Fc -Z none, zstd -3 -T0", "pg_dump -Fc"
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
    for directory in ("sagewai_ops", "commands"):  # as an installer leaves them
        compileall.compile_dir(REPOSITORY / directory, quiet=1)
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
    store = work / "store"
    url = server.url(database)
    dump = [str(server.installation.programs / "pg_dump"), "-d", url]
    piped = f"'{dump[0]}' -d '{url}' -Fc -Z none | zstd -q -3 -T0 -o '{store}/dump.zst'"

    def ours() -> Cost:
        return measure(
            [program(), "--home", str(home), "backup", "--snapshots", str(store), "--quiet"],
            environment={"SAGEWAI_DATABASE_URL": url},
        )

    contenders: dict[str, Callable[[], Cost]] = {
        OURS: ours,
        PIPED: lambda: measure(["bash", "-o", "pipefail", "-c", piped]),
        DUMP: lambda: measure([*dump, "-Fc", "-f", f"{store}/dump"]),
    }
    costs: dict[str, list[Cost]] = {name: [] for name in contenders}
    sizes = {}
    for _round in range(rounds):
        for name, run in contenders.items():
            store.mkdir()
            costs[name].append(run())
            sizes[name] = tree_bytes(store)
            shutil.rmtree(store)
    limit = best(costs[PIPED])
    print(f"Measured on {machine(REPOSITORY)}, {server.installation.name}, {rows} rows.\n")
    print("| backup of a server | wall | x piped | CPU of the client | peak memory | stored | x |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for name, measured in costs.items():
        cost = best(measured)
        ratio = cost.wall_seconds / limit.wall_seconds
        print(
            f"| {name} | {cost.wall_seconds:.2f} s | {ratio:.2f} | {cost.cpu_seconds:.2f} s |"
            f" {cost.peak_bytes / 1e6:.0f} MB | {sizes[name] / 1e6:.1f} MB |"
            f" {sizes[name] / sizes[PIPED]:.3f} |"
        )
    own = best(costs[OURS])
    misses = [
        own.wall_seconds > LIMIT_TIME * limit.wall_seconds,
        sizes[OURS] > LIMIT_SIZE * sizes[PIPED],
        own.peak_bytes > LIMIT_MEMORY,
    ]
    print(
        f"\nAsked for: {LIMIT_TIME} x the time and {LIMIT_SIZE} x the size of the piped dump,"
        f" {LIMIT_MEMORY / 1e6:.0f} MB; missed: {sum(misses)}."
    )
    return int(any(misses))


if __name__ == "__main__":
    sys.exit(main())
