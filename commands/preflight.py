"""`preflight`: everything to know before touching a home, as one table with one exit code."""

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from sagewai_ops.cli.command import Outcome, Run, command
from sagewai_ops.cli.options import ENCRYPTION, SNAPSHOTS, DryRunOption, option
from sagewai_ops.cli.terminal import Terminal
from sagewai_ops.errors import UsageError
from sagewai_ops.records import dataclass
from sagewai_ops.text import printable, shell_word

from .shared_options import (  # noqa: TID251 - a neighbour
    ExtraKeyOption,
    HiddenScratchUrlFileOption,
    HiddenScratchUrlOption,
    HiddenSqliteOption,
    HiddenUrlFileOption,
    IdentityCommandOption,
    KeepWorkDirOption,
    KeyCustodyOption,
    PassphraseCommandOption,
    PassphraseOption,
    RecipientOption,
    RecipientsFileOption,
    RequireAuthenticOption,
    SnapshotsOption,
    StrictOption,
    UnencryptedOption,
    WorkDirOption,
    WriterWaitOption,
    keeper,
)

if TYPE_CHECKING:
    from sagewai_ops.archive.age import Encryption
    from sagewai_ops.operations.preflight import PreflightReport, PreflightResult

HELP = """Check everything before an upgrade.

Processes, layout, permissions, keys, database and disk space are checked, a snapshot is created and
restored on trial, and the upgrade is run on a copy. Each check is one line, with the command that
repairs what failed. Nothing but the snapshot is written. Of several exit statuses the gravest is
returned: the first of 1 16 12 18 20 13 14 11 15 19 17 10 2 4 3.

Exit status:
  0   ready
  3   a check could not be made
  4   findings; with --strict warnings too
  10  home or database not found
  11  locked by another run
  12  no key decrypts the secrets
  13  not enough disk space
  14  permission denied
  15  in use
  16  damaged
  17  schema without revisions
  18  schema newer or unknown
  19  server or network failed
  20  the upgrade would change rows
"""
_PLAN = "#!/bin/sh\n# The way back from an upgrade, written by sagewai-ops preflight.\n"
_EARLIER = "# From an earlier preflight: the last one created no snapshot.\n"
_PLAN_MODE = 0o700  # a script of its owner
_SHOWN = 10  # details of a check that people are shown; --json has all
_STYLES = {"ok": "green", "skipped": "", "warning": "yellow"}


@dataclass(frozen=True, slots=True)
class Opening:
    """What a restore needs besides the snapshot: its options, and comments that name the others."""

    words: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


@command(
    "preflight",
    HELP,
    result="sagewai_ops.operations.preflight:PreflightResult",
    unattended=True,
    changes=True,
)
def preflight(
    run: Run,
    *,
    no_snapshot: Annotated[
        bool, option(SNAPSHOTS, "--no-snapshot", "Create no snapshot, and restore none.")
    ] = False,
    snapshots: SnapshotsOption = None,
    recipient: RecipientOption = None,
    recipients_file: RecipientsFileOption = None,
    passphrase_file: PassphraseOption = None,
    passphrase_command: PassphraseCommandOption = None,
    unencrypted: UnencryptedOption = False,
    key: KeyCustodyOption = "exclude",
    identity: Annotated[
        list[Path] | None,
        option(ENCRYPTION, "--identity", "Private key for it, or --identity-command CMD.", "FILE"),
    ] = None,
    identity_command: IdentityCommandOption = None,
    key_file: ExtraKeyOption = None,
    require_authentic: RequireAuthenticOption = False,
    url_file: HiddenUrlFileOption = None,
    sqlite: HiddenSqliteOption = False,
    scratch_url: HiddenScratchUrlOption = None,
    scratch_url_file: HiddenScratchUrlFileOption = None,
    write_plan: Annotated[
        Path | None,
        option(
            SNAPSHOTS,
            "--write-plan",
            "Write the commands that go back after the upgrade to this file.",
            "FILE",
            hidden=True,
        ),
    ] = None,
    scratch: WorkDirOption = None,
    keep_work_dir: KeepWorkDirOption = False,
    strict: StrictOption = False,
    dry_run: DryRunOption = False,
    wait: WriterWaitOption = 30.0,
) -> Outcome:
    """Parse, check, render."""
    from sagewai_ops.archive.age import Decryption
    from sagewai_ops.backup.report import BackupOptions
    from sagewai_ops.cli.credentials import automatic_lock_of, unlock_of
    from sagewai_ops.cli.database_url import scratch_server, with_database
    from sagewai_ops.home.application import find_version
    from sagewai_ops.operations.preflight import PreflightOptions, run_preflight

    if write_plan and no_snapshot:
        raise UsageError("--write-plan: nothing to go back to with --no-snapshot")
    if write_plan:
        _read_plan(write_plan)  # refused now, not after minutes of checks
    run = with_database(run, url_file, sqlite=sqlite)
    home = run.home()
    encryption = (
        None
        if no_snapshot or unencrypted
        else automatic_lock_of(
            run, recipient or [], recipients_file, passphrase_file, passphrase_command
        )
    )
    decryption = unlock_of(run.terminal, identity or [], None, identity_command=identity_command)
    if encryption and encryption.passphrase:
        decryption = Decryption(passphrase=encryption.passphrase)
    backup = BackupOptions(
        encryption=encryption,
        custody=key,
        wait_seconds=wait,
        key_environment=run.settings.environment,
        tags=("preflight",),
        unencrypted=unencrypted,
        is_automatic=True,
    )
    options = PreflightOptions(
        environment=run.settings.environment,
        snapshots=run.snapshots(home, snapshots),
        backup=None if no_snapshot else backup,
        decryption=decryption,
        key_file=key_file,
        scratch=scratch,
        keep=keeper(run, keep_work_dir, scratch, run.snapshots(home, snapshots)),
        require_authentic=require_authentic,
        scratch_server=scratch_server(scratch_url, scratch_url_file),
        is_strict=strict,
        dry_run=dry_run,
        wait_seconds=wait,
    )
    with run.terminal.progress() as progress:
        done = run_preflight(home, options, progress=progress)
    opening = _opening(run, identity or [], passphrase_file, url_file, encryption)
    version = find_version(run.settings.environment, home.root)
    result = describe(done, version, opening)
    if write_plan and result.go_back:
        # Quoted for sh, which does not know the $'' of bash that people are shown.
        _write_plan(write_plan, result, _commands_back(done, version, opening, quote=shlex.quote))
    elif write_plan and not dry_run and _mark_plan(write_plan):
        run.warn(f"{write_plan}: from an earlier preflight, not replaced: no snapshot was created")
    return Outcome(
        result,
        lambda terminal: show(terminal, result),
        exit_code=done.exit_code,
        always=True,
        error=done.error,
    )


def describe(
    done: "PreflightReport", application_version: str = "", opening: Opening | None = None
) -> "PreflightResult":
    """Return the result of a preflight.

    Args:
        application_version: Of the Sagewai that has written the home; "" if unknown.
        opening: What a restore needs besides the snapshot.
    """
    from sagewai_ops.operations.preflight import PreflightResult

    snapshot, drill = done.snapshot, done.drill
    is_proved = drill is not None and drill.outcome == "proved"
    return PreflightResult(
        home=done.home,
        ready=done.exit_code == 0,
        strict=done.is_strict,
        checks=done.checks,
        snapshot=snapshot.id if snapshot else None,
        archive=snapshot.path if snapshot else None,
        proved_restorable_at=f"{drill.at:%Y-%m-%dT%H:%M:%SZ}" if drill and is_proved else None,
        go_back=_commands_back(done, application_version, opening or Opening()),
    )


def _opening(
    run: Run,
    identities: list[Path],
    passphrase_file: str | None,
    url_file: Path | None,
    encryption: "Encryption | None",
) -> Opening:
    """Return the options of a restore that name files, and what else it needs."""
    from sagewai_ops.home.server_record import server_name

    words = [word for path in identities for word in ("--identity", _absolute(path))]
    missing = []
    if passphrase_file and passphrase_file != "-":  # noqa: S105 - standard input
        words += ["--passphrase-file", _absolute(Path(passphrase_file))]
    elif encryption and encryption.passphrase:
        missing.append("--passphrase-file FILE, the snapshot is encrypted")
    elif encryption and not identities:
        missing.append("--identity FILE, the snapshot is encrypted")
    if url_file:
        words += ["--url-file", _absolute(url_file)]
    elif server_name(run.home(), run.settings.environment):
        missing.append("--url-file FILE, the database is on a server")
    return Opening(tuple(words), tuple(f"# add {text}" for text in missing))


def _absolute(path: Path) -> str:
    return os.path.abspath(path.expanduser())


def _commands_back(
    done: "PreflightReport",
    application_version: str,
    opening: Opening,
    quote: Callable[[str], str] = shell_word,
) -> tuple[str, ...]:
    """Return the commands that restore the snapshot by its id: `latest` may be a newer one."""
    snapshot = done.snapshot
    if snapshot is None or snapshot.path is None:
        return ()
    command = ["sagewai-ops", "--home", str(done.home), "restore", snapshot.id, "--replace"]
    command += ["--snapshots", str(snapshot.path.parent), *opening.words]
    version = [f"# install Sagewai {application_version}"] if application_version else []
    return ("# stop Sagewai", *version, *opening.missing, " ".join(map(quote, command)))


def _read_plan(path: Path) -> bytes:
    """Return an earlier script of the kind; nothing without one.

    Raises:
        NotFoundError: The directory does not exist.
        TargetBusyError: The file has other content.
    """
    from sagewai_ops.errors import NotFoundError, TargetBusyError
    from sagewai_ops.fs.given_files import MOST_BYTES, open_given_file, resolve_given_path

    path = resolve_given_path(path)
    try:
        with open(open_given_file(path), "rb") as stream:
            content = stream.read(MOST_BYTES)
    except FileNotFoundError:
        if path.parent.is_dir():
            return b""
        hint = f"mkdir {shell_word(path.parent)}"
        raise NotFoundError(f"{path.parent}: not found", hint=hint) from None
    if not content.startswith(_PLAN.encode()):
        raise TargetBusyError(f"{path}: exists with other content", hint=f"rm {shell_word(path)}")
    return content


def _mark_plan(path: Path) -> bool:
    """Write into an earlier script that a later preflight did not replace it.

    Returns:
        Whether there is one.
    """
    content = _read_plan(path)
    mark = (_PLAN + _EARLIER).encode()
    if content and not content.startswith(mark):
        _replace_plan(path, mark + content.removeprefix(_PLAN.encode()))
    return bool(content)


def _write_plan(path: Path, result: "PreflightResult", commands: tuple[str, ...]) -> None:
    """Write the commands that go back as a script; another script of the kind is replaced.

    Raises:
        NotFoundError, TargetBusyError: As `_read_plan`.
    """
    _read_plan(path)
    lines = [
        _PLAN + f"# Home {printable(str(result.home))}, snapshot {result.snapshot}.",
        "set -eu",
    ]
    content = "\n".join([*lines, *commands, "# start Sagewai", ""])
    _replace_plan(path, content.encode("utf-8", "surrogateescape"))


def _replace_plan(path: Path, content: bytes) -> None:
    from sagewai_ops.fs import atomic
    from sagewai_ops.fs.given_files import resolve_given_path

    atomic.replace(resolve_given_path(path), content, mode=_PLAN_MODE)


def show(terminal: Terminal, result: "PreflightResult") -> None:
    """Print the table, the details of each line that is not ok, and the verdict."""
    terminal.table(
        ("check", "verdict", ""),
        [(check.check, check.verdict.value, check.summary) for check in result.checks],
    )
    for check in result.checks:
        verdict = check.verdict.value
        if verdict in ("ok", "skipped"):
            continue
        terminal.line(f"{check.check}: {check.summary}", style=_STYLES.get(verdict, "red"))
        terminal.items("  ", check.details, most=_SHOWN)
        terminal.items("  fix  ", check.mend[:_SHOWN])
    failed = sum(bool(check.exit_code) for check in result.checks)
    if result.ready:
        terminal.line(f"home {result.home}: ready", style="bold green")
    else:
        what = f"{failed} check{'s' * (failed > 1)} failed" if failed else "there are warnings"
        terminal.line(f"home {result.home}: not ready, {what}", style="bold red")
    if result.go_back:
        terminal.line("to go back after the upgrade:")
        terminal.items("  ", result.go_back)
