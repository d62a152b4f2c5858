"""The results of `verify-perms` as its JSON has them: docs/json.md."""

from dataclasses import field
from pathlib import Path
from typing import Literal

from sagewai_ops.permissions.findings import Finding
from sagewai_ops.permissions.repair import RepairReport
from sagewai_ops.permissions.rules import Severity
from sagewai_ops.permissions.undo_record import Change, describe_change
from sagewai_ops.permissions.verify import Verification
from sagewai_ops.records import dataclass

Root = Literal["home", "snapshots"]


@dataclass(frozen=True, slots=True)
class FindingResult:
    """A rule that an entry violates.

    Attributes:
        rule: Its id.
        advice: For a finding that --fix does not repair; else "".
    """

    rule: str
    severity: Severity
    path: Path
    wrong: str
    protects: str
    advice: str


@dataclass(frozen=True, slots=True)
class ChangeResult:
    """A repair of an entry, or its undo.

    Attributes:
        root: Below which the entry is.
        path: Relative; "" is the root itself.
    """

    root: Root
    path: str
    rules: tuple[str, ...]
    change: str


@dataclass(frozen=True, slots=True)
class UnchangedResult:
    """An entry that could not be changed, with the reason."""

    root: Root
    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class VerificationResult:
    """The result of a verification.

    Attributes:
        entries: How many were checked.
        errors, warnings: How many findings have the severity.
        changes: Planned, or made if `repaired`.
        left: The changes that were not made.
        record: The file that undoes the changes.
        unchecked: The database on a server, whose roles and privileges are not checked; "" without.
    """

    home: Path
    snapshots: Path | None
    entries: int
    errors: int
    warnings: int = field(metadata={"in_result": True})
    findings: tuple[FindingResult, ...]
    changes: tuple[ChangeResult, ...]
    repaired: bool
    left: tuple[UnchangedResult, ...]
    record: Path | None
    dry_run: bool
    unchecked: str

    @classmethod
    def build(
        cls, verification: Verification, *, dry_run: bool, unchecked: str = ""
    ) -> "VerificationResult":
        """Build the result from a verification."""
        inspection, repair = verification.inspection, verification.repair
        return cls(
            home=inspection.home,
            snapshots=inspection.snapshots,
            entries=inspection.entries,
            errors=inspection.count(Severity.ERROR),
            warnings=inspection.count(Severity.WARNING),
            findings=tuple(
                FindingResult(
                    rule=finding.rule.id,
                    severity=finding.rule.severity,
                    path=finding.path,
                    wrong=finding.message,
                    protects=finding.rule.protects,
                    advice=_advice(finding),
                )
                for finding in inspection.findings
            ),
            changes=tuple(
                _change(change, describe_change(change.before, change.after))
                for change in (repair.done if repair else verification.changes)
            ),
            repaired=repair is not None,
            left=_left(repair),
            record=repair.record if repair else None,
            dry_run=dry_run,
            unchecked=unchecked,
        )


@dataclass(frozen=True, slots=True)
class UndoResult:
    """The result of --undo.

    Attributes:
        left: The changes that could not be reverted.
        record: The file of the record, if it still exists.
    """

    home: Path
    changes: tuple[ChangeResult, ...]
    left: tuple[UnchangedResult, ...]
    record: Path | None

    @classmethod
    def build(cls, home: Path, undone: RepairReport) -> "UndoResult":
        """Build the result from an undo."""
        changes = tuple(
            _change(change, describe_change(change.after, change.before)) for change in undone.done
        )
        return cls(home, changes, _left(undone), undone.record)


def _change(change: Change, text: str) -> ChangeResult:
    return ChangeResult(_root(change), change.path, change.rules, text)


def _left(report: RepairReport | None) -> tuple[UnchangedResult, ...]:
    return tuple(
        UnchangedResult(_root(change), change.path, reason)
        for change, reason in (report.left if report else ())
    )


def _root(change: Change) -> Root:
    return "snapshots" if change.root == "snapshots" else "home"


def _advice(finding: Finding) -> str:
    """Return the advice for a finding that --fix does not repair."""
    if finding.repaired is not None:
        return ""
    return finding.rule.advice or "outside the home: use `chmod`, `chown` or `setfacl -b`"
