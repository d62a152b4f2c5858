"""Step back: undo the last restore, or finish one that was interrupted."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from sagewai_ops.database.sqlite.in_use import require_unused
from sagewai_ops.errors import NotFoundError
from sagewai_ops.fs import locks
from sagewai_ops.home.paths import DATABASE, Home
from sagewai_ops.swap import swap


@dataclass(frozen=True, slots=True)
class UndoReport:
    """A restore that was taken back.

    Attributes:
        brought_back: What is the home again, by the name that it had.
        before: Where what was the home is kept; None in a dry run.
    """

    restored_from: Path
    previous: Path | None


def undo_restore(target: Home, *, dry_run: bool = False, wait_seconds: float = 0.0) -> UndoReport:
    """Exchange the home and what was there before the last restore; done twice, it is as it was.

    Raises:
        NotFoundError: No restore kept anything.
        TargetBusyError: A process uses the home's database.
        LockedError: Another run holds the home, or a restore was interrupted.
    """
    with contextlib.ExitStack() as stack:
        if target.root.is_dir():
            stack.enter_context(locks.exclusive(target.root, wait_seconds=wait_seconds))
        swap.require_settled(target.root)
        if not dry_run:
            swap.sweep(target.root)
        kept = swap.kept_before(target.root)
        if not kept:
            raise NotFoundError(
                f"home {target.root}: nothing kept from before a restore, beside it or in it",
                hint="sagewai-ops restore SNAPSHOT --replace",
            )
        require_unused(target.root, target.root / DATABASE)
        if dry_run:
            return UndoReport(kept[-1], None)
        return UndoReport(*swap.undo(target.root, kept[-1]))


def recover_restore(target: Home, *, wait_seconds: float = 0.0) -> str:
    """Finish a restore that was interrupted; `finished`, `rolled back` or `nothing to do`.

    Raises:
        LockedError: Another run holds the home.
        OpsError: The system refused; run it again once that is mended.
    """
    with contextlib.ExitStack() as stack:
        if target.root.is_dir():
            stack.enter_context(locks.exclusive(target.root, wait_seconds=wait_seconds))
        return swap.recover(target.root)
