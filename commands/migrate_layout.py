"""`migrate-layout`: the flat files of older versions into their directories."""

from typing import Any

import typer

from sagewai_ops.cli.command import Outcome, Run, add_command
from sagewai_ops.cli.options import DryRunOption
from sagewai_ops.cli.terminal import Terminal
from sagewai_ops.errors import EXIT_DONE, EXIT_INCOMPLETE

from .shared_options import HomeWaitOption  # noqa: TID251 - a neighbour

HELP = """Move the files of older versions to their directories.

admin-state.json and connections.json move to config/, master.key and profiles.json to secrets/,
with mode 0600. Of two different files the newer one is used and the other kept as
NAME.legacy-<UTC>; of two keys the one that Sagewai uses. Links are replaced by their targets. An
interrupted run is completed or rolled back by the next one.

Exit status:
  0   moved, or nothing to do
  2   config or secrets is not a directory
  3   files remain at the root
  10  home not found
  11  locked by another run
  13  not enough disk space
  14  permission denied
  15  in use by a process
"""
_WORDS = {
    "move": "{name} -> {place}",
    "replace": "{name} -> {place}, previous file -> {kept}",
    "keep": "{name} -> {kept}, {place} stays",
    "remove": "{name}, {place} stays",
    "managed": "{name} stays",
    "leave": "{name} stays",
}


def register(app: typer.Typer) -> None:
    """Add the command."""
    add_command(app, "migrate-layout", migrate_layout, HELP, changes=True)


def migrate_layout(
    run: Run,
    *,
    dry_run: DryRunOption = False,
    wait: HomeWaitOption = 0.0,
) -> Outcome:
    """Parse, move, render."""
    from sagewai_ops.operations import migrate_layout as operations_migrate_layout

    report = operations_migrate_layout.migrate_layout(
        run.home(), run.settings.environment, dry_run=dry_run, wait_seconds=wait
    )
    result = as_result(report) | {"dry_run": dry_run}
    return Outcome(
        result,
        lambda terminal: show(terminal, result),
        exit_code=EXIT_DONE if report.is_complete else EXIT_INCOMPLETE,
        warnings=report.warnings,
        always=dry_run,
    )


def as_result(report: Any) -> dict[str, Any]:
    """Return the JSON of a migration; docs/json.md."""
    return {
        "home": str(report.home),
        "recovered": "finished" if report.recovered == "completed" else report.recovered,
        "items": [
            {
                "name": item.name,
                "place": item.place,
                "action": item.action.value,
                "detail": item.detail,
                "kept": item.kept or None,
            }
            for item in report.plan.items
        ],
        "steps": [
            {
                "step": step.kind.value,
                "source": step.source or None,
                "target": step.target or None,
                "mode": f"{step.mode:04o}" if step.mode else None,
            }
            for step in report.plan.steps
        ],
        "left": dict(report.plan.left),
        "fleet_rows": dict(report.fleet_rows),
        "complete": report.is_complete,
    }


def show(terminal: Terminal, result: dict[str, Any]) -> None:
    """Render for people."""
    if result["recovered"] != "nothing to do":
        terminal.line(f"a pending migration was {result['recovered']}")
    for item in result["items"]:
        words = _WORDS[item["action"]].format(**item)
        detail = f" ({item['detail']})" if item["detail"] else ""
        terminal.line(f"  {item['action']:<8} {words}{detail}")
    state = "would be in" if result["dry_run"] else "is in"
    if not result["items"]:
        terminal.line(f"home {result['home']}: nothing of the older layout")
    elif result["complete"]:
        terminal.line(f"home {result['home']}: {state} the layout of today", style="bold green")
    else:
        terminal.line(f"home {result['home']}: not all could be moved", style="yellow")
