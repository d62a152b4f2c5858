"""The operations that keep a journal, and the three questions about them: one call each.

Is an operation pending on a home? Refuse until it is settled. Settle it.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sagewai_ops.errors import LockedError
from sagewai_ops.fs import journal, locks
from sagewai_ops.fs.journal import Operation, Recovery
from sagewai_ops.home.paths import Home
from sagewai_ops.keys import rotation_journal
from sagewai_ops.layout import journal as layout_journal
from sagewai_ops.records import dataclass
from sagewai_ops.snapshots import mark
from sagewai_ops.swap import export_journal, staging, swap
from sagewai_ops.swap import journal as swap_journal
from sagewai_ops.text import shell_word


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of operation that keeps a journal.

    Attributes:
        name: In journals, in JSON and in messages.
        journals: Returns the journals of a home, of live and of dead runs.
        is_pending: Whether a journal is that of a dead run that left the home between old and new.
        sweep: Removes what dead runs left that is not pending; returns its names.
        recover: Completes or rolls back; the caller has locked the home.
    """

    name: Operation
    journals: Callable[[Path], Sequence[Path]]
    is_pending: Callable[[Path], bool]
    sweep: Callable[[Path], list[str]]
    recover: Callable[[Home, Mapping[str, str], float], Recovery]


RESTORE = Kind(swap_journal.NAME, staging.journals, staging.is_pending, staging.sweep, swap.recover)
KEY_ROTATION = Kind(
    rotation_journal.NAME,
    rotation_journal.journals,
    rotation_journal.is_pending,
    rotation_journal.sweep,
    rotation_journal.recover,
)
LAYOUT_MIGRATION = Kind(
    layout_journal.NAME,
    layout_journal.journals,
    layout_journal.is_pending,
    layout_journal.sweep,
    layout_journal.recover_home,
)
EXPORT = Kind(
    export_journal.NAME,
    export_journal.journals,
    export_journal.is_pending,
    export_journal.sweep,
    export_journal.recover,
)
# In the order of recovery: a restore may bring the home back, an export decides which database the
# others concern, and a rotation is the younger one where version 0.1 let it begin during a
# migration.
KINDS = (RESTORE, EXPORT, KEY_ROTATION, LAYOUT_MIGRATION)


@dataclass(frozen=True, slots=True)
class Pending:
    """An operation whose run died between old and new.

    Attributes:
        operation: The name of its kind.
        journal: The path of its journal.
    """

    operation: Operation
    journal: Path


def pending_operations(root: Path, kinds: Sequence[Kind] = KINDS) -> tuple[Pending, ...]:
    """Return the operations that are pending on a home."""
    return tuple(
        Pending(kind.name, path)
        for kind in kinds
        for path in journal.pending(kind.journals(root), kind.is_pending)
    )


def require_settled(root: Path, *, but: Kind | None = None) -> None:
    """Refuse a home on which an operation is pending.

    Args:
        but: A kind that the caller completes itself.

    Raises:
        LockedError: One is.
    """
    kinds = [kind for kind in KINDS if kind is not but]
    for found in pending_operations(root, kinds):
        raise LockedError(
            f"home {root}: {found.operation} pending, interrupted before its end",
            hint=f"sagewai-ops --home {shell_word(root)} recover",
        )


def sweep(root: Path) -> list[str]:
    """Remove what dead runs left on a home that is not pending; return its names."""
    return [*mark.sweep(root), *(name for kind in KINDS for name in kind.sweep(root))]


def recover(
    home: Home, environment: Mapping[str, str], kind: Kind, *, wait_seconds: float = 0.0
) -> tuple[list[Recovery], list[str]]:
    """Complete or roll back what is pending of one kind, then sweep.

    Returns:
        (what was recovered, the names of removed leftovers).

    Raises:
        LockedError: Another run has locked the home.
        TargetBusyError: A process has the home or its database open.
        OpsError: The system refused; it can be run again.
    """
    with contextlib.ExitStack() as stack:
        if home.root.is_dir():
            stack.enter_context(locks.exclusive(home.root, wait_seconds=wait_seconds))
        recoveries = []
        while (recovery := kind.recover(home, environment, wait_seconds)).operation:
            recoveries.append(recovery)
        return recoveries, [*mark.sweep(home.root), *kind.sweep(home.root)]
