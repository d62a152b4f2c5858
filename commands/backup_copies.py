"""`backup --also`: copies of the new snapshot in other places, each with its own retention."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagewai_ops.cli.command import Run
from sagewai_ops.cli.terminal import Terminal
from sagewai_ops.errors import EXIT_DONE, EXIT_INCOMPLETE, OpsError
from sagewai_ops.home.paths import Home
from sagewai_ops.records import dataclass
from sagewai_ops.text import size

from .retention_options import (  # noqa: TID251 - a neighbour
    WAIT_SECONDS,
    KeepOptions,
    apply_rules,
)

if TYPE_CHECKING:
    from sagewai_ops.backup.results import CopyResult


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy, or why it does not exist."""

    result: "CopyResult"
    warnings: tuple[str, ...] = ()
    exit_code: int = EXIT_DONE


def copy_to(
    run: Run, home: Home, source: Path, target: Path, options: Any, snapshot_id: str
) -> Copy:
    """Copy the new snapshot to another place, and apply the rules of that place.

    A failure is a warning and exit 3: the snapshot is complete without the copy.
    """
    from sagewai_ops.backup.copy import CopyOptions, copy_snapshots
    from sagewai_ops.backup.results import CopyResult

    try:
        with run.terminal.progress() as progress:
            copied = copy_snapshots(
                home,
                source,
                target,
                CopyOptions(
                    allow_clear=options.allow_clear,
                    amount=options.read_back,
                    wait_seconds=max(options.wait_seconds, WAIT_SECONDS),
                ),
                run.settings.environment,
                progress=progress,
            )
    except (OpsError, OSError) as error:
        message = error.message if isinstance(error, OpsError) else str(error.strerror or error)
        return _not_copied(target, message)
    if snapshot_id not in (*(item.id for item in copied.copied), *copied.present):
        return _not_copied(
            target, "not copied, because nothing confirms the metadata file of the snapshot"
        )
    done = copied.copied[0] if copied.copied else None
    result = CopyResult(
        target, done.archive if done else None, done.read_back_bytes if done else 0, None
    )
    policy = KeepOptions(**run.settings.retention_of(target)).policy()
    if policy.is_empty:
        return Copy(result, copied.warnings)
    applied = apply_rules(
        run, target, policy, wait_seconds=options.wait_seconds, what=f"retention of {target}"
    )
    result = replace(result, problem=applied.result.problem, retention=applied.result)
    return Copy(result, (*copied.warnings, *applied.warnings), applied.exit_code)


def _not_copied(target: Path, message: str) -> Copy:
    from sagewai_ops.backup.results import CopyResult

    problem = f"copy to {target}: {message}"
    return Copy(CopyResult(target, None, 0, message), (problem,), EXIT_INCOMPLETE)


def show_copies(terminal: Terminal, copies: "tuple[CopyResult, ...]") -> None:
    """Write a line for each place."""
    for copy in copies:
        if copy.problem:
            terminal.line(f"  copy      {copy.to}: {copy.problem}", style="yellow")
        else:
            read = f", {size(copy.read_back_bytes)} read back" if copy.read_back_bytes else ""
            terminal.line(f"  copy      {copy.archive or copy.to}{read}")
