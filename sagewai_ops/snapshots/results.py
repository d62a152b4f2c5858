"""Snapshots and their drills in the results of commands."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal

from sagewai_ops.records import dataclass
from sagewai_ops.snapshots.catalog import Snapshot


@dataclass(frozen=True, slots=True)
class DrillRecord:
    """The last drill of a snapshot, from its metadata file; None where it does not record a value.

    Attributes:
        failed: The stage that failed.
        code: The error of a failed drill.
        findings: Number of findings.
        database: Of a server: `not drilled`, or the version of the server that it was restored to.
    """

    at: str | None = None
    outcome: Literal["proved", "unproved", "failed"] | None = None
    checked: tuple[str, ...] | None = None
    failed: str | None = None
    code: str | None = None
    findings: int | None = None
    seconds: float | None = None
    tool_version: str | None = None
    database: str | None = None


@dataclass(frozen=True, slots=True)
class SnapshotSummary:
    """A snapshot: its creation, its size, how it was checked, and whether it is good."""

    id: str
    created_at: str
    archive_bytes: int
    verified_at: str | None
    proved_restorable_at: str | None
    drill: DrillRecord | None
    complete: bool | None
    sound: bool | None
    plausible: bool | None


def drill_record(card: Mapping[str, Any]) -> DrillRecord | None:
    """Return the last drill that a metadata file records; None without one."""
    drill = card.get("drill")
    if not isinstance(drill, dict):
        return None
    return DrillRecord(**{field.name: drill.get(field.name) for field in fields(DrillRecord)})


def summarize_snapshot(snapshot: Snapshot) -> SnapshotSummary:
    """Return the summary of a snapshot."""
    return SnapshotSummary(
        id=snapshot.id,
        created_at=snapshot.created_text,
        archive_bytes=snapshot.size_bytes,
        verified_at=snapshot.card.get("verified_at"),
        proved_restorable_at=snapshot.proved_at or None,
        drill=drill_record(snapshot.card),
        complete=snapshot.card.get("complete"),
        sound=snapshot.card.get("sound"),
        plausible=snapshot.card.get("plausible"),
    )
