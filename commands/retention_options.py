"""The retention options of `snapshots prune` and `backup`."""

from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from sagewai_ops.cli.options import RETENTION, option
from sagewai_ops.cli.terminal import Terminal
from sagewai_ops.errors import EXIT_DONE, EXIT_INCOMPLETE
from sagewai_ops.text import shell_word, size

if TYPE_CHECKING:
    from sagewai_ops.snapshots.retention import Policy

# At least, after a backup: another run holds the directory for the moments that it renames.
WAIT_SECONDS = 30.0


def _count(rule: str, text: str) -> Any:
    return option(RETENTION, f"--keep-{rule}", f"Keep {text}.", "N", min=0)


_SPAN = option(RETENTION, "--keep-within", "Keep all of the last 30d, 36h, 2w, 1y6m.", "SPAN")
_TAG = option(RETENTION, "--keep-tag", "Keep all with this tag; repeatable.", "TAG")
_PERIODS = ("hourly", "daily", "weekly", "monthly", "yearly")


class KeepOptions(NamedTuple):
    """The rules of retention, as options."""

    keep_last: Annotated[int, _count("last", "the N newest")] = 0
    keep_hourly: Annotated[int, _count("hourly", "the newest of each of N hours")] = 0
    keep_daily: Annotated[int, _count("daily", "the newest of each of N days (UTC)")] = 0
    keep_weekly: Annotated[int, _count("weekly", "the newest of each of N ISO weeks")] = 0
    keep_monthly: Annotated[int, _count("monthly", "the newest of each of N months")] = 0
    keep_yearly: Annotated[int, _count("yearly", "the newest of each of N years")] = 0
    keep_within: Annotated[str, _SPAN] = ""
    keep_tag: Annotated[list[str] | None, _TAG] = None

    def policy(self) -> "Policy":
        """Return the rules.

        Raises:
            UsageError: The span is invalid.
        """
        from sagewai_ops.snapshots.retention import Policy

        periods = {rule: getattr(self, f"keep_{rule}") for rule in _PERIODS}
        return Policy(
            self.keep_last,
            {rule: count for rule, count in periods.items() if count},
            self.keep_within,
            frozenset(self.keep_tag or ()),
        )


AllPaths = Annotated[
    bool,
    option(RETENTION, "--all-paths", "Include snapshots of this home at other paths or hosts."),
]


def warnings_of(result: Any) -> tuple[str, ...]:
    """Return a line for each part of the prune that was omitted."""
    warnings = []
    if result.hidden:
        names = (
            f"{item.id} locked until {item.locked_until}" if item.locked_until else item.id
            for item in result.hidden
        )
        warnings.append(
            f"{', '.join(names)}: deleted, but kept by the store, which has versions or an object"
            f" lock: sagewai-ops remote check {shell_word(result.folder)}"
        )
    if result.ahead:
        warnings.append(
            f"snapshot {result.ahead}: dated in the future, the clock is or was wrong: nothing in "
            f"{result.folder}/.trash is removed permanently until that is fixed"
        )
    return tuple(warnings)


def exit_code_of(result: Any) -> int:
    """Return the exit code of a prune: 3 where a store keeps what was deleted."""
    return EXIT_INCOMPLETE if result.hidden else EXIT_DONE


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
