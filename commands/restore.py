"""`restore`: bring a home back from a snapshot, or take that back."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sagewai_ops.cli.command import Outcome, Run, command
from sagewai_ops.cli.options import DATABASE, ENCRYPTION, TARGET, DryRunOption, option
from sagewai_ops.cli.terminal import Terminal
from sagewai_ops.errors import EXIT_DONE, EXIT_INCOMPLETE, UsageError
from sagewai_ops.home.paths import Home
from sagewai_ops.text import printable, shell_word, size

from .litestream_options import LitestreamConfigOption, replica_of  # noqa: TID251 - a neighbour
from .recover import alias_outcome, outcome_of  # noqa: TID251 - a neighbour
from .shared_options import (  # noqa: TID251 - a neighbour
    AllowRollbackOption,
    HiddenLimitDownloadOption,
    HiddenSqliteOption,
    HiddenUrlFileOption,
    HomeWaitOption,
    OpeningOptions,
    RequireAuthenticOption,
    SnapshotsOption,
    with_limits,
)
from .snapshot_argument import find_named, is_piped  # noqa: TID251 - a neighbour

if TYPE_CHECKING:
    from sagewai_ops.restore.results import NotConverted, PlanResult, RestoreResult

_SHOWN_KEYS = 3  # of rows that could not be converted; JSON has more
_RESULTS = ("PlanResult", "RestoreResult", "PresentResult", "UndoResult", "RecoveryResult")
_RESULT = " | ".join(
    (
        *(f"sagewai_ops.restore.results:{kind}" for kind in _RESULTS),
        "sagewai_ops.operations.recover:RecoveryReport",
    )
)

HELP = """Restore a home from a snapshot.

SNAPSHOT is `latest`, an id or its beginning, a path, or - for stdin. It is verified first; the
previous home is kept for --undo. A PostgreSQL database is restored too: it must be empty, or
--replace keeps its tables.

Exit status:
  0   restored
  3   restored, but rows could not be converted to SQLite
  10  snapshot not found
  11  locked by another run, or an interrupted one is pending
  12  no key decrypts the secrets or the archive
  13  not enough disk space
  14  permission denied
  15  target in use or not empty
  16  archive damaged or forged
  18  format or schema newer than this program
  19  server or network failed
  20  rows of the server, or the database of the replica, differ
"""


@command("restore", HELP, result=_RESULT, changes=True)
def restore(
    run: Run,
    *,
    snapshot: Annotated[
        str | None, typer.Argument(metavar="[SNAPSHOT|latest|-]", show_default=False)
    ] = None,
    to: Annotated[
        Path | None, option(TARGET, "--to", "Target directory (default: the home).", "DIR")
    ] = None,
    replace: Annotated[
        bool, option(TARGET, "--replace", "Replace an existing home; the previous one is kept.")
    ] = False,
    if_empty: Annotated[
        bool, option(TARGET, "--if-empty", "Restore to an empty target only; a home is exit 0.")
    ] = False,
    only: Annotated[
        list[str] | None,
        option(TARGET, "--only", "Restore only these parts or paths; repeatable.", "PART,..."),
    ] = None,
    opening: OpeningOptions,
    key_file: Annotated[
        Path | None, option(ENCRYPTION, "--install-key", "Install this master key.", "FILE")
    ] = None,
    without_key: Annotated[
        bool, option(ENCRYPTION, "--without-key", "Restore even if no key decrypts the secrets.")
    ] = False,
    require_authentic: RequireAuthenticOption = False,
    allow_rollback: AllowRollbackOption = False,
    revoke_sessions: Annotated[
        bool,
        option(
            TARGET, "--revoke-sessions", "Revoke all sessions and API tokens in the restored home."
        ),
    ] = False,
    rebind_fleet: Annotated[
        bool,
        option(TARGET, "--rebind-fleet", "Bind the rows of the fleet to the path of the target."),
    ] = False,
    owner: Annotated[  # noqa: ARG001 - read by `acting`
        str | None,
        typer.Option(
            "--owner",
            metavar="USER",
            help="As root, owner of a new target, or --same-owner.",
            rich_help_panel=TARGET,
        ),
    ] = None,
    same_owner: Annotated[
        bool,
        option(
            TARGET,
            "--same-owner",
            "As root, keep the owners that the snapshot records.",
            hidden=True,
        ),
    ] = False,
    snapshots: SnapshotsOption = None,
    database_url: Annotated[
        str | None,
        option(DATABASE, "--database-url", "Database to restore to, or --url-file FILE.", "URL"),
    ] = None,
    url_file: HiddenUrlFileOption = None,
    without_database: Annotated[
        bool, option(DATABASE, "--without-database", "Restore files, not the database of a server.")
    ] = False,
    to_sqlite: Annotated[
        bool, option(DATABASE, "--to-sqlite", "Restore it to the SQLite file of the home.")
    ] = False,
    database_from: Annotated[
        str | None,
        option(
            DATABASE, "--database-from", "From a replica instead: litestream[:TIMESTAMP].", "SOURCE"
        ),
    ] = None,
    litestream_config: LitestreamConfigOption = None,
    accept_change: Annotated[
        bool,
        option(
            DATABASE,
            "--accept-change",
            "Accept a replica that lacks rows of the snapshot.",
            hidden=True,
        ),
    ] = False,
    sqlite: HiddenSqliteOption = False,
    check: Annotated[
        Literal["recorded", "full"],
        option(DATABASE, "--check", "Database check: full, recorded.", "MODE"),
    ] = "recorded",
    wait: HomeWaitOption = 0.0,
    limit_download: HiddenLimitDownloadOption = None,
    dry_run: DryRunOption = False,
    undo: Annotated[
        bool, option(TARGET, "--undo", "Exchange the home and the previous one again.")
    ] = False,
    recover: Annotated[
        bool,
        option(TARGET, "--recover", "Complete or roll back an interrupted restore.", hidden=True),
    ] = False,
) -> Outcome:
    """Parse, restore, render."""
    if sum((undo, recover, snapshot is not None)) != 1:
        raise UsageError(
            "restore: name one of SNAPSHOT, --undo and --recover",
            hint="sagewai-ops restore latest\nsagewai-ops restore --help",
        )
    from sagewai_ops.cli.database_url import with_database

    if without_database and (database_url or url_file):
        raise UsageError("--without-database: contradicts a URL")
    if to_sqlite and (undo or recover or without_database or database_url or url_file):
        raise UsageError("--to-sqlite: contradicts a URL, --without-database, --undo and --recover")
    if database_from is None and (litestream_config or accept_change):
        raise UsageError(
            f"{'--litestream-config' if litestream_config else '--accept-change'}: needs"
            " --database-from litestream"
        )
    if database_from is not None and (undo or recover or without_database or to_sqlite):
        raise UsageError(
            "--database-from: contradicts --without-database, --to-sqlite, --undo and --recover"
        )
    if if_empty and (undo or recover or replace or only):
        raise UsageError("--if-empty: contradicts --replace, --only, --undo and --recover")
    run = with_limits(run, None, limit_download)
    run = with_database(run, url_file, url=database_url, sqlite=sqlite, required=False)
    if if_empty and (present := _present(run, to, dry_run=dry_run, wait_seconds=wait)):
        return present
    if undo or recover:
        return _undo_or_recover(run, to, undo=undo, dry_run=dry_run, wait_seconds=wait)

    from sagewai_ops.database.url import PostgresUrl, resolve
    from sagewai_ops.home.paths import locate
    from sagewai_ops.restore import restore as restoring
    from sagewai_ops.restore.plan import (
        RestoreOptions,
        plan_restore,
        require_free_target,
        require_target_unused,
        storage_directory,
    )
    from sagewai_ops.restore.results import PlanResult, RestoreResult
    from sagewai_ops.snapshots.piped_archive import STANDARD_INPUT, stored_input
    from sagewai_ops.swap.pending import require_settled

    home = run.home()
    environment = dict(run.settings.environment)
    piped = is_piped(
        snapshot,
        identity=opening.identity,
        passphrase_file=opening.passphrase_file,
        install_key=key_file,
        url_file=url_file,
    )
    archive = STANDARD_INPUT if piped else find_named(run, snapshot or "", snapshots)[0]
    decryption, parts = opening.read(run), _parts(only or [])
    target = locate(to, environment) if to else home
    if to and target.root != home.root and target.root.is_relative_to(home.root):
        raise UsageError(
            f"--to {to}: inside the home {home.root}, whose next backup would contain the copy",
            hint=f"sagewai-ops restore {shell_word(snapshot or '')} --to"
            f" {shell_word(home.root.with_name(home.root.name + '.restored'))}",
        )
    server = None
    if not (without_database or to_sqlite) and (to is None or database_url or url_file):
        # With --to, the variables name the database of the home, not that of the target.
        server = resolve(environment, target.database)
    options = RestoreOptions(
        decryption=decryption,
        replace=replace,
        if_empty=if_empty,
        only=parts,
        key_file=key_file,
        without_key=without_key,
        revoke_sessions=revoke_sessions,
        rebind_fleet=rebind_fleet,
        same_owner=same_owner,
        wait_seconds=wait,
        key_home=home,
        key_environment=environment,
        require_authentic=require_authentic,
        is_latest=snapshot == "latest",
        allow_rollback=allow_rollback,
        server=server if isinstance(server, PostgresUrl) else None,
        requires_server=not without_database and not sqlite,
        to_sqlite=to_sqlite,
        check=check,
        replica=replica_of(run, "--database-from", database_from, litestream_config)
        if database_from is not None
        else None,
        accept_change=accept_change,
    )
    risked = home if to is None and home.root.is_dir() else None
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(run.terminal.progress())
        if piped:  # as much as possible is checked before it is stored
            require_settled(target.root)
            require_free_target(target, options)
            require_target_unused(target, options)
            directory = storage_directory(target.root, options)
            stack.enter_context(stored_input(directory, progress))
        if dry_run:
            plan = plan_restore(archive, target, options)
        else:
            report = restoring.restore(archive, target, options, progress=progress)
    if dry_run:
        warnings = (*_origin_warning(plan, risked, snapshot), *plan.warnings)
        result = PlanResult.of_plan(plan, warnings)
        return Outcome(
            result, lambda terminal: _show_plan(terminal, result), warnings=warnings, always=True
        )
    warnings = (*_origin_warning(report.plan, risked, snapshot), *report.warnings)
    done = RestoreResult.of_report(report, warnings)
    return Outcome(
        done,
        lambda terminal: _show(terminal, done),
        exit_code=EXIT_INCOMPLETE if done.not_converted else EXIT_DONE,
        warnings=(*warnings, *map(_not_converted, done.not_converted)),
        always=if_empty,  # the log of an init container shows which of the two it was
    )


def _present(run: Run, to: Path | None, *, dry_run: bool, wait_seconds: float) -> Outcome | None:
    """Return the outcome where a home exists; None for a target without one.

    An init container is started again after a kill, so an interrupted restore is recovered first.
    """
    from sagewai_ops.fs.volumes import has_only_directories, names_in
    from sagewai_ops.home.paths import OWN_PREFIX, is_home, locate
    from sagewai_ops.operations.recover import recover_home
    from sagewai_ops.restore.results import PresentResult
    from sagewai_ops.swap.pending import RESTORE, pending_operations

    environment = run.settings.environment
    target = locate(to, environment) if to else run.home()
    if not dry_run and pending_operations(target.root, [RESTORE]):
        recover_home(target, environment, kinds=[RESTORE], wait_seconds=wait_seconds)
    if not target.root.is_dir():
        return None
    # A killed restore leaves names of this program, which the next one removes.
    own = [name for name in names_in(target.root) if name.startswith(OWN_PREFIX)]
    if has_only_directories(target.root, own) or not is_home(target):
        return None
    result = PresentResult(target.root)
    summary = f"home {target.root}: exists, unchanged; nothing is restored"
    return Outcome(result, lambda terminal: terminal.line(summary), always=True)


def _origin_warning(plan: Any, home: Home | None, snapshot: str | None) -> tuple[str, ...]:
    """Warn if `latest` was created from another path: a copy may share the snapshot directory.

    Args:
        home: The home that it replaces; None without one.
    """
    if home is None or snapshot != "latest" or plan.origin in ("", str(home.root)):
        return ()
    return (f"snapshot {plan.snapshot_id}: created from {plan.origin}, not from {home.root}",)


def _not_converted(item: "NotConverted") -> str:
    place = f"{item.table}.{item.column}" if item.column else item.table
    keys = ", ".join(item.keys[:_SHOWN_KEYS])
    more = "; ..." if len(item.keys) > _SHOWN_KEYS else ""
    return printable(
        f"not converted: {place}: {item.detail} ({item.kind}, {item.count} rows"
        f"{': ' if keys else ''}{keys}{more})"
    )


def _parts(only: list[str]) -> tuple[str, ...]:
    """Parse `--only a,b`; refuse an empty name, which is an unset variable of a script."""
    parts = tuple(part.strip() for text in only for part in text.split(","))
    if "" in parts:
        raise UsageError("--only: empty name", hint="name the parts: --only config,db")
    return parts


def _undo_or_recover(
    run: Run, to: Path | None, *, undo: bool, dry_run: bool, wait_seconds: float
) -> Outcome:
    from sagewai_ops.home.paths import locate
    from sagewai_ops.home.server_record import read_server_record
    from sagewai_ops.operations.recover import recover_home
    from sagewai_ops.restore import undo as undoing
    from sagewai_ops.restore.results import RecoveryResult, UndoResult
    from sagewai_ops.swap.pending import RESTORE

    target = locate(to, run.settings.environment) if to else run.home()
    notes: tuple[str, ...] = ()
    if undo:
        is_other = to is not None and read_server_record(target.root) is None
        environment = {} if is_other else run.settings.environment
        back = undoing.undo_restore(target, environment, dry_run=dry_run, wait_seconds=wait_seconds)
        notes = back.notes
        result: Any = UndoResult(target.root, back.restored_from, back.previous, dry_run)
        would = "would be " if dry_run else ""
        summary = f"home {target.root}: {would}restored from {back.restored_from}"
    else:
        report = recover_home(
            target,
            run.settings.environment,
            kinds=[RESTORE],
            dry_run=dry_run,
            wait_seconds=wait_seconds,
        )
        if dry_run:
            return outcome_of(report)
        answer = alias_outcome(report)
        result = RecoveryResult(target.root, answer)
        summary = f"home {target.root}: {answer}"
    return Outcome(result, lambda terminal: terminal.line(summary), always=dry_run, warnings=notes)


def _show_plan(terminal: Terminal, result: "PlanResult") -> None:
    terminal.line(f"snapshot {result.snapshot} would be restored to {result.target}")
    terminal.line(f"  target    {result.target_state}")
    terminal.line(f"  restores  {result.files} files, {size(result.size_bytes)}")
    terminal.line(f"  origin    {_origin(result)}")
    if result.application_version:
        terminal.line(f"  written   by Sagewai {result.application_version}")
    what = "the whole home" if result.exchanged is None else ", ".join(result.exchanged)
    terminal.line(f"  replaces  {what}")
    terminal.line(
        f"  key       {result.key_fingerprint or 'none'}, {result.key_custody}, "
        f"{result.sealed_values} encrypted values"
    )
    if result.server:
        terminal.line(f"  server    {_server(result)}")
    if result.to_sqlite:
        terminal.line(f"  converts  {result.server_rows} rows in {result.server_tables} tables")
        for item in result.not_converted:
            terminal.line(f"            {_not_converted(item)}")
    if result.database_from:
        terminal.line(f"  database  {_replica(result)}")
    terminal.line(f"  owner     {result.owner or 'as recorded in the snapshot'}")
    if result.revokes_sessions:
        terminal.line("  revokes   all sessions and API tokens")
    if result.rebinds_fleet:
        terminal.line(f"  rebinds   the fleet's rows to {result.target}")
    _show_links(terminal, result)


def _origin(result: "PlanResult") -> str:
    reason = result.authenticity_reason
    origin = f"{result.authenticity}, {reason}" if reason else result.authenticity
    return f"files {origin}; database not authenticated" if result.database_from else origin


def _server(result: "PlanResult") -> str:
    return f"{result.server}: {result.server_rows} rows in {result.server_tables} tables"


def _replica(result: "PlanResult") -> str:
    return printable(f"{result.database_from}, last change at {result.database_state_at}")


def _show_links(terminal: Terminal, result: "PlanResult") -> None:
    """List the links that lead out of the home, and the directories that replace such links."""
    for path, origin in result.followed.items():
        terminal.line(f"  written   {result.target}/{path}, in place of a link to {origin}")
    for path, target in result.outside_links.items():
        terminal.line(f"  link      {result.target}/{path} -> {target}, outside the home")


def _show(terminal: Terminal, result: "RestoreResult") -> None:
    from sagewai_ops.keys.candidates import shown_source

    terminal.line(f"snapshot {result.snapshot}: restored to {result.target}", style="bold green")
    terminal.line(f"  files     {result.files}, {size(result.size_bytes)}, all verified")
    terminal.line(f"  origin    {_origin(result)}")
    if result.application_version:
        terminal.line(f"  written   by Sagewai {result.application_version}")
    if result.to_sqlite:
        terminal.line(f"  database  {result.converted_rows} rows converted, each compared")
    elif result.database:
        rows = sum(result.database.tables.values())
        check = {
            "recorded": f"as in the snapshot, {result.database.check} check at backup",
            "full": "as in the snapshot, "
            + ("checked" if result.database.integrity == ("ok",) else "DAMAGED"),
        }[result.database_check or "full"]
        if result.database_from:
            check = f"of {_replica(result)}, checked"
        terminal.line(f"  database  {rows} rows, {check}")
    if result.server:
        terminal.line(f"  server    {_server(result)}, each compared")
        if result.server_before:
            terminal.line(f"  replaced  kept in its schema {result.server_before}")
    keys = result.keys
    source = shown_source(result.key_source) or "no key"
    installed = ", installed in the home" if result.key_installed else ""
    terminal.line(
        f"  secrets   {keys.total - len(keys.unopened)} of {keys.total} values open "
        f"with {source}{installed}"
    )
    terminal.line(
        f"  access    {result.sessions} sessions and {result.api_tokens} API tokens are valid again"
    )
    if result.rebinds_fleet:
        terminal.line(f"  fleet     {result.rebound_rows} rows rebound")
    _show_links(terminal, result)
    if result.before:
        terminal.line(f"  before    kept in {result.before}; back with: restore --undo")
