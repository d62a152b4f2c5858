"""`make bench`: `backup --engine restic|borg` against the engines themselves, on the same tree.

A first night, one after 1 % of the rows changed at the ends of their tables, and one after 1 %
changed all over them, each measured with today's archive, with the tree alone, with ours and with
the bare engine, in turns; the medians of the rounds count. Then what borg's chunks store of each
change, and thirty nights of each contender. Prints Markdown; needs restic and borg.

    .venv/bin/python tests/benchmarks/bench_engines.py [--size 300M] [--rounds N] [--nights N]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, os.fspath(REPOSITORY / "tests"))  # run as a script, without pytest's paths

from benchmarks.peers import program  # noqa: E402
from benchmarks.stopwatch import Cost, machine, measure, tree_bytes, version  # noqa: E402

ARCHIVE, TREE = "`backup`, an archive", "`backup --format directory`, the tree alone"
NIGHTS = ("first", "end", "scattered")
TITLES = (
    "The first night",
    "1 % of the rows changed, the newest",
    "1 % of the rows changed, all over the tables",
)
LIMIT_SECONDS, LIMIT_ARCHIVE, LIMIT_BARE = 1.5, 0.6, 1.1
# The tables that grow with use, and a text in each.
GROWING = {
    "agent_runs": "input_text",
    "context_chunks": "content",
    "prompt_logs": "input_text",
    "sessions": "messages",
}
FIXED = "fixed,65536"  # what `backup --engine borg` uses
CHUNKS = {
    "its own chunks": "buzhash,19,23,21,4095",
    f"`{FIXED}`": FIXED,
    "`fixed,4096`": "fixed,4096",
}


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine, and how a user would call it for a tree.

    Attributes:
        initialise, store: The words of its commands; `{tree}` and `{name}` are replaced.
        environment: `{repository}` and `{cache}` are replaced.
    """

    name: str
    initialise: tuple[str, ...]
    store: tuple[str, ...]
    environment: dict[str, str]

    @property
    def ours(self) -> str:
        """The name of the contender that uses it."""
        return f"`backup --engine {self.name}`"

    @property
    def bare(self) -> str:
        """The name of the contender without us."""
        return f"{self.name} on that tree"

    def variables(self, repository: Path) -> dict[str, str]:
        """Return the environment for a repository."""
        cache = repository.with_name(f"{repository.name}-cache")
        return {
            name: value.format(repository=repository, cache=cache)
            for name, value in self.environment.items()
        }

    def command(self, tree: Path, name: str) -> list[str]:
        """Return the command that stores a tree."""
        return [word.format(tree=tree, name=name) for word in self.store]


def borg(chunks: str = FIXED) -> Engine:
    """Return borg with chunks of a kind."""
    files = ("--chunker-params", chunks, "--files-cache", "mtime,size,inode")
    return Engine(
        "borg",
        ("borg", "init", "-e", "repokey-blake2"),
        ("borg", "create", *files, "::{name}", "{tree}"),
        {
            "BORG_REPO": "{repository}",
            "BORG_PASSPHRASE": "of the benchmark",
            "BORG_BASE_DIR": "{cache}",
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
        },
    )


RESTIC = Engine(
    "restic",
    ("restic", "init"),
    ("restic", "-q", "backup", "--ignore-ctime", "{tree}"),
    {
        "RESTIC_REPOSITORY": "{repository}",
        "RESTIC_PASSWORD": "of the benchmark",
        "RESTIC_CACHE_DIR": "{cache}",
    },
)
ENGINES = (RESTIC, borg())


@dataclass(slots=True)
class Found:
    """What a contender took on one kind of night.

    Attributes:
        stored: Bytes that each night added.
    """

    costs: list[Cost] = field(default_factory=list)
    stored: list[int] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """The median of the wall times."""
        return statistics.median(cost.wall_seconds for cost in self.costs)

    @property
    def spread(self) -> str:
        """The shortest and the longest."""
        walls = [cost.wall_seconds for cost in self.costs]
        return f"{min(walls):.2f} to {max(walls):.2f}"


@dataclass(frozen=True, slots=True)
class Contender:
    """Something that stores a night.

    Attributes:
        night: Runs it, given the number of the night.
        store: Where what it keeps is.
    """

    name: str
    night: Callable[[int], Cost]
    store: Path


def main() -> int:
    """Measure, print, and return the exit code: 1 where a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="300M", help="of the home (default: 300M)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--nights", type=int, default=30)
    parser.add_argument("--work", type=Path, metavar="DIR", help="on the disk to measure on")
    arguments = parser.parse_args()
    missing = [engine.name for engine in ENGINES if shutil.which(engine.name) is None]
    if missing:
        print(f"bench_engines: skipped, {' and '.join(missing)} not installed")
        return 0
    with tempfile.TemporaryDirectory(prefix="sagewai-ops-bench-", dir=arguments.work) as directory:
        return _report(Path(directory), arguments.size, arguments.rounds, arguments.nights)


def _build(home: Path, size: str) -> None:
    # In a process of its own: the memory of this one would count as that of each contender.
    subprocess.run(
        [sys.executable, "-m", "home_builder", os.fspath(home), "--size", size],
        env={**os.environ, "PYTHONPATH": os.fspath(REPOSITORY / "fixtures")},
        stdout=subprocess.DEVNULL,
        check=True,
    )


def change(database: Path, seed: int, *, scattered: bool) -> int:
    """Rewrite 1 % of the rows with other text of the same length; return their number."""
    chance = random.Random(seed)
    changed = 0
    with contextlib.closing(sqlite3.connect(database)) as connection:
        for table, column in GROWING.items():
            query = f"SELECT rowid, length({column}) FROM {table} ORDER BY rowid DESC"
            rows = connection.execute(query).fetchall()
            count = -(-len(rows) // 100)
            chosen = chance.sample(rows, count) if scattered else rows[:count]
            connection.executemany(
                f"UPDATE {table} SET {column} = ? WHERE rowid = ?",
                [(_text(chance, length), number) for number, length in chosen],
            )
            changed += count
        connection.commit()
    return changed


def _text(chance: random.Random, length: int) -> str:
    words = " ".join(f"word{chance.randrange(5000)}" for _ in range(length // 5 + 1))
    return words[:length]


def _report(work: Path, size: str, rounds: int, nights: int) -> int:
    home = work / "home"
    _build(home, size)
    database = home / "db/sagewai.db"
    change(database, 0, scattered=False)  # the last connection checkpoints
    print(f"# Nights of a home of {tree_bytes(home) / 1e6:.0f} MB, with restic and borg\n")
    print(f"{machine(REPOSITORY)}, {version(['restic', 'version'])[:12]},")
    print(f"{version(['borg', '--version'])}, load {os.getloadavg()[0]:.1f}\n")
    found: dict[str, dict[str, Found]] = {}
    for number in range(rounds):
        _log(f"round {number + 1} of {rounds}")
        for contender, night, cost, stored in _round(work / "round", home, number):
            record = found.setdefault(contender, {}).setdefault(night, Found())
            record.costs.append(cost)
            record.stored.append(stored)
    print("\n".join(_night_lines(found)), flush=True)
    print("\n".join(_chunk_lines(work / "chunks", home)), flush=True)
    print()
    print("\n".join(_month_lines(work / "month", home, nights)))
    second = found[RESTIC.ours]["end"].seconds
    archive = found[ARCHIVE]["end"].seconds
    ratios = [
        _engine_part(found, engine, night) for engine in ENGINES for night in ("first", "end")
    ]
    print(
        f"\nAsked for: the second night with restic at most {LIMIT_SECONDS} s and"
        f" {LIMIT_ARCHIVE} x the archive ({second:.2f} s, {second / archive:.2f} x), the engine's"
        f" part at most {LIMIT_BARE} x the bare engine (at most {max(ratios):.2f} x)."
    )
    return int(
        second > LIMIT_SECONDS or second > LIMIT_ARCHIVE * archive or max(ratios) > LIMIT_BARE
    )


def _contenders(work: Path, home: Path) -> Iterator[Contender]:
    """Yield the contenders in the order of a night: a bare engine after the one with us."""
    ours = [program(), "--home", os.fspath(home), "backup"]

    def archive(_night: int) -> Cost:
        return measure([*ours, "--snapshots", os.fspath(work / "archives")])

    def tree(_night: int) -> Cost:
        return measure([*ours, "--format", "directory", "--snapshots", os.fspath(work / "tree")])

    yield Contender(ARCHIVE, archive, work / "archives")
    yield Contender(TREE, tree, work / "tree")
    for engine in ENGINES:
        yield from _engine_contenders(work, ours, engine)


def _engine_contenders(work: Path, ours: list[str], engine: Engine) -> Iterator[Contender]:
    own, bare = work / f"{engine.name}-own", work / f"{engine.name}-bare"
    mirror = work / f"{engine.name}-mirror"

    def with_us(night: int) -> Cost:
        words = ["--engine", engine.name, "--snapshots", os.fspath(mirror)]
        words += ["--repository", os.fspath(own), *(["--init-repository"] if night == 0 else [])]
        return measure([*ours, *words], environment=engine.variables(own))

    def without_us(night: int) -> Cost:
        variables = engine.variables(bare)
        if night == 0:
            measure(engine.initialise, environment=variables)
        return measure(engine.command(mirror / "tree", f"night-{night}"), environment=variables)

    yield Contender(engine.ours, with_us, own)
    yield Contender(engine.bare, without_us, bare)


def _round(work: Path, home: Path, number: int) -> Iterator[tuple[str, str, Cost, int]]:
    """Yield the contender, the kind of night, its cost, and the bytes that it added."""
    work.mkdir()
    contenders = [*_contenders(work, home)]
    sizes = dict.fromkeys((contender.name for contender in contenders), 0)
    for night, kind in enumerate(NIGHTS):
        if night:
            seed = 10 * number + night + 1
            change(home / "db/sagewai.db", seed, scattered=kind == "scattered")
        for contender in contenders:
            cost = contender.night(night)
            size = tree_bytes(contender.store)
            yield contender.name, kind, cost, size - sizes[contender.name]
            sizes[contender.name] = size
    shutil.rmtree(work)


def _engine_part(found: dict[str, dict[str, Found]], engine: Engine, night: str) -> float:
    """Return ours without the tree, as a ratio to the bare engine."""
    own = found[engine.ours][night].seconds - found[TREE][night].seconds
    return own / found[engine.bare][night].seconds


def _night_lines(found: dict[str, dict[str, Found]]) -> Iterator[str]:
    for night, title in zip(NIGHTS, TITLES, strict=True):
        yield f"## {title}\n"
        yield (
            "| | median | spread | x archive | x bare | without the tree, x bare | CPU"
            " | peak memory | stored |"
        )
        yield "|---|--:|--:|--:|--:|--:|--:|--:|--:|"
        archive = found[ARCHIVE][night].seconds
        for name, nights in found.items():
            record = nights[night]
            engine = next((engine for engine in ENGINES if engine.ours == name), None)
            bare = f"{record.seconds / found[engine.bare][night].seconds:.2f}" if engine else ""
            part = f"{_engine_part(found, engine, night):.2f}" if engine else ""
            cpu = statistics.median(cost.cpu_seconds for cost in record.costs)
            memory = max(cost.peak_bytes for cost in record.costs)
            yield (
                f"| {name} | {record.seconds:.2f} s | {record.spread}"
                f" | {record.seconds / archive:.2f} | {bare} | {part} | {cpu:.2f} s"
                f" | {memory / 1e6:.0f} MB | {statistics.median(record.stored) / 1e6:.2f} MB |"
            )
        yield ""


def _chunk_lines(work: Path, home: Path) -> Iterator[str]:
    """Measure what borg stores of each change, with chunks of several kinds."""
    work.mkdir()
    yield "## borg's chunks: stored after each change\n"
    yield "| | first | 1 %, the newest | 1 %, all over | seconds of the three |"
    yield "|---|--:|--:|--:|--:|"
    stored: dict[str, list[int]] = {title: [] for title in CHUNKS}
    seconds: dict[str, list[float]] = {title: [] for title in CHUNKS}
    update = [program(), "--home", os.fspath(home), "backup", "--format", "directory"]
    for night, kind in enumerate(NIGHTS):
        if night:
            change(home / "db/sagewai.db", 1000 + night, scattered=kind == "scattered")
        measure([*update, "--snapshots", os.fspath(work / "tree")])
        for number, (title, chunks) in enumerate(CHUNKS.items()):
            repository = work / f"borg-{number}"
            engine = borg(chunks)
            variables = engine.variables(repository)
            if night == 0:
                measure(engine.initialise, environment=variables)
            command = engine.command(work / "tree/tree", f"night-{night}")
            seconds[title].append(measure(command, environment=variables).wall_seconds)
            stored[title].append(tree_bytes(repository) - sum(stored[title]))
    for title in CHUNKS:
        sizes = " | ".join(f"{size / 1e6:.2f} MB" for size in stored[title])
        yield f"| {title} | {sizes} | {', '.join(f'{value:.2f}' for value in seconds[title])} |"
    shutil.rmtree(work)


def _month_lines(work: Path, home: Path, nights: int) -> Iterator[str]:
    """Run nights of which each changes the newest rows, and every seventh rows all over."""
    work.mkdir()
    contenders = [item for item in _contenders(work, home) if item.name != TREE]
    costs: dict[str, list[Cost]] = {contender.name: [] for contender in contenders}
    sizes: dict[str, list[int]] = {contender.name: [0] for contender in contenders}
    for night in range(nights):
        _log(f"night {night + 1} of {nights}")
        if night:
            change(home / "db/sagewai.db", 2000 + night, scattered=night % 7 == 0)
        for contender in contenders:
            costs[contender.name].append(contender.night(night))
            sizes[contender.name].append(tree_bytes(contender.store))
    yield f"## {nights} nights, every seventh with changes all over the tables\n"
    yield "| | all nights | median of a night | x archive | median of new bytes | history |"
    yield "|---|--:|--:|--:|--:|--:|"
    archive = _total(costs[ARCHIVE])
    for name, runs in costs.items():
        added = [
            after - before for before, after in zip(sizes[name], sizes[name][1:], strict=False)
        ]
        median = statistics.median(cost.wall_seconds for cost in runs[1:])
        yield (
            f"| {name} | {_total(runs):.1f} s | {median:.2f} s | {_total(runs) / archive:.2f}"
            f" | {statistics.median(added[1:]) / 1e6:.2f} MB | {sizes[name][-1] / 1e6:.0f} MB |"
        )
    shutil.rmtree(work)


def _total(costs: Sequence[Cost]) -> float:
    return sum(cost.wall_seconds for cost in costs)


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
