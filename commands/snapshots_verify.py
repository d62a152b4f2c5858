"""`snapshots verify`: read a snapshot and check every byte."""

from dataclasses import dataclass
from pathlib import Path

import typer

from sagewai_ops.cli.command import Outcome, Run, add_command

from .shared_options import (  # noqa: TID251 - a neighbour
    IdentityOption,
    OpeningPassphraseOption,
    SnapshotsOption,
)
from .snapshot_argument import (  # noqa: TID251 - a neighbour
    SnapshotArgument,
    find_archive,
)


@dataclass(frozen=True, slots=True)
class VerifiedSnapshot:
    """A snapshot without damage."""

    id: str
    archive: Path
    members: int
    content_bytes: int


def register(group: typer.Typer) -> None:
    """Add it."""
    add_command(
        group,
        "snapshots verify",
        verify,
        result="sagewai_ops.commands.snapshots_verify:VerifiedSnapshot",
        unattended=True,
    )


def verify(
    run: Run,
    *,
    snapshot: SnapshotArgument,
    snapshots: SnapshotsOption = None,
    identity: IdentityOption = None,
    passphrase_file: OpeningPassphraseOption = None,
) -> Outcome:
    """Read a snapshot and verify every byte.

    Exit status:
      0   intact
      2   ambiguous name
      10  snapshot not found
      12  no key decrypts it
      16  damaged
      18  format newer than this program
    """
    from sagewai_ops.archive.open import open_archive
    from sagewai_ops.progress import byte_counter

    path, decryption = find_archive(run, snapshot, snapshots, identity, passphrase_file)
    with run.terminal.progress() as progress, open_archive(path, decryption) as reader:
        reader.verify(on_bytes=byte_counter(progress, "verify", reader.content_bytes))
        result = VerifiedSnapshot(
            id=reader.header.id,
            archive=path,
            members=len(reader.manifest.entries),
            content_bytes=sum(entry.size_bytes for entry in reader.manifest.entries),
        )
    summary = f"snapshot {result.id}: verified, {result.members} members, every byte checked"
    return Outcome(result, lambda terminal: terminal.line(summary, style="green"))
