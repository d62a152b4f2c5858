"""`make bench`: what `import-from-postgres` costs against `db-to-sqlite`, in one run.

Both write the rows of one database to a new SQLite file; ours compares every row too, and checks
the file. The rows are those of `large_home`, exported. Without `db-to-sqlite` on the path, install
it in an environment of its own, `pip install 'db-to-sqlite[postgresql]'`, and name its program.
Prints Markdown; needs Linux.

    .venv/bin/python tests/benchmarks/bench_import.py [--rows N] [--peer PROGRAM]
"""

import argparse
import compileall
import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
for place in ("tests", "fixtures"):  # run as a script, without pytest's paths
    sys.path.insert(0, os.fspath(REPOSITORY / place))

from benchmarks import large_home  # noqa: E402
from benchmarks.peers import program  # noqa: E402
from benchmarks.stopwatch import Cost, best, machine, measure  # noqa: E402
from postgres_server import Server, installations  # noqa: E402
from sagewai_ops.schema import sqlite_head  # noqa: E402
from sagewai_ops.schema.create import create_database  # noqa: E402
from sagewai_ops.schema.revision_graph import HEAD  # noqa: E402

ROWS = 100_222  # of a home that served for some months
LIMIT_ROWS, LIMIT_RATIO, LIMIT_MEMORY = 60_000, 8.0, 120e6  # a second; as fast; bytes


def main() -> int:
    """Measure, print, and return the exit code: 1 where a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", default=shutil.which("db-to-sqlite"))
    arguments = parser.parse_args()
    for directory in ("sagewai_ops", "commands"):  # as an installer leaves them
        compileall.compile_dir(REPOSITORY / directory, quiet=1)
    server = Server(max(installations(), key=lambda found: found.major))
    server.start()
    try:
        print(f"Measured on {machine(REPOSITORY)}, {server.installation.name}.\n")
        with tempfile.TemporaryDirectory(prefix="sagewai-ops-bench-") as directory:
            kept = _measure(
                server, Path(directory), arguments.rows, arguments.rounds, arguments.peer
            )
    finally:
        server.stop()
    print(
        f"Asked for: {LIMIT_ROWS} rows/s, {LIMIT_RATIO:.0f} times db-to-sqlite,"
        f" {LIMIT_MEMORY / 1e6:.0f} MB."
    )
    return 0 if kept else 1


def _measure(server: Server, work: Path, rows: int, rounds: int, peer: str | None) -> bool:
    database = work / "home" / "db" / "sagewai.db"
    database.parent.mkdir(parents=True)
    create_database(database)
    rows = large_home.fill(database, rows)
    url = server.tcp_url(server.at(HEAD))
    export = [program(), "--home", os.fspath(work / "home"), "export-to-postgres", url]
    subprocess.run(export, check=True, capture_output=True)
    target = work / "back"
    # It fails at empty tables with documents, so it gets the others by name.
    tables = [word for name in _filled(database) for word in ("--table", name)]

    def ours() -> Cost:
        cost = measure([program(), "import-from-postgres", url, "--to", os.fspath(target)])
        shutil.rmtree(target)
        return cost

    def theirs() -> Cost:
        assert peer
        plain = url.replace("postgresql://", "postgresql+psycopg2://", 1)
        cost = measure([peer, plain, os.fspath(work / "back.db"), *tables])
        (work / "back.db").unlink()
        return cost

    runs: dict[str, Callable[[], Cost]] = {"ours": ours}
    if peer:
        runs["db-to-sqlite"] = theirs
    else:
        print("db-to-sqlite: skipped, not installed\n")
    costs = {name: best([run() for _round in range(rounds)]) for name, run in runs.items()}
    print(f"| {rows} rows, {database.stat().st_size / 1e6:.0f} MB | seconds | rows/s |"
          " processor | memory |\n|---|---|---|---|---|")  # fmt: skip
    for name, cost in costs.items():
        print(f"| {name} | {cost.wall_seconds:.2f} | {rows / cost.wall_seconds:.0f} |"
              f" {cost.cpu_seconds:.1f} | {cost.peak_bytes / 1e6:.0f} MB |")  # fmt: skip
    print()
    own = costs["ours"]
    return (
        rows / own.wall_seconds >= LIMIT_ROWS
        and own.peak_bytes <= LIMIT_MEMORY
        and (not peer or costs["db-to-sqlite"].wall_seconds >= LIMIT_RATIO * own.wall_seconds)
    )


def _filled(database: Path) -> list[str]:
    """Return the names of the tables with rows."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return [
            name
            for name in sqlite_head.tables()
            if connection.execute(f"SELECT EXISTS (SELECT 1 FROM {name})").fetchone() == (1,)
        ]


if __name__ == "__main__":
    sys.exit(main())
