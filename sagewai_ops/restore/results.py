"""The results of `restore` as its JSON has them: docs/json.md."""

from collections.abc import Iterable, Mapping
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sagewai_ops.keys.trial_decryption import SealedReport
from sagewai_ops.records import dataclass, from_fields
from sagewai_ops.restore.plan import DatabaseCheck, RestorePlan, TargetState
from sagewai_ops.restore.restore import RestoreReport
from sagewai_ops.snapshots.authenticity import Authenticity
from sagewai_ops.snapshots.database_check import DatabaseFacts

if TYPE_CHECKING:
    from sagewai_ops.export.mapping.findings import Finding

Recovered = Literal["finished", "rolled back", "nothing to do"]


@dataclass(frozen=True, slots=True)
class NotConverted:
    """Rows or values of a server that a home on SQLite does not have: docs/export.md.

    Attributes:
        column: One, or several joined by commas; "" for the whole row or table.
        detail: What is wrong with the first of them.
        count: Rows.
        keys: The first primary keys, as texts.
    """

    table: str
    column: str
    kind: str
    detail: str
    count: int
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PlanResult:
    """The result of a dry run.

    Attributes:
        exchanged: The entries that are replaced; None for the whole home.
        sealed_values: Number of encrypted values in the snapshot.
        owner: The user who owns everything; "" for the owners that the snapshot records.
        followed: Path in the target -> where a link of the original home led to.
        outside_links: Path in the target -> the target of a link that leads out of the home.
        authenticity_reason: Why the snapshot is not authentic; "" if it is.
        server: The PostgreSQL database that is restored too; "" for none.
        server_tables, server_rows: Of the database of a server that is restored, in the snapshot.
        to_sqlite: Whether it is restored to the SQLite database of the home.
        not_converted: What a home on SQLite cannot have, as far as it is known.
        database_from: The replica that the database comes from; "" for the snapshot.
        database_state_at: The time of its last change, as litestream writes it.
        application_version: Of the Sagewai that wrote the data; "" if unknown.
    """

    snapshot: str
    archive: Path
    target: Path
    target_state: TargetState
    exchanged: tuple[str, ...] | None
    files: int
    size_bytes: int
    schema_level: str
    key_custody: str
    key_fingerprint: str
    sealed_values: int
    revokes_sessions: bool
    rebinds_fleet: bool
    owner: str
    followed: Mapping[str, str]
    outside_links: Mapping[str, str]
    authenticity: Authenticity
    authenticity_reason: str
    server: str
    server_tables: int
    server_rows: int
    to_sqlite: bool
    not_converted: tuple[NotConverted, ...]
    database_from: str
    database_state_at: str
    application_version: str
    warnings: tuple[str, ...] = field(metadata={"in_result": True})

    @classmethod
    def of_plan(cls, plan: RestorePlan, warnings: tuple[str, ...]) -> "PlanResult":
        """Build the result from a plan."""
        origin, server, replica = plan.origin_state, plan.server, plan.replica
        return from_fields(
            PlanResult,
            plan,
            snapshot=plan.snapshot_id,
            target_state=plan.state,
            exchanged=plan.paths,
            sealed_values=plan.sealed,
            authenticity=origin.authenticity,
            authenticity_reason=origin.reason,
            server=plan.server_name,
            server_tables=len(server.tables) if server else 0,
            server_rows=server.rows if server else 0,
            to_sqlite=plan.conversion is not None,
            not_converted=_not_converted(plan.conversion.findings if plan.conversion else ()),
            database_from=f"litestream:{replica.name}" if replica else "",
            database_state_at=replica.at if replica else "",
            warnings=warnings,
        )


@dataclass(frozen=True, slots=True)
class RestoreResult(PlanResult):
    """The result of a restore.

    Attributes:
        before: Where the previous home is kept; None if there was none.
        key_source: The source of the key that opens the encrypted values; "" without one.
        sessions, api_tokens, fleet_rows: Access that is valid again.
        server_before: The schema on the server with what was replaced; "" for none.
        converted_rows: In the tables of the home that come from a server.
        database_check: `recorded`: its bytes are those that were checked when the snapshot was
            created; `full`: they were checked again; "" without a database.
    """

    before: Path | None
    folders: int
    links: int
    key_source: str
    key_installed: bool
    keys: SealedReport
    database: DatabaseFacts | None
    database_check: DatabaseCheck | Literal[""]
    sessions: int
    api_tokens: int
    fleet_rows: int
    rebound_rows: int
    server_before: str
    converted_rows: int

    @classmethod
    def of_report(cls, report: RestoreReport, warnings: tuple[str, ...]) -> "RestoreResult":
        """Build the result from a report."""
        plan, conversion = PlanResult.of_plan(report.plan, warnings), report.conversion
        extracted, access = report.extracted, report.access
        found = _not_converted(conversion.findings) if conversion else plan.not_converted
        return from_fields(
            cls,
            plan,
            files=extracted.files,
            size_bytes=extracted.size_bytes,
            not_converted=found,
            before=report.previous,
            folders=extracted.directories,
            links=extracted.links,
            key_source=report.key_source,
            key_installed=report.key_installed,
            keys=report.keys,
            database=report.database.record if report.database else None,
            database_check=report.database_check,
            sessions=access.sessions,
            api_tokens=access.api_tokens,
            fleet_rows=access.fleet_rows,
            rebound_rows=report.rebound_rows,
            server_before=report.server_before,
            converted_rows=conversion.rows if conversion else 0,
        )


@dataclass(frozen=True, slots=True)
class PresentResult:
    """The result of --if-empty where a home exists: nothing was restored."""

    present: Path


@dataclass(frozen=True, slots=True)
class UndoResult:
    """The result of --undo.

    Attributes:
        brought_back: The kept directory that is the home again.
        before: Where the replaced home is kept; None in a dry run, and if there was none.
    """

    home: Path
    brought_back: Path
    before: Path | None
    dry_run: bool


@dataclass(frozen=True, slots=True)
class RecoveryResult:
    """The result of --recover."""

    home: Path
    recovery: Recovered


def _not_converted(findings: Iterable["Finding"]) -> tuple[NotConverted, ...]:
    return tuple(from_fields(NotConverted, each) for each in findings)
