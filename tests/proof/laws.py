"""What must hold after a run was killed or failed: the promises of design section 1.

Each function returns the sentences that are broken; none if all hold.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from proof.beginnings import IDENTITY
from proof.cases import Case
from proof.faults import Ended, Fault, Mode
from proof.worlds import Mask, State, World, rights_of, state_of
from sagewai_ops.archive.age import Decryption
from sagewai_ops.archive.open import open_archive
from sagewai_ops.errors import OpsError
from sagewai_ops.snapshots import catalog
from sagewai_ops.swap import pending

# docs/exit-codes.md; 1 is a failure of the system with its own message, such as EIO.
_REFUSALS = frozenset({1, 2, 3, 4, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20})
_TERMINATED = 143
_LINES = re.compile(r"sagewai-ops: (error|hint|warning): \S.*")


@dataclass(frozen=True, slots=True)
class Expected:
    """The results of undisturbed runs of a case.

    Attributes:
        prepared: What there was before `begin`.
        newest: The name of the latest of them.
        snapshots: Name -> hash of the archives that are there before.
        names: Every name that may be there at the end.
        names_before: Every name that is there before.
        siblings: Files that are each old or new on their own.
    """

    prepared: State
    before: State
    after: State
    mask: Mask
    home_before: State
    home_after: State
    snapshots: dict[str, str]
    newest: str
    probe: object
    names: frozenset[str]
    names_before: frozenset[str]
    siblings: frozenset[str] = frozenset()

    def differing(self, found: State, aim: State) -> list[str]:
        """Return what differs from the state before or after; of other files, what is neither."""
        names = self.mask.unsettled(found, aim)
        if not self.siblings:
            return names
        other = self.before if aim is self.after else self.after
        neither = set(self.mask.unsettled(found, other))
        return [name for name in names if name not in self.siblings or name in neither]


def check_ending(case: Case, ended: Ended, fault: Fault | None) -> Iterator[str]:
    """See that a run ended as its fault asks: killed, done, or with an error in two lines."""
    if ended.problem:
        yield ended.problem
    is_kill = fault is not None and fault.mode in (Mode.KILL_BEFORE, Mode.KILL_AFTER, Mode.TEAR)
    if ended.code is None:
        if not is_kill and not ended.problem:
            yield "was killed for no reason"
        return
    is_asked = fault is not None and fault.mode is Mode.INTERRUPT and ended.code == _TERMINATED
    if ended.code != case.code and ended.code not in _REFUSALS and not is_asked:
        yield f"exit code {ended.code} is not documented"
    yield from _check_output(case, ended)


def _check_output(case: Case, ended: Ended) -> Iterator[str]:
    lines = ended.err.splitlines()
    if "Traceback" in ended.err:
        yield f"a traceback: {lines[-1]}"
    elif strange := [line for line in lines if not _LINES.fullmatch(line)]:
        yield f"printed on stderr: {strange[0][:200]}"
    errors = sum(line.startswith("sagewai-ops: error:") for line in lines)
    if ended.code not in (case.code, 3, 4) and errors != 1 and not case.has_verdicts:
        yield f"exit code {ended.code} with {errors} error lines"


def check_state(case: Case, world: World, expected: Expected, found: State) -> Iterator[str]:
    """See that everything is old, or everything is new (or each file, where that is promised)."""
    if is_old(expected, found) or is_good(case, expected, found):
        return
    old = set(expected.differing(found, expected.before))
    new = set(expected.differing(found, expected.after))
    if case.drops and not any(case.drops not in name for name in old):
        return
    differing = sorted(old & new) if case.in_parts else sorted(new or old)
    if differing:
        near = min((old, new), key=len)
        yield f"neither old nor new: {', '.join(differing[:4])} (nearer: {sorted(near)[:4]})"


def is_old(expected: Expected, found: State) -> bool:
    """Return whether all is as before."""
    return not expected.differing(found, expected.before)


def is_new(expected: Expected, found: State) -> bool:
    """Return whether all is as asked."""
    return not expected.differing(found, expected.after)


def is_good(case: Case, expected: Expected, found: State) -> bool:
    """Return whether all is as asked, or as a run that was to be finished found it."""
    if case.may_go_back and not expected.mask.unsettled(found, expected.prepared):
        return True
    return is_new(expected, found)


def check_siblings(expected: Expected, found: State, ended: Ended) -> Iterator[str]:
    """See that a file next to the promise that was not written is warned of."""
    if "sagewai-ops: warning:" not in ended.err:
        for name in expected.siblings & set(expected.mask.unsettled(found, expected.after)):
            yield f"{name} is not written, and no warning names it"


def is_unsettled(world: World) -> bool:
    """Return whether the program itself knows that something is to be finished first."""
    with rights_of(world):
        return bool(pending.pending_operations(world.home))


def check_kept(world: World, expected: Expected) -> Iterator[str]:
    """See that what restores put aside is a whole home: that from before, or that from after."""
    mask = expected.mask.below("home")
    for state in world.home_states():
        if all(
            mask.differences(without_companion(state), without_companion(home))
            for home in (expected.home_before, expected.home_after)
        ):
            yield "what a restore kept is no whole home"
    schemas = world.kept_schemas()
    for schema, tables in schemas.items():
        if all(
            {name.removeprefix("server: "): state[name] for name in state if "server: " in name}
            != tables
            for state in (expected.before, expected.after)
        ):
            yield f"what a restore kept on the server at {schema} is not all of the tables"
    if schemas and (alone := world.kept_moments() - set(schemas)):
        yield f"a restore kept a home and no tables: {', '.join(sorted(alone))}"


def check_snapshots(case: Case, world: World, expected: Expected, *, runs: int) -> Iterator[str]:
    """See that only whole snapshots are listed, that none was lost, and not too many came."""
    with rights_of(world):
        listed = catalog.list_snapshots(world.snapshots)
    found = {item.path.name: hash_of(item.path) for item in listed}
    resting = world.snapshots / ".trash"
    for name, content in expected.snapshots.items():
        if case.moves_snapshots and runs > 1 and name != expected.newest:
            continue  # a second prune empties the trash
        rests = case.moves_snapshots and (resting / name).exists()
        if (hash_of(resting / name) if rests else found.get(name)) != content:
            yield f"snapshot {name} was lost or changed"
    added = set(found) - set(expected.snapshots)
    if len(added) > (runs if case.takes_snapshot else 0):
        yield f"{len(added)} snapshots came"
    for name in sorted(added):
        if (world.snapshots / name).stat().st_mode & 0o77:
            yield f"snapshot {name} is open to others"
        yield from check_whole(world.snapshots / name)


def check_whole(path: Path) -> Iterator[str]:
    """See that an archive that is listed can be read to its end."""
    try:
        verify(path)
    except OpsError as error:
        yield f"an archive is not whole: {error}"


def check_names(case: Case, world: World, expected: Expected) -> Iterator[str]:
    """See that nothing is left that an undisturbed run does not leave."""
    for name in sorted(world.names() - expected.names):
        if case.records and case.records in name:
            continue
        # Root's TMPDIR is sticky there, and what others could have planted in it is left alone.
        if not world.owner or not name.startswith("tmp/"):
            yield f"leftover {name}"


def check_removed(world: World, expected: Expected, ended: Ended) -> Iterator[str]:
    """See that a run that was asked to stop has cleaned up by itself."""
    if ended.code == _TERMINATED:
        for name in sorted(world.names() - expected.names - expected.names_before):
            yield f"interrupted, and left {name}"


def check_private(world: World, expected: Expected) -> Iterator[str]:
    """See that what was made for the home's owner alone is not readable by others."""
    for name in ("secrets/master.key", "db/sagewai.db"):
        path = world.home / name
        if f"home/{name}" in expected.before or not path.exists():
            continue
        if path.stat().st_mode & 0o77:
            yield f"{name} is open to others"


def check_owners(case: Case, world: World) -> Iterator[str]:
    """See that all that root leaves in the tree of another user is that user's."""
    if world.owner and not case.is_roots and (names := world.others(case.siblings)):
        yield f"not the owner's: {', '.join(names[:4])}"


def hash_of(path: Path) -> str:
    """Return the hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def home_of(world: World) -> State:
    """Return the state of the home alone."""
    return state_of(world.home)


def without_companion(state: State) -> State:
    """Leave out litestream's directory too, which an undo removes before it exchanges homes."""
    return {name: value for name, value in in_home(state).items() if "litestream" not in name}


def in_home(state: State) -> State:
    """Leave out what this program itself keeps in a home."""
    return {name: value for name, value in state.items() if ".sagewai-ops-" not in name}


_UNLOCK = Decryption(identities=(IDENTITY,))
_verified: set[str] = set()


def verify(path: Path) -> None:
    """Read an archive whole; one of the same bytes was read before.

    Raises:
        OpsError: It is not whole.
    """
    content = hash_of(path)
    if content not in _verified:
        with open_archive(path, _UNLOCK if path.suffix == ".age" else None) as reader:
            reader.verify()
        _verified.add(content)
