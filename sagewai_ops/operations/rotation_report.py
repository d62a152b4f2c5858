"""What a rotation of a home's key did, what is left for people to do, and what else to know."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sagewai_ops.backup.report import BackupReport
from sagewai_ops.home.paths import Home
from sagewai_ops.keys.candidates import (
    ENVIRONMENT,
    KEYRING,
    Candidate,
    accepted,
    find_candidates,
)
from sagewai_ops.keys.trial_decryption import Unopened
from sagewai_ops.swap.swap import kept_before
from sagewai_ops.text import shell_word


@dataclass(frozen=True, slots=True)
class Rotation:
    """What was done, or would be.

    Attributes:
        old: The key that the home ran on.
        new: The key that it runs on; of a dry run without a key file, one that nobody will use.
        places: Values sealed anew, by place.
        by_key: The same by the fingerprint of the key that they were under.
        through_projects: Values under data keys, which stay as they are.
        left: What no key opens.
        installed: Where the new key stands; None if only the caller has it.
        kept_as: Where the old key file is kept; None if it is in the snapshot.
        is_effective: Whether Sagewai would take the new key as things are.
        steps: What is left to be done before Sagewai starts, a line each.
        notes: What else to know.
    """

    old: Candidate
    new: Candidate
    places: Mapping[str, int]
    by_key: Mapping[str, int]
    through_projects: int
    left: tuple[Unopened, ...]
    installed: Path | None
    kept_as: Path | None
    snapshot: BackupReport | None
    is_effective: bool
    steps: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Recovery:
    """What became of an interrupted rotation.

    Attributes:
        answer: `finished`, `rolled back` or `nothing to do`.
        reason: Why it was not finished; "" if it was.
        key_fingerprint: Of the key that all is under; "" if there was nothing to do.
        left: What neither key opens.
        steps: As in `Rotation`.
    """

    answer: str
    reason: str = ""
    key_fingerprint: str = ""
    left: tuple[Unopened, ...] = ()
    steps: tuple[str, ...] = ()


def outlook(
    home: Home, environment: Mapping[str, str], new: Candidate, place: str
) -> tuple[bool, tuple[str, ...]]:
    """Tell whether Sagewai would take the new key by itself, and else what is to be done.

    Args:
        place: Where the new key stands, relative to the home; "" for nowhere.
    """
    candidates = find_candidates(home, environment)
    own = accepted(candidates)
    if own and own.value == new.value:
        return True, ()
    sources = [one.source for one in candidates]
    steps = ["Sagewai would not take the new key as things are: before it starts"]
    content = f"the content of {home.root / place}" if place else "the new key"
    if ENVIRONMENT in sources:
        steps.append(f"set {ENVIRONMENT} to {content}, where Sagewai's service gets it from")
        if place:
            steps.append(f"or take {ENVIRONMENT} away there: Sagewai then uses that file")
    elif KEYRING in sources:
        file = shell_word(home.root / place)
        source = f" < {file}" if place else "  # and give it the new key"
        steps.append(f"keyring set sagewai-master-key sealed{source}")
        if place:
            steps.append("or: keyring del sagewai-master-key sealed  # Sagewai then uses that file")
    else:
        steps.append(f"put the new key into {home.master_key}, mode 0600")
    return False, tuple(steps)


def notes_on(
    home: Home,
    old: Candidate,
    new: Candidate,
    candidates: Sequence[Candidate],
    *,
    place: str,
    snapshot: Path | None,
) -> tuple[str, ...]:
    """Say what a rotation leaves alone, and where an old key still stands.

    Args:
        candidates: The keys that were at hand before.
        place: As for `outlook`.
    """
    sealed = f", which is sealed in {snapshot}" if snapshot else ""
    return (
        "sessions, API tokens and passwords stay valid: none is made from the master key",
        "the new key is in no escrow yet: sagewai-ops keys escrow",
        f"snapshots and exports made before need the key {old.fingerprint}{sealed}",
        *(f"{path}: under the key {old.fingerprint}" for path in kept_before(home.root)),
        *(
            f"{one.path}: holds the key {one.fingerprint}, under which nothing in the home is"
            for one in candidates
            if one.path
            and one.path != home.root / place
            and one.path.is_relative_to(home.root)
            and one.value not in (b"", new.value)
        ),
    )
