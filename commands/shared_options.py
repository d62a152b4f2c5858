"""Options that several commands have, with the same words everywhere."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sagewai_ops.cli.command import Run
from sagewai_ops.cli.options import DATABASE, ENCRYPTION, RUN, SNAPSHOTS
from sagewai_ops.errors import UsageError

if TYPE_CHECKING:
    from sagewai_ops.fs.tempdirs import Keep


def _wait(purpose: str) -> Any:
    return typer.Option(
        "--wait", min=0, metavar="SECONDS", help=f"Wait for {purpose}.", rich_help_panel=RUN
    )


def _work_dir(default: str) -> Any:
    return typer.Option(
        "--work-dir",
        metavar="DIR",
        help=f"Temporary directory (default: {default}).",
        rich_help_panel=RUN,
    )


SnapshotsOption = Annotated[
    Path | None,
    typer.Option(
        "--snapshots",
        metavar="DIR",
        help="Snapshot directory (default: HOME.snapshots).",
        rich_help_panel=SNAPSHOTS,
    ),
]
RecipientOption = Annotated[
    list[str] | None,
    typer.Option(
        "--recipient",
        metavar="KEY",
        help="Encrypt to this age or SSH public key; repeatable.",
        rich_help_panel=ENCRYPTION,
    ),
]
RecipientsFileOption = Annotated[
    Path | None,
    typer.Option(
        "--recipients-file",
        metavar="FILE",
        help="Encrypt to the public keys in this file, one a line.",
        rich_help_panel=ENCRYPTION,
    ),
]
SealingPassphraseOption = Annotated[
    str | None,
    typer.Option(
        "--passphrase-file",
        metavar="FILE",
        help="Encrypt with a passphrase, its first line; - asks.",
        rich_help_panel=ENCRYPTION,
    ),
]
IdentityOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--identity",
        metavar="FILE",
        help="Decrypt with this age or SSH private key; repeatable.",
        rich_help_panel=ENCRYPTION,
    ),
]
OpeningPassphraseOption = Annotated[
    str | None,
    typer.Option(
        "--passphrase-file",
        metavar="FILE",
        help="Decrypt with a passphrase, its first line; - asks.",
        rich_help_panel=ENCRYPTION,
    ),
]
ExtraKeyOption = Annotated[
    Path | None,
    typer.Option(
        "--extra-key",
        metavar="FILE",
        help="Additional master key to try.",
        rich_help_panel=ENCRYPTION,
    ),
]
KeyCustodyOption = Annotated[
    str,
    typer.Option(
        "--key",
        metavar="exclude|sealed",
        help="Omit or include the master key.",
        rich_help_panel=ENCRYPTION,
    ),
]
WorkDirOption = Annotated[Path | None, _work_dir("next to the snapshots")]
CopyDirOption = Annotated[Path | None, _work_dir("with the home")]
KeepWorkDirOption = Annotated[
    bool,
    typer.Option(
        "--keep-work-dir",
        help="Keep its plaintext; needs --work-dir.",
        rich_help_panel=RUN,
    ),
]
RequireAuthenticOption = Annotated[
    bool,
    typer.Option(
        "--require-authentic",
        help="Refuse a snapshot that is not authentic.",
        rich_help_panel=ENCRYPTION,
    ),
]
StrictOption = Annotated[
    bool, typer.Option("--strict", help="Exit 4 on warnings too.", rich_help_panel=RUN)
]
SqlOption = Annotated[
    bool,
    typer.Option("--sql", help="Print the SQL statements, run nothing.", rich_help_panel=DATABASE),
]
HomeWaitOption = Annotated[float, _wait("another run on the home")]
DirectoryWaitOption = Annotated[float, _wait("another run on the directory")]
WriterWaitOption = Annotated[float, _wait("another run or a writer")]


def keeper(run: Run, requested: bool, work_dir: Path | None, snapshots: Path) -> "Keep | None":
    """Return what keeps the work directory of a run; None to remove it as usual.

    Args:
        requested: `--keep-work-dir`.
        snapshots: The snapshot directory, next to whose archives no plaintext is kept.

    Raises:
        UsageError: `--work-dir` is missing, or is the snapshot directory.
    """
    if not requested:
        return None
    if work_dir is None or work_dir.absolute() == snapshots.absolute():
        raise UsageError(
            "--keep-work-dir: no plaintext is kept next to snapshots or the home",
            hint="add --work-dir DIR",
        )
    return lambda path: run.warn(f"work directory {path}: kept, contains plaintext of the home")
