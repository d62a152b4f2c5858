"""The result of `--dry-run`, for commands that have no plan with a shape of its own."""

from collections.abc import Iterable

from sagewai_ops.cli.command import Outcome
from sagewai_ops.cli.terminal import Terminal
from sagewai_ops.records import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """The changes that a run would make.

    Attributes:
        steps: One line each, in the order of execution, with a verb first.
    """

    dry_run: bool
    steps: tuple[str, ...]


def plan_outcome(steps: Iterable[str], *, warnings: tuple[str, ...] = ()) -> Outcome:
    """Return the outcome of a dry run."""
    plan = Plan(dry_run=True, steps=tuple(steps))

    def show(terminal: Terminal) -> None:
        for step in plan.steps or ("change nothing",):
            terminal.line(f"would {step}")

    return Outcome(plan, show, warnings=warnings, always=True)
