"""The findings of an inspection."""

import os
from pathlib import Path

from sagewai_ops.permissions.entry_kinds import EntryKind, EntryState, Facts
from sagewai_ops.permissions.rules import Rule, Severity
from sagewai_ops.records import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule that an entry violates.

    Attributes:
        path: Absolute, of the entry.
        message: What is wrong, in a phrase.
        root: `home` or `snapshots`, below which an entry can be repaired; "" for entries outside.
        repaired: The state after the repair; None if there is no automatic repair.
        inode: Of the entry.
    """

    rule: Rule
    facts: Facts
    path: Path
    message: str
    root: str
    repaired: EntryState | None
    inode: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """The result of an inspection.

    Attributes:
        findings: About the master key first, then errors, then warnings.
        entries: How many files, directories and links were checked.
    """

    home: Path
    snapshots: Path | None
    findings: tuple[Finding, ...]
    entries: int

    def count(self, severity: Severity) -> int:
        """Count the findings of a severity."""
        return sum(finding.rule.severity is severity for finding in self.findings)


def sort_key(finding: Finding) -> tuple[bool, bool, str, str]:
    """Return the key that sorts errors about the master key first, then errors, then warnings."""
    is_warning = finding.rule.severity is Severity.WARNING
    is_key = finding.facts.kind in (EntryKind.KEY, EntryKind.VARIABLE) and not is_warning
    return not is_key, is_warning, finding.rule.id, os.fspath(finding.path)
