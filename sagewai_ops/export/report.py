"""The report of an export: for the command's output, and as a file for a second person."""

from __future__ import annotations

import json
import os
import secrets
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sagewai_ops import __version__
from sagewai_ops.errors import (
    EXIT_DONE,
    EXIT_FINDINGS,
    EXIT_INCOMPLETE,
    OpsError,
    PermissionDeniedError,
)
from sagewai_ops.export.compare.rows import Result
from sagewai_ops.export.learnings.learnings import KEEP, Learnings
from sagewai_ops.export.mapping.findings import Finding, count_rows
from sagewai_ops.export.sequences import SetSequence
from sagewai_ops.export.target_session import MOVE, PLAN
from sagewai_ops.export.validate.validator import FAIL
from sagewai_ops.fs import atomic
from sagewai_ops.text import shell_word

FORMAT = "sagewai-ops export 1"


@dataclass(slots=True)
class TableReport:
    """A table: its rows, the time they took, and the comparison of both sides."""

    name: str
    rows: int
    size_bytes: int = 0
    seconds: float = 0.0
    index_seconds: float = 0.0
    left_to_default: tuple[str, ...] = ()
    compared: Result | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON object."""
        compared = self.compared
        return {
            "name": self.name,
            "rows": self.rows,
            "bytes": self.size_bytes,
            "seconds": round(self.seconds, 3),
            "index_seconds": round(self.index_seconds, 3),
            "left_to_default": list(self.left_to_default),
            "compared": None
            if compared is None
            else {
                "same": compared.same,
                "target_rows": compared.target_rows,
                "differences": compared.count,
                "first": [
                    {"key": each.key, "column": each.column, "what": each.what}
                    for each in compared.differences
                ],
                "audit": compared.audit,
            },
        }


@dataclass(slots=True)
class Report:
    """An export, a plan or a verification.

    Attributes:
        purpose: `move`, `plan` or `verify`.
        source: The home's database.
        target: The URL, without its password.
        server: The server's version.
        policy: fail, repair or quarantine.
        committed: The export was committed.
        migrated: The target was empty, and was migrated to the head.
        findings: All findings; because of `open_findings` nothing was sent.
        repaired: Values that were repaired.
        refused: Rows that are not in the target.
        stages: Seconds by stage.
        files: In the report's directory: the repaired values, and the refused rows.
    """

    purpose: str
    source: Path
    target: str
    policy: str
    server: str = ""
    committed: bool = False
    migrated: bool = False
    tables: list[TableReport] = field(default_factory=list)
    empty: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    open_findings: tuple[Finding, ...] = ()
    repaired: int = 0
    refused: int = 0
    sequences: list[SetSequence] = field(default_factory=list)
    learnings: Learnings = field(default_factory=lambda: Learnings(KEEP))
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    cut_over: tuple[str, ...] = ()
    stages: dict[str, float] = field(default_factory=dict)
    estimate_seconds: float = 0.0
    files: dict[str, str] = field(default_factory=dict)
    error: str = ""
    started_at: datetime = field(default_factory=lambda: datetime.now(timezone.utc))

    @property
    def rows(self) -> int:
        """Rows that were copied, or would be."""
        return sum(table.rows for table in self.tables)

    @property
    def exit_code(self) -> int:
        """0 complete, 3 rows omitted, 4 nothing sent because of findings."""
        if self.open_findings:
            return EXIT_FINDINGS
        unknown = any(each.kind.startswith("unknown-") for each in self.findings)
        if self.refused or unknown or self.learnings.findings:
            return EXIT_INCOMPLETE
        return EXIT_DONE

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON object of docs/json/export-to-postgres.json."""
        return {
            "format": FORMAT,
            "program": f"sagewai-ops {__version__}",
            "purpose": self.purpose,
            "started_at": f"{self.started_at:%Y-%m-%dT%H:%M:%SZ}",
            "source": str(self.source),
            "target": self.target,
            "server": self.server,
            "policy": self.policy,
            "committed": self.committed,
            "migrated": self.migrated,
            "rows": self.rows,
            "tables": [table.as_dict() for table in self.tables],
            "empty": list(self.empty),
            "findings": [finding.as_dict() for finding in self.findings],
            "findings_total": count_rows(self.findings),
            "open_findings": len(self.open_findings),
            "mended": self.repaired,
            "refused": self.refused,
            "sequences": [
                {"table": each.table, "column": each.column, "next": each.next}
                for each in self.sequences
            ],
            "learnings": {
                "choice": self.learnings.choice,
                "tables": [table.as_dict() for table in self.learnings.tables],
                "findings": [finding.as_dict() for finding in self.learnings.findings],
            },
            "notes": list(self.notes),
            "cut_over": list(self.cut_over),
            "stages": {name: round(seconds, 3) for name, seconds in self.stages.items()},
            "estimate_seconds": round(self.estimate_seconds, 1),
            "files": dict(self.files),
            "error": self.error,
        }


def report_path(report: Report, directory: Path, chosen: Path | None) -> Path | None:
    """Return the path of the report, after a check that it is writable.

    Args:
        directory: The default directory for reports.
        chosen: From the command line; by default a new name in `directory`, and none for a plan.

    Raises:
        PermissionDeniedError: It is not writable.
    """
    if chosen is None and report.purpose == PLAN:
        return None
    if chosen is None:
        atomic.make_directory(directory)
        moment = f"{report.started_at:%Y%m%dT%H%M%SZ}"
        path = directory / f"{report.purpose}-{moment}-{secrets.token_hex(2)}.json"
    else:
        path = chosen.absolute()
    if not os.access(path.parent, os.W_OK):
        raise PermissionDeniedError(
            f"report: {path.parent} not writable",
            hint="sagewai-ops export-to-postgres --report FILE",
        )
    return path


def finish_report(report: Report, path: Path | None) -> None:
    """Write the report, and remove the other files of an export that was not committed.

    After a commit, a report that cannot be written is a warning.

    Raises:
        NoSpaceError, PermissionDeniedError, OpsError: It cannot be written.
    """
    if report.purpose == MOVE and not report.committed:
        for file in report.files.values():
            Path(file).unlink(missing_ok=True)
        report.files.clear()
    if path is not None:
        report.files["report"] = str(path)
        try:
            write_report(report, path)
        except OpsError as error:
            del report.files["report"]
            if not report.committed:
                raise
            report.warnings.append(f"report not written: {error.message}")


def write_report(report: Report, path: Path) -> None:
    """Write the report atomically.

    Raises:
        NoSpaceError, PermissionDeniedError, OpsError: It cannot be written.
    """
    content = json.dumps(report.as_dict(), indent=1, ensure_ascii=False)
    atomic.replace(path, content.encode("utf-8", "backslashreplace") + b"\n")


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> int:
    """Write JSON lines atomically, and return their number.

    Raises:
        NoSpaceError, PermissionDeniedError, OpsError: They cannot be written.
    """
    count = 0
    with atomic.write_stream(path) as stream:
        for line in lines:
            text = json.dumps(line, ensure_ascii=False)
            stream.write(text.encode("utf-8", "backslashreplace") + b"\n")
            count += 1
    return count


def cut_over_lines(home: Path, url: str, report: Report, learnings: int) -> tuple[str, ...]:
    """Return the next steps, each a command to paste or a comment.

    Args:
        home: The source.
        url: The target's, without its password.
        report: Of the export; the verification needs the same options.
        learnings: Rows that stay in the home.
    """
    verify = ["sagewai-ops", "--home", str(home), "export-to-postgres", "--verify-only"]
    if report.policy != FAIL:
        verify += ["--on-invalid", report.policy]
    if report.learnings.choice != KEEP:
        verify += ["--learnings", report.learnings.choice]
    return (
        "# stop every Sagewai process that uses this home: server, workers, harness",
        f"export SAGEWAI_DATABASE_URL='{url}'  # add the password, or set PGPASSWORD",
        'export DATABASE_URL="$SAGEWAI_DATABASE_URL"  # the worker commands read this one first',
        f"{shlex.join(verify)}  # before the first start",
        f"SAGEWAI_HOME={shell_word(home)} sagewai admin serve",
        f"# keep {home}: Sagewai reads config/ and secrets/ from it, also with PostgreSQL",
        f"# keep {home}/db/sagewai.db: Sagewai reads {learnings} learnings from it",
        "# keep config/admin-state.json: agents, providers and tokens of a single-org install",
    )
