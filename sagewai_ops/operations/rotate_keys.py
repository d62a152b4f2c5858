"""Re-encrypt all secrets of a home with a new master key, in one step after a snapshot.

Values that no key opens are never lost: they are an error, or stay unchanged and are reported. The
old key is kept sealed in the snapshot, or without one next to the new key.
"""

import base64
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import field
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from sagewai_ops.archive.authentication import derive_key
from sagewai_ops.backup.create import create_snapshot
from sagewai_ops.backup.report import BackupOptions, BackupReport
from sagewai_ops.database.postgres.sessions import require_home_unused
from sagewai_ops.database.sqlite.companions import find_companions
from sagewai_ops.database.url import PostgresUrl
from sagewai_ops.errors import DifferenceError, KeyMissingError, OpsError, UsageError
from sagewai_ops.fs import atomic, locks
from sagewai_ops.fs.journal import LeftValue
from sagewai_ops.home.companions import removal_note
from sagewai_ops.home.paths import LEGACY_MASTER_KEY, MASTER_KEY, Home, require
from sagewai_ops.home.server_record import require_known_database
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
from sagewai_ops.records import dataclass
from sagewai_ops.snapshots.mark import keep_former_key
from sagewai_ops.swap import pending
from sagewai_ops.swap.swap import kept_before


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a rotation.

    Attributes:
        new_key_file: Contains the new key; None makes one.
        key_file: One more key to open values with.
        snapshot: None for no snapshot; else its custody is `sealed`.
        snapshots: Its directory.
        leave_unopened: Leave values unchanged that no key opens.
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
class KeyName:
    """A key without its value."""

    source: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class RotationResult:
    """The result of a rotation, or the plan of a dry run.

    Attributes:
        new_key: None for the key that a dry run makes and drops.
        resealed: Place -> number of re-encrypted values.
        resealed_by_key: Fingerprint of the previous key -> number of re-encrypted values.
        through_projects: Values under data keys, which do not change.
        left: Values that no key opens.
        installed: The file of the new key; None if only the caller has it.
        kept_as: The file of the old key; None if it is in the snapshot.
        effective: Whether Sagewai would use the new key.
        steps: What remains to be done before Sagewai starts, one line each.
        notes: One line each.
    """

    home: Path
    dry_run: bool
    old_key: KeyName
    new_key: KeyName | None
    resealed: Mapping[str, int]
    resealed_by_key: Mapping[str, int]
    through_projects: int
    left: tuple[Unopened, ...]
    installed: Path | None
    kept_as: Path | None
    snapshot: Path | None
    effective: bool
    steps: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RotationRecovery:
    """The result of `keys rotate --recover`."""

    home: Path
    recovery: Literal["finished", "rolled back", "nothing to do"]
    reason: str
    key_fingerprint: str
    left: tuple[LeftValue, ...]
    steps: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a run will do."""

    old: Candidate
    candidates: tuple[Candidate, ...] = field(repr=False)
    reencrypted: Reencryption = field(repr=False)
    journal: Journal = field(repr=False)
    server: PostgresUrl | None


def rotate(
    home: Home,
    environment: Mapping[str, str],
    options: Options,
    *,
    progress: Progress | None = None,
) -> RotationResult:
    """Re-encrypt everything under the home's keys with a new one.

    Args:
        environment: Can contain a master key and the URL of the database.
        progress: Called with the stages of the snapshot, `re-encrypt` and `check keys`.

    Raises:
        NotFoundError: No such home or key file.
        KeyMissingError: There is no key, or no key opens some values.
        UsageError: The new key is the old one, no file can be written for it, or the home's tables
            are on a server that no variable names.
        LockedError: Another run has locked the home, or an operation is pending.
        TargetBusyError: A process has the home or its database open.
        OpsError: As the snapshot raises, or the system refused. Everything is unchanged.
    """
    require(home)
    require_known_database(home, environment)
    pending.require_settled(home.root)
    new = _new_key(options)
    snapshot = None
    if options.dry_run or options.snapshot:
        # Refuse before the snapshot what would be refused after it.
        plan = _plan(home, environment, options, new, only_counts=True)
        if options.dry_run:
            return _report(home, environment, plan, options, None, find_companions(home.database))
        require_home_unused(home, environment)
        rotation.require_writable(home, plan.journal)
        assert options.snapshot is not None
        snapshot = create_snapshot(home, options.snapshots, options.snapshot, progress=progress)
    with locks.exclusive(home.root, wait_seconds=options.wait_seconds):
        pending.require_settled(home.root)
        rotation_journal.sweep(home.root)
        require_home_unused(home, environment)
        plan = _plan(home, environment, options, new, progress=progress)
        rotation.require_writable(home, plan.journal)
        if snapshot and snapshot.key_fingerprint != plan.old.fingerprint:
            raise OpsError(
                f"home {home.root}: key changed during the snapshot",
                hint="sagewai-ops status  # stop what writes to the home, then run it again",
            )
        require_home_unused(home, environment)  # again: the plan of a large home takes minutes
        rotation.sweep_partial_files(home, document_files(home))
        _keep_old_key(home, plan)
        companions = find_companions(home.database)
        rotation.change_key(
            home,
            plan.journal,
            lambda: _verify(home, environment, plan, progress),
            server=plan.server,
            wait_seconds=options.wait_seconds,
        )
    return _report(home, environment, plan, options, snapshot, companions)


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
            f"home {home.root}: no master key, neither in the environment nor in {home.master_key}",
            hint="sagewai-ops keys fingerprint --all",
        )
    if new.value == old.value:
        raise UsageError(f"key file {options.new_key_file}: the same key as the present one")
    values = sealed_values(home, environment)
    reencrypted = reencrypt_values(
        values, candidates, new, only_counts=only_counts, progress=progress
    )
    closed = reencrypted.report.closed
    if closed and not options.leave_unopened:
        raise KeyMissingError(
            f"home {home.root}: {len(closed)} of {reencrypted.report.total} sealed values not"
            " opened by any available key, for example"
            f" {closed[0].place} {closed[0].where}",
            hint="sagewai-ops keys check  # lists them\n"
            "sagewai-ops keys rotate --extra-key FILE ...  # or --leave-unopened",
        )
    url = database_server(home, environment) if home.server_url_variable else None
    place = _place(home, old, options)
    previous = rotation.read_place(home.root, place)
    keeps = previous is not None and options.snapshot is None
    moment = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S%fZ}"
    journal = Journal(
        old_fingerprint=old.fingerprint,
        new=new,
        tokens=reencrypted.tokens,
        # A home with a journal may be moved before it is recovered.
        documents=tuple(
            relative(home, path)
            for path in (*document_files(home), *find_old_copies(home).values())
        ),
        database=relative(home, home.database) if os.path.lexists(home.database) else "",
        server=url.display if url else "",
        place=place,
        replaces=fingerprint(previous) if previous is not None else "",
        kept_as=f"{MASTER_KEY}.legacy-{moment}" if keeps else "",
        left=len(closed),
    )
    return _Plan(old, candidates, reencrypted, journal, url)


def _keep_old_key(home: Home, plan: _Plan) -> None:
    """Keep what authenticates the previous snapshots; it opens no encrypted value."""
    old, new = (derive_key(key.fingerprint, key.value) for key in (plan.old, plan.journal.new))
    keep_former_key(home, old, new)


def _new_key(options: Options) -> Candidate:
    if options.new_key_file is None:
        return key_from_bytes(NEW_KEY, base64.urlsafe_b64encode(secrets.token_bytes(32)))
    return read_key_file(options.new_key_file)


def _place(home: Home, old: Candidate, options: Options) -> str:
    """Return the path of the new key: where Sagewai finds it once no other source precedes it."""
    if old.source in (ENVIRONMENT, KEYRING):
        # Not under another name: without the variable Sagewai would find no key and make one.
        return "" if options.new_key_file else MASTER_KEY
    # Sagewai reads the first file that exists, whatever its content.
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
        f"key {path}: a link to {real}, not writable",
        hint="sagewai-ops keys rotate --new-key-file FILE ...  # then write it there",
    )


def _verify(
    home: Home, environment: Mapping[str, str], plan: _Plan, progress: Progress | None
) -> None:
    """Check that everything that opened before opens with the new key, and with no other.

    Raises:
        DifferenceError: It does not.
    """
    new, before = plan.journal.new, plan.reencrypted.report
    keys = (new, *plan.candidates)
    after = open_all(sealed_values(home, environment), keys, progress=progress, stage="check keys")
    others = [key for key in after.by_key if key.fingerprint != new.fingerprint]
    lost = {*map(_name, after.unopened)} - {*map(_name, before.unopened)}
    if others or lost or after.total != before.total:
        count = sum(key.values + key.through_projects for key in others) + len(lost)
        raise DifferenceError(
            f"home {home.root}: {count or abs(after.total - before.total)} values would not be"
            " under the new key",
            hint="sagewai-ops status  # stop what writes to the home, then run it again",
        )


def _name(value: Unopened) -> tuple[str, str]:
    return value.place, value.where


def _report(
    home: Home,
    environment: Mapping[str, str],
    plan: _Plan,
    options: Options,
    snapshot: BackupReport | None,
    companions: Sequence[Path],
) -> RotationResult:
    journal, report = plan.journal, plan.reencrypted.report
    is_effective, steps = False, tuple[str, ...]()
    if not options.dry_run:
        is_effective, steps = rotation.remaining_steps(
            home, environment, journal.new, journal.place
        )
    old, new = plan.old, journal.new
    is_dropped = options.dry_run and new.path is None
    return RotationResult(
        home=home.root,
        dry_run=options.dry_run,
        old_key=KeyName(old.source, old.fingerprint),
        new_key=None if is_dropped else KeyName(new.source, new.fingerprint),
        resealed=plan.reencrypted.places,
        resealed_by_key=plan.reencrypted.by_key,
        through_projects=sum(key.through_projects for key in report.by_key),
        left=report.closed,
        installed=home.root / journal.place if journal.place else None,
        kept_as=home.root / journal.kept_as if journal.kept_as else None,
        snapshot=snapshot.path if snapshot else None,
        effective=is_effective,
        steps=steps,
        notes=(
            *_notes(
                home,
                old,
                new,
                plan.candidates,
                place=journal.place,
                snapshot=snapshot.path if snapshot else None,
            ),
            *(removal_note(str(path)) for path in companions),
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
    """Return what a rotation does not change, and the files that still contain an old key.

    Args:
        candidates: The keys that were available before.
        place: As for `rotation.remaining_steps`.
    """
    sealed = f", which is sealed in {snapshot}" if snapshot else ""
    return (
        "sessions, API tokens and passwords stay valid: none depends on the master key",
        "the new key is not in escrow yet: sagewai-ops keys escrow",
        f"earlier snapshots and exports need the key {old.fingerprint}{sealed}",
        *(f"{path}: under the key {old.fingerprint}" for path in kept_before(home.root)),
        *(
            f"{key.path}: contains the key {key.fingerprint}, which opens nothing in the home now"
            for key in candidates
            if key.path
            and key.path != home.root / place
            and key.path.is_relative_to(home.root)
            and key.value not in (b"", new.value)
        ),
    )
