"""`make bench`: what `db upgrade` and `db check` cost, as ratios within one run.

`db upgrade` of an empty PostgreSQL database against Sagewai's own migrations, both measured inside
their processes, without imports; `db check` of a home against SQLite's integrity check alone, both
as whole processes, with the peak of their memory. Prints Markdown.

    .venv/bin/python tests/benchmarks/bench_db.py [--rows N] [--rounds N] [--skip-upgrade]
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, os.fspath(REPOSITORY / "tests"))  # run as a script, without pytest's paths

from benchmarks import large_home  # noqa: E402
from benchmarks.stopwatch import Cost, best, machine, measure  # noqa: E402
from interop.environment import InteropError, run_in_sagewai  # noqa: E402
from postgres_server import Server, installations  # noqa: E402
from sagewai_ops.database import url as database_url  # noqa: E402
from sagewai_ops.database.postgres import connection as postgres_connection  # noqa: E402
from sagewai_ops.schema import alembic_runner, migrate_postgres  # noqa: E402
from sagewai_ops.schema.create import create_database  # noqa: E402
from sagewai_ops.schema.revision_graph import HEAD  # noqa: E402

GIGABYTE_ROWS = 1_000_000  # of `large_home`, on which a home holds 1.03 GB
# Sagewai's migrations against ours; checks against SQLite's; bytes.
LIMIT_UPGRADE, LIMIT_CHECK, LIMIT_MEMORY = 1.5, 2.5, 150e6
INTEGRITY = """
import sqlite3, sys
connection = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True)
assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
connection.close()
"""
# Findings are no failure here: exit 4.
CHECK = '"$0" -m sagewai_ops --home "$1" db check --json || test $? -eq 4'


def main() -> int:
    """Measure, print, and return the exit code: 1 where a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=GIGABYTE_ROWS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--skip-upgrade", action="store_true")
    arguments = parser.parse_args()
    print(f"Measured on {machine(REPOSITORY)}.\n")
    kept = True
    if not arguments.skip_upgrade:
        kept &= _upgrade(arguments.rounds)
    return 0 if _check(arguments.rows, min(3, arguments.rounds)) and kept else 1


def _upgrade(rounds: int) -> bool:
    """Compare the chains, in turns, on databases of one server."""
    server = Server(installations()[0])
    server.start()
    try:
        ours: list[float] = []
        whole: list[float] = []
        theirs: list[float] = []
        for _round in range(rounds):
            try:
                printed = run_in_sagewai(
                    REPOSITORY / "tests/benchmarks/sagewai_migrations.py",
                    *(server.url(server.create()) for _ in range(2)),
                )
            except InteropError as error:
                print(f"db upgrade: not measured, {error}\n")
                return True
            theirs += json.loads(printed.splitlines()[-1])
            for _ in range(2):
                ours.append(asyncio.run(_migrate(_url(server))))
                started = time.perf_counter()
                asyncio.run(migrate_postgres.upgrade(_url(server)))
                whole.append(time.perf_counter() - started)
    finally:
        server.stop()
    ratio: float = min(ours) / min(theirs)
    print("| empty PostgreSQL database to head | seconds | ratio |\n|---|---|---|")
    print(f"| Sagewai's migrations | {min(theirs):.2f} | 1.00 |")
    print(f"| ours | {min(ours):.2f} | {ratio:.2f} |")
    print(f"| ours with lock, checks and counts | {min(whole):.2f} | "
          f"{min(whole) / min(theirs):.2f} |\n")  # fmt: skip
    return ratio <= LIMIT_UPGRADE


async def _migrate(url: database_url.PostgresUrl) -> float:
    """Time the migrations alone, as Sagewai's are: connection, chain, commit."""
    started = time.perf_counter()
    async with postgres_connection.connect_sqlalchemy(url) as connection, connection.begin():
        await alembic_runner.migrate(connection, HEAD)
    return time.perf_counter() - started


def _url(server: Server) -> database_url.PostgresUrl:
    parsed = database_url.parse(server.url(server.create()))
    assert isinstance(parsed, database_url.PostgresUrl)
    return parsed


def _check(rows: int, rounds: int) -> bool:
    """Compare a check with SQLite's own, in turns, on one home."""
    with tempfile.TemporaryDirectory(prefix="sagewai-ops-bench-") as directory:
        home = Path(directory) / "home"
        database = home / "db" / "sagewai.db"
        database.parent.mkdir(parents=True)
        create_database(database)
        large_home.fill(database, rows)
        measure([sys.executable, "-c", INTEGRITY, os.fspath(database)])  # warms the cache
        alone: list[Cost] = []
        checks: list[Cost] = []
        for _round in range(rounds):
            alone.append(measure([sys.executable, "-c", INTEGRITY, os.fspath(database)]))
            checks.append(measure(["sh", "-c", CHECK, sys.executable, os.fspath(home)]))
        size = database.stat().st_size / 1e9
    integrity, check = best(alone), best(checks)
    ratio = check.wall_seconds / integrity.wall_seconds
    print(f"| {size:.2f} GB, {rows} rows | seconds | processor | ratio | memory |")
    print("|---|---|---|---|---|")
    for name, cost in (("PRAGMA integrity_check", integrity), ("sagewai-ops db check", check)):
        print(f"| {name} | {cost.wall_seconds:.1f} | {cost.cpu_seconds:.1f} | "
              f"{cost.wall_seconds / integrity.wall_seconds:.2f} | "
              f"{cost.peak_bytes / 1e6:.0f} MB |")  # fmt: skip
    print(f"\nAsked for: db upgrade at most {LIMIT_UPGRADE} x, db check {LIMIT_CHECK} x and "
          f"{LIMIT_MEMORY / 1e6:.0f} MB.")  # fmt: skip
    return ratio <= LIMIT_CHECK and check.peak_bytes <= LIMIT_MEMORY


if __name__ == "__main__":
    sys.exit(main())
