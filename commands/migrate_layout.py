"""`migrate-layout`: the flat files of older versions into their directories."""

from typing import TYPE_CHECKING

from sagewai_ops.cli.command import Outcome, Run, command
from sagewai_ops.cli.options import DryRunOption
from sagewai_ops.cli.terminal import Terminal
from sagewai_ops.errors import EXIT_DONE, EXIT_INCOMPLETE

from .shared_options import (  # noqa: TID251 - a neighbour
    DatabaseOptions,
    HomeWaitOption,
)

if TYPE_CHECKING:
    from sagewai_ops.operations.migrate_layout import LayoutReport

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


@command(
    "migrate-layout",
    HELP,
    result="sagewai_ops.operations.migrate_layout:LayoutReport",
    changes=True,
)
def migrate_layout(
    run: Run,
    *,
    database_options: DatabaseOptions,
    dry_run: DryRunOption = False,
    wait: HomeWaitOption = 0.0,
) -> Outcome:
    """Parse, move, render."""
    from sagewai_ops.operations import migrate_layout as operations_migrate_layout

    run = database_options.apply(run)
    report = operations_migrate_layout.migrate_layout(
        run.home(), run.settings.environment, dry_run=dry_run, wait_seconds=wait
    )
    return Outcome(
        report,
        lambda terminal: show(terminal, report),
        exit_code=EXIT_DONE if report.complete else EXIT_INCOMPLETE,
        warnings=report.warnings,
        always=dry_run,
    )


def show(terminal: Terminal, report: "LayoutReport") -> None:
    """Render for people."""
    if report.recovered != "nothing to do":
        terminal.line(f"a pending migration was {report.recovered}")
    for item in report.items:
        words = _WORDS[item.action].format(name=item.name, place=item.place, kept=item.kept)
        detail = f" ({item.detail})" if item.detail else ""
        terminal.line(f"  {item.action.value:<8} {words}{detail}")
    state = "would be in" if report.dry_run else "is in"
    if not report.items:
        terminal.line(f"home {report.home}: nothing of the older layout")
    elif report.complete:
        terminal.line(f"home {report.home}: {state} the layout of today", style="bold green")
    else:
        terminal.line(f"home {report.home}: not all could be moved", style="yellow")
