"""Give a home another master key: a snapshot first, then everything sealed anew in one step.

What no key opens is never given up: it refuses, or leaves those values as they are and says which.
The old key goes on to exist in the snapshot, sealed, or, where none is taken, beside the new one.
"""

import base64
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from sagewai_ops.backup.create import create_snapshot
from sagewai_ops.backup.report import BackupOptions, BackupReport
from sagewai_ops.database.sqlite.in_use import require_unused
from sagewai_ops.database.url import PostgresUrl
from sagewai_ops.errors import (
    DifferenceError,
    KeyMissingError,
    OpsError,
    PermissionDeniedError,
    UsageError,
)
from sagewai_ops.fs import atomic, locks
from sagewai_ops.home.paths import LEGACY_MASTER_KEY, MASTER_KEY, Home, require
from sagewai_ops.keys import postgres, rotation, rotation_journal
from sagewai_ops.keys.candidates import (
    ENVIRONMENT,
    KEYRING,
    Candidate,
    fingerprint,
    given,
    named_file,
    resolved,
)
from sagewai_ops.keys.inventory import (
    copied_values,
    document_files,
    old_copies,
    relative,
    server_of,
    take_inventory,
)
from sagewai_ops.keys.locations import SealedValue
from sagewai_ops.keys.reencrypt import Resealed, reseal
from sagewai_ops.keys.rotation_journal import NEW_KEY, Journal
from sagewai_ops.keys.trial_decryption import NOT_A_KEY, SealedReport, Unopened, open_all
from sagewai_ops.operations.check_keys import all_candidates
from sagewai_ops.operations.rotation_report import Recovery, Rotation, notes_on, outlook
from sagewai_ops.progress import Progress
from sagewai_ops.swap import swap
from sagewai_ops.text import shell_word


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
class _Plan:
    """What a run does, as far as it is known before it begins."""

    old: Candidate
    candidates: tuple[Candidate, ...] = field(repr=False)
    resealed: Resealed = field(repr=False)
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
    swap.require_settled(home.root)
    new = _new_key(options)
    snapshot = None
    if options.dry_run or options.snapshot:
        # Before the time of a snapshot is spent: what would be refused after it.
        plan = _plan(home, environment, options, new, only_counts=True)
        if options.dry_run:
            return _report(home, environment, plan, options, None)
        _require_unused(home, plan.server)
        rotation.require_writable(home, plan.journal)
        assert options.snapshot is not None
        snapshot = create_snapshot(home, options.snapshots, options.snapshot, progress=progress)
    with locks.exclusive(home.root, wait_seconds=options.wait_seconds):
        swap.require_settled(home.root)
        rotation_journal.sweep(home.root)
        url = server_of(home, environment) if home.server_url_variable else None
        _require_unused(home, url)
        plan = _plan(home, environment, options, new, progress=progress)
        rotation.require_writable(home, plan.journal)
        if snapshot and snapshot.key_fingerprint != plan.old.fingerprint:
            raise OpsError(
                f"home {home.root}: its key changed while the snapshot was taken",
                hint="stop what writes to the home, then run it again",
            )
        _require_unused(home, url)  # once more: to open everything takes a while
        rotation.sweep_halves(home, document_files(home))
        rotation.carry_out(
            home,
            plan.journal,
            lambda: _verify(home, environment, plan, progress),
            server=plan.server,
            wait_seconds=options.wait_seconds,
        )
    return _report(home, environment, plan, options, snapshot)


def recover(home: Home, environment: Mapping[str, str], *, wait_seconds: float = 0.0) -> Recovery:
    """Finish a rotation that was interrupted, or take it back where that is refused.

    Raises:
        TargetBusyError: Somebody has the home or its database open.
        UsageError: It concerned a database on a server, which the environment does not name.
        OpsError: The system refused both, or a strange key stands in the place of the new one; run
            it again once that is mended.
    """
    require(home)
    with locks.exclusive(home.root, wait_seconds=wait_seconds):
        if rotation_journal.sweep(home.root) or not rotation_journal.is_pending(home.root):
            return Recovery("nothing to do")
        journal = rotation_journal.read(home.root)
        rotation.refuse_strangers(home, journal)
        with rotation_journal.held(home.root):
            url = _server_for(home, environment, journal)
            _require_unused(home, url)
            rotation.sweep_halves(home, [home.root / name for name in journal.documents])
            try:
                left = _finish(home, environment, journal, url, wait_seconds)
            except (OSError, OpsError) as error:
                if rotation.standing(home, journal) is not rotation.Standing.OLD:
                    raise  # there may be no other key than the new one
                rotation.back(home, journal, server=url, wait_seconds=wait_seconds)
                rotation_journal.forget(home.root)
                answer = Recovery("rolled back", str(error), journal.old_fingerprint)
            else:
                _, steps = outlook(home, environment, journal.new, journal.place)
                answer = Recovery("finished", "", journal.new.fingerprint, left, steps)
        rotation_journal.sweep(home.root)
    return answer


def _finish(
    home: Home,
    environment: Mapping[str, str],
    journal: Journal,
    url: PostgresUrl | None,
    wait_seconds: float,
) -> tuple[Unopened, ...]:
    """Go on with a journal, and take along what was sealed under the old key meanwhile."""
    rotation.forward(home, journal, server=url, wait_seconds=wait_seconds)
    candidates = all_candidates(home, environment)
    late = reseal(_values(home, environment), candidates, journal.new)
    if late.tokens:
        everything = {**journal.tokens, **late.tokens}
        rotation_journal.add_tokens(home.root, everything)
        journal = rotation_journal.read(home.root)
        rotation.forward(home, journal, server=url, wait_seconds=wait_seconds)
    rotation.install(home, journal)
    rotation_journal.forget(home.root)
    return _closed(late.report)


def _require_unused(home: Home, url: PostgresUrl | None) -> None:
    """Check that no process has the home or its tables on a server open."""
    sessions = postgres.sessions(url) if url else ()
    require_unused(home.root, *home.databases, sessions=sessions)


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
    old = resolved(candidates)
    if old is None:
        raise KeyMissingError(
            f"home {home.root}: no key that could be exchanged, neither in the environment nor in "
            f"{home.master_key}",
            hint="sagewai-ops keys fingerprint --all",
        )
    if new.value == old.value:
        raise UsageError(f"key file {options.new_key_file}: holds the key that the home runs on")
    values = _values(home, environment)
    resealed = reseal(values, candidates, new, only_counts=only_counts, progress=progress)
    closed = _closed(resealed.report)
    if closed and not options.leave_unopened:
        raise KeyMissingError(
            f"home {home.root}: {len(closed)} of {resealed.report.total} sealed values open with no"
            f" key at hand, {closed[0].place} {closed[0].where} is one",
            hint="sagewai-ops keys check  # names them\nname their key: --extra-key FILE\n"
            "or leave them as they are: --leave-unopened",
        )
    url = server_of(home, environment) if home.server_url_variable else None
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
            relative(home, path) for path in (*document_files(home), *old_copies(home).values())
        ),
        database=relative(home, home.database) if os.path.lexists(home.database) else "",
        server=url.display if url else "",
        place=place,
        replaces=fingerprint(there) if there is not None else "",
        kept_as=f"{MASTER_KEY}.legacy-{moment}" if keeps else "",
        left=len(closed),
    )
    return _Plan(old, candidates, resealed, journal, url)


def _closed(report: SealedReport) -> tuple[Unopened, ...]:
    """Give what no key opens; what opens and is no data key is sealed anew like the rest."""
    return tuple(one for one in report.unopened if one.reason != NOT_A_KEY)


def _new_key(options: Options) -> Candidate:
    if options.new_key_file is None:
        return given(NEW_KEY, base64.urlsafe_b64encode(secrets.token_bytes(32)))
    return named_file(options.new_key_file)


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
    if atomic.may_write(real.parent):
        return os.fspath(real)
    if options.new_key_file:
        return ""
    raise UsageError(
        f"key {path}: is a link to {real}, which may not be written",
        hint="make a key, name it with --new-key-file FILE, and put it there afterwards",
    )


def _values(home: Home, environment: Mapping[str, str]) -> tuple[SealedValue, ...]:
    """Find everything that may be sealed in a home, old copies included.

    Raises:
        PermissionDeniedError: A document or copy cannot be read.
        OpsError: A database cannot be read, or its server does not answer.
    """
    inventory = take_inventory(home, environment, insists=True, only_sealed=True)
    if inventory.unreadable:
        raise PermissionDeniedError(
            f"{inventory.unreadable[0]}: cannot be read, and nothing may stay under the old key",
            hint=f"ls -la {shell_word(inventory.unreadable[0])}  # run as its owner",
        )
    return (*inventory.values, *copied_values(old_copies(home)))


def _verify(
    home: Home, environment: Mapping[str, str], plan: _Plan, progress: Progress | None
) -> None:
    """Look at everything again: what opened before must open with the new key, and with no other.

    Raises:
        DifferenceError: It does not.
    """
    new, before = plan.journal.new, plan.resealed.report
    keys = (new, *plan.candidates)
    after = open_all(_values(home, environment), keys, progress=progress, stage="check keys")
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


def _server_for(home: Home, environment: Mapping[str, str], journal: Journal) -> PostgresUrl | None:
    """Find the server that a journal is about.

    Raises:
        UsageError: The environment names another, or none.
    """
    url = server_of(home, environment) if home.server_url_variable else None
    shown = url.display if url else ""
    if shown != journal.server:
        raise UsageError(
            f"home {home.root}: the rotation was of the tables on {journal.server or 'no server'},"
            f" and the environment names {shown or 'none'}",
            hint="export SAGEWAI_DATABASE_URL=...  # as when it was begun",
        )
    return url


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
        is_effective, steps = outlook(home, environment, journal.new, journal.place)
    return Rotation(
        old=plan.old,
        new=journal.new,
        places=plan.resealed.places,
        by_key=plan.resealed.by_key,
        through_projects=sum(one.through_projects for one in report.opened_by),
        left=_closed(report),
        installed=home.root / journal.place if journal.place else None,
        kept_as=home.root / journal.kept_as if journal.kept_as else None,
        snapshot=snapshot,
        is_effective=is_effective,
        steps=steps,
        notes=notes_on(
            home,
            plan.old,
            journal.new,
            plan.candidates,
            place=journal.place,
            snapshot=snapshot.path if snapshot else None,
        ),
    )
