"""The result of `import-from-postgres`, and the content of its report: docs/json.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypedDict

from sagewai_ops.export.mapping.findings import Finding
from sagewai_ops.records import dataclass


@dataclass(frozen=True, slots=True)
class ImportedTable:
    """A table of the home that has rows."""

    name: str
    rows: int


class ImportFiles(TypedDict, total=False):
    """The files that the run wrote."""

    report: str
    refused: str


@dataclass(frozen=True, slots=True)
class ImportResult:
    """An import, or its plan.

    Attributes:
        source: The URL, without its password.
        target: The home.
        server: The server's version.
        revision: Of the server's schema, and of the home's.
        imported: Whether the home has the rows.
        live: Whether the server was in use: later rows are not in the home.
        rows: In the home, or what it would have.
        findings: What a home on SQLite cannot have.
        findings_total: Rows that they concern; a finding that does not concern rows counts as one.
        open_findings: Number of findings because of which nothing was changed.
        refused: Rows or values that are not in the home.
        kept_ids: UUIDs that an export may have made of other texts, and that stay UUIDs.
        learnings: Rows of learnings that stay in the home.
        previous: Where the previous database is kept, or the previous directory; None without one.
        cut_over: The next steps.
        stages: Seconds of each.
        estimate_seconds: Of an import, by a plan.
    """

    format: Literal["sagewai-ops import 1"]
    program: str
    purpose: Literal["move", "plan"]
    started_at: str
    source: str
    target: str
    server: str
    revision: str
    policy: Literal["fail", "quarantine"]
    imported: bool
    live: bool
    rows: int
    tables: tuple[ImportedTable, ...]
    findings: tuple[Finding, ...]
    findings_total: int
    open_findings: int
    refused: int
    kept_ids: tuple[Finding, ...]
    learnings: int
    previous: str | None
    notes: tuple[str, ...]
    cut_over: tuple[str, ...]
    stages: Mapping[str, float]
    estimate_seconds: float
    files: ImportFiles
