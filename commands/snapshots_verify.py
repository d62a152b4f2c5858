"""`snapshots verify`: read a snapshot and check every byte."""

from pathlib import Path
from typing import Annotated

import typer

from sagewai_ops.cli.command import Outcome, Run, command
from sagewai_ops.cli.options import SNAPSHOTS, option
from sagewai_ops.cli.terminal import Terminal
from sagewai_ops.errors import EXIT_DONE, EXIT_FINDINGS, UsageError

from .shared_options import (  # noqa: TID251 - a neighbour
    ExtraKeyOption,
    LimitDownloadOption,
    OpeningOptions,
    RequireAuthenticOption,
    SnapshotsOption,
    with_limits,
)
from .snapshot_argument import (  # noqa: TID251 - a neighbour
    find_named,
    origin_keys,
)


@command(
    "snapshots verify",
    result="sagewai_ops.snapshots.verify:VerifiedSnapshot"
    " | sagewai_ops.snapshots.chain:VerifiedChain",
    unattended=True,
)
def verify(
    run: Run,
    *,
    snapshot: Annotated[
        str | None, typer.Argument(metavar="[SNAPSHOT|latest]", show_default=False)
    ] = None,
    chain: Annotated[
        bool, option(SNAPSHOTS, "--chain", "Report snapshots that were removed or replaced.")
    ] = False,
    by_hash: Annotated[
        bool, option(SNAPSHOTS, "--hash", "Compare the recorded hash only; needs no key.")
    ] = False,
    snapshots: SnapshotsOption = None,
    opening: OpeningOptions,
    extra_key: ExtraKeyOption = None,
    require_authentic: RequireAuthenticOption = False,
    limit_download: LimitDownloadOption = None,
) -> Outcome:
    """Read a snapshot and verify every byte, and who wrote it.

    SNAPSHOT is `latest`, an id, the beginning of an id, or a path. It is authentic if the master
    key of the home, or one from --extra-key, shows that this home wrote it. --chain checks instead
    that each snapshot of the home follows the previous one; what a prune removed is no finding.

    Exit status:
      0   intact
      2   ambiguous name
      4   --chain: a snapshot was removed or replaced
      10  snapshot not found
      12  no key decrypts or authenticates it
      14  permission denied
      16  damaged or forged
      18  format newer than this program
      19  the remote place failed
    """
    run = with_limits(run, None, limit_download)
    if chain == (snapshot is not None):
        raise UsageError(
            "snapshots verify: name either a snapshot or --chain",
            hint="sagewai-ops snapshots verify latest",
        )
    if snapshot is None:
        return _verify_chain(run, snapshots, opening, extra_key)

    from sagewai_ops.snapshots.mark import read_mark
    from sagewai_ops.snapshots.verify import verify_snapshot

    path = find_named(run, snapshot, snapshots, or_newest=True)[0]
    if by_hash:
        from sagewai_ops.snapshots.verify import verify_hash

        with run.terminal.progress() as progress:
            hashed = verify_hash(path, origin_keys(run, extra_key), progress=progress)
        text = f"snapshot {hashed.id}: its hash is the recorded one; {hashed.authenticity}"
        return Outcome(hashed, lambda terminal: terminal.line(text, style="green"))
    decryption, keys = opening.read(run), origin_keys(run, extra_key)
    is_latest = snapshot == "latest"
    mark = read_mark(run.home(), path.parent, run.settings.environment) if is_latest else None
    with run.terminal.progress() as progress:
        result = verify_snapshot(
            path, decryption, keys, authentic=require_authentic, mark=mark, progress=progress
        )
    reason = f", {result.authenticity_reason}" if result.authenticity_reason else ""
    summary = (
        f"snapshot {result.id}: verified, {result.members} members, every byte checked; "
        f"{result.authenticity}{reason}"
    )
    return Outcome(result, lambda terminal: terminal.line(summary, style="green"))


def _verify_chain(
    run: Run, snapshots: Path | None, opening: OpeningOptions, extra_key: Path | None
) -> Outcome:
    from sagewai_ops.snapshots.chain import verify_chain
    from sagewai_ops.snapshots.trust import trust_of

    home = run.home()
    directory = run.snapshots(home, snapshots)
    trust = trust_of(home, directory, run.settings.environment, key_file=extra_key)
    result = verify_chain(directory, trust, opening.read(run))

    def show(terminal: Terminal) -> None:
        terminal.line(f"{len(result.authentic)} authentic snapshots in {result.folder}")
        for name, ids in (
            ("removed by a prune", result.pruned),
            ("not decrypted", result.unknown),
            ("not authenticated", result.not_authenticated),
        ):
            if ids:
                terminal.line(f"  {len(ids)} {name}: {', '.join(ids)}")
        for finding in result.findings:
            terminal.line(f"  snapshot {finding.snapshot}: {finding.problem}", style="yellow")

    return Outcome(
        result,
        show,
        exit_code=EXIT_FINDINGS if result.findings else EXIT_DONE,
        always=bool(result.findings),
    )
