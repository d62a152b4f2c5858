"""What a look at a home found."""

import os
from dataclasses import dataclass
from pathlib import Path

from sagewai_ops.permissions.entry_kinds import Facts, Part, Wanted
from sagewai_ops.permissions.rules import Rule, Severity


@dataclass(frozen=True, slots=True)
class Finding:
    """One rule that does not hold for one entry.

    Attributes:
        path: Absolute, of the entry.
        wrong: What is wrong, in a phrase.
        root: `home` or `snapshots`, below which it can be repaired; "" for what is outside.
        wanted: The state that mends it; None if it takes a person.
        inode: Of the entry that was looked at.
    """

    rule: Rule
    facts: Facts
    path: Path
    wrong: str
    root: str
    wanted: Wanted | None
    inode: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a look at a home gave.

    Attributes:
        findings: What concerns the master key first, then errors, then warnings.
        entries: How many files, directories and links were looked at.
    """

    home: Path
    snapshots: Path | None
    findings: tuple[Finding, ...]
    entries: int

    def count(self, severity: Severity) -> int:
        """Count the findings of a severity."""
        return sum(finding.rule.severity is severity for finding in self.findings)


def order(finding: Finding) -> tuple[bool, bool, str, str]:
    """Sort what concerns the master key first, then errors, then warnings."""
    is_warning = finding.rule.severity is Severity.WARNING
    is_key = finding.facts.part in (Part.KEY, Part.VARIABLE) and not is_warning
    return not is_key, is_warning, finding.rule.id, os.fspath(finding.path)
