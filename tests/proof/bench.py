"""What proves one case after another: a world, a server when one is needed, and faulty runs."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import pkgutil
import random
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import sagewai_ops
from postgres_server import Server, installations
from proof import faults, laws
from proof.beginnings import Words
from proof.cases import Case
from proof.faults import Ended, Fault, Mode, Runner, Step
from proof.plans import plan, thinned
from proof.worlds import Mask, World, rights_of
from sagewai_ops.cli import main
from sagewai_ops.fs import atomic
from sagewai_ops.process import signals
from sagewai_ops.snapshots import catalog

_SETTLE_SECONDS = 10.0  # for a server to notice that a client is gone


@dataclass(slots=True)
class Count:
    """What was done to one case.

    Attributes:
        alike: Steps that `thinned` left out, because they are like their neighbours.
    """

    name: str
    steps: int = 0
    alike: int = 0
    faults: int = 0
    struck: int = 0
    kills: int = 0
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)


class Proof:
    """One process's bench: a world, a server when it is needed, and the runner."""

    def __init__(
        self,
        directory: Path,
        stack: ExitStack,
        *,
        is_planted: bool = False,
        with_signals: bool = False,
        share: tuple[int, int] = (1, 1),
        at: str = "",
        owner: int = 0,
        runner: Runner | None = None,
    ) -> None:
        """Prepare it.

        Args:
            owner: The user to whom the worlds belong, if not to the one who runs this.
            runner: Another one than that which numbers the steps in the world alone.
        """
        self._is_planted = is_planted
        self._share = share
        self._at = at
        self._with_signals = with_signals
        self._met: set[int] = set()
        self._within: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
        self._directory = directory
        self._stack = stack
        self._server: Server | None = None
        self._owner = owner
        self._runner = runner or Runner(directory / "w", directory)

    def run(
        self,
        words: Words,
        world: World,
        fault: Fault | None = None,
        variables: Mapping[str, str] | None = None,
        attack: Callable[[int, Step], None] | None = None,
    ) -> Ended:
        """Run a command as people do, in its own process group; `attack`: see `Runner.run`."""

        def body() -> int:
            for name in [each for each in os.environ if each.startswith("SAGEWAI")]:
                del os.environ[name]
            os.environ |= {"TMPDIR": str(world.temporary), "HOME": str(world.directory)}
            if world.owner:  # root has a home of its own
                os.environ["HOME"] = str(self._directory / "root")
            if world.vault:
                os.environ["SAGEWAI_OPS_SNAPSHOTS"] = str(world.vault)
            os.environ |= variables or {}
            os.umask(0o022)
            signals.defer_signals()  # as `cli.main` does
            with self._planted(), self._within():
                return main.run([str(word) for word in ("--home", world.home, *words)])

        ended = self._runner.run(body, fault, attack, of_two_users=bool(world.owner))
        if world.server:
            _settled(world)
        return ended

    def steps(self) -> list[Step]:
        """Return the steps of the last run without a fault."""
        return self._runner.steps()

    def prove(self, case: Case, choose: Sequence[Fault] | int | None, seed: int) -> Count:
        """Put a case through its faults.

        Args:
            choose: The faults; or how many to draw; or None for all.
        """
        started = time.monotonic()
        count = Count(case.name)
        world, prepared = self.prepare(case)
        self._met.clear()
        expected, steps = self._undisturbed(case, world, prepared, count)
        count.steps = len(steps)
        if choose is None or isinstance(choose, int):
            kept = thinned(steps, seed) if choose != 0 else list(range(1, len(steps) + 1))
            count.alike = len(steps) - len(kept)
            kept = [number for number in kept if self._at in str(steps[number - 1])]
            planned = plan(steps, kept, with_signals=self._with_signals)
            if choose:
                planned = random.Random(f"{seed} {case.name}").sample(
                    planned, min(choose, len(planned))
                )
        else:
            planned = list(choose)
        number, shares = self._share
        for fault in planned[number - 1 :: shares]:
            world.reset(prepared)
            case.begin(world, self)
            self._run_fault(case, world, expected, fault, count)
        world.drop()
        count.seconds = round(time.monotonic() - started, 1)
        return count

    def prepare(self, case: Case, vault: Path | None = None) -> tuple[World, Path]:
        """Make what a case begins with, and keep it; return its world and what was kept."""
        server = self.started() if case.on_server else None
        world = World(self._directory / "w", server, owner=self._owner, vault=vault)
        prepared = self._directory / "prepared"
        shutil.rmtree(prepared, ignore_errors=True)
        world.make()
        (self._directory / "root").mkdir(mode=0o700, exist_ok=True)
        self._within = case.within
        case.prepare(world, self)
        world.keep_as(prepared)
        return world, prepared

    def _undisturbed(
        self, case: Case, world: World, prepared: Path, count: Count
    ) -> tuple[laws.Expected, list[Step]]:
        """Run it twice without a fault, to learn its results and what varies."""
        states, homes = [], []
        names: set[str] = set()
        world.reset(prepared)
        at_first = world.state()
        names |= world.names() if case.may_go_back else set()
        case.begin(world, self)
        before, home_before = world.state(), laws.home_of(world)
        snapshots = {
            path.name: laws.hash_of(path)
            for path in world.snapshots.rglob("*.tar.zst*")
            if path.suffix != ".json"
        }
        names_before = frozenset(world.names())
        with rights_of(world):
            newest = [item.path.name for item in catalog.list_snapshots(world.snapshots)][-1:]
        probe = case.probe(world, self)
        for turn in range(2):
            if turn and case.by_the_second:
                time.sleep(1.0 - time.time() % 1.0)
            world.reset(prepared)
            case.begin(world, self)
            ended = self.run(case.words(world), world, variables=case.variables(world))
            steps = self._runner.steps()
            if ended.code != case.code:
                count.violations.append(f"{case.name}: undisturbed, exit {ended.code}: {ended.err}")
            count.violations += [
                f"{case.name}: undisturbed: {text}" for text in laws.check_owners(case, world)
            ]
            states.append(world.state())
            homes.append(laws.home_of(world))
            names |= world.names()
            if case.probe(world, self) != probe:
                count.violations.append(
                    f"{case.name}: undisturbed, the probe answers another thing"
                )
        expected = laws.Expected(
            prepared=at_first,
            before=before,
            after=states[-1],
            mask=Mask.between(*states),
            home_before=laws.in_home(home_before),
            home_after=laws.in_home(homes[-1]),
            snapshots=snapshots,
            newest=next(iter(newest), ""),
            probe=probe,
            names=frozenset(names),
            names_before=names_before,
            siblings=frozenset(case.siblings),
        )
        return expected, steps

    def _run_fault(
        self, case: Case, world: World, expected: laws.Expected, fault: Fault, count: Count
    ) -> None:
        ended = self.run(case.words(world), world, fault, case.variables(world))
        count.faults += 1
        if fault.mode in faults.KILLS and ended.code is not None and ended.struck is not None:
            count.violations.append(f"{case.name}: {fault}: was not killed")
        count.struck += ended.struck is not None
        count.kills += fault.mode in faults.KILLS
        try:
            broken = [
                *laws.check_ending(case, ended, fault),
                *self._aftermath(case, world, expected, fault, ended),
            ]
        except (OSError, sqlite3.Error) as error:
            broken = [f"cannot be looked at: {error!r}"]
        where = ended.struck or "no step"
        count.violations += [f"{case.name}: {fault} ({where}): {text}" for text in broken]

    def _aftermath(
        self, case: Case, world: World, expected: laws.Expected, fault: Fault, ended: Ended
    ) -> Iterator[str]:
        """Check what the fault left, then run the next commands on it."""
        yield from laws.check_owners(case, world)
        found = world.state()
        yield from laws.check_removed(world, expected, ended)
        if laws.is_unsettled(world):
            is_between = not laws.is_old(expected, found) and not laws.is_new(expected, found)
            is_lone = fault.mode in (Mode.FAIL, Mode.INTERRUPT) and not case.has_failure
            # Done but for a record, which a warning states with the command that writes it.
            is_reported = ended.code == case.code and "sagewai-ops recover" in ended.err
            if is_lone and ended.code is not None and is_between and not is_reported:
                yield "a failure left it between old and new"
            if case.recover:
                again = self.run(case.recover, world, variables=case.variables(world))
                if again.code != 0:
                    yield f"recovery: exit {again.code}: {again.err}"
                found = world.state()
                yield from laws.check_state(case, world, expected, found)
        else:
            yield from laws.check_state(case, world, expected, found)
            if ended.code == case.code:
                if not laws.is_good(case, expected, found):
                    yield f"exit {ended.code}, and not all was done"
                yield from laws.check_siblings(expected, found, ended)
        if case.streams and ended.code == case.code:
            yield from laws.check_whole(self._runner.out)
        if (answer := case.probe(world, self)) != expected.probe:
            yield f"the probe answers {answer}, not {expected.probe}"
        yield from laws.check_kept(world, expected)
        yield from laws.check_private(world, expected)
        yield from laws.check_snapshots(case, world, expected, runs=1)
        # What the next run meets decides what it does, so the same is not run over again.
        met = hash((frozenset(found.items()), world.prints()))
        if met not in self._met:
            self._met.add(met)
            # Where old and new look alike, nothing is known to be done.
            is_done = laws.is_new(expected, found) and not laws.is_old(expected, found)
            yield from self._again(case, world, expected, is_done=is_done)

    def _again(
        self, case: Case, world: World, expected: laws.Expected, *, is_done: bool
    ) -> Iterator[str]:
        """Yield the command once more: it succeeds, and nothing is left over."""
        if is_done and case.codes_done is None:
            words: Words = case.recover or ("status",)
            codes: tuple[int, ...] = (0,)
        else:
            words = (case.again or case.words)(world)
            codes = (case.code, *(case.codes_done or ())) if is_done else (case.code,)
        ended = self.run(words, world, variables=case.variables(world))
        if ended.code not in codes:
            yield f"the next run: exit {ended.code}: {ended.err.strip()[:300]}"
            return
        if case.streams:
            yield from laws.check_whole(self._runner.out)
        if not laws.is_good(case, expected, found := world.state()):
            differing = expected.mask.unsettled(found, expected.after)
            yield f"the next run: not as asked: {', '.join(differing[:4])}"
        if ended.code == case.code:
            yield from laws.check_siblings(expected, found, ended)
        yield from laws.check_names(case, world, expected)
        yield from laws.check_owners(case, world)
        if (answer := case.probe(world, self)) != expected.probe:
            yield f"the next run: the probe answers {answer}, not {expected.probe}"
        yield from laws.check_kept(world, expected)
        yield from laws.check_snapshots(case, world, expected, runs=2)

    def _planted(self) -> contextlib.AbstractContextManager[object]:
        """Break `atomic` on purpose where that is asked for, to see that it is noticed."""
        if not self._is_planted:
            return contextlib.nullcontext()

        @contextlib.contextmanager
        def in_place(path: Path, *, mode: int, **_options: object) -> Iterator[object]:
            with path.open("wb") as stream:
                path.chmod(mode)
                yield stream

        return mock.patch.object(atomic, "write_stream", in_place)

    def started(self) -> Server:
        """Return the server, started when it is first asked for."""
        if self._server is None:
            self._server = Server(installations()[0])
            self._stack.callback(self._server.stop)
            self._server.start()
        return self._server


def _settled(world: World) -> None:
    """Wait until the server has noticed that the client is gone."""
    assert world.server is not None
    deadline = time.monotonic() + _SETTLE_SECONDS
    while time.monotonic() < deadline and world.server.rows(
        "postgres", "SELECT pid FROM pg_stat_activity WHERE datname = $1", world.database
    ):
        time.sleep(0.01)


def import_everything() -> None:
    """Import what commands import late: a child that finds it there is twice as fast."""
    for name in ("alembic.command", "asyncpg", "cryptography.fernet", "pyrage", "zstandard"):
        importlib.import_module(name)
    for module in pkgutil.walk_packages(sagewai_ops.__path__, "sagewai_ops."):
        if not module.name.startswith(("sagewai_ops.__main__", "sagewai_ops.migrations")):
            importlib.import_module(module.name)
    # Typer, too, imports when it first parses.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        main.run(["--home", "/nonexistent", "status"])
