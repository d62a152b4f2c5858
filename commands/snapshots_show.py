"""`snapshots show`: the content of a snapshot, from its manifest."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from sagewai_ops.cli.command import Outcome, Run, command
from sagewai_ops.cli.terminal import Terminal
from sagewai_ops.text import size

from .shared_options import (  # noqa: TID251 - a neighbour
    ExtraKeyOption,
    OpeningOptions,
    SnapshotsOption,
)
from .snapshot_argument import (  # noqa: TID251 - a neighbour
    SnapshotArgument,
    find_named,
    origin_keys,
)
from .snapshots_list import check_of, drill_result, state_of  # noqa: TID251 - a neighbour

if TYPE_CHECKING:
    from sagewai_ops.backup.snapshot_content import SnapshotContent


@command("snapshots show", result="sagewai_ops.backup.snapshot_content:SnapshotContent")
def show(
    run: Run,
    *,
    snapshot: SnapshotArgument,
    snapshots: SnapshotsOption = None,
    opening: OpeningOptions,
    extra_key: ExtraKeyOption = None,
    files: Annotated[bool, typer.Option("--files", help="List every file too.")] = False,
) -> Outcome:
    """Show the content of a snapshot.

    Only the manifest is read: `snapshots verify` checks every byte.

    Exit status:
      0   shown
      2   ambiguous name
      10  snapshot not found
      12  no key decrypts it
      14  permission denied
      16  damaged or forged
      18  format newer than this program
      19  the remote place failed
    """
    from sagewai_ops.backup.snapshot_content import read_content

    path = find_named(run, snapshot, snapshots, or_newest=True)[0]
    decryption, keys = opening.read(run), origin_keys(run, extra_key)
    result = read_content(path, decryption, keys, with_members=files)
    return Outcome(result, lambda terminal: _show(terminal, result), always=True)


def _show(terminal: Terminal, result: "SnapshotContent") -> None:
    terminal.line(f"snapshot {result.id} of {result.home or None}", style="bold")
    terminal.line(f"  created   {result.created_at} by {result.tool_version}")
    terminal.line(f"  content   {result.members} members, {size(result.content_bytes)}")
    terminal.line(f"  key       {result.key_fingerprint or 'none'}, {result.key_custody}")
    reason = f", {result.authenticity_reason}" if result.authenticity_reason else ""
    terminal.line(f"  origin    {result.authenticity}{reason}")
    database = result.database
    if database:
        terminal.line(
            f"  database  {sum(database.tables.values())} rows in {len(database.tables)} "
            f"tables, level {database.schema_level}, integrity {database.integrity[0]}, "
            + check_of(database)
        )
    server = result.postgres
    if server:
        terminal.line(
            f"  server    PostgreSQL {server.version}, {server.rows} rows in {len(server.tables)}"
            f" tables, revision {', '.join(server.revision) or 'none'}"
        )
        for lacking in server.unstored:
            terminal.line(f"  unstored  {lacking.kind} {lacking.name}: {lacking.reason}")
        for name in server.excluded:
            terminal.line(f"  excluded  table {name}")
    elif result.without_database:
        terminal.line("  server    NOT in the snapshot: --without-database", style="yellow")
    terminal.line(f"  proved    {drill_result(result.drill, result.proved_restorable_at)}")
    _show_quality(terminal, result.quality)
    for item in result.left_out or ():
        terminal.line(f"  omitted   {item.path}: {item.reason} {item.detail}".rstrip())
    for path, origin in (result.followed or {}).items():
        terminal.line(f"  included  {path}: content of {origin}, in place of a link")
    for path, target in result.outside_links.items():
        terminal.line(f"  link      {path} -> {target}, outside the home")
    for row in result.files or ():
        target = f" -> {row.target}" if row.target else ""
        terminal.line(f"  {row.mode} {row.size:>12} {row.type:<7} {row.path}{target}")


def _show_quality(terminal: Terminal, quality: Any) -> None:
    """Write why a snapshot is not good, or what was accepted."""
    if quality is None:
        terminal.line("  state     unknown, created by an older version")
        return
    terminal.line(f"  state     {'good' if state_of(quality) == '-' else state_of(quality)}")
    for cause in (*quality.omitted, *quality.damaged):
        terminal.line(f"            {cause.text}", style="yellow")
    for cause in quality.accepted:
        terminal.line(f"  accepted  {cause.text}")
    for change in quality.changes:
        terminal.line(f"  changed   {change} in {quality.compared_with}")
