"""`preflight`: everything to know before touching a home, as one table with one exit code."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sagewai_ops.cli.command import Outcome, Run, add_command
from sagewai_ops.cli.terminal import Terminal

from .shared_options import (  # noqa: TID251 - a neighbour
    RecipientOption,
    RecipientsFileOption,
    SealingPassphraseOption,
    SnapshotsOption,
    WriterWaitOption,
)

HELP = """Check all of a home before an upgrade.

Who uses it, its layout, permissions, keys, database and space are looked at; a snapshot is taken
and drilled, and the upgrade is rehearsed on a copy. One line for each, with the command that mends
what failed. Nothing is changed but the snapshot that it takes (--no-snapshot takes none).

\b
Examples:
  sagewai-ops preflight
  sagewai-ops preflight --no-snapshot --json
  sagewai-ops preflight --recipient age1... --key sealed --identity ~/backup.key

\b
Exit codes: 0 ready, 3 something could not be proved here, 4 findings (with --strict warnings too),
10 no home or database, 11 another run, 12 no key opens it, 13 no space, 14 no rights, 15 in use,
16 damaged, 17 no revisions, 18 newer or unknown schema, 19 server or network, 20 rows would change.
Of several the first of 1 16 12 18 20 13 14 11 15 19 17 10 2 4 3.
"""
_SHOWN = 10  # details of a check that people are shown; --json has all
_STYLES = {"ok": "green", "skipped": "", "warning": "yellow"}


def register(app: typer.Typer) -> None:
    """Add the command."""
    add_command(app, "preflight", preflight, HELP, unattended=True, changes=True)


def preflight(
    run: Run,
    *,
    no_snapshot: Annotated[
        bool, typer.Option("--no-snapshot", help="Take none, and so drill none.")
    ] = False,
    snapshots: SnapshotsOption = None,
    recipient: RecipientOption = None,
    recipients_file: RecipientsFileOption = None,
    passphrase_file: SealingPassphraseOption = None,
    key: Annotated[
        str,
        typer.Option("--key", metavar="exclude|sealed", help="What becomes of the master key."),
    ] = "exclude",
    identity: Annotated[
        list[Path] | None,
        typer.Option(
            "--identity", metavar="F", help="Open what --recipient encrypts, to drill it."
        ),
    ] = None,
    key_file: Annotated[
        Path | None, typer.Option("--extra-key", metavar="F", help="One more master key to try.")
    ] = None,
    scratch: Annotated[
        Path | None,
        typer.Option(
            "--work-dir", metavar="DIR", help="Try things on this directory's file system."
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 4 on warnings too.")] = False,
    wait: WriterWaitOption = 30.0,
) -> Outcome:
    """Parse, check, render."""
    from sagewai_ops.archive.age import Decryption
    from sagewai_ops.backup.report import BackupOptions
    from sagewai_ops.cli.credentials import lock_of, unlock_of
    from sagewai_ops.operations.preflight import PreflightOptions, run_preflight

    home = run.home()
    encryption = lock_of(run.terminal, recipient or [], recipients_file, passphrase_file)
    decryption = unlock_of(run.terminal, identity or [], None)
    if encryption and encryption.passphrase:
        decryption = Decryption(passphrase=encryption.passphrase)
    backup = BackupOptions(
        encryption=encryption,
        custody=key,
        wait_seconds=wait,
        key_environment=run.settings.environment,
        tags=("preflight",),
    )
    options = PreflightOptions(
        environment=run.settings.environment,
        snapshots=run.snapshots(home, snapshots),
        backup=None if no_snapshot else backup,
        decryption=decryption,
        key_file=key_file,
        scratch=scratch,
        is_strict=strict,
        wait_seconds=wait,
    )
    with run.terminal.progress() as progress:
        done = run_preflight(home, options, progress=progress)
    result = as_result(done)
    return Outcome(
        result,
        lambda terminal: show(terminal, result),
        exit_code=done.exit_code,
        always=True,
        error=done.error,
    )


def as_result(done: Any) -> dict[str, Any]:
    """Give the JSON of a preflight; docs/json/preflight.json."""
    snapshot = done.snapshot
    return {
        "home": str(done.home),
        "ready": done.is_ready,
        "strict": done.is_strict,
        "checks": [
            {
                "check": one.name,
                "verdict": one.verdict.value,
                "summary": one.summary,
                "details": list(one.details),
                "mend": list(one.mend),
                "exit_code": one.exit_code,
                "seconds": round(one.seconds, 3),
            }
            for one in done.checks
        ],
        "snapshot": snapshot.id if snapshot else None,
        "archive": str(snapshot.path) if snapshot else None,
        "proved_restorable_at": (
            f"{done.drill.at:%Y-%m-%dT%H:%M:%SZ}"
            if done.drill and done.drill.outcome == "proved"
            else None
        ),
    }


def show(terminal: Terminal, result: dict[str, Any]) -> None:
    """Render for people: the table, what is behind each line that is not in order, the verdict."""
    terminal.table(
        ("check", "verdict", ""),
        [(one["check"], one["verdict"], one["summary"]) for one in result["checks"]],
    )
    for one in result["checks"]:
        if one["verdict"] in ("ok", "skipped"):
            continue
        terminal.line(f"{one['check']}: {one['summary']}", style=_STYLES.get(one["verdict"], "red"))
        for detail in one["details"][:_SHOWN]:
            terminal.line(f"  {detail}")
        if len(one["details"]) > _SHOWN:
            terminal.line(f"  and {len(one['details']) - _SHOWN} more: --json lists them")
        for mend in one["mend"][:_SHOWN]:
            terminal.line(f"  mend it  {mend}")
    failed = sum(bool(one["exit_code"]) for one in result["checks"])
    if result["ready"]:
        terminal.line(f"home {result['home']}: ready", style="bold green")
    else:
        what = f"{failed} check{'s' * (failed > 1)} failed" if failed else "there are warnings"
        terminal.line(f"home {result['home']}: not ready, {what}", style="bold red")
