"""Verify the permissions of a home: look, repair if asked to, look again."""

from dataclasses import dataclass
from pathlib import Path

from sagewai_ops.home.paths import Home
from sagewai_ops.permissions.findings import Inspection
from sagewai_ops.permissions.repair import Repaired, apply_repairs, plan_repairs
from sagewai_ops.permissions.scan import inspect
from sagewai_ops.permissions.undo_record import Change
from sagewai_ops.progress import Progress


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found, planned and done.

    Attributes:
        inspection: As the home is at the end.
        before: As it was when the run began; the same where nothing was repaired.
        changes: What would mend it, or did.
        repaired: None where nothing was asked for.
    """

    inspection: Inspection
    before: Inspection
    changes: tuple[Change, ...]
    repaired: Repaired | None


def verify(
    home: Home,
    snapshots: Path | None = None,
    *,
    refused_key: str = "",
    fix: bool = False,
    wait_seconds: float = 0.0,
    progress: Progress | None = None,
) -> Verification:
    """Judge a home by the rules.

    Args:
        snapshots: The snapshot directory; need not exist.
        refused_key: As `inspect` takes it.
        fix: Repair what can be repaired, and judge it again.
        progress: Told of entries looked at, of an unknown total.

    Raises:
        NotFoundError: There is no such home.
        LockedError: Another run holds the home that should be repaired.
        PermissionDeniedError: The home cannot be opened, or nothing may be written to it.
    """
    before = inspect(home, snapshots, refused_key=refused_key, progress=progress)
    changes = plan_repairs(before)
    if not fix:
        return Verification(before, before, changes, None)
    repaired = apply_repairs(home, before, changes, wait_seconds=wait_seconds)
    if not changes:
        return Verification(before, before, changes, repaired)
    after = inspect(home, snapshots, refused_key=refused_key, progress=progress)
    return Verification(after, before, changes, repaired)
