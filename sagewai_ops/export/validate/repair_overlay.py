"""Repairs and refusals beside the frozen copy: its rows stay as they were in the home.

A repaired value stands in a table of ours, by table, column and rowid; a refused row is named in
another. The plan that comes out reads through both, so the copy and the comparison see the same
rows; the log has the value before and after.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import sqlite3
from collections.abc import Iterator
from typing import Any

from sagewai_ops.database.sqlite.read_transaction import quoted
from sagewai_ops.export.convert.value import Stored
from sagewai_ops.export.mapping.plan import Plan, PlannedTable
from sagewai_ops.export.mapping.source_rows import key_of

MENDED = "sagewai_ops_mended"
REFUSED = "sagewai_ops_refused"
_DEFINITIONS = f"""
CREATE TABLE {MENDED} (owner TEXT, name TEXT, row INTEGER, kind TEXT, value,
                       PRIMARY KEY (owner, name, row)) WITHOUT ROWID;
CREATE TABLE {REFUSED} (owner TEXT, row INTEGER, kind TEXT, name TEXT, detail TEXT,
                        PRIMARY KEY (owner, row)) WITHOUT ROWID;
"""


def prepare(copy: sqlite3.Connection) -> None:
    """Make room for repairs and refusals in a frozen copy."""
    copy.executescript(_DEFINITIONS)


def mend_value(
    copy: sqlite3.Connection, table: str, column: str, row: int, kind: str, value: Stored | None
) -> None:
    """Note a repaired value; a later repair of the same value takes its place."""
    stored = value.decode() if isinstance(value, bytearray) else value
    copy.execute(
        f"INSERT OR REPLACE INTO {MENDED} VALUES (?, ?, ?, ?, ?)",
        (table, column, row, kind, stored),
    )


def mend_rows(copy: sqlite3.Connection, table: str, column: str, kind: str, repair: str) -> None:
    """Note the repairs that a query gives, as rowid and value."""
    copy.execute(
        f"INSERT OR REPLACE INTO {MENDED} (owner, name, row, kind, value)"
        f" SELECT ?, ?, row, ?, value FROM ({repair})",
        (table, column, kind),
    )


def refuse_rows(
    copy: sqlite3.Connection, table: str, rows: str, kind: str, column: str, detail: str
) -> None:
    """Note rows that are not carried, as a query for rowids gives them."""
    copy.execute(
        f"INSERT OR IGNORE INTO {REFUSED} (owner, row, kind, name, detail)"
        f" SELECT ?, row, ?, ?, ? FROM (SELECT row FROM ({rows}))",
        (table, kind, column, detail),
    )


def applied(copy: sqlite3.Connection, plan: Plan) -> Plan:
    """Give the plan that reads repaired values and leaves refused rows out."""
    mended: dict[str, set[str]] = {}
    for owner, name in copy.execute(f"SELECT DISTINCT owner, name FROM {MENDED}"):
        mended.setdefault(owner.decode(), set()).add(name.decode())
    refused = {
        owner.decode(): count
        for owner, count in copy.execute(f"SELECT owner, count(*) FROM {REFUSED} GROUP BY owner")
    }
    tables = tuple(
        _overlaid(table, mended.get(table.name, set()), refused.get(table.name, 0))
        for table in plan.tables
    )
    return dataclasses.replace(
        plan,
        tables=tuple(table for table in tables if table.rows),
        empty=(*plan.empty, *(table.name for table in tables if not table.rows)),
    )


def counts(copy: sqlite3.Connection) -> tuple[int, int]:
    """Count repaired values and refused rows."""
    (mended,) = copy.execute(f"SELECT count(*) FROM {MENDED}").fetchone()
    (refused,) = copy.execute(f"SELECT count(*) FROM {REFUSED}").fetchone()
    return int(mended), int(refused)


def mended_values(copy: sqlite3.Connection, table: str) -> list[tuple[int, str]]:
    """List the repaired values of a table: rowid and column."""
    query = f"SELECT row, name FROM {MENDED} WHERE owner = ? ORDER BY row, name"
    return [(row, name.decode()) for row, name in copy.execute(query, (table,))]


def refused_rows(copy: sqlite3.Connection, table: str) -> int:
    """Count the refused rows of a table."""
    query = f"SELECT count(*) FROM {REFUSED} WHERE owner = ?"
    (count,) = copy.execute(query, (table,)).fetchone()
    return int(count)


def changes(copy: sqlite3.Connection, plan: Plan) -> Iterator[dict[str, Any]]:
    """Yield every repaired value: where it is, why, before and after.

    Args:
        plan: As it was before `applied`.
    """
    for table in plan.tables:
        query = f"SELECT name, row, kind, value FROM {MENDED} WHERE owner = ? ORDER BY row, name"
        for name, row, kind, after in copy.execute(query, (table.name,)).fetchall():
            column = name.decode()
            read = f"SELECT {quoted(column)} FROM {quoted(table.name)} WHERE rowid = ?"
            (before,) = copy.execute(read, (row,)).fetchone()
            yield {
                "table": table.name,
                "key": _spelled(key_of(copy, table, row)),
                "column": column,
                "kind": kind.decode(),
                "before": as_json(before),
                "after": as_json(after),
            }


def refusals(copy: sqlite3.Connection, plan: Plan) -> Iterator[dict[str, Any]]:
    """Yield every refused row whole, with the reason."""
    for table in plan.tables:
        query = f"SELECT row, kind, name, detail FROM {REFUSED} WHERE owner = ? ORDER BY row"
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
    """Yield what is not carried: refused rows, and what the target has no place for.

    Args:
        plan: As it was before `applied`.
    """
    yield from refusals(copy, plan)
    for finding in plan.findings:
        if finding.kind == "unknown-table" and finding.count:
            yield from foreign_rows(copy, finding.table)
        elif finding.kind == "unknown-column":
            yield from foreign_values(copy, plan.table(finding.table), finding.column)


def foreign_rows(copy: sqlite3.Connection, table: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table that the target does not know."""
    cursor = copy.execute(f"SELECT * FROM {quoted(table)}")
    names = [description[0] for description in cursor.description]
    for row in cursor:
        yield {
            "table": table,
            "kind": "unknown-table",
            "column": "",
            "detail": "the target has no such table",
            "row": _spelled(dict(zip(names, row, strict=True))),
        }


def foreign_values(copy: sqlite3.Connection, table: PlannedTable, column: str) -> Iterator[Any]:
    """Yield the values of a column that the target does not know, with their rows' keys."""
    query = f"SELECT rowid, {quoted(column)} FROM {table.source()}"
    for row, value in copy.execute(query):
        if value is not None:
            yield {
                "table": table.name,
                "kind": "unknown-column",
                "column": column,
                "detail": "the target's table has no such column",
                "key": _spelled(key_of(copy, table, row)),
                "value": as_json(value),
            }


def as_json(value: object) -> object:
    """Give a stored value as JSON: text, number or null as themselves, bytes in base64."""
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
    return _spelled(dict(zip(names, cursor.fetchone(), strict=True)))


def _spelled(row: dict[str, Any]) -> dict[str, object]:
    return {name: as_json(value) for name, value in row.items()}


def _overlaid(table: PlannedTable, mended: set[str], refused: int) -> PlannedTable:
    row = f"{quoted(table.name)}.rowid"
    owner = _quoted_text(table.name)
    columns = []
    for column in table.columns:
        if column.name in mended:
            place = f"owner = {owner} AND name = {_quoted_text(column.name)} AND row = {row}"
            found = f"(SELECT value FROM {MENDED} WHERE {place})"
            expression = (
                f"CASE WHEN EXISTS (SELECT 1 FROM {MENDED} WHERE {place}) THEN {found}"
                f" ELSE {column.expression} END"
            )
            columns.append(dataclasses.replace(column, expression=expression))
        else:
            columns.append(column)
    where = table.where
    if refused:
        where = f"{row} NOT IN (SELECT row FROM {REFUSED} WHERE owner = {owner})"
    return dataclasses.replace(
        table, columns=tuple(columns), rows=table.rows - refused, where=where
    )


def _quoted_text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
