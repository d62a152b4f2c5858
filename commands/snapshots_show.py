"""`snapshots show`: the content of a snapshot, from its manifest."""

from typing import Annotated, Any

import typer

from sagewai_ops.cli.command import Outcome, Run, add_command
from sagewai_ops.cli.terminal import Terminal
from sagewai_ops.text import size

from .shared_options import (  # noqa: TID251 - a neighbour
    IdentityOption,
    OpeningPassphraseOption,
    SnapshotsOption,
)
from .snapshot_argument import (  # noqa: TID251 - a neighbour
    SnapshotArgument,
    find_archive,
)
from .snapshots_list import drill_result  # noqa: TID251 - a neighbour


def register(group: typer.Typer) -> None:
    """Add it."""
    add_command(group, "snapshots show", show)


def show(
    run: Run,
    *,
    snapshot: SnapshotArgument,
    snapshots: SnapshotsOption = None,
    identity: IdentityOption = None,
    passphrase_file: OpeningPassphraseOption = None,
    files: Annotated[bool, typer.Option("--files", help="List every file too.")] = False,
) -> Outcome:
    """Show the content of a snapshot.

    Only the manifest is read.

    Exit status:
      0   shown
      2   ambiguous name
      10  snapshot not found
      12  no key decrypts it
      16  damaged
      18  format newer than this program
    """
    from sagewai_ops.archive.open import open_archive
    from sagewai_ops.snapshots.cards import read_card

    path, decryption = find_archive(run, snapshot, snapshots, identity, passphrase_file)
    card = read_card(path)
    with open_archive(path, decryption) as reader:
        facts = dict(reader.manifest.facts)
        entries = reader.manifest.entries
        result = {
            **reader.header.facts,
            "id": reader.header.id,
            "format": reader.header.format_version,
            "members": len(entries),
            "content_bytes": sum(entry.size_bytes for entry in entries),
            "database": facts.get("database"),
            "keys": facts.get("keys"),
            "left_out": facts.get("left_out"),
            "unstable": facts.get("unstable"),
            "external": facts.get("external"),
            "followed": facts.get("followed"),
            "outside_links": {entry.path: entry.target for entry in entries if entry.is_outside},
            "verified_at": card.get("verified_at"),
            "proved_restorable_at": card.get("proved_restorable_at"),
            "drill": card.get("drill"),
        }
        if files:
            result["files"] = [
                {
                    "path": entry.path,
                    "type": entry.type.value,
                    "mode": f"{entry.mode:04o}",
                    "size": entry.size_bytes,
                    "sha256": entry.sha256.hex() or None,
                    "target": entry.target or None,
                }
                for entry in entries
            ]
    return Outcome(result, lambda terminal: _show(terminal, result), always=True)


def _show(terminal: Terminal, result: dict[str, Any]) -> None:
    from sagewai_ops.snapshots.results import drill_record

    terminal.line(f"snapshot {result['id']} of {result.get('home')}", style="bold")
    terminal.line(f"  created   {result.get('created_at')} by {result.get('tool_version')}")
    terminal.line(f"  content   {result['members']} members, {size(result['content_bytes'])}")
    terminal.line(
        f"  key       {result.get('key_fingerprint') or 'none'}, {result.get('key_custody')}"
    )
    database = result["database"]
    if database:
        terminal.line(
            f"  database  {sum(database['tables'].values())} rows in {len(database['tables'])} "
            f"tables, level {database['schema_level']}, integrity {database['integrity'][0]}"
        )
    proved = drill_result(drill_record(result), result["proved_restorable_at"])
    terminal.line(f"  proved    {proved}")
    for item in result["left_out"] or ():
        terminal.line(f"  omitted   {item['path']}: {item['reason']} {item['detail']}".rstrip())
    for path, origin in (result["followed"] or {}).items():
        terminal.line(f"  included  {path}: content of {origin}, in place of a link")
    for path, target in result["outside_links"].items():
        terminal.line(f"  link      {path} -> {target}, outside the home")
    for row in result.get("files", ()):
        target = f" -> {row['target']}" if row["target"] else ""
        terminal.line(f"  {row['mode']} {row['size']:>12} {row['type']:<7} {row['path']}{target}")
