"""The newest good snapshot of a home: what a new one is compared with."""

from pathlib import Path
from typing import Any

from sagewai_ops.archive.manifest import EntryType
from sagewai_ops.archive.open import open_archive
from sagewai_ops.archive.reader import ArchiveReader
from sagewai_ops.errors import OpsError
from sagewai_ops.home.paths import Home
from sagewai_ops.records import dataclass
from sagewai_ops.snapshots.catalog import Snapshot, list_snapshots
from sagewai_ops.snapshots.quality import Content, ContentCounter, engine_of, recorded_content
from sagewai_ops.snapshots.server_database import counted_database
from sagewai_ops.snapshots.trust import Trust, confirm, ids_at_place


@dataclass(frozen=True, slots=True)
class Reference:
    """A good snapshot, and its content in numbers.

    Attributes:
        full_check_at: As `DatabaseFacts` has it; "" if damage of the database was found since.
    """

    id: str
    content: Content
    full_check_at: str = ""


def find_reference(home: Home, directory: Path, trust: Trust) -> Reference | None:
    """Return the newest good snapshot of a home in a directory; None without one.

    Only confirmed facts count. An archive that is not encrypted is read if its metadata file does
    not record the content.
    """
    known = list_snapshots(directory)
    ids = ids_at_place(home, known, trust)
    is_suspect = False
    for item in reversed(known):
        if item.home_id and item.home_id not in ids:
            continue
        (confirmed,) = confirm(directory, [item], trust)
        if confirmed.doubt or confirmed.home_id not in ids:
            continue
        is_suspect |= _is_suspect(confirmed)
        content = _read_content(confirmed) if confirmed.is_good else None
        if content:
            full_check_at = "" if is_suspect else str(confirmed.card.get("full_check_at", ""))
            return Reference(confirmed.id, content, full_check_at)
    return None


def _is_suspect(snapshot: Snapshot) -> bool:
    """Return whether damage was found in a snapshot, when it was created or in a drill."""
    return snapshot.card.get("sound") is False or snapshot.has_failed_drill


def content_of(reader: ArchiveReader) -> Content:
    """Return the content of an open snapshot in numbers, from its manifest."""
    counter = ContentCounter()
    for entry in reader.manifest.entries:
        if entry.type is EntryType.FILE:
            counter.add(entry.path, entry.size_bytes)
    facts: dict[str, Any] = dict(reader.header.facts)
    return counter.content(
        counted_database(reader.manifest.facts),
        engine=engine_of(facts),
        key=str(facts.get("key_fingerprint") or ""),
    )


def _read_content(snapshot: Snapshot) -> Content | None:
    """Return the content of a confirmed snapshot; None if it cannot be read."""
    if "content" in snapshot.card or snapshot.is_encrypted:
        return recorded_content(snapshot.card)
    try:
        with open_archive(snapshot.path, None) as reader:
            return content_of(reader)
    except (OpsError, OSError):
        return None  # damaged: an older one is compared
