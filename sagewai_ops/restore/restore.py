"""Bring a home back from a snapshot: prove first, swap last.

The archive is proved while it is extracted beside the target; then the gates (nobody uses the
target, the schema is known, the key opens the sealed values); only then do names change. Until
then the target is untouched, and afterwards what was there is kept.
"""

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from sagewai_ops.archive.manifest import Entry
from sagewai_ops.archive.open import open_archive
from sagewai_ops.archive.reader import ArchiveReader
from sagewai_ops.database.sqlite.in_use import require_unused
from sagewai_ops.errors import DamagedError
from sagewai_ops.fs import atomic, locks
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.fs.ownership import set_owner
from sagewai_ops.home.paths import DATABASE, MASTER_KEY, Home, locate
from sagewai_ops.home.state_files import read_together
from sagewai_ops.keys.candidates import Candidate, replaced
from sagewai_ops.keys.trial_decryption import SealedReport
from sagewai_ops.permissions.modes import directory_mode
from sagewai_ops.progress import Progress
from sagewai_ops.restore.access import AccessCounts, count_access
from sagewai_ops.restore.amend import rebind_fleet, revoke_access
from sagewai_ops.restore.extractor import Extraction, extract_members
from sagewai_ops.restore.key_check import KeyChoice, check_key, install_keys, unused_keys
from sagewai_ops.restore.plan import (
    RestoreOptions,
    RestorePlan,
    as_int,
    as_mapping,
    build_plan,
    parse_parts,
    target_path,
)
from sagewai_ops.snapshots.database_check import DatabaseReport, examine_database
from sagewai_ops.snapshots.member_paths import MemberPaths
from sagewai_ops.swap import swap

_MOST_ID = 2**32 - 2  # of users and groups; one more means none


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """A restore that was done.

    Attributes:
        before: Where what was there is kept; None if there was nothing.
        key_source: Where the key that opens the sealed values stands; "" if there is none.
        key_installed: Whether it was put into the restored home.
    """

    plan: RestorePlan
    extracted: Extraction
    previous: Path | None
    key_source: str
    key_installed: bool
    keys: SealedReport
    database: DatabaseReport | None
    access: AccessCounts
    rebound_rows: int
    warnings: tuple[str, ...]


def restore(
    archive: Path, target: Home, options: RestoreOptions, *, progress: Progress | None = None
) -> RestoreReport:
    """Bring a home back.

    Args:
        archive: A snapshot file.
        target: Where to; need not exist.
        progress: Told `restore` in bytes.

    Raises:
        NotFoundError, DamagedError, SchemaAheadError: About the snapshot; nothing was touched.
        KeyMissingError: Nothing opens the archive, or the sealed values in it.
        TargetBusyError: The target is not empty, or a process uses its database.
        NoSpaceError, PermissionDeniedError: The system refused; the target is as it was.
        LockedError: Another run holds the target, or one was interrupted.
    """
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(open_archive(archive, options.decryption))
        if target.root.is_dir():
            stack.enter_context(locks.exclusive(target.root, wait_seconds=options.wait_seconds))
        swap.require_settled(target.root)
        swap.sweep(target.root)
        places = MemberPaths(reader.manifest)
        plan = build_plan(reader, archive, target, options, places)
        stage = stack.enter_context(swap.staged(target.root, plan.paths))
        content, database = _fill(reader, stage.content, target.root, options, places, progress)
        staged_home = locate(stage.content, {})
        documents = read_together(staged_home)
        opening = check_key(reader, documents, target, staged_home, options)
        if stage.paths is None:
            _settle_root(stage.content, target.root, reader)
        installed = install_keys(opening, reader, target, staged_home, options)
        left = unused_keys(target, staged_home, options)
        if options.revoke_sessions:
            revoke_access(documents, staged_home)
        rebound = 0
        if options.rebind_fleet:
            # With --only, the administrator's id may stand in what is not replaced.
            known = {**read_together(target), **documents}
            rebound = rebind_fleet(known, staged_home, target)
        access = count_access(
            read_together(staged_home), staged_home.database if database else None
        )
        require_unused(target.root, target.root / DATABASE)
        swap.swap(stage)
        return RestoreReport(
            plan=plan,
            extracted=content,
            previous=stage.before,
            key_source=opening.key.source if opening.key else "",
            key_installed=installed,
            keys=opening.keys,
            database=database,
            access=access,
            rebound_rows=rebound,
            warnings=(*plan.warnings, *_later_warnings(opening, left, options, access, plan)),
        )


def _fill(
    reader: ArchiveReader,
    directory: Path,
    root: Path,
    options: RestoreOptions,
    places: MemberPaths,
    progress: Progress | None,
) -> tuple[Extraction, DatabaseReport | None]:
    """Extract everything; the database is examined while the rest is still being written."""
    parts = parse_parts(options)
    done = 0
    is_over = threading.Event()

    def count(size_bytes: int) -> None:
        nonlocal done
        done += size_bytes
        if progress:
            progress("restore", done, reader.content_bytes)

    def place(entry: Entry) -> str | None:
        return target_path(entry, places, parts)

    def go_on(_stage: str, _done: int, _total: int) -> None:
        if is_over.is_set():
            raise InterruptedError

    started: list[Future[DatabaseReport]] = []
    with ThreadPoolExecutor(1, thread_name_prefix="examine") as pool:

        def examine(path: str) -> None:
            if path == DATABASE:
                started.append(pool.submit(examine_database, directory / path, go_on))

        try:
            with translate_os_errors(root):
                extracted = extract_members(
                    reader, directory, place, root=root, on_bytes=count, on_file=examine
                )
            # The disk takes what is pending while the database is examined; `swap` syncs the rest.
            with translate_os_errors(directory):
                atomic.sync_tree(directory)
            proof = None
            if started:
                proof = _compared(started[0].result(), reader)
                _date_database_directory(reader, directory)
        except BaseException:
            is_over.set()  # the examination of a large database takes minutes
            raise
    return extracted, proof


def _date_database_directory(reader: ArchiveReader, directory: Path) -> None:
    """Give the database's directory its time again: SQLite made and removed files in it."""
    name = DATABASE.rpartition("/")[0]
    for entry in reader.manifest.entries:
        if entry.path == name:
            os.utime(directory / name, ns=(entry.mtime_ns, entry.mtime_ns))


def _compared(proof: DatabaseReport, reader: ArchiveReader) -> DatabaseReport:
    """Compare what the restored database holds with what the manifest says of it."""
    recorded = as_mapping(reader.manifest.facts.get("database"))
    differing = proof.differences(recorded) if recorded else []
    if differing:
        raise DamagedError(
            f"snapshot {reader.header.id}: its database is not what its manifest says: "
            + ", ".join(differing[:5]),
            hint="use another snapshot: sagewai-ops snapshots list",
        )
    return proof


def _settle_root(content: Path, target: Path, reader: ArchiveReader) -> None:
    """Give the home's own directory its mode, owner and time: the target's, else the snapshot's."""
    facts = as_mapping(reader.manifest.facts.get("home"))
    uid, gid = (min(as_int(facts.get(name), -1), _MOST_ID) for name in ("uid", "gid"))
    mode = 0o700
    with contextlib.suppress(ValueError):
        mode = int(str(facts.get("mode", "0700")), 8) & 0o7777
    with contextlib.suppress(FileNotFoundError):
        status = os.stat(target)
        mode, uid, gid = status.st_mode, status.st_uid, status.st_gid
    with translate_os_errors(content):
        set_owner(content, max(uid, -1), max(gid, -1))
        os.chmod(content, directory_mode("", mode))
        with contextlib.suppress(OverflowError):
            if "mtime_ns" in facts:
                os.utime(content, ns=(as_int(facts["mtime_ns"], 0),) * 2)


def _later_warnings(
    opening: KeyChoice,
    left: Sequence[Candidate],
    options: RestoreOptions,
    access: AccessCounts,
    plan: RestorePlan,
) -> Iterator[str]:
    keys = opening.keys
    if options.without_key and keys.unopened:
        yield (
            f"{len(keys.unopened)} sealed values open with no key: put theirs "
            f"({plan.key_fingerprint or 'fingerprint unknown'}) into {plan.target / MASTER_KEY} "
            "with mode 0600 before Sagewai starts, or it makes a new one"
        )
    elif keys.unopened:
        yield (
            f"{len(keys.unopened)} sealed values open with no key, as when the snapshot was taken"
        )
    for one in left:
        yield f"{one.path}: key {one.fingerprint} opens nothing here, it is kept with the old home"
    first = replaced(one for one in opening.candidates if not one.is_file)
    if first:
        place = plan.target / MASTER_KEY
        yield f"{first.source}: {first.problem}; Sagewai would write a new key over {place}"
    if access.fleet_rows and not options.rebind_fleet and plan.origin != str(plan.target):
        yield (
            f"{access.fleet_rows} fleet rows belong to an organisation id that is made from the "
            f"path of the old home: Sagewai will not show them at {plan.target}"
        )
