"""`drill`: prove that a snapshot can be restored, by restoring it."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sagewai_ops.cli.command import Outcome, Run, command
from sagewai_ops.cli.options import ENCRYPTION, SNAPSHOTS, DryRunOption, option
from sagewai_ops.cli.plan import plan_outcome
from sagewai_ops.cli.terminal import Terminal
from sagewai_ops.errors import EXIT_DONE, EXIT_FINDINGS, EXIT_INCOMPLETE, UsageError
from sagewai_ops.text import size

from .drill_replica import drill_replica  # noqa: TID251 - a neighbour
from .litestream_options import LitestreamConfigOption, refuse_with  # noqa: TID251 - a neighbour
from .shared_options import (  # noqa: TID251 - a neighbour
    AllowRollbackOption,
    HiddenLimitDownloadOption,
    KeepWorkDirOption,
    OpeningOptions,
    RequireAuthenticOption,
    ScratchUrlFileOption,
    ScratchUrlOption,
    SnapshotsOption,
    WorkDirOption,
    keeper,
    with_limits,
)
from .snapshot_argument import find_named, is_piped  # noqa: TID251 - a neighbour

if TYPE_CHECKING:
    from sagewai_ops.operations.drill_report import DrillResult

# Parameters about archives and servers, which a replica does not have.
_OF_SNAPSHOTS = (
    *("snapshot", "snapshots", "identity", "identity_command", "passphrase_file"),
    *("passphrase_command", "allow_work_factor", "require_authentic", "allow_rollback"),
    *("scratch_url", "scratch_url_file", "limit_download"),
)

HELP = """Prove that a snapshot can be restored.

SNAPSHOT is `latest` (default), an id or its beginning, a path, or - for standard input, of which
nothing is recorded. It is restored into a private temporary directory, a PostgreSQL database to a
private server or that of --scratch-url. Database, keys, permissions and the upgrade to the current
schema are checked, the result is recorded in the metadata file of the snapshot, and what was
restored, in plaintext, is removed.

Exit status:
  0   proved
  3   proved, but the metadata file is not writable
  4   restored, but there are findings, or a newer snapshot is not good
  10  snapshot not found
  12  no key decrypts the secrets or the archive
  13  not enough disk space
  14  permission denied
  16  damaged or forged
  18  format or schema newer than this program
  19  server or replica failed
  20  the upgrade would change rows
"""


@command(
    "drill",
    HELP,
    result="sagewai_ops.operations.drill_report:DrillResult"
    " | sagewai_ops.operations.drill_replica:ReplicaDrillResult",
    unattended=True,
    changes=True,
)
def drill(
    run: Run,
    *,
    snapshot: Annotated[
        str, typer.Argument(metavar="[SNAPSHOT|latest|-]", show_default=False)
    ] = "latest",
    snapshots: SnapshotsOption = None,
    opening: OpeningOptions,
    key_file: Annotated[
        Path | None,
        option(
            ENCRYPTION,
            "--install-key",
            "Use this master key, as `restore --install-key` does.",
            "FILE",
        ),
    ] = None,
    without_key: Annotated[
        bool, option(ENCRYPTION, "--without-key", "Continue without a key; nothing is proved then.")
    ] = False,
    require_authentic: RequireAuthenticOption = False,
    allow_rollback: AllowRollbackOption = False,
    scratch_url: ScratchUrlOption = None,
    scratch_url_file: ScratchUrlFileOption = None,
    scratch: WorkDirOption = None,
    keep_work_dir: KeepWorkDirOption = False,
    source: Annotated[
        str | None,
        option(SNAPSHOTS, "--from", "Drill a replica instead: litestream[:TIMESTAMP].", "SOURCE"),
    ] = None,
    litestream_config: LitestreamConfigOption = None,
    limit_download: HiddenLimitDownloadOption = None,
    dry_run: DryRunOption = False,
) -> Outcome:
    """Parse, drill, render."""
    if source is not None:
        refuse_with(run, "--from", _OF_SNAPSHOTS)
        return drill_replica(
            run,
            source,
            litestream_config,
            key_file=key_file,
            without_key=without_key,
            scratch=scratch,
            keep_work_dir=keep_work_dir,
            dry_run=dry_run,
        )
    if litestream_config:
        raise UsageError("--litestream-config: needs --from litestream")
    from sagewai_ops.cli.database_url import scratch_server
    from sagewai_ops.operations import drill as drilling
    from sagewai_ops.operations.drill_report import describe_drill
    from sagewai_ops.snapshots.piped_archive import STANDARD_INPUT, stored_input

    run = with_limits(run, None, limit_download)
    home = run.home()
    piped = is_piped(
        snapshot,
        identity=opening.identity,
        passphrase_file=opening.passphrase_file,
        install_key=key_file,
        scratch_url_file=scratch_url_file,
    )
    archive, skipped = STANDARD_INPUT, ()
    if not piped:
        archive, skipped = find_named(run, snapshot, snapshots, or_newest=True)
    directory = run.snapshots(home, snapshots) if piped else archive.parent
    options = drilling.DrillOptions(
        decryption=opening.read(run),
        key_file=key_file,
        without_key=without_key,
        key_home=home,
        key_environment=run.settings.environment,
        scratch=scratch,
        keep=keeper(run, keep_work_dir, scratch, directory),
        require_authentic=require_authentic,
        scratch_server=scratch_server(scratch_url, scratch_url_file),
        is_latest=snapshot == "latest",
        allow_rollback=allow_rollback,
    )
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(run.terminal.progress())
        if piped:
            work = drilling.storage_directory(archive, options)
            stack.enter_context(stored_input(work, progress))
        if dry_run:
            return plan_outcome(drilling.plan_drill(archive, options))
        report = drilling.drill(archive, options, progress=progress)
    result = describe_drill(report)
    code = EXIT_FINDINGS if report.findings or skipped else EXIT_DONE
    return Outcome(
        result,
        lambda terminal: show(terminal, result, is_kept=keep_work_dir),
        exit_code=EXIT_INCOMPLETE if report.not_recorded else code,
        warnings=tuple(_warnings(report)),
        always=bool(report.findings),
    )


def show(terminal: Terminal, result: "DrillResult", *, is_kept: bool = False) -> None:
    """Print the outcome and the findings."""
    proved = result.outcome == "proved"
    terminal.line(
        f"snapshot {result.snapshot}: "
        + ("proved restorable" if proved else f"restorable, but {_doubt(result)}"),
        style="bold green" if proved else "bold yellow",
    )
    end = "kept" if is_kept else "removed"
    terminal.line(f"  restored  {result.files} files, {size(result.size_bytes)}, and {end}")
    reason = f", {result.authenticity_reason}" if result.authenticity_reason else ""
    terminal.line(f"  origin    {result.authenticity}{reason}")
    database, upgrade = result.database, result.upgrade
    if database:
        rows = sum(database.tables.values())
        terminal.line(f"  database  {rows} rows in {len(database.tables)} tables, undamaged")
    if result.server:
        server = result.server
        kind = "private " if server.private else ""
        terminal.line(
            f"  server    {server.rows} rows in {server.tables} tables, the same on a {kind}"
            f"PostgreSQL {server.version}"
        )
        before, after = _revisions(server.before), _revisions(server.after)
        terminal.line(f"  upgrade   {before} to {after}, {len(server.ran)} revisions")
    if upgrade:
        before, after = _revisions(upgrade.before), _revisions(upgrade.after)
        terminal.line(f"  upgrade   {before} to {after}, {len(upgrade.added)} additions")
    show_keys(terminal, result)
    entries = result.permissions.entries
    terminal.line(f"  modes     {entries} entries checked")
    findings = [f"{finding.check}: {finding.text}" for finding in result.findings]
    terminal.items("  finding   ", findings, style="yellow")
    terminal.line(f"  took      {result.seconds:.1f} s" + (", recorded" if result.recorded else ""))


def _revisions(ids: Sequence[str]) -> str:
    return " and ".join(ids) or "no revision"


def _doubt(result: "DrillResult") -> str:
    if any(item.check == "database" and "not drilled" in item.text for item in result.findings):
        return "the database of the server was not drilled"
    return "not all encrypted values open"


def show_keys(terminal: Terminal, result: "DrillResult") -> None:
    """Print which key opens the encrypted values, and whether the snapshot contains it."""
    from sagewai_ops.keys.candidates import shown_source

    keys = result.keys
    if not keys.total:
        terminal.line("  secrets   none")
        return
    opened = f"{keys.opened} of {keys.total} values open"
    source = shown_source(result.key_source) or "no key"
    if result.key_in_snapshot:
        terminal.line(f"  secrets   {opened} with the key in the snapshot")
    else:
        terminal.line(
            f"  secrets   {opened} with {source}, NOT in the snapshot: keep it elsewhere",
            style="yellow",
        )


def _warnings(report: Any) -> list[str]:
    warnings = []
    if report.outcome == "unproved":
        closed = len(report.restored.keys.unopened)
        if report.restored.plan.is_on_server and not report.server:
            warnings.append("not proved: the database of the server was not drilled")
        if closed:
            warnings.append(f"not proved: no available key opens {closed} encrypted values")
    if report.not_recorded:
        warnings.append(f"proved, but not recorded: {report.not_recorded}")
    return warnings
