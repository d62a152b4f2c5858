"""Prune snapshots in two phases: they stay in the trash until the next prune.

A run first moves the snapshots that no rule keeps, then removes permanently what earlier runs had
moved. So a run that dies has removed nothing permanently that no successful run had moved before.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from sagewai_ops.errors import NotFoundError
from sagewai_ops.fs import locks
from sagewai_ops.home.paths import Home
from sagewai_ops.snapshots import trash
from sagewai_ops.snapshots.catalog import Snapshot, list_snapshots, match_id
from sagewai_ops.snapshots.ownership import Owner, owner_of, reason_not_owned, resolve_host
from sagewai_ops.snapshots.retention import Policy, RetentionPlan, plan_retention

_CLOCK_DRIFT = timedelta(hours=1)  # more than the clocks of machines that share a directory differ


@dataclass(frozen=True, slots=True)
class PruneReport:
    """A prune, or its plan.

    Attributes:
        purged: Snapshots removed permanently.
        remaining: Snapshots that stay in the trash, including those of other homes.
        future_id: A snapshot dated in the future: nothing is removed permanently, because the
            clock is or was wrong. "" without one.
        dry_run: Whether nothing was changed.
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
    """Move the snapshots of a home that no rule keeps to the trash, and purge the earlier ones.

    Args:
        directory: Need not exist.
        all_paths: Include snapshots of the same home from other paths and machines.
        now: UTC; None for the clock's time.

    Raises:
        UsageError: The policy has no rule.
        LockedError: The directory is locked by another run.
        PermissionDeniedError, OpsError: The directory cannot be changed; each snapshot is in the
            directory or in the trash.
    """
    with contextlib.ExitStack() as stack:
        if not dry_run and directory.is_dir():
            stack.enter_context(locks.exclusive(directory, wait_seconds=wait_seconds))
            trash.repair_trash(directory)
        known, trashed = list_snapshots(directory), trash.list_trash(directory)
        owner = resolve_host(owner_of(home, all_paths=all_paths), (*known, *trashed))
        plan = plan_retention(known, policy, owner)
        future_id = _find_future(known, owner, now or datetime.now(timezone.utc))
        purged = tuple(
            item for item in trashed if not future_id and not reason_not_owned(item, owner)
        )
        if not dry_run and directory.is_dir():
            trash.move_to_trash(directory, plan.removed)
            trash.purge(directory, purged)
        purged_paths = {item.path for item in purged}
        remaining = tuple(item for item in trashed if item.path not in purged_paths)
        return PruneReport(directory, policy, plan, purged, remaining, future_id, dry_run)


def undelete(
    directory: Path, names: Sequence[str], *, dry_run: bool = False, wait_seconds: float = 0.0
) -> tuple[Path, ...]:
    """Move snapshots from the trash back to their directory; return the paths of their archives.

    Args:
        names: Ids or unique prefixes of ids; empty for all.
        dry_run: Move nothing.

    Raises:
        NotFoundError: No such snapshot in the trash.
        UsageError: A prefix is ambiguous.
        LockedError: The directory is locked by another run.
        TargetBusyError, OpsError: From `trash.undelete`.
    """
    if not directory.is_dir():
        raise NotFoundError(f"{directory}: not found", hint="name the directory: --snapshots DIR")
    with contextlib.ExitStack() as stack:
        if not dry_run:
            stack.enter_context(locks.exclusive(directory, wait_seconds=wait_seconds))
            trash.repair_trash(directory)
        trashed = trash.list_trash(directory)
        where = trash.trash_path(directory)
        chosen = [match_id(trashed, name, where) for name in names] if names else trashed
        paths = list(dict.fromkeys(item.path for item in chosen))
        if not dry_run:
            trash.undelete(directory, [item for item in trashed if item.path in paths])
        return tuple(directory / path.name for path in paths)


def _find_future(known: Sequence[Snapshot], owner: Owner, now: datetime) -> str:
    """Return the id of the owner's first snapshot that is dated in the future, or ""."""
    for snapshot in known:
        if snapshot.created_at > now + _CLOCK_DRIFT and not reason_not_owned(snapshot, owner):
            return snapshot.id
    return ""
