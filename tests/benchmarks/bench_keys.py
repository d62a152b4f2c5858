"""`keys check` and `keys rotate` on a home of many sealed values, on one core.

Half of the values are in `profiles.json`, half in `provider.data`, one in a row, of which half are
under the data key of a project. The rates are of the whole command, with the start of its
interpreter and all that it reads; the floor is what the cryptography library alone takes to open
the same tokens, and to open, seal and open them once more. Rounds take turns; the best counts. On a
busy machine only the processor's seconds mean something.

    .venv/bin/python tests/benchmarks/bench_keys.py [--values 100000] [--work DIR]
"""

import argparse
import json
import os
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from cryptography.fernet import Fernet

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [os.fspath(REPOSITORY / "tests"), os.fspath(REPOSITORY / "fixtures")]

from benchmarks.stopwatch import best, machine, measure  # noqa: E402
from home_builder import BuiltHome, build_home  # noqa: E402

ROUNDS = 3
SECRET = b"a secret of a length that is usual for an API key, 64 bytes long"
LIMIT = "Asked for: `keys check` at least 20,000 values a second on one core."
SINGLE_CORE = ("taskset", "-c", "0")

_Times = tuple[float, float]  # seconds by the clock, and of the processor


def main() -> int:
    """Measure, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--values", type=int, default=100_000)
    parser.add_argument("--work", type=Path, help="where the home is built")
    arguments = parser.parse_args()
    print(f"Measured on {machine(REPOSITORY)}.\n")
    with tempfile.TemporaryDirectory(prefix="sagewai-ops-bench-", dir=arguments.work) as directory:
        built = build_home(Path(directory, "home"), rows=1, vectors=0, artifacts=False)
        tokens = _fill(built, arguments.values)
        _compare(built, tokens, Path(directory))
    print(f"\n{LIMIT}")
    return 0


def _fill(built: BuiltHome, values: int) -> list[bytes]:
    """Put sealed values into a home; return all their tokens."""
    master = Fernet(built.master_keys[0])
    ((project, data_key),) = built.data_keys.items()
    keys = (master, Fernet(data_key))
    made = [keys[number % 4 == 3].encrypt(SECRET) for number in range(values)]
    document = json.loads(built.profiles.read_bytes())
    document["profiles"][0]["secrets"] |= {
        f"S{number}": f"fernet:{token.decode()}" for number, token in enumerate(made[::2])
    }
    built.profiles.write_text(json.dumps(document, indent=2))
    with closing(sqlite3.connect(built.database)) as connection:
        template = connection.execute("SELECT * FROM provider LIMIT 1")
        names = [column[0] for column in template.description]
        row = dict(zip(names, template.fetchone(), strict=True))
        marks = ", ".join("?" * len(names))
        connection.executemany(
            f"INSERT INTO provider VALUES ({marks})",
            [
                tuple(
                    {
                        **row,
                        "id": f"p{number}",
                        "provider_name": f"p{number}",
                        # Every second of these was sealed with the data key.
                        "project_id": project if number % 2 else None,
                        "data": json.dumps({"config": {"api_key": f"fernet:{token.decode()}"}}),
                    }.values()
                )
                for number, token in enumerate(made[1::2])
            ],
        )
        connection.commit()
    return made


def _compare(built: BuiltHome, tokens: list[bytes], directory: Path) -> None:
    # Findings of plaintext, which the builder plants, are no failure here.
    check = _command(built.root, "keys", "check", "-q")
    rotate = _command(directory / "copy", "keys", "rotate", "--no-snapshot", "--yes")
    checks, rotations, floors = [], [], []
    for _ in range(ROUNDS):
        floors.append(_floor(built, tokens))
        checks.append(measure(check))
        shutil.rmtree(directory / "copy", ignore_errors=True)
        shutil.copytree(built.root, directory / "copy")
        rotations.append(measure(rotate))
    opened, sealed = (min(costs) for costs in zip(*floors, strict=True))
    checked, rotated = best(checks), best(rotations)
    count = len(tokens)
    print(
        f"| {count} values, one core | seconds | values a second | processor seconds | values a"
        " processor second | memory |"
    )
    print("|---|---|---|---|---|---|")
    for name, seconds, processor, memory in (
        ("the library alone: open", *opened, 0),
        ("`keys check`", checked.wall_seconds, checked.cpu_seconds, checked.peak_bytes),
        ("the library alone: open, seal, open", *sealed, 0),
        (
            "`keys rotate --no-snapshot`",
            rotated.wall_seconds,
            rotated.cpu_seconds,
            rotated.peak_bytes,
        ),
    ):
        shown = f"{memory / 1e6:.0f} MB" if memory else ""
        by_clock = f"{seconds:.2f} | {count / seconds:,.0f}"
        by_processor = f"{processor:.2f} | {count / processor:,.0f}"
        print(f"| {name} | {by_clock} | {by_processor} | {shown} |")


def _command(home: Path, *words: str) -> Sequence[str]:
    ours = [sys.executable, "-m", "sagewai_ops", "--home", os.fspath(home), *words]
    pinned = SINGLE_CORE if shutil.which(SINGLE_CORE[0]) else ()
    return ["sh", "-c", '"$@" || [ $? -eq 4 ]', "sh", *pinned, *ours]


def _floor(built: BuiltHome, tokens: list[bytes]) -> tuple[_Times, _Times]:
    """Time the library: opening every token; and opening, sealing and opening each."""
    keys = [Fernet(key) for key in (built.master_keys[0], *built.data_keys.values())]
    begun = _now()
    for number, token in enumerate(tokens):
        keys[number % 4 == 3].decrypt(token)
    between = _now()
    for number, token in enumerate(tokens):
        key = keys[number % 4 == 3]
        key.decrypt(key.encrypt(key.decrypt(token)))
    return _since(begun, between), _since(between, _now())


def _now() -> _Times:
    return time.perf_counter(), time.process_time()


def _since(begun: _Times, ended: _Times) -> _Times:
    return ended[0] - begun[0], ended[1] - begun[1]


if __name__ == "__main__":
    sys.exit(main())
