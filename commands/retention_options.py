"""The options that say which snapshots stay, as `snapshots prune` and `backup` take them."""

from typing import Annotated, Any

import typer

from sagewai_ops.cli.terminal import Terminal
from sagewai_ops.text import size

_Count = int


def _keep(name: str, what: str) -> Any:
    return typer.Option(f"--keep-{name}", min=0, metavar="N", help=f"Keep {what}.")


KeepLast = Annotated[_Count, _keep("last", "the N newest")]
KeepHourly = Annotated[_Count, _keep("hourly", "the newest of N hours")]
KeepDaily = Annotated[_Count, _keep("daily", "the newest of N days (UTC)")]
KeepWeekly = Annotated[_Count, _keep("weekly", "the newest of N ISO weeks")]
KeepMonthly = Annotated[_Count, _keep("monthly", "the newest of N months")]
KeepYearly = Annotated[_Count, _keep("yearly", "the newest of N years")]
KeepWithin = Annotated[
    str,
    typer.Option("--keep-within", metavar="SPAN", help="Keep all of the last 30d, 36h, 2w, 1y6m."),
]
KeepTag = Annotated[
    list[str] | None, typer.Option("--keep-tag", metavar="TAG", help="Keep all with this tag.")
]
AnyPlace = Annotated[
    bool,
    typer.Option(
        "--all-paths",
        help="Take what this home left at other paths and on other machines for its own.",
    ),
]


def policy_of(
    last: int, periods: dict[str, int], keep_within: str, keep_tag: list[str] | None
) -> Any:
    """Build the policy that the options ask for.

    Raises:
        UsageError: The span is none.
    """
    from sagewai_ops.snapshots.retention import Policy

    asked = {rule: count for rule, count in periods.items() if count}
    return Policy(last, asked, keep_within, frozenset(keep_tag or ()))


def as_result(pruned: Any) -> dict[str, Any]:
    """Give the JSON of a prune; docs/json.md."""
    policy = pruned.policy
    return {
        "folder": str(pruned.directory),
        "policy": {
            "last": policy.last,
            **{rule: policy.periods.get(rule, 0) for rule in _PERIODS},
            "within": policy.within,
            "tags": sorted(policy.tags),
        },
        "snapshots": [
            {
                "id": decision.snapshot.id,
                "archive": str(decision.snapshot.path),
                "created_at": decision.snapshot.created_text,
                "sequence": decision.snapshot.sequence,
                "archive_bytes": decision.snapshot.size_bytes,
                "stays": decision.is_kept,
                "reasons": list(decision.reasons),
            }
            for decision in pruned.plan.decisions
        ],
        "removed": [one.id for one in pruned.plan.removed],
        "purged": [one.id for one in pruned.purged],
        "resting": [one.id for one in pruned.remaining],
        "set_back": [
            {"before": before, "after": after} for before, after in pruned.plan.clock_changes
        ],
        "ahead": pruned.future_id or None,
        "dry_run": pruned.dry_run,
    }


def warnings_of(result: dict[str, Any]) -> tuple[str, ...]:
    """Say what a prune could not do as it was asked, one line each."""
    if not result["ahead"]:
        return ()
    words = (
        f"snapshot {result['ahead']}: dated after now, so a clock is or was wrong: nothing in "
        f"{result['folder']}/.trash is removed for ever until that is settled"
    )
    return (words,)


def show(terminal: Terminal, result: dict[str, Any], *, everything: bool) -> None:
    """Say what goes and why what stays does.

    Args:
        everything: List each snapshot; else what goes alone.
    """
    would = "would be " if result["dry_run"] else ""
    rows = [row for row in result["snapshots"] if everything or not row["stays"]]
    if rows:
        terminal.table(
            ("id", "taken (UTC)", "size", "", "reason"),
            [
                (
                    row["id"],
                    row["created_at"],
                    size(row["archive_bytes"]),
                    "keep" if row["stays"] else "remove",
                    ", ".join(row["reasons"]) or "no rule keeps it",
                )
                for row in rows
            ],
        )
    for pair in result["set_back"]:
        terminal.line(
            f"the clock went back: {pair['after']} was taken after {pair['before']}; "
            "the rules hold before and after it apart"
        )
    terminal.line(
        f"{len(result['removed'])} of {len(result['snapshots'])} {would}moved to "
        f"{result['folder']}/.trash, "
        f"{len(result['purged'])} in it {would}permanently removed"
    )


_PERIODS = ("hourly", "daily", "weekly", "monthly", "yearly")
