"""Options that several commands take, each with the same words everywhere."""

from pathlib import Path
from typing import Annotated

import typer

SnapshotsOption = Annotated[
    Path | None,
    typer.Option("--snapshots", metavar="DIR", help="The directory; else HOME.snapshots."),
]
RecipientOption = Annotated[
    list[str] | None,
    typer.Option("--recipient", metavar="R", help="Encrypt to an age or ssh public key."),
]
RecipientsFileOption = Annotated[
    Path | None,
    typer.Option("--recipients-file", metavar="F", help="Recipients, one a line."),
]
SealingPassphraseOption = Annotated[
    str | None,
    typer.Option(
        "--passphrase-file", metavar="F", help="Encrypt under its first line; - asks or reads."
    ),
]
IdentityOption = Annotated[
    list[Path] | None,
    typer.Option("--identity", metavar="F", help="Decrypt with this age or ssh key file."),
]
OpeningPassphraseOption = Annotated[
    str | None,
    typer.Option("--passphrase-file", metavar="F", help="Decrypt with its first line; - asks."),
]
HomeWaitOption = Annotated[
    float,
    typer.Option("--wait", min=0, metavar="SECONDS", help="Wait for another run on the home."),
]
DirectoryWaitOption = Annotated[
    float,
    typer.Option("--wait", min=0, metavar="SECONDS", help="Wait for another run on the directory."),
]
WriterWaitOption = Annotated[
    float,
    typer.Option("--wait", min=0, metavar="SECONDS", help="Wait for another run, or a writer."),
]
