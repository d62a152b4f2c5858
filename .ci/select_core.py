"""Select the tests of `make test` by coverage, and write their names to tests/core.txt.

    python .ci/select_core.py [--data DIRECTORY]

The whole suite runs once under coverage, which records the lines that each test reaches. A test is
selected while it adds lines, the most lines for each second first, until the selection reaches all
that the suite reaches. Tests that start the program in an environment of their own are invisible to
coverage; those that check a promise of the design are in PROMISES and always selected.
With --data, an earlier run's directory is evaluated again.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import coverage

REPOSITORY = Path(__file__).resolve().parents[1]
CORE = REPOSITORY / "tests" / "core.txt"
# Beginnings of node ids.
PROMISES = (
    "tests/test_promises.py",
    "tests/test_words.py",
    "tests/cli/test_manners.py",
    "tests/docs/",
)
# As another user a test cannot write the data of its coverage; as root it reaches the same lines.
_NOT_MEASURED = (
    "--deselect",
    "tests/permissions/test_rules.py::test_violated_rule_is_found_and_repaired_without_root",
)
_LEAST_SECONDS = 0.02  # what selecting and starting a test costs
_MOST_SECONDS = 8.0  # a slower test is left to the rest, with the lines that no other test reaches


def main() -> int:
    """Run the suite if needed, select, and write the list."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="directory of an earlier run")
    chosen = parser.parse_args()
    if chosen.data:
        return _select(chosen.data)
    with tempfile.TemporaryDirectory(prefix="select-core-") as directory:
        _run(Path(directory))
        return _select(Path(directory))


def _run(directory: Path) -> None:
    """Run the suite under coverage; failing tests are not selected, and fail elsewhere."""
    settings = directory / "coveragerc"
    settings.write_text(
        f"[run]\nsource = sagewai_ops\nbranch = false\ndata_file = {directory}/coverage\n"
        "parallel = true\npatch = subprocess\ncontext = ${PYTEST_CURRENT_TEST-}\n"
    )
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "core_durations", "--cov",
         f"--cov-config={settings}", "--cov-context=test", "--cov-report=", *_NOT_MEASURED],
        cwd=REPOSITORY,
        env={
            **os.environ,
            "PYTHONPATH": os.fspath(Path(__file__).parent),
            "CORE_DURATIONS": os.fspath(directory / "durations.json"),
        },
        check=False,
    )  # fmt: skip


def _select(directory: Path) -> int:
    durations: dict[str, float] = json.loads((directory / "durations.json").read_text())
    reached = _reached(directory, durations)
    for test in list(reached):
        if durations[test] > _MOST_SECONDS and not test.startswith(PROMISES):
            del reached[test]
    everything = set().union(*reached.values())
    selected = {test for test in durations if test.startswith(PROMISES)}
    missing = everything - set().union(*(reached[test] for test in selected))
    left = {test: lines for test, lines in reached.items() if test not in selected}
    while missing:
        best = max(
            left,
            key=lambda test: len(left[test] & missing) / max(durations[test], _LEAST_SECONDS),
        )
        selected.add(best)
        missing -= left.pop(best)
    # An early choice can have become superfluous by later ones; the slowest go first.
    count = Counter(line for test in selected for line in reached[test])
    for test in sorted(selected, key=lambda test: -durations[test]):
        if not test.startswith(PROMISES) and all(count[line] > 1 for line in reached[test]):
            count.subtract(reached[test])
            selected.remove(test)
    CORE.write_text("".join(f"{test}\n" for test in sorted(selected)))
    seconds = sum(durations[test] for test in selected)
    print(
        f"{len(selected)} of {len(durations)} tests, {seconds:.0f} of"
        f" {sum(durations.values()):.0f} s, {len(everything)} lines"
    )
    return 0


def _reached(directory: Path, durations: dict[str, float]) -> dict[str, set[tuple[str, int]]]:
    """Return the lines that each test that passed reaches."""
    combined = coverage.CoverageData(os.fspath(directory / "combined"))
    for path in directory.glob("coverage*"):
        if path.name != "coveragerc":
            part = coverage.CoverageData(os.fspath(path))
            part.read()
            combined.update(part)
    found: dict[str, set[tuple[str, int]]] = defaultdict(set)
    for name in combined.measured_files():
        for line, contexts in combined.contexts_by_lineno(name).items():
            for context in contexts:
                test = context.rpartition("|")[0] or context.rpartition(" (")[0]
                if test in durations:
                    found[test].add((name, line))
    return found


if __name__ == "__main__":
    sys.exit(main())
