"""`keys`: identify, check, escrow and rotate the master key."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sagewai_ops.cli.command import Outcome, Run, command
from sagewai_ops.cli.options import ENCRYPTION, TARGET, DryRunOption, option
from sagewai_ops.cli.terminal import Terminal
from sagewai_ops.records import dataclass

from .keys_rotate import rotate  # noqa: TID251 - a neighbour
from .shared_options import (  # noqa: TID251 - a neighbour
    DatabaseOptions,
    ExtraKeyOption,
    RecipientOption,
    RecipientsFileOption,
)

if TYPE_CHECKING:
    from sagewai_ops.keys.candidates import KeyState
    from sagewai_ops.operations.check_keys import KeyCheckResult


@dataclass(frozen=True, slots=True)
class EscrowResult:
    """The encrypted key and its files."""

    home: Path
    key_source: str
    key_fingerprint: str
    recipients: tuple[str, ...]
    to: Path | None
    sheet: Path | None
    dry_run: bool


@command("keys fingerprint", result="sagewai_ops.keys.candidates:HomeKeys")
def show_fingerprint(
    run: Run,
    *,
    every: Annotated[
        bool, typer.Option("--all", help="Every available key, with its state.")
    ] = False,
) -> Outcome:
    """Print the fingerprint of the master key.

    The key is the one that Sagewai uses; a key that Sagewai would refuse and replace is shown by
    --all. The fingerprint, 16 hexadecimal digits, identifies a key without revealing it, and is
    recorded in snapshots.

    Exit status:
      0   printed
      10  home not found
      12  no key that Sagewai would use
    """
    from sagewai_ops.errors import KeyMissingError
    from sagewai_ops.home.paths import require
    from sagewai_ops.keys.candidates import active_key, all_candidates, describe_keys

    home = run.home()
    require(home)
    candidates = all_candidates(home, run.settings.environment)
    key = active_key(candidates)
    result = describe_keys(candidates)
    if key is None and not (every and candidates):
        problems = [f"{other.source}: {other.problem}" for other in candidates if other.problem]
        raise KeyMissingError(
            "; ".join((f"home {home.root}: no key that Sagewai would use", *problems)),
            hint="sagewai-ops keys fingerprint --all" if candidates else "",
        )

    def render(terminal: Terminal) -> None:
        if every:
            _show_keys(terminal, result.keys, result.key_source)
        elif key:
            terminal.line(key.fingerprint)

    return Outcome(result, render, warnings=_refusals(candidates, key), always=True)


@command("keys check", result="sagewai_ops.operations.check_keys:KeyCheckResult", unattended=True)
def check(
    run: Run, *, key_file: ExtraKeyOption = None, database_options: DatabaseOptions
) -> Outcome:
    """Check that every secret is encrypted and can be decrypted.

    Every encrypted value is decrypted with every available key, and secrets in plaintext are
    reported. Nothing is written, and no value or key is shown; works while Sagewai runs.

    Exit status:
      0   all values open with the key that Sagewai uses
      2   the database is on a server, and no URL is given
      4   findings
      10  home or key file not found
      11  database locked, or an interrupted rotation is pending
      12  no key decrypts any value
      14  permission denied
      16  database damaged
    """
    from sagewai_ops.errors import EXIT_DONE, EXIT_FINDINGS, KeyMissingError
    from sagewai_ops.operations.check_keys import check_keys, describe_check

    run = database_options.apply(run)
    home = run.home()
    with run.terminal.progress() as progress:
        found = check_keys(home, run.settings.environment, key_file=key_file, progress=progress)
    refusals = _refusals(found.candidates, found.key)
    total = found.report.total
    if total and not found.opened:
        tried = sum(bool(key.value) for key in found.candidates)
        raise KeyMissingError(
            f"home {home.root}: none of {total} sealed values opens, keys tried: {tried}",
            hint="\n".join(
                (*refusals, "sagewai-ops keys check --extra-key FILE  # with the right key")
            ),
        )
    result = describe_check(home, found)
    return Outcome(
        result,
        lambda terminal: _show_check(terminal, result),
        exit_code=EXIT_FINDINGS if found.has_findings else EXIT_DONE,
        warnings=(*refusals, *(f"{path}: {why}" for path, why in found.unread.items())),
        always=True,
    )


@command("keys escrow", result="sagewai_ops.commands.keys:EscrowResult", changes=True)
def escrow(
    run: Run,
    *,
    recipient: RecipientOption = None,
    recipients_file: RecipientsFileOption = None,
    to: Annotated[
        Path | None, option(TARGET, "--to", "File for the encrypted key.", "FILE")
    ] = None,
    sheet: Annotated[
        Path | None, option(TARGET, "--sheet", "File for the recovery sheet.", "FILE")
    ] = None,
    key_file: Annotated[
        Path | None,
        option(
            ENCRYPTION, "--key-file", "Key to encrypt (default: the one that Sagewai uses).", "FILE"
        ),
    ] = None,
    force: Annotated[bool, option(TARGET, "--force", "Replace existing files.")] = False,
    dry_run: DryRunOption = False,
) -> Outcome:
    """Encrypt the master key to recipients, as file and sheet.

    The key is never written in plaintext. Each file is private and gets its final name after it was
    read back and decrypted. The sheet is text to print: with the identity of a recipient it is
    enough to recover the key.

    Exit status:
      0   written and verified
      2   no recipient, no file to write, or a path in the home
      10  home or file not found
      11  an interrupted operation is pending
      12  no key
      13  not enough disk space
      14  permission denied
      15  file exists
      16  verification failed
    """
    from sagewai_ops.archive.age import check_recipients
    from sagewai_ops.cli.credentials import lock_of
    from sagewai_ops.errors import KeyMissingError, UsageError
    from sagewai_ops.home.paths import require
    from sagewai_ops.keys.candidates import active_key, all_candidates, configured_key, shown_source
    from sagewai_ops.keys.escrow import check_place, seal_key, write_key, write_sheet
    from sagewai_ops.swap.pending import require_settled

    if to is None and sheet is None:
        raise UsageError(
            "keys escrow: nothing to write",
            hint="sagewai-ops keys escrow --to FILE ...  # or --sheet FILE",
        )
    if to and sheet and to.absolute() == sheet.absolute():
        raise UsageError(f"keys escrow: --to and --sheet name the same file, {to}")
    encryption = lock_of(run.terminal, recipient or [], recipients_file, None)
    if encryption is None:
        raise UsageError(
            "keys escrow: no recipient", hint="sagewai-ops keys escrow --recipient age1... ..."
        )
    check_recipients(encryption.recipients)
    home = run.home()
    require(home)
    require_settled(home.root)
    candidates = all_candidates(home, run.settings.environment, key_file=key_file)
    key = candidates[0] if key_file else configured_key(candidates)
    if key is None:
        raise KeyMissingError(
            f"home {home.root}: no master key", hint="sagewai-ops keys escrow --key-file FILE ..."
        )
    for path in filter(None, (to, sheet)):
        check_place(path, home, candidates, force=force)
    result = EscrowResult(
        home=home.root,
        key_source=key.source,
        key_fingerprint=key.fingerprint,
        recipients=tuple(encryption.recipients),
        to=to,
        sheet=sheet,
        dry_run=dry_run,
    )
    if not dry_run:
        sealed = seal_key(key, encryption.recipients)
        if to:
            write_key(to, sealed)
        if sheet:
            write_sheet(sheet, sealed, home, run.started_at)
    words = "would be written" if dry_run else "written and verified"

    def render(terminal: Terminal) -> None:
        for path in filter(None, (to, sheet)):
            terminal.line(f"key {key.fingerprint} from {shown_source(key.source)}: {path} {words}")

    warnings = _refusals(candidates, active_key(candidates))
    return Outcome(result, render, warnings=warnings, always=dry_run)


def _refusals(candidates: Any, key: Any) -> tuple[str, ...]:
    """Return a warning for each key that Sagewai would refuse."""
    would = "Sagewai would refuse it" if key else "Sagewai would refuse it and write a new key"
    return tuple(
        f"{other.path or other.source}: {other.problem}; {would}"
        for other in candidates
        if other.problem
    )


def _show_keys(terminal: Terminal, keys: "Sequence[KeyState]", used: str) -> None:
    from sagewai_ops.keys.candidates import shown_source

    terminal.table(
        ("key", "fingerprint", ""),
        [
            (
                shown_source(key.source),
                key.fingerprint or "-",
                key.problem or ("in use" if key.source == used else ""),
            )
            for key in keys
        ],
    )


def _show_check(terminal: Terminal, result: "KeyCheckResult") -> None:
    from sagewai_ops.keys.candidates import shown_source

    sealed = result.sealed
    if result.keys:
        _show_keys(terminal, result.keys, result.key_source)
    terminal.line(f"sealed values: {sealed.total}, of which {sealed.opened} open")
    counts = Counter((value.place, value.source, value.fingerprint) for value in result.values)
    for (place, source, fingerprint), count in sorted(counts.items()):
        own = fingerprint == result.key_fingerprint
        other = "" if own else ", not the key that Sagewai uses"
        style = "yellow" if other else ""
        terminal.line(
            f"  {place}: {count} under {fingerprint} ({shown_source(source)}){other}", style=style
        )
    closed = [f"{value.place} {value.where}: {value.reason}" for value in sealed.unopened]
    terminal.items("  closed   ", closed, style="red")
    for is_finding, word, style in ((True, "plaintext ", "red"), (False, "note     ", "")):
        lines = [
            f"{secret.place} {secret.where}: {secret.habit.value}"
            for secret in result.plaintext
            if secret.finding is is_finding
        ]
        terminal.items(f"  {word}", lines, style=style)


COMMANDS = (show_fingerprint, check, escrow, rotate)
