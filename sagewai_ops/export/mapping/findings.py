"""What stands in the way of a row, a column or a table: one value for each kind of trouble.

A finding is counted, and names the first keys that it concerns; the words of `kind` are promised
in docs/export.md.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

KEYS_KEPT = 100  # of each finding, in the report; all of them are in the files beside it


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of trouble in one column.

    Attributes:
        table: Of the source.
        column: One, or several joined by commas; "" where it concerns the whole table.
        kind: A word of docs/export.md, such as `nul`.
        detail: What is wrong with the first of them.
        count: Rows; 0 where rows are not what it is about.
        keys: Primary keys, as texts; the first `KEYS_KEPT` of them.
    """

    table: str
    column: str
    kind: str
    detail: str
    count: int = 0
    keys: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Give it as JSON; docs/json/export-to-postgres.json."""
        return {
            "table": self.table,
            "column": self.column,
            "kind": self.kind,
            "detail": self.detail,
            "count": self.count,
            "keys": list(self.keys),
        }


@dataclass(slots=True)
class Tally:
    """Counts refusals as they are met, and gives them as findings at the end."""

    _groups: dict[tuple[str, str, str], "_Group"] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was counted."""
        return not self._groups

    def add(self, table: str, column: str, kind: str, detail: str, key: str) -> None:
        """Count one more."""
        group = self._groups.setdefault((table, column, kind), _Group(detail))
        group.count += 1
        if len(group.keys) < KEYS_KEPT:
            group.keys.append(key)

    def findings(self) -> list[Finding]:
        """Give what was counted, in the order in which it was first met."""
        return [
            Finding(table, column, kind, group.detail, group.count, tuple(group.keys))
            for (table, column, kind), group in self._groups.items()
        ]


@dataclass(slots=True)
class _Group:
    detail: str
    count: int = 0
    keys: list[str] = field(default_factory=list)


def total(findings: Iterable[Finding]) -> int:
    """Count the rows that findings concern; one that is not about rows counts as one."""
    return sum(max(finding.count, 1) for finding in findings)


def shown(key: Mapping[str, object]) -> str:
    """Spell a primary key: its values, joined by commas where there are several."""
    return ", ".join(_word(value) for value in key.values())


def _word(value: object) -> str:
    if isinstance(value, (bytes, bytearray)):
        return value.decode("utf-8", "backslashreplace")
    return "NULL" if value is None else str(value)
