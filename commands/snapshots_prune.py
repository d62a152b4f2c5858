"""`snapshots prune`: remove the snapshots that no rule keeps."""

from typing import Annotated

import typer

from sagewai_ops.cli.command import Outcome, Run, add_command

from .retention_options import (  # noqa: TID251 - a neighbour
    AnyPlace,
    KeepDaily,
    KeepHourly,
    KeepLast,
    KeepMonthly,
    KeepTag,
    KeepWeekly,
    KeepWithin,
    KeepYearly,
    as_result,
    policy_of,
    show,
    warnings_of,
)
from .shared_options import DirectoryWaitOption, SnapshotsOption  # noqa: TID251 - a neighbour

PRUNE_HELP = """Remove the snapshots of this home that no rule keeps.

A snapshot stays if any rule keeps it. The newest always stays, so do the newest that a drill
proved restorable and the newest complete one, and whatever is of another home or has no card
that can be read. What goes rests in .trash of the directory until the next prune;
`snapshots undelete` brings it back.

\b
Examples:
  sagewai-ops snapshots prune --keep-daily 7 --keep-weekly 4 --keep-monthly 12 --dry-run
  sagewai-ops snapshots prune --keep-within 30d --keep-yearly 10

\b
Exit codes: 0 done, also when nothing had to go, 2 no rule is given, 11 another run,
14 the directory may not be changed.
"""


def register(group: typer.Typer) -> None:
    """Add it."""
    add_command(group, "snapshots prune", prune, PRUNE_HELP, unattended=True, changes=True)


def prune(
    run: Run,
    *,
    snapshots: SnapshotsOption = None,
    keep_last: KeepLast = 0,
    keep_hourly: KeepHourly = 0,
    keep_daily: KeepDaily = 0,
    keep_weekly: KeepWeekly = 0,
    keep_monthly: KeepMonthly = 0,
    keep_yearly: KeepYearly = 0,
    keep_within: KeepWithin = "",
    keep_tag: KeepTag = None,
    any_place: AnyPlace = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would go and why the rest stays.")
    ] = False,
    wait: DirectoryWaitOption = 0.0,
) -> Outcome:
    """Parse, prune, render."""
    from sagewai_ops.snapshots.prune import prune as carry_out

    policy = policy_of(
        keep_last,
        {
            "hourly": keep_hourly,
            "daily": keep_daily,
            "weekly": keep_weekly,
            "monthly": keep_monthly,
            "yearly": keep_yearly,
        },
        keep_within,
        keep_tag,
    )
    home = run.home()
    directory = run.snapshots(home, snapshots)
    result = as_result(
        carry_out(home, directory, policy, all_paths=any_place, dry_run=dry_run, wait_seconds=wait)
    )
    return Outcome(
        result,
        lambda terminal: show(terminal, result, everything=dry_run or run.settings.verbose),
        warnings=warnings_of(result),
        always=dry_run,
    )
