"""`import-from-postgres`: move the tables of a server back to the SQLite file of a home."""

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from sagewai_ops.cli.command import Outcome, Run, command
from sagewai_ops.cli.options import DATABASE, RUN, TARGET, option
from sagewai_ops.cli.terminal import Terminal

from .shared_options import (  # noqa: TID251 - a neighbour
    HomeWaitOption,
    ReportOption,
    UrlFileOption,
    server_argument,
)

if TYPE_CHECKING:
    from sagewai_ops.operations.import_results import ImportResult

HELP = """Move the database of a home from PostgreSQL back to SQLite.

The home must be new, or its database without rows; learnings stay. One snapshot of the server is
written to a database next to the target, compared row by row, checked, and renamed into place: on
any failure the target is unchanged. The server is only read. The URL may also come from
SAGEWAI_DATABASE_URL, its password from PGPASSWORD or the password file.

Exit status:
  0   moved and compared
  3   moved, but the reported rows, or later ones, are not in the home
  4   findings; nothing was changed
  10  database not found, or without tables of Sagewai
  11  locked by another run
  13  not enough disk space
  14  permission denied
  15  server or home in use or changed, or the home has rows
  16  SQLite finds damage
  18  server schema newer or unknown
  19  server or network failed
  20  the home differs from the server
"""
_SHOWN_FINDINGS = 40  # for people; --json and the report have all


class Policy(str, Enum):
    """What happens to rows that SQLite cannot have."""

    FAIL = "fail"
    QUARANTINE = "quarantine"


@command(
    "import-from-postgres",
    HELP,
    result="sagewai_ops.operations.import_results:ImportResult",
    changes=True,
)
def import_from_postgres(
    run: Run,
    *,
    url: Annotated[str | None, server_argument("Source")] = None,
    to: Annotated[
        Path | None, option(TARGET, "--to", "Home to write (default: the home).", "HOME")
    ] = None,
    plan: Annotated[
        bool,
        option(RUN, "--plan --dry-run", "Convert every row, print the findings, change nothing."),
    ] = False,
    on_invalid: Annotated[
        Policy,
        option(
            DATABASE, "--on-invalid", "Action for rows that SQLite cannot have.", "fail|quarantine"
        ),
    ] = Policy.FAIL,
    allow_live: Annotated[
        bool, option(RUN, "--allow-live", "Import while the server is used, as a rehearsal.")
    ] = False,
    url_file: UrlFileOption = None,
    report: ReportOption = None,
    wait: HomeWaitOption = 0.0,
) -> Outcome:
    """Parse, move, render."""
    from sagewai_ops.cli.database_url import given_server
    from sagewai_ops.home.paths import locate
    from sagewai_ops.operations import import_from_postgres as importing

    environment = run.settings.environment
    source = given_server(run, url, url_file, "import-from-postgres")
    options = importing.ImportOptions(
        purpose=importing.PLAN if plan else importing.MOVE,
        policy=on_invalid.value,
        allow_live=allow_live,
        report=report,
        wait_seconds=wait,
        environment=environment,
    )
    home = locate(to, environment) if to else run.home()
    with run.terminal.progress() as progress:
        result = importing.import_from_postgres(source, home, options, progress=progress)
    return Outcome(
        result,
        lambda terminal: show(terminal, result),
        exit_code=importing.exit_code(result),
        warnings=(*result.notes, *_left_out(result)),
        always=True,  # a script needs the report's path and the next steps
    )


def _left_out(result: "ImportResult") -> list[str]:
    """Return warnings that list what an imported home lacks."""
    if not result.imported:
        return []
    warnings = [f"{found.place}: {found.detail}; not in the home" for found in result.findings]
    if result.refused:
        place = result.files["refused"]
        warnings.append(f"{result.refused} rows or values are not in the home, they are in {place}")
    return warnings


def show(terminal: Terminal, result: "ImportResult") -> None:
    """Write what was found and done for people."""
    terminal.line(f"{result.source}, PostgreSQL {result.server}, to {result.target}")
    if result.findings:
        rows = [
            (found.place, found.kind, str(found.count), ", ".join(found.keys[:3]), found.detail)
            for found in result.findings[:_SHOWN_FINDINGS]
        ]
        terminal.table(("where", "kind", "rows", "keys", "what"), rows)
    if len(result.findings) > _SHOWN_FINDINGS:
        terminal.line(f"and {len(result.findings) - _SHOWN_FINDINGS} more, in the report")
    for found in result.kept_ids:
        terminal.line(f"{found.place}: {found.count} ids stay UUIDs: {', '.join(found.keys[:3])}")
    if result.purpose == "plan":
        seconds = result.estimate_seconds
        terminal.line(f"{result.rows} rows to import, in about {seconds:.0f} s; nothing changed")
    elif not result.imported:
        terminal.line("nothing was imported, the home is unchanged", style="red")
        terminal.line("  --on-invalid quarantine imports the other rows")
    else:
        _show_import(terminal, result)
    for name, path in result.files.items():
        terminal.line(f"{name}: {path}")


def _show_import(terminal: Terminal, result: "ImportResult") -> None:
    seconds = sum(result.stages.values())
    terminal.line(
        f"{result.rows} rows in {seconds:.1f} s, every one compared: imported", style="green"
    )
    if result.learnings:
        terminal.line(f"{result.learnings} learnings stay in the home")
    if result.previous:
        terminal.line(f"previous: {result.previous}")
    terminal.line("next:")
    for line in result.cut_over:
        terminal.line(f"  {line}")
