"""`init`: make a home, or add what one lacks."""

from typing import Annotated

import typer

from sagewai_ops.cli.command import Outcome, Run, add_command
from sagewai_ops.cli.terminal import Terminal

from .shared_options import HomeWaitOption  # noqa: TID251 - a neighbour

HELP = """Make a home, or add what one lacks.

Directories and files are private from the moment that they exist. What is there is left as it is;
done twice, the second run changes nothing. The key in secrets/master.key is the only way to the
sealed
values: keep a copy of it away from the snapshots.

\b
Exit codes: 0 done, 2 something is in the way, 10 no place for it, 11 another run, 13 no space,
14 permission denied.
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    add_command(app, "init", init, HELP, changes=True)


def init(
    run: Run,
    *,
    no_key: Annotated[bool, typer.Option("--no-key", help="Make no master key.")] = False,
    wait: HomeWaitOption = 0.0,
) -> Outcome:
    """Parse, make, render."""
    from sagewai_ops.operations.init import init_home

    report = init_home(run.home(), run.settings.environment, with_key=not no_key, wait_seconds=wait)
    result = {
        "home": str(report.root),
        "made": list(report.made),
        "left": dict(report.left),
        "key_source": report.key_source,
        "key_fingerprint": report.key_fingerprint,
        "swept": list(report.swept),
    }

    def show(terminal: Terminal) -> None:
        terminal.line(f"home {report.root}: ready", style="bold green")
        for path in report.made:
            terminal.line(f"  made  {path}")
        for path, reason in report.left.items():
            terminal.line(f"  left  {path}: {reason}")
        if report.key_fingerprint:
            terminal.line(f"  key   {report.key_fingerprint}, {report.key_source}: keep a copy")

    return Outcome(result, show, warnings=report.warnings)
