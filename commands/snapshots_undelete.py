"""`snapshots undelete`: restore the snapshots that a prune removed."""

from pathlib import Path
from typing import Annotated

import typer

from sagewai_ops.cli.command import Outcome, Run, command
from sagewai_ops.cli.options import SNAPSHOTS, DryRunOption, option
from sagewai_ops.cli.plan import plan_outcome
from sagewai_ops.errors import UsageError
from sagewai_ops.records import dataclass

from .shared_options import (  # noqa: TID251 - a neighbour
    DirectoryWaitOption,
    RepositoryPassword,
    SnapshotsOption,
)


@dataclass(frozen=True, slots=True)
class UndeletedSnapshots:
    """The archives that were moved back from the trash."""

    folder: Path
    brought_back: tuple[Path, ...]


@command(
    "snapshots undelete",
    result="sagewai_ops.commands.snapshots_undelete:UndeletedSnapshots",
    changes=True,
)
def undelete(
    run: Run,
    *,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SNAPSHOT]...", help="Ids, or the beginnings of ids."),
    ] = None,
    everything: Annotated[bool, option(SNAPSHOTS, "--all", "All snapshots in .trash.")] = False,
    snapshots: SnapshotsOption = None,
    password: RepositoryPassword,
    dry_run: DryRunOption = False,
    wait: DirectoryWaitOption = 0.0,
) -> Outcome:
    """Restore snapshots that a prune removed.

    They are moved back from .trash. The same rules would remove them again: change the rules, or
    move the archives to another directory.

    Exit status:
      0   restored
      2   no name, or an ambiguous one
      10  not found in .trash
      11  locked by another run
      14  permission denied
      15  a snapshot of that name exists
      19  the remote place failed
    """
    from sagewai_ops.snapshots.prune import undelete

    if bool(names) == everything:
        raise UsageError(
            "snapshots undelete: name snapshots, or use --all", hint="sagewai-ops snapshots list"
        )
    directory = run.snapshots(run.home(), snapshots)
    password.require_repository(directory)
    paths = undelete(directory, names or (), dry_run=dry_run, wait_seconds=wait)
    if dry_run:
        return plan_outcome(f"move {path.name} back to {directory}" for path in paths)
    result = UndeletedSnapshots(directory, paths)
    summary = f"{len(paths)} snapshots restored to {directory}"
    return Outcome(result, lambda terminal: terminal.line(summary))
