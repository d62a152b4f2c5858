"""`init`: make a home, or add what one lacks."""

import os
from typing import Annotated

from sagewai_ops.cli.command import Outcome, Run, command
from sagewai_ops.cli.options import RUN, DryRunOption, option
from sagewai_ops.cli.plan import plan_outcome
from sagewai_ops.cli.terminal import Terminal

from .shared_options import HomeWaitOption  # noqa: TID251 - a neighbour

HELP = """Create a Sagewai home, or complete an existing one.

Directories, files and the master key are private from the moment they are created. Existing files
are not changed, and a second run changes nothing. Keep a copy of secrets/master.key: without it
the encrypted values are lost.

Exit status:
  0   created, or complete already
  2   another file is in the way
  10  the place of the home is unknown
  11  locked by another run
  13  not enough disk space
  14  permission denied
"""


@command("init", HELP, result="sagewai_ops.operations.init:InitReport", changes=True)
def init(
    run: Run,
    *,
    no_key: Annotated[bool, option(RUN, "--no-key", "Create no master key.")] = False,
    dry_run: DryRunOption = False,
    wait: HomeWaitOption = 0.0,
) -> Outcome:
    """Parse, make, render."""
    from sagewai_ops.operations.init import init_home

    report = init_home(
        run.home(),
        run.settings.environment,
        with_key=not no_key,
        dry_run=dry_run,
        wait_seconds=wait,
    )
    if dry_run:
        steps = (f"create {os.path.normpath(report.home / path)}" for path in report.made)
        return plan_outcome(steps, warnings=report.warnings)

    def show(terminal: Terminal) -> None:
        terminal.line(f"home {report.home}: ready", style="bold green")
        for path in report.made:
            terminal.line(f"  made  {path}")
        for path, reason in report.left.items():
            terminal.line(f"  left  {path}: {reason}")
        if report.key_fingerprint:
            terminal.line(f"  key   {report.key_fingerprint}, {report.key_source}: keep a copy")

    return Outcome(report, show, warnings=report.warnings)
