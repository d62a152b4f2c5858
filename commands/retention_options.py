"""The retention options of `snapshots prune` and `backup`, and how both apply the rules."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from sagewai_ops.cli.command import Run
from sagewai_ops.cli.options import RETENTION, option
from sagewai_ops.cli.terminal import Terminal
from sagewai_ops.errors import EXIT_DONE, EXIT_INCOMPLETE, OpsError
from sagewai_ops.records import dataclass
from sagewai_ops.text import shell_word, size

if TYPE_CHECKING:
    from sagewai_ops.backup.results import RetentionResult
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


@dataclass(frozen=True, slots=True)
class Retention:
    """The rules after a backup, in its directory or in the place of a copy."""

    result: "RetentionResult"
    warnings: tuple[str, ...]
    exit_code: int

    def without_good(self) -> "Retention":
        """Return it as applied to snapshots that are not good, because the new one is not."""
        problem = "retention: not applied to good snapshots, as the new one is not good"
        result = replace(self.result, applied=False, problem=problem)
        return Retention(result, (problem, *self.warnings), EXIT_DONE)


def apply_rules(
    run: Run,
    directory: Path,
    policy: "Policy",
    *,
    wait_seconds: float,
    what: str = "retention",
    all_paths: bool = False,
    spares_good: bool = False,
) -> Retention:
    """Prune after a backup; a failure does not affect the new snapshot.

    Args:
        what: Begins the line about a failure.
    """
    from sagewai_ops.backup.results import RetentionResult
    from sagewai_ops.snapshots.prune import prune
    from sagewai_ops.snapshots.trust import trust_of

    home = run.home()
    try:
        pruned = prune(
            home,
            directory,
            policy,
            all_paths=all_paths,
            wait_seconds=max(wait_seconds, WAIT_SECONDS),
            trust=trust_of(home, directory, run.settings.environment),
            spares_good=spares_good,
        )
    except OpsError as error:
        problem = f"{what}: not applied, {error.message}"
        return Retention(RetentionResult(False, problem), (problem,), EXIT_INCOMPLETE)
    return Retention(RetentionResult.build(pruned), warnings_of(pruned), exit_code_of(pruned))


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
