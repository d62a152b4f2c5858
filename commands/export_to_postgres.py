"""`export-to-postgres`: move a home's database to PostgreSQL, compared before the commit."""

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from sagewai_ops.cli.command import Outcome, Run, command
from sagewai_ops.cli.options import DATABASE, RUN, YesOption, option
from sagewai_ops.cli.terminal import Terminal
from sagewai_ops.errors import UsageError
from sagewai_ops.text import size

from .shared_options import (  # noqa: TID251 - a neighbour
    CopyDirOption,
    KeepWorkDirOption,
    ReportOption,
    UrlFileOption,
    command_words,
    keeper,
    server_argument,
)

if TYPE_CHECKING:
    from sagewai_ops.database.url import PostgresUrl
    from sagewai_ops.export.live_first import LiveFirst
    from sagewai_ops.export.results import ExportResult, FindingResult
    from sagewai_ops.home.paths import Home

HELP = """Move the database of a home to PostgreSQL.

The target must be empty, or have the current schema and no rows. The home is only read, from a
copy, and records the server afterwards; Sagewai must be stopped, with --live-first only for the
end. Rows are copied in one transaction, which is committed after every row was compared with its
source: on any failure the target is unchanged. --resumable first sends parts to a schema of
their own, and continues there. The URL may also come from SAGEWAI_DATABASE_URL, its
password from PGPASSWORD or the password file.

Exit status:
  0   moved and compared
  3   moved, but the reported rows are not in the target
  4   findings; nothing was changed
  10  home or target not found
  11  locked by another run
  14  permission denied
  15  home in use or changed, or target not empty
  16  copy, or sent rows, damaged
  17  target schema older
  18  target schema newer or unknown
  19  server or network failed
  20  target differs from the home
"""
_WAIT_SECONDS = 300.0
_SHOWN_FINDINGS = 40  # for people; --json and the report have all


class Policy(str, Enum):
    """What happens to values that PostgreSQL refuses."""

    FAIL = "fail"
    REPAIR = "repair"
    QUARANTINE = "quarantine"
    REPAIR_QUARANTINE = "repair,quarantine"


class Compared(str, Enum):
    """What `--live-first` compares again at the end, apart from the rows that changed."""

    SAMPLE = "sample"
    FULL = "full"


class Learnings(str, Enum):
    """What becomes of the learnings."""

    KEEP = "keep"
    FACTS = "facts"
    PGVECTOR = "pgvector"


@command("export-to-postgres", HELP, result="sagewai_ops.export.results:ExportResult", changes=True)
def export_to_postgres(
    run: Run,
    *,
    url: Annotated[str | None, server_argument("Target")] = None,
    plan: Annotated[
        bool,
        option(RUN, "--plan --dry-run", "Check every value, print the findings, change nothing."),
    ] = False,
    on_invalid: Annotated[
        Policy,
        option(
            DATABASE,
            "--on-invalid",
            "Action for values that PostgreSQL refuses.",
            "fail|repair|quarantine",
        ),
    ] = Policy.FAIL,
    learnings: Annotated[
        Learnings,
        option(
            DATABASE,
            "--learnings",
            "Keep learnings in the home only, or also fill a table.",
            "keep|facts|pgvector",
        ),
    ] = Learnings.KEEP,
    verify_only: Annotated[
        bool, option(RUN, "--verify-only", "Compare an exported database again.")
    ] = False,
    allow_live: Annotated[
        bool, option(RUN, "--allow-live", "Export while Sagewai runs, as a rehearsal.")
    ] = False,
    resumable: Annotated[
        bool, option(RUN, "--resumable", "Send rows in parts, or continue after a failure.")
    ] = False,
    abandon: Annotated[
        bool, option(RUN, "--abandon", "Remove what an unfinished --resumable left.")
    ] = False,
    yes: YesOption = False,
    live_first: Annotated[
        bool, option(RUN, "--live-first", "Stop Sagewai only for what changed during the copy.")
    ] = False,
    stop_command: Annotated[
        str | None,
        option(
            *(RUN, "--stop-command", "Command that stops it, without a shell.", "CMD"),
            parser=command_words,
        ),
    ] = None,
    wait: Annotated[
        float | None,
        option(
            *(RUN, "--wait", "Wait until it has stopped (default: 300).", "SECONDS"),
            min=0,
            hidden=True,
        ),
    ] = None,
    compare: Annotated[
        Compared | None,
        option(
            *(RUN, "--compare", "Rows that --live-first compares again.", "sample|full"),
            hidden=True,
        ),
    ] = None,
    url_file: UrlFileOption = None,
    report: ReportOption = None,
    work_dir: CopyDirOption = None,
    keep_work_dir: KeepWorkDirOption = False,
) -> Outcome:
    """Parse, move, render."""
    from sagewai_ops.cli.database_url import given_server
    from sagewai_ops.export.export import Options, export
    from sagewai_ops.export.results import describe_report
    from sagewai_ops.export.resumable import export_resumably
    from sagewai_ops.export.target_session import MOVE, PLAN, VERIFY
    from sagewai_ops.swap.pending import EXPORT, require_settled

    if plan and verify_only:
        raise UsageError("--plan and --verify-only: one of the two")
    phase = _second_phase(run, live_first, stop_command, wait, compare)
    if phase and (verify_only or allow_live):
        other = "--verify-only" if verify_only else "--allow-live"
        raise UsageError(f"--live-first and {other}: one of the two")
    _check_parts(
        resumable=resumable,
        abandon=abandon,
        others={
            "--verify-only": verify_only,
            "--allow-live": allow_live,
            "--keep-work-dir": keep_work_dir,
            "--plan": plan and resumable,
            "--live-first": live_first,
        },
    )
    home = run.home()
    require_settled(home.root, but=EXPORT)  # its URL settles that; the others only read
    if abandon:
        target = given_server(run, url, url_file, "export-to-postgres")
        return _abandon(run, home, target, work_dir, plan=plan, yes=yes)
    options = Options(
        purpose=PLAN if plan else VERIFY if verify_only else MOVE,
        policy=on_invalid.value,
        learnings=learnings.value,
        allow_live=allow_live,
        report=report,
        work_dir=work_dir,
        keep=keeper(run, keep_work_dir, work_dir, run.snapshots(home)),
        live_first=phase,
    )
    target = given_server(run, url, url_file, "export-to-postgres")
    with run.terminal.progress() as progress:
        if resumable:
            done = export_resumably(home, target, options, progress=progress)
        else:
            done = export(home, target, options, progress=progress)
    result = describe_report(done)
    return Outcome(
        result,
        lambda terminal: show(terminal, result),
        exit_code=done.exit_code,
        warnings=(*done.warnings, *_left_out(result)),
        always=True,  # a script needs the report's path and the next steps
    )


def _check_parts(*, resumable: bool, abandon: bool, others: dict[str, bool]) -> None:
    """Check that nothing contradicts --resumable and --abandon.

    Raises:
        UsageError: With the first option that contradicts one of them.
    """
    name = "--resumable" if resumable else "--abandon"
    others = {"--abandon": abandon and resumable, **others}
    other = next((flag for flag, is_given in others.items() if is_given), "")
    if (resumable or abandon) and other:
        raise UsageError(f"{name} and {other}: one of the two")


def _abandon(
    run: Run, home: "Home", target: "PostgresUrl", work_dir: Path | None, *, plan: bool, yes: bool
) -> Outcome:
    """Show what an unfinished export left; confirm, remove, render."""
    from sagewai_ops.export.abandon import abandon
    from sagewai_ops.export.results import describe_report

    done = abandon(home, target, work_dir, dry_run=True)
    if not plan:
        if done.resumable:
            run.terminal.confirm(
                f"Remove the {done.resumable.rows_before} rows that were sent to {target.display},"
                " and their copy?",
                yes=yes,
            )
        done = abandon(home, target, work_dir)  # also what an earlier removal left
    result = describe_report(done)
    return Outcome(
        result, lambda terminal: _show_abandoned(terminal, result, plan=plan), always=True
    )


def _show_abandoned(terminal: Terminal, result: "ExportResult", *, plan: bool) -> None:
    if result.resumable is None:
        terminal.line("no unfinished export")
        return
    is_removed = "to remove" if plan else "removed"
    terminal.line(f"{is_removed}: {result.resumable.rows_before} rows in {result.target}")
    if "copy" in result.files:
        terminal.line(f"{is_removed}: {result.files['copy']}")


def _second_phase(
    run: Run, is_wanted: bool, command: str | None, wait: float | None, compare: Compared | None
) -> "LiveFirst | None":
    """Return the second phase of `--live-first`; None without it."""
    if not is_wanted:
        given = {"--stop-command": command, "--wait": wait, "--compare": compare}
        for name, value in given.items():
            if value is not None:
                raise UsageError(f"{name}: needs --live-first")
        return None
    from sagewai_ops.export.live_first import STOP, STOPPED, LiveFirst, StopOptions
    from sagewai_ops.process.command_output import split_command

    stop = StopOptions(
        command=tuple(split_command(command)) if command else (),
        wait_seconds=_WAIT_SECONDS if wait is None else wait,
    )

    def show_event(event: str) -> None:
        if event == STOP:
            run.terminal.print_line(
                "stop Sagewai now: server, workers, harness; the export goes on when they have"
                f" stopped, and waits {stop.wait_seconds:g} s"
            )
        elif event == STOPPED:
            run.terminal.note("Sagewai has stopped")
        else:
            run.terminal.warning("nothing was changed: Sagewai can be started again")

    return LiveFirst(show_event, stop, every_row=compare is Compared.FULL)


def _left_out(result: "ExportResult") -> list[str]:
    """Return warnings that list what a committed target lacks."""
    if not result.committed:
        return []
    lacking = [each for each in result.findings if each.kind.startswith("unknown-")]
    lacking += result.learnings.findings
    warnings = [f"{each.table}: {each.detail}; not in the target" for each in lacking]
    if result.refused:
        count, place = result.refused, result.files["refused"]
        warnings.append(f"{count} rows or values are not in the target, they are in {place}")
    return warnings


def show(terminal: Terminal, result: "ExportResult") -> None:
    """Write what was found and done for people."""
    terminal.line(f"{result.source} to {result.target}, PostgreSQL {result.server}")
    _show_findings(terminal, result)
    if result.open_findings and result.purpose == "move":
        _show_refusal(terminal, result)
    elif result.purpose == "plan":
        seconds = result.estimate_seconds
        terminal.line(f"{result.rows} rows to copy, in about {seconds:.0f} s; nothing changed")
    elif result.purpose == "verify":
        terminal.line(f"{result.rows} rows compared, no difference", style="green")
    else:
        _show_move(terminal, result)
    for name, path in result.files.items():
        terminal.line(f"{name}: {path}")


def _show_findings(terminal: Terminal, result: "ExportResult") -> None:
    findings = [*result.findings]
    findings += [found for found in result.learnings.findings if found not in findings]
    if findings:
        rows = [
            (
                _place(found),
                found.kind,
                str(found.count),
                ", ".join(found.keys[:3]),
                found.detail,
                found.repair,
            )
            for found in findings[:_SHOWN_FINDINGS]
        ]
        terminal.table(("where", "kind", "rows", "keys", "what", "repair"), rows)
    if len(findings) > _SHOWN_FINDINGS:
        terminal.line(f"and {len(findings) - _SHOWN_FINDINGS} more, in the report")
    for note in result.notes:
        terminal.line(f"note: {note}")


def _place(found: "FindingResult") -> str:
    return ".".join(filter(None, (found.table, found.column)))


def _show_refusal(terminal: Terminal, result: "ExportResult") -> None:
    """Write why nothing was sent; with `repair`, the findings without one."""
    terminal.line("nothing was sent, the target is unchanged", style="red")
    if result.policy != "repair":
        terminal.line("  --on-invalid repair,quarantine resolves most of these")
        return
    remaining = [
        found
        for found in result.findings
        if found.kind != "audit-hash" and (found.repairable or 0) < max(found.count, 1)
    ]
    for found in remaining[:_SHOWN_FINDINGS]:
        count = max(found.count, 1) - (found.repairable or 0)
        terminal.line(f"  no repair: {_place(found)}, {found.kind}, {count} rows")
    terminal.line("  --on-invalid repair,quarantine leaves these rows out of the target")


def _show_move(terminal: Terminal, result: "ExportResult") -> None:
    seconds = sum(result.stages.values())
    sent = sum(table.bytes for table in result.tables)
    terminal.line(
        f"{result.rows} rows, {size(sent)}, in {seconds:.1f} s, every one compared: committed",
        style="green",
    )
    largest = sorted(result.tables, key=lambda table: -table.bytes)[:5]
    for table in largest:
        rate = table.rows / table.seconds if table.seconds else 0
        terminal.line(f"  {table.name}: {table.rows} rows, {rate:.0f} rows/s")
    if result.resumable and result.resumable.resumed:
        parts = result.resumable
        terminal.line(
            f"continued the export of {parts.begun_at}: {parts.rows_before} rows in"
            f" {parts.ranges_before} ranges were there, {parts.ranges} ranges were sent"
        )
    if caught_up := result.caught_up:
        terminal.line(
            f"Sagewai stopped for {caught_up.stopped_seconds:.1f} s: {caught_up.changed_pages} of"
            f" {caught_up.pages} pages changed, {caught_up.deleted} rows deleted,"
            f" {caught_up.sent} sent"
        )
        if caught_up.scanned:
            terminal.line(f"  too many to name, all rows read: {', '.join(caught_up.scanned)}")
    if result.mended:
        terminal.line(f"{result.mended} values were repaired")
    for copy in result.learnings.tables:
        place = f"also in {copy.to}" if copy.to else "read by Sagewai from there"
        terminal.line(f"{copy.rows} learnings stay in the home, {place}")
    terminal.line("next:")
    for line in result.cut_over:
        terminal.line(f"  {line}")
