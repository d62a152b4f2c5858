"""Kill every command at every step, let every step fail, and see that the promises hold.

    python tests/proof/crash.py --every                  all of it, as `make proof`
    python tests/proof/crash.py --sample 8 --seed 7      8 faults of each command
    python tests/proof/crash.py --every --only "restore" the cases whose names begin so
    python tests/proof/crash.py --distinct --share 2/5   the second fifth of each command's faults
    python tests/proof/crash.py --every --at "db-shm"    the steps whose call or path holds this
    python tests/proof/crash.py --sample 8 --other-owner as root, on the home of another user

Prints a table; exits 1 if a promise was broken. A violation names the fault, and
`--only CASE --fault "kill before:12"` repeats it.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

_HERE = Path(__file__).resolve().parent
for _directory in (_HERE.parent, _HERE.parent.parent / "fixtures"):
    if str(_directory) not in sys.path:
        sys.path.insert(0, str(_directory))

from proof import faults  # noqa: E402 - the path first
from proof.bench import Count, Proof, import_everything  # noqa: E402
from proof.cases import CASES  # noqa: E402
from proof.faults import Fault  # noqa: E402
from proof.parts import parsed_options, report, run_parts, share, write_counts  # noqa: E402
from proof.plans import parsed  # noqa: E402
from proof.worlds import OTHER_USER  # noqa: E402

_SHOWN = 12  # violations in the table


def main() -> int:
    """Run the cases in several processes and show the results."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(143))  # so all is removed
    if options.other_owner and os.geteuid():
        print("only root can act on the home of another user")
        return 0
    if not faults.is_possible():
        print("no step can be numbered here: it needs Linux and a C compiler")
        return 0
    if options.part:
        return _part(options)
    started = time.monotonic()
    found = run_parts(__file__, options.jobs)
    if found is None:
        return 2
    counts = [Count(**item) for item in found]
    shown, summed = ("steps", "alike", "faults", "struck", "kills"), ("steps", "faults", "struck")
    return report(counts, shown, summed, time.monotonic() - started, options, most=_SHOWN)


def _part(options: argparse.Namespace) -> int:
    """Prove this process's share of the cases."""
    import_everything()
    directory = Path(options.part)
    names = tuple(options.only) or ("",)
    cases = [
        case
        for case in CASES
        if case.name.startswith(names) and not (options.other_owner and case.owners_only)
    ]
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
            owner=OTHER_USER if options.other_owner else 0,
        )
        for case in share(directory, cases):
            counts.append(proof.prove(case, choose, options.seed))
            if options.verbose:
                _print_count(counts[-1])
    write_counts(directory, [asdict(count) for count in counts])
    return 0


def _print_count(count: Count) -> None:
    words = f"{count.name}: {count.faults} faults, {count.seconds} s"
    print(words, *count.violations, sep="\n  ", file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--every", dest="sample", action="store_const", const=0)
    parser.add_argument("--distinct", dest="sample", action="store_const", const=None)
    parser.add_argument("--sample", type=int, metavar="N", help="faults of each command")
    parser.add_argument("--fault", action="append", default=[])
    parser.add_argument("--signals", action="store_true", help="SIGTERM at the steps instead")
    parser.add_argument(
        "--other-owner", action="store_true", help="as root, on the home of another user"
    )
    return parsed_options(parser)


if __name__ == "__main__":
    sys.exit(main())
