"""The result of `backup` as its JSON has it: docs/json.md."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, cast

from sagewai_ops.backup.report import BackupReport
from sagewai_ops.keys.trial_decryption import SealedReport
from sagewai_ops.records import dataclass, from_fields
from sagewai_ops.snapshots.database_check import DatabaseFacts
from sagewai_ops.snapshots.omissions import OmittedEntry
from sagewai_ops.snapshots.prune import ClockChange, DecisionResult, PolicyResult, PruneResult
from sagewai_ops.snapshots.quality import Cause
from sagewai_ops.snapshots.remote_trash import HiddenSnapshot
from sagewai_ops.snapshots.server_database import SQLITE, Engine, ServerFacts

OmissionReason = Literal[
    "sidecar",
    "lock",
    "leftover",
    "own",
    "companion",
    "key",
    "holds_key",
    "excluded",
    "gone",
    "special",
    "leaves",
    "unreadable",
    "name",
]


@dataclass(frozen=True, slots=True)
class OmissionResult(OmittedEntry):
    """A file that the new snapshot does not contain, for a reason that this version knows."""

    reason: OmissionReason


@dataclass(frozen=True, slots=True)
class RetentionResult:
    """The prune after a backup, with the fields of `PruneResult`, or why there was none.

    Attributes:
        problem: Why the rules were not applied; None if they were.
    """

    applied: bool
    problem: str | None = None
    folder: Path | None = None
    policy: PolicyResult | None = None
    snapshots: tuple[DecisionResult, ...] | None = None
    removed: tuple[str, ...] | None = None
    purged: tuple[str, ...] | None = None
    resting: tuple[str, ...] | None = None
    set_back: tuple[ClockChange, ...] | None = None
    ahead: str | None = None
    dry_run: bool | None = None
    hidden: tuple[HiddenSnapshot, ...] | None = None
    reclaimed: bool | None = None

    @classmethod
    def build(cls, pruned: PruneResult) -> "RetentionResult":
        """Build the result from a prune."""
        return from_fields(cls, pruned, applied=True, problem=None)


@dataclass(frozen=True, slots=True)
class CopyResult:
    """A copy of the new snapshot in another directory or remote place.

    Attributes:
        archive: None if it could not be copied.
        read_back_bytes: How much of it was read back from there.
        problem: Why it was not copied, or the rules of the place not applied; None without one.
        retention: None without rules for this place.
    """

    to: Path
    archive: Path | None
    read_back_bytes: int
    problem: str | None
    retention: RetentionResult | None = None


@dataclass(frozen=True, slots=True)
class BackupResult:
    """The result of a backup.

    Attributes:
        format: `archive`, or `directory` for a mirror.
        reused_files: Of a mirror, the files that were not read again: their status is unchanged.
        last_read_at: When the oldest of these was read; None without one.
        archive: Its path; None on stdout.
        left_out: Files of the home that it does not contain.
        unstable: Files that changed at every attempt to read them, stored as last read.
        followed: Link in the home -> the target that is stored in its place.
        outside_links: Link -> target outside the home, stored as a link.
        omitted, damaged: Why it is not complete, or not sound.
        accepted: Causes of both kinds that are accepted.
        changes: What is missing or shrank since the snapshot `compared_with`.
        engine: Of the database that Sagewai uses.
        without_database: It is on a server, and was omitted.
        server: The database of that server.
        retention: None without rules.
        read_back_bytes: How much of an archive in a remote place was read back; else None.
        copies: One for each `--also`.
    """

    id: str
    format: Literal["archive", "directory"]
    sequence: int
    archive: Path | None
    created_at: str
    archive_bytes: int
    archive_sha256: str
    content_bytes: int
    files: int
    kept_files: int
    encrypted: bool
    key_custody: Literal["exclude", "sealed"]
    key_fingerprint: str
    database: DatabaseFacts | None
    keys: SealedReport
    left_out: tuple[OmissionResult, ...]
    unstable: tuple[str, ...]
    followed: Mapping[str, str]
    external: Mapping[str, str]
    outside_links: Mapping[str, str]
    swept: tuple[str, ...]
    notes: tuple[str, ...]
    tags: tuple[str, ...]
    complete: bool
    sound: bool
    plausible: bool
    omitted: tuple[Cause, ...]
    damaged: tuple[Cause, ...]
    accepted: tuple[Cause, ...]
    changes: tuple[str, ...]
    compared_with: str | None
    change_accepted: bool
    engine: Engine = SQLITE
    without_database: bool = False
    server: ServerFacts | None = None
    retention: RetentionResult | None = None
    read_back_bytes: int | None = None
    copies: tuple[CopyResult, ...] = ()
    reused_files: int = 0
    last_read_at: str | None = None

    @classmethod
    def build(cls, report: BackupReport) -> "BackupResult":
        """Build the result from a report."""
        quality, last_read_at = report.quality, report.last_read_at
        return from_fields(
            cls,
            report,
            archive=report.path,
            created_at=f"{report.created_at:%Y-%m-%dT%H:%M:%SZ}",
            encrypted=report.is_encrypted,
            key_custody=report.custody,
            database=report.database.record if report.database else None,
            left_out=tuple(
                OmissionResult(
                    item.path, cast("OmissionReason", item.reason.name.lower()), item.detail
                )
                for item in report.omissions
            ),
            complete=quality.is_complete,
            sound=quality.is_sound,
            plausible=quality.is_plausible,
            omitted=quality.omitted,
            damaged=quality.damaged,
            accepted=quality.accepted,
            changes=quality.changes,
            compared_with=quality.compared_with or None,
            change_accepted=quality.is_change_accepted,
            retention=None,
            copies=(),
            last_read_at=f"{last_read_at:%Y-%m-%dT%H:%M:%SZ}" if last_read_at else None,
        )
