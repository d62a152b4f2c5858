"""Options that several commands have, with the same words everywhere."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from sagewai_ops.cli.command import Run
from sagewai_ops.cli.key_commands import METAVAR
from sagewai_ops.cli.options import DATABASE, ENCRYPTION, REPORTING, RUN, SNAPSHOTS, option
from sagewai_ops.errors import UsageError
from sagewai_ops.remote.path import has_trees, parse_place

if TYPE_CHECKING:
    from sagewai_ops.archive.age import Decryption
    from sagewai_ops.fs.tempdirs import Keep


def _wait(purpose: str) -> Any:
    return option(RUN, "--wait", f"Wait for {purpose}.", "SECONDS", min=0)


def command_words(text: str) -> str:
    """Check the words of a command; it is split again where it is run."""
    from sagewai_ops.process.command_output import split_command

    try:
        split_command(text)
    except ValueError as error:
        raise typer.BadParameter(str(error).lower()) from None
    return text


def _key_command(flag: str, what: str) -> Any:
    # Hidden: the option next to it names it, in helps that have no line left.
    text = f"Read the {what} from the output of this command, which is run without a shell."
    return option(ENCRYPTION, flag, text, METAVAR, hidden=True, parser=command_words)


def _work_dir(default: str) -> Any:
    return option(RUN, "--work-dir", f"Temporary directory (default: {default}).", "DIR")


def _snapshots(flags: str) -> Any:
    text = "Snapshot directory or URL (default: HOME.snapshots)."
    return option(SNAPSHOTS, flags, text, "DIR", parser=parse_place)


SnapshotsOption = Annotated[Path | None, _snapshots("--snapshots")]
BackupSnapshotsOption = Annotated[Path | None, _snapshots("--snapshots --to")]
_CLEAR = "Write a plain archive to a remote place."
_READ_BACK = "Read back from a remote place: full, none, N%, or bytes such as 512M (default: full)."
AllowClearOption = Annotated[bool, option(ENCRYPTION, "--allow-clear", _CLEAR)]
ReadBackOption = Annotated[str, option(SNAPSHOTS, "--read-back", _READ_BACK, "AMOUNT")]
_UPLOAD = "Send at most so many KiB a second to a remote place."
_DOWNLOAD = "Receive at most so many KiB a second."
LimitUploadOption = Annotated[int | None, option(RUN, "--limit-upload", _UPLOAD, "KIB", min=1)]
LimitDownloadOption = Annotated[
    int | None, option(RUN, "--limit-download", _DOWNLOAD, "KIB", min=1)
]
# The same of commands whose help has no line left.
HiddenAllowClearOption = Annotated[bool, option(ENCRYPTION, "--allow-clear", _CLEAR, hidden=True)]
HiddenReadBackOption = Annotated[
    str | None, option(SNAPSHOTS, "--read-back", _READ_BACK, "AMOUNT", hidden=True)
]
HiddenLimitUploadOption = Annotated[
    int | None, option(RUN, "--limit-upload", _UPLOAD, "KIB", min=1, hidden=True)
]
HiddenLimitDownloadOption = Annotated[
    int | None, option(RUN, "--limit-download", _DOWNLOAD, "KIB", min=1, hidden=True)
]
RecipientOption = Annotated[
    list[str] | None,
    option(ENCRYPTION, "--recipient", "Encrypt to this age or SSH public key; repeatable.", "KEY"),
]
_RECIPIENTS = "Encrypt to the public keys in this file, one a line."
RecipientsFileOption = Annotated[
    Path | None, option(ENCRYPTION, "--recipients-file", _RECIPIENTS, "FILE")
]
UnencryptedOption = Annotated[
    bool, option(ENCRYPTION, "--unencrypted", "Write a plain archive next to encrypted ones.")
]
_PASSPHRASE = "Passphrase (- asks), or --passphrase-command CMD."  # noqa: S105 - a help text
PassphraseOption = Annotated[
    str | None, option(ENCRYPTION, "--passphrase-file", _PASSPHRASE, "FILE")
]
_IDENTITY = "Age or SSH private key, or --identity-command CMD."
IdentityOption = Annotated[list[Path] | None, option(ENCRYPTION, "--identity", _IDENTITY, "FILE")]
PassphraseCommandOption = Annotated[
    str | None, _key_command("--passphrase-command", "passphrase, its first line,")
]
# Of commands that decrypt nothing: without a repository it is refused.
_REPOSITORY = "Repository password, or --passphrase-command CMD."
RepositoryPassphraseOption = Annotated[
    str | None, option(ENCRYPTION, "--passphrase-file", _REPOSITORY, "FILE")
]
IdentityCommandOption = Annotated[
    str | None, _key_command("--identity-command", "private key, an age identity file,")
]
_WORK_FACTOR = "Accept a passphrase header that needs up to 4 GiB of memory."


class OpeningOptions(NamedTuple):
    """What decrypts an archive, as options."""

    identity: IdentityOption = None
    identity_command: IdentityCommandOption = None
    passphrase_file: PassphraseOption = None
    passphrase_command: PassphraseCommandOption = None
    allow_work_factor: Annotated[
        bool, option(ENCRYPTION, "--allow-work-factor", _WORK_FACTOR, hidden=True)
    ] = False

    def read(self, run: Run) -> "Decryption | None":
        """Read how to decrypt; None if no option is given.

        Raises:
            UsageError, NotFoundError, KeyMissingError: As `credentials.unlock_of`.
        """
        from sagewai_ops.cli.credentials import unlock_of

        return unlock_of(
            run.terminal,
            self.identity or [],
            self.passphrase_file,
            identity_command=self.identity_command,
            passphrase_command=self.passphrase_command,
            allow_work_factor=self.allow_work_factor,
        )


ExtraKeyOption = Annotated[
    Path | None, option(ENCRYPTION, "--extra-key", "Additional master key to try.", "FILE")
]
KeyCustodyOption = Annotated[
    str, option(ENCRYPTION, "--key", "Omit or include the master key.", "exclude|sealed")
]
WorkDirOption = Annotated[Path | None, _work_dir("in memory")]
HomeWorkDirOption = Annotated[Path | None, _work_dir("next to the home")]
CopyDirOption = Annotated[Path | None, _work_dir("with the home")]
KeepWorkDirOption = Annotated[
    bool, option(RUN, "--keep-work-dir", "Keep its plaintext; needs --work-dir.")
]
RequireAuthenticOption = Annotated[
    bool, option(ENCRYPTION, "--require-authentic", "Refuse a snapshot that is not authentic.")
]
AllowRollbackOption = Annotated[
    bool, option(ENCRYPTION, "--allow-rollback", "Accept it even if newer snapshots are missing.")
]


def server_argument(role: str) -> Any:
    """Return the argument with the URL of a server.

    Args:
        role: Of its database, `Source` or `Target`.
    """
    text = f"{role} database (default: SAGEWAI_DATABASE_URL)."
    return typer.Argument(metavar="[URL]", help=text)


StrictOption = Annotated[bool, option(RUN, "--strict", "Exit 4 on warnings too.")]
SqlOption = Annotated[bool, option(DATABASE, "--sql", "Print the SQL statements, run nothing.")]
ReportOption = Annotated[
    Path | None, option(REPORTING, "--report", "Report (default: next to the home).", "FILE")
]
_URL_FILE = ("--url-file", "File with the URL of the database server.", "FILE")
_SQLITE = ("--sqlite", "Use db/sagewai.db, although the database was moved.")
_SCRATCH_URL = ("--scratch-url", "Drill a server's database on this server.", "URL")
_SCRATCH_URL_FILE = ("--scratch-url-file", "File with this URL.", "FILE")
UrlFileOption = Annotated[Path | None, option(DATABASE, *_URL_FILE)]
SqliteOption = Annotated[bool, option(DATABASE, *_SQLITE)]
ScratchUrlOption = Annotated[str | None, option(DATABASE, *_SCRATCH_URL)]
ScratchUrlFileOption = Annotated[Path | None, option(DATABASE, *_SCRATCH_URL_FILE)]
# The same of commands whose help has no line left.
HiddenUrlFileOption = Annotated[Path | None, option(DATABASE, *_URL_FILE, hidden=True)]
HiddenSqliteOption = Annotated[bool, option(DATABASE, *_SQLITE, hidden=True)]
HiddenScratchUrlOption = Annotated[str | None, option(DATABASE, *_SCRATCH_URL, hidden=True)]
HiddenScratchUrlFileOption = Annotated[
    Path | None, option(DATABASE, *_SCRATCH_URL_FILE, hidden=True)
]
HomeWaitOption = Annotated[float, _wait("another run on the home")]
DirectoryWaitOption = Annotated[float, _wait("another run on the directory")]
WriterWaitOption = Annotated[float, _wait("another run or a writer")]


class DatabaseOptions(NamedTuple):
    """Where the database of a home is, as options."""

    url_file: UrlFileOption = None
    sqlite: SqliteOption = False

    def apply(self, run: Run, *, required: bool = True) -> Run:
        """Return a run that uses this database.

        Args:
            required: Whether a home whose database is on a server needs its URL.

        Raises:
            UsageError, NotFoundError, DamagedError: As `database_url.with_database`.
        """
        from sagewai_ops.cli.database_url import with_database

        return with_database(run, self.url_file, sqlite=self.sqlite, required=required)


class RepositoryPassword(NamedTuple):
    """The password of a repository, as options of commands that decrypt nothing."""

    passphrase_file: RepositoryPassphraseOption = None
    passphrase_command: PassphraseCommandOption = None

    def require_repository(self, *places: Path) -> None:
        """Check that a password that is given is one of a repository.

        Raises:
            UsageError: None of the places is a repository.
        """
        if any(self) and not any(map(has_trees, places)):
            flag = "--passphrase-file" if self.passphrase_file else "--passphrase-command"
            shown = ", ".join(map(str, places))
            raise UsageError(
                f"{flag}: the password of a repository, not of {shown}",
                hint="add --engine restic --repository R",
            )


def with_limits(run: Run, upload: int | None, download: int | None) -> Run:
    """Return a run whose remote places have these limits, in KiB per second; None for none."""
    if upload is None and download is None:
        return run
    limited = replace(run.settings, limit_upload=upload, limit_download=download)
    return replace(run, settings=limited)


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
