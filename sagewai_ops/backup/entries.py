"""The entries of a home as members of a snapshot: opened, described, put in order."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, BinaryIO

from sagewai_ops.archive.manifest import Entry, EntryType
from sagewai_ops.backup.scan_items import ScanItem, ScanItems
from sagewai_ops.backup.scanner import HomeScan
from sagewai_ops.database.sqlite.online_copy import DatabaseCopy
from sagewai_ops.fs import beneath
from sagewai_ops.home.paths import SIDECAR_SUFFIXES, Home
from sagewai_ops.snapshots.omissions import Omission, Reason


def open_source(item: ScanItem, copy: DatabaseCopy | None) -> BinaryIO | None:
    """Open a file, or the copy of a database; None for a directory or link.

    Raises:
        OSError: It is gone, or its type changed since the scan.
    """
    if item.type in ("folder", "link"):
        return None
    if copy:
        return open(beneath.open_file(copy.path), "rb", buffering=0)
    # The scan resolved followed links: a link here was created since.
    return open(beneath.open_file(item.source), "rb", buffering=0)


def describe_entry(
    path: str, kind: EntryType, status: os.stat_result, link: ScanItem | None = None
) -> Entry:
    """Return the entry of a file, directory or link, without its content."""
    return Entry(
        path=path,
        type=kind,
        mode=status.st_mode & 0o7777,
        mtime_ns=status.st_mtime_ns,
        uid=status.st_uid,
        gid=status.st_gid,
        target=link.target if link else "",
        is_absolute=link.is_absolute if link else False,
        is_outside=link.is_outside if link else False,
    )


def notes(home: Home, scan: HomeScan, *, without: bool) -> Iterator[str]:
    """Yield what a user should know of a snapshot, without any loss."""
    for path, target in scan.outside_links.items():
        if path not in scan.outside_files:  # which are a cause, with its own line
            yield f"{path}: stored as a link, {target} is not in the snapshot"
    for path, target in scan.followed.items():
        yield f"{path}: a link, {target} is included in its place"
    if without:
        yield "database: on a server, not in this snapshot (--without-database)"
    if "SAGEWAI_CACHE_DIR" in home.overrides:
        yield f"SAGEWAI_CACHE_DIR: {home.cache_dir} is not in the snapshot, Sagewai refills it"


def root_facts(home: Home) -> dict[str, Any]:
    """Return mode, owner and time of the home itself, for the manifest."""
    status = os.stat(home.root)
    return {
        "mode": f"{status.st_mode & 0o7777:04o}",
        "uid": status.st_uid,
        "gid": status.st_gid,
        "mtime_ns": status.st_mtime_ns,
    }


def database_first(items: ScanItems, copies: Mapping[str, DatabaseCopy]) -> Iterator[ScanItem]:
    """Yield the databases, with their parent directories, before everything else.

    A restore verifies the database while it writes the rest.
    """
    first = {
        path[:position] for path in copies for position, letter in enumerate(path) if letter == "/"
    }
    first.update(copies)
    yield from (item for item in items.not_plain() if item.path in first)
    yield from (item for item in items if item.path not in first)


def include_as_file(scan: HomeScan, item: ScanItem, reason: str) -> None:
    """Include the bytes of a file that only resembles a database, and report its sidecars.

    Args:
        reason: Why it could not be copied as one.
    """
    scan.items.replace(item, replace(item, type="file"))
    for suffix in SIDECAR_SUFFIXES:
        if os.path.lexists(item.source + suffix):
            scan.omissions[:] = [
                omission for omission in scan.omissions if omission.path != item.path + suffix
            ]
            scan.omissions.append(Omission(item.path + suffix, Reason.UNREADABLE, reason))
