"""`status`: what is here."""

from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any

from sagewai_ops.cli.command import Outcome, Run, command
from sagewai_ops.cli.options import SNAPSHOTS, option
from sagewai_ops.cli.terminal import Terminal
from sagewai_ops.errors import EXIT_DONE, EXIT_FINDINGS
from sagewai_ops.text import size

from .shared_options import (  # noqa: TID251 - a neighbour
    DatabaseOptions,
    RepositoryPassword,
    SnapshotsOption,
)

HELP = """Show layout, database, key and snapshots of a home.

Nothing is written; works while Sagewai runs.

Exit status:
  0   shown
  4   no key opens the encrypted values, or no good snapshot is newer than --max-age
  10  home not found
"""
_LARGEST = 8  # tables that people are shown; --json has all


@command("status", HELP, result="sagewai_ops.operations.status:Status")
def status(
    run: Run,
    *,
    snapshots: SnapshotsOption = None,
    max_age: Annotated[
        str | None,
        option(SNAPSHOTS, "--max-age", "Exit 4 if the newest good snapshot is older.", "SPAN"),
    ] = None,
    password: RepositoryPassword,
    database_options: DatabaseOptions,
) -> Outcome:
    """Parse, look, render."""
    from sagewai_ops.operations.status import read_status
    from sagewai_ops.snapshots.retention import subtract_span

    run = database_options.apply(run, required=False)
    oldest = subtract_span(run.started_at, max_age, "--max-age") if max_age is not None else None
    home = run.home()
    directory = run.snapshots(home, snapshots)
    password.require_repository(directory)
    result = read_status(home, directory, run.settings.environment)
    findings = () if oldest is None else tuple(_too_old(result.snapshots, oldest))
    has_no_key = result.sealed and not result.opened
    return Outcome(
        result,
        lambda terminal: show(terminal, result),
        exit_code=EXIT_FINDINGS if has_no_key or findings else EXIT_DONE,
        warnings=(*result.warnings, *findings),
        always=True,
    )


def _too_old(snapshots: Any, oldest: datetime) -> Iterator[str]:
    """Yield a warning if the newest good snapshot, which was verified, is older than a moment."""
    good = snapshots.good
    if good is None:
        yield f"snapshots: no good one in {snapshots.folder}: sagewai-ops backup"
    elif datetime.fromisoformat(good.created_at.replace("Z", "+00:00")) < oldest:
        limit = f"{oldest:%Y-%m-%dT%H:%M:%SZ}"
        yield f"snapshot {good.id}: the newest good one, from before {limit}: sagewai-ops backup"


def show(terminal: Terminal, result: Any) -> None:
    """Render for people."""
    terminal.line(f"home {result.home}", style="bold")
    parts = ", ".join(f"{part} {size(count)}" for part, count in result.sizes.items() if count)
    terminal.line(f"  layout     {result.layout}, {result.files} files: {parts or 'empty'}")
    if result.server:
        _show_server(terminal, result.server)
    _show_database(terminal, result.database)
    if result.unused_tables:
        rows = sum(result.unused_tables.values())
        names = ", ".join(sorted(result.unused_tables)[:_LARGEST])
        terminal.line(
            f"  unused     {rows} rows in {len(result.unused_tables)} tables of db/sagewai.db,"
            f" from before the move: {names}"
        )
    for path, document in result.documents.items():
        counts = ", ".join(f"{count} {kind}" for kind, count in document.counts.items())
        terminal.line(f"  {path}: {counts}")
    key = result.key_fingerprint
    terminal.line(f"  key        {key + ' from ' + result.key_source if key else 'none'}")
    for user in result.used_by:
        terminal.line(f"  in use by  pid {user.pid} {user.command}")
    snapshots = result.snapshots
    newest = snapshots.newest
    if newest:
        terminal.line(
            f"  snapshots  {snapshots.count} in {snapshots.folder}, newest {newest.id}, "
            f"verified {newest.verified_at or 'unknown'}"
        )
        good = snapshots.good
        if good is None or good.id != newest.id:
            shown = f"{good.id}, which `latest` names" if good else "none"
            terminal.line(f"  good       {shown}", style="yellow")
        _show_proof(terminal, newest, snapshots.proved)
    else:
        terminal.line(f"  snapshots  none in {snapshots.folder}", style="yellow")
    for copy in snapshots.copies:
        read = f"{size(copy.read_bytes)} read back {copy.read_at}" if copy.read_at else "unread"
        terminal.line(f"  copy       {copy.id} in {copy.place}, {read}")
    for path in result.before_restore:
        terminal.line(f"  kept       {path}")
    for note in result.notes:
        terminal.line(f"  note       {note}")


def _show_proof(terminal: Terminal, newest: Any, proved: Any) -> None:
    """Print the newest snapshot that a drill restored, and a failed drill of the newest."""
    if newest.drill and newest.drill.outcome == "failed":
        terminal.line(f"  drill      of {newest.id} failed {newest.drill.at}", style="red")
    if proved:
        which = "the newest" if proved.id == newest.id else proved.id
        terminal.line(f"  proved     {which} restorable {proved.proved_restorable_at}")
    else:
        terminal.line("  proved     none restorable yet: sagewai-ops drill", style="yellow")


def _show_server(terminal: Terminal, server: Any) -> None:
    if server.problem:
        terminal.line(f"  server     {server.database}: not checked", style="red")
        return
    at = " and ".join(server.revisions) or "no revision"
    rows = sum(server.tables.values())
    terminal.line(
        f"  server     {server.database}, PostgreSQL {server.server}: {size(server.size_bytes)},"
        f" at {at} ({server.state}), {rows} rows"
    )
    terminal.items("  connected  ", [each.display for each in server.sessions], most=_LARGEST)


def _show_database(terminal: Terminal, database: Any) -> None:
    if database is None:
        terminal.line("  database   none", style="yellow")
        return
    rows = sum(database.tables.values())
    level = f"level {database.schema_level or 'unknown'} ({database.schema_state})"
    terminal.line(
        f"  database   {size(database.size_bytes)} and {size(database.wal_bytes)} of WAL, "
        f"{'cannot be read' if database.problem else f'{level}, {rows} rows'}"
    )
    largest = sorted(database.tables.items(), key=lambda item: -item[1])[:_LARGEST]
    if rows:
        terminal.line(
            "             " + ", ".join(f"{table} {count}" for table, count in largest if count)
        )
