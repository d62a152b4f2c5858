"""Several processes that share the cases of a harness, each started with its steps numbered."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from memory_directory import in_memory
from postgres_server import installations
from proof import faults
from proof.cases import CASES, Case

_COUNTS = "counts.json"


def run_parts(script: str, jobs: int) -> list[dict[str, Any]] | None:
    """Run a script again as several processes with `--part DIR`, and collect their counts.

    Returns:
        None if one of them failed.
    """
    with tempfile.TemporaryDirectory(prefix="sagewai-ops-proof-", dir=in_memory()) as name:
        directory = Path(name)
        directory.chmod(0o711)  # a run with another user's rights has its files there, too
        library = faults.build(directory)
        processes = []
        for job in range(jobs):
            own = directory / str(job)
            own.mkdir()
            variables = faults.environment(library, own / "control")
            processes.append(
                subprocess.Popen(
                    [sys.executable, script, *sys.argv[1:], "--part", str(own)],
                    env={**os.environ, **variables},
                    start_new_session=True,
                )
            )
        try:
            codes = [process.wait() for process in processes]
        except BaseException:
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
                process.wait()
            raise
        if any(codes):
            print(f"a part of the harness failed: {codes}")
            return None
        return [
            item
            for job in range(jobs)
            for item in json.loads((directory / str(job) / _COUNTS).read_text())
        ]


def share(part: Path, cases: Iterable[Case]) -> Iterator[Case]:
    """Yield the cases that no other part has taken, and that can be run here."""
    for case in cases:
        if case.on_server and not installations():
            continue
        try:  # the first process that makes the file takes the case
            (part.parent / f"taken {case.name.replace('/', ' ')}").touch(exist_ok=False)
        except FileExistsError:
            continue
        yield case


def write_counts(part: Path, counts: list[dict[str, Any]]) -> None:
    """Write what `run_parts` collects."""
    (part / _COUNTS).write_text(json.dumps(counts))


def parsed_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the options of a harness, after those that all of them have were added."""
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument(
        "--share", type=_share_of, default=(1, 1), metavar="K/N", help="the K-th of N parts of it"
    )
    parser.add_argument("--at", default="", metavar="TEXT", help="the call or path of a step")
    parser.add_argument("--only", action="append", default=[], metavar="CASE")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--planted", action="store_true", help="break a promise on purpose")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    return parser.parse_args()


def report(
    counts: list[Any],
    shown: Sequence[str],
    summed: Sequence[str],
    seconds: float,
    options: argparse.Namespace,
    *,
    most: int,
    kind: Callable[[str], str] | None = None,
) -> int:
    """Print a line for each case, the totals and the violations; write them to a file, if asked.

    Args:
        counts: Each with a name and violations.
        shown: The numbers of a line.
        summed: The numbers that have a total.
        most: That many violations are printed.
        kind: The kind of a violation; each is counted.

    Returns:
        The exit code: 1 if a promise was broken.
    """
    order = {case.name: number for number, case in enumerate(CASES)}
    counts.sort(key=lambda count: order.get(count.name, 0))
    print(f"{'command':<38}" + "".join(f"{name:>9}" for name in (*shown, "broken")))
    for count in counts:
        numbers = [*(getattr(count, name) for name in shown), len(count.violations)]
        print(f"{count.name:<38}" + "".join(f"{number:>9}" for number in numbers))
    broken = [text for count in counts for text in count.violations]
    totals = {
        "commands": len(counts),
        **{name: sum(getattr(count, name) for count in counts) for name in summed},
        "violations": len(broken),
        "seed": options.seed,
        "seconds": round(seconds, 1),
    }
    print(", ".join(f"{name}: {value}" for name, value in totals.items()))
    kinds = Counter(map(kind, broken)) if kind else Counter()
    for name, number in kinds.most_common():
        print(f"  {number:>6}  {name}")
    for text in broken[: None if options.verbose else most]:
        print(f"  {text}")
    if options.json:
        cases = [asdict(count) for count in counts]
        document = {**totals, **({"kinds": kinds} if kind else {}), "cases": cases}
        Path(options.json).write_text(json.dumps(document, indent=1) + "\n")
    return 1 if broken else 0


def _share_of(text: str) -> tuple[int, int]:
    """Read an option such as `2/5`: the second of five parts.

    Raises:
        ValueError: There is no such part.
    """
    number, _, shares = text.partition("/")
    if not 1 <= int(number) <= int(shares):
        raise ValueError(text)
    return int(number), int(shares)
