"""`snapshots prune`: remove the snapshots that no rule keeps."""

from dataclasses import replace
from typing import Annotated

from sagewai_ops.cli.command import Outcome, Run, command
from sagewai_ops.cli.options import RETENTION, DryRunOption, option
from sagewai_ops.errors import UsageError

from .retention_options import (  # noqa: TID251 - a neighbour
    AllPaths,
    KeepOptions,
    exit_code_of,
    show,
    warnings_of,
)
from .shared_options import (  # noqa: TID251 - a neighbour
    DirectoryWaitOption,
    RepositoryPassword,
    SnapshotsOption,
)

PRUNE_HELP = """Remove the snapshots of this home that no rule keeps.

Kept in any case: the newest snapshot, the newest complete one, the newest that a drill proved, and
those of other homes or without a readable metadata file. Removed snapshots are moved to .trash of
the directory until the next run; `snapshots undelete` restores them. In a repository, the engine
forgets them then; their space is reclaimed on request only.

Exit status:
  0   pruned, or nothing to remove
  2   no rule
  3   the store of a remote place keeps what was deleted
  11  locked by another run
  14  permission denied
"""


@command(
    "snapshots prune",
    PRUNE_HELP,
    result="sagewai_ops.snapshots.prune:PruneResult",
    unattended=True,
    changes=True,
)
def prune(
    run: Run,
    *,
    snapshots: SnapshotsOption = None,
    keep: KeepOptions,
    any_place: AllPaths = False,
    reclaim: Annotated[
        bool, option(RETENTION, "--reclaim", "Remove data of a repository that no snapshot needs.")
    ] = False,
    password: RepositoryPassword,
    dry_run: DryRunOption = False,
    wait: DirectoryWaitOption = 0.0,
) -> Outcome:
    """Parse, prune, render."""
    from sagewai_ops.remote.path import has_trees, tree_store
    from sagewai_ops.snapshots.prune import prune as prune_snapshots
    from sagewai_ops.snapshots.trust import trust_of

    home = run.home()
    directory = run.snapshots(home, snapshots)
    password.require_repository(directory)
    if reclaim and not has_trees(directory):
        raise UsageError(
            f"--reclaim: {directory} is not a repository",
            hint="sagewai-ops snapshots prune --engine restic --repository R --reclaim",
        )
    result = prune_snapshots(
        home,
        directory,
        keep.policy(),
        all_paths=any_place,
        dry_run=dry_run,
        wait_seconds=wait,
        trust=trust_of(home, directory, run.settings.environment),
    )
    if reclaim and has_trees(directory) and not dry_run:
        tree_store(directory).reclaim()
        result = replace(result, reclaimed=True)
    return Outcome(
        result,
        lambda terminal: show(terminal, result, everything=dry_run or run.settings.verbose),
        exit_code=exit_code_of(result),
        warnings=warnings_of(result),
        always=dry_run,
    )
