"""Run the program on every archive that chance or malice could make of a sound one.

    python tests/proof/hostile.py --every                     as `make proof`
    python tests/proof/hostile.py --sample 40 --seed 7        40 of each family
    python tests/proof/hostile.py --every --only spliced      one family

Each is restored by the program, and what may be true is also verified and shown. Prints a line for
each family; exits 1 if a law was broken: exit 16 or 18 with an error and a hint (what may be true
may also be taken), no traceback, nothing written or left outside of the place that was asked for,
at most 150 MB of memory. Most are tried in this process, for speed; those of which the memory is
of interest each in one of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

_HERE = Path(__file__).resolve().parent
for _directory in (_HERE.parent, _HERE.parent.parent / "fixtures"):
    if str(_directory) not in sys.path:
        sys.path.insert(0, str(_directory))

import program  # noqa: E402 - the path first
from memory_directory import in_memory  # noqa: E402
from program import Answer, call  # noqa: E402 - the path first
from proof import mutants  # noqa: E402
from proof.mutants import Mutant  # noqa: E402

MOST_BYTES = 150 * 1024 * 1024
_DAMAGED, _AHEAD = 16, 18
# What a command may answer to an archive that may be valid; 1 and 2 are never right.
_TAKEN = (0, 3, 4, 10, 12, 13, _DAMAGED, 17, _AHEAD)
_ERROR = re.compile(
    r"sagewai-ops: error: \S.*\nsagewai-ops: hint: \S.*\n(sagewai-ops: hint: .*\n)*"
)
_MEASURED = ("texts", "spliced", "bombs")  # each of these, of the others a few
_MEASURED_OF = 100
_OUTSIDE = "outside links"  # edited archives of a home with a link out of it
_SHOWN = 20


@dataclass(slots=True)
class Family:
    """What was done with one family of mutants.

    Attributes:
        taken: How many were accepted: their content may be true.
    """

    name: str
    mutants: int = 0
    refused: int = 0
    taken: int = 0
    violations: list[str] = field(default_factory=list)


def main() -> int:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    amount = parser.add_mutually_exclusive_group(required=True)
    amount.add_argument("--every", action="store_true", help="every mutant there is")
    amount.add_argument("--sample", type=int, metavar="N", help="about N of each family")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="families whose names begin so")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    begun = time.monotonic()
    runner = Runner()
    with tempfile.TemporaryDirectory(prefix="ops-hostile-", dir=in_memory()) as directory:
        families = break_in(
            Path(directory),
            10**9 if chosen.every else chosen.sample,
            chosen.seed,
            chosen.only,
            runner,
        )
    peak_bytes = runner.peak_bytes
    if chosen.json:
        print(json.dumps({"families": [*map(asdict, families)], "peak_bytes": peak_bytes}))
    else:
        _show(families, peak_bytes, time.monotonic() - begun, chosen.seed)
    return int(any(family.violations for family in families))


def break_in(
    directory: Path, most: int, seed: int, only: str | tuple[str, ...], runner: Runner
) -> list[Family]:
    """Try about `most` mutants of each family whose name begins with `only`, or with one of it."""
    place = _Place(directory, runner)
    place.prepare()
    families = []
    for name, made in _families(place, most, seed):
        if name.startswith(only):
            family = Family(name)
            for mutant in made:
                place.evaluate(mutant, family)
            families.append(family)
    return families


def _families(place: _Place, most: int, seed: int) -> Iterator[tuple[str, Iterable[Mutant]]]:
    whole, other = (mutants.dissect(path.read_bytes()) for path in place.sound)
    stride = max(len(whole.content) // most, 1)
    yield "flipped", mutants.flipped(whole.content, stride, seed)
    yield "truncated", mutants.truncated(whole.content, stride, seed)
    sealed = place.sealed.read_bytes()
    stride = max(len(sealed) // most, 1)
    yield "encrypted, flipped", mutants.flipped(sealed, stride, seed)
    yield "encrypted, truncated", mutants.truncated(sealed, stride, seed)
    yield "rearranged", mutants.rearranged(whole, most, seed)
    yield "spliced", mutants.spliced(whole, other)
    yield "bombs", mutants.some(list(mutants.bombs(whole)), most, seed)
    yield "seek table", list(mutants.tabled(whole))[:: max(700 // most, 1)]
    yield "edited", mutants.edited(whole, most, seed)
    yield _OUTSIDE, mutants.edited(other, most, seed)
    yield "texts", mutants.some(list(mutants.spoiled_texts(whole)), most, seed)


class _Place:
    """Where the archives are tried; everything in it is looked at after each."""

    def __init__(self, directory: Path, runner: Runner) -> None:
        self._directory = directory
        self._runner = runner
        self._target = directory / "asked" / "home"
        self._identity = directory / "identity"
        self._before: dict[str, tuple[int, int, int]] = {}

    @property
    def sound(self) -> tuple[Path, Path]:
        """Two sound archives, of different homes."""
        return self._directory / "one.tar.zst", self._directory / "two.tar.zst"

    @property
    def sealed(self) -> Path:
        """A sound encrypted archive."""
        return self._directory / "sealed.tar.zst.age"

    def prepare(self) -> None:
        """Make two homes and three archives."""
        from pyrage import x25519

        identity = x25519.Identity.generate()
        self._identity.write_text(f"{identity}\n")
        self._identity.chmod(0o600)
        for number, path in enumerate(self.sound):
            home = self._directory / f"home{number}"
            _must(call("--home", home, "init"))
            (home / "data").mkdir(exist_ok=True)
            (home / "data" / "note.txt").write_text(f"a note of home {number}\n")
            (home / "data" / "link").symlink_to("note.txt")
            if number:
                (home / "data" / "outside").symlink_to(self._directory / "elsewhere")
            _take(call("--home", home, "--json", "backup", "--to", self._directory / "taken"), path)
        recipient = identity.to_public()
        _take(call("--home", home, "--json", "backup", "--recipient", recipient), self.sealed)
        for name in ("home0", "home1", "home1.snapshots", "taken"):
            shutil.rmtree(self._directory / name, ignore_errors=True)
        self._target.parent.mkdir()
        (self._directory / "elsewhere").mkdir()
        for name in ("mutant.tar.zst", "mutant.tar.zst.age"):
            (self._directory / name).touch(mode=0o600)
        self._before = self._seen()

    def evaluate(self, mutant: Mutant, family: Family) -> None:
        """Try one mutant; what it breaks goes into the family."""
        is_sealed = family.name.startswith("encrypted")
        path = self._directory / ("mutant.tar.zst.age" if is_sealed else "mutant.tar.zst")
        path.write_bytes(mutant.content)
        family.mutants += 1
        opened = ("--identity", self._identity) if is_sealed else ()
        # A changed header of age may name an unknown recipient.
        allowed = (_DAMAGED, _AHEAD, *((12,) if is_sealed else ()))
        if mutant.is_consistent:
            allowed = _TAKEN
        words = ("restore", path, "--to", self._target, "--without-key", *opened)
        problems = []
        if family.name in _MEASURED or family.mutants % _MEASURED_OF == 1:
            answer, peak_bytes = self._runner.run(*words)
            if peak_bytes > MOST_BYTES:
                problems.append(f"{peak_bytes / 1e6:.0f} MB of memory")
        else:
            answer = _call(*words)
        problems += _problems(answer, allowed)
        is_taken = self._target.exists()
        if is_taken and answer.code not in (0, 3):
            problems.append(f"exit {answer.code}, but the target is there")
        if is_taken:
            problems += _loose(self._target, links_out=family.name == _OUTSIDE)
            shutil.rmtree(self._target)
        problems += self._strayed()
        if mutant.is_consistent:
            for words in (("snapshots", "verify"), ("snapshots", "show")):
                output = _problems(_call(*words, path, *opened), _TAKEN)
                problems += [f"{words[1]}: {problem}" for problem in output]
        family.taken += is_taken
        family.refused += not is_taken
        family.violations += [f"{mutant.name}: {problem}" for problem in problems]

    def _strayed(self) -> Iterator[str]:
        now = self._seen()
        for path in now.keys() ^ self._before.keys():
            yield f"{path}: is left or gone"
            stray = self._directory / path
            if stray.is_dir():
                shutil.rmtree(stray)
            else:
                stray.unlink(missing_ok=True)
        for path in now.keys() & self._before.keys():
            if now[path] != self._before[path]:
                yield f"{path}: changed"

    def _seen(self) -> dict[str, tuple[int, int, int]]:
        seen = {}
        for directory, directories, files in os.walk(self._directory):
            for name in (*directories, *files):
                status = os.lstat(os.path.join(directory, name))
                relative = os.path.relpath(os.path.join(directory, name), self._directory)
                is_mutant = name.startswith("mutant.") or relative == "asked"
                size = 0 if is_mutant else status.st_size
                moment = 0 if is_mutant else status.st_mtime_ns
                seen[relative] = (status.st_mode, size, moment)
        return seen


def _problems(answer: Answer, allowed: tuple[int, ...]) -> Iterator[str]:
    if answer.code not in allowed:
        yield f"exit {answer.code}: {answer.err.strip()[:300]!r}"
    elif answer.code in (_DAMAGED, _AHEAD) and not _ERROR.fullmatch(answer.err):
        yield f"not an error and a hint: {answer.err[:300]!r}"
    if "Traceback" in answer.err + answer.out:
        yield "a traceback"


def _loose(target: Path, *, links_out: bool) -> Iterator[str]:
    """Yield what of a restored home runs as its owner, and the links that lead out.

    Args:
        links_out: Whether the archive has format 2, so that links below `data/` may lead out.
    """
    root = os.path.realpath(target)
    for directory, directories, files in os.walk(target):
        for name in (*directories, *files):
            path = os.path.join(directory, name)
            mode = os.lstat(path).st_mode
            if os.path.islink(path):
                if links_out and os.path.relpath(path, target).startswith("data/"):
                    continue
                leads = os.path.realpath(path)
                if leads != root and not leads.startswith(root + os.sep):
                    yield f"{path} leads to {leads}"
            elif mode & 0o6000:
                yield f"{path} has mode {mode:o}"


# Linux counts what a parent had at the fork among a child's memory, and the parent makes archives,
# or runs the suite, is large. So a small process in between reports what its child took.
_BETWEEN = """
import os, resource, sys
child = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ)
_, status = os.waitpid(child, 0)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
os.write(int(sys.argv[1]), str(peak).encode())
os._exit(os.waitstatus_to_exitcode(status) & 255)
"""


class Runner:
    """Runs the program in processes of its own and reports what memory each took."""

    def __init__(self) -> None:
        self.peak_bytes = 0

    def run(self, *words: object) -> tuple[Answer, int]:
        """Run it; return its answer and its peak memory in bytes."""
        output, teller = os.pipe()
        between = [sys.executable, "-I", "-S", "-c", _BETWEEN, str(teller)]
        try:
            done = subprocess.run(
                [*between, *program.COMMAND, *map(str, words)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                pass_fds=(teller,),
                check=False,
            )
        finally:
            os.close(teller)
            with open(output, "rb") as stream:
                peak_bytes = int(stream.read() or 0) * 1024
        self.peak_bytes = max(self.peak_bytes, peak_bytes)
        return Answer(done.returncode, done.stdout.decode(), done.stderr.decode()), peak_bytes


def _call(*words: object) -> Answer:
    try:
        return call(*words)
    except Exception:  # noqa: BLE001 - whatever it is, it is a finding
        return Answer(-1, "", traceback.format_exc()[-400:])


def _must(answer: Answer) -> Answer:
    if answer.code:
        raise RuntimeError(f"exit {answer.code}: {answer.err}")
    return answer


def _take(answer: Answer, path: Path) -> None:
    shutil.move(_must(answer).result["archive"], path)


def _show(families: list[Family], peak_bytes: int, seconds: float, seed: int) -> None:
    for family in families:
        counted = (
            f"{family.mutants:7,} mutants, {family.refused:7,} refused, {family.taken:6,} taken"
        )
        print(f"{family.name:22} {counted}, {len(family.violations):4} violations")
    total = sum(family.mutants for family in families)
    print(f"{total:,} archives in {seconds:.0f} s, peak {peak_bytes / 1e6:.0f} MB, seed {seed}")
    for family in families:
        for violation in family.violations[:_SHOWN]:
            print(f"VIOLATION {family.name}: {violation}")


if __name__ == "__main__":
    sys.exit(main())
