"""A random life of a home, with kills and refusals in between, checked against a model of it.

    python tests/proof/soak.py --seconds 120            a new seed, which it prints
    python tests/proof/soak.py --seconds 120 --seed 42  that life again

Actions follow one another by the seed alone; the time only ends them. After each, the home
must equal the model, and every listed snapshot whole; at the end nothing may be left over.
Exits 1, and names seed and action, where that does not hold.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

_HERE = Path(__file__).resolve().parent
for _directory in (_HERE.parent, _HERE.parent.parent / "fixtures"):
    if str(_directory) not in sys.path:
        sys.path.insert(0, str(_directory))

import pyrage  # noqa: E402 - the path first

import old_homes  # noqa: E402
from home_builder import build_home  # noqa: E402
from memory_directory import in_memory  # noqa: E402
from postgres_server import installations  # noqa: E402
from proof import faults, laws  # noqa: E402
from proof.beginnings import IDENTITY, Words, opened, server_url  # noqa: E402
from proof.bench import Proof, import_everything  # noqa: E402
from proof.cases import RECOVER  # noqa: E402
from proof.faults import Ended, Fault, Mode  # noqa: E402
from proof.worlds import State, World, state_of  # noqa: E402
from sagewai_ops.errors import UsageError  # noqa: E402
from sagewai_ops.home.server_record import PLACE  # noqa: E402
from sagewai_ops.snapshots import catalog  # noqa: E402
from sagewai_ops.swap import pending, swap  # noqa: E402

_STRUCK = 0.4  # share of the commands that something goes wrong in
_MODES = (Mode.KILL_BEFORE, Mode.KILL_AFTER, Mode.TEAR, Mode.FAIL, Mode.FAIL_ON)
_CODES = (errno.ENOSPC, errno.EIO, errno.EROFS)
_REFUSED = frozenset({12, 16, 18})  # a damaged snapshot
_INTERRUPTED = 11
_KEPT_MOST = 4  # of what restores put aside; a person removes the rest
_RECIPIENT = str(pyrage.x25519.Identity.from_str(IDENTITY).to_public())


class BrokenError(Exception):
    """A promise was broken."""


@dataclass(frozen=True, slots=True)
class Known:
    """A state of a home: what it holds, and its key."""

    content: State
    key: bytes


class Soak:
    """One life."""

    def __init__(self, bench: Proof, world: World, seed: int) -> None:
        self._bench = bench
        self._world = world
        self._draw = random.Random(seed)
        self._steps: dict[str, int] = {}
        self._snapshots: dict[str, Known] = {}
        self._turn = 0
        self.counts: Counter[str] = Counter()
        world.make()
        (world.out / "identity").write_text(IDENTITY + "\n")
        build_home(
            world.home,
            seed=seed % 1000 + 1,
            rows=1,
            vectors=0,
            artifacts=False,
            leftovers=False,
            journal="tail",
        )
        self._home = self._read()

    def live(self, most_seconds: float, most_actions: int) -> None:
        """Do one action after another.

        Raises:
            BrokenError: A law is broken.
        """
        actions: list[tuple[int, Callable[[], None]]] = [
            (6, self._write),
            (5, self._backup),
            (4, self._restore),
            (2, self._undo),
            (2, self._prune),
            (2, self._damage),
            (2, self._rotate),
            (2, self._upgrade),
            (1, self._init),
            (1, self._permissions),
            (1, self._age),
        ]
        if self._world.server:
            actions.append((1, self._export))
        weights, functions = zip(*actions, strict=True)
        ends = time.monotonic() + most_seconds
        while time.monotonic() < ends and self._turn < most_actions:
            self._turn += 1
            (action,) = self._draw.choices(functions, weights)
            name = action.__name__.strip("_")
            self.counts[name] += 1
            try:
                action()
                self._check_snapshots()
            except (BrokenError, AssertionError, ValueError, sqlite3.Error, OSError) as error:
                raise BrokenError(f"action {self._turn}, {name}: {error}") from error
        self._end()

    def _write(self) -> None:
        """Be Sagewai, or its user."""
        home, number = self._world.home, self._draw.randrange(10**6)
        (home / f"data/note-{number % 7}").write_bytes(self._draw.randbytes(number % 5000))
        with contextlib.closing(sqlite3.connect(home / "db/sagewai.db")) as connection:
            connection.execute(
                "INSERT OR REPLACE INTO agent_runs (run_id, agent_name) VALUES (?, 'soak')",
                (f"r{number % 50}",),
            )
            connection.execute("DELETE FROM agent_runs WHERE run_id = ?", (f"r{number % 13}",))
            connection.commit()
        self._home = self._read()

    def _backup(self) -> None:
        kind: Words = self._draw.choice(
            (
                ("--unencrypted",),
                ("--unencrypted", "--compact"),
                ("--key", "sealed", "--recipient", _RECIPIENT),
            )
        )
        # An older or restored database may have less than the newest good snapshot.
        self._command(("backup", *kind), self._home, codes=(0, 3))

    def _restore(self) -> None:
        if not self._snapshots:
            return
        name = self._draw.choice(list(self._snapshots))
        aim = self._snapshots[name]
        place = self._world.out / "key"
        place.write_bytes(aim.key)
        place.chmod(0o600)
        words: Words = ("restore", self._world.snapshots / name, "--replace", "--key-file", place)
        self._command((*words, *self._opening(name)), self._home, aim)

    def _undo(self) -> None:
        kept = swap.kept_before(self._world.home)
        if kept:
            self._command(("restore", "--undo"), self._home, _known(kept[-1]))

    def _prune(self) -> None:
        before, good = self._listed(), self._newest_good()
        self._command(("snapshots", "prune", "--keep-last", self._draw.randint(1, 3)), self._home)
        left = self._listed()
        if before[-1:] != left[-1:]:
            raise BrokenError(f"the newest snapshot went: {before}, {left}")
        if good != self._newest_good():
            raise BrokenError(f"the newest good snapshot went: {good}, {left}")
        self._snapshots = {name: self._snapshots[name] for name in left}

    def _newest_good(self) -> list[str]:
        known = catalog.list_snapshots(self._world.snapshots)
        return [item.path.name for item in known if item.is_good][-1:]

    def _damage(self) -> None:
        """Flip a bit of a snapshot, or cut it: nothing takes it any more."""
        if not self._snapshots:
            return
        path = self._world.snapshots / self._draw.choice(list(self._snapshots))
        whole = path.read_bytes()
        content = bytearray(whole)
        content[self._draw.randrange(len(content))] ^= 1 << self._draw.randrange(8)
        path.write_bytes(content if self._draw.random() < 0.7 else whole[: -len(whole) // 3])
        opening = self._opening(path.name)
        for words in (
            ("snapshots", "verify", path, *opening),
            ("restore", path, "--replace", *opening),
        ):
            ended = self._bench.run(words, self._world)
            if ended.code not in _REFUSED:
                raise BrokenError(f"{words[0]} of a damaged snapshot: exit {ended.code}")
        self._require(self._home)
        path.write_bytes(whole)

    def _rotate(self) -> None:
        before, old = opened(self._world, self._bench), self._home
        self._command(("keys", "rotate", "--recipient", _RECIPIENT), old, is_new_key=True)
        if self._home.key != old.key and before.lost:
            # A key file that others may read is one that Sagewai replaces; the new one is not.
            before = replace(before, code=4 if before.plaintext else 0, lost=0)
        if (after := opened(self._world, self._bench)) != before:
            raise BrokenError(f"what opens: {after}, not {before}")

    def _upgrade(self) -> None:
        words, codes = ("db", "upgrade"), self._codes_of_automatic_snapshots()
        self._command(words, self._home, is_new_schema=True, codes=codes)
        if self._draw.random() < 0.5:
            self._command(words, self._home, is_new_schema=True, is_sound=True, codes=codes)
            self._command(words, self._home, is_sound=True, codes=codes)

    def _codes_of_automatic_snapshots(self) -> tuple[int, ...]:
        """Return what a command that creates a snapshot on its own may answer.

        After the restore of an older key, or a failure to write the metadata file, the home's key
        does not show that the recipients of the newest snapshot are its own: they are then not
        used, and no plain one is written.
        """
        newest = catalog.list_snapshots(self._world.snapshots)[-1:]
        is_closed = newest and newest[0].is_encrypted
        is_own_key = newest and self._snapshots[newest[0].path.name].key == self._home.key
        if is_closed and not (is_own_key and newest[0].is_card_own):
            return (0, UsageError.exit_code)
        return (0,)

    def _init(self) -> None:
        self._command(("init",), self._home)

    def _permissions(self) -> None:
        for path in self._world.home.rglob("*"):
            if not path.is_symlink() and self._draw.random() < 0.3:
                path.chmod(0o777 if path.is_dir() else 0o666)
        self._command(("verify-perms", "--fix"), self._home)

    def _age(self) -> None:
        """Return the home a database from an older version."""
        directory = self._world.home / "db"
        for path in directory.glob("sagewai.db*"):
            path.unlink()
        old_homes.build(directory / "sagewai.db", "018_fleet_schema_correction")
        (directory / "sagewai.db").chmod(0o600)
        self._home = self._read()

    def _export(self, *, is_sound: bool = False) -> None:
        world = self._world
        assert world.server is not None
        world.server.drop(world.database)
        world.server.run("postgres", f'CREATE DATABASE "{world.database}" TEMPLATE template0')
        before = world.state()
        words = ("export-to-postgres", world.url)
        ended = self._command(words, self._home, codes=(0, 4, 17), is_sound=is_sound)
        rows = {name for name in world.state() if name.startswith("server:")}
        if ended.code != 0 and rows - set(before):
            tables = world.server.rows(world.database, "SELECT count(*) FROM pg_stat_user_tables")
            if ended.code is not None and tables != [(0,)]:
                raise BrokenError(f"a failed export left tables: {sorted(rows)[:4]}")
        record = world.home / PLACE
        if record.exists() != bool(rows - set(before)):
            raise BrokenError("the home does not know whether it was exported")
        record.unlink(missing_ok=True)  # the history goes on with SQLite

    def _command(
        self,
        words: Words,
        old: Known,
        new: Known | None = None,
        *,
        is_new_key: bool = False,
        is_new_schema: bool = False,
        is_sound: bool = False,
        codes: tuple[int, ...] = (0,),
    ) -> Ended:
        """Run a command, with a fault or none; see that the home is old or new.

        Args:
            new: What the home is afterwards; as before if None.
            is_new_key, is_new_schema: Or something that only the run knows.
            is_sound: Nothing goes wrong in it.
            codes: What it may answer where nothing goes wrong.
        """
        name = " ".join(str(word) for word in words[:2])
        fault = None
        if name in self._steps and not is_sound and self._draw.random() < _STRUCK:
            mode = self._draw.choice(_MODES)
            code = self._draw.choice(_CODES) if mode in (Mode.FAIL, Mode.FAIL_ON) else 0
            fault = Fault(mode, self._draw.randint(1, self._steps[name]), code)
        listed = set(self._listed())
        ended = self._bench.run(words, self._world, fault)
        self.counts["commands"] += 1
        self.counts["faults"] += ended.struck is not None
        where = f"{name}, {fault}: " if fault else f"{name}: "
        if ended.problem or "Traceback" in ended.err:
            raise BrokenError(where + (ended.problem or ended.err[-600:]))
        if fault is None:
            self._steps[name] = max(ended.taken, 1)
            if ended.code not in codes:
                raise BrokenError(f"{where}exit {ended.code}: {ended.err}")
        self._settle()
        found = self._read()
        is_old, is_new = _same(found, old), new is not None and _same(found, new)
        if is_new_key and found.key != old.key:
            is_new = set(found.content) == set(old.content)
        if is_new_schema:
            is_new = _but_database(found) == _but_database(old)
        if not is_old and not is_new:
            raise BrokenError(where + f"neither old nor new: {_differing(found, new or old)}")
        if ended.code == 0 and not (is_new if new or is_new_key or is_new_schema else is_old):
            raise BrokenError(where + "exit 0, and not done")
        self._home = found
        for each in set(self._listed()) - listed:
            self._snapshots[each] = old
        return ended

    def _settle(self) -> None:
        """Where a run was interrupted in between, others refuse until it is recovered."""
        world = self._world
        if found := pending.pending_operations(world.home):
            self.counts["recoveries"] += 1
            refused = self._bench.run(("backup",), world)
            if refused.code != _INTERRUPTED:
                raise BrokenError(f"a backup of what is in between: exit {refused.code}")
            words = RECOVER
            is_export = any(item.operation == pending.EXPORT.name for item in found)
            variables = server_url(world) if is_export else {}
            ended = self._bench.run(words, world, variables=variables)
            if ended.code != 0:
                raise BrokenError(f"{words}: exit {ended.code}: {ended.err}")

    def _check_snapshots(self) -> None:
        """See that each listed snapshot is whole, and a person's tidying."""
        for name in self._listed():
            laws.verify(self._world.snapshots / name)
        if lost := set(self._snapshots) - set(self._listed()):
            raise BrokenError(f"snapshots were lost: {lost}")
        for path in swap.kept_before(self._world.home)[:-_KEPT_MOST]:
            shutil.rmtree(path)

    def _end(self) -> None:
        """Run everything without faults: nothing is left, and all can still be restored."""
        for words in (
            ("init",),
            RECOVER,
            ("db", "upgrade"),
            ("snapshots", "prune", "--keep-last", "9"),
            ("backup", "--unencrypted", "--accept-change"),
        ):
            ended = self._bench.run(words, self._world)
            if ended.code != 0:
                raise BrokenError(f"at the end, {words[0]}: exit {ended.code}: {ended.err}")
        self._home = self._read()
        if self._world.server:
            self._export(is_sound=True)  # what exports leave is theirs to remove
        left = [
            name
            for name in self._world.names()
            if name.startswith("tmp/")
            or (os.path.basename(name).startswith(".") and ".trash" not in name)
        ]
        lasting = ("permissions-", ".sagewai-ops-snapshots.json", ".local", ".removed-")
        own = [name for name in left if not any(part in name for part in lasting)]
        if own:
            raise BrokenError(f"at the end, left over: {own[:5]}")

    def _opening(self, name: str) -> Words:
        return ("--identity", self._world.out / "identity") if name.endswith(".age") else ()

    def _listed(self) -> list[str]:
        return [item.path.name for item in catalog.list_snapshots(self._world.snapshots)]

    def _read(self) -> Known:
        return _known(self._world.home)

    def _require(self, expected: Known) -> None:
        if not _same(found := self._read(), expected):
            raise BrokenError(f"the home changed: {_differing(found, expected)}")


def _known(home: Path) -> Known:
    """Read what a model keeps of a home: contents, not modes, which the rules decide."""
    content = {
        name: value[-1] if isinstance(value, tuple) else value
        for name, value in laws.in_home(state_of(home)).items()
        if not name.endswith((".lock", "master.key", PLACE))
        and not (isinstance(value, tuple) and value[0] in ("folder", "database"))
    }
    key = home / "secrets/master.key"
    return Known(content, key.read_bytes() if key.exists() else b"")


def _same(found: Known, expected: Known) -> bool:
    return found == expected


def _but_database(known: Known) -> Known:
    content = {name: each for name, each in known.content.items() if not name.startswith("db/")}
    return replace(known, content=content)


def _differing(found: Known, expected: Known) -> list[str]:
    names = {*found.content, *expected.content}
    return sorted(name for name in names if found.content.get(name) != expected.content.get(name))[
        :5
    ]


def main() -> int:
    """Run one life and return how it was."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--actions", type=int, default=10**9)
    parser.add_argument("--seed", type=int)
    options = parser.parse_args()
    if not faults.is_possible():
        print("no step can be numbered here: it needs Linux and a C compiler")
        return 0
    if "LD_PROOF_CONTROL" in os.environ:
        return _live(options)
    with tempfile.TemporaryDirectory(prefix="sagewai-ops-soak-", dir=in_memory()) as name:
        directory = Path(name)
        seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
        variables = faults.environment(faults.build(directory), directory / "control")
        words = ["--seconds", options.seconds, "--actions", options.actions, "--seed", seed]
        return subprocess.run(
            [sys.executable, __file__, *map(str, words)],
            env={**os.environ, **variables, "SAGEWAI_PROOF_DIRECTORY": name},
            check=False,
        ).returncode


def _live(options: argparse.Namespace) -> int:
    import_everything()
    directory = Path(os.environ["SAGEWAI_PROOF_DIRECTORY"])
    started = time.monotonic()
    print(f"seed: {options.seed}", flush=True)
    with ExitStack() as stack:
        bench = Proof(directory, stack)
        server = bench.started() if installations() else None
        soak = Soak(bench, World(directory / "w", server), options.seed)
        try:
            soak.live(options.seconds, options.actions)
        except BrokenError as error:
            print(f"broken: seed {options.seed}, {error}")
            return 1
    counts = ", ".join(f"{name} {count}" for name, count in sorted(soak.counts.items()))
    print(f"held: {counts}; {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
