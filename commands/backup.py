"""`backup`: take a verified snapshot of a home that may be in use."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from sagewai_ops.cli.command import Outcome, Run, command
from sagewai_ops.cli.options import CONTENT, DATABASE, RUN, SNAPSHOTS, DryRunOption, option
from sagewai_ops.cli.plan import plan_outcome
from sagewai_ops.cli.repository_options import find_mirror_directory
from sagewai_ops.cli.terminal import Terminal
from sagewai_ops.errors import EXIT_DONE, EXIT_FINDINGS, EXIT_INCOMPLETE, UsageError
from sagewai_ops.home.paths import Home
from sagewai_ops.remote.path import parse_place
from sagewai_ops.text import shell_word, size

from .backup_copies import copy_to, show_copies  # noqa: TID251 - a neighbour
from .retention_options import (  # noqa: TID251 - a neighbour
    AllPaths,
    KeepOptions,
    apply_rules,
)
from .shared_options import (  # noqa: TID251 - a neighbour
    BackupSnapshotsOption,
    HiddenAllowClearOption,
    HiddenLimitDownloadOption,
    HiddenLimitUploadOption,
    HiddenReadBackOption,
    HiddenSqliteOption,
    HiddenUrlFileOption,
    HomeWaitOption,
    HomeWorkDirOption,
    KeyCustodyOption,
    PassphraseCommandOption,
    PassphraseOption,
    RecipientOption,
    RecipientsFileOption,
    UnencryptedOption,
    with_limits,
)
from .snapshots_list import check_of  # noqa: TID251 - a neighbour

if TYPE_CHECKING:
    from sagewai_ops.backup.results import BackupResult

HELP = """Create a verified snapshot of a home.

The home may be in use. The master key is never in an unencrypted archive.

Exit status:
  0   created and verified
  3   created, but incomplete, not plausible, or older ones not pruned
  4   created, but database, documents or key are damaged
  10  home not found
  11  locked by another run
  12  a key or recipient is missing
  13  not enough disk space
  16  damaged
"""


@command(
    "backup", HELP, result="sagewai_ops.backup.results:BackupResult", unattended=True, changes=True
)
def backup(
    run: Run,
    *,
    to: BackupSnapshotsOption = None,
    engine: Annotated[
        str | None,
        option(
            SNAPSHOTS,
            "--engine",
            "Store it in the --repository R of restic or borg.",
            "restic|borg",
        ),
    ] = None,
    init_repository: Annotated[
        bool,
        option(
            SNAPSHOTS,
            "--init-repository",
            "Create the repository if it does not exist.",
            hidden=True,
        ),
    ] = False,
    recipient: RecipientOption = None,
    recipients_file: RecipientsFileOption = None,
    passphrase_file: PassphraseOption = None,
    passphrase_command: PassphraseCommandOption = None,
    unencrypted: UnencryptedOption = False,
    key: KeyCustodyOption = "exclude",
    exclude: Annotated[
        list[str] | None,
        option(CONTENT, "--exclude", "Exclude paths relative to the home; repeatable.", "GLOB"),
    ] = None,
    follow: Annotated[
        list[str] | None,
        option(
            CONTENT, "--follow", "Include the target of links out of the home; repeatable.", "GLOB"
        ),
    ] = None,
    without_database: Annotated[
        bool, option(DATABASE, "--without-database", "Omit the database of a server.", hidden=True)
    ] = False,
    exclude_table: Annotated[
        list[str] | None,
        option(
            DATABASE,
            "--exclude-table",
            "Exclude tables of the server; repeatable.",
            "GLOB",
            hidden=True,
        ),
    ] = None,
    url_file: HiddenUrlFileOption = None,
    sqlite: HiddenSqliteOption = False,
    compact: Annotated[
        bool, option(CONTENT, "--compact", "Rewrite the database without free pages.", hidden=True)
    ] = False,
    level: Annotated[
        int | None,
        option(CONTENT, "--level", "Level of zstd, 1 to 19 (default: 3).", "N", min=1, max=19),
    ] = None,
    form: Annotated[
        str,
        option(
            SNAPSHOTS, "--format", "archive, or directory for restic (default: archive).", "FORMAT"
        ),
    ] = "archive",
    output: Annotated[
        str | None,
        option(SNAPSHOTS, "--output", "Write the archive to stdout, no metadata file.", "-"),
    ] = None,
    tag: Annotated[
        list[str] | None, option(SNAPSHOTS, "--tag", "Tag of the snapshot; repeatable.", "TAG")
    ] = None,
    keep: KeepOptions,
    all_paths: AllPaths = False,
    accept: Annotated[
        list[str] | None,
        option(
            RUN,
            "--accept",
            "Accept known causes of an incomplete or damaged snapshot; repeatable.",
            "RULE|GLOB",
            hidden=True,
        ),
    ] = None,
    accept_change: Annotated[
        bool, option(RUN, "--accept-change", "Accept that the home lost files or rows.")
    ] = False,
    application_version: Annotated[
        str | None,
        option(
            CONTENT,
            "--application-version",
            "Version of Sagewai to record (default: that of its package).",
            "VERSION",
            hidden=True,
        ),
    ] = None,
    allow_clear: HiddenAllowClearOption = False,
    read_back: HiddenReadBackOption = None,
    check: Annotated[
        Literal["quick", "full"] | None,
        option(CONTENT, "--check", "Check the database: full, or quick.", "MODE", hidden=True),
    ] = None,
    also: Annotated[
        list[Path] | None,
        option(
            SNAPSHOTS,
            "--also",
            "Copy the snapshot to this directory or URL too; repeatable.",
            "DIR",
            parser=parse_place,
            hidden=True,
        ),
    ] = None,
    limit_upload: HiddenLimitUploadOption = None,
    limit_download: HiddenLimitDownloadOption = None,
    work_dir: HomeWorkDirOption = None,
    dry_run: DryRunOption = False,
    wait: HomeWaitOption = 0.0,
) -> Outcome:
    """Parse, create the snapshot, prune older ones, render."""
    from sagewai_ops.archive.zstd_frames import DEFAULT_LEVEL
    from sagewai_ops.backup.create import create_snapshot, stream_snapshot
    from sagewai_ops.backup.mirror import update_mirror
    from sagewai_ops.backup.report import BackupOptions
    from sagewai_ops.backup.repository import store_snapshot
    from sagewai_ops.backup.results import BackupResult
    from sagewai_ops.backup.server import has_server
    from sagewai_ops.cli.credentials import lock_of
    from sagewai_ops.cli.database_url import with_database
    from sagewai_ops.home.application import check_version
    from sagewai_ops.remote.path import has_trees, is_remote
    from sagewai_ops.remote.read_back import ReadBack

    if form not in ("archive", "directory"):
        raise UsageError(
            f"--format {form}: not one of archive, directory",
            hint="sagewai-ops backup --format archive",
        )
    if output not in (None, "-"):
        raise UsageError(
            f"--output {output}: not -, the only value",
            hint=f"sagewai-ops backup --snapshots {shell_word(output)}",
        )
    if output and run.settings.json:
        raise UsageError("--output -: not possible with --json, both write to stdout")
    policy = keep.policy()
    if form == "directory" and (output or level or not policy.is_empty):
        given = "--output" if output else "--level" if level else "--keep-*"
        raise UsageError(f"--format directory: {given} is for archives")
    if output and not policy.is_empty:
        raise UsageError("--output -: not possible with --keep-*, which prune a snapshot directory")
    if also and (output or form == "directory"):
        raise UsageError(
            f"--also: not possible with {'--output' if output else '--format directory'}"
        )
    if output and (sys.stdout is None or sys.stdout.isatty()):
        raise UsageError(
            "--output -: stdout is a terminal", hint="sagewai-ops backup --output - > home.tar.zst"
        )
    run = with_limits(run, limit_upload, limit_download)
    run = with_database(run, url_file, sqlite=sqlite, required=not without_database)
    home = run.home()
    directory = run.snapshots(home, None if engine else to)
    if has_trees(directory):
        named = {
            "--output": output,
            "--format directory": form == "directory",
            "--compact": compact,
            "--level": level,
            "--key sealed": key == "sealed",
            "--recipient": recipient,
            "--recipients-file": recipients_file,
        }
        if refused := next((flag for flag, value in named.items() if value), None):
            raise UsageError(f"{refused}: for archives, and not for a repository")
        encryption = None  # the password is that of the repository
    else:
        if init_repository:
            raise UsageError("--init-repository: no repository", hint="add --engine restic")
        encryption = lock_of(
            run.terminal, recipient or [], recipients_file, passphrase_file, passphrase_command
        )
    if without_database and not has_server(home):
        raise UsageError(
            f"--without-database: the database of home {home.root} is not on a server",
            hint="sagewai-ops backup --exclude 'db/*'",
        )
    options = BackupOptions(
        encryption=encryption,
        custody=key,
        exclude=tuple(exclude or ()),
        follow=tuple(follow or ()),
        compact=compact,
        level=level or DEFAULT_LEVEL,
        without_database=without_database,
        exclude_tables=tuple(exclude_table or ()),
        tags=tuple(tag or ()),
        wait_seconds=wait,
        key_environment=run.settings.environment,
        unencrypted=unencrypted,
        accepted=tuple(accept or ()),
        accept_change=accept_change,
        application_version=check_version(application_version) if application_version else "",
        work_dir=work_dir,
        allow_clear=allow_clear,
        reads_all=read_back == "full",
        check=check,
        read_back=ReadBack.parse(read_back or ("16M" if has_trees(directory) else "full")),
        mirror=find_mirror_directory(run.settings, home, to) if has_trees(directory) else None,
        init_repository=init_repository,
    )
    if dry_run:
        where = "stdout" if output else directory / "tree" if form == "directory" else directory
        places = [run.snapshots(home, place) for place in also or ()]
        return _plan(home, directory, options, str(where), policy, places, all_paths=all_paths)
    with run.terminal.progress() as progress:
        if output:
            report = stream_snapshot(home, sys.stdout.buffer, options, progress=progress)
        else:
            if has_trees(directory):
                report = store_snapshot(
                    home,
                    directory,
                    options.mirror or home.snapshots,
                    options,
                    all_paths=all_paths,
                    progress=progress,
                )
            elif form == "directory":
                if is_remote(directory):
                    raise UsageError(f"--format directory: {directory} is not a directory")
                report = update_mirror(
                    home, directory, options, all_paths=all_paths, progress=progress
                )
            else:
                report = create_snapshot(home, directory, options, progress=progress)
    result = BackupResult.build(report)
    code = EXIT_DONE if report.quality.is_good else EXIT_INCOMPLETE
    code = code if report.is_sound else EXIT_FINDINGS
    # Definitions that are not stored hide no row: they neither hinder retention nor pass silently.
    unstored = EXIT_INCOMPLETE if report.unstored else EXIT_DONE
    warnings = tuple(report.warnings())
    if not policy.is_empty:
        # No good snapshot is removed for one that is not good.
        is_good = code == EXIT_DONE
        retention = apply_rules(
            run, directory, policy, wait_seconds=wait, all_paths=all_paths, spares_good=not is_good
        )
        if retention.result.applied and not is_good:
            retention = retention.without_good()
        result = replace(result, retention=retention.result)
        warnings += retention.warnings
        code = code or retention.exit_code
    code = unstored if code == EXIT_DONE else code
    for place in also or ():
        copy = copy_to(run, home, directory, run.snapshots(home, place), options, result.id)
        result = replace(result, copies=(*result.copies, copy.result))
        warnings += copy.warnings
        code = code or copy.exit_code
    return Outcome(
        result,
        lambda terminal: show(terminal, result),
        exit_code=code,
        warnings=warnings,
        on_stdout=output is None,
    )


def _plan(
    home: Home,
    directory: Path,
    options: Any,
    where: str,
    policy: Any,
    also: list[Path],
    *,
    all_paths: bool,
) -> Outcome:
    from sagewai_ops.backup.create import plan_snapshot
    from sagewai_ops.backup.server import plan_server
    from sagewai_ops.remote.path import has_trees

    if has_trees(directory) and not options.init_repository:
        directory.store.list()  # a missing repository is an error of the real run
    scan = plan_snapshot(home, directory, options)
    server = plan_server(home, options)
    count = sum(item.type in ("file", "database") for item in scan.items)
    steps = [f"create a snapshot of {home.root} in {where}"]
    if options.without_database:
        steps.append("omit the database of the server")
    elif server:
        steps.append(
            f"copy {server.tables} tables of PostgreSQL {server.version},"
            f" about {size(server.size_bytes)}"
        )
        steps += [f"omit table {name}: excluded" for name in server.excluded]
        steps += [f"omit {item.kind} {item.name}: {item.reason}" for item in server.unstored]
    steps.append(f"copy {count} files, {size(scan.content_bytes)}")
    steps += [
        f"omit {omission.path}: {omission.reason.name.lower()} {omission.detail}".rstrip()
        for omission in scan.omissions
    ]
    steps += [f"include {target} in place of {path}" for path, target in scan.followed.items()]
    steps += [f"copy the snapshot to {place}" for place in also]
    steps += [f"store {path} as a link to {target}" for path, target in scan.outside_links.items()]
    if not policy.is_empty:
        is_complete = not any(omission.reason.is_loss for omission in scan.omissions)
        is_complete &= not any(item.is_data for item in (server.unstored if server else ()))
        steps += (
            _plan_prune(home, directory, options, policy, all_paths)
            if is_complete
            else ["remove no older snapshot, as this one is incomplete"]
        )
    return plan_outcome(steps)


def _plan_prune(
    home: Home, directory: Path, options: Any, policy: Any, all_paths: bool
) -> list[str]:
    from sagewai_ops.snapshots.prune import expect_snapshot, prune
    from sagewai_ops.snapshots.trust import trust_of

    trust = trust_of(home, directory, options.key_environment)
    expected = expect_snapshot(home, directory, trust, options.tags)
    planned = prune(
        home, directory, policy, all_paths=all_paths, dry_run=True, expected=expected, trust=trust
    )
    moved = [f"move snapshot {removed} to .trash, no rule keeps it" for removed in planned.removed]
    purged = [f"remove snapshot {removed} from .trash permanently" for removed in planned.purged]
    return [*moved, *purged] or ["remove no older snapshot, all are kept"]


def show(terminal: Terminal, result: "BackupResult") -> None:
    """Write the summary of a backup; it always ends with the place of the key."""
    is_read = result.read_back_bytes in (None, result.archive_bytes)
    done = "verified" if is_read else f"{size(result.read_back_bytes or 0)} of it read back"
    terminal.line(f"snapshot {result.id}: created and {done}", style="bold green")
    is_mirror = result.format == "directory"
    terminal.line(f"  {'mirror ' if is_mirror else 'archive'}   {result.archive or 'on stdout'}")
    stored = f"{size(result.archive_bytes)} stored"
    if is_mirror:
        stored = f"{result.kept_files} unchanged"
        if result.last_read_at:
            stored += f", {result.reused_files} of them not read since {result.last_read_at}"
    terminal.line(f"  size      {size(result.content_bytes)} in {result.files} files, {stored}")
    database = result.database
    if database:
        rows = sum(database.tables.values())
        terminal.line(
            f"  database  {rows} rows in {len(database.tables)} tables, "
            f"level {database.schema_level or 'unknown'}, {check_of(database)}"
        )
    if result.server:
        server = result.server
        terminal.line(
            f"  server    PostgreSQL {server.version}, {server.rows} rows in"
            f" {len(server.tables)} tables, {server.distance_ms} ms before the documents"
        )
    elif result.without_database:
        terminal.line("  server    NOT in the snapshot: --without-database", style="yellow")
    keys = result.keys
    fingerprint = result.key_fingerprint
    terminal.line(f"  secrets   {keys.total} encrypted, {keys.total - len(keys.unopened)} opened")
    if not fingerprint:
        terminal.line("  key       not found", style="yellow")
    elif result.key_custody == "sealed":
        terminal.line(f"  key       {fingerprint}, in the archive, encrypted")
    else:
        terminal.line(
            f"  key       {fingerprint}, NOT in the archive: keep it elsewhere", style="yellow"
        )
    for note in result.notes:
        terminal.line(f"  note      {note}")
    show_copies(terminal, result.copies)
    if result.retention and result.retention.applied:
        terminal.line(
            f"  removed   {len(result.retention.removed or ())} older ones to .trash, "
            f"{len(result.retention.purged or ())} from .trash permanently"
        )
