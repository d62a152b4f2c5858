"""`snapshots`: what is in the snapshot directory, and what is in a snapshot."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sagewai_ops.cli.command import Outcome, Run, command, command_group
from sagewai_ops.cli.terminal import Terminal
from sagewai_ops.errors import EXIT_DONE, EXIT_FINDINGS, EXIT_INCOMPLETE
from sagewai_ops.text import size

from . import snapshots_diff, snapshots_prune  # noqa: TID251 - a neighbour
from .shared_options import (  # noqa: TID251 - a neighbour
    IdentityOption,
    OpeningPassphraseOption,
    SnapshotsOption,
)

SnapshotArgument = Annotated[
    str, typer.Argument(metavar="SNAPSHOT|latest", help="An id, the beginning of one, or a path.")
]


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = command_group("snapshots", "List, show, verify and open snapshots.")
    group.command("list", short_help="List the snapshots of a directory.")(
        command("snapshots list")(list_snapshots)
    )
    group.command("show", short_help="Show what is in a snapshot.")(command("snapshots show")(show))
    group.command("verify", short_help="Read a snapshot and check every byte.")(
        command("snapshots verify", unattended=True)(verify)
    )
    group.command("extract", short_help="Take files out of a snapshot.")(
        command("snapshots extract")(extract)
    )
    snapshots_diff.register(group)
    snapshots_prune.register(group)
    app.add_typer(group)


def list_snapshots(
    run: Run,
    *,
    snapshots: SnapshotsOption = None,
    tag: Annotated[
        list[str] | None,
        typer.Option("--tag", metavar="TAG", help="Only those with this tag, or one of these."),
    ] = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="First write each card anew from its archive.")
    ] = False,
    identity: IdentityOption = None,
    passphrase_file: OpeningPassphraseOption = None,
    wait: Annotated[
        float,
        typer.Option(
            "--wait", min=0, metavar="SECONDS", help="With --rebuild: wait for another run."
        ),
    ] = 0.0,
) -> Outcome:
    """List the snapshots of a directory, oldest first.

    No archive is opened and no key is needed: names and cards tell. --rebuild reads every archive
    and writes its card anew; what a drill proved stays on it.

    Exit codes: 0 listed, also when there are none, 3 of an encrypted archive only the outside
    could be read, 4 an archive is damaged, 11 another run, 14 the directory may not be read.
    """
    from sagewai_ops.backup.mirror import tree_in
    from sagewai_ops.snapshots.catalog import snapshots_in
    from sagewai_ops.snapshots.trash import resting

    directory = run.snapshots(run.home(), snapshots)
    rebuilt = _rebuild(run, directory, identity, passphrase_file, wait) if rebuild else None
    rows = [
        {
            "id": item.id,
            "archive": str(item.path),
            "created_at": item.moment,
            "sequence": item.sequence,
            "archive_bytes": item.size_bytes,
            "encrypted": item.is_encrypted,
            "home": item.card.get("home"),
            "host": item.card.get("host"),
            "tags": list(item.tags),
            "schema_level": item.card.get("schema_level"),
            "key_custody": item.card.get("key_custody"),
            "key_fingerprint": item.card.get("key_fingerprint"),
            "verified_at": item.card.get("verified_at"),
            "proved_restorable_at": item.proved_at or None,
            "drill": item.card.get("drill"),
            "complete": item.card.get("complete"),
            "cut": item.is_cut,
            "has_card": bool(item.card),
        }
        for item in snapshots_in(directory)
        if not tag or set(tag).intersection(item.tags)
    ]
    rested, tree = resting(directory), tree_in(directory)
    result = {
        "folder": str(directory),
        "snapshots": rows,
        "trash": {
            "snapshots": [item.id for item in rested],
            "archive_bytes": sum(item.size_bytes for item in rested),
        },
        "tree": tree and {"path": str(tree.path), "id": tree.id, "created_at": tree.created_at},
        "rebuilt": rebuilt
        and {
            "written": rebuilt.written,
            "limited": rebuilt.limited,
            "damaged": rebuilt.damaged,
        },
    }
    warnings, code = _rebuild_outcome(rebuilt)
    return Outcome(
        result,
        lambda terminal: _show_list(terminal, result),
        exit_code=code,
        warnings=warnings,
        always=True,
    )


def show(
    run: Run,
    *,
    snapshot: SnapshotArgument,
    snapshots: SnapshotsOption = None,
    identity: IdentityOption = None,
    passphrase_file: OpeningPassphraseOption = None,
    files: Annotated[bool, typer.Option("--files", help="List every member too.")] = False,
) -> Outcome:
    """Show what is in a snapshot, from its manifest; the rest is not read.

    Exit codes: 0 shown, 2 the name means several, 10 no such snapshot, 12 no key opens it,
    16 it is damaged, 18 its format is newer.
    """
    from sagewai_ops.archive.open import open_archive
    from sagewai_ops.snapshots.cards import read_card

    path, unlock = _archive(run, snapshot, snapshots, identity, passphrase_file)
    card = read_card(path)
    with open_archive(path, unlock) as reader:
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
    return Outcome(result, lambda terminal: _show_snapshot(terminal, result), always=True)


def verify(
    run: Run,
    *,
    snapshot: SnapshotArgument,
    snapshots: SnapshotsOption = None,
    identity: IdentityOption = None,
    passphrase_file: OpeningPassphraseOption = None,
) -> Outcome:
    """Read a whole snapshot and compare every byte with its manifest.

    Exit codes: 0 it holds, 2 the name means several, 10 no such snapshot, 12 no key opens it,
    16 it is damaged, 18 its format is newer.
    """
    from sagewai_ops.archive.open import open_archive

    path, unlock = _archive(run, snapshot, snapshots, identity, passphrase_file)
    with run.terminal.progress() as progress, open_archive(path, unlock) as reader:
        done = 0

        def count(size_bytes: int) -> None:
            nonlocal done
            done += size_bytes
            if progress:
                progress("verify", done, reader.content_bytes)

        reader.verify(on_bytes=count)
        result = {
            "id": reader.header.id,
            "archive": str(path),
            "members": len(reader.manifest.entries),
            "content_bytes": sum(entry.size_bytes for entry in reader.manifest.entries),
        }
    words = f"snapshot {result['id']}: holds, {result['members']} members, every byte checked"
    return Outcome(result, lambda terminal: terminal.line(words, style="green"))


def extract(
    run: Run,
    *,
    snapshot: SnapshotArgument,
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PATH]...", help="Files or directories in the home; all if none."),
    ] = None,
    to: Annotated[
        Path,
        typer.Option(
            "--to",
            metavar="DIR",
            envvar=["SAGEWAI_OPS_EXTRACT_TO", "SAGEWAI_OPS_TO"],
            help="An empty or new directory.",
        ),
    ],
    snapshots: SnapshotsOption = None,
    identity: IdentityOption = None,
    passphrase_file: OpeningPassphraseOption = None,
) -> Outcome:
    """Take files out of a snapshot, each checked against the manifest.

    Only the frames that hold them are read. Secrets come out with mode 0600, whatever the umask.

    Exit codes: 0 taken out, 10 no such snapshot or path, 12 no key opens it, 13 no space,
    15 the directory is not empty, 16 it is damaged, 18 its format is newer.
    """
    from sagewai_ops.restore.extract_files import take_out

    path, unlock = _archive(run, snapshot, snapshots, identity, passphrase_file)
    with run.terminal.progress() as progress:
        taken = take_out(path, unlock, tuple(paths or ()), to, progress=progress)
    result = {
        "archive": str(path),
        "to": str(to),
        "files": taken.files,
        "folders": taken.directories,
        "links": taken.links,
        "size_bytes": taken.size_bytes,
    }
    words = f"{taken.files} files, {size(taken.size_bytes)}, taken out to {to}"
    return Outcome(result, lambda terminal: terminal.line(words))


def _archive(
    run: Run,
    snapshot: str,
    snapshots: Path | None,
    identity: list[Path] | None,
    passphrase_file: str | None,
) -> tuple[Path, Any]:
    from sagewai_ops.cli.credentials import unlock_of
    from sagewai_ops.snapshots import catalog
    from sagewai_ops.snapshots.ownership import home_ids

    home = run.home()
    path = catalog.choose(run.snapshots(home, snapshots), snapshot, home_ids(home))
    return path, unlock_of(run.terminal, identity or [], passphrase_file)


def _rebuild(
    run: Run, directory: Path, identity: list[Path] | None, passphrase_file: str | None, wait: float
) -> Any:
    from sagewai_ops.cli.credentials import unlock_of
    from sagewai_ops.snapshots.rebuild_cards import rebuild_cards

    unlock = unlock_of(run.terminal, identity or [], passphrase_file)
    with run.terminal.progress() as progress:
        return rebuild_cards(directory, unlock, wait_seconds=wait, progress=progress)


def _rebuild_outcome(rebuilt: Any) -> tuple[tuple[str, ...], int]:
    if rebuilt is None:
        return (), EXIT_DONE
    warnings = [
        f"snapshot {one}: its card is left as it is, {problem}"
        for one, problem in rebuilt.damaged.items()
    ]
    warnings += [
        f"snapshot {one}: encrypted, and nothing given opens it: --identity or --passphrase-file"
        for one in rebuilt.limited
    ]
    code = EXIT_INCOMPLETE if rebuilt.limited else EXIT_DONE
    return tuple(warnings), EXIT_FINDINGS if rebuilt.damaged else code


def _show_list(terminal: Terminal, result: dict[str, Any]) -> None:
    rows, rested, tree = result["snapshots"], result["trash"], result["tree"]
    if rows:
        names = ("id", "taken (UTC)", "size", "level", "key", "verified", "proved", "tags", "home")
        table = [
            (
                row["id"],
                row["created_at"],
                size(row["archive_bytes"]) + (" age" if row["encrypted"] else ""),
                row["schema_level"] or "?",
                f"{row['key_fingerprint'] or '-'} {row['key_custody'] or '?'}",
                _verified(row),
                _proof(row),
                ",".join(row["tags"]) or "-",
                row["home"] or "?",
            )
            for row in rows
        ]
        # A column that says nothing, or the same home of all, only makes the others hard to read.
        shown = [
            (name, *cells)
            for name, *cells in zip(names, *table, strict=True)
            if set(cells) != {"-"} and (name != "home" or len(set(cells)) > 1)
        ]
        head, *body = zip(*shown, strict=True)
        terminal.table(head, body)
    else:
        terminal.line(f"no snapshots in {result['folder']}")
    if rested["snapshots"]:
        terminal.line(
            f"{len(rested['snapshots'])} more rest in .trash ({size(rested['archive_bytes'])}): "
            "sagewai-ops snapshots untrash"
        )
    if tree:
        terminal.line(f"tree {tree['path']}, taken {tree['created_at']}")


def _verified(row: dict[str, Any]) -> str:
    """Say when a snapshot was read back, or that it is no longer what was."""
    if row["cut"]:
        return "wrong size"
    return row["verified_at"] or ("no" if row["has_card"] else "no card")


def _proof(row: dict[str, Any]) -> str:
    """Say when a drill proved a snapshot, or that the last one failed."""
    failed = (row["drill"] or {}).get("outcome") == "failed"
    return "drill failed" if failed else row["proved_restorable_at"] or "-"


def _show_snapshot(terminal: Terminal, result: dict[str, Any]) -> None:
    terminal.line(f"snapshot {result['id']} of {result.get('home')}", style="bold")
    terminal.line(f"  taken     {result.get('created_at')} by {result.get('tool_version')}")
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
    terminal.line(f"  proved    {_proof(result)}")
    for item in result["left_out"] or ():
        terminal.line(f"  left out  {item['path']}: {item['reason']} {item['detail']}".rstrip())
    for row in result.get("files", ()):
        terminal.line(f"  {row['mode']} {row['size']:>12} {row['type']:<7} {row['path']}")
