"""What `db check` finds: one value for each problem of a column, a table or the database."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import field
from typing import Literal

from sagewai_ops.records import dataclass

# Findings about values have the kinds of docs/export.md.
Kind = Literal[
    "level",  # behind, ahead, forked, unknown
    "encoding",  # a PostgreSQL database that cannot hold every text
    "integrity",  # SQLite itself found damage
    "drift",  # the tables differ from those of a fresh home
    "foreign-key",  # a row refers to one that does not exist
    "check",  # a row violates a CHECK of PostgreSQL
    "unique",  # rows that are duplicates in PostgreSQL
    "sequence",  # the next number is in use
    "unchecked",  # of another program's functions or collations; always a note
    "index",  # an index or a constraint of PostgreSQL is incomplete
]

EXAMPLES = 5  # keys in each finding
_WIDTH = 60  # characters of one part of a key


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem, or a note.

    Attributes:
        kind: A `Kind`, or one of docs/export.md.
        table: Empty for what concerns the whole database.
        column: Empty for what concerns the whole table.
        reason: What is wrong; never the value itself, which may be a secret.
        count: Rows.
        examples: The keys of the first few.
        is_note: An export converts these values without loss: they are not a problem.
    """

    kind: str
    table: str
    column: str
    reason: str
    count: int = 1
    examples: tuple[str, ...] = ()
    is_note: bool = False

    @property
    def place(self) -> str:
        """The table, or the table and the column."""
        return f"{self.table}.{self.column}" if self.column else self.table

    @property
    def shown(self) -> str:
        """One line about it."""
        place = f"{self.place}: " if self.table else ""
        if not self.examples:
            return f"{place}{self.reason}"
        keys = ", ".join(self.examples)
        more = ", ..." if self.count > len(self.examples) else ""
        return f"{place}{self.reason}, {self.count} rows: {keys}{more}"


@dataclass(slots=True)
class Tally:
    """Counts rows; those with the same reason in a column are one finding."""

    _counts: dict[tuple[str, str, str, str, bool], int] = field(default_factory=dict)
    _examples: dict[tuple[str, str, str, str, bool], list[str]] = field(default_factory=dict)

    def add(
        self,
        kind: str,
        table: str,
        column: str,
        reason: str,
        rows: Sequence[int],
        key: Callable[[int], str],
        *,
        is_note: bool = False,
    ) -> None:
        """Count rows by their rowids, and keep the keys of the first."""
        group = (kind, table, column, reason, is_note)
        self._counts[group] = self._counts.get(group, 0) + len(rows)
        examples = self._examples.setdefault(group, [])
        examples += [key(number) for number in rows[: EXAMPLES - len(examples)]]

    def findings(self) -> tuple[Finding, ...]:
        """Return one finding for each group, in the order in which they were first met."""
        return tuple(
            Finding(
                kind, table, column, reason, count, tuple(self._examples[group]), is_note=is_note
            )
            for group, count in self._counts.items()
            for kind, table, column, reason, is_note in (group,)
        )


def format_key(values: Iterable[object]) -> str:
    """Return a row's key for people: its parts joined by a slash, escaped and cut to fit a line."""
    parts = []
    for value in values:
        text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
        text = text.encode("unicode_escape").decode("ascii") if not text.isprintable() else text
        parts.append(text if len(text) <= _WIDTH else f"{text[:_WIDTH]}...")
    return "/".join(parts)
