"""The result of `snapshots list`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from sagewai_ops.records import dataclass, from_fields
from sagewai_ops.snapshots.catalog import Snapshot
from sagewai_ops.snapshots.mirror import Mirror
from sagewai_ops.snapshots.rebuild_cards import RebuildReport
from sagewai_ops.snapshots.results import DrillRecord, summarize_snapshot
from sagewai_ops.snapshots.server_database import POSTGRESQL, SQLITE, Engine


@dataclass(frozen=True, slots=True)
class ListedSnapshot:
    """A snapshot and the facts of its metadata file; None where that does not record them.

    Attributes:
        complete, sound, plausible: docs/retention.md; only a snapshot with all three is good.
        change_accepted: Whether it is plausible because the user intended a change.
        cut: Whether the size differs from the recorded one.
        has_card: Whether the metadata file exists and is readable.
        authenticity: `authentic` if an authenticated metadata file records it; the archive was not
            read.
        doubt: Why nothing confirms the facts of the metadata file; "" if they are confirmed.
        engine: Of the database that Sagewai used.
        without_database: It was on a server, and is not in the snapshot.
        read_back_bytes: How much of an archive in a remote place was read back after the upload.
    """

    id: str
    archive: Path
    created_at: str
    sequence: int
    archive_bytes: int
    encrypted: bool
    home: str | None
    host: str | None
    tags: tuple[str, ...]
    schema_level: str | None
    key_custody: str | None
    key_fingerprint: str | None
    verified_at: str | None
    proved_restorable_at: str | None
    drill: DrillRecord | None
    complete: bool | None
    sound: bool | None
    plausible: bool | None
    change_accepted: bool
    cut: bool
    has_card: bool
    authenticity: Literal["authentic", "unverified"]
    doubt: str
    engine: Engine
    without_database: bool
    read_back_bytes: int | None


@dataclass(frozen=True, slots=True)
class Trash:
    """The snapshots that a prune moved to the trash: their ids, and the size of their archives."""

    snapshots: tuple[str, ...]
    archive_bytes: int


@dataclass(frozen=True, slots=True)
class SnapshotList:
    """The snapshots of a directory, oldest first.

    Attributes:
        tree: The mirror of a backup with `--format directory`.
        rebuilt: None if no metadata file was to be written again.
    """

    folder: Path
    snapshots: tuple[ListedSnapshot, ...]
    trash: Trash
    tree: Mirror | None
    rebuilt: RebuildReport | None


def describe_snapshot(snapshot: Snapshot) -> ListedSnapshot:
    """Return a snapshot as `snapshots list` lists it."""
    card = snapshot.card
    return from_fields(
        ListedSnapshot,
        summarize_snapshot(snapshot),
        archive=snapshot.path,
        sequence=snapshot.sequence,
        encrypted=snapshot.is_encrypted,
        home=card.get("home"),
        host=card.get("host"),
        tags=snapshot.tags,
        schema_level=card.get("schema_level"),
        key_custody=card.get("key_custody"),
        key_fingerprint=card.get("key_fingerprint"),
        change_accepted=card.get("change_accepted", False),
        cut=snapshot.is_truncated,
        has_card=bool(card),
        authenticity="authentic"
        if snapshot.is_confirmed and card.get("authentication")
        else "unverified",
        doubt=snapshot.doubt,
        engine=POSTGRESQL if card.get("engine") == POSTGRESQL else SQLITE,
        without_database=card.get("without_database") is True,
        read_back_bytes=_read_back(card),
    )


def _read_back(card: Mapping[str, Any]) -> int | None:
    count = card.get("read_back", {}).get("bytes")
    return count if type(count) is int and count >= 0 else None
