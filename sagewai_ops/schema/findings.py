"""What a check finds: one value for each thing wrong with a column, a table or the database."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal[
    "level",  # behind, ahead, forked, unknown
    "integrity",  # SQLite itself found damage
    "drift",  # the tables differ from a fresh home's
    "foreign-key",  # a row refers to one that is not there
    "null",  # NULL where a fresh home has none
    "refused",  # PostgreSQL, or the way there, does not take the value
    "changed",  # PostgreSQL would store something else
    "check",  # a CHECK that PostgreSQL has does not hold
    "unique",  # rows that PostgreSQL would call duplicates
    "sequence",  # the next number is taken already
    "index",  # PostgreSQL left an index or a constraint half done
]

EXAMPLES = 5  # keys kept for each finding


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing wrong.

    Attributes:
        table: Empty for what concerns the whole database.
        column: Empty for what concerns the whole table.
        reason: What is wrong; never the value itself, which may be a secret.
        count: How many rows.
        examples: The keys of the first few.
    """

    kind: Kind
    table: str
    column: str
    reason: str
    count: int = 1
    examples: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """Name what it is about."""
        return f"{self.table}.{self.column}" if self.column else self.table

    @property
    def shown(self) -> str:
        """Say it in one line."""
        place = f"{self.place}: " if self.table else ""
        if not self.examples:
            return f"{place}{self.reason}"
        keys = ", ".join(self.examples)
        more = ", ..." if self.count > len(self.examples) else ""
        return f"{place}{self.reason}, {self.count} rows: {keys}{more}"


@dataclass(slots=True)
class Tally:
    """Findings of rows while they are counted: the same reason in a column is one finding."""

    _counts: dict[tuple[Kind, str, str, str], int] = field(default_factory=dict)
    _examples: dict[tuple[Kind, str, str, str], list[str]] = field(default_factory=dict)

    def add(
        self,
        kind: Kind,
        table: str,
        column: str,
        reason: str,
        rows: Sequence[int],
        key: Callable[[int], str],
    ) -> None:
        """Count rows, given by their ids; the keys of the first are asked for and kept."""
        which = (kind, table, column, reason)
        self._counts[which] = self._counts.get(which, 0) + len(rows)
        examples = self._examples.setdefault(which, [])
        examples += [key(number) for number in rows[: EXAMPLES - len(examples)]]

    def findings(self) -> tuple[Finding, ...]:
        """Give what was counted, in the order in which it was met first."""
        return tuple(
            Finding(*which, count, tuple(self._examples[which]))
            for which, count in self._counts.items()
        )


def spelled_key(values: Iterable[object]) -> str:
    """Spell a row's key for people: its parts, parted by a slash, escaped and cut to fit a line."""
    parts = []
    for value in values:
        text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
        text = text.encode("unicode_escape").decode("ascii") if not text.isprintable() else text
        parts.append(text if len(text) <= _WIDTH else f"{text[:_WIDTH]}...")
    return "/".join(parts)


_WIDTH = 60  # characters of one part of a key
