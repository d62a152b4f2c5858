"""Complete or roll back whatever is pending on a home."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from sagewai_ops.fs.journal import Recovery
from sagewai_ops.home.paths import Home
from sagewai_ops.records import dataclass
from sagewai_ops.swap import pending
from sagewai_ops.swap.pending import KINDS, Kind, Pending


@dataclass(frozen=True, slots=True)
class RecoveryReport:
    """What was pending on a home, and its outcome.

    Attributes:
        pending: Before the run.
        recovered: Empty in a dry run.
        removed: The names of removed leftovers.
    """

    home: Path
    dry_run: bool
    pending: tuple[Pending, ...]
    recovered: tuple[Recovery, ...] = ()
    removed: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there was nothing to recover or to remove."""
        return not (self.pending or self.recovered or self.removed)

    @property
    def is_complete(self) -> bool:
        """Whether nothing remains to be done before Sagewai starts."""
        return not any(recovery.left or recovery.steps for recovery in self.recovered)


def recover_home(
    home: Home,
    environment: Mapping[str, str],
    *,
    kinds: Sequence[Kind] = KINDS,
    dry_run: bool = False,
    wait_seconds: float = 0.0,
) -> RecoveryReport:
    """Complete or roll back what is pending on a home, and remove the leftovers of dead runs.

    Args:
        environment: Names the database server of a key rotation.
        kinds: Only these.

    Raises:
        LockedError: Another run has locked the home.
        TargetBusyError: A process has the home or its database open.
        OpsError: The system refused; it can be run again.
    """
    found = pending.pending_operations(home.root, kinds)
    if dry_run:
        return RecoveryReport(home.root, dry_run, found)
    recovered: list[Recovery] = []
    removed: list[str] = []
    for kind in kinds:
        recoveries, swept = pending.recover(home, environment, kind, wait_seconds=wait_seconds)
        recovered += recoveries
        removed += swept
    return RecoveryReport(home.root, dry_run, found, tuple(recovered), tuple(removed))
