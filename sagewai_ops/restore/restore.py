"""Restore a home from a snapshot: verify first, swap last.

The archive is verified while it is extracted next to the target. Then the checks: no process uses
the target, the schema is known, the key opens the encrypted values. Until the swap the target is
unchanged, and afterwards the previous home is kept.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sagewai_ops.archive.open import open_archive
from sagewai_ops.archive.reader import ArchiveReader, name_damaged
from sagewai_ops.errors import DamagedError, OpsError, TargetBusyError
from sagewai_ops.fs import atomic, beneath, locks
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.fs.ownership import set_owner
from sagewai_ops.fs.volumes import has_only_directories
from sagewai_ops.home.paths import DATABASE, MASTER_KEY, Home, locate
from sagewai_ops.home.server_record import PLACE, record_of, write_server_record
from sagewai_ops.home.state_files import read_documents
from sagewai_ops.keys.candidates import Candidate, rejected_key
from sagewai_ops.keys.trial_decryption import SealedReport
from sagewai_ops.permissions.modes import directory_mode
from sagewai_ops.progress import Progress, byte_counter
from sagewai_ops.records import dataclass
from sagewai_ops.restore.access import (
    AccessCounts,
    count_access,
    organisation_id,
    rebind_fleet,
    revoke_access,
)
from sagewai_ops.restore.extractor import Extraction, extract_members
from sagewai_ops.restore.key_check import KeyChoice, check_key, install_keys, unused_keys
from sagewai_ops.restore.plan import (
    DatabaseCheck,
    RestoreOptions,
    RestorePlan,
    build_plan,
    member_paths,
    parse_parts,
    require_target_unused,
    storage_directory,
    target_path,
)
from sagewai_ops.schema.postgres_replaced import replaced_schema
from sagewai_ops.snapshots.database_check import (
    DatabaseFacts,
    examination_thread,
    examine_database,
    recorded_report,
)
from sagewai_ops.snapshots.mark import copy_marks
from sagewai_ops.snapshots.member_paths import MemberPaths
from sagewai_ops.snapshots.piped_archive import spool
from sagewai_ops.swap import pending, swap
from sagewai_ops.text import shell_word

if TYPE_CHECKING:
    from sagewai_ops.restore.server import ServerRestore
    from sagewai_ops.restore.to_sqlite import Conversion

_MOST_ID = 2**32 - 2  # of users and groups; one more means none


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """A completed restore.

    Attributes:
        previous: Where the previous home is kept; None if there was none.
        key_source: The source of the key that opens the encrypted values; "" without one.
        key_installed: Whether it was written to the restored home.
        server_before: The schema on the server with what the restore replaced there; "" for none.
        conversion: What became of the tables of a server on SQLite; None without a conversion.
        database_check: `recorded` if the bytes are those that were checked when the snapshot was
            created, `full` if they were checked again; "" without a database.
    """

    plan: RestorePlan
    extracted: Extraction
    previous: Path | None
    key_source: str
    key_installed: bool
    keys: SealedReport
    database: DatabaseFacts | None
    access: AccessCounts
    rebound_rows: int
    server_before: str
    conversion: "Conversion | None"
    database_check: DatabaseCheck | Literal[""]
    warnings: tuple[str, ...]


def restore(
    archive: Path,
    target: Home,
    options: RestoreOptions,
    *,
    reader: ArchiveReader | None = None,
    progress: Progress | None = None,
) -> RestoreReport:
    """Restore a home, or parts of one.

    Args:
        archive: A snapshot.
        target: The home to write; need not exist.
        reader: Of the archive, if the caller has opened it: a passphrase takes a second.
        progress: Reports `restore` in bytes.

    Raises:
        NotFoundError, DamagedError, SchemaAheadError: The snapshot cannot be used; nothing changed.
        KeyMissingError: No key opens the archive, or the encrypted values in it.
        TargetBusyError: The target is not empty, or a process uses its database.
        NoSpaceError, PermissionDeniedError: The target cannot be written; it is unchanged.
        LockedError: The target is locked by another run, or a restore was interrupted.
    """
    with contextlib.ExitStack() as stack:
        if reader:
            stack.enter_context(name_damaged(archive))
        else:
            kept = stack.enter_context(spool(archive, storage_directory(target.root, options)))
            reader = stack.enter_context(open_archive(archive, options.decryption, spool=kept))
        if target.root.is_dir():
            stack.enter_context(locks.exclusive(target.root, wait_seconds=options.wait_seconds))
        pending.require_settled(target.root)
        pending.sweep(target.root)
        paths = member_paths(reader, options)
        plan = build_plan(reader, archive, target, options, paths)
        is_free = plan.state != "not empty"
        stage = stack.enter_context(swap.staged(target.root, plan.paths, is_free=is_free))
        server = _open_server(stack, plan, options, stage.moment)
        is_on_server = plan.is_on_server and plan.conversion is None
        recorded = None
        if options.check == "recorded" and plan.is_authentic:
            recorded = recorded_report(reader.manifest.facts)
        extracted, database = _extract(
            reader, stage.content, target.root, options, paths, progress, server, recorded
        )
        checked: DatabaseCheck = "recorded" if database and database is recorded else "full"
        staged = locate(stage.content, {})
        conversion = None
        if plan.conversion:
            from sagewai_ops.restore.to_sqlite import convert_database

            conversion = convert_database(
                reader, plan.conversion, staged.database, progress=progress
            )
            database, checked = examine_database(staged.database), "full"
        if options.replica:
            from sagewai_ops.restore.replica import replace_database

            database, state, found = replace_database(
                reader, options.replica, target, staged, options
            )
            plan = dataclasses.replace(plan, replica=state, warnings=(*plan.warnings, *found))
            checked = "full"
        documents = read_documents(staged)
        others = server.sealed_values() if server else ()
        choice = check_key(reader, documents, target, staged, options, others)
        if server:
            server.compare()
        if stage.paths is None:
            copy_marks(target, stage.content)
            _set_root_attributes(stage.content, target.root, reader, same_owner=options.same_owner)
        is_installed = install_keys(choice, reader, target, staged, options)
        unused = unused_keys(target, staged, options)
        if options.revoke_sessions:
            revoke_access(documents, staged)
            if server:
                server.revoke_access()
        rebound = 0
        if options.rebind_fleet:
            # With --only, the administrator's id may be in a document that is not replaced.
            every_document = {**read_documents(target), **documents}
            rebound = rebind_fleet(every_document, staged, target)
            if is_on_server:  # the rows of the old SQLite file are not used
                organisation = organisation_id(every_document, target)
                rebound = server.rebind_fleet(organisation) if server else 0
        access = _count_access(staged, None if is_on_server else database, server)
        warnings = [*plan.warnings]
        if server and stage.paths is None:
            warnings += _record_server(staged, options)
        require_target_unused(target, options)
        if options.if_empty:
            _require_still_empty(target.root, stage.content.name)
        if server:
            server.require_unused()
        swap.swap(stage, server)
        if server and stage.paths is not None:
            warnings += _record_server(target, options)
        return RestoreReport(
            plan=plan,
            extracted=extracted,
            previous=stage.before,
            key_source=choice.key.source if choice.key else "",
            key_installed=is_installed,
            keys=choice.keys,
            database=database,
            access=access,
            rebound_rows=rebound,
            server_before=server.step.schema if server and server.replaced else "",
            conversion=conversion,
            database_check=checked if database else "",
            warnings=(
                *warnings,
                *(conversion.warnings if conversion else ()),
                *_damage_warnings(database),
                *_later_warnings(choice, unused, options, access, plan),
            ),
        )


def _require_still_empty(root: Path, staging: str) -> None:
    """Check again, as a process may have created a home since; for --if-empty."""
    if root.is_dir() and not has_only_directories(root, (staging,)):
        raise TargetBusyError(
            f"{root}: not empty any more",
            hint=f"ls -la {shell_word(root)}  # is Sagewai running?",
        )


def _count_access(
    staged: Home, database: DatabaseFacts | None, server: "ServerRestore | None"
) -> AccessCounts:
    documents = read_documents(staged)
    files = count_access(documents, staged.database if database else None)
    if server is None:
        return files
    rows = server.count_access()
    return AccessCounts(
        files.sessions + rows.sessions,
        files.api_tokens + rows.api_tokens,
        files.fleet_rows + rows.fleet_rows,
    )


def _open_server(
    stack: contextlib.ExitStack, plan: RestorePlan, options: RestoreOptions, moment: str
) -> "ServerRestore | None":
    """Open the transaction on the server that the database of the snapshot is restored to."""
    if plan.server is None or options.server is None:
        return None
    from sagewai_ops.restore.server import open_server_restore

    opened = open_server_restore(options.server, replaced_schema(moment), replace=options.replace)
    session = stack.enter_context(opened)
    session.expect(plan.server, is_authentic=plan.is_authentic)
    return session


def _record_server(home: Home, options: RestoreOptions) -> Iterator[str]:
    """Record in a restored home where its database is; yield a warning if that is refused."""
    assert options.server
    try:
        write_server_record(home, record_of(options.server, options.key_environment))
    except OpsError as error:
        yield f"{home.root / PLACE}: not written, {error.message}"


def _extract(
    reader: ArchiveReader,
    directory: Path,
    root: Path,
    options: RestoreOptions,
    paths: MemberPaths,
    progress: Progress | None,
    server: "ServerRestore | None",
    recorded: DatabaseFacts | None,
) -> tuple[Extraction, DatabaseFacts | None]:
    """Extract the requested members; examine the database while the others are written.

    Args:
        recorded: The result of its check if that need not be repeated: its hash is compared.
    """
    parts = parse_parts(options)
    written: list[str] = []
    started: list[Future[DatabaseFacts]] = []

    with examination_thread() as examine:

        def start_examination(path: str) -> None:
            if path == DATABASE:
                written.append(path)
                if recorded is None:
                    started.append(examine(directory / path, "full"))

        with translate_os_errors(root):
            extracted = extract_members(
                reader,
                directory,
                lambda entry: target_path(entry, paths, parts),
                root=root,
                on_bytes=byte_counter(progress, "restore", reader.content_bytes),
                on_file=start_examination,
                on_skipped=server.add if server else None,
                same_owner=options.same_owner,
            )
        # Sync during the examination; `swap` syncs the rest.
        with translate_os_errors(directory):
            atomic.sync_tree(directory)
        if not started:
            return extracted, recorded if written else None
        report = started[0].result()
        _require_recorded_rows(report, reader)
        _reset_database_directory_time(reader, directory)
    return extracted, report


def _reset_database_directory_time(reader: ArchiveReader, directory: Path) -> None:
    """Set the mtime of the database's directory again: SQLite created and removed files in it."""
    name = DATABASE.rpartition("/")[0]
    for entry in reader.manifest.entries:
        if entry.path == name:
            beneath.set_times(directory / name, entry.mtime_ns)


def _require_recorded_rows(report: DatabaseFacts, reader: ArchiveReader) -> None:
    """Check that the restored database has the rows that the manifest records."""
    recorded = reader.manifest.facts.get("database")
    differences = report.differences(recorded) if recorded else []
    if differences:
        raise DamagedError(
            f"snapshot {reader.header.id}: database differs from its manifest: "
            + ", ".join(differences[:5]),
            hint="use another snapshot: sagewai-ops snapshots list",
        )


def _set_root_attributes(
    content: Path, target: Path, reader: ArchiveReader, *, same_owner: bool
) -> None:
    """Set mode, owner and mtime of the home's root: the target's, else the snapshot's."""
    facts = reader.manifest.facts.get("home", {})
    uid = gid = -1
    if same_owner:
        uid, gid = (min(facts.get(name, -1), _MOST_ID) for name in ("uid", "gid"))
    mode = 0o700
    with contextlib.suppress(ValueError):
        mode = int(facts.get("mode", "0700"), 8) & 0o7777
    with contextlib.suppress(FileNotFoundError):
        status = os.stat(target)
        mode, uid, gid = status.st_mode, status.st_uid, status.st_gid
    with translate_os_errors(content):
        set_owner(content, uid, gid)
        beneath.set_mode(content, directory_mode("", mode))
        with contextlib.suppress(OverflowError):
            if "mtime_ns" in facts:
                beneath.set_times(content, facts["mtime_ns"])


def _damage_warnings(database: DatabaseFacts | None) -> Iterator[str]:
    if database and database.integrity:
        yield (
            f"the restored database is damaged, as in the snapshot: {database.integrity[0]:.200};"
            " an older snapshot may be good: sagewai-ops snapshots list"
        )


def _later_warnings(
    choice: KeyChoice,
    unused: Sequence[Candidate],
    options: RestoreOptions,
    access: AccessCounts,
    plan: RestorePlan,
) -> Iterator[str]:
    unopened = len(choice.keys.unopened)
    if options.without_key and unopened:
        yield (
            f"{unopened} encrypted values open with no key: write theirs "
            f"({plan.key_fingerprint or 'fingerprint unknown'}) to {plan.target / MASTER_KEY} "
            "with mode 0600 before Sagewai starts, or it creates a new one"
        )
    elif unopened:
        yield f"{unopened} encrypted values open with no key, as when the snapshot was created"
    for key in unused:
        yield (
            f"{key.path}: key {key.fingerprint} opens nothing in the snapshot, kept with the "
            "previous home"
        )
    broken = rejected_key(key for key in choice.candidates if not key.is_file)
    if broken:
        path = plan.target / MASTER_KEY
        yield f"{broken.source}: {broken.problem}; Sagewai would replace {path} with a new key"
    if access.fleet_rows and not options.rebind_fleet and plan.origin != str(plan.target):
        yield (
            f"{access.fleet_rows} fleet rows belong to an organisation id that is derived from the "
            f"path of the original home: Sagewai will not show them at {plan.target}; "
            "to assign them to it: restore with --rebind-fleet"
        )
