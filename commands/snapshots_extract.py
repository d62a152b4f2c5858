"""`snapshots extract`: take files out of a snapshot."""

from pathlib import Path
from typing import Annotated

import typer

from sagewai_ops.cli.command import Outcome, Run, command
from sagewai_ops.cli.options import DryRunOption
from sagewai_ops.cli.plan import plan_outcome
from sagewai_ops.records import dataclass
from sagewai_ops.text import size

from .shared_options import (  # noqa: TID251 - a neighbour
    LimitDownloadOption,
    OpeningOptions,
    SnapshotsOption,
    with_limits,
)
from .snapshot_argument import (  # noqa: TID251 - a neighbour
    SnapshotArgument,
    find_named,
    origin_keys,
)


@dataclass(frozen=True, slots=True)
class ExtractedFiles:
    """The files that were extracted from a snapshot."""

    archive: Path
    to: Path
    files: int
    folders: int
    links: int
    size_bytes: int


@command(
    "snapshots extract",
    result="sagewai_ops.commands.snapshots_extract:ExtractedFiles",
    changes=True,
)
def extract(
    run: Run,
    *,
    snapshot: SnapshotArgument,
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PATH]...", help="Files or directories in the home (default: all)."
        ),
    ] = None,
    to: Annotated[
        Path, typer.Option("--to", metavar="DIR", help="Target directory, new or empty; required.")
    ],
    snapshots: SnapshotsOption = None,
    opening: OpeningOptions,
    limit_download: LimitDownloadOption = None,
    dry_run: DryRunOption = False,
) -> Outcome:
    """Extract files from a snapshot, each verified.

    Only the parts of the archive that contain them are read. Secrets are written with mode 0600.

    Exit status:
      0   extracted
      10  snapshot or path not found
      12  no key decrypts it
      13  not enough disk space
      15  target directory not empty
      16  damaged or forged
      18  format newer than this program
    """
    from sagewai_ops.restore.extract_files import extract_files

    run = with_limits(run, None, limit_download)
    path = find_named(run, snapshot, snapshots)[0]
    decryption = opening.read(run)
    with run.terminal.progress() as progress:
        extraction = extract_files(
            path,
            decryption,
            tuple(paths or ()),
            to,
            keys=origin_keys(run),
            dry_run=dry_run,
            progress=progress,
        )
    if dry_run:
        return plan_outcome(
            [f"write {extraction.files} files, {size(extraction.size_bytes)}, to {to}"]
        )
    result = ExtractedFiles(
        archive=path,
        to=to,
        files=extraction.files,
        folders=extraction.directories,
        links=extraction.links,
        size_bytes=extraction.size_bytes,
    )
    summary = f"{extraction.files} files, {size(extraction.size_bytes)}, extracted to {to}"
    return Outcome(result, lambda terminal: terminal.line(summary))
