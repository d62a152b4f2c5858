"""Find keys that occur twice where the target allows them once.

SQLite homes lack some of the target's unique indexes, and a key that is rewritten can equal another
one. What an index of the source already guarantees is not checked again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from sagewai_ops.database.sqlite.read_transaction import quoted
from sagewai_ops.export.mapping.plan import REWRITTEN, PlannedTable
from sagewai_ops.export.mapping.target_catalog import TargetTable, Unique
from sagewai_ops.export.validate.constraints import Violation, find_rows, rows_of

# Of rows with equal keys, the row in use keeps its key, else the latest. Where these exist.
_RANK = (("is_active", "DESC"), ("updated_at", "DESC"), ("created_at", "DESC"))


def find_duplicates(
    source: sqlite3.Connection, table: PlannedTable, target: TargetTable
) -> Iterator[Violation]:
    """Find rows that a unique index of the target would refuse: all but one of each group."""
    for unique in target.uniques:
        columns = _own_columns(table, target, unique)
        if columns is None or _is_guaranteed(source, table, columns, unique.predicate):
            continue
        present = " AND ".join(f"k{number} IS NOT NULL" for number in range(len(columns)))
        keys = ", ".join(f"k{number}" for number in range(len(columns)))
        predicate = _predicate(source, table, unique)
        if predicate is None:
            continue
        inner = _restricted(table, columns, predicate)
        groups = f"SELECT 1 FROM {inner} WHERE {present} GROUP BY {keys} HAVING count(*) > 1"
        if source.execute(f"{groups} LIMIT 1").fetchone() is None:
            continue
        names = {column.name for column in table.columns}
        rank = [f"{quoted(name)} {direction}" for name, direction in _RANK if name in names]
        order = ", ".join([*rank, "row"])
        ranked = (
            f"SELECT *, row_number() OVER (PARTITION BY {keys} ORDER BY {order}) AS rank"
            f" FROM {inner} WHERE {present}"
        )
        column = _column_to_repair(table, target, unique, columns)
        repair = (column, _repair(table, columns, column, ranked)) if column else ()
        detail = f"the target's {unique.name} allows each key once"
        rows = f"SELECT row FROM ({ranked}) WHERE rank > 1"
        yield from find_rows(source, table, columns, "duplicate", detail, rows, *repair)


def _own_columns(
    table: PlannedTable, target: TargetTable, unique: Unique
) -> tuple[str, ...] | None:
    """Return the columns that distinguish rows; those with a default are equal in every row.

    Returns:
        None where rows cannot be equal, or where only the server knows.
    """
    if not unique.columns:
        return None
    exported = {column.name for column in table.columns}
    others = [name for name in unique.columns if name not in exported]
    if any(not target.columns[name].default or target.columns[name].numbered for name in others):
        return None
    return tuple(name for name in unique.columns if name in exported)


def _predicate(source: sqlite3.Connection, table: PlannedTable, unique: Unique) -> str | None:
    """Return the condition of a partial index; None if SQLite does not parse it."""
    if not unique.predicate:
        return ""
    try:
        source.execute(f"SELECT 1 FROM {quoted(table.name)} WHERE {unique.predicate} LIMIT 0")
    except sqlite3.Error:
        return None
    return unique.predicate


def _restricted(table: PlannedTable, columns: tuple[str, ...], predicate: str) -> str:
    names = {column.name for column in table.columns}
    rank = "".join(f", {quoted(name)}" for name, _ in _RANK if name in names)
    inner = rows_of(table, columns, extra=rank)
    if not predicate:
        return inner
    glue = " AND " if table.where else " WHERE "
    return f"{inner[:-1]}{glue}({predicate}))"


def _is_guaranteed(
    source: sqlite3.Connection, table: PlannedTable, columns: tuple[str, ...], predicate: str
) -> bool:
    """Return whether an index of the source guarantees that these columns are unique.

    A number and a text differ in SQLite even where both become the same text; columns of text
    affinity contain no numbers, so their indexes suffice.
    """
    by_name = {column.name: column for column in table.columns}
    for name in columns:
        plain = by_name[name].expression == quoted(name)
        kind = by_name[name].target.type.name
        if not plain or kind not in ("text", "integer", "uuid"):
            return False
        if kind == "uuid" and _has_other_ids(source, table, name):
            return False
    wanted = {name.encode() for name in columns}
    key = {
        bytes(row[1])
        for row in source.execute(f"PRAGMA table_info({quoted(table.name)})")
        if row[5]
    }
    if key and key <= wanted:
        return True
    for _, name, is_unique, _, is_partial in source.execute(
        f"PRAGMA index_list({quoted(table.name)})"
    ):
        if not is_unique:
            continue
        index = quoted(name.decode())
        parts = [row for row in source.execute(f"PRAGMA index_xinfo({index})") if row[5]]
        if any(row[2] is None or row[4] != b"BINARY" for row in parts):
            continue
        covered = {bytes(row[2]) for row in parts}
        if not is_partial and covered <= wanted:
            return True
        if is_partial and covered == wanted and _condition(source, name) == _normalise(predicate):
            return True
    return False


def _has_other_ids(source: sqlite3.Connection, table: PlannedTable, name: str) -> bool:
    """Return whether some ids are not short ones, which become as many UUIDs."""
    column = quoted(name)
    other = f"length({column}) <> 12 OR {column} GLOB '*[^0-9a-f]*'"
    query = f"SELECT 1 FROM {quoted(table.name)} WHERE {other} LIMIT 1"
    return source.execute(query).fetchone() is not None


def _condition(source: sqlite3.Connection, index: bytearray) -> str:
    (definition,) = source.execute(
        "SELECT sql FROM sqlite_master WHERE type = 'index' AND name = ?", (index.decode(),)
    ).fetchone()
    return _normalise(definition.decode().upper().partition(" WHERE ")[2])


def _normalise(condition: str) -> str:
    return " ".join(condition.replace("(", " ").replace(")", " ").replace('"', "").upper().split())


def _column_to_repair(
    table: PlannedTable, target: TargetTable, unique: Unique, columns: tuple[str, ...]
) -> str:
    """Return the column that a repair may change: the last one without references to it."""
    if any((table.name, name) in REWRITTEN for name in columns):
        return next(name for name in columns if (table.name, name) in REWRITTEN)
    if unique.primary:
        return ""
    bound = {name for key in target.foreign_keys for name in key.columns} | set(target.key)
    free = [name for name in reversed(columns) if name not in bound]
    kinds = {column.name: column.target.type for column in table.columns}
    return next((name for name in free if kinds[name].name in ("text", "integer")), "")


def _repair(table: PlannedTable, columns: tuple[str, ...], column: str, ranked: str) -> str:
    """Return the query for rowids and values that make keys unique."""
    key_column = f"k{columns.index(column)}"
    if (table.name, column) in REWRITTEN:
        # The key of the row on SQLite: longer, and unique.
        value = f"(SELECT t.{quoted(column)} FROM {quoted(table.name)} t WHERE t.rowid = row)"
    elif table.column(column).target.type.name == "text":
        key = " || ',' || ".join(
            f"(SELECT t.{quoted(name)} FROM {quoted(table.name)} t WHERE t.rowid = row)"
            for name in table.key
        )
        value = f"{key_column} || ' (' || {key} || ')'"
    else:
        others = ", ".join(
            f"k{number}" for number in range(len(columns)) if f"k{number}" != key_column
        )
        highest = (
            f"max({key_column}) OVER (PARTITION BY {others})"
            if others
            else f"max({key_column}) OVER ()"
        )
        numbered = f"SELECT *, {highest} AS highest FROM ({ranked})"
        by = f"PARTITION BY {others} " if others else ""
        return (
            f"SELECT row, highest + row_number() OVER ({by}ORDER BY {key_column}, row) AS value"
            f" FROM ({numbered}) WHERE rank > 1"
        )
    return f"SELECT row, {value} AS value FROM ({ranked}) WHERE rank > 1"
