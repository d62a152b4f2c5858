"""Carry a retention plan out, in two phases: what goes rests in the trash until the next prune.

First the newly removed are moved, then what rested before is removed for ever; so a run that dies
in between has removed nothing for ever that no successful run had moved before.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from sagewai_ops.errors import NotFoundError, UsageError
from sagewai_ops.fs import locks
from sagewai_ops.home.paths import Home
from sagewai_ops.snapshots import trash
from sagewai_ops.snapshots.catalog import Snapshot, list_snapshots
from sagewai_ops.snapshots.ownership import Owner, owner_of, reason_not_owned, resolve_host
from sagewai_ops.snapshots.retention import Policy, RetentionPlan, plan_retention

_CLOCK_DRIFT = timedelta(hours=1)  # machines that share a directory differ by less


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What a prune did, or would do.

    Attributes:
        purged: What rested in the trash and was removed for ever.
        left: What rests there on, of other homes included.
        ahead: A snapshot that is dated after now: then nothing is removed for ever, for either
            the clock is wrong, or it was when the rules were last applied. "" if there is none.
        dry_run: Whether all this was only planned.
    """

    directory: Path
    policy: Policy
    plan: RetentionPlan
    purged: tuple[Snapshot, ...] = ()
    remaining: tuple[Snapshot, ...] = ()
    future_id: str = ""
    dry_run: bool = False


def prune(
    home: Home,
    directory: Path,
    policy: Policy,
    *,
    all_paths: bool = False,
    dry_run: bool = False,
    wait_seconds: float = 0.0,
    now: datetime | None = None,
) -> PruneReport:
    """Move the snapshots of a home that no rule keeps into the trash, and empty that of older ones.

    Args:
        directory: Need not exist.
        all_paths: Also those of the same home at another path or on another machine.
        now: The present, UTC; None for the clock's.

    Raises:
        UsageError: The policy asks for nothing.
        LockedError: Another run holds the directory.
        PermissionDeniedError, OpsError: The system refused; each snapshot is in the directory or in
            the trash.
    """
    with contextlib.ExitStack() as stack:
        if not dry_run and directory.is_dir():
            stack.enter_context(locks.exclusive(directory, wait_seconds=wait_seconds))
            trash.repair_trash(directory)
        known = list_snapshots(directory)
        rested = trash.list_trash(directory)
        owner = resolve_host(owner_of(home, all_paths=all_paths), (*known, *rested))
        plan = plan_retention(known, policy, owner)
        ahead = _ahead(known, owner, now or datetime.now(timezone.utc))
        purged = () if ahead else tuple(one for one in rested if not reason_not_owned(one, owner))
        if not dry_run and directory.is_dir():
            trash.move_to_trash(directory, plan.removed)
            trash.purge(directory, purged)
        gone = {one.path for one in purged}
        left = tuple(one for one in rested if one.path not in gone)
        return PruneReport(directory, policy, plan, purged, left, ahead, dry_run)


def undelete(
    directory: Path, names: Sequence[str], *, wait_seconds: float = 0.0
) -> tuple[Path, ...]:
    """Bring snapshots back from the trash.

    Args:
        names: Ids or beginnings of ids; empty for all.

    Returns:
        Where their archives are again.

    Raises:
        NotFoundError: None of such an id rests there.
        UsageError: A beginning means several.
        LockedError: Another run holds the directory.
        TargetBusyError, OpsError: As `trash.bring_back`.
    """
    if not directory.is_dir():
        raise NotFoundError(
            f"{directory}: does not exist", hint="name the directory: --snapshots DIR"
        )
    with locks.exclusive(directory, wait_seconds=wait_seconds):
        trash.repair_trash(directory)
        rested = trash.list_trash(directory)
        chosen = [_chosen(rested, name, directory) for name in names] if names else rested
        unique = list(dict.fromkeys(one.path for one in chosen))
        trash.undelete(directory, [one for one in rested if one.path in unique])
        return tuple(directory / path.name for path in unique)


def _chosen(rested: Sequence[Snapshot], name: str, directory: Path) -> Snapshot:
    found = [one for one in rested if one.id.startswith(name) or one.path.name == name]
    if not found:
        raise NotFoundError(
            f"snapshot {name}: none of that id rests in {trash.trash_path(directory)}",
            hint="sagewai-ops snapshots list",
        )
    if len(found) > 1:
        raise UsageError(
            f"snapshot {name}: begins {len(found)} ids, {found[0].id} and {found[1].id}",
            hint="sagewai-ops snapshots list",
        )
    return found[0]


def _ahead(known: Sequence[Snapshot], owner: Owner, now: datetime) -> str:
    """Name the first snapshot of the owner's that is dated after now."""
    for one in known:
        if one.created_at > now + _CLOCK_DRIFT and not reason_not_owned(one, owner):
            return one.id
    return ""
