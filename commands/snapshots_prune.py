"""`snapshots prune` and `untrash`: remove by rules, and take that back."""

from typing import Annotated

import typer

from sagewai_ops.cli.command import Outcome, Run, command
from sagewai_ops.errors import UsageError

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
from .shared_options import SnapshotsOption  # noqa: TID251 - a neighbour

PRUNE_HELP = """Remove the snapshots of this home that no rule keeps.

A snapshot stays if any rule keeps it. The newest always stays, so do the newest that a drill
proved restorable and the newest complete one, and whatever is of another home or has no card
that can be read. What goes rests in .trash of the directory until the next prune;
`snapshots untrash` brings it back.

\b
Examples:
  sagewai-ops snapshots prune --keep-daily 7 --keep-weekly 4 --keep-monthly 12 --dry-run
  sagewai-ops snapshots prune --keep-within 30d --keep-yearly 10

\b
Exit codes: 0 done, also when nothing had to go, 2 no rule is given, 11 another run,
14 the directory may not be changed.
"""

_WaitOption = Annotated[
    float,
    typer.Option("--wait", min=0, metavar="SECONDS", help="Wait for another run on the directory."),
]


def register(group: typer.Typer) -> None:
    """Add the two."""
    group.command("prune", help=PRUNE_HELP, short_help="Remove snapshots that no rule keeps.")(
        command("snapshots prune", unattended=True)(prune)
    )
    group.command("untrash", short_help="Bring removed snapshots back.")(
        command("snapshots untrash")(untrash)
    )


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
    wait: _WaitOption = 0.0,
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
        carry_out(home, directory, policy, any_place=any_place, dry_run=dry_run, wait_seconds=wait)
    )
    return Outcome(
        result,
        lambda terminal: show(terminal, result, everything=dry_run or run.settings.verbose),
        warnings=warnings_of(result),
        always=dry_run,
    )


def untrash(
    run: Run,
    *,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SNAPSHOT]...", help="Ids, or the beginnings of ids."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that rest there.")] = False,
    snapshots: SnapshotsOption = None,
    wait: _WaitOption = 0.0,
) -> Outcome:
    """Bring snapshots that a prune removed back from .trash.

    The same rules would remove them again: change those, or move the archive elsewhere.

    Exit codes: 0 they are back, 2 none is named or a name means several, 10 none of that id rests
    there, 11 another run, 14 the directory may not be changed, 15 one of that name is there.
    """
    from sagewai_ops.snapshots.prune import untrash as bring_back

    if bool(names) == everything:
        raise UsageError(
            "snapshots untrash: name snapshots, or say --all", hint="sagewai-ops snapshots list"
        )
    directory = run.snapshots(run.home(), snapshots)
    paths = bring_back(directory, names or (), wait_seconds=wait)
    result = {"folder": str(directory), "brought_back": [str(path) for path in paths]}
    words = f"{len(paths)} snapshots brought back to {directory}"
    return Outcome(result, lambda terminal: terminal.line(words))
