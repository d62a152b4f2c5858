"""`make bench`: backup to an object store, with every byte read back, against peers that do not.

The store is SeaweedFS on this machine. The contenders take turns with one home, and the best of the
rounds counts; `tar`, `zstd` and `rclone rcat` read nothing back, `restic` encrypts, and ours reads
every byte back. Ours is measured in clear, as rclone is, and encrypted, as restic is. Then 1,000
snapshots are listed, and one JSON file is extracted by ranges. Prints Markdown; needs Linux.

    .venv/bin/python tests/benchmarks/bench_remote.py [--mib N] [--rounds N]
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import random
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
for place in ("tests", "fixtures"):  # run as a script, without pytest's paths
    sys.path.insert(0, os.fspath(REPOSITORY / place))

import pyrage  # noqa: E402

from benchmarks.peers import program  # noqa: E402
from benchmarks.stopwatch import Cost, best, machine, measure  # noqa: E402
from home_builder import build_home  # noqa: E402
from remote_servers import Bucket, S3Server, start_seaweedfs  # noqa: E402
from sagewai_ops.remote.address import open_store, parse_address  # noqa: E402
from sagewai_ops.remote.path import Place, RemotePath  # noqa: E402
from sagewai_ops.restore.extract_files import extract_files  # noqa: E402
from sagewai_ops.snapshots.catalog import list_snapshots  # noqa: E402

MIB = 1 << 20
LIMIT_TIME, LIMIT_MEMORY, LIMIT_LIST, LIMIT_REQUESTS = 1.2, 150e6, 2.0, 3
CLEAR, SEALED = "sagewai-ops backup, in clear", "sagewai-ops backup, encrypted"
PIPE, RESTIC = "tar, zstd -3 -T0, rclone rcat", "restic backup"
LISTED = 1000
_FILE_BYTES = 4 * MIB


def main() -> int:
    """Measure, print, and return the exit code: 1 where a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    for directory in ("sagewai_ops", "commands", sysconfig.get_path("purelib")):
        compileall.compile_dir(REPOSITORY / directory, quiet=2)
    server = start_seaweedfs()
    try:
        with tempfile.TemporaryDirectory(prefix="sagewai-ops-bench-") as directory:
            return _report(server, Path(directory), arguments.mib, arguments.rounds)
    finally:
        server.stop()


def _report(server: S3Server, work: Path, mib: int, rounds: int) -> int:
    home = build_home(work / "home", artifacts=False).root
    _fill(home, mib)
    costs: dict[str, list[Cost]] = {}
    for _ in range(rounds):
        for name, contender in _contenders(home, work).items():
            print(name, file=sys.stderr, flush=True)
            costs.setdefault(name, []).append(contender(server.bucket()))
    found = {name: best(runs) for name, runs in costs.items()}
    bucket = server.bucket()
    list_seconds = _list(bucket)
    requests, read_bytes = _extract(home, work, server.bucket())

    print(f"# A home of {mib} MiB in an object store\n\n{machine(REPOSITORY)}\n")
    print("| command | time | ratio to rclone | processor time | memory |\n|---|--:|--:|--:|--:|")
    pipe = found[PIPE].wall_seconds
    for name, cost in found.items():
        print(
            f"| {name} | {cost.wall_seconds:.1f} s | {cost.wall_seconds / pipe:.2f}"
            f" | {cost.cpu_seconds:.1f} s | {cost.peak_bytes / 1e6:.0f} MB |"
        )
    print(
        f"\n`snapshots list` of {LISTED}: {list_seconds:.2f} s. `snapshots extract` of one file:"
        f" {requests} requests, {read_bytes / MIB:.1f} MiB."
    )
    print(
        f"\nAsked for: at most {LIMIT_TIME} x rclone, less than restic, below"
        f" {LIMIT_MEMORY / 1e6:.0f} MB, {LIMIT_LIST:.0f} s, {LIMIT_REQUESTS} requests of 8 MiB."
    )
    return int(
        found[CLEAR].wall_seconds > LIMIT_TIME * pipe
        or (RESTIC in found and found[SEALED].wall_seconds > found[RESTIC].wall_seconds)
        or max(found[CLEAR].peak_bytes, found[SEALED].peak_bytes) > LIMIT_MEMORY
        or list_seconds > LIMIT_LIST
        or requests > LIMIT_REQUESTS
    )


def _fill(home: Path, mib: int) -> None:
    """Write artifacts of which a half is text, and a half cannot be compressed."""
    chance = random.Random(1)
    words = b" ".join(b"word%d" % chance.randrange(5000) for _ in range(_FILE_BYTES // 16))
    directory = home / "data/artifacts"
    directory.mkdir(parents=True, exist_ok=True)
    for number in range(mib * MIB // _FILE_BYTES):
        noise = chance.randbytes(_FILE_BYTES // 2)
        (directory / f"{number}.bin").write_bytes(noise + words[: _FILE_BYTES // 2])


def _contenders(home: Path, work: Path) -> dict[str, Callable[[Bucket], Cost]]:
    recipient = str(pyrage.x25519.Identity.generate().to_public())

    def ours(*words: str) -> Callable[[Bucket], Cost]:
        def run(bucket: Bucket) -> Cost:
            command = [program(), "--home", os.fspath(home), "backup", "--snapshots", bucket.url]
            init = [program(), "remote", "init", bucket.url]
            measure(init, environment=bucket.environment)
            return measure([*command, *words], environment=bucket.environment)

        return run

    def pipe(bucket: Bucket) -> Cost:
        remote = (
            ":s3,provider=Other,access_key_id=$AWS_ACCESS_KEY_ID,"
            "secret_access_key=$AWS_SECRET_ACCESS_KEY,endpoint='$AWS_ENDPOINT_URL':"
        )
        script = (
            # rclone cannot load a bundle of certificates, which plain HTTP does not need.
            f"unset AWS_CA_BUNDLE; tar -cf - -C '{home}' . | zstd -q -3 -T0"
            f' | rclone --config /dev/null rcat "{remote}{bucket.name}/home.tar.zst"'
        )
        return measure(["sh", "-c", script], environment=bucket.environment)

    def restic(bucket: Bucket) -> Cost:
        cache = work / f"restic-{bucket.name}"
        variables = {
            **bucket.environment,
            "RESTIC_REPOSITORY": f"s3:{bucket.environment['AWS_ENDPOINT_URL']}/{bucket.name}",
            "RESTIC_PASSWORD": "of the benchmark",
            "RESTIC_CACHE_DIR": os.fspath(cache),
        }
        measure(["restic", "init"], environment=variables)
        cost = measure(["restic", "backup", os.fspath(home)], environment=variables)
        shutil.rmtree(cache)
        return cost

    found = {CLEAR: ours("--allow-clear"), SEALED: ours("--recipient", recipient), PIPE: pipe}
    return {**found, RESTIC: restic} if shutil.which("restic") else found


def _list(bucket: Bucket) -> float:
    """Return how long it takes to list a thousand snapshots, in seconds, of three runs the best."""
    store = open_store(parse_address(bucket.url), bucket.environment)
    measure([program(), "remote", "init", bucket.url], environment=bucket.environment)

    def put(number: int) -> None:
        snapshot = (
            f"20260101T{number // 3600:02}{number // 60 % 60:02}{number % 60:02}Z-{number:06x}"
        )
        name = f"sagewai-{snapshot}.tar.zst.age"
        card = {
            "card": 1,
            "archive": name,
            "id": snapshot,
            "sequence": number + 1,
            "text": "x" * 1500,
        }
        store.put(name, b"archive")
        store.put(f"{name}.json", json.dumps(card).encode())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, range(LISTED)))
    command = [program(), "snapshots", "list", "--snapshots", bucket.url, "--home", "/nonexistent"]
    return min(measure(command, environment=bucket.environment).wall_seconds for _ in range(3))


class _Counted:
    """A store that counts what is read of archives."""

    def __init__(self, store: object) -> None:
        self._store = store
        self.requests = 0
        self.read_bytes = 0

    def read(self, name: str, offset: int, count: int) -> bytes:
        if not name.endswith(".json"):
            self.requests += 1
            self.read_bytes += count
        content: bytes = self._store.read(name, offset, count)  # type: ignore[attr-defined]
        return content

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)


def _extract(home: Path, work: Path, bucket: Bucket) -> tuple[int, int]:
    """Return requests and bytes that one JSON file of a snapshot takes."""
    measure([program(), "remote", "init", bucket.url], environment=bucket.environment)
    command = [program(), "--home", os.fspath(home), "backup", "--snapshots", bucket.url]
    measure([*command, "--allow-clear"], environment=bucket.environment)
    store = _Counted(open_store(parse_address(bucket.url), bucket.environment))
    place = RemotePath(Place(bucket.url, lambda: store))  # type: ignore[arg-type, return-value]
    (snapshot,) = list_snapshots(place)
    extract_files(snapshot.path, None, ("config/admin-state.json",), work / "extracted")
    return store.requests, store.read_bytes


if __name__ == "__main__":
    sys.exit(main())
