"""`snapshots`: the group of commands on the snapshot directory and on one snapshot."""

import typer

from sagewai_ops.cli.command import command_group

from . import (  # noqa: TID251 - a neighbour
    snapshots_copy,
    snapshots_diff,
    snapshots_extract,
    snapshots_list,
    snapshots_prune,
    snapshots_show,
    snapshots_undelete,
    snapshots_verify,
)


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = command_group("snapshots", "List, verify, compare, copy, extract and prune snapshots.")
    for module in (
        snapshots_list,
        snapshots_show,
        snapshots_verify,
        snapshots_extract,
        snapshots_diff,
        snapshots_copy,
        snapshots_prune,
        snapshots_undelete,
    ):
        module.register(group)
    app.add_typer(group)
