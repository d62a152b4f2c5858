"""`snapshots verify`: read a snapshot and check every byte."""

import typer

from sagewai_ops.cli.command import Outcome, Run, add_command

from .shared_options import (  # noqa: TID251 - a neighbour
    ExtraKeyOption,
    IdentityOption,
    OpeningPassphraseOption,
    RequireAuthenticOption,
    SnapshotsOption,
    WorkFactorOption,
)
from .snapshot_argument import (  # noqa: TID251 - a neighbour
    SnapshotArgument,
    find_archive,
    origin_keys,
)


def register(group: typer.Typer) -> None:
    """Add it."""
    add_command(
        group,
        "snapshots verify",
        verify,
        result="sagewai_ops.snapshots.verify:VerifiedSnapshot",
        unattended=True,
    )


def verify(
    run: Run,
    *,
    snapshot: SnapshotArgument,
    snapshots: SnapshotsOption = None,
    identity: IdentityOption = None,
    passphrase_file: OpeningPassphraseOption = None,
    allow_work_factor: WorkFactorOption = False,
    extra_key: ExtraKeyOption = None,
    require_authentic: RequireAuthenticOption = False,
) -> Outcome:
    """Read a snapshot and verify every byte, and who wrote it.

    An archive is authentic if the master key of the home, or one from --extra-key, shows that this
    home wrote it.

    Exit status:
      0   intact
      2   ambiguous name
      10  snapshot not found
      12  no key decrypts it
      16  damaged or forged
      18  format newer than this program
    """
    from sagewai_ops.snapshots.verify import verify_snapshot

    path, decryption = find_archive(
        run, snapshot, snapshots, identity, passphrase_file, allow_work_factor=allow_work_factor
    )
    keys = origin_keys(run, extra_key)
    with run.terminal.progress() as progress:
        result = verify_snapshot(
            path, decryption, keys, authentic=require_authentic, progress=progress
        )
    reason = f", {result.authenticity_reason}" if result.authenticity_reason else ""
    summary = (
        f"snapshot {result.id}: verified, {result.members} members, every byte checked; "
        f"{result.authenticity}{reason}"
    )
    return Outcome(result, lambda terminal: terminal.line(summary, style="green"))
