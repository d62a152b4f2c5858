"""`snapshots list`: the snapshots of a directory."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sagewai_ops.cli.command import Outcome, Run, add_command
from sagewai_ops.cli.options import RUN, SNAPSHOTS, DryRunOption
from sagewai_ops.cli.plan import plan_outcome
from sagewai_ops.cli.terminal import Terminal
from sagewai_ops.errors import EXIT_DONE, EXIT_FINDINGS, EXIT_INCOMPLETE
from sagewai_ops.text import size

from .shared_options import (  # noqa: TID251 - a neighbour
    DirectoryWaitOption,
    IdentityOption,
    OpeningPassphraseOption,
    SnapshotsOption,
)


def register(group: typer.Typer) -> None:
    """Add it."""
    add_command(group, "snapshots list", list_snapshots, changes=True)


def list_snapshots(
    run: Run,
    *,
    snapshots: SnapshotsOption = None,
    tag: Annotated[
        list[str] | None,
        typer.Option(
            "--tag",
            metavar="TAG",
            help="Only snapshots with this tag; repeatable.",
            rich_help_panel=SNAPSHOTS,
        ),
    ] = None,
    rebuild: Annotated[
        bool,
        typer.Option(
            "--rebuild",
            help="Write the metadata files again from the archives.",
            rich_help_panel=RUN,
        ),
    ] = False,
    identity: IdentityOption = None,
    passphrase_file: OpeningPassphraseOption = None,
    dry_run: DryRunOption = False,
    wait: DirectoryWaitOption = 0.0,
) -> Outcome:
    """List the snapshots of a directory, oldest first.

    Only metadata files are read, no archive, and no key is needed. --rebuild writes the metadata
    files again from the archives; the result of a drill is kept.

    Exit status:
      0   listed
      3   an encrypted archive could be read in part only
      4   an archive is damaged
      11  locked by another run
      14  permission denied
    """
    from sagewai_ops.backup.mirror import find_mirror
    from sagewai_ops.snapshots import catalog
    from sagewai_ops.snapshots.trash import list_trash

    directory = run.snapshots(run.home(), snapshots)
    if dry_run and rebuild:
        cards = (
            f"write the metadata file of {item.path}" for item in catalog.list_snapshots(directory)
        )
        return plan_outcome(cards)
    rebuilt = _rebuild(run, directory, identity, passphrase_file, wait) if rebuild else None
    rows = [
        {
            "id": item.id,
            "archive": str(item.path),
            "created_at": item.created_text,
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
            "cut": item.is_truncated,
            "has_card": bool(item.card),
        }
        for item in catalog.list_snapshots(directory)
        if not tag or set(tag).intersection(item.tags)
    ]
    trash, tree = list_trash(directory), find_mirror(directory)
    result = {
        "folder": str(directory),
        "snapshots": rows,
        "trash": {
            "snapshots": [item.id for item in trash],
            "archive_bytes": sum(item.size_bytes for item in trash),
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
        lambda terminal: _show(terminal, result),
        exit_code=code,
        warnings=warnings,
        always=True,
    )


def _rebuild(
    run: Run, directory: Path, identity: list[Path] | None, passphrase_file: str | None, wait: float
) -> Any:
    from sagewai_ops.cli.credentials import unlock_of
    from sagewai_ops.snapshots.rebuild_cards import rebuild_cards

    decryption = unlock_of(run.terminal, identity or [], passphrase_file)
    with run.terminal.progress() as progress:
        return rebuild_cards(directory, decryption, wait_seconds=wait, progress=progress)


def _rebuild_outcome(rebuilt: Any) -> tuple[tuple[str, ...], int]:
    if rebuilt is None:
        return (), EXIT_DONE
    warnings = [
        f"snapshot {snapshot}: metadata file unchanged, {problem}"
        for snapshot, problem in rebuilt.damaged.items()
    ]
    warnings += [
        f"snapshot {snapshot}: encrypted, needs --identity or --passphrase-file"
        for snapshot in rebuilt.limited
    ]
    code = EXIT_INCOMPLETE if rebuilt.limited else EXIT_DONE
    return tuple(warnings), EXIT_FINDINGS if rebuilt.damaged else code


def _show(terminal: Terminal, result: dict[str, Any]) -> None:
    rows, trash, tree = result["snapshots"], result["trash"], result["tree"]
    if rows:
        names = (
            "id",
            "created (UTC)",
            "size",
            "level",
            "key",
            "verified",
            "proved",
            "tags",
            "home",
        )
        table = [
            (
                row["id"],
                row["created_at"],
                size(row["archive_bytes"]) + (" age" if row["encrypted"] else ""),
                row["schema_level"] or "?",
                f"{row['key_fingerprint'] or '-'} {row['key_custody'] or '?'}",
                _verified(row),
                drill_result(row),
                ",".join(row["tags"]) or "-",
                row["home"] or "?",
            )
            for row in rows
        ]
        # Omit columns without values, and the home if all are of the same.
        shown = [
            (name, *cells)
            for name, *cells in zip(names, *table, strict=True)
            if set(cells) != {"-"} and (name != "home" or len(set(cells)) > 1)
        ]
        head, *body = zip(*shown, strict=True)
        terminal.table(head, body)
    else:
        terminal.line(f"no snapshots in {result['folder']}")
    if trash["snapshots"]:
        terminal.line(
            f"{len(trash['snapshots'])} more in .trash ({size(trash['archive_bytes'])}): "
            "sagewai-ops snapshots undelete"
        )
    if tree:
        terminal.line(f"tree {tree['path']}, created {tree['created_at']}")


def _verified(row: dict[str, Any]) -> str:
    """Return the time of the verification, or the state of the archive."""
    if row["cut"]:
        return "wrong size"
    return row["verified_at"] or ("no" if row["has_card"] else "no metadata")


def drill_result(row: dict[str, Any]) -> str:
    """Return the time of the last successful drill, or that the last drill failed."""
    failed = (row["drill"] or {}).get("outcome") == "failed"
    return "drill failed" if failed else row["proved_restorable_at"] or "-"
