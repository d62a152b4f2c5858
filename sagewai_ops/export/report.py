"""The report of an export: for the command's output, and as a file for a second person."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sagewai_ops.errors import (
    EXIT_DONE,
    EXIT_FINDINGS,
    EXIT_INCOMPLETE,
    OpsError,
    PermissionDeniedError,
)
from sagewai_ops.export.compare.rows import Result
from sagewai_ops.export.learnings.learnings import KEEP, Learnings
from sagewai_ops.export.mapping.findings import Finding
from sagewai_ops.export.results import CatchUp, Resumable, describe_report
from sagewai_ops.export.sequences import SetSequence
from sagewai_ops.export.target_session import MOVE, PLAN
from sagewai_ops.export.validate.validator import FAIL
from sagewai_ops.fs import atomic, beneath
from sagewai_ops.fs.given_files import resolve_given_path
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.records import dataclass
from sagewai_ops.text import printable, shell_word


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


@dataclass(slots=True)
class Report:
    """An export, a plan or a verification.

    Attributes:
        purpose: `move`, `plan`, `verify` or `abandon`.
        source: The home's database.
        target: The URL, without its password.
        server: The server's version.
        policy: fail, repair or quarantine.
        committed: The export was committed.
        migrated: The target was empty, and was migrated to the head.
        findings: All findings; because of `open_findings` nothing was sent.
        repaired: Values that were repaired.
        refused: Rows that are not in the target.
        resumable: Of a resumable export, or its end.
        caught_up: The second phase of `--live-first`; None without it.
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
    resumable: Resumable | None = None
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    cut_over: tuple[str, ...] = ()
    caught_up: CatchUp | None = None
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


def report_path(report: Report, directory: Path, chosen: Path | None) -> Path | None:
    """Return the path of the report, after a check that it is writable.

    Args:
        directory: The default directory for reports.
        chosen: From the command line; by default a new name in `directory`, and none for a plan.

    Raises:
        PermissionDeniedError: It is not writable, such as next to a home in a container.
    """
    hint = "sagewai-ops export-to-postgres --report FILE"
    if chosen is None and report.purpose == PLAN:
        return None
    if chosen is None:
        try:
            atomic.make_directory(directory)
        except PermissionDeniedError as error:
            raise PermissionDeniedError(error.message, hint=hint) from None
        moment = f"{report.started_at:%Y%m%dT%H%M%SZ}"
        path = directory / f"{report.purpose}-{moment}-{secrets.token_hex(2)}.json"
    else:
        with translate_os_errors(chosen):
            path = resolve_given_path(chosen, follow_last=False)
    if not os.access(path.parent, os.W_OK):
        raise PermissionDeniedError(f"report: {path.parent} not writable", hint=hint)
    return path


def finish_report(report: Report, path: Path | None) -> None:
    """Write the report, and remove the other files of an export that was not committed.

    After a commit, a report that cannot be written is a warning.

    Raises:
        NoSpaceError, PermissionDeniedError, OpsError: It cannot be written.
    """
    if report.purpose == MOVE and not report.committed:
        discard_files(report)
    if path is not None:
        report.files["report"] = str(path)
        try:
            write_report(report, path)
        except OpsError as error:
            del report.files["report"]
            if not report.committed:
                raise
            report.warnings.append(f"report not written: {error.message}")


def discard_files(report: Report) -> None:
    """Remove the lists of repaired and refused values that were written."""
    for file in report.files.values():
        with translate_os_errors(Path(file)), contextlib.suppress(FileNotFoundError):
            beneath.unlink(file)
    report.files.clear()


def write_report(report: Report, path: Path) -> None:
    """Write the report atomically.

    Raises:
        NoSpaceError, PermissionDeniedError, OpsError: It cannot be written.
    """
    content = json.dumps(asdict(describe_report(report)), indent=1, ensure_ascii=False)
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


def cut_over_lines(
    home: Path, url: str, report: Report, learnings: int, schedules: Iterable[Path] = ()
) -> tuple[str, ...]:
    """Return the next steps, each a command to paste or a comment.

    Args:
        home: The source.
        url: The target's, without its password.
        report: Of the export; the verification needs the same options.
        learnings: Rows that stay in the home.
        schedules: Installed ones, which do not name the database yet.
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
        "# backups from now on: FILE has the URL, mode 0600; home and database in one snapshot",
        f"sagewai-ops --home {shell_word(home)} backup --url-file FILE",
        *(
            f"# change the schedule {printable(str(path))}: add --url-file FILE to backup"
            for path in schedules
        ),
        f"# keep {home}: Sagewai reads config/ and secrets/ from it, also with PostgreSQL",
        f"# keep {home}/db/sagewai.db: Sagewai reads {learnings} learnings from it",
        "# keep config/admin-state.json: agents, providers and tokens of a single-org install",
    )
