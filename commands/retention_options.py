"""The retention options of `snapshots prune` and `backup`."""

from typing import Annotated, Any

import typer

from sagewai_ops.cli.options import RETENTION
from sagewai_ops.cli.terminal import Terminal
from sagewai_ops.text import size


def _keep(period: str, text: str, value: str = "N", **more: Any) -> Any:
    return typer.Option(
        f"--keep-{period}",
        metavar=value,
        help=f"Keep {text}.",
        rich_help_panel=RETENTION,
        **more,
    )


KeepLast = Annotated[int, _keep("last", "the N newest", min=0)]
KeepHourly = Annotated[int, _keep("hourly", "the newest of each of N hours", min=0)]
KeepDaily = Annotated[int, _keep("daily", "the newest of each of N days (UTC)", min=0)]
KeepWeekly = Annotated[int, _keep("weekly", "the newest of each of N ISO weeks", min=0)]
KeepMonthly = Annotated[int, _keep("monthly", "the newest of each of N months", min=0)]
KeepYearly = Annotated[int, _keep("yearly", "the newest of each of N years", min=0)]
KeepWithin = Annotated[str, _keep("within", "all of the last 30d, 36h, 2w, 1y6m", "SPAN")]
KeepTag = Annotated[list[str] | None, _keep("tag", "all with this tag; repeatable", "TAG")]
AllPaths = Annotated[
    bool,
    typer.Option(
        "--all-paths",
        help="Include snapshots of this home at other paths or hosts.",
        rich_help_panel=RETENTION,
    ),
]


def policy_of(
    last: int, periods: dict[str, int], keep_within: str, keep_tag: list[str] | None
) -> Any:
    """Build the policy that the options ask for.

    Raises:
        UsageError: The span is invalid.
    """
    from sagewai_ops.snapshots.retention import Policy

    asked = {rule: count for rule, count in periods.items() if count}
    return Policy(last, asked, keep_within, frozenset(keep_tag or ()))


def warnings_of(result: Any) -> tuple[str, ...]:
    """Return a line for each part of the prune that was omitted."""
    if not result.ahead:
        return ()
    warning = (
        f"snapshot {result.ahead}: dated in the future, the clock is or was wrong: nothing in "
        f"{result.folder}/.trash is removed permanently until that is fixed"
    )
    return (warning,)


def show(terminal: Terminal, result: Any, *, everything: bool) -> None:
    """Print the removed snapshots.

    Args:
        everything: Print the kept ones and the reasons, too.
    """
    would = "would be " if result.dry_run else ""
    rows = [row for row in result.snapshots if everything or not row.stays]
    if rows:
        terminal.table(
            ("id", "created (UTC)", "size", "", "reason"),
            [
                (
                    row.id,
                    row.created_at,
                    size(row.archive_bytes),
                    "keep" if row.stays else "remove",
                    ", ".join(row.reasons) or "no rule keeps it",
                )
                for row in rows
            ],
        )
    for pair in result.set_back:
        terminal.line(
            f"the clock was set back between {pair.before} and {pair.after}: "
            "the rules are applied before and after it separately"
        )
    terminal.line(
        f"{len(result.removed)} of {len(result.snapshots)} {would}moved to "
        f"{result.folder}/.trash, "
        f"{len(result.purged)} in it {would}permanently removed"
    )
