"""Record repairs and refusals in tables of their own in the frozen copy.

The rows of the home remain unchanged. A repaired value is recorded by table, column and rowid, a
refused row by table and rowid. The plan that `applied` returns reads through both, so the copy and
the comparison read the same rows; the log has each value before and after.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import sqlite3
from collections.abc import Iterator
from typing import Any

from sagewai_ops.database.sqlite.read_transaction import quoted, quoted_text
from sagewai_ops.export.convert.value import Stored
from sagewai_ops.export.mapping.plan import Plan, PlannedTable
from sagewai_ops.export.mapping.source_rows import read_key

_PREFIX = "sagewai_ops_re"
IS_OWN = f"lower(tbl_name) GLOB '{_PREFIX}*'"  # in SQL; perhaps also a table of the home
_LENGTH = (
    f"SELECT ifnull(max(length(name)), 0) FROM sqlite_master WHERE lower(name) GLOB '{_PREFIX}*'"
)


def own_tables(copy: sqlite3.Connection) -> tuple[str, str]:
    """Return the tables of repairs and of refusals of a copy that was prepared.

    A home may have tables of any name, so ours are longer than all others with the same prefix.
    """
    return _names(*copy.execute(_LENGTH).fetchone())


def prepare(copy: sqlite3.Connection) -> None:
    """Create the tables for repairs and refusals in a frozen copy."""
    repaired, refused = _names(copy.execute(_LENGTH).fetchone()[0] + 1)
    copy.executescript(
        f"""
        CREATE TABLE {repaired} (owner TEXT, name TEXT, row INTEGER, kind TEXT, value,
            PRIMARY KEY (owner, name, row)) WITHOUT ROWID;
        CREATE TABLE {refused} (owner TEXT, row INTEGER, kind TEXT, name TEXT, detail TEXT,
            PRIMARY KEY (owner, row)) WITHOUT ROWID;
        """
    )


def record_repair(
    copy: sqlite3.Connection, table: str, column: str, row: int, kind: str, value: Stored | None
) -> None:
    """Record a repaired value; a later repair of the same value replaces it."""
    repaired_table, _ = own_tables(copy)
    stored = value.decode() if isinstance(value, bytearray) else value
    copy.execute(
        f"INSERT OR REPLACE INTO {repaired_table} VALUES (?, ?, ?, ?, ?)",
        (table, column, row, kind, stored),
    )


def record_repairs(
    copy: sqlite3.Connection, table: str, column: str, kind: str, repair: str
) -> None:
    """Record the repairs that a query returns, as rowid and value."""
    repaired_table, _ = own_tables(copy)
    copy.execute(
        f"INSERT OR REPLACE INTO {repaired_table} (owner, name, row, kind, value)"
        f" SELECT ?, ?, row, ?, value FROM ({repair})",
        (table, column, kind),
    )


def record_refusals(
    copy: sqlite3.Connection, table: str, rows: str, kind: str, column: str, detail: str
) -> None:
    """Record rows that are not exported, by a query for rowids."""
    _, refused_table = own_tables(copy)
    copy.execute(
        f"INSERT OR IGNORE INTO {refused_table} (owner, row, kind, name, detail)"
        f" SELECT ?, row, ?, ?, ? FROM (SELECT row FROM ({rows}))",
        (table, kind, column, detail),
    )


def discard_repairs_of_refused_rows(copy: sqlite3.Connection) -> None:
    """Forget the repairs of rows that are not exported."""
    repaired_table, refused_table = own_tables(copy)
    copy.execute(
        f"DELETE FROM {repaired_table}"
        f" WHERE (owner, row) IN (SELECT owner, row FROM {refused_table})"
    )


def applied(copy: sqlite3.Connection, plan: Plan) -> Plan:
    """Return the plan that reads repaired values and omits refused rows."""
    repaired_table, refused_table = own_tables(copy)
    repaired: dict[str, set[str]] = {}
    for owner, name in copy.execute(f"SELECT DISTINCT owner, name FROM {repaired_table}"):
        repaired.setdefault(owner.decode(), set()).add(name.decode())
    refused = {
        owner.decode(): count
        for owner, count in copy.execute(
            f"SELECT owner, count(*) FROM {refused_table} GROUP BY owner"
        )
    }
    tables = tuple(
        _overlaid(
            table,
            repaired.get(table.name, set()),
            refused.get(table.name, 0),
            (repaired_table, refused_table),
        )
        for table in plan.tables
    )
    return dataclasses.replace(
        plan,
        tables=tuple(table for table in tables if table.rows),
        empty=(*plan.empty, *(table.name for table in tables if not table.rows)),
    )


def counts(copy: sqlite3.Connection) -> tuple[int, int]:
    """Count repaired values and refused rows."""
    repaired_table, refused_table = own_tables(copy)
    (repaired,) = copy.execute(f"SELECT count(*) FROM {repaired_table}").fetchone()
    (refused,) = copy.execute(f"SELECT count(*) FROM {refused_table}").fetchone()
    return int(repaired), int(refused)


def repaired_values(copy: sqlite3.Connection, table: str) -> list[tuple[int, str]]:
    """List the repaired values of a table: rowid and column."""
    repaired_table, _ = own_tables(copy)
    query = f"SELECT row, name FROM {repaired_table} WHERE owner = ? ORDER BY row, name"
    return [(row, name.decode()) for row, name in copy.execute(query, (table,))]


def refused_rows(copy: sqlite3.Connection, table: str) -> int:
    """Count the refused rows of a table."""
    _, refused_table = own_tables(copy)
    query = f"SELECT count(*) FROM {refused_table} WHERE owner = ?"
    (count,) = copy.execute(query, (table,)).fetchone()
    return int(count)


def changes(copy: sqlite3.Connection, plan: Plan) -> Iterator[dict[str, Any]]:
    """Yield every repaired value: where it is, why, before and after.

    Args:
        plan: As it was before `applied`.
    """
    repaired_table, _ = own_tables(copy)
    for table in plan.tables:
        query = (
            f"SELECT name, row, kind, value FROM {repaired_table}"
            " WHERE owner = ? ORDER BY row, name"
        )
        for name, row, kind, after in copy.execute(query, (table.name,)).fetchall():
            column = name.decode()
            read = f"SELECT {quoted(column)} FROM {quoted(table.name)} WHERE rowid = ?"
            (before,) = copy.execute(read, (row,)).fetchone()
            yield {
                "table": table.name,
                "key": _row_as_json(read_key(copy, table, row)),
                "column": column,
                "kind": kind.decode(),
                "before": as_json(before),
                "after": as_json(after),
            }


def refusals(copy: sqlite3.Connection, plan: Plan) -> Iterator[dict[str, Any]]:
    """Yield every refused row whole, with the reason."""
    _, refused_table = own_tables(copy)
    for table in plan.tables:
        query = f"SELECT row, kind, name, detail FROM {refused_table} WHERE owner = ? ORDER BY row"
        for row, kind, column, detail in copy.execute(query, (table.name,)).fetchall():
            cursor = copy.execute(f"SELECT * FROM {quoted(table.name)} WHERE rowid = ?", (row,))
            yield {
                "table": table.name,
                "kind": kind.decode(),
                "column": column.decode(),
                "detail": detail.decode(),
                "row": _row(cursor),
            }


def everything_refused(copy: sqlite3.Connection, plan: Plan) -> Iterator[dict[str, Any]]:
    """Yield refused rows, and the values of tables and columns that the target does not have.

    Args:
        plan: As it was before `applied`.
    """
    yield from refusals(copy, plan)
    for finding in plan.findings:
        if finding.kind == "unknown-table" and finding.count:
            yield from unknown_rows(copy, finding.table)
        elif finding.kind == "unknown-column":
            yield from unknown_values(copy, plan.table(finding.table), finding.column)


def unknown_rows(copy: sqlite3.Connection, table: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table that the target does not know."""
    cursor = copy.execute(f"SELECT * FROM {quoted(table)}")
    names = [description[0] for description in cursor.description]
    for row in cursor:
        yield {
            "table": table,
            "kind": "unknown-table",
            "column": "",
            "detail": "the target has no such table",
            "row": _row_as_json(dict(zip(names, row, strict=True))),
        }


def unknown_values(copy: sqlite3.Connection, table: PlannedTable, column: str) -> Iterator[Any]:
    """Yield the values of a column that the target does not know, with their rows' keys."""
    query = f"SELECT rowid, {quoted(column)} FROM {table.source()}"
    for row, value in copy.execute(query):
        if value is not None:
            yield {
                "table": table.name,
                "kind": "unknown-column",
                "column": column,
                "detail": "the target's table has no such column",
                "key": _row_as_json(read_key(copy, table, row)),
                "value": as_json(value),
            }


def as_json(value: object) -> object:
    """Return a stored value as JSON: text, number or null unchanged, bytes in base64."""
    if isinstance(value, bytearray):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"text_base64": base64.b64encode(value).decode()}
    if isinstance(value, bytes):
        return {"blob_base64": base64.b64encode(value).decode()}
    if isinstance(value, float) and json.dumps(value) in ("Infinity", "-Infinity"):
        return {"real": repr(value)}
    return value


def _row(cursor: sqlite3.Cursor) -> dict[str, object]:
    names = [description[0] for description in cursor.description]
    return _row_as_json(dict(zip(names, cursor.fetchone(), strict=True)))


def _row_as_json(row: dict[str, Any]) -> dict[str, object]:
    return {name: as_json(value) for name, value in row.items()}


def _overlaid(
    table: PlannedTable, repaired: set[str], refused: int, own: tuple[str, str]
) -> PlannedTable:
    repaired_table, refused_table = own
    row = f"{quoted(table.name)}.rowid"
    owner = quoted_text(table.name)
    columns = []
    for column in table.columns:
        if column.name in repaired:
            where_value = f"owner = {owner} AND name = {quoted_text(column.name)} AND row = {row}"
            found = f"FROM {repaired_table} WHERE {where_value}"
            expression = (
                f"CASE WHEN EXISTS (SELECT 1 {found}) THEN (SELECT value {found})"
                f" ELSE {column.expression} END"
            )
            columns.append(dataclasses.replace(column, expression=expression))
        else:
            columns.append(column)
    where = table.where
    if refused:
        where = f"{row} NOT IN (SELECT row FROM {refused_table} WHERE owner = {owner})"
    return dataclasses.replace(
        table, columns=tuple(columns), rows=table.rows - refused, where=where
    )


def _names(length: int) -> tuple[str, str]:
    repaired = f"{_PREFIX}paired".ljust(length, "_")
    return repaired, f"{_PREFIX}fused".ljust(len(repaired), "_")
