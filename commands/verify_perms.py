"""`verify-perms`: check which users can read or replace the secrets of a home; repair it."""

from collections import Counter
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from sagewai_ops.cli.command import Outcome, Run, command
from sagewai_ops.cli.options import REPORTING, RUN, DryRunOption, option
from sagewai_ops.cli.terminal import Terminal
from sagewai_ops.errors import EXIT_DONE, EXIT_FINDINGS, EXIT_INCOMPLETE, UsageError
from sagewai_ops.text import shell_word

from .shared_options import HomeWaitOption, SnapshotsOption, StrictOption  # noqa: TID251 - a neighbour

if TYPE_CHECKING:
    from sagewai_ops.permissions.results import VerificationResult

HELP = """Check which users can read or replace the secrets.

The home, the directories above it and the snapshots are compared with the rules in the manual
page. --fix repairs modes, owners (as root) and access lists, and writes a record for --undo.
Nothing above the home is changed and no link is followed.

Exit status:
  0   no findings, or all repaired
  3   --undo could not revert everything
  4   errors; with --strict warnings too
  10  home or record not found
  11  locked by another run
  14  permission denied
"""
_MOST_LINES_PER_RULE = 10  # in the table; --json has all


class Format(str, Enum):
    """Output format."""

    TABLE = "table"
    SARIF = "sarif"


@command(
    "verify-perms",
    HELP,
    result="sagewai_ops.permissions.results:VerificationResult"
    " | sagewai_ops.permissions.results:UndoResult",
    unattended=True,
    changes=True,
)
def verify_perms(
    run: Run,
    *,
    fix: Annotated[bool, option(RUN, "--fix", "Repair the findings.")] = False,
    dry_run: DryRunOption = False,
    strict: StrictOption = False,
    undo: Annotated[
        Path | None, option(RUN, "--undo", "Revert a --fix by its record.", "FILE")
    ] = None,
    output: Annotated[
        Format, option(REPORTING, "--format", "Output format.", "table|sarif")
    ] = Format.TABLE,
    snapshots: SnapshotsOption = None,
    wait: HomeWaitOption = 0.0,
) -> Outcome:
    """Verify or undo, and report."""
    from sagewai_ops import __version__
    from sagewai_ops.home.server_record import server_name
    from sagewai_ops.keys.candidates import refused_variable
    from sagewai_ops.permissions.results import VerificationResult
    from sagewai_ops.permissions.sarif import as_sarif
    from sagewai_ops.permissions.verify import verify

    home = run.home()
    if output is Format.SARIF and run.settings.json:
        raise UsageError(
            "--format sarif: not possible with --json", hint="verify-perms --format sarif"
        )
    if undo is not None:
        if fix or output is Format.SARIF:
            raise UsageError(
                "--undo: not possible with other options",
                hint="sagewai-ops verify-perms --undo FILE",
            )
        return _undo(run, undo, wait, dry_run=dry_run)
    if fix and not dry_run:
        from sagewai_ops.swap.pending import require_settled

        require_settled(home.root)
    directory = run.snapshots(home, snapshots)
    with run.terminal.progress() as progress:
        verification = verify(
            home,
            directory,
            refused_key=refused_variable(run.settings.environment),
            fix=fix and not dry_run,
            wait_seconds=wait,
            progress=progress,
        )
    server = server_name(home, run.settings.environment)
    result = VerificationResult.build(verification, dry_run=dry_run, unchecked=server)
    code = EXIT_FINDINGS if result.errors or (strict and result.warnings) else EXIT_DONE
    if output is Format.SARIF:
        run.terminal.document(as_sarif(verification.inspection, __version__))
        return Outcome(result, lambda _terminal: None, exit_code=code, on_stdout=False)
    return Outcome(
        result,
        lambda terminal: show(terminal, result),
        exit_code=code,
        always=bool(result.errors or result.warnings or verification.changes),
    )


def show(terminal: Terminal, result: "VerificationResult") -> None:
    """Print the findings, then the changes."""
    shown: Counter[str] = Counter()
    rows = []
    for finding in result.findings:
        shown[finding.rule] += 1
        if shown[finding.rule] <= _MOST_LINES_PER_RULE:
            rows.append([finding.severity.value, finding.rule, str(finding.path), finding.wrong])
    if rows:
        terminal.table(("severity", "rule", "path", "problem"), rows)
    for rule, count in shown.items():
        if count > _MOST_LINES_PER_RULE:
            terminal.line(f"{rule}: {count - _MOST_LINES_PER_RULE} more, all in --json")
    for advice in dict.fromkeys(
        f"{finding.rule}: {finding.advice}" for finding in result.findings if finding.advice
    ):
        terminal.line(f"by hand  {advice}")
    verb = "changed" if result.repaired else "would change"
    has_plan = result.repaired or result.dry_run
    for change in result.changes if has_plan else ():
        path = change.path or "."
        if change.root != "home":
            path = f"{change.root}/{path}"
        terminal.line(f"{verb}  {path}: {change.change} ({', '.join(change.rules)})")
    for left in result.left:
        terminal.line(f"unchanged  {left.path or '.'}: {left.reason}", style="yellow")
    if result.record:
        home, record = result.home, result.record
        terminal.line(
            f"undo with: sagewai-ops --home {shell_word(home)}"
            f" verify-perms --undo {shell_word(record)}"
        )
    if result.unchecked:
        terminal.line(f"not checked: roles and privileges of {result.unchecked}", style="yellow")
    if result.changes and not has_plan:
        terminal.line(f"{len(result.changes)} repairable: sagewai-ops verify-perms --fix")
    style = "red" if result.errors else "green"
    terminal.line(
        f"home {result.home}: {result.errors} errors, {result.warnings} warnings in "
        f"{result.entries} entries",
        style=style,
    )


def _undo(run: Run, record: Path, wait_seconds: float, *, dry_run: bool) -> Outcome:
    from sagewai_ops.permissions.repair import undo_repairs
    from sagewai_ops.permissions.results import UndoResult

    home = run.home()
    undone = undo_repairs(home, record.absolute(), dry_run=dry_run, wait_seconds=wait_seconds)
    result = UndoResult.build(home.root, undone)
    verb = "would revert" if dry_run else "reverted"

    def render(terminal: Terminal) -> None:
        for change in result.changes:
            terminal.line(f"{verb}  {change.path or '.'}: {change.change}")
        for left in result.left:
            terminal.line(f"unchanged  {left.path or '.'}: {left.reason}", style="yellow")

    code = EXIT_INCOMPLETE if undone.left else EXIT_DONE
    return Outcome(result, render, exit_code=code, always=dry_run or bool(undone.left))
