"""`status`: what is here."""

from typing import Any

import typer

from sagewai_ops.cli.command import Outcome, Run, add_command
from sagewai_ops.cli.terminal import Terminal
from sagewai_ops.text import size

from .shared_options import SnapshotsOption  # noqa: TID251 - a neighbour

HELP = """Show layout, database, key and snapshots of a home.

Nothing is written; works while Sagewai runs.

Exit status:
  0   shown
  10  home not found
"""
_LARGEST = 8  # tables that people are shown; --json has all


def register(app: typer.Typer) -> None:
    """Add the command."""
    add_command(app, "status", status, HELP)


def status(
    run: Run,
    *,
    snapshots: SnapshotsOption = None,
) -> Outcome:
    """Parse, look, render."""
    from sagewai_ops.operations.status import read_status

    home = run.home()
    found = read_status(home, run.snapshots(home, snapshots), run.settings.environment)
    result = as_result(found)
    return Outcome(
        result,
        lambda terminal: show(terminal, result),
        warnings=tuple(_warnings(found)),
        always=True,
    )


def as_result(found: Any) -> dict[str, Any]:
    """Return the JSON of a home's status; docs/json.md."""
    import sqlite3

    database, newest = found.database, found.newest
    operations = {pending.operation for pending in found.pending}
    return {
        "home": str(found.home.root),
        "layout": found.layout,
        "files": found.files,
        "sizes": dict(found.sizes),
        "free_bytes": found.free_bytes,
        "overrides": {name: str(path) for name, path in found.home.overrides.items()},
        "database": database
        and {
            "path": str(database.path),
            "size_bytes": database.size_bytes,
            "wal_bytes": database.wal_bytes,
            "schema_level": database.level.revision if database.level else None,
            "schema_state": database.level.state if database.level else None,
            "unknown_tables": list(database.level.unknown_tables) if database.level else [],
            "tables": dict(database.counts),
            "problem": database.problem,
            "journal_mode": database.journal_mode,
        },
        "sqlite_version": sqlite3.sqlite_version,
        "notes": _notes(found.home, database),
        "documents": {
            path: {
                "version": document.version,
                "counts": dict(document.counts),
                "problems": list(document.problems),
            }
            for path, document in found.documents.items()
        },
        "keys": [
            {
                "source": candidate.source,
                "fingerprint": candidate.fingerprint,
                "problem": candidate.problem,
            }
            for candidate in found.candidates
        ],
        "key_source": found.key.source if found.key else "",
        "key_fingerprint": found.key.fingerprint if found.key else "",
        "used_by": [
            {
                "pid": user.pid,
                "command": user.command,
                "started_at": f"{user.started_at:%Y-%m-%dT%H:%M:%SZ}" if user.started_at else None,
            }
            for user in found.users
        ],
        "snapshots": {
            "folder": str(found.directory),
            "count": found.snapshots,
            "newest": newest and _snapshot(newest),
            "proved": found.proved and _snapshot(found.proved),
        },
        "before_restore": [str(path) for path in found.kept],
        "interrupted_restore": "restore" in operations,
        "interrupted_rotation": "key rotation" in operations,
        "interrupted_layout_migration": "layout migration" in operations,
    }


def _notes(home: Any, database: Any) -> list[str]:
    """Return notes that need no action."""
    import sqlite3

    from sagewai_ops.database.sqlite.version_notes import version_note

    server = home.server_url_variable
    elsewhere = f"{server}: Sagewai's tables are on that server, not in this database"
    version = database and version_note(sqlite3.sqlite_version_info, database.journal_mode)
    return [note for note in (server and elsewhere, version) if note]


def _snapshot(snapshot: Any) -> dict[str, Any]:
    return {
        "id": snapshot.id,
        "created_at": snapshot.created_text,
        "archive_bytes": snapshot.size_bytes,
        "verified_at": snapshot.card.get("verified_at"),
        "proved_restorable_at": snapshot.proved_at or None,
        "drill": snapshot.card.get("drill"),
    }


def show(terminal: Terminal, result: dict[str, Any]) -> None:
    """Render for people."""
    terminal.line(f"home {result['home']}", style="bold")
    parts = ", ".join(f"{part} {size(count)}" for part, count in result["sizes"].items() if count)
    terminal.line(f"  layout     {result['layout']}, {result['files']} files: {parts or 'empty'}")
    _show_database(terminal, result["database"])
    for path, document in result["documents"].items():
        counts = ", ".join(f"{count} {kind}" for kind, count in document["counts"].items())
        terminal.line(f"  {path}: {counts}")
    key = result["key_fingerprint"]
    terminal.line(f"  key        {key + ' from ' + result['key_source'] if key else 'none'}")
    for user in result["used_by"]:
        terminal.line(f"  in use by  pid {user['pid']} {user['command']}")
    snapshots = result["snapshots"]
    newest = snapshots["newest"]
    if newest:
        terminal.line(
            f"  snapshots  {snapshots['count']} in {snapshots['folder']}, newest {newest['id']}, "
            f"verified {newest['verified_at'] or 'unknown'}"
        )
        _show_proof(terminal, newest, snapshots["proved"])
    else:
        terminal.line(f"  snapshots  none in {snapshots['folder']}", style="yellow")
    for path in result["before_restore"]:
        terminal.line(f"  kept       {path}")
    for note in result["notes"]:
        terminal.line(f"  note       {note}")


def _show_proof(terminal: Terminal, newest: dict[str, Any], proved: dict[str, Any] | None) -> None:
    """Print the newest snapshot that a drill restored, and a failed drill of the newest."""
    if (newest["drill"] or {}).get("outcome") == "failed":
        moment = newest["drill"].get("at")
        terminal.line(f"  drill      of {newest['id']} failed {moment}", style="red")
    if proved:
        which = "the newest" if proved["id"] == newest["id"] else proved["id"]
        terminal.line(f"  proved     {which} restorable {proved['proved_restorable_at']}")
    else:
        terminal.line("  proved     none restorable yet: sagewai-ops drill", style="yellow")


def _show_database(terminal: Terminal, database: dict[str, Any] | None) -> None:
    if database is None:
        terminal.line("  database   none", style="yellow")
        return
    rows = sum(database["tables"].values())
    level = f"level {database['schema_level'] or 'unknown'} ({database['schema_state']})"
    terminal.line(
        f"  database   {size(database['size_bytes'])} and {size(database['wal_bytes'])} of WAL, "
        f"{'cannot be read' if database['problem'] else f'{level}, {rows} rows'}"
    )
    largest = sorted(database["tables"].items(), key=lambda item: -item[1])[:_LARGEST]
    if rows:
        terminal.line(
            "             " + ", ".join(f"{table} {count}" for table, count in largest if count)
        )


def _warnings(found: Any) -> list[str]:
    warnings = [
        f"{candidate.path or candidate.source}: {candidate.problem}; Sagewai would create a new key"
        for candidate in found.candidates
        if candidate.problem
    ]
    if found.database and found.database.problem:
        warnings.append(found.database.problem)
    warnings += [
        f"{path}: {problem}"
        for path, document in found.documents.items()
        for problem in document.problems
    ]
    warnings += [f"{path}: not readable, not shown" for path in found.unreadable]
    if found.newest and found.newest.is_truncated:
        warnings.append(
            f"{found.newest.path}: size differs from the recorded one: "
            f"sagewai-ops snapshots verify {found.newest.id}"
        )
    warnings += [
        f"{pending.operation} pending, interrupted before its end: sagewai-ops recover"
        for pending in found.pending
    ]
    return warnings
