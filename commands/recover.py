"""`recover`: complete or roll back an interrupted operation."""

from typing import TYPE_CHECKING

from sagewai_ops.cli.command import Outcome, Run, command
from sagewai_ops.cli.options import DryRunOption
from sagewai_ops.cli.terminal import Terminal, abridged
from sagewai_ops.errors import EXIT_DONE, EXIT_INCOMPLETE

from .shared_options import (  # noqa: TID251 - a neighbour
    DatabaseOptions,
    WriterWaitOption,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sagewai_ops.fs.journal import LeftValue, Recovery
    from sagewai_ops.keys.trial_decryption import Unopened
    from sagewai_ops.operations.recover import RecoveryReport
    from sagewai_ops.restore.results import Recovered

HELP = """Complete or roll back an interrupted operation.

A restore, an export, a key rotation or a layout migration that was killed between old and new is
completed, or rolled back where the system refuses that or the server did not commit. Until then
every other command ends with 11. Leftovers of dead runs are removed. Running it again, or with
nothing pending, changes nothing.

Exit status:
  0   recovered, or nothing pending
  1   recovery failed; it can be run again
  2   SAGEWAI_DATABASE_URL does not name the server that was changed
  3   recovered, but values or steps remain
  10  home not found
  11  locked by another run, or its transaction has not ended
  13  not enough disk space
  14  permission denied
  15  in use by a process
  16  damaged database
  19  server or network failure
"""


@command("recover", HELP, result="sagewai_ops.operations.recover:RecoveryReport", changes=True)
def recover(
    run: Run,
    *,
    database_options: DatabaseOptions,
    dry_run: DryRunOption = False,
    wait: WriterWaitOption = 5.0,
) -> Outcome:
    """Parse, recover, render."""
    from sagewai_ops.home.paths import require
    from sagewai_ops.operations.recover import recover_home

    run = database_options.apply(run, required=False)
    home = run.home()
    report = recover_home(home, run.settings.environment, dry_run=dry_run, wait_seconds=wait)
    if report.is_empty:
        require(home)  # without one, a restore of it may have been pending
    return outcome_of(report)


def outcome_of(report: "RecoveryReport") -> Outcome:
    """Return the outcome of a recovery, or of its dry run."""
    return Outcome(
        report,
        lambda terminal: _show(terminal, report),
        exit_code=EXIT_DONE if report.is_complete else EXIT_INCOMPLETE,
        warnings=tuple(line for recovery in report.recovered for line in warnings_of(recovery)),
        always=True,
    )


def warnings_of(recovery: "Recovery") -> tuple[str, ...]:
    """Return what remains to be done after a recovery, one line each."""
    reason = (f"{recovery.operation}: {recovery.reason}",) if recovery.reason else ()
    return (*reason, *unchanged(recovery.left), *recovery.steps)


def unchanged(left: "Sequence[LeftValue | Unopened]") -> list[str]:
    """Return a line for each value that no key opens."""
    return abridged([f"{value.place} {value.where}: unchanged, {value.reason}" for value in left])


def alias_outcome(report: "RecoveryReport") -> "Recovered":
    """Return the outcome in the words of `restore --recover` and `keys rotate --recover`."""
    outcome = report.recovered[-1].outcome if report.recovered else "nothing to do"
    return "finished" if outcome == "completed" else outcome


def _show(terminal: Terminal, result: "RecoveryReport") -> None:
    home = result.home
    if result.dry_run:
        for found in result.pending:
            terminal.line(f"home {home}: {found.operation} pending, {found.journal}")
    for recovery in result.recovered:
        key = recovery.key_fingerprint
        suffix = f", all values under key {key}" if key else ""
        terminal.line(f"home {home}: {recovery.operation} {recovery.outcome}{suffix}")
    if not result.recovered and not (result.dry_run and result.pending):
        terminal.line(f"home {home}: nothing pending")
    if result.removed:
        terminal.line(f"  removed   {', '.join(result.removed)}")
