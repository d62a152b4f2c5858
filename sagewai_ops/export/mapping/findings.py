"""What stops the export of a row, a column or a table: one value for each kind of problem.

A finding has the number of its rows, and the first keys; the kinds are documented in
docs/export.md.
"""

from collections.abc import Iterable, Mapping
from dataclasses import field

from sagewai_ops.export.convert.repair import EFFECTS
from sagewai_ops.records import dataclass

KEYS_KEPT = 100  # of each finding in the report; the other files have all


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of problem in one column.

    Attributes:
        table: Of the source.
        column: One, or several joined by commas; "" where it concerns the whole table.
        kind: As documented in docs/export.md, such as `nul`.
        detail: What is wrong with the first of them.
        count: Rows; 0 where it does not concern rows.
        keys: Primary keys, as texts; the first `KEYS_KEPT` of them.
        repairable: The rows that `repair` repairs; None where that was not checked.
    """

    table: str
    column: str
    kind: str
    detail: str
    count: int = 0
    keys: tuple[str, ...] = ()
    repairable: int | None = None

    @property
    def place(self) -> str:
        """The table, or the table and the column."""
        return f"{self.table}.{self.column}" if self.column else self.table

    @property
    def repair(self) -> str:
        """The effect of `repair`: "none" without one, "" where that was not checked."""
        if self.kind == "audit-hash":
            return "none: copied, and counted as broken"
        if self.repairable is None:
            return ""
        if not self.repairable:
            return "none"
        remaining = self.count - self.repairable
        effect = EFFECTS[self.kind]
        return f"{effect}; none for {remaining} of {self.count}" if remaining else effect


@dataclass(slots=True)
class Tally:
    """Counts refusals one by one, and returns them as findings at the end."""

    _groups: dict[tuple[str, str, str], "_Group"] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was counted."""
        return not self._groups

    def add(
        self,
        table: str,
        column: str,
        kind: str,
        detail: str,
        key: str,
        *,
        is_repairable: bool | None = None,
    ) -> None:
        """Count one more."""
        group = self._groups.setdefault((table, column, kind), _Group(detail))
        group.count += 1
        if is_repairable is not None:
            group.repairable = (group.repairable or 0) + is_repairable
        if len(group.keys) < KEYS_KEPT:
            group.keys.append(key)

    def findings(self) -> list[Finding]:
        """Return one finding for each kind and column, in the order of their first refusals."""
        return [
            Finding(
                table, column, kind, group.detail, group.count, tuple(group.keys), group.repairable
            )
            for (table, column, kind), group in self._groups.items()
        ]


@dataclass(slots=True)
class _Group:
    detail: str
    count: int = 0
    keys: list[str] = field(default_factory=list)
    repairable: int | None = None


def count_rows(findings: Iterable[Finding]) -> int:
    """Count the rows that findings concern; one that does not concern rows counts as one."""
    return sum(max(finding.count, 1) for finding in findings)


def format_key(key: Mapping[str, object]) -> str:
    """Return a primary key as text: its values, joined by commas."""
    return ", ".join(_format_value(value) for value in key.values())


def _format_value(value: object) -> str:
    if isinstance(value, (bytes, bytearray)):
        return value.decode("utf-8", "backslashreplace")
    return "NULL" if value is None else str(value)
