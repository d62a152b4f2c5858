"""The comparison: every row of the target against its source, by value, in bounded memory.

The two sides meet as texts: what the server spells (COPY, text format) and what the source holds,
read again. Nothing of `encoders` and `values` is used here, so that a fault in a conversion cannot
hide by being made twice; what a type makes of a value (jsonb's key order and numbers, trailing
zeros of a fraction) is undone or ignored on both sides.

Rows are first compared in the order in which they were sent, which is the order in which a table
that was just filled answers. Where that does not hold, `by_key` compares them ordered by their
primary key; that alone decides that a table differs.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sagewai_ops.database.source import quoted
from sagewai_ops.transfer.audit import AUDIT_TABLE, AuditTrail
from sagewai_ops.transfer.canonical import NULL, differing, unescaped
from sagewai_ops.transfer.encoders import Column
from sagewai_ops.transfer.plan import PlannedTable
from sagewai_ops.transfer.reading import UUID_FUNCTION

ROWS_AT_ONCE = 200
DIFFERENCES_KEPT = 100


@dataclass(frozen=True, slots=True)
class Difference:
    """A row that is not the same on both sides.

    Attributes:
        key: Its primary key; "" where the rows were compared in order.
        column: That differs; "" where the whole row is on one side only.
        what: `differs`, `missing` in the target, or `extra` there.
    """

    key: str
    column: str
    what: str


@dataclass(slots=True)
class Result:
    """What the comparison of a table found.

    Attributes:
        rows: In the source.
        target_rows: In the target.
        count: Of differences, of which `differences` are the first.
        audit: What became of an audit chain: rows verified, rows that no longer verify.
    """

    table: str
    rows: int = 0
    target_rows: int = 0
    count: int = 0
    differences: list[Difference] = field(default_factory=list)
    audit: dict[str, Any] | None = None

    @property
    def same(self) -> bool:
        """Whether both sides hold the same rows."""
        return not self.count and self.rows == self.target_rows

    def add(self, key: str, column: str, what: str) -> None:
        """Count a difference."""
        self.count += 1
        if len(self.differences) < DIFFERENCES_KEPT:
            self.differences.append(Difference(key, column, what))

    def as_dict(self) -> dict[str, Any]:
        """Give it as JSON."""
        return {
            "table": self.table,
            "rows": self.rows,
            "target_rows": self.target_rows,
            "count": self.count,
            "differences": [[each.key, each.column, each.what] for each in self.differences],
            "audit": self.audit,
        }


def read_result(described: dict[str, Any]) -> Result:
    """Read what `Result.as_dict` gave."""
    differences = [Difference(*each) for each in described["differences"]]
    return Result(**{**described, "differences": differences})


def target_query(table: PlannedTable, *, by_key: bool) -> str:
    """Spell what the server is asked for: the carried columns, spelled as texts.

    Args:
        by_key: Put the key first, as texts, and order by it as bytes.
    """
    columns = [
        f"array_to_json({quoted(column.name)})"
        if column.target.type.name == "text[]"
        else quoted(column.name)
        for column in table.columns
    ]
    if not by_key:
        return f"SELECT {', '.join(columns)} FROM ONLY {quoted(table.name)}"
    keys = [f'{quoted(name)}::text COLLATE "C"' for name in table.key]
    order = ", ".join(str(place + 1) for place in range(len(keys)))
    return f"SELECT {', '.join([*keys, *columns])} FROM ONLY {quoted(table.name)} ORDER BY {order}"


def source_query(table: PlannedTable, *, by_key: bool) -> str:
    """Spell the same for the source."""
    if not by_key:
        return table.select()
    keys = []
    for name in table.key:
        column = next(column for column in table.columns if column.name == name)
        if column.target.type.name == "uuid":
            keys.append(f"CAST({UUID_FUNCTION}({column.expression}) AS TEXT)")
        else:
            keys.append(f"CAST({column.expression} AS TEXT)")
    columns = [column.expression for column in table.columns]
    order = ", ".join(str(place + 1) for place in range(len(keys)))
    return f"SELECT {', '.join([*keys, *columns])} FROM {table.source()} ORDER BY {order}"


class Comparison:
    """The comparison of one table, fed with what the server sends; holds a cursor on the source.

    Args:
        source: The frozen copy, from `opened_copy`.
        table: As it was sent.
        by_key: Which of the two orders; see the module.
    """

    def __init__(self, source: sqlite3.Connection, table: PlannedTable, *, by_key: bool) -> None:
        self._table = table
        self._by_key = by_key
        self._cursor = source.execute(source_query(table, by_key=by_key))
        self._lines: list[bytes] = []
        self._rest = b""
        self._result = Result(table.name)
        self._given_up = False
        self._pending: tuple[Any, ...] | None = None
        self._audit = AuditTrail(table) if table.name == AUDIT_TABLE and not by_key else None

    def feed(self, content: bytes) -> None:
        """Take the next piece of the server's answer, cut anywhere."""
        lines = (self._rest + content).split(b"\n")
        self._rest = lines.pop()
        self._lines.extend(lines)
        self._take_lines(len(self._lines) // ROWS_AT_ONCE * ROWS_AT_ONCE)

    def finish(self) -> Result:
        """Compare what is left and give the result.

        Returns:
            In order of sending, a difference ends the comparison: its `count` is 1 then, and only
            the numbers of rows are whole.
        """
        self._take_lines(len(self._lines))
        if self._by_key:
            while (row := self._next()) is not None:
                self._result.add(_shown(row[: len(self._table.key)]), "", "missing")
        else:
            for _ in self._cursor:
                self._result.rows += 1
        if self._result.rows != self._result.target_rows and not self._result.count:
            self._result.add("", "", "missing")
        if self._audit:
            self._result.audit = self._audit.as_dict()
        return self._result

    def _take_lines(self, count: int) -> None:
        for first in range(0, count, ROWS_AT_ONCE):
            lines = self._lines[first : min(first + ROWS_AT_ONCE, count)]
            self._result.target_rows += len(lines)
            if not self._given_up:
                self._take([line.split(b"\t") for line in lines])
        del self._lines[:count]

    def _take(self, met: list[list[bytes]]) -> None:
        count = len(met)
        if self._by_key:
            self._take_by_key(met)
            return
        rows = self._cursor.fetchmany(count)
        self._result.rows += len(rows)
        if len(rows) < count:
            self._give_up("", "extra")
            return
        expected = list(zip(*rows, strict=True))
        columns = list(zip(*met, strict=True))
        for planned, sources, targets in zip(self._table.columns, expected, columns, strict=False):
            if differing(planned.target.type, sources, targets):
                self._give_up(planned.name, "differs")
                return
        if self._audit:
            self._audit.add(expected[:-1], columns)

    def _give_up(self, column: str, what: str) -> None:
        """End a comparison in order: what follows would differ for the order alone."""
        self._result.add("", column, what)
        self._given_up = True

    def _take_by_key(self, met: list[list[bytes]]) -> None:
        width = len(self._table.key)
        pairs: list[tuple[tuple[Any, ...], list[bytes]]] = []
        for line in met:
            key = [unescaped(value) for value in line[:width]]
            while (row := self._next()) is not None and _key(row, width) < key:
                self._result.add(_shown(row[:width]), "", "missing")
            if row is not None and _key(row, width) == key:
                pairs.append((row, line))
            else:
                self._pending = row
                self._result.add(b", ".join(key).decode("utf-8", "replace"), "", "extra")
        if pairs:
            self._compare_pairs(pairs, width)

    def _compare_pairs(self, pairs: Sequence[tuple[Any, list[bytes]]], width: int) -> None:
        rows: list[Column] = list(zip(*(row[width:] for row, _ in pairs), strict=True))
        lines = list(zip(*(line[width:] for _, line in pairs), strict=True))
        for planned, sources, targets in zip(self._table.columns, rows, lines, strict=True):
            for place in differing(planned.target.type, sources, targets):
                self._result.add(_shown(pairs[place][0][:width]), planned.name, "differs")

    def _next(self) -> tuple[Any, ...] | None:
        if self._pending is not None:
            row, self._pending = self._pending, None
            return row
        following: tuple[Any, ...] | None = self._cursor.fetchone()
        if following is not None:
            self._result.rows += 1
        return following


def _key(row: tuple[Any, ...], width: int) -> list[bytes]:
    return [NULL if value is None else bytes(value) for value in row[:width]]


def _shown(key: Sequence[bytearray | None]) -> str:
    return ", ".join("NULL" if value is None else value.decode("utf-8", "replace") for value in key)
