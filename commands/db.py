"""`db`: the schema of a home's database, on SQLite and on PostgreSQL."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from sagewai_ops.cli.command import Outcome, Run, command
from sagewai_ops.cli.options import DATABASE, SNAPSHOTS, DryRunOption, YesOption, option
from sagewai_ops.cli.plan import plan_outcome
from sagewai_ops.cli.terminal import Terminal
from sagewai_ops.errors import EXIT_DONE, EXIT_FINDINGS, UsageError
from sagewai_ops.text import size

from .shared_options import (  # noqa: TID251 - a neighbour
    CopyDirOption,
    DatabaseOptions,
    KeepWorkDirOption,
    RecipientOption,
    RecipientsFileOption,
    RepositoryPassword,
    SnapshotsOption,
    SqlOption,
    UnencryptedOption,
    UrlFileOption,
    WriterWaitOption,
    keeper,
)

if TYPE_CHECKING:
    from sagewai_ops.schema.results import (
        PostgresChange,
        PostgresCheck,
        PostgresRevision,
        SqliteChange,
        SqliteCheck,
        SqliteRevision,
    )

UPGRADE = """Upgrade the schema of the database.

The database is the one that Sagewai uses: SAGEWAI_DATABASE_URL, else DATABASE_URL, else the SQLite
file of the home. On SQLite a snapshot is created first, and tables, columns and indexes are added
as Sagewai does at its start; on PostgreSQL the revisions of Sagewai are applied. Either happens in
one transaction: on any failure the database is unchanged.

Exit status:
  0   upgraded, or current already
  3   upgraded, but an index could not be added
  10  home, database or revision not found
  11  locked by another run or a writer
  13  not enough disk space
  14  permission denied
  16  damaged
  17  schema without revisions
  18  schema newer or unknown
  19  server or network failed
  20  rows would change, or the schema differs from its revision
"""
DOWNGRADE = """Revert revisions of a PostgreSQL database.

The tables and columns of these revisions are dropped with their content; the report counts the
rows. The SQLite file of a home cannot be downgraded: restore a snapshot.

Exit status:
  0   downgraded
  2   not confirmed, or a SQLite database
  10  database or revision not found
  11  locked by another run
  14  permission denied
  17  schema without revisions
  18  schema newer or unknown
  19  server or network failed
  20  the schema differs from its revision, or is needed by other objects
"""
CURRENT = """Show the revision of the database.

Exit status:
  0   shown
  10  home or database not found
  11  locked by another process
  14  permission denied
  16  damaged
  19  server or network failed
"""
HISTORY = """List the revisions, oldest first.

Exit status:
  0   listed
"""
CHECK = """Check the database: damage, schema, references, values.

Values that an export would refuse are findings, values that it converts without loss are notes;
each with table, column, count and keys. Nothing is written; works while Sagewai runs.

Exit status:
  0   no findings
  4   findings
  10  home or database not found
  11  locked by another process
  14  permission denied
  16  not readable
  19  server or network failed
"""
_MOVE = "sagewai_ops.schema.results:PostgresChange | sagewai_ops.schema.results:SqlScript"
_CHANGE = f"sagewai_ops.schema.results:SqliteChange | {_MOVE}"
_REVISION = (
    "sagewai_ops.schema.results:SqliteRevision | sagewai_ops.schema.results:PostgresRevision"
)
_CHECK = "sagewai_ops.schema.results:SqliteCheck | sagewai_ops.schema.results:PostgresCheck"
_SHOWN = 40  # findings and additions that people are shown; --json has all


@command("db upgrade", UPGRADE, result=_CHANGE, changes=True)
def upgrade(
    run: Run,
    *,
    target: Annotated[
        str | None, typer.Argument(metavar="[REVISION]", help="Target revision (default: head).")
    ] = None,
    revision: Annotated[
        str | None,
        option(
            DATABASE, "--revision", "Target revision, as an option (default: head).", "REVISION"
        ),
    ] = None,
    rehearse: Annotated[
        bool, option(DATABASE, "--rehearse", "Upgrade a copy and report the changes.")
    ] = False,
    sql: SqlOption = False,
    no_snapshot: Annotated[
        bool, option(SNAPSHOTS, "--no-snapshot", "Create no snapshot of the home.")
    ] = False,
    snapshots: SnapshotsOption = None,
    recipient: RecipientOption = None,
    recipients_file: RecipientsFileOption = None,
    unencrypted: UnencryptedOption = False,
    password: RepositoryPassword,
    database_options: DatabaseOptions,
    work_dir: CopyDirOption = None,
    keep_work_dir: KeepWorkDirOption = False,
    dry_run: DryRunOption = False,
    wait: WriterWaitOption = 30.0,
) -> Outcome:
    """Parse, take a snapshot, upgrade, render."""
    from sagewai_ops.backup.report import BackupOptions
    from sagewai_ops.cli.credentials import automatic_lock_of
    from sagewai_ops.database.url import SqliteUrl, resolve
    from sagewai_ops.operations.change_schema import (
        Options,
        change_schema,
        plan_change,
        record_server,
    )

    run = database_options.apply(run)
    home = run.home()
    password.require_repository(run.snapshots(home, snapshots))
    backup = BackupOptions(
        encryption=None
        if no_snapshot or unencrypted
        else automatic_lock_of(run, recipient or [], recipients_file),
        unencrypted=unencrypted,
        is_automatic=True,
        wait_seconds=wait,
        key_environment=run.settings.environment,
        tags=("before-upgrade",),
    )
    options = Options(
        target=_choose_target(target, revision) or "head",
        rehearse=rehearse,
        snapshot=None if no_snapshot else backup,
        snapshots=run.snapshots(home, snapshots),
        work_dir=work_dir,
        keep=keeper(run, keep_work_dir, work_dir, run.snapshots(home, snapshots)),
        wait_seconds=wait,
    )
    database = resolve(run.settings.environment, home.database)
    if (work_dir or keep_work_dir) and not (rehearse and isinstance(database, SqliteUrl)):
        raise UsageError(
            "--work-dir: only for the rehearsal of a SQLite database",
            hint="sagewai-ops db upgrade --rehearse --work-dir DIR",
        )
    if dry_run:
        return plan_outcome(plan_change(home, database, options))
    if sql:
        return _show_sql(database, options)
    with run.terminal.progress() as progress:
        report = change_schema(home, database, options, progress=progress)
    warnings = report.warnings
    if run.settings.home_option is not None and not rehearse:
        warnings += record_server(home, database, run.settings.environment)
    result = report.result
    return Outcome(
        result,
        lambda terminal: _show_change(terminal, result),
        exit_code=report.exit_code,
        warnings=warnings,
        always=rehearse,
    )


@command("db downgrade", DOWNGRADE, result=_MOVE, changes=True)
def downgrade(
    run: Run,
    *,
    target: Annotated[str, typer.Argument(metavar="REVISION", help="Target revision, or base.")],
    sql: SqlOption = False,
    url_file: UrlFileOption = None,
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    wait: WriterWaitOption = 30.0,
) -> Outcome:
    """Parse, confirm, downgrade, render."""
    from sagewai_ops.cli.database_url import with_database
    from sagewai_ops.database.url import SqliteUrl, resolve
    from sagewai_ops.operations.change_schema import (
        Options,
        change_schema,
        check_sqlite_target,
        plan_change,
    )
    from sagewai_ops.schema.revision_graph import find_revision

    run = with_database(run, url_file)
    home = run.home()
    database = resolve(run.settings.environment, home.database)
    options = Options(target=target, down=True, wait_seconds=wait)
    if isinstance(database, SqliteUrl):
        check_sqlite_target(find_revision(target), down=True)
    if dry_run:
        return plan_outcome(plan_change(home, database, options))
    if sql:
        return _show_sql(database, options)
    run.terminal.confirm(
        f"drop from {database.display} all tables and columns made after {find_revision(target)}?",
        yes=yes,
    )
    with run.terminal.progress() as progress:
        report = change_schema(home, database, options, progress=progress)
    result = report.result
    return Outcome(result, lambda terminal: _show_change(terminal, result))


@command("db current", CURRENT, result=_REVISION)
def current(run: Run, *, database_options: DatabaseOptions) -> Outcome:
    """Read the state, render."""
    from sagewai_ops.database.url import PostgresUrl, resolve
    from sagewai_ops.schema.results import (
        PostgresRevision,
        SqliteRevision,
        describe_level,
        describe_position,
    )

    run = database_options.apply(run)
    database = resolve(run.settings.environment, run.home().database)
    result: SqliteRevision | PostgresRevision
    if isinstance(database, PostgresUrl):
        from sagewai_ops.process.signals import run_interruptibly
        from sagewai_ops.schema.migrate_postgres import inspect_database

        result = describe_position(database, run_interruptibly(inspect_database, database))
    else:
        from sagewai_ops.database.sqlite.moment import open_moment
        from sagewai_ops.schema.sqlite_revision import read_level

        with open_moment(database.path) as pin:
            result = describe_level(database, read_level(pin.connection))
    return Outcome(result, lambda terminal: _show_position(terminal, result), always=True)


@command("db history", HISTORY, result="sagewai_ops.schema.results:History")
def history(_run: Run) -> Outcome:
    """List."""
    from sagewai_ops.schema.alembic_runner import read_descriptions
    from sagewai_ops.schema.results import History, Revision
    from sagewai_ops.schema.revision_graph import HEAD, parents, revisions

    texts = read_descriptions()
    result = History(
        head=HEAD,
        revisions=tuple(
            Revision(revision=name, after=parents()[name], does=texts[name]) for name in revisions()
        ),
    )

    def show(terminal: Terminal) -> None:
        rows = [[entry.revision, entry.does] for entry in result.revisions]
        terminal.table(("revision", "does"), rows)

    return Outcome(result, show, always=True)


@command("db check", CHECK, result=_CHECK, unattended=True)
def check(run: Run, *, database_options: DatabaseOptions, wait: WriterWaitOption = 30.0) -> Outcome:
    """Check, render."""
    from sagewai_ops.database.url import PostgresUrl, resolve
    from sagewai_ops.schema.results import (
        PostgresCheck,
        SqliteCheck,
        describe_check,
        describe_postgres_check,
    )

    run = database_options.apply(run)
    database = resolve(run.settings.environment, run.home().database)
    result: SqliteCheck | PostgresCheck
    if isinstance(database, PostgresUrl):
        from sagewai_ops.process.signals import run_interruptibly
        from sagewai_ops.schema.check_postgres import check_postgres

        found = run_interruptibly(check_postgres, database, wait_seconds=wait)
        result = describe_postgres_check(database, found)
    else:
        from sagewai_ops.operations.check_database import check_database

        with run.terminal.progress() as progress:
            checked = check_database(database.path, wait_seconds=wait, progress=progress)
        result = describe_check(database, checked)
    return Outcome(
        result,
        lambda terminal: _show_check(terminal, result),
        exit_code=EXIT_FINDINGS if result.findings else EXIT_DONE,
        always=True,
    )


def _choose_target(target: str | None, revision: str | None) -> str | None:
    if target and revision and target != revision:
        raise UsageError(
            f"--revision {revision}: contradicts {target}", hint="sagewai-ops db upgrade --help"
        )
    return target or revision


def _show_sql(database: Any, options: Any) -> Outcome:
    """Return the statements that a run would execute."""
    from sagewai_ops.operations.change_schema import plan_sql
    from sagewai_ops.schema.results import SqlScript

    result = SqlScript(database=database.display, sql=plan_sql(database, options))

    def show(terminal: Terminal) -> None:
        for line in result.sql.splitlines():
            terminal.line(line.expandtabs(4))  # the terminal shows control characters as escapes

    return Outcome(result, show, always=True)


def _show_change(terminal: Terminal, result: "SqliteChange | PostgresChange") -> None:
    """Show the result of an upgrade or a downgrade."""
    before = " and ".join(result.before) or "nothing"
    after = " and ".join(result.after) or "nothing"
    if result.engine == "postgresql":
        steps, what = result.ran, "revisions"
        functions, dropped, kept = result.repaired_functions, result.dropped_rows, result.kept_rows
        remaining: Any = ()
    else:
        steps, what = result.added, "additions"
        functions, dropped, kept = (), {}, {}
        remaining = result.remaining
    verb = f"rehearsed by {result.rehearsed}" if result.rehearsed else "migrated"
    terminal.line(
        f"{result.database}: {verb} from {before} to {after}, {len(steps)} {what}"
        f" in {result.seconds:.2f} s",
        style="bold green",
    )
    terminal.items("  ", steps, most=_SHOWN)
    for function in functions:
        terminal.line(f"  repaired  {function}, whose parameter had another name")
    for table, rows in dropped.items():
        terminal.line(f"  dropped   {table}, {_rows(rows)}", style="yellow")
    if dropped:
        filled = {table: rows for table, rows in kept.items() if rows}
        for table, rows in filled.items():
            terminal.line(f"  kept      {table}, {_rows(rows)}")
        empty = len(kept) - len(filled)
        terminal.line(f"  kept      {empty} {'other ' if filled else ''}tables, without rows")
    else:
        rows = sum(result.rows_after.values())
        terminal.line(f"  rows      {rows} in {len(result.rows_after)} tables, unchanged")
    if result.snapshot:
        terminal.line(f"  snapshot  {result.snapshot}")
    if remaining:
        terminal.line(f"  {len(remaining)} differences that an upgrade does not repair:")
        terminal.items("    ", [item.text for item in remaining], most=_SHOWN)


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def _show_position(terminal: Terminal, result: "SqliteRevision | PostgresRevision") -> None:
    """Show the state of the database, and the command that repairs it."""
    at = " and ".join(result.revisions) or "no revision"
    style = "bold green" if result.state == "current" else "bold yellow"
    terminal.line(f"{result.database}: {result.state}, at {at}", style=style)
    if result.engine == "sqlite":
        terminal.items("  missing  ", result.missing, most=_SHOWN)
        terminal.items("  extra    ", result.extra_columns, most=_SHOWN)
        terminal.items("  yours    ", result.unknown_tables, most=_SHOWN)
    if result.advice:
        terminal.line(f"  repair   {result.advice}")


def _show_check(terminal: Terminal, result: "SqliteCheck | PostgresCheck") -> None:
    """Write the findings and notes of a check."""
    findings = result.findings
    notes = result.notes if result.engine == "sqlite" else ()
    rows = sum(result.rows.values())
    style = "bold yellow" if findings else "bold green"
    summary = f"{len(findings)} findings" if findings else "no findings"
    terminal.line(
        f"{result.database}: {summary} in {rows} rows of {len(result.rows)} tables", style=style
    )
    width = max((11, *(len(finding.kind) for finding in findings[:_SHOWN])))
    lines = [f"{finding.kind:<{width}}  {finding.text}" for finding in findings]
    terminal.items("  ", lines, most=_SHOWN)
    terminal.items("  note         ", [f"{note.kind}: {note.text}" for note in notes], most=_SHOWN)
    for name in result.unknown_tables:
        terminal.line(f"  yours        {name}, {result.rows.get(name, 0)} rows")
    if result.engine == "postgresql":
        sessions = [session.display for session in result.sessions]
        terminal.line(f"  size         {size(result.size_bytes)}")
        terminal.items("  connected    ", sessions, most=_SHOWN)
    if result.engine == "sqlite" and result.free_pages:
        free = size(result.free_pages * result.page_size)
        terminal.line(f"  free         {free}; backup --compact leaves them out")


COMMANDS = (upgrade, downgrade, current, history, check)
