"""What is typed often: version, help, the status of a large home, a long list, a plan over it.

The version and the help of a command are compared with `python -c pass` of the same interpreter,
the others with the figures that were asked for. Cards and home are made by the fixtures. Rounds
take turns; medians and their spread are printed. The start of a command is that of `backup --help`,
which does everything that comes before the work. An environment whose installation is editable
imports more at every start of Python: measure one with the wheel.

    .venv/bin/python tests/benchmarks/bench_cli.py [--bytes 1000000000] [--cards 10000] [--home DIR]
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [os.fspath(REPOSITORY / "tests"), os.fspath(REPOSITORY / "fixtures")]

from benchmarks.stopwatch import Cost, machine, measure, median  # noqa: E402
from home_builder import build_home  # noqa: E402
from sagewai_ops.home.paths import locate  # noqa: E402
from sagewai_ops.snapshots.catalog import archive_name  # noqa: E402
from sagewai_ops.snapshots.ownership import owner_of  # noqa: E402

ROUNDS = 7
VERSION_RATIO = 4.0  # most, of `python -c pass`
COMMAND_HELP_RATIO = 6.0
START_SECONDS = 0.06  # of processor time, more than `python -c pass`
HELP_SECONDS = 0.3
STATUS_CPU_SECONDS = 0.5
LIST_SECONDS = 1.0
PLAN_SECONDS = 2.0
ARTIFACT_SHARE = 0.15  # of the home; the rest is the database
START = datetime(2025, 1, 1, tzinfo=timezone.utc)
RULES = ("--keep-daily", "7", "--keep-weekly", "4", "--keep-monthly", "12", "--keep-yearly", "3")


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that is measured.

    Attributes:
        values: Of each round.
        limit: In the unit of `values`, which are ratios, or seconds.
        cpu_seconds: Of all processors, which a busy machine changes less than the time on the wall.
    """

    name: str
    values: Sequence[float]
    limit: float
    unit: str
    cpu_seconds: float


def main() -> int:
    """Measure, print, and return the exit code: 0 also where a figure is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bytes", type=int, default=1_000_000_000, help="of the home")
    parser.add_argument("--cards", type=int, default=10_000)
    parser.add_argument("--home", type=Path, help="a home that is there already")
    parser.add_argument("--work", type=Path, help="where homes and cards are made")
    arguments = parser.parse_args()
    print(f"Measured on {machine(REPOSITORY)}.\n")
    with tempfile.TemporaryDirectory(prefix="sagewai-ops-bench-", dir=arguments.work) as work:
        home = arguments.home or Path(work, "home")
        if not arguments.home:
            artifacts = int(arguments.bytes * ARTIFACT_SHARE)
            build_home(home, database_bytes=arguments.bytes - artifacts, artifact_bytes=artifacts)
        directory = Path(work, "cards")
        make_cards(directory, home, arguments.cards)
        rows = _measured(home, directory, arguments.cards)
    print("| | median | spread | asked for | CPU | |")
    print("|---|--:|--:|--:|--:|---|")
    for row in rows:
        value = statistics.median(row.values)
        verdict = "" if value <= row.limit else "missed"
        spread = f"{min(row.values):.2f} to {max(row.values):.2f}"
        figures = f"{value:.2f} {row.unit} | {spread} | {row.limit:g} | {row.cpu_seconds:.2f} s"
        print(f"| {row.name} | {figures} | {verdict} |")
    return 0


def make_cards(directory: Path, home: Path, count: int) -> None:
    """Make as many snapshots of a home, one an hour, as far as a list looks at them."""
    owner = owner_of(locate(home, {}))
    directory.mkdir()
    for number in range(1, count + 1):
        moment = START + timedelta(hours=number)
        identifier = f"{moment:%Y%m%dT%H%M%SZ}-{number:06x}"
        name = archive_name(identifier, is_encrypted=False)
        card = {
            "card": 1,
            "archive": name,
            "id": identifier,
            "sequence": number,
            "created_at": f"{moment:%Y-%m-%dT%H:%M:%SZ}",
            "home": owner.home,
            "home_id": min(owner.ids),
            "host": owner.host,
            "key_custody": "exclude",
            "key_fingerprint": "0123456789abcdef",
            "schema_level": "020_fleet_task_lease",
            "tags": [],
            "archive_bytes": 0,
            "archive_sha256": "0" * 64,
            "complete": True,
            "sound": True,
            "verified_at": f"{moment:%Y-%m-%dT%H:%M:%SZ}",
        }
        (directory / name).touch()
        (directory / f"{name}.json").write_text(json.dumps(card, indent=1))


def _measured(home: Path, directory: Path, cards: int) -> list[Row]:
    ours = [os.fspath(Path(sys.executable).with_name("sagewai-ops"))]
    at_home = [*ours, "--home", os.fspath(home)]
    listing = [*at_home, "snapshots", "list", "--snapshots", os.fspath(directory)]
    planning = [*at_home, "snapshots", "prune", "--snapshots", os.fspath(directory), "--dry-run"]
    cost = _costs({
        "pass": [sys.executable, "-c", "pass"],
        "version": [*ours, "--version"],
        "help": [*ours, "--help"],
        "command's help": [*ours, "backup", "--help"],
        "status": [*at_home, "status"],
        "list": listing,
        "list --json": [*listing, "--json"],
        "plan": [*planning, *RULES],
    })  # fmt: skip
    bare = cost["pass"]
    size = sum(path.lstat().st_size for path in home.rglob("*") if path.is_file())
    rows = (
        ("`--help`", "help", HELP_SECONDS),
        (f"`status`, {size / 1e9:.1f} GB, CPU", "status", STATUS_CPU_SECONDS),
        (f"`snapshots list`, {cards} cards", "list", LIST_SECONDS),
        ("the same, `--json`", "list --json", LIST_SECONDS),
        (f"prune plan, {cards} cards", "plan", PLAN_SECONDS),
    )
    found = []
    for name, key, limit in (
        ("`--version` / `python -c pass`, CPU", "version", VERSION_RATIO),
        ("`backup --help` / `python -c pass`, CPU", "command's help", COMMAND_HELP_RATIO),
    ):
        pairs = zip(cost[key], bare, strict=True)
        ratios = [ours.cpu_seconds / alone.cpu_seconds for ours, alone in pairs]
        found.append(Row(name, ratios, limit, "x", median(cost[key]).cpu_seconds))
    pairs = zip(cost["command's help"], bare, strict=True)
    more = [ours.cpu_seconds - alone.cpu_seconds for ours, alone in pairs]
    name = "start of a command, over `python -c pass`, CPU"
    found.append(Row(name, more, START_SECONDS, "s", median(cost["command's help"]).cpu_seconds))
    for name, key, limit in rows:
        is_cpu = key == "status"
        seconds = [each.cpu_seconds if is_cpu else each.wall_seconds for each in cost[key]]
        found.append(Row(name, seconds, limit, "s", median(cost[key]).cpu_seconds))
    return found


def _costs(commands: dict[str, Sequence[str]]) -> dict[str, list[Cost]]:
    found: dict[str, list[Cost]] = {name: [] for name in commands}
    for _ in range(ROUNDS):
        for name, command in commands.items():
            found[name].append(measure(command))
    return found


if __name__ == "__main__":
    sys.exit(main())
