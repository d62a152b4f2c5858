"""`drill` against restoring a snapshot and asking SQLite whether the database is whole.

Two ways to do the latter: by hand, with `zstd -dc | tar -x` and the `sqlite3` shell, where nothing
is checked against a manifest or made durable; and with our own `restore` and the same shell. The
drill does more: it opens every sealed value, upgrades, checks the permissions, and removes what it
restored. All start with the same archive on the same disk, and rounds take turns; the best counts.

    .venv/bin/python tests/benchmarks/bench_drill.py [--size 300M] [--work DIR]
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, os.fspath(REPOSITORY / "tests"))  # run as a script, without pytest's paths

from benchmarks.peers import program  # noqa: E402
from benchmarks.stopwatch import Cost, best, machine, measure  # noqa: E402

ROUNDS = 5
LIMIT = "Asked for: at most 1.5 x a plain restore plus `PRAGMA integrity_check`."
CHECK = '[ "$(sqlite3 "$target/db/sagewai.db" "PRAGMA integrity_check")" = ok ]'
BY_HAND = f'mkdir "$target" && zstd -dc "$archive" | tar -xf - -C "$target" && {CHECK}'
RESTORED = f'"$ours" --home "$home" restore "$archive" --to "$target" && {CHECK}'
DRILLED = '"$ours" --home "$home" drill "$archive"'


def main() -> int:
    """Measure, print, and return the exit code."""
    parser = argparse.ArgumentParser(prog="bench_drill", description=__doc__)
    parser.add_argument("--size", default="300M", help="of the database")
    parser.add_argument("--work", type=Path, metavar="DIR", help="on the disk to measure on")
    arguments = parser.parse_args()
    print(f"Measured on {machine(REPOSITORY)}.\n")
    with tempfile.TemporaryDirectory(prefix="sagewai-ops-bench-", dir=arguments.work) as directory:
        _compare(Path(directory), arguments.size)
    print(f"\n{LIMIT}")
    return 0


def _compare(directory: Path, size: str) -> None:
    home, target = directory / "home", directory / "target"
    built = subprocess.run(
        [sys.executable, "-m", "home_builder", os.fspath(home), "--size", size],
        env={**os.environ, "PYTHONPATH": os.fspath(REPOSITORY / "fixtures")},
        stdout=subprocess.PIPE,
        check=True,
    )
    taken = subprocess.run(
        [program(), "--home", os.fspath(home), "backup", "--json"],
        stdout=subprocess.PIPE,
        check=True,
    )
    variables = {
        "ours": program(),
        "home": os.fspath(home),
        "target": os.fspath(target),
        "archive": json.loads(taken.stdout)["result"]["archive"],
    }
    ways = {
        "by hand, and `integrity_check`": BY_HAND,
        "`restore`, and `integrity_check`": RESTORED,
        "`drill`": DRILLED,
    }
    costs: dict[str, list[Cost]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, script in ways.items():
            costs[name].append(measure(["sh", "-ec", script], environment=variables))
            shutil.rmtree(target, ignore_errors=True)
    report = json.loads(built.stdout)
    print(f"| a home of {report['bytes'] / 1e6:.0f} MB | wall | CPU | peak memory | `drill` / it |")
    print("|---|--:|--:|--:|--:|")
    drilled = best(costs["`drill`"])
    for name, each in costs.items():
        cost = best(each)
        print(
            f"| {name} | {cost.wall_seconds:.2f} s | {cost.cpu_seconds:.2f} s "
            f"| {cost.peak_bytes / 1e6:.0f} MB | {drilled.wall_seconds / cost.wall_seconds:.2f} |"
        )


if __name__ == "__main__":
    sys.exit(main())
