"""`verify-perms` on 100,000 files against `find -printf` of the same facts.

The facts are type, mode, owner, group, number of names, inode, and where a link leads. Two rows are
ours: the look at the home alone, in a process that is already running, and the whole command with
the start of its interpreter. Rounds take turns; the best of each counts.

    .venv/bin/python tests/benchmarks/bench_perms.py [--files 100000] [--work DIR]
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [os.fspath(REPOSITORY / "tests"), os.fspath(REPOSITORY / "fixtures")]

from benchmarks.stopwatch import Cost, best, machine, measure  # noqa: E402
from home_builder import build_home  # noqa: E402

ROUNDS = 7
FACTS = "%y %m %U %G %n %i %l %p\\n"
LIMIT = "Asked for: at most 1.5 x `find -printf` of the same facts."
# Looks three times in one process and prints what the quickest took.
SCAN = """
import sys, time
from pathlib import Path
from sagewai_ops.home.paths import locate
from sagewai_ops.permissions.scan import inspect
home, times = locate(Path(sys.argv[1]), {}), []
for _ in range(3):
    begun = time.perf_counter()
    inspect(home)
    times.append(time.perf_counter() - begun)
print(min(times))
"""


def main() -> int:
    """Measure, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--work", type=Path, help="where the home is built")
    arguments = parser.parse_args()
    print(f"Measured on {machine(REPOSITORY)}.\n")
    with tempfile.TemporaryDirectory(prefix="sagewai-ops-bench-", dir=arguments.work) as directory:
        home = Path(directory, "home")
        build_home(home, small_files=arguments.files)
        # Nothing to report, so that both only look.
        ours = [sys.executable, "-m", "sagewai_ops", "--home", os.fspath(home), "verify-perms"]
        subprocess.run([*ours, "--fix"], stdout=subprocess.DEVNULL, check=False)
        _compare(home, arguments.files, ours)
    print(f"\n{LIMIT}")
    return 0


def _compare(home: Path, files: int, ours: list[str]) -> None:
    find = ["find", os.fspath(home), "-printf", FACTS]
    # A finding above the home, such as an open directory of the work place, is no failure here.
    command = ["sh", "-c", '"$@" || [ $? -eq 4 ]', "sh", *ours]
    costs: dict[str, list[Cost]] = {"find": [], "ours": []}
    looks = []
    for _ in range(ROUNDS):
        costs["find"].append(measure(find))
        costs["ours"].append(measure(command))
        answer = subprocess.run(
            [sys.executable, "-c", SCAN, os.fspath(home)],
            capture_output=True,
            text=True,
            check=True,
        )
        looks.append(float(answer.stdout))
    peer, whole = best(costs["find"]), best(costs["ours"])
    print(f"| {files} files | seconds | ratio |")
    print("|---|---|---|")
    for name, seconds in (
        ("`find -printf`", peer.wall_seconds),
        ("`verify-perms`, the look", min(looks)),
        ("`verify-perms`, the whole command", whole.wall_seconds),
    ):
        print(f"| {name} | {seconds:.3f} | {seconds / peer.wall_seconds:.2f} |")
    print(f"\nMemory of the whole command: {whole.peak_bytes / 1e6:.0f} MB.")


if __name__ == "__main__":
    sys.exit(main())
