"""`snapshots undelete`: bring back the snapshots that a prune removed."""

from typing import Annotated

import typer

from sagewai_ops.cli.command import Outcome, Run, add_command
from sagewai_ops.errors import UsageError

from .shared_options import DirectoryWaitOption, SnapshotsOption  # noqa: TID251 - a neighbour


def register(group: typer.Typer) -> None:
    """Add it."""
    add_command(group, "snapshots undelete", undelete, changes=True)


def undelete(
    run: Run,
    *,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SNAPSHOT]...", help="Ids, or the beginnings of ids."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that rest there.")] = False,
    snapshots: SnapshotsOption = None,
    wait: DirectoryWaitOption = 0.0,
) -> Outcome:
    """Bring snapshots that a prune removed back from .trash.

    The same rules would remove them again: change those, or move the archive elsewhere.

    Exit codes: 0 they are back, 2 none is named or a name means several, 10 none of that id rests
    there, 11 another run, 14 the directory may not be changed, 15 one of that name is there.
    """
    from sagewai_ops.snapshots.prune import undelete

    if bool(names) == everything:
        raise UsageError(
            "snapshots undelete: name snapshots, or say --all", hint="sagewai-ops snapshots list"
        )
    directory = run.snapshots(run.home(), snapshots)
    paths = undelete(directory, names or (), wait_seconds=wait)
    result = {"folder": str(directory), "brought_back": [str(path) for path in paths]}
    words = f"{len(paths)} snapshots brought back to {directory}"
    return Outcome(result, lambda terminal: terminal.line(words))
