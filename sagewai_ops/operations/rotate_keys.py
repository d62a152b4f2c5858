"""Give a home another master key: a snapshot first, then everything sealed anew in one step.

What no key opens is never given up: it refuses, or leaves those values as they are and says which.
The old key goes on to exist in the snapshot, sealed, or, where none is taken, beside the new one.
"""

import base64
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from sagewai_ops.backup.create import create_snapshot
from sagewai_ops.backup.report import BackupOptions, BackupReport
from sagewai_ops.database.url import PostgresUrl
from sagewai_ops.errors import (
    DifferenceError,
    KeyMissingError,
    OpsError,
    UsageError,
)
from sagewai_ops.fs import atomic, locks
from sagewai_ops.home.paths import LEGACY_MASTER_KEY, MASTER_KEY, Home, require
from sagewai_ops.keys import rotation, rotation_journal
from sagewai_ops.keys.candidates import (
    ENVIRONMENT,
    KEYRING,
    Candidate,
    all_candidates,
    configured_key,
    fingerprint,
    key_from_bytes,
    read_key_file,
)
from sagewai_ops.keys.inventory import (
    database_server,
    document_files,
    find_old_copies,
    relative,
    sealed_values,
)
from sagewai_ops.keys.reencrypt import Reencryption, reencrypt_values
from sagewai_ops.keys.rotation_journal import NEW_KEY, Journal
from sagewai_ops.keys.trial_decryption import Unopened, open_all
from sagewai_ops.progress import Progress
from sagewai_ops.swap import pending
from sagewai_ops.swap.swap import kept_before


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked for.

    Attributes:
        new_key_file: Holds the new key; None makes one.
        key_file: One more key to open values with.
        snapshot: None for no snapshot; else its custody is `sealed`.
        snapshots: The directory that it goes to.
        leave_unopened: Leave what no key opens as it is.
        wait_seconds: For another run, and for a writer.
    """

    new_key_file: Path | None = None
    key_file: Path | None = None
    snapshot: BackupOptions | None = None
    snapshots: Path = Path()
    leave_unopened: bool = False
    dry_run: bool = False
    wait_seconds: float = 0.0


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
class _Plan:
    """What a run does, as far as it is known before it begins."""

    old: Candidate
    candidates: tuple[Candidate, ...] = field(repr=False)
    resealed: Reencryption = field(repr=False)
    journal: Journal = field(repr=False)
    server: PostgresUrl | None


def rotate(
    home: Home,
    environment: Mapping[str, str],
    options: Options,
    *,
    progress: Progress | None = None,
) -> Rotation:
    """Bring everything that is under the home's keys under a new one.

    Args:
        environment: Where a master key, and the database's URL, may come from.
        progress: Told the stages of the snapshot, `reseal` and `check keys` in values.

    Raises:
        NotFoundError: No such home or key file.
        KeyMissingError: There is no key, or values open with none.
        UsageError: The new key is the old one; or it has no place and was not named.
        LockedError: Another run, or an interrupted one.
        TargetBusyError: Somebody has the home or its database open.
        OpsError: What the snapshot raises; the system refused. Everything is as it was.
    """
    require(home)
    pending.require_settled(home.root)
    new = _new_key(options)
    snapshot = None
    if options.dry_run or options.snapshot:
        # Before the time of a snapshot is spent: what would be refused after it.
        plan = _plan(home, environment, options, new, only_counts=True)
        if options.dry_run:
            return _report(home, environment, plan, options, None)
        rotation.refuse_use(home, plan.server)
        rotation.require_writable(home, plan.journal)
        assert options.snapshot is not None
        snapshot = create_snapshot(home, options.snapshots, options.snapshot, progress=progress)
    with locks.exclusive(home.root, wait_seconds=options.wait_seconds):
        pending.require_settled(home.root)
        rotation_journal.sweep(home.root)
        url = database_server(home, environment) if home.server_url_variable else None
        rotation.refuse_use(home, url)
        plan = _plan(home, environment, options, new, progress=progress)
        rotation.require_writable(home, plan.journal)
        if snapshot and snapshot.key_fingerprint != plan.old.fingerprint:
            raise OpsError(
                f"home {home.root}: its key changed while the snapshot was taken",
                hint="stop what writes to the home, then run it again",
            )
        rotation.refuse_use(home, url)  # once more: to open everything takes a while
        rotation.sweep_partial_files(home, document_files(home))
        rotation.change_key(
            home,
            plan.journal,
            lambda: _verify(home, environment, plan, progress),
            server=plan.server,
            wait_seconds=options.wait_seconds,
        )
    return _report(home, environment, plan, options, snapshot)


def _plan(
    home: Home,
    environment: Mapping[str, str],
    options: Options,
    new: Candidate,
    *,
    only_counts: bool = False,
    progress: Progress | None = None,
) -> _Plan:
    candidates = all_candidates(home, environment, key_file=options.key_file)
    old = configured_key(candidates)
    if old is None:
        raise KeyMissingError(
            f"home {home.root}: no key that could be exchanged, neither in the environment nor in "
            f"{home.master_key}",
            hint="sagewai-ops keys fingerprint --all",
        )
    if new.value == old.value:
        raise UsageError(f"key file {options.new_key_file}: holds the key that the home runs on")
    values = sealed_values(home, environment)
    resealed = reencrypt_values(values, candidates, new, only_counts=only_counts, progress=progress)
    closed = resealed.report.closed
    if closed and not options.leave_unopened:
        raise KeyMissingError(
            f"home {home.root}: {len(closed)} of {resealed.report.total} sealed values open with no"
            f" key at hand, {closed[0].place} {closed[0].where} is one",
            hint="sagewai-ops keys check  # names them\nname their key: --extra-key FILE\n"
            "or leave them as they are: --leave-unopened",
        )
    url = database_server(home, environment) if home.server_url_variable else None
    place = _place(home, old, options)
    there = rotation.read_place(home.root, place)
    keeps = there is not None and options.snapshot is None
    moment = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S%fZ}"
    journal = Journal(
        old_fingerprint=old.fingerprint,
        new=new,
        tokens=resealed.tokens,
        # A home with a journal may be moved before it is recovered.
        documents=tuple(
            relative(home, path)
            for path in (*document_files(home), *find_old_copies(home).values())
        ),
        database=relative(home, home.database) if os.path.lexists(home.database) else "",
        server=url.display if url else "",
        place=place,
        replaces=fingerprint(there) if there is not None else "",
        kept_as=f"{MASTER_KEY}.legacy-{moment}" if keeps else "",
        left=len(closed),
    )
    return _Plan(old, candidates, resealed, journal, url)


def _new_key(options: Options) -> Candidate:
    if options.new_key_file is None:
        return key_from_bytes(NEW_KEY, base64.urlsafe_b64encode(secrets.token_bytes(32)))
    return read_key_file(options.new_key_file)


def _place(home: Home, old: Candidate, options: Options) -> str:
    """Choose where the new key goes: where Sagewai finds it once nothing else is in its way."""
    if old.source in (ENVIRONMENT, KEYRING):
        # Not under another name: without the variable Sagewai would find no key, and make one.
        return "" if options.new_key_file else MASTER_KEY
    # Sagewai takes the first file that is there, whatever is in it.
    place = MASTER_KEY if os.path.exists(home.master_key) else LEGACY_MASTER_KEY
    path = home.root / place
    if not path.is_symlink():
        return place
    real = Path(os.path.realpath(path))
    if atomic.is_writable(real.parent):
        return os.fspath(real)
    if options.new_key_file:
        return ""
    raise UsageError(
        f"key {path}: is a link to {real}, which may not be written",
        hint="make a key, name it with --new-key-file FILE, and put it there afterwards",
    )


def _verify(
    home: Home, environment: Mapping[str, str], plan: _Plan, progress: Progress | None
) -> None:
    """Look at everything again: what opened before must open with the new key, and with no other.

    Raises:
        DifferenceError: It does not.
    """
    new, before = plan.journal.new, plan.resealed.report
    keys = (new, *plan.candidates)
    after = open_all(sealed_values(home, environment), keys, progress=progress, stage="check keys")
    others = [one for one in after.opened_by if one.fingerprint != new.fingerprint]
    lost = {_name(one) for one in after.unopened} - {_name(one) for one in before.unopened}
    if others or lost or after.total != before.total:
        count = sum(one.values + one.through_projects for one in others) + len(lost)
        raise DifferenceError(
            f"home {home.root}: {count or abs(after.total - before.total)} values would not be"
            " under the new key",
            hint="stop what writes to the home, then run it again",
        )


def _name(value: Unopened) -> tuple[str, str]:
    return value.place, value.where


def _report(
    home: Home,
    environment: Mapping[str, str],
    plan: _Plan,
    options: Options,
    snapshot: BackupReport | None,
) -> Rotation:
    journal, report = plan.journal, plan.resealed.report
    is_effective, steps = False, tuple[str, ...]()
    if not options.dry_run:
        is_effective, steps = rotation.remaining_steps(
            home, environment, journal.new, journal.place
        )
    return Rotation(
        old=plan.old,
        new=journal.new,
        places=plan.resealed.places,
        by_key=plan.resealed.by_key,
        through_projects=sum(one.through_projects for one in report.opened_by),
        left=report.closed,
        installed=home.root / journal.place if journal.place else None,
        kept_as=home.root / journal.kept_as if journal.kept_as else None,
        snapshot=snapshot,
        is_effective=is_effective,
        steps=steps,
        notes=_notes(
            home,
            plan.old,
            journal.new,
            plan.candidates,
            place=journal.place,
            snapshot=snapshot.path if snapshot else None,
        ),
    )


def _notes(
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
        place: As for `rotation.remaining_steps`.
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
