"""Compare every row of the target with its source, by value, in bounded memory.

Both sides are compared as texts: the server's output (COPY, text format) and the source, read
again. Nothing of `convert` is used here, so that an error in a conversion is not repeated in the
comparison; changes that a type makes to a value (jsonb's key order and numbers, trailing zeros of
a fraction) are normalised on both sides.

Rows are first compared in the order in which they were sent, block by block: a table that was just
loaded returns them in this order. If it does not, they are compared in the order of their primary
key; only that comparison decides that a table differs.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import field
from typing import Any

from sagewai_ops.database.sqlite.read_transaction import quoted
from sagewai_ops.export.compare.audit_chain import trail_of
from sagewai_ops.export.compare.normalise import NULL, differing, unescaped
from sagewai_ops.export.convert.batch import Column
from sagewai_ops.export.mapping.plan import PlannedTable
from sagewai_ops.export.mapping.source_rows import compared_expression
from sagewai_ops.records import dataclass

ROWS_AT_ONCE = 200
DIFFERENCES_KEPT = 100
_LOWEST_ROWID = -(2**63)


@dataclass(frozen=True, slots=True)
class Difference:
    """A row that differs between the two sides.

    Attributes:
        key: Its primary key.
        column: The column that differs; "" if the whole row is on one side only.
        what: `differs`, `missing` in the target, or `extra` in the target.
    """

    key: str
    column: str
    what: str


@dataclass(slots=True)
class Result:
    """The result of the comparison of a table.

    Attributes:
        rows: In the source.
        target_rows: In the target.
        count: Differences; `differences` has the first.
        audit: From `AuditTrail.as_dict`, for the table of audit events.
    """

    table: str
    rows: int = 0
    target_rows: int = 0
    count: int = 0
    differences: list[Difference] = field(default_factory=list)
    audit: dict[str, Any] | None = None

    @property
    def same(self) -> bool:
        """Whether both sides have the same rows."""
        return not self.count and self.rows == self.target_rows

    def add(self, key: str, column: str, what: str) -> None:
        """Count a difference."""
        self.count += 1
        if len(self.differences) < DIFFERENCES_KEPT:
            self.differences.append(Difference(key, column, what))

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            "table": self.table,
            "rows": self.rows,
            "target_rows": self.target_rows,
            "count": self.count,
            "differences": [[each.key, each.column, each.what] for each in self.differences],
            "audit": self.audit,
        }


def read_result(described: dict[str, Any]) -> Result:
    """Parse the result of `Result.as_dict`."""
    differences = [Difference(*each) for each in described["differences"]]
    return Result(**{**described, "differences": differences})


def target_query(table: PlannedTable, *, by_key: bool) -> str:
    """Return the query of the copied columns of the target.

    Args:
        by_key: Put the key first, as texts, and order by its bytes.
    """
    columns = read_columns(table)
    if not by_key:
        return f"SELECT {', '.join(columns)} FROM ONLY {quoted(table.name)}"
    keys = [f'{quoted(name)}::text COLLATE "C"' for name in table.key]
    order = ", ".join(str(place + 1) for place in range(len(keys)))
    return f"SELECT {', '.join([*keys, *columns])} FROM ONLY {quoted(table.name)} ORDER BY {order}"


def read_columns(table: PlannedTable, prefix: str = "") -> list[str]:
    """Return the expressions of the copied columns of the target.

    Args:
        prefix: Of the columns, such as `t.`.
    """
    return [
        f"pg_catalog.array_to_json({prefix}{quoted(column.name)})"
        if column.target.type.name == "text[]"
        else f"{prefix}{quoted(column.name)}"
        for column in table.columns
    ]


def block_query(table: PlannedTable) -> str:
    """Return the query of some source rows in the order of their rowids, which come last."""
    glue = "AND" if table.where else "WHERE"
    wanted = ", ".join(column.expression for column in table.columns)
    return (
        f"SELECT {wanted}, rowid FROM {table.source()} {glue} rowid >= ?"
        " ORDER BY rowid LIMIT ? OFFSET ?"
    )


class ComparisonInOrder:
    """Compares a table in the order in which its rows were sent, block by block.

    Two of these can share a table, each with some of its blocks, and skip the others.

    Args:
        source: The frozen copy, from `open_copy`.
        table: As it was sent.

    Attributes:
        differs: The first column that differs; None while there is no difference.
    """

    def __init__(self, source: sqlite3.Connection, table: PlannedTable) -> None:
        self._source = source
        self._table = table
        self._query = block_query(table)
        self._rowid, self._place = _LOWEST_ROWID, 0  # the last row that was read, and its position
        self._audit = trail_of(source, table)
        self.differs: str | None = None

    def merge(self, described: dict[str, Any]) -> None:
        """Add the results of another comparison of the same table, from its `as_dict`."""
        self.differs = described["differs"] if self.differs is None else self.differs
        if self._audit and described["audit"]:
            self._audit.merge(described["audit"])

    @property
    def audit(self) -> dict[str, Any] | None:
        """From `AuditTrail.as_dict`, for the table of audit events."""
        return self._audit.as_dict() if self._audit else None

    def as_dict(self) -> dict[str, Any]:
        """Return `differs` and `audit` as a JSON object."""
        return {"differs": self.differs, "audit": self.audit}

    def feed(self, first: int, content: bytes) -> None:
        """Compare some rows, unless a difference was found already.

        Args:
            first: Number of the table's rows before these; blocks must come in order.
            content: Whole lines of the server's output.
        """
        if self.differs is None:
            self.differs = self._compare(first, content)

    def _compare(self, first: int, content: bytes) -> str | None:
        count = content.count(b"\n")
        limits = (self._rowid, count, first - self._place)
        rows = self._source.execute(self._query, limits).fetchall()
        width = len(self._table.columns)
        fields = content[:-1].replace(b"\n", b"\t").split(b"\t")
        if len(rows) < count or len(fields) != count * width:
            return ""
        self._rowid, self._place = rows[-1][-1], first + count - 1
        for start in range(0, count, ROWS_AT_ONCE):
            sources: list[Column] = list(zip(*rows[start : start + ROWS_AT_ONCE], strict=True))
            end = (start + ROWS_AT_ONCE) * width
            targets = [fields[start * width + number : end : width] for number in range(width)]
            for planned, expected, met in zip(self._table.columns, sources, targets):  # noqa: B905 (the rowid is one more)
                if differing(planned.target.type, expected, met):
                    return planned.name
            if self._audit is not None:
                self._audit.add(targets)
        return None


def key_expressions(table: PlannedTable) -> list[str]:
    """Return the expressions of the key's columns in the source, as the server's texts."""
    return [f"CAST({compared_expression(table.column(name))} AS TEXT)" for name in table.key]


def key_query(table: PlannedTable) -> str:
    """Return the query of all source rows in the key order of `target_query`."""
    keys = key_expressions(table)
    columns = [column.expression for column in table.columns]
    order = ", ".join(str(place + 1) for place in range(len(keys)))
    return f"SELECT {', '.join([*keys, *columns])} FROM {table.source()} ORDER BY {order}"


class ComparisonByKey:
    """Compares a table in the order of its key; has a cursor on the source.

    Args:
        source: The frozen copy, from `open_copy`.
        table: As it was sent.
    """

    def __init__(self, source: sqlite3.Connection, table: PlannedTable) -> None:
        self._table = table
        self._width = len(table.key)
        self._cursor = source.execute(key_query(table))
        self._rest = b""
        self._result = Result(table.name)
        self._audit = trail_of(source, table)
        self._pending: tuple[Any, ...] | None = None

    def feed(self, content: bytes) -> None:
        """Compare the next piece of the server's output, which may end within a line."""
        lines = (self._rest + content).split(b"\n")
        self._rest = lines.pop()
        for first in range(0, len(lines), ROWS_AT_ONCE):
            self._compare([line.split(b"\t") for line in lines[first : first + ROWS_AT_ONCE]])

    def finish(self) -> Result:
        """Return the result, after the end of the server's output."""
        while (row := self._next()) is not None:
            self._result.add(_format_key(row[: self._width]), "", "missing")
        self._result.audit = self._audit.as_dict() if self._audit else None
        return self._result

    def _compare(self, met: list[list[bytes]]) -> None:
        self._result.target_rows += len(met)
        pairs: list[tuple[tuple[Any, ...], list[bytes]]] = []
        for line in met:
            key = [unescaped(value) for value in line[: self._width]]
            while (row := self._next()) is not None and self._key(row) < key:
                self._result.add(_format_key(row[: self._width]), "", "missing")
            if row is not None and self._key(row) == key:
                pairs.append((row, line))
            else:
                self._pending = row
                self._result.add(b", ".join(key).decode("utf-8", "replace"), "", "extra")
        if pairs:
            self._compare_pairs(pairs)

    def _compare_pairs(self, pairs: Sequence[tuple[Any, list[bytes]]]) -> None:
        width = self._width
        rows: list[Column] = list(zip(*(row[width:] for row, _ in pairs), strict=True))
        lines = list(zip(*(line[width:] for _, line in pairs), strict=True))
        for planned, sources, targets in zip(self._table.columns, rows, lines, strict=True):
            for place in differing(planned.target.type, sources, targets):
                self._result.add(_format_key(pairs[place][0][:width]), planned.name, "differs")
        if self._audit:
            self._audit.add(lines)

    def _next(self) -> tuple[Any, ...] | None:
        if self._pending is not None:
            row, self._pending = self._pending, None
            return row
        following: tuple[Any, ...] | None = self._cursor.fetchone()
        if following is not None:
            self._result.rows += 1
        return following

    def _key(self, row: tuple[Any, ...]) -> list[bytes]:
        return [NULL if value is None else bytes(value) for value in row[: self._width]]


def _format_key(key: Sequence[bytearray | None]) -> str:
    return ", ".join("NULL" if value is None else value.decode("utf-8", "replace") for value in key)
