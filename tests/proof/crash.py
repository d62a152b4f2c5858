"""Kill every command at every step, let every step fail, and see that the promises hold.

    python tests/proof/crash.py --every                  all of it, as `make proof`
    python tests/proof/crash.py --sample 8 --seed 7      8 faults of each command
    python tests/proof/crash.py --every --only "restore" the cases whose names begin so
    python tests/proof/crash.py --distinct --share 2/5   the second fifth of each command's faults
    python tests/proof/crash.py --every --at "db-shm"    the steps whose call or path holds this

Prints a table; exits 1 if a promise was broken. A violation names the fault, and
`--only CASE --fault "kill before:12"` repeats it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

_HERE = Path(__file__).resolve().parent
for _directory in (_HERE.parent, _HERE.parent.parent / "fixtures"):
    if str(_directory) not in sys.path:
        sys.path.insert(0, str(_directory))

from memory_directory import in_memory  # noqa: E402
from postgres_server import installations  # noqa: E402 - the path first
from proof import faults  # noqa: E402
from proof.bench import Count, Proof, import_everything  # noqa: E402
from proof.cases import CASES  # noqa: E402
from proof.faults import Fault  # noqa: E402
from proof.plans import parsed  # noqa: E402

_SHOWN = 12  # violations in the table


def main() -> int:
    """Run the cases in several processes and show what came of it."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(143))  # so all is removed
    if not faults.is_possible():
        print("no step can be numbered here: it needs Linux and a C compiler")
        return 0
    if options.part:
        return _part(options)
    with tempfile.TemporaryDirectory(prefix="sagewai-ops-proof-", dir=in_memory()) as name:
        directory = Path(name)
        library = faults.build(directory)
        started = time.monotonic()
        processes = []
        for job in range(options.jobs):
            own = directory / str(job)
            own.mkdir()
            variables = faults.environment(library, own / "control")
            processes.append(
                subprocess.Popen(
                    [sys.executable, __file__, *sys.argv[1:], "--part", str(own)],
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
            return 2
        counts = [
            Count(**item)
            for job in range(options.jobs)
            for item in json.loads((directory / str(job) / "counts.json").read_text())
        ]
    return _report(counts, time.monotonic() - started, options)


def _part(options: argparse.Namespace) -> int:
    """Prove this process's share of the cases."""
    import_everything()
    directory = Path(options.part)
    queue = directory.parent
    names = tuple(options.only) or ("",)
    cases = [case for case in CASES if case.name.startswith(names)]
    choose: list[Fault] | int | None = [parsed(text) for text in options.fault] or options.sample
    counts = []
    with ExitStack() as stack:
        proof = Proof(
            directory,
            stack,
            is_planted=options.planted,
            with_signals=options.signals,
            share=options.share,
            at=options.at,
        )
        for case in cases:
            if case.on_server and not installations():
                continue
            try:  # the first process that makes the file takes the case
                (queue / f"taken {case.name.replace('/', ' ')}").touch(exist_ok=False)
            except FileExistsError:
                continue
            counts.append(proof.prove(case, choose, options.seed))
            if options.verbose:
                _tell(counts[-1])
    (directory / "counts.json").write_text(json.dumps([asdict(count) for count in counts]))
    return 0


def _tell(count: Count) -> None:
    words = f"{count.name}: {count.faults} faults, {count.seconds} s"
    print(words, *count.violations, sep="\n  ", file=sys.stderr, flush=True)


def _report(counts: list[Count], seconds: float, options: argparse.Namespace) -> int:
    order = {case.name: number for number, case in enumerate(CASES)}
    counts.sort(key=lambda count: order[count.name])
    heads = "".join(
        f"{name:>8}" for name in ("steps", "alike", "faults", "struck", "kills", "broken")
    )
    print(f"{'command':<38}{heads}")
    for count in counts:
        print(
            f"{count.name:<38}{count.steps:>8}{count.alike:>8}{count.faults:>8}"
            f"{count.struck:>8}{count.kills:>8}{len(count.violations):>8}"
        )
    broken = [text for count in counts for text in count.violations]
    totals = {
        "commands": len(counts),
        "steps": sum(count.steps for count in counts),
        "faults": sum(count.faults for count in counts),
        "struck": sum(count.struck for count in counts),
        "violations": len(broken),
        "seed": options.seed,
        "seconds": round(seconds, 1),
    }
    print(", ".join(f"{name}: {value}" for name, value in totals.items()))
    for text in broken[: None if options.verbose else _SHOWN]:
        print(f"  {text}")
    if options.json:
        document = {**totals, "cases": [asdict(count) for count in counts]}
        Path(options.json).write_text(json.dumps(document, indent=1) + "\n")
    return 1 if broken else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--every", dest="sample", action="store_const", const=0)
    parser.add_argument("--distinct", dest="sample", action="store_const", const=None)
    parser.add_argument("--sample", type=int, metavar="N", help="faults of each command")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument(
        "--share", type=_share, default=(1, 1), metavar="K/N", help="the K-th of N parts of it"
    )
    parser.add_argument("--at", default="", metavar="TEXT", help="the call or path of a step")
    parser.add_argument("--only", action="append", default=[], metavar="CASE")
    parser.add_argument("--fault", action="append", default=[])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--signals", action="store_true", help="SIGTERM at the steps instead")
    parser.add_argument("--planted", action="store_true", help="break a promise on purpose")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    return parser.parse_args()


def _share(text: str) -> tuple[int, int]:
    number, _, shares = text.partition("/")
    if not 1 <= int(number) <= int(shares):
        raise ValueError(text)
    return int(number), int(shares)


if __name__ == "__main__":
    sys.exit(main())
