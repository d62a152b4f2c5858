"""Run every command as root on another user's home while this user replaces names by links.

    python tests/proof/attack.py --distinct sites         2 attacks on each step that differs
    python tests/proof/attack.py --distinct names         also by the names that are there: hours
    python tests/proof/attack.py --every                  each step, each kind of attack: a night
    python tests/proof/attack.py --sample 8 --seed 7      8 attacks on each command
    python tests/proof/attack.py --every --only restore   the cases whose names begin so
    python tests/proof/attack.py --every --at "chmod "    the steps whose call or path holds this
    python tests/proof/attack.py --every --share 2/20     the second twentieth of them
    python tests/proof/attack.py --sample 8 --kind pipes  of this kind alone
    python tests/proof/attack.py --only init --attack "named at 12 until 15"    one again

The run waits at a step; a process with the rights of the user moves names in its tree away and puts
links to root's canaries in their places, and the run goes on. Snapshots are next to the home, and
once more in a directory of root's alone. Prints a table; exits 1 on a violation. A step here is,
besides those of `crash.py`, every file that is opened, listed or examined: an attack between an
examination and what follows from it is the usual one.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import random
import shutil
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

_HERE = Path(__file__).resolve().parent
for _directory in (_HERE.parent, _HERE.parent.parent / "fixtures"):
    if str(_directory) not in sys.path:
        sys.path.insert(0, str(_directory))

from proof import beginnings, faults, laws  # noqa: E402 - the path first
from proof.bench import Proof, import_everything  # noqa: E402
from proof.canaries import Canaries, files_of  # noqa: E402
from proof.cases import CASES, Case  # noqa: E402
from proof.faults import Ended, Fault, Mode, Runner, Step  # noqa: E402
from proof.parts import parsed_options, report, run_parts, share, write_counts  # noqa: E402
from proof.plans import distinct, thinned  # noqa: E402
from proof.worlds import OTHER_USER, World  # noqa: E402
from sagewai_ops.errors import EXIT_DONE, EXIT_FINDINGS, EXIT_INCOMPLETE  # noqa: E402

KINDS = ("named", "all", "files", "directories", "newest", "parent", "hard links", "pipes")
DISTINCT = ("sites", "names")
# Refused there, and without the right to list that directory: both are documented.
_NOT_IN_VAULT = ("backup --format directory", "verify-perms --fix", "schedule kubernetes")
_SOON = 12  # steps after which some attacks restore the names
_PATIENCE_SECONDS = 40.0  # before a run counts as stuck
_SHOWN = 40  # violations in the table


@dataclass(frozen=True, slots=True)
class Attack:
    """What is replaced at which step, from 1; and the step at which it is put back, if any.

    Attributes:
        kind: Of KINDS: the newest name, that which the step names, the directory of
            it, or all names. `hard links` and `pipes` take the places of all files.
        in_vault: The snapshots are in a directory of root's alone.
    """

    kind: str
    step: int
    until: int = 0
    in_vault: bool = False

    def __str__(self) -> str:
        until = f" until {self.until}" if self.until else ""
        return f"{self.kind} at {self.step}{until}" + (", vault" if self.in_vault else "")


def parsed(text: str) -> Attack:
    """Read an attack as a violation names it."""
    text, _, vault = text.partition(", ")
    kind, _, steps = text.partition(" at ")
    step, _, until = steps.partition(" until ")
    return Attack(kind, int(step), int(until or 0), bool(vault))


@dataclass(slots=True)
class Count:
    """What was done to one case.

    Attributes:
        distinct: Steps that differ from all others of the run, in all cases.
        struck: Attacks whose step came.
        undone: Attacks that a file prevented which the run removed during them.
        replaced: Names that were replaced in all of them.
    """

    name: str
    steps: int = 0
    distinct: int = 0
    planned: int = 0
    attacks: int = 0
    struck: int = 0
    undone: int = 0
    replaced: int = 0
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)


class Siege:
    """One process's bench for attacks.

    Args:
        directory: Of its own; reachable by others.
        kinds: Of attacks.
        at: The call or path of the steps.
        share: The K-th of N parts of all attacks on a case.
        distinct: By what steps differ of which only one is attacked, of DISTINCT.
        minutes: After so many, attacks are planned but not made.
    """

    def __init__(
        self,
        directory: Path,
        stack: ExitStack,
        *,
        kinds: Sequence[str] = KINDS,
        at: str = "",
        share: tuple[int, int] = (1, 1),
        distinct: str = "",
        minutes: float = math.inf,
    ) -> None:
        arena = directory / "arena"
        arena.mkdir()
        self._arena = arena
        self._met = directory.parent / "met"
        self._met.mkdir(exist_ok=True)
        self._distinct = distinct
        self._deadline = time.monotonic() + minutes * 60
        self._kinds = kinds
        self._at = at
        self._share = share
        self._vault = arena / "vault"
        self._away = directory / "away"
        self._canaries = Canaries(directory / "canaries")
        self._runner = Runner(
            arena, directory, with_reads=True, exposed=arena / "w", patience=_PATIENCE_SECONDS
        )
        self._proof = Proof(arena, stack, owner=OTHER_USER, runner=self._runner)
        self._canaries.archive = self._archive()

    def attack(self, case: Case, choose: Sequence[Attack] | int, seed: int) -> Count:
        """Attack a case.

        Args:
            choose: The attacks; or how many to draw; 0 for all.
        """
        started = time.monotonic()
        count = Count(case.name)
        for vault in (None, self._vault)[: 1 if case.name in _NOT_IN_VAULT else 2]:
            world, prepared = self._proof.prepare(case, vault)
            self._canaries.begin(prepared)
            keys = _keys(prepared)
            world.reset(prepared)
            exposed = set(_readable(world, keys))
            case.begin(world, self._proof)
            exposed |= set(_readable(world, keys))
            ended = self._proof.run(case.words(world), world, variables=case.variables(world))
            steps = self._proof.steps()
            where = ", vault" if vault else ""
            if ended.code != case.code:
                text = f"exit {ended.code}, not {case.code}: {ended.err.strip()[:300]}"
                count.violations.append(f"{case.name}: undisturbed{where}: {text}")
            owners = [f"root's file in the tree: {name}" for name in self._others(case, world)]
            count.violations += [f"{case.name}: undisturbed{where}: {name}" for name in owners[:1]]
            is_used = any(step.path.startswith(str(self._vault)) for step in steps)
            if is_used or not vault:
                count.steps += len(steps)
                planned = self._planned(case, steps, vault, choose, seed, count)
                count.planned += len(planned)
                for attack in planned:
                    if time.monotonic() > self._deadline:
                        break
                    world.reset(prepared)
                    case.begin(world, self._proof)
                    try:
                        self._run_attack(case, world, attack, keys, exposed, count)
                    except FileNotFoundError:  # another thread of the run went on
                        count.undone += 1
            world.drop()
        count.seconds = round(time.monotonic() - started, 1)
        return count

    def _archive(self) -> bytes:
        """Return a snapshot of a home with a token in it."""
        world, _ = self._proof.prepare(Case("", beginnings.small, lambda _world: ()))
        (world.home / "data/canary").write_bytes(self._canaries.token)
        self._proof.run(("backup",), world)
        (archive,) = world.snapshots.glob("*.tar.zst")
        return archive.read_bytes()

    def _others(self, case: Case, world: World) -> list[str]:
        return [] if case.is_roots else world.others(case.siblings)

    def _planned(
        self,
        case: Case,
        steps: list[Step],
        vault: Path | None,
        choose: Sequence[Attack] | int,
        seed: int,
        count: Count,
    ) -> list[Attack]:
        if not isinstance(choose, int):
            return [attack for attack in choose if attack.in_vault == bool(vault)]
        numbers = [number for number in thinned(steps, seed) if self._at in str(steps[number - 1])]
        draw = random.Random(f"{seed} {case.name} {bool(vault)}")
        planned = []
        if self._distinct:
            numbers = list(
                distinct(steps, numbers, self._arena, self._met, by_names=self._distinct == "names")
            )
            count.distinct += len(numbers)
            is_named = "named" in self._kinds
            others = [kind for kind in self._kinds if kind != "named"]
            kinds = itertools.cycle(draw.sample(others, len(others)))
            pairs = [
                (number, kind)
                for number in numbers
                for kind in (
                    *(("named",) if is_named and self._has_name(steps[number - 1]) else ()),
                    *itertools.islice(kinds, 1),
                )
            ]
        elif choose:  # each kind as often as the others
            kinds = itertools.cycle(draw.sample(self._kinds, len(self._kinds)))
            pairs = [(draw.choice(numbers), next(kinds)) for _ in range(choose if numbers else 0)]
        else:
            pairs = list(itertools.product(numbers, self._kinds))
        for number, kind in pairs:
            until = number + draw.randint(1, _SOON) if draw.random() < 0.3 else 0
            planned.append(Attack(kind, number, until, bool(vault)))
        number, shares = self._share
        return planned[number - 1 :: shares]

    def _has_name(self, step: Step) -> bool:
        return (self._arena / "w") in Path(step.path).parents

    def _run_attack(
        self,
        case: Case,
        world: World,
        attack: Attack,
        keys: frozenset[bytes],
        exposed: set[str],
        count: Count,
    ) -> None:
        shutil.rmtree(self._away, ignore_errors=True)
        self._away.mkdir(mode=0o700)
        os.chown(self._away, OTHER_USER, OTHER_USER)
        moved: list[tuple[str, str]] = []
        wheres: list[Step] = []

        def strike(turn: int, step: Step) -> None:
            if turn == 1:
                wheres.append(step)
                self._canaries.plant(world.directory, _within(world, step.path))
                moved.extend(self._replace(world, attack.kind, step))
            else:
                _as_attacker(lambda: _put_back(moved, self._canaries))

        fault = Fault(Mode.ATTACK, attack.step, second=attack.until)
        ended = self._proof.run(
            case.words(world), world, fault, case.variables(world), attack=strike
        )
        count.attacks += 1
        count.struck += bool(wheres)
        count.replaced += len(moved)
        where = wheres[0] if wheres else "no step"
        found = self._found(case, world, ended, keys, exposed) if wheres else iter(())
        count.violations += [f"{case.name}: {attack} ({where}): {text}" for text in found]

    def _found(
        self,
        case: Case,
        world: World,
        ended: Ended,
        keys: frozenset[bytes],
        exposed: set[str],
    ) -> Iterator[str]:
        yield from self._canaries.check()
        # What is gone cannot be found, and what is found instead is a finding.
        if ended.code in (EXIT_DONE, EXIT_INCOMPLETE, EXIT_FINDINGS):
            case = replace(case, code=ended.code)
        yield from laws.check_ending(case, ended, None)
        if self._canaries.search(ended.err.encode()):
            yield "canary's content in stderr"
        arena = world.directory.parent
        for place in (world.directory, self._vault, self._away, arena / "root"):
            for path in (*files_of(place), str(self._runner.out)):
                if self._canaries.is_canary(path):
                    continue
                if self._canaries.search(Path(path).read_bytes()):
                    yield f"canary's content in {os.path.relpath(path, arena)}"
        for name in self._others(case, world):
            if not self._canaries.is_canary(str(world.directory / name)):
                yield f"root's file in the tree: {name}"
                break
        for name in set(_readable(world, keys)) - exposed:
            yield f"the master key is open to third users: {name}"

    def _replace(self, world: World, kind: str, step: Step) -> list[tuple[str, str]]:
        """Replace names with the attacker's rights; return where each was, and is now."""
        names = _chosen(world, kind, _within(world, step.path))
        links = {name: self._canaries.of(name, world.directory) for name in names}
        is_hard = kind == "hard links"
        if is_hard:
            links = {}
        if kind == "pipes":
            links = dict.fromkeys(names, "")
        moved = _as_attacker(lambda: _exchange(names, links, self._away))
        for name, _ in moved if is_hard else ():
            # As on a system that lets its users link to files of others.
            with contextlib.suppress(OSError):
                os.link(self._canaries.of(name, world.directory), name, follow_symlinks=False)
        return moved


def _within(world: World, path: str) -> str:
    """Return a path in the world; for a path elsewhere the world itself."""
    inside = (
        os.path.commonpath([path, world.directory]) == str(world.directory)
        if (path.startswith("/"))
        else False
    )
    return path if inside else str(world.directory)


def _chosen(world: World, kind: str, path: str) -> list[str]:
    """List the names to replace: entries before their directories."""
    names = [
        os.path.join(above, name)
        for above, directories, files in os.walk(world.directory, topdown=False)
        for name in (*files, *directories)
    ]
    names.remove(str(world.temporary))
    if kind == "named":
        return [path] if path not in (str(world.directory), str(world.temporary)) else []
    if kind == "parent":
        above = os.path.dirname(path)
        return [above] if above in names else []
    if kind == "newest":
        return [max(names, key=lambda name: _status(name)[1])] if names else []
    if kind == "directories":
        return [name for name in names if stat.S_ISDIR(_status(name)[0])]
    if kind in ("files", "hard links", "pipes"):
        return [name for name in names if not stat.S_ISDIR(_status(name)[0])]
    return names


def _status(name: str) -> tuple[int, int]:
    """Return the mode and the time of the last change; zeros if another thread removed it."""
    try:
        found = os.lstat(name)
    except FileNotFoundError:
        return 0, 0
    return found.st_mode, found.st_ctime_ns


def _as_attacker(
    work: Callable[[], list[tuple[str, str]]],
) -> list[tuple[str, str]]:
    """Do something in a process with the rights of the user, and return its result."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            os.close(reading)
            os.setgroups([])
            os.setresgid(OTHER_USER, OTHER_USER, OTHER_USER)
            os.setresuid(OTHER_USER, OTHER_USER, OTHER_USER)
            os.umask(0)
            with open(writing, "w") as pipe:
                json.dump(work(), pipe)
            code = 0
        os._exit(code)
    os.close(writing)
    with open(reading) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if status:
        raise RuntimeError(f"the attacker failed: {status}")
    return [(path, away) for path, away in json.loads(text)]


def _exchange(names: Sequence[str], links: dict[str, str], away: Path) -> list[tuple[str, str]]:
    """Move names away, and put links in the places of those that have one; for "" a pipe."""
    moved = []
    for number, name in enumerate(names):
        kept = str(away / str(number))
        if os.path.lexists(name):
            try:
                os.rename(name, kept)
            except OSError:  # a directory of root's cannot change its parent
                kept = os.path.join(os.path.dirname(name), f".away-{number}")
                try:
                    os.rename(name, kept)
                except OSError:
                    continue
        with contextlib.suppress(OSError):
            if target := links.get(name):
                os.symlink(target, name)
            elif target == "":
                os.mkfifo(name)
            moved.append((name, kept))
    return moved


def _put_back(moved: list[tuple[str, str]], canaries: Canaries) -> list[tuple[str, str]]:
    """Move names back, and return those whose places are taken."""
    left = []
    for name, kept in reversed(moved):
        try:
            is_pipe = stat.S_ISFIFO(os.lstat(name).st_mode)
            if is_pipe or os.path.islink(name) or canaries.is_canary(name):
                os.unlink(name)
            os.rename(kept, name)
        except OSError:
            left.append((name, kept))
    return left


def _keys(prepared: Path) -> frozenset[bytes]:
    """Read the master keys that a case begins with."""
    paths = [path for path in prepared.rglob("master.key*") if path.is_file()]
    paths += [path for path in (prepared / "out/key",) if path.is_file()]
    return frozenset(path.read_bytes().strip() for path in paths) - {b""}


def _readable(world: World, keys: frozenset[bytes]) -> Iterator[str]:
    """List the files with a master key that a third user can read."""
    for path in files_of(world.directory):
        if not os.lstat(path).st_mode & stat.S_IROTH:
            continue
        above = Path(path).parent
        if all(
            place.stat().st_mode & stat.S_IXOTH
            for place in (above, *above.parents)
            if place.is_relative_to(world.directory)
        ) and any(key in Path(path).read_bytes() for key in keys):
            yield os.path.relpath(path, world.directory)


def planted_case(world: Path) -> Case:
    """Have root examine, read, copy and open a file by its path, as no command may."""

    @contextlib.contextmanager
    def within() -> Iterator[None]:
        path = world / "out/planted"
        path.write_bytes(b"planted")
        path.chmod(0o644)
        shutil.copyfile(path, world / "out/copied")
        os.chown(path, OTHER_USER, OTHER_USER)
        yield

    return Case("planted", beginnings.small, lambda _world: ("config", "show"), within=within)


def main() -> int:
    """Run the cases in several processes and show the result."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(143))  # so all is removed
    if not faults.is_possible() or os.geteuid():
        print("no attack is possible here: it needs Linux, a C compiler and root")
        return 0
    if options.part:
        return _part(options)
    started = time.monotonic()
    found = run_parts(__file__, options.jobs)
    if found is None:
        return 2
    counts = [Count(**item) for item in found]
    shown = ("steps", "distinct", "planned", "attacks", "struck", "replaced")
    summed = ("steps", "distinct", "planned", "attacks", "struck", "undone", "replaced")
    seconds = time.monotonic() - started
    return report(counts, shown, summed, seconds, options, most=_SHOWN, kind=_kind)


def _part(options: argparse.Namespace) -> int:
    """Attack this process's share of the cases."""
    import_everything()
    directory = Path(options.part)
    names = tuple(options.only) or ("",)
    cases = [case for case in CASES if case.name.startswith(names) and not case.owners_only]
    if options.planted:
        cases = [planted_case(directory / "arena/w")]
    choose = [parsed(text) for text in options.attack] or options.sample
    counts = []
    with ExitStack() as stack:
        kinds = options.kind or KINDS
        siege = Siege(
            directory,
            stack,
            kinds=kinds,
            at=options.at,
            share=options.share,
            distinct=options.distinct,
            minutes=options.minutes,
        )
        # What several do is attacked in the one that takes least time.
        cases.sort(key=lambda case: (not case.is_idle, case.takes_snapshot, case.has_verdicts))
        write_counts(directory, [])
        for case in share(directory, cases):
            counts.append(siege.attack(case, choose, options.seed))
            write_counts(directory, [asdict(count) for count in counts])
            if options.verbose:
                count = counts[-1]
                words = f"{count.name}: {count.attacks} of {count.planned}, {count.seconds} s"
                print(words, *count.violations, sep="\n  ", file=sys.stderr, flush=True)
    return 0


def _kind(violation: str) -> str:
    """Return the kind of a violation: its text without the places."""
    if ": undisturbed" in violation:
        text = violation.partition(": undisturbed")[2].partition(": ")[2]
        return "undisturbed: " + text.partition(":")[0].partition(",")[0]
    return violation.partition("): ")[2].partition(":")[0].partition(" in ")[0]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.set_defaults(sample=4)
    parser.add_argument("--every", dest="sample", action="store_const", const=0)
    parser.add_argument("--sample", type=int, metavar="N", help="attacks on each command")
    parser.add_argument("--minutes", type=float, default=math.inf, help="for attacks")
    parser.add_argument("--distinct", default="", choices=DISTINCT)
    parser.add_argument("--kind", action="append", choices=KINDS)
    parser.add_argument("--attack", action="append", default=[])
    return parsed_options(parser)


if __name__ == "__main__":
    sys.exit(main())
