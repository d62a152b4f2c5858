"""Bring a home back from a snapshot: prove first, swap last.

The archive is proved while it is extracted beside the target; then the gates (nobody uses the
target, the schema is known, the key opens the sealed values); only then do names change. Until
then the target is untouched, and afterwards what was there is kept.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sagewai_ops import atomic, locks
from sagewai_ops.archive.envelope import Unlock
from sagewai_ops.archive.manifest import Entry, EntryType
from sagewai_ops.archive.reader import ArchiveReader, open_archive
from sagewai_ops.errors import (
    DamagedError,
    KeyMissingError,
    NoSpaceError,
    NotFoundError,
    SchemaAheadError,
    TargetBusyError,
    UsageError,
)
from sagewai_ops.home.documents import read_together
from sagewai_ops.home.paths import (
    DATABASE,
    LEGACY_MASTER_KEY,
    MASTER_KEY,
    SIDECAR_SUFFIXES,
    Home,
    locate,
)
from sagewai_ops.home.permissions import folder_mode
from sagewai_ops.keys.candidates import Candidate, find_candidates
from sagewai_ops.keys.sealed import SealedReport, examine_keys
from sagewai_ops.progress import Progress
from sagewai_ops.schema.level import revisions
from sagewai_ops.snapshots import swap
from sagewai_ops.snapshots.access import Access, count_access
from sagewai_ops.snapshots.extract import Extracted, extract
from sagewai_ops.snapshots.gates import refuse_holders
from sagewai_ops.snapshots.places import Places
from sagewai_ops.snapshots.proof import DatabaseProof, prove_database


@dataclass(frozen=True, slots=True)
class RestoreOptions:
    """What a restore is asked to do.

    Attributes:
        replace: Put aside what the target holds.
        only: Parts of the home or paths in it; empty for all of it.
        key_file: A master key to use, which becomes the restored home's own.
        without_key: Restore even if nothing opens the sealed values.
        key_home: Another home whose key may be used, such as the one the snapshot is of.
    """

    unlock: Unlock | None = None
    replace: bool = False
    only: tuple[str, ...] = ()
    key_file: Path | None = None
    without_key: bool = False
    wait_seconds: float = 0.0
    key_home: Home | None = None
    key_environment: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """What a restore would do; `restore` makes the same and then does it.

    Attributes:
        target: The home that comes to be.
        state: Of the target: `absent`, `empty` or `in use by files`.
        paths: What is exchanged in it; None for the whole.
        sealed: How many sealed values the snapshot holds.
        origin: The path of the home that it was taken of.
    """

    snapshot_id: str
    archive: Path
    target: Path
    state: str
    paths: tuple[str, ...] | None
    files: int
    size_bytes: int
    schema_level: str
    key_custody: str
    key_fingerprint: str
    sealed: int
    origin: str
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """A restore that was done.

    Attributes:
        before: Where what was there is kept; None if there was nothing.
        key_source: Where the key that opens the sealed values stands; "" if there is none.
        key_installed: Whether it was put into the restored home.
    """

    plan: RestorePlan
    extracted: Extracted
    before: Path | None
    key_source: str
    key_installed: bool
    keys: SealedReport
    database: DatabaseProof | None
    access: Access
    warnings: tuple[str, ...]


def plan_restore(archive: Path, target: Home, options: RestoreOptions) -> RestorePlan:
    """Read the manifest and look at the target; nothing is written.

    Raises:
        As `restore`, for everything that is known before the archive is extracted.
    """
    with open_archive(archive, options.unlock) as reader:
        return _plan(reader, archive, target, options, Places(reader.manifest))


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
        LockedError: Another run holds the target.
    """
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(open_archive(archive, options.unlock))
        swap.require_settled(target.root)
        if target.root.is_dir():
            stack.enter_context(locks.exclusive(target.root, wait_seconds=options.wait_seconds))
        swap.sweep(target.root)
        places = Places(reader.manifest)
        plan = _plan(reader, archive, target, options, places)
        _check_space(target.root, plan.size_bytes)
        stage = stack.enter_context(swap.staged(target.root, plan.paths))
        content, proving = _fill(reader, stage.content, options, places, progress)
        staged_home = locate(stage.content, {})
        database = _database(proving, reader)
        documents = read_together(staged_home)
        key, keys = _open_gate(reader, documents, target, staged_home, options)
        installed = _install_key(key, staged_home, options)
        if plan.paths is None or stage.paths is None:
            _settle_root(stage.content, target.root, reader)
        access = count_access(documents, staged_home.database if database else None)
        refuse_holders(target)
        swap.swap(stage)
        return RestoreReport(
            plan=plan,
            extracted=content,
            before=stage.before,
            key_source=key.source if key else "",
            key_installed=installed,
            keys=keys,
            database=database,
            access=access,
            warnings=(*plan.warnings, *_later_warnings(keys, key, options, access, plan)),
        )


def _plan(
    reader: ArchiveReader, archive: Path, target: Home, options: RestoreOptions, places: Places
) -> RestorePlan:
    facts, header = reader.manifest.facts, reader.header
    _refuse_schema(header.facts)
    wanted = [entry for entry in reader.manifest.entries if _wanted(entry, places, options)]
    if options.only and not wanted:
        raise NotFoundError(
            f"snapshot {header.id}: nothing in it is {', '.join(options.only)}",
            hint=f"sagewai-ops snapshots show {header.id} --files",
        )
    if options.key_file and options.only and not _has_secrets(options.only):
        raise UsageError(
            "--key-file: a key is installed in secrets/, which is not restored",
            hint=f"add it: --only {','.join(options.only)},secrets",
        )
    state = _state(target.root)
    if state == "not empty" and not (options.replace or options.only):
        raise TargetBusyError(
            f"{target.root}: not empty",
            hint="put it aside and restore in its place: --replace\nor restore beside it: --to DIR",
        )
    refuse_holders(target)
    keys = facts.get("keys") or {}
    return RestorePlan(
        snapshot_id=header.id,
        archive=archive,
        target=target.root,
        state=state,
        paths=_exchanged(target.root, wanted, places, options),
        files=sum(entry.type is EntryType.FILE for entry in wanted),
        size_bytes=sum(entry.size_bytes for entry in wanted),
        schema_level=str(header.facts.get("schema_level", "")),
        key_custody=str(header.facts.get("key_custody", "")),
        key_fingerprint=str(header.facts.get("key_fingerprint", "")),
        sealed=int(keys.get("total", 0)),
        origin=str(header.facts.get("home", "")),
        warnings=tuple(places.warnings(target)),
    )


def _refuse_schema(header: Mapping[str, Any]) -> None:
    level = str(header.get("schema_level", ""))
    if level and level not in revisions():
        raise SchemaAheadError(
            f"snapshot: its database is at {level}, newer than this program",
            hint="install a newer sagewai-ops, or take files out: sagewai-ops snapshots extract",
        )


def _state(root: Path) -> str:
    if not os.path.lexists(root):
        return "absent"
    if not root.is_dir():
        raise TargetBusyError(f"{root}: not a folder", hint="restore elsewhere: --to DIR")
    return "not empty" if os.listdir(root) else "empty"


def _wanted(entry: Entry, places: Places, options: RestoreOptions) -> bool:
    path = places.of(entry)
    if path is None or entry.type is EntryType.SUPERSEDED:
        return False
    if not options.only:
        return True
    return any(path == part or path.startswith(part + "/") for part in _parts(options))


def _parts(options: RestoreOptions) -> tuple[str, ...]:
    return tuple(part.strip("/") for part in options.only)


def _has_secrets(only: tuple[str, ...]) -> bool:
    return any(part.strip("/").split("/", 1)[0] == "secrets" for part in only)


def _exchanged(
    root: Path, wanted: list[Entry], places: Places, options: RestoreOptions
) -> tuple[str, ...] | None:
    """List what is exchanged in the target: None for the whole of it."""
    if not root.is_dir():
        return None
    if not options.only:
        if swap.can_swap_whole(root):
            return None
        fresh = {(places.of(entry) or "").split("/", 1)[0] for entry in wanted}
        return tuple(sorted((fresh | {MASTER_KEY.split("/")[0]} | swap.entries_of(root)) - {""}))
    exchanged: dict[str, None] = {}
    for part in _parts(options):
        exchanged[_highest_missing(root, part)] = None
        if part == DATABASE:
            exchanged.update(dict.fromkeys(DATABASE + suffix for suffix in SIDECAR_SUFFIXES))
    # Of two, one inside the other, the outer one says it all.
    return tuple(
        path for path in exchanged if not any(path.startswith(other + "/") for other in exchanged)
    )


def _highest_missing(root: Path, part: str) -> str:
    path = ""
    for name in part.split("/"):
        path = f"{path}/{name}" if path else name
        if not os.path.lexists(root / path):
            break
    return path


def _check_space(target: Path, size_bytes: int) -> None:
    folder = target if target.is_dir() else target.parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < size_bytes:
        raise NoSpaceError(
            f"{folder}: {free} bytes free, the restore needs {size_bytes}",
            hint="free some space, or restore elsewhere: --to DIR",
        )


def _fill(
    reader: ArchiveReader,
    folder: Path,
    options: RestoreOptions,
    places: Places,
    progress: Progress | None,
) -> tuple[Extracted, "Future[DatabaseProof] | None"]:
    """Extract everything; the database is examined while the rest is still being written."""
    done = 0

    def count(size_bytes: int) -> None:
        nonlocal done
        done += size_bytes
        if progress:
            progress("restore", done, reader.content_bytes)

    def place(entry: Entry) -> str | None:
        return places.of(entry) if _wanted(entry, places, options) else None

    started: list[Future[DatabaseProof]] = []
    with ThreadPoolExecutor(1, thread_name_prefix="examine") as pool:

        def examine(path: str) -> None:
            if path == DATABASE:
                started.append(pool.submit(prove_database, folder / path))

        extracted = extract(reader, folder, place, on_bytes=count, on_file=examine)
    return extracted, started[0] if started else None


def _database(
    proving: "Future[DatabaseProof] | None", reader: ArchiveReader
) -> DatabaseProof | None:
    """Compare what the restored database holds with what the manifest says of it."""
    recorded = reader.manifest.facts.get("database")
    if proving is None:
        return None
    proof = proving.result()
    if recorded:
        differing = proof.differences(recorded)
        if differing:
            raise DamagedError(
                f"snapshot {reader.header.id}: its database is not what its manifest says: "
                + ", ".join(differing[:5]),
                hint="use another snapshot: sagewai-ops snapshots list",
            )
    return proof


def _open_gate(
    reader: ArchiveReader,
    documents: Mapping[str, bytes],
    target: Home,
    staged_home: Home,
    options: RestoreOptions,
) -> tuple[Candidate | None, SealedReport]:
    """Make sure that the sealed values will open.

    Raises:
        KeyMissingError: They will not, and `without_key` was not asked for.
    """
    candidates = _candidates(target, staged_home, options)
    database = staged_home.database if staged_home.database.exists() else None
    keys = examine_keys(documents, database, candidates)
    key = keys.best(candidates)
    recorded = reader.manifest.facts.get("keys") or {}
    # What no key opened when the snapshot was taken is no reason to refuse it.
    hopeless = {(item.get("place"), item.get("where")) for item in recorded.get("unopened", ())}
    closed = [item for item in keys.unopened if (item.place, item.where) not in hopeless]
    nothing_opens = bool(keys.total) and not keys.opened
    if (closed or nothing_opens) and not options.without_key:
        fingerprint = reader.header.facts.get("key_fingerprint") or "unknown"
        tried = ", ".join(f"{one.source} ({one.fingerprint})" for one in candidates if one.value)
        raise KeyMissingError(
            f"snapshot {reader.header.id}: {len(closed) or keys.total} of {keys.total} sealed "
            f"values open with no key at hand, theirs is {fingerprint}, tried {tried or 'none'}",
            hint="name the key: --key-file FILE\n"
            "or leave them sealed: --without-key  # Sagewai will make a new key at its start",
        )
    return key, keys


def _candidates(target: Home, staged_home: Home, options: RestoreOptions) -> tuple[Candidate, ...]:
    """Collect the keys that may open the values, the one that is asked for first."""
    environment = dict(options.key_environment)
    found = list(find_candidates(staged_home, {}, key_file=options.key_file))
    found += find_candidates(target, environment)
    if options.key_home and options.key_home.root != target.root:
        found += find_candidates(options.key_home, {})
    return tuple(found)


def _install_key(key: Candidate | None, staged_home: Home, options: RestoreOptions) -> bool:
    """Put the key into the restored home, if it comes from a file that will not be there."""
    if key is None or not key.is_file:
        return False
    if options.only and not _has_secrets(options.only):
        return False
    place = staged_home.master_key
    if place.exists() and place.read_bytes().strip() == key.value:
        return False
    legacy = staged_home.root / LEGACY_MASTER_KEY
    if not options.key_file and not place.exists() and legacy.exists():
        return False
    atomic.make_folder(place.parent)
    atomic.replace(place, key.value)
    return True


def _settle_root(content: Path, target: Path, reader: ArchiveReader) -> None:
    """Give the home's own folder its mode, owner and time."""
    facts = reader.manifest.facts.get("home") or {}
    mode = int(str(facts.get("mode", "0700")), 8)
    uid, gid = int(facts.get("uid", -1)), int(facts.get("gid", -1))
    with contextlib.suppress(FileNotFoundError):
        status = os.stat(target)
        mode, uid, gid = status.st_mode, status.st_uid, status.st_gid
    with atomic.naming(content):
        if os.geteuid() == 0:
            os.chown(content, uid, gid)
        os.chmod(content, folder_mode("", mode))
        if "mtime_ns" in facts:
            os.utime(content, ns=(int(facts["mtime_ns"]),) * 2)


def _later_warnings(
    keys: SealedReport,
    key: Candidate | None,
    options: RestoreOptions,
    access: Access,
    plan: RestorePlan,
) -> Iterator[str]:
    if options.without_key and keys.unopened:
        yield (
            f"{len(keys.unopened)} sealed values open with no key: put theirs "
            f"({plan.key_fingerprint or 'fingerprint unknown'}) into {plan.target / MASTER_KEY} "
            "with mode 0600 before Sagewai starts, or it makes a new one"
        )
    if key is not None and key.problem and not key.is_file:
        yield f"{key.source}: {key.problem}"
    if access.fleet_rows and plan.origin != str(plan.target):
        yield (
            f"{access.fleet_rows} fleet rows belong to an organisation id that is made from the "
            f"path of the old home: Sagewai will not show them at {plan.target}"
        )
