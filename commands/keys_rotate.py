"""`keys rotate`: another master key, and everything that is sealed under it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from sagewai_ops.cli.command import Outcome, Run, command
from sagewai_ops.cli.options import ENCRYPTION, RUN, SNAPSHOTS, DryRunOption, YesOption, option
from sagewai_ops.cli.terminal import Terminal
from sagewai_ops.errors import EXIT_DONE, EXIT_INCOMPLETE, UsageError

from .recover import (  # noqa: TID251 - a neighbour
    alias_outcome,
    outcome_of,
    unchanged,
    warnings_of,
)
from .shared_options import (  # noqa: TID251 - a neighbour
    DatabaseOptions,
    ExtraKeyOption,
    PassphraseCommandOption,
    PassphraseOption,
    RecipientOption,
    RecipientsFileOption,
    SnapshotsOption,
    WriterWaitOption,
)

if TYPE_CHECKING:
    from sagewai_ops.operations.recover import RecoveryReport
    from sagewai_ops.operations.rotate_keys import RotationResult

HELP = """Re-encrypt all secrets with a new master key.

An encrypted snapshot with the old key is created first. Then documents, database and key change in
one journaled operation: after an interruption --recover completes it or rolls it back, and other
commands refuse to run until then. Sagewai must be stopped. If Sagewai reads its key from the
environment or a keyring, the new key is written to secrets/master.key, and the remaining steps are
printed. Keys are never shown.

Exit status:
  0   rotated; Sagewai uses the new key
  2   no recipient and no --no-snapshot, not a key, or no URL of the server
  3   rotated, but steps remain or values were left
  10  home or file not found
  11  locked by another run, or an interrupted one is pending
  12  no key, or no key decrypts some values
  13  not enough disk space
  14  permission denied
  15  in use
  16  damaged
  19  server or network failed
  20  verification failed; nothing was changed
"""


@command(
    "keys rotate",
    HELP,
    result="sagewai_ops.operations.rotate_keys:RotationResult"
    " | sagewai_ops.operations.rotate_keys:RotationRecovery"
    " | sagewai_ops.operations.recover:RecoveryReport",
    changes=True,
)
def rotate(
    run: Run,
    *,
    new_key_file: Annotated[
        Path | None,
        option(ENCRYPTION, "--new-key-file", "New master key (default: a random one).", "FILE"),
    ] = None,
    key_file: ExtraKeyOption = None,
    leave_unopened: Annotated[
        bool, option(ENCRYPTION, "--leave-unopened", "Leave values that no key decrypts unchanged.")
    ] = False,
    recipient: RecipientOption = None,
    recipients_file: RecipientsFileOption = None,
    passphrase_file: PassphraseOption = None,
    passphrase_command: PassphraseCommandOption = None,
    snapshots: SnapshotsOption = None,
    no_snapshot: Annotated[
        bool,
        option(SNAPSHOTS, "--no-snapshot", "Create no snapshot; the old key is kept as a file."),
    ] = False,
    database_options: DatabaseOptions,
    dry_run: DryRunOption = False,
    recover: Annotated[
        bool, option(RUN, "--recover", "Complete or roll back an interrupted rotation.")
    ] = False,
    yes: YesOption = False,
    wait: WriterWaitOption = 5.0,
) -> Outcome:
    """Parse, re-encrypt, render."""
    from sagewai_ops.backup.report import BackupOptions
    from sagewai_ops.cli.credentials import automatic_lock_of, lock_of
    from sagewai_ops.home.paths import require
    from sagewai_ops.operations import rotate_keys
    from sagewai_ops.operations.recover import recover_home
    from sagewai_ops.remote.path import has_trees
    from sagewai_ops.swap.pending import KEY_ROTATION

    run = database_options.apply(run)
    home = run.home()
    environment = run.settings.environment
    if recover:
        if new_key_file or no_snapshot:
            raise UsageError("--recover: no other option allowed", hint="sagewai-ops recover")
        require(home)
        report = recover_home(
            home, environment, kinds=[KEY_ROTATION], dry_run=dry_run, wait_seconds=wait
        )
        return outcome_of(report) if dry_run else _recovered(report)
    directory = run.snapshots(home, snapshots)
    if has_trees(directory) and not no_snapshot:
        raise UsageError(
            f"{directory}: no repository gets the old key, which the snapshot contains",
            hint="sagewai-ops keys rotate --recipient age1... --snapshots DIR",
        )
    sealing = (recipient or [], recipients_file, passphrase_file, passphrase_command)
    encryption = (
        lock_of(run.terminal, *sealing) if no_snapshot else automatic_lock_of(run, *sealing)
    )
    if encryption is None and not (no_snapshot or dry_run):
        raise UsageError(
            "keys rotate: no recipient for the encrypted snapshot that keeps the old key",
            hint="sagewai-ops keys rotate --recipient age1...  # or --passphrase-file FILE\n"
            "sagewai-ops keys rotate --no-snapshot --yes",
        )
    if encryption is not None and no_snapshot:
        raise UsageError("--no-snapshot: contradicts a recipient or passphrase")
    if no_snapshot and not dry_run:
        run.terminal.confirm(f"Replace the key of {home.root} without a snapshot?", yes=yes)
    backup = BackupOptions(
        encryption=encryption,
        custody="sealed",
        wait_seconds=wait,
        key_environment=environment,
        tags=("before-rotate",),
    )
    options = rotate_keys.Options(
        new_key_file=new_key_file,
        key_file=key_file,
        snapshot=None if no_snapshot else backup,
        snapshots=directory,
        leave_unopened=leave_unopened,
        dry_run=dry_run,
        wait_seconds=wait,
    )
    with run.terminal.progress() as progress:
        result = rotate_keys.rotate(home, environment, options, progress=progress)
    is_complete = dry_run or (result.effective and not result.left)
    return Outcome(
        result,
        lambda terminal: _show(terminal, result),
        exit_code=EXIT_DONE if is_complete else EXIT_INCOMPLETE,
        warnings=(*_of_file(new_key_file), *unchanged(result.left), *result.steps),
        always=dry_run,
    )


def _recovered(report: "RecoveryReport") -> Outcome:
    """Return what `keys rotate --recover` answered before there was `recover`."""
    from sagewai_ops.fs.journal import Recovery
    from sagewai_ops.operations.rotate_keys import RotationRecovery

    recovery = report.recovered[-1] if report.recovered else Recovery()
    answer = alias_outcome(report)
    fingerprint = recovery.key_fingerprint
    result = RotationRecovery(
        home=report.home,
        recovery=answer,
        reason=recovery.reason,
        key_fingerprint=fingerprint,
        left=recovery.left,
        steps=recovery.steps,
    )
    suffix = f", all values under key {fingerprint}" if fingerprint else ""
    return Outcome(
        result,
        lambda terminal: terminal.line(f"key rotation of {report.home}: {answer}{suffix}"),
        exit_code=EXIT_DONE if report.is_complete else EXIT_INCOMPLETE,
        warnings=warnings_of(recovery),
    )


def _of_file(new_key_file: Path | None) -> tuple[str, ...]:
    mode = new_key_file.stat().st_mode & 0o777 if new_key_file else 0
    if not mode & 0o066:
        return ()
    return (f"{new_key_file}: mode {mode:04o}, other users can read or replace the new key",)


def _show(terminal: Terminal, result: "RotationResult") -> None:
    total = sum(result.resealed.values())
    if result.dry_run or result.new_key is None:
        terminal.line(f"{total} values would be re-encrypted, nothing was changed")
    else:
        old, new = result.old_key.fingerprint, result.new_key.fingerprint
        terminal.line(f"{total} values re-encrypted, from {old} to {new}", style="bold green")
    for place, count in sorted(result.resealed.items()):
        terminal.line(f"  {place}: {count}")
    if result.through_projects:
        terminal.line(f"  under unchanged data keys: {result.through_projects}")
    for path, words in (
        (result.installed, "new key"),
        (result.kept_as, "old key"),
        (result.snapshot, "snapshot, with the old key in it"),
    ):
        if path:
            terminal.line(f"  {words}: {path}")
    for note in result.notes:
        terminal.line(f"  note      {note}")
