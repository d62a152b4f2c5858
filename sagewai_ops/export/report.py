"""What an export found and did: what the command shows, and the file for a second person."""

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
from sagewai_ops.export.mapping.findings import Finding, total
from sagewai_ops.export.sequences import SetSequence
from sagewai_ops.export.target_session import MOVE, PLAN
from sagewai_ops.export.validate.validator import FAIL
from sagewai_ops.fs import atomic
from sagewai_ops.text import shell_word

FORMAT = "sagewai-ops export 1"


@dataclass(slots=True)
class TableReport:
    """One table: what was carried, how fast, and whether it is the same on both sides."""

    name: str
    rows: int
    size_bytes: int = 0
    seconds: float = 0.0
    index_seconds: float = 0.0
    left_to_default: tuple[str, ...] = ()
    compared: Result | None = None

    def as_dict(self) -> dict[str, Any]:
        """Give it as JSON."""
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
    """An export, a plan or a verification, from its beginning to its end.

    Attributes:
        purpose: `move`, `plan` or `verify`.
        source: The home's database.
        target: The URL, without its password.
        server: The server's version.
        policy: fail, repair or quarantine.
        committed: The target has what is said here.
        migrated: The target was empty, and was brought to head.
        findings: All that was found; `open_findings` are those for which nothing was sent.
        mended: Values that were repaired; `refused` rows that are not in the target.
        stages: Seconds by stage.
        files: Beside the report: what was repaired, and what was refused.
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
    mended: int = 0
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
        """Rows carried, or to be carried."""
        return sum(table.rows for table in self.tables)

    @property
    def exit_code(self) -> int:
        """0 all done, 3 rows were not carried, 4 nothing was sent because of findings."""
        if self.open_findings:
            return EXIT_FINDINGS
        unknown = any(each.kind.startswith("unknown-") for each in self.findings)
        if self.refused or unknown or self.learnings.findings:
            return EXIT_INCOMPLETE
        return EXIT_DONE

    def as_dict(self) -> dict[str, Any]:
        """Give it as JSON; docs/json/export-to-postgres.json."""
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
            "findings_total": total(self.findings),
            "open_findings": len(self.open_findings),
            "mended": self.mended,
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
    """Decide where the report goes, and make sure now that it can go there.

    Args:
        directory: Beside the home, for reports that nobody chose a place for.
        chosen: A file; None for a name of our own, and for no report of a plan.

    Raises:
        PermissionDeniedError: It cannot.
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
            f"report: cannot be written in {path.parent}",
            hint="name another place with --report FILE",
        )
    return path


def finish(report: Report, path: Path | None) -> None:
    """Write the report, and take back the files of an export that did not take place.

    What is committed stays done: then a report that cannot be written is a warning.

    Raises:
        NoSpaceError, PermissionDeniedError, OpsError: The system refused.
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
            report.warnings.append(f"the report could not be written: {error.message}")


def write_report(report: Report, path: Path) -> None:
    """Write the report, whole or not at all.

    Raises:
        NoSpaceError, PermissionDeniedError, OpsError: The system refused.
    """
    content = json.dumps(report.as_dict(), indent=1, ensure_ascii=False)
    atomic.replace(path, content.encode("utf-8", "backslashreplace") + b"\n")


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> int:
    """Write JSON lines, whole or not at all, and count them.

    Raises:
        NoSpaceError, PermissionDeniedError, OpsError: The system refused.
    """
    count = 0
    with atomic.write_stream(path) as stream:
        for line in lines:
            text = json.dumps(line, ensure_ascii=False)
            stream.write(text.encode("utf-8", "backslashreplace") + b"\n")
            count += 1
    return count


def cut_over_lines(home: Path, url: str, report: Report, learnings: int) -> tuple[str, ...]:
    """Spell what to do next, each a line that can be pasted or a remark.

    Args:
        home: Whose data was moved.
        url: The target's, without its password.
        report: Of the move; the verification must be asked for the same.
        learnings: That stay in the home.
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
        f"# keep {home}: config/ and secrets/ are read as before, also with PostgreSQL",
        f"# keep {home}/db/sagewai.db: {learnings} learnings are read from it; it is the way back",
        "# config/admin-state.json stays a file: single-org agents, providers, tokens are in it",
    )
