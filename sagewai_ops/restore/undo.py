"""Undo the last restore, or finish an interrupted one."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sagewai_ops.database.postgres.sessions import require_home_unused
from sagewai_ops.errors import NotFoundError
from sagewai_ops.fs import locks
from sagewai_ops.home.paths import DATABASE, Home
from sagewai_ops.swap import pending, swap


@dataclass(frozen=True, slots=True)
class UndoReport:
    """The undo of a restore.

    Attributes:
        restored_from: The kept directory that is the home again.
        previous: Where the replaced home is kept; None in a dry run.
    """

    restored_from: Path
    previous: Path | None


def undo_restore(
    target: Home,
    environment: Mapping[str, str] | None = None,
    *,
    dry_run: bool = False,
    wait_seconds: float = 0.0,
) -> UndoReport:
    """Exchange the home with the one from before the last restore; a second undo reverts the first.

    Args:
        environment: Names the server of the home's tables.

    Raises:
        NotFoundError: No restore kept a previous home.
        TargetBusyError: The home is in use.
        LockedError: The home is locked by another run, or a restore was interrupted.
    """
    with contextlib.ExitStack() as stack:
        if target.root.is_dir():
            stack.enter_context(locks.exclusive(target.root, wait_seconds=wait_seconds))
        pending.require_settled(target.root)
        if not dry_run:
            pending.sweep(target.root)
        kept = swap.kept_before(target.root)
        if not kept:
            raise NotFoundError(
                f"home {target.root}: no previous home found next to it or in it",
                hint="sagewai-ops restore SNAPSHOT --replace",
            )
        require_home_unused(target, environment or {}, target.root / DATABASE)
        if dry_run:
            return UndoReport(kept[-1], None)
        return UndoReport(*swap.undo(target.root, kept[-1]))
