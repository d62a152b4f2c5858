"""`snapshots copy`: copy snapshots to another directory or remote place."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sagewai_ops.cli.command import Outcome, Run, command
from sagewai_ops.cli.options import ENCRYPTION, RUN, SNAPSHOTS, DryRunOption, option
from sagewai_ops.cli.plan import plan_outcome
from sagewai_ops.errors import UsageError
from sagewai_ops.remote.path import has_trees, parse_place
from sagewai_ops.text import size

from .shared_options import (  # noqa: TID251 - a neighbour
    AllowClearOption,
    IdentityCommandOption,
    IdentityOption,
    LimitDownloadOption,
    LimitUploadOption,
    ReadBackOption,
    RecipientOption,
    RecipientsFileOption,
    RepositoryPassword,
    with_limits,
)

if TYPE_CHECKING:
    from sagewai_ops.backup.copy import CopyOptions


@command(
    "snapshots copy", result="sagewai_ops.backup.copy:CopyReport", unattended=True, changes=True
)
def copy(
    run: Run,
    *,
    source: Annotated[
        Path, typer.Argument(metavar="FROM", help="Directory or URL.", parser=parse_place)
    ],
    target: Annotated[
        Path, typer.Argument(metavar="TO", help="Directory or URL.", parser=parse_place)
    ],
    newest: Annotated[
        int | None, option(SNAPSHOTS, "--newest", "Copy the N newest (default: 1).", "N", min=1)
    ] = None,
    everything: Annotated[
        bool, option(SNAPSHOTS, "--all", "Copy all snapshots of the home.")
    ] = False,
    allow_clear: AllowClearOption = False,
    recipient: RecipientOption = None,
    recipients_file: RecipientsFileOption = None,
    identity: IdentityOption = None,
    identity_command: IdentityCommandOption = None,
    password: RepositoryPassword,
    archive_passphrase_file: Annotated[
        str | None,
        option(
            ENCRYPTION,
            "--archive-passphrase-file",
            "Passphrase of archives (- asks), not of a repository.",
            "FILE",
            hidden=True,
        ),
    ] = None,
    init_repository: Annotated[
        bool,
        option(SNAPSHOTS, "--init-repository", "Create TO, a repository, if it does not exist."),
    ] = False,
    read_back: ReadBackOption = "full",
    limit_upload: LimitUploadOption = None,
    limit_download: LimitDownloadOption = None,
    dry_run: DryRunOption = False,
    wait: Annotated[
        float, option(RUN, "--wait", "Wait for another run on TO.", "SECONDS", min=0)
    ] = 0.0,
) -> Outcome:
    """Copy snapshots to another directory or remote place.

    Archives are copied as they are, compared with their recorded hash and read back from TO. What
    TO has already is not copied again, and nothing there is overwritten. Between archives and a
    repository (restic:R, borg:R) snapshots are converted: --identity decrypts the archives, or
    --recipient encrypts them; --archive-passphrase-file does either.

    Exit status:
      0   copied, or nothing to copy
      2   a plain archive, and TO is a remote place
      10  no snapshot of the home in FROM, or TO is no place
      11  TO is locked by another run
      13  not enough disk space
      14  permission denied
      15  TO has another archive of this name
      16  damaged
      19  the remote place or the network failed
    """
    from sagewai_ops.backup.copy import CopyOptions, copy_snapshots
    from sagewai_ops.cli.credentials import lock_of, unlock_of
    from sagewai_ops.remote.read_back import ReadBack

    if newest is not None and everything:
        raise UsageError("--newest and --all: only one of them")
    run = with_limits(run, limit_upload, limit_download)
    home = run.home()
    source, target = run.snapshots(home, source), run.snapshots(home, target)
    if archive_passphrase_file and has_trees(source) == has_trees(target):
        raise UsageError("--archive-passphrase-file: only between an archive and a repository")
    opening, sealing = archive_passphrase_file, None
    if has_trees(source):
        opening, sealing = sealing, opening
    options = CopyOptions(
        newest=None if everything else newest or 1,
        allow_clear=allow_clear,
        amount=ReadBack.parse(read_back),
        wait_seconds=wait,
        encryption=lock_of(run.terminal, recipient or [], recipients_file, sealing),
        decryption=unlock_of(
            run.terminal, identity or [], opening, identity_command=identity_command
        ),
        init_repository=init_repository,
    )
    _check_options(options, source, target)
    password.require_repository(source, target)
    with run.terminal.progress() as progress:
        result = copy_snapshots(
            home,
            source,
            target,
            options,
            run.settings.environment,
            dry_run=dry_run,
            progress=progress,
        )
    if dry_run:
        return plan_outcome(
            f"copy snapshot {item.id}, {size(item.archive_bytes)}, to {item.archive}"
            for item in result.copied
        )
    total = size(sum(item.archive_bytes for item in result.copied))
    summary = f"{len(result.copied)} snapshots, {total}, copied to {result.target}"
    return Outcome(
        result, lambda terminal: terminal.line(summary, style="green"), warnings=result.warnings
    )


def _check_options(options: "CopyOptions", source: Path, target: Path) -> None:
    """Check that no option is without effect.

    Raises:
        UsageError: It is: the copy is not between an archive and a repository.
    """
    if options.encryption and (has_trees(target) or not has_trees(source)):
        raise UsageError("--recipient: only for archives that are made from a repository")
    if options.decryption and (has_trees(source) or not has_trees(target)):
        raise UsageError("--identity: only for archives that are copied to a repository")
    if options.init_repository and not has_trees(target):
        raise UsageError(f"--init-repository: {target} is not a repository")
