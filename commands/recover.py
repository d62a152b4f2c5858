"""`recover`: complete or roll back an interrupted operation."""

from typing import Any

import typer

from sagewai_ops.cli.command import Outcome, Run, add_command
from sagewai_ops.cli.options import DryRunOption
from sagewai_ops.cli.terminal import Terminal
from sagewai_ops.errors import EXIT_DONE, EXIT_INCOMPLETE

from .shared_options import WriterWaitOption  # noqa: TID251 - a neighbour

HELP = """Complete or roll back an interrupted operation.

A restore, a key rotation or a layout migration that was killed between old and new is completed, or
rolled back where the system refuses that. Until then every other command ends with 11. Leftovers
of dead runs are removed. Running it again, or with nothing pending, changes nothing.

Exit status:
  0   recovered, or nothing pending
  1   recovery failed; it can be run again
  2   SAGEWAI_DATABASE_URL names another server than the key rotation changed
  3   recovered, but values or steps remain
  10  home not found
  11  locked by another run
  13  not enough disk space
  14  permission denied
  15  in use by a process
  16  damaged database
  19  server or network failure
"""
_SHOWN = 20  # values in the text; --json lists all


def register(app: typer.Typer) -> None:
    """Add the command."""
    add_command(app, "recover", recover, HELP, changes=True)


def recover(
    run: Run,
    *,
    dry_run: DryRunOption = False,
    wait: WriterWaitOption = 5.0,
) -> Outcome:
    """Parse, recover, render."""
    from sagewai_ops.home.paths import require
    from sagewai_ops.operations.recover import recover_home

    home = run.home()
    report = recover_home(home, run.settings.environment, dry_run=dry_run, wait_seconds=wait)
    if report.is_empty:
        require(home)  # without one, a restore of it may have been pending
    result = _as_result(report, is_dry=dry_run)
    return Outcome(
        result,
        lambda terminal: _show(terminal, result),
        exit_code=EXIT_DONE if report.is_complete else EXIT_INCOMPLETE,
        warnings=tuple(line for recovery in report.recoveries for line in warnings_of(recovery)),
        always=True,
    )


def warnings_of(recovery: Any) -> tuple[str, ...]:
    """Return what remains to be done after a recovery, one line each."""
    reason = (f"{recovery.operation}: {recovery.reason}",) if recovery.reason else ()
    left = [f"{place} {where}: unchanged, {why}" for place, where, why in recovery.left[:_SHOWN]]
    if len(recovery.left) > _SHOWN:
        left.append(f"and {len(recovery.left) - _SHOWN} more: --json lists them")
    return (*reason, *left, *recovery.steps)


def left_values(recovery: Any) -> list[dict[str, str]]:
    """Return the JSON of the values that no key opens."""
    return [
        {"place": place, "where": where, "reason": reason} for place, where, reason in recovery.left
    ]


def alias_outcome(report: Any) -> str:
    """Return the outcome in the words of `restore --recover` and `keys rotate --recover`."""
    outcome = report.recoveries[-1].outcome if report.recoveries else "nothing to do"
    return "finished" if outcome == "completed" else outcome


def _as_result(report: Any, *, is_dry: bool) -> dict[str, Any]:
    return {
        "home": str(report.home),
        "dry_run": is_dry,
        "pending": [
            {"operation": found.operation, "journal": str(found.journal)}
            for found in report.pending
        ],
        "recovered": [
            {
                "operation": recovery.operation,
                "outcome": recovery.outcome,
                "reason": recovery.reason,
                "key_fingerprint": recovery.key_fingerprint,
                "left": left_values(recovery),
                "steps": list(recovery.steps),
            }
            for recovery in report.recoveries
        ],
        "removed": list(report.removed),
    }


def _show(terminal: Terminal, result: dict[str, Any]) -> None:
    home = result["home"]
    if result["dry_run"]:
        for found in result["pending"]:
            terminal.line(f"home {home}: {found['operation']} pending, {found['journal']}")
    for recovery in result["recovered"]:
        key = recovery["key_fingerprint"]
        suffix = f", all values under key {key}" if key else ""
        terminal.line(f"home {home}: {recovery['operation']} {recovery['outcome']}{suffix}")
    if not result["recovered"] and not (result["dry_run"] and result["pending"]):
        terminal.line(f"home {home}: nothing pending")
    if result["removed"]:
        terminal.line(f"  removed   {', '.join(result['removed'])}")
