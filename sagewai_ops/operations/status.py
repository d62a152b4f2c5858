"""Read the state of a home, which Sagewai may be using, without writing to it."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sagewai_ops.database.sqlite.in_use import find_users
from sagewai_ops.database.sqlite.integrity import count_rows
from sagewai_ops.database.sqlite.read_transaction import open_read_transaction, sidecar, size_of
from sagewai_ops.errors import OpsError
from sagewai_ops.fs.free_space import free_bytes
from sagewai_ops.home.paths import PARTS, Home, layout_of, require
from sagewai_ops.home.state_files import (
    Document,
    document_name,
    parse_document,
    read_documents,
)
from sagewai_ops.keys.candidates import Candidate, active_key, find_candidates
from sagewai_ops.process.procfs import Process
from sagewai_ops.schema.sqlite_revision import Level, read_level
from sagewai_ops.snapshots.catalog import Snapshot, list_snapshots
from sagewai_ops.snapshots.ownership import home_ids
from sagewai_ops.swap.pending import Pending, pending_operations
from sagewai_ops.swap.swap import kept_before

_WAIT_SECONDS = 5.0  # for a process that has the database locked; Sagewai waits as long


@dataclass(frozen=True, slots=True)
class DatabaseStatus:
    """The home's database, from one read transaction.

    Attributes:
        size_bytes: Of the main file; most of the data may be in the WAL.
        counts: Rows of each table.
        problem: Why it could not be read; "" if it could.
        journal_mode: `wal`, or the rollback mode in use; "" if it could not be read.
    """

    path: Path
    size_bytes: int
    wal_bytes: int
    level: Level | None
    counts: Mapping[str, int]
    problem: str = ""
    journal_mode: str = ""


@dataclass(frozen=True, slots=True)
class Status:
    """A home at one moment.

    Attributes:
        layout: `canonical`, `flat`, `mixed` or `empty`.
        sizes: Bytes below each part of the home.
        free_bytes: On its file system.
        documents: By path in the home.
        key: The key that Sagewai would use; None if it would create a new one.
        snapshots: Number of the home's snapshots.
        newest: Of the home's snapshots.
        proved: The newest of them that a drill restored successfully.
        kept: Previous homes that restores kept.
        pending: Interrupted operations to recover.
        unreadable: Documents and directories that this user cannot read.
    """

    home: Home
    layout: str
    sizes: Mapping[str, int]
    files: int
    free_bytes: int
    database: DatabaseStatus | None
    documents: Mapping[str, Document]
    candidates: tuple[Candidate, ...]
    key: Candidate | None
    users: tuple[Process, ...]
    directory: Path
    snapshots: int
    newest: Snapshot | None
    proved: Snapshot | None
    kept: tuple[Path, ...]
    pending: tuple[Pending, ...]
    unreadable: tuple[Path, ...]


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
    users = find_users(home.database)
    sizes = dict.fromkeys((*PARTS, "other"), 0)
    files = 0
    for part, size_bytes in walk_sizes(home.root):
        sizes[part if part in sizes else "other"] += size_bytes
        files += 1
    ids = set(home_ids(home))
    own = [item for item in list_snapshots(directory) if not item.home_id or item.home_id in ids]
    candidates = find_candidates(home, environment)
    return Status(
        home=home,
        layout=layout_of(home.root),
        sizes=sizes,
        files=files,
        free_bytes=free_bytes(home.root),
        database=_database(home),
        documents={
            path: parse_document(document_name(path), content)
            for path, content in read_documents(home).items()
        },
        candidates=candidates,
        key=active_key(candidates),
        users=users,
        directory=directory,
        snapshots=len(own),
        newest=own[-1] if own else None,
        proved=next((item for item in reversed(own) if item.proved_at), None),
        kept=tuple(kept_before(home.root)),
        pending=pending_operations(home.root),
        unreadable=tuple(_find_unreadable(home)),
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
        with open_read_transaction(home.database, wait_seconds=_WAIT_SECONDS) as pin:
            level, counts = read_level(pin.connection), count_rows(pin.connection)
            journal_mode = pin.journal_mode
    except OpsError as error:
        return DatabaseStatus(home.database, size_bytes, wal_bytes, None, {}, error.message)
    return DatabaseStatus(
        home.database, size_bytes, wal_bytes, level, counts, journal_mode=journal_mode
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
