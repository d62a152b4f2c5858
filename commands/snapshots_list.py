"""`snapshots list`: the snapshots of a directory."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from sagewai_ops.cli.command import Outcome, Run, command
from sagewai_ops.cli.options import RUN, SNAPSHOTS, DryRunOption, option
from sagewai_ops.cli.plan import plan_outcome
from sagewai_ops.cli.terminal import Terminal
from sagewai_ops.errors import EXIT_DONE, EXIT_FINDINGS, EXIT_INCOMPLETE, UsageError
from sagewai_ops.text import printable, shell_word, size

from .shared_options import (  # noqa: TID251 - a neighbour
    DirectoryWaitOption,
    OpeningOptions,
    SnapshotsOption,
)
from .snapshot_argument import origin_keys  # noqa: TID251 - a neighbour

if TYPE_CHECKING:
    from sagewai_ops.snapshots.database_check import DatabaseFacts


@command("snapshots list", result="sagewai_ops.backup.snapshot_list:SnapshotList", changes=True)
def list_snapshots(
    run: Run,
    *,
    snapshots: SnapshotsOption = None,
    tag: Annotated[
        list[str] | None,
        option(SNAPSHOTS, "--tag", "Only snapshots with this tag; repeatable.", "TAG"),
    ] = None,
    rebuild: Annotated[
        bool, option(RUN, "--rebuild", "Write the metadata files again from the archives.")
    ] = False,
    opening: OpeningOptions,
    dry_run: DryRunOption = False,
    wait: DirectoryWaitOption = 0.0,
) -> Outcome:
    """List the snapshots of a directory, oldest first.

    Only metadata files are read, no archive. `authentic` is what an authenticated metadata file
    records: `snapshots verify` reads the archive. --rebuild writes the metadata files again from
    the archives; the result of a drill is kept if it is authenticated.

    Exit status:
      0   listed
      3   an encrypted archive could be read in part only
      4   an archive is damaged
      11  locked by another run
      14  permission denied
      19  the remote place failed
    """
    from sagewai_ops.backup.snapshot_list import SnapshotList, Trash, describe_snapshot
    from sagewai_ops.remote.path import has_trees, tree_store
    from sagewai_ops.snapshots import catalog
    from sagewai_ops.snapshots.mirror import find_mirror
    from sagewai_ops.snapshots.trash import list_trash
    from sagewai_ops.snapshots.trust import confirm, trust_of

    home = run.home()
    directory = run.snapshots(home, snapshots)
    if rebuild and has_trees(directory):
        raise UsageError(
            f"--rebuild: not possible in a repository: {directory}",
            hint=f"sagewai-ops snapshots verify latest --snapshots {shell_word(directory)}",
        )
    if dry_run and rebuild:
        from sagewai_ops.snapshots.rebuild_cards import rebuildable

        return plan_outcome(
            f"write the metadata file of {item.path}" for item in rebuildable(directory)
        )
    rebuilt = None
    if rebuild:
        rebuilt = _rebuild(run, directory, opening.read(run), wait)
    trash = list_trash(directory)
    trust = trust_of(home, directory, run.settings.environment)
    result = SnapshotList(
        folder=directory,
        snapshots=tuple(
            describe_snapshot(item)
            for item in confirm(
                directory, catalog.list_snapshots(directory), trust, reads_archives=False
            )
            if not tag or set(tag).intersection(item.tags)
        ),
        trash=Trash(tuple(item.id for item in trash), sum(item.size_bytes for item in trash)),
        tree=find_mirror(directory),
        rebuilt=rebuilt,
    )
    warnings, code = _rebuild_outcome(rebuilt)
    if has_trees(directory):
        warnings = tree_store(directory).passed_over()
    return Outcome(
        result,
        lambda terminal: _show(terminal, result),
        exit_code=code,
        warnings=warnings,
        always=True,
    )


def _rebuild(run: Run, directory: Path, decryption: Any, wait: float) -> Any:
    from sagewai_ops.snapshots.rebuild_cards import rebuild_cards

    with run.terminal.progress() as progress:
        return rebuild_cards(
            directory, decryption, keys=origin_keys(run), wait_seconds=wait, progress=progress
        )


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


def _show(terminal: Terminal, result: Any) -> None:
    if result.snapshots:
        names = (
            "id",
            "created (UTC)",
            "size",
            "level",
            "server",
            "key",
            "verified",
            "proved",
            "state",
            "origin",
            "tags",
            "home",
        )
        table = [
            (
                row.id,
                row.created_at,
                size(row.archive_bytes) + (" age" if row.encrypted else ""),
                row.schema_level or ("-" if row.without_database else "?"),
                _server(row),
                f"{row.key_fingerprint or '-'} {row.key_custody or '?'}",
                _verified(row),
                drill_result(row.drill, row.proved_restorable_at),
                state_of(row),
                _origin(row),
                ",".join(row.tags) or "-",
                row.home or "?",
            )
            for row in result.snapshots
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
        terminal.line(f"no snapshots in {result.folder}")
    if result.trash.snapshots:
        terminal.line(
            f"{len(result.trash.snapshots)} more in .trash ({size(result.trash.archive_bytes)}): "
            "sagewai-ops snapshots undelete"
        )
    if result.tree:
        terminal.line(f"tree {result.tree.path}, created {result.tree.created_at}")


def _server(row: Any) -> str:
    """Return whether the snapshot has the database of a server; "-" for a home on SQLite."""
    if row.without_database:
        return "omitted"
    return "included" if row.engine == "postgresql" else "-"


def _origin(row: Any) -> str:
    """Return the recorded origin, or why nothing confirms what the metadata file states."""
    return row.doubt or ("authentic" if row.authenticity == "authentic" else "-")


def state_of(row: Any) -> str:
    """Return which properties of a good snapshot one does not have; - if it is good."""
    names = ("complete", "sound", "plausible")
    faults = ", ".join(f"not {name}" for name in names if getattr(row, name) is False)
    return faults or ("change accepted" if row.change_accepted else "-")


def _verified(row: Any) -> str:
    """Return the time of the verification, or the state of the archive."""
    if row.cut:
        return "wrong size"
    if row.read_back_bytes is not None and not row.verified_at:
        return f"{size(row.read_back_bytes)} read" if row.read_back_bytes else "unread"
    return row.verified_at or ("no" if row.has_card else "no metadata")


def check_of(database: "DatabaseFacts") -> str:
    """Return how a database was checked when its snapshot was created."""
    if database.check == "full":
        return "full check"
    last = database.full_check_at.partition("T")[0]
    return f"quick check, full check on {printable(last) or 'an unknown date'}"


def drill_result(drill: Any, proved_at: str | None) -> str:
    """Return the time of the last successful drill, or that the last drill failed."""
    return "drill failed" if drill and drill.outcome == "failed" else proved_at or "-"
