"""Verify the permissions of a home: inspect, repair on request, inspect again."""

from pathlib import Path

from sagewai_ops.home.paths import Home
from sagewai_ops.permissions.findings import Inspection
from sagewai_ops.permissions.repair import RepairReport, apply_repairs, plan_repairs
from sagewai_ops.permissions.scan import inspect
from sagewai_ops.permissions.undo_record import Change
from sagewai_ops.progress import Progress
from sagewai_ops.records import dataclass


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of a verification.

    Attributes:
        inspection: At the end.
        changes: The planned or made repairs.
        repair: None if no repair was requested.
    """

    inspection: Inspection
    changes: tuple[Change, ...]
    repair: RepairReport | None


def verify(
    home: Home,
    snapshots: Path | None = None,
    *,
    refused_key: str = "",
    fix: bool = False,
    wait_seconds: float = 0.0,
    progress: Progress | None = None,
) -> Verification:
    """Inspect a home by the rules, and repair it on request.

    Args:
        snapshots: The snapshot directory; need not exist.
        refused_key: As for `inspect`.
        fix: Repair the home, and inspect it again.
        progress: In entries, of an unknown total.

    Raises:
        NotFoundError: The home does not exist.
        LockedError: Another run has locked the home that is to be repaired.
        PermissionDeniedError: The home cannot be opened, or is not writable.
    """
    before = inspect(home, snapshots, refused_key=refused_key, progress=progress)
    changes = plan_repairs(before)
    if not fix:
        return Verification(before, changes, None)
    repair = apply_repairs(home, before, changes, wait_seconds=wait_seconds)
    if not changes:
        return Verification(before, changes, repair)
    after = inspect(home, snapshots, refused_key=refused_key, progress=progress)
    return Verification(after, changes, repair)
