"""The result of `export-to-postgres`, and the content of its report: docs/json.md."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal, TypedDict, TypeVar, cast

from sagewai_ops import __version__
from sagewai_ops.export.compare.rows import Difference
from sagewai_ops.export.learnings.vector_rows import VectorCopy
from sagewai_ops.export.mapping.findings import Finding, count_rows
from sagewai_ops.export.sequences import SetSequence
from sagewai_ops.records import dataclass, from_fields

if TYPE_CHECKING:
    from sagewai_ops.export.compare.rows import Result
    from sagewai_ops.export.report import Report, TableReport


@dataclass(frozen=True, slots=True)
class FindingResult(Finding):
    """A finding, and the effect of `repair` on it."""

    repair: str = ""


@dataclass(frozen=True, slots=True)
class AuditResult:
    """The hashes of the audit events."""

    verified: int
    broken_before: int
    broken: int
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ComparisonResult:
    """The comparison of a table: its differences, and the first of them."""

    same: bool
    target_rows: int
    differences: int
    first: tuple[Difference, ...]
    audit: AuditResult | None


@dataclass(frozen=True, slots=True)
class TableResult:
    """A table of the target."""

    name: str
    rows: int
    bytes: int
    seconds: float
    index_seconds: float
    left_to_default: tuple[str, ...]
    compared: ComparisonResult | None


@dataclass(frozen=True, slots=True)
class LearningsResult:
    """The learnings; the rows of findings are not in the target."""

    choice: Literal["keep", "facts", "pgvector"]
    tables: tuple[VectorCopy, ...]
    findings: tuple[FindingResult, ...]


@dataclass(slots=True)
class CatchUp:
    """What `--live-first` did after the rows of the first copy were in the target.

    Attributes:
        pages: Of the second copy.
        changed_pages: Of these, that the first copy does not have.
        scanned: Tables all of whose rows were compared, because too many may have changed.
        deleted: Rows that were removed from the target, or replaced.
        sent: Rows that were added to it, or replaced.
        compared_again: Rows that were sent, and compared.
        sampled: Other rows that were compared again.
        compared_whole: Tables all of whose rows were compared again.
        waited_seconds: From the request to stop until the home was not in use.
        stopped_seconds: From then to the commit; 0 without one.
    """

    pages: int = 0
    changed_pages: int = 0
    scanned: tuple[str, ...] = ()
    deleted: int = 0
    sent: int = 0
    compared_again: int = 0
    sampled: int = 0
    compared_whole: tuple[str, ...] = ()
    waited_seconds: float = 0.0
    stopped_seconds: float = 0.0


class Files(TypedDict, total=False):
    """The files that the run wrote; `copy` is the directory that `--abandon` removed."""

    report: str
    changes: str
    refused: str
    copy: str


@dataclass(slots=True)
class Resumable:
    """A resumable export: what this run and those before it sent.

    Attributes:
        resumed: This run continued an earlier one.
        begun_at: Of the first run, UTC.
        ranges: Sent by this run.
        ranges_before, rows_before: That the server had at its beginning.
    """

    resumed: bool = False
    begun_at: str = ""
    ranges: int = 0
    ranges_before: int = 0
    rows_before: int = 0


@dataclass(frozen=True, slots=True)
class ExportResult:
    """An export, a plan, a verification or the end of an unfinished export; see `Report`.

    Attributes:
        findings_total: Rows.
        open_findings: The findings because of which nothing was sent.
        `mended`: Repaired values.
    """

    format: Literal["sagewai-ops export 1"]
    program: str
    purpose: Literal["move", "plan", "verify", "abandon"]
    started_at: str
    source: str
    target: str
    server: str
    policy: Literal["fail", "repair", "quarantine", "repair,quarantine"]
    committed: bool
    migrated: bool
    rows: int
    tables: tuple[TableResult, ...]
    empty: tuple[str, ...]
    findings: tuple[FindingResult, ...]
    findings_total: int
    open_findings: int
    mended: int
    refused: int
    sequences: tuple[SetSequence, ...]
    learnings: LearningsResult
    resumable: Resumable | None
    notes: tuple[str, ...]
    cut_over: tuple[str, ...]
    caught_up: CatchUp | None
    stages: Mapping[str, float]
    estimate_seconds: float
    files: Files
    error: str


def describe_report(report: Report) -> ExportResult:
    """Return the result of an export."""
    learnings, caught_up = report.learnings, report.caught_up
    return from_fields(
        ExportResult,
        report,
        format="sagewai-ops export 1",
        program=f"sagewai-ops {__version__}",
        started_at=f"{report.started_at:%Y-%m-%dT%H:%M:%SZ}",
        source=str(report.source),
        tables=tuple(map(_table, report.tables)),
        findings=_findings(report.findings),
        findings_total=count_rows(report.findings),
        open_findings=len(report.open_findings),
        mended=report.repaired,
        sequences=tuple(report.sequences),
        learnings=from_fields(
            LearningsResult,
            learnings,
            tables=tuple(map(_rounded, learnings.tables)),
            findings=_findings(learnings.findings),
        ),
        notes=tuple(report.notes),
        caught_up=_rounded(caught_up) if caught_up else None,
        stages={name: round(seconds, 3) for name, seconds in report.stages.items()},
        estimate_seconds=round(report.estimate_seconds, 1),
        files=cast("Files", dict(report.files)),
    )


def _findings(findings: Iterable[Finding]) -> tuple[FindingResult, ...]:
    return tuple(from_fields(FindingResult, finding) for finding in findings)


def _table(table: TableReport) -> TableResult:
    compared = _comparison(table.compared) if table.compared else None
    return from_fields(TableResult, _rounded(table), bytes=table.size_bytes, compared=compared)


def _comparison(compared: Result) -> ComparisonResult:
    audit = compared.audit
    return from_fields(
        ComparisonResult,
        compared,
        differences=compared.count,
        first=tuple(compared.differences),
        audit=AuditResult(**{**audit, "keys": tuple(audit["keys"])}) if audit else None,
    )


Timed = TypeVar("Timed", CatchUp, VectorCopy, "TableReport")


def _rounded(record: Timed) -> Timed:
    """Return a record with its seconds rounded to milliseconds."""
    names = [each.name for each in dataclasses.fields(record) if each.name.endswith("seconds")]
    return dataclasses.replace(record, **{name: round(getattr(record, name), 3) for name in names})
