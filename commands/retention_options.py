"""The retention options of `snapshots prune` and `backup`."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from sagewai_ops.cli.command import Outcome, Run, as_parameters
from sagewai_ops.cli.options import RETENTION, option
from sagewai_ops.cli.terminal import Terminal
from sagewai_ops.errors import EXIT_DONE, EXIT_INCOMPLETE
from sagewai_ops.text import shell_word, size

# At least, after a backup: another run holds the directory for the moments that it renames.
WAIT_SECONDS = 30.0


def _count(rule: str, text: str) -> tuple[Any, Any]:
    return Annotated[int, option(RETENTION, f"--keep-{rule}", f"Keep {text}.", "N", min=0)], 0


_PERIODS = {
    "hourly": "the newest of each of N hours",
    "daily": "the newest of each of N days (UTC)",
    "weekly": "the newest of each of N ISO weeks",
    "monthly": "the newest of each of N months",
    "yearly": "the newest of each of N years",
}
_SPAN = option(RETENTION, "--keep-within", "Keep all of the last 30d, 36h, 2w, 1y6m.", "SPAN")
_TAG = option(RETENTION, "--keep-tag", "Keep all with this tag; repeatable.", "TAG")
# Parameter -> annotation and default.
_KEEP: dict[str, tuple[Any, Any]] = {
    "keep_last": _count("last", "the N newest"),
    **{f"keep_{rule}": _count(rule, text) for rule, text in _PERIODS.items()},
    "keep_within": (Annotated[str, _SPAN], ""),
    "keep_tag": (Annotated[list[str] | None, _TAG], None),
}
AllPaths = Annotated[
    bool,
    option(RETENTION, "--all-paths", "Include snapshots of this home at other paths or hosts."),
]


def with_policy(function: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """Return a command's function with the options of retention in place of its `policy`.

    Raises:
        UsageError: From the function that is returned: the span is invalid.
    """
    signature = inspect.signature(function)
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        parameters += as_parameters(_KEEP) if parameter.name == "policy" else [parameter]

    @functools.wraps(function)
    def called(run: Run, **options: Any) -> Outcome:
        policy = policy_of({name: options.pop(name) for name in _KEEP})
        return function(run, policy=policy, **options)

    called.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return called


def policy_of(options: Mapping[str, Any]) -> Any:
    """Return the rules in options such as `keep_last`.

    Raises:
        UsageError: The span is invalid.
    """
    from sagewai_ops.snapshots.retention import Policy

    keep = {name.removeprefix("keep_"): value for name, value in options.items()}
    periods = {rule: keep[rule] for rule in _PERIODS if keep.get(rule)}
    tags = frozenset(keep.get("tag") or ())
    return Policy(keep.get("last", 0), periods, keep.get("within", ""), tags)


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
