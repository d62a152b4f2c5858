"""Read the state of a home, which Sagewai may be using, without writing to it."""

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path

from sagewai_ops.database.sqlite.in_use import find_users
from sagewai_ops.database.sqlite.integrity import count_rows
from sagewai_ops.database.sqlite.moment import open_moment
from sagewai_ops.database.sqlite.read_transaction import sidecar, size_of
from sagewai_ops.database.sqlite.schema_objects import find_unexpected
from sagewai_ops.database.sqlite.version_notes import version_note
from sagewai_ops.errors import OpsError
from sagewai_ops.export.workdir import directory_of
from sagewai_ops.fs.free_space import free_bytes
from sagewai_ops.home.paths import PARTS, Home, Layout, layout_of, require
from sagewai_ops.home.server_record import PLACE, read_server_record
from sagewai_ops.home.state_files import Document, document_name, parse_document, read_documents
from sagewai_ops.keys.candidates import Candidate, KeyState, describe_keys, find_candidates
from sagewai_ops.keys.inventory import read_inventory
from sagewai_ops.keys.trial_decryption import SealedReport, open_all
from sagewai_ops.process.procfs import Process
from sagewai_ops.records import dataclass
from sagewai_ops.remote.path import is_remote
from sagewai_ops.schema import sqlite_head
from sagewai_ops.schema.postgres_status import ServerStatus, read_server_status
from sagewai_ops.schema.sqlite_revision import State, read_level
from sagewai_ops.snapshots.catalog import Snapshot, describe_skipped, list_snapshots
from sagewai_ops.snapshots.mark import Copy, Mark, read_copies
from sagewai_ops.snapshots.results import SnapshotSummary, summarize_snapshot
from sagewai_ops.snapshots.trust import confirm, ids_at_place, trust_of
from sagewai_ops.swap.pending import (
    EXPORT,
    KEY_ROTATION,
    LAYOUT_MIGRATION,
    RESTORE,
    pending_operations,
)
from sagewai_ops.swap.swap import kept_before
from sagewai_ops.swap.unfinished_export import read_state
from sagewai_ops.text import printable, shell_word

_SHOWN_DOUBTS = 5
_WAIT_SECONDS = 5.0  # for a process that has the database locked; Sagewai waits as long


@dataclass(frozen=True, slots=True)
class DatabaseStatus:
    """The home's database, from one read transaction.

    Attributes:
        size_bytes: Of the main file; most of the data may be in the WAL.
        tables: Number of rows of each table.
        problem: Why it could not be read; "" if it could.
        journal_mode: `wal`, or the rollback mode in use; "" if it could not be read.
        unexpected: Triggers, and views or virtual tables in the place of tables.
    """

    path: Path
    size_bytes: int
    wal_bytes: int
    schema_level: str | None = None
    schema_state: State | None = None
    unknown_tables: tuple[str, ...] = ()
    tables: Mapping[str, int] = field(default_factory=dict)
    problem: str = ""
    journal_mode: str = ""
    unexpected: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DocumentStatus:
    """A document: its version, its records by kind, and what is wrong with it."""

    version: int | None
    counts: Mapping[str, int]
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SnapshotsStatus:
    """The snapshots of the home.

    Attributes:
        good: The newest of them that is complete, sound and plausible: `latest`.
        proved: The newest of them that a drill restored successfully.
        copies: In other places, as recorded in the home; the places are not asked.
    """

    folder: Path
    count: int
    newest: SnapshotSummary | None
    good: SnapshotSummary | None
    proved: SnapshotSummary | None
    copies: tuple[Copy, ...]


@dataclass(frozen=True, slots=True)
class Status:
    """A home at one moment.

    Attributes:
        files: Number of its files.
        sizes: Bytes below each part of the home.
        server: The database on a server that Sagewai uses; None for a home on SQLite.
        unused_tables: Those of the home's SQLite file that Sagewai no longer uses, with their rows.
        free_bytes: On its file system.
        overrides: Variable -> path outside the home that it names.
        notes: Facts that need no action.
        documents: By path in the home.
        key_source: Of the key that Sagewai would use; "" if it would create a new one.
        sealed: Number of encrypted values, of which `opened` open with a key; 0 if unreadable.
        before_restore: Previous homes that restores kept.
    """

    home: Path
    layout: Layout
    files: int
    sizes: Mapping[str, int]
    free_bytes: int
    overrides: Mapping[str, Path]
    database: DatabaseStatus | None
    server: ServerStatus | None
    unused_tables: Mapping[str, int]
    sqlite_version: str
    notes: tuple[str, ...]
    documents: Mapping[str, DocumentStatus]
    keys: tuple[KeyState, ...]
    key_source: str
    key_fingerprint: str
    sealed: int
    opened: int
    used_by: tuple[Process, ...]
    snapshots: SnapshotsStatus
    before_restore: tuple[Path, ...]
    interrupted_restore: bool
    interrupted_export: bool
    interrupted_rotation: bool
    interrupted_layout_migration: bool
    warnings: tuple[str, ...]


def read_status(home: Home, directory: Path, environment: Mapping[str, str]) -> Status:
    """Return the state of a home and its snapshots.

    Args:
        directory: Of the snapshots; need not exist.
        environment: May contain a master key.

    Raises:
        NotFoundError: No such home.
    """
    require(home)
    # Before this process opens the database: its own locks would hide those of others.
    users = find_users(home.database, root=home.root)
    sizes = dict.fromkeys((*PARTS, "other"), 0)
    files = 0
    for part, size_bytes in walk_sizes(home.root):
        sizes[part if part in sizes else "other"] += size_bytes
        files += 1
    trust = trust_of(home, directory, environment)
    listed, unlisted = _listed(directory)
    ids = ids_at_place(home, listed, trust)
    known = confirm(directory, listed, trust)
    claimed = [
        item for item in known if (not item.home_id or item.home_id in ids) and not item.is_foreign
    ]
    own = [item for item in claimed if not item.doubt]
    newest = own[-1] if own else None
    good = next((item for item in reversed(own) if item.is_good), None)
    proved = next((item for item in reversed(own) if item.proved_at), None)
    candidates = find_candidates(home, environment)
    keys = describe_keys(candidates)
    database = _database(home)
    server = read_server_status(home, environment)
    unused = _unused_tables(database) if server else {}
    documents = {
        path: parse_document(document_name(path), content)
        for path, content in read_documents(home).items()
    }
    is_unread = any(part and part.problem for part in (database, server))
    sealed = SealedReport() if is_unread else _try_keys(home, environment, candidates)
    pending = [item.operation for item in pending_operations(home.root)]
    return Status(
        home=home.root,
        layout=layout_of(home.root),
        files=files,
        sizes=sizes,
        free_bytes=free_bytes(home.root),
        overrides=home.overrides,
        database=database,
        server=server,
        unused_tables=unused,
        sqlite_version=sqlite3.sqlite_version,
        notes=tuple(_notes(home, database, server)),
        documents={
            path: DocumentStatus(document.version, document.counts, document.problems)
            for path, document in documents.items()
        },
        keys=keys.keys,
        key_source=keys.key_source,
        key_fingerprint=keys.key_fingerprint,
        sealed=sealed.total,
        opened=sealed.opened,
        used_by=tuple(_in_seconds(user) for user in users),
        snapshots=SnapshotsStatus(
            folder=directory,
            count=len(own),
            newest=summarize_snapshot(newest) if newest else None,
            good=summarize_snapshot(good) if good else None,
            proved=summarize_snapshot(proved) if proved else None,
            copies=tuple(read_copies(home)),
        ),
        before_restore=tuple(kept_before(home.root)),
        interrupted_restore=RESTORE.name in pending,
        interrupted_export=EXPORT.name in pending,
        interrupted_rotation=KEY_ROTATION.name in pending,
        interrupted_layout_migration=LAYOUT_MIGRATION.name in pending,
        warnings=(
            *_warn_of_keys(candidates),
            *_warn_of_sealed(sealed),
            *((database.problem,) if database and database.problem else ()),
            *((f"database not checked: {server.problem}",) if server and server.problem else ()),
            *(database.unexpected if database else ()),
            *_warn_of_documents(documents),
            *(f"{path}: not readable, not shown" for path in _find_unreadable(home)),
            *unlisted,
            *_warn_of_size(newest),
            *_warn_of_omission(newest),
            *describe_skipped(own[own.index(good) + 1 if good else 0 :][-_SHOWN_DOUBTS:]),
            *(() if unlisted else _warn_of_origin(known, newest, directory, trust.mark)),
            *_warn_of_export(home),
            *(
                f"{operation} pending, interrupted before its end: sagewai-ops recover"
                for operation in pending
            ),
        ),
    )


def _warn_of_export(home: Home) -> Iterator[str]:
    """Yield a line about an unfinished resumable export; one with --work-dir is not found."""
    directory = directory_of(home, None)
    try:
        state = read_state(directory)
    except OpsError as error:
        yield f"{directory}: the copy of an unfinished export, not readable: {error.message}"
        return
    if state:
        yield (
            f"export to {printable(state.target)}: unfinished since {printable(state.started_at)};"
            " sagewai-ops export-to-postgres URL --resumable, or --abandon"
        )


def _listed(directory: Path) -> tuple[list[Snapshot], tuple[str, ...]]:
    """Return the snapshots of a directory, and why those of a remote place are unknown."""
    try:
        return list_snapshots(directory), ()
    except OpsError as error:
        if not is_remote(directory):
            raise
        return [], (f"snapshots not listed: {error.message}",)


def _in_seconds(process: Process) -> Process:
    started_at = process.started_at
    return replace(process, started_at=started_at and started_at.replace(microsecond=0))


def _unused_tables(database: DatabaseStatus | None) -> dict[str, int]:
    """Return the tables with rows that moved to a server; those of learnings did not."""
    tables = database.tables if database else {}
    moved = sqlite_head.tables()
    return {name: rows for name, rows in tables.items() if rows and name in moved}


def _notes(
    home: Home, database: DatabaseStatus | None, server: ServerStatus | None
) -> Iterator[str]:
    if home.server_url_variable:
        yield (
            f"{home.server_url_variable}: Sagewai's tables are on that server, not in this database"
        )
    with contextlib.suppress(OpsError):  # a warning already
        record = read_server_record(home.root)
        if record and server is None:
            yield (
                f"{PLACE}: names {record.display}, but the variables name a SQLite file;"
                f" if that is right: rm {shell_word(home.root / PLACE)}"
            )
    note = database and version_note(sqlite3.sqlite_version_info[:3], database.journal_mode)
    if note:
        yield note


def _warn_of_keys(candidates: Iterable[Candidate]) -> Iterator[str]:
    for item in candidates:
        if item.problem:
            yield f"{item.path or item.source}: {item.problem}; Sagewai would create a new key"


def _try_keys(
    home: Home, environment: Mapping[str, str], candidates: Sequence[Candidate]
) -> SealedReport:
    """Try the keys, if everything is readable; what is not is a warning already."""
    if any(_find_unreadable(home)):
        return SealedReport()
    try:
        inventory = read_inventory(home, environment, only_sealed=True)
    except OpsError:
        return SealedReport()
    return open_all(inventory.values, candidates)


def _warn_of_sealed(report: SealedReport) -> Iterator[str]:
    if report.closed:
        yield (
            f"{len(report.closed)} of {report.total} encrypted values: no key opens them;"
            " sagewai-ops keys check --extra-key FILE tries another key"
        )


def _warn_of_documents(documents: Mapping[str, Document]) -> Iterator[str]:
    for path, document in documents.items():
        for problem in document.problems:
            yield f"{path}: {problem}"


def _warn_of_size(newest: Snapshot | None) -> Iterator[str]:
    if newest and newest.is_truncated:
        yield (
            f"{newest.path}: size differs from the recorded one: "
            f"sagewai-ops snapshots verify {newest.id}"
        )


def _warn_of_omission(newest: Snapshot | None) -> Iterator[str]:
    if newest and newest.card.get("without_database"):
        yield (
            f"snapshot {newest.id}: the newest, without the database of the server: "
            "sagewai-ops backup"
        )


def _warn_of_origin(
    known: Iterable[Snapshot], newest: Snapshot | None, directory: Path, mark: Mark | None
) -> Iterator[str]:
    """Yield what another user, or a writer of the directory without the key, may have done."""
    doubtful = [item for item in known if item.doubt]
    for item in doubtful[:_SHOWN_DOUBTS]:
        yield f"{item.path}: not counted, {item.doubt}"
    if len(doubtful) > _SHOWN_DOUBTS:
        yield f"{len(doubtful) - _SHOWN_DOUBTS} more snapshots: not counted"
    sequence = newest.sequence if newest else 0
    if mark and sequence < mark.sequence:
        yield (
            f"{directory}: snapshot {mark.id} with sequence {mark.sequence} was created there and "
            f"is missing, the newest is {sequence or 'none'}: removed, or the directory rolled back"
        )


def _find_unreadable(home: Home) -> Iterator[Path]:
    """Yield the documents and directories that this user cannot read."""
    for part in (home.root / name for name in PARTS):
        if part.is_dir() and not os.access(part, os.R_OK | os.X_OK):
            yield part
    for path in (home.admin_state, home.connections, home.profiles):
        if os.access(path.parent, os.X_OK) and path.exists() and not os.access(path, os.R_OK):
            yield path


def _database(home: Home) -> DatabaseStatus | None:
    if not os.path.lexists(home.database):
        return None
    size_bytes = size_of(home.database)
    wal_bytes = size_of(sidecar(home.database, "-wal"))
    try:
        with open_moment(home.database, wait_seconds=_WAIT_SECONDS) as pin:
            level, counts = read_level(pin.connection), count_rows(pin.connection)
            unexpected = find_unexpected(pin.connection, sqlite_head.tables())
            journal_mode = pin.journal_mode
    except OpsError as error:
        return DatabaseStatus(home.database, size_bytes, wal_bytes, problem=error.message)
    return DatabaseStatus(
        path=home.database,
        size_bytes=size_bytes,
        wal_bytes=wal_bytes,
        schema_level=level.revision,
        schema_state=level.state,
        unknown_tables=level.unknown_tables,
        tables=counts,
        journal_mode=journal_mode,
        unexpected=tuple(map(str, unexpected)),
    )


def walk_sizes(root: Path) -> Iterator[tuple[str, int]]:
    """Yield the top-level name and size of each file below a directory; links are not followed."""
    # Not os.walk, which calls itself for each level on older Pythons: directories nest deeper.
    directories = [("other", os.fspath(root))]
    while directories:
        top, directory = directories.pop()
        with contextlib.suppress(OSError), os.scandir(directory) as scan:
            for entry in scan:
                if entry.is_dir(follow_symlinks=False):
                    name = entry.name if len(directory) == len(os.fspath(root)) else top
                    directories.append((name, entry.path))
                    continue
                with contextlib.suppress(OSError):
                    yield top, entry.stat(follow_symlinks=False).st_size
