"""The report of a drill, and its result as the JSON has it."""

from datetime import datetime
from pathlib import Path
from typing import Literal

from sagewai_ops.keys.trial_decryption import SealedReport
from sagewai_ops.operations.drill_database import ServerDrillResult
from sagewai_ops.permissions.findings import Inspection
from sagewai_ops.permissions.rules import Severity
from sagewai_ops.records import dataclass
from sagewai_ops.restore.restore import RestoreReport
from sagewai_ops.schema.results import UpgradeResult, describe_upgrade
from sagewai_ops.schema.upgrade_sqlite import Upgrade
from sagewai_ops.snapshots.authenticity import Authenticity
from sagewai_ops.snapshots.database_check import DatabaseFacts

PROVED, UNPROVED = "proved", "unproved"


@dataclass(frozen=True, slots=True)
class DrillFinding:
    """A problem that does not prevent a restore.

    Attributes:
        check: `database`, `keys`, `upgrade` or `permissions`.
    """

    check: str
    text: str


@dataclass(frozen=True, slots=True)
class DrillReport:
    """A completed drill.

    Attributes:
        outcome: `proved`, or `unproved` if encrypted values could not be opened (`without_key`), or
            the database is that of a server and was not restored.
        checked: The checks that passed, in order.
        upgrade: Of the SQLite database; None without one.
        server: The database of a server that was restored; None without one.
        inspection: Without the directories above the scratch directory.
        is_of_place: Whether the server of the drill could not be used: no outcome of the snapshot,
            and not recorded.
        recorded: Whether the outcome is in the snapshot's metadata file.
        not_recorded: Why it could not be written; "" if it was, or if the archive has none.
    """

    snapshot_id: str
    archive: Path
    at: datetime
    seconds: float
    outcome: str
    checked: tuple[str, ...]
    restored: RestoreReport
    upgrade: Upgrade | None
    server: ServerDrillResult | None
    inspection: Inspection
    findings: tuple[DrillFinding, ...]
    swept: tuple[str, ...]
    is_of_place: bool = False
    recorded: bool = False
    not_recorded: str = ""

    @property
    def key_in_snapshot(self) -> bool:
        """Whether the archive contains the key."""
        return self.restored.plan.key_custody == "sealed" and not self.restored.key_installed


@dataclass(frozen=True, slots=True)
class PermissionResult:
    """A finding in the permissions of the restored home."""

    rule: str
    severity: Severity
    path: str
    wrong: str


@dataclass(frozen=True, slots=True)
class PermissionsResult:
    """The permissions of the restored home."""

    entries: int
    findings: tuple[PermissionResult, ...]


@dataclass(frozen=True, slots=True)
class DrillResult:
    """The result of a drill as its JSON has it: docs/json.md."""

    snapshot: str
    archive: Path
    outcome: Literal["proved", "unproved"]
    at: str
    proved_restorable_at: str | None
    recorded: bool
    seconds: float
    checked: tuple[str, ...]
    files: int
    folders: int
    links: int
    size_bytes: int
    database: DatabaseFacts | None
    upgrade: UpgradeResult | None
    server: ServerDrillResult | None
    keys: SealedReport
    key_source: str
    key_in_snapshot: bool
    permissions: PermissionsResult
    findings: tuple[DrillFinding, ...]
    swept: tuple[str, ...]
    authenticity: Authenticity
    authenticity_reason: str


def describe_drill(report: DrillReport) -> DrillResult:
    """Return the result of a drill."""
    restored, inspection = report.restored, report.inspection
    at = f"{report.at:%Y-%m-%dT%H:%M:%SZ}"
    return DrillResult(
        snapshot=report.snapshot_id,
        archive=report.archive,
        outcome="proved" if report.outcome == PROVED else "unproved",
        at=at,
        proved_restorable_at=at if report.outcome == PROVED else None,
        recorded=report.recorded,
        seconds=round(report.seconds, 3),
        checked=report.checked,
        files=restored.extracted.files,
        folders=restored.extracted.directories,
        links=restored.extracted.links,
        size_bytes=restored.extracted.size_bytes,
        database=restored.database.record if restored.database else None,
        upgrade=describe_upgrade(report.upgrade) if report.upgrade else None,
        server=report.server,
        keys=restored.keys,
        key_source=restored.key_source,
        key_in_snapshot=report.key_in_snapshot,
        permissions=PermissionsResult(
            entries=inspection.entries,
            findings=tuple(
                PermissionResult(
                    rule=finding.rule.id,
                    severity=finding.rule.severity,
                    path=str(finding.path.relative_to(inspection.home)),
                    wrong=finding.message,
                )
                for finding in inspection.findings
            ),
        ),
        findings=report.findings,
        swept=report.swept,
        authenticity=restored.plan.origin_state.authenticity,
        authenticity_reason=restored.plan.origin_state.reason,
    )
