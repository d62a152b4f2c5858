"""`make bench`: root's backup and restore of another user's home against those of its own home.

The same home in turns as root's and as that of uid 40001, with whose rights the program then works:
with the snapshots next to it, and in a directory that only root can write. The best of the rounds
counts, ratios are within one run. `--peer PROGRAM`, such as an older version, is measured on root's
home too. As root.

    python tests/benchmarks/bench_owner.py [--size 300M] [--rounds 5] [--peer PROGRAM] [--work DIR]
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, os.fspath(REPOSITORY / "tests"))  # run as a script, without pytest's paths

from benchmarks.peers import program  # noqa: E402
from benchmarks.stopwatch import Cost, best, machine, measure  # noqa: E402

UID = 40001  # need not be in the list of users
OWN, NEXT, APART = "root's home", "another user's home", "... into a directory of root's"
LIMIT = 1.1


def main() -> int:
    """Measure, print, and return 1 if another user's home takes more than is asked for."""
    parser = argparse.ArgumentParser(prog="bench_owner", description=__doc__)
    parser.add_argument("--size", default="300M", help="of the home")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer", type=Path, help="a program to measure on root's home too")
    parser.add_argument("--work", type=Path, help="where the home is")
    arguments = parser.parse_args()
    if os.geteuid():
        print("bench_owner: not root, nothing measured")
        return 0
    with tempfile.TemporaryDirectory(prefix="sagewai-ops-bench-", dir=arguments.work) as directory:
        os.chmod(directory, 0o755)  # noqa: S103 - the other user has to reach it
        costs = _measure(Path(directory), arguments)
    print(f"Measured on {machine(REPOSITORY)}. A home of {arguments.size}.\n")
    ratios = []
    for command in ("backup", "restore"):
        base = best(costs[OWN, command])
        print(f"| {command} | wall | x {OWN} | CPU | x | peak memory |\n|---|--:|--:|--:|--:|--:|")
        for name in dict.fromkeys(name for name, _command in costs):
            cost = best(costs[name, command])
            wall = cost.wall_seconds / base.wall_seconds
            print(
                f"| {name} | {cost.wall_seconds:.2f} s | {wall:.2f} | {cost.cpu_seconds:.2f} s |"
                f" {cost.cpu_seconds / base.cpu_seconds:.2f} | {cost.peak_bytes / 1e6:.0f} MB |"
            )
            if name in (NEXT, APART):
                ratios.append(wall)
        print()
    print(f"Asked for: another user's home at most {LIMIT} x root's.")
    return int(max(ratios) > LIMIT)


def _measure(directory: Path, arguments: argparse.Namespace) -> dict[tuple[str, str], list[Cost]]:
    home = directory / "parent/home"
    _build(home, arguments.size)
    costs: dict[tuple[str, str], list[Cost]] = {}
    for _ in range(arguments.rounds):
        for name, command, uid, snapshots in _contenders(directory, arguments.peer):
            _assign(home.parent, uid)
            print(name, file=sys.stderr, flush=True)
            place = directory / snapshots
            target = home.parent / "restored"
            key = {"SAGEWAI_MASTER_KEY": (home / "secrets/master.key").read_text().strip()}
            words = [command, "--home", os.fspath(home)]
            where = "--to" if command != program() else "--snapshots"
            backup = measure([*words, "backup", where, os.fspath(place)], environment=key)
            (archive,) = place.glob("*.tar.zst")
            restore = measure(
                [*words, "restore", os.fspath(archive), "--to", os.fspath(target)], environment=key
            )
            costs.setdefault((name, "backup"), []).append(backup)
            costs.setdefault((name, "restore"), []).append(restore)
            shutil.rmtree(place)
            shutil.rmtree(target)
    return costs


def _contenders(directory: Path, peer: Path | None) -> Iterator[tuple[str, str, int, str]]:
    """Yield (name, program, owner of the home, snapshot directory)."""
    yield OWN, program(), 0, "parent/snapshots"
    yield NEXT, program(), UID, "parent/snapshots"
    yield APART, program(), UID, "vault"
    if peer:
        yield f"{OWN}, {peer.parents[2].name}", os.fspath(peer), 0, "parent/snapshots"


def _assign(root: Path, uid: int) -> None:
    for above, directories, files in os.walk(root):
        for name in (".", *directories, *files):
            os.chown(os.path.join(above, name), uid, uid, follow_symlinks=False)


def _build(home: Path, size: str) -> None:
    home.parent.mkdir()
    command: Sequence[str] = (sys.executable, "-m", "home_builder", os.fspath(home))
    subprocess.run(
        [*command, "--size", size, "--journal", "tail"],
        env={**os.environ, "PYTHONPATH": os.fspath(REPOSITORY / "fixtures")},
        stdout=subprocess.DEVNULL,
        check=True,
    )


if __name__ == "__main__":
    sys.exit(main())
