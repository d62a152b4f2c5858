"""Prune snapshots in two phases: they stay in the trash until the next prune.

A run first moves the snapshots that no rule keeps, then removes permanently what earlier runs had
moved. So a run that dies has removed nothing permanently that no successful run had moved before.
"""

import contextlib
import socket
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path

from sagewai_ops.errors import NotFoundError
from sagewai_ops.fs import beneath, locks
from sagewai_ops.home.paths import Home
from sagewai_ops.records import dataclass
from sagewai_ops.remote.path import is_remote
from sagewai_ops.snapshots import trash
from sagewai_ops.snapshots.catalog import Snapshot, archive_name, list_snapshots, match_id, new_id
from sagewai_ops.snapshots.chain import record_removed
from sagewai_ops.snapshots.ownership import (
    Owner,
    home_ids,
    owner_of,
    reason_not_owned,
    resolve_host,
)
from sagewai_ops.snapshots.remote_trash import HiddenSnapshot
from sagewai_ops.snapshots.retention import (
    PERIODS,
    Decision,
    Policy,
    counts,
    plan_retention,
    protect,
)
from sagewai_ops.snapshots.trust import Trust, confirm, next_sequence

_OF_NEWEST = {"newest", "newest of the right size"}  # reasons that need not be good
_CLOCK_DRIFT = timedelta(hours=1)  # more than the clocks of machines that share a directory differ


@dataclass(frozen=True, slots=True)
class PolicyResult:
    """The rules of a prune; 0 and "" for those that are not set."""

    last: int
    hourly: int
    daily: int
    weekly: int
    monthly: int
    yearly: int
    within: str
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DecisionResult:
    """Whether a snapshot is kept, and the rules that keep it."""

    id: str
    archive: Path
    created_at: str
    sequence: int
    archive_bytes: int
    stays: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ClockChange:
    """Two snapshots: the second was created after the first and is dated before it."""

    before: str
    after: str


@dataclass(frozen=True, slots=True)
class PruneResult:
    """A prune, or its plan.

    Attributes:
        removed: Ids of the snapshots moved to the trash.
        purged: Ids of the snapshots removed permanently.
        resting: Ids of the snapshots that stay in the trash, including those of other homes.
        ahead: Id of a snapshot dated in the future: nothing is removed permanently, because the
            clock is or was wrong. None without one.
        dry_run: Whether nothing was changed.
        hidden: Snapshots of which a remote store keeps what was deleted: an object lock or
            versioning.
        reclaimed: Whether the engine of a repository removed data that no snapshot needs.
    """

    folder: Path
    policy: PolicyResult
    snapshots: tuple[DecisionResult, ...]
    removed: tuple[str, ...]
    purged: tuple[str, ...]
    resting: tuple[str, ...]
    set_back: tuple[ClockChange, ...]
    ahead: str | None
    dry_run: bool
    hidden: tuple[HiddenSnapshot, ...]
    reclaimed: bool = False


def prune(
    home: Home,
    directory: Path,
    policy: Policy,
    *,
    all_paths: bool = False,
    dry_run: bool = False,
    wait_seconds: float = 0.0,
    now: datetime | None = None,
    expected: Snapshot | None = None,
    trust: Trust | None = None,
    spares_good: bool = False,
) -> PruneResult:
    """Move the snapshots of a home that no rule keeps to the trash, and purge the earlier ones.

    Args:
        directory: Need not exist.
        all_paths: Include snapshots of the same home from other paths and machines.
        now: UTC; None for the clock's time.
        expected: In a dry run, a snapshot that will exist: from `expect_snapshot`.
        trust: Confirms the snapshots; None without a key of the home.
        spares_good: Remove no good snapshot, after a backup that is not good.

    Raises:
        UsageError: The policy has no rule.
        LockedError: The directory is locked by another run.
        PermissionDeniedError, OpsError: The directory cannot be changed; each snapshot is in the
            directory or in the trash.
    """
    with contextlib.ExitStack() as stack:
        is_present = is_remote(directory) or beneath.is_directory(directory)
        if not dry_run and is_present and not is_remote(directory):
            stack.enter_context(locks.exclusive(directory, wait_seconds=wait_seconds))
            trash.repair_trash(directory)
        trust = trust or Trust(home_ids=frozenset(home_ids(home)))
        known = confirm(directory, list_snapshots(directory), trust)
        trashed = confirm(trash.trash_path(directory), trash.list_trash(directory), trust)
        known += [expected] if expected else []
        owner = resolve_host(owner_of(home, all_paths=all_paths), (*known, *trashed))
        plan = plan_retention(known, policy, owner, spares_good=spares_good)
        future_id = _find_future(known, owner, now or datetime.now(timezone.utc))
        own_trash = [item for item in trashed if not reason_not_owned(item, owner)]
        removed = {item.path for item in plan.removed}
        own = (item for item in known if not reason_not_owned(item, owner))
        needed = _find_needed((item for item in own if item.path not in removed), own_trash)
        purged = tuple(
            item
            for item in own_trash
            if not future_id and item.path not in needed and not (spares_good and counts(item))
        )
        hidden: tuple[HiddenSnapshot, ...] = ()
        if not dry_run and is_present:
            record_removed(directory, plan.removed, trust)
            hidden += trash.move_to_trash(directory, plan.removed)
            hidden += trash.purge(directory, purged)
        purged_paths = {item.path for item in purged}
        return PruneResult(
            folder=directory,
            policy=_describe_policy(policy),
            snapshots=tuple(map(_describe_decision, plan.decisions)),
            removed=tuple(item.id for item in plan.removed),
            purged=tuple(item.id for item in purged),
            resting=tuple(item.id for item in trashed if item.path not in purged_paths),
            set_back=tuple(ClockChange(before, after) for before, after in plan.clock_changes),
            ahead=future_id or None,
            dry_run=dry_run,
            hidden=hidden,
        )


def _describe_policy(policy: Policy) -> PolicyResult:
    return PolicyResult(
        last=policy.last,
        **{rule: policy.periods.get(rule, 0) for rule in PERIODS},
        within=policy.within,
        tags=tuple(sorted(policy.tags)),
    )


def _describe_decision(decision: Decision) -> DecisionResult:
    return DecisionResult(
        id=decision.snapshot.id,
        archive=decision.snapshot.path,
        created_at=decision.snapshot.created_text,
        sequence=decision.snapshot.sequence,
        archive_bytes=decision.snapshot.size_bytes,
        stays=decision.is_kept,
        reasons=decision.reasons,
    )


def expect_snapshot(
    home: Home, directory: Path, trust: Trust, tags: Sequence[str] = ()
) -> Snapshot:
    """Return the snapshot of a home that would be created in a directory now."""
    moment = datetime.now(timezone.utc)
    snapshot_id = new_id(moment)
    card = {
        "sequence": next_sequence(directory, trust),
        "home": str(home.root),
        "home_id": home_ids(home)[0],
        "host": socket.gethostname(),
        "complete": True,
        "tags": list(tags),
    }
    path = directory / archive_name(snapshot_id, is_encrypted=False)
    return Snapshot(snapshot_id, path, moment, is_encrypted=False, size_bytes=0, card=card)


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
    if not is_remote(directory) and not beneath.is_directory(directory):
        raise NotFoundError(f"{directory}: not found", hint="name the directory: --snapshots DIR")
    with contextlib.ExitStack() as stack:
        if not dry_run and not is_remote(directory):
            stack.enter_context(locks.exclusive(directory, wait_seconds=wait_seconds))
            trash.repair_trash(directory)
        trashed = trash.list_trash(directory)
        where = trash.trash_path(directory)
        chosen = [match_id(trashed, name, where) for name in names] if names else trashed
        paths = list(dict.fromkeys(item.path for item in chosen))
        if not dry_run:
            trash.undelete(directory, [item for item in trashed if item.path in paths])
        return tuple(directory / path.name for path in paths)


def _find_needed(kept: Iterable[Snapshot], trashed: Sequence[Snapshot]) -> set[Path]:
    """Return the snapshots in the trash that replace one that the directory lacks.

    The newest good one, the newest proved one and the newest of an engine may be there only.
    """
    both = sorted((*trashed, *kept), key=lambda item: (item.sequence, item.created_at, item.id))
    reasons = protect(both)
    return {item.path for item in trashed if set(reasons.get(item.path, ())) - _OF_NEWEST}


def _find_future(known: Sequence[Snapshot], owner: Owner, now: datetime) -> str:
    """Return the id of the owner's first snapshot that is dated in the future, or ""."""
    for snapshot in known:
        if snapshot.created_at > now + _CLOCK_DRIFT and not reason_not_owned(snapshot, owner):
            return snapshot.id
    return ""
