"""Find rows of a home that violate constraints of its own tables, a fresh home's, or PostgreSQL's.

SQLite checks a reference only on connections that enable it, and an old table lacks constraints
that later ones have; PostgreSQL has all of them. Here every row is checked, whatever the table
declares.
"""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Iterator, Mapping
from typing import TypeAlias

from sagewai_ops.database.sqlite.read_transaction import quoted
from sagewai_ops.records import dataclass
from sagewai_ops.schema import postgres_head, sqlite_catalog
from sagewai_ops.schema.findings import EXAMPLES, Finding, Tally, format_key

Tables: TypeAlias = Mapping[str, sqlite_catalog.Table]


def read_key(connection: sqlite3.Connection, table: str, present: Tables, rowid: int) -> str:
    """Return the primary key of a row for people; its rowid where it has none."""
    columns = present[table].columns
    fresh = sqlite_catalog.expected()[table].columns.values()
    keys = sorted((column for column in fresh if column.key), key=lambda column: column.key)
    names = [quoted(column.name) for column in keys if column.name in columns]
    statement = f"SELECT {', '.join(names) or '_rowid_'} FROM {quoted(table)} WHERE _rowid_ = ?"  # noqa: S608
    row = connection.execute(statement, (rowid,)).fetchone()
    return format_key(row) if row else str(rowid)


def find_check_violations(
    connection: sqlite3.Connection, table: str, present: Tables, tally: Tally
) -> None:
    """Count the rows that violate a CHECK of PostgreSQL, which has all those of a fresh home."""
    columns = present[table].columns.keys()
    checks = [
        (name, condition)
        for name, condition in postgres_head.checks(table)
        if _columns_of(condition, table) <= columns
    ]
    if not checks:
        return
    # A CHECK holds unless it is false: NULL passes.
    violated = [f"({condition}) IS 0" for _, condition in checks]
    statement = (
        f"SELECT _rowid_, {', '.join(violated)} FROM {quoted(table)} NOT INDEXED"  # noqa: S608
        f" WHERE {' OR '.join(violated)}"
    )
    key = functools.partial(read_key, connection, table, present)
    for rowid, *failed in connection.execute(statement):
        for (name, _), is_violated in zip(checks, failed, strict=True):
            if is_violated:
                tally.add("check", table, "", f"violates the CHECK {name}", [rowid], key)


def _columns_of(condition: str, table: str) -> set[str]:
    """Return the columns of a condition, found by the words in it."""
    words = set(sqlite_catalog.normalised(condition).split())
    return words & sqlite_catalog.expected()[table].columns.keys()


@dataclass(frozen=True, slots=True)
class _Unique:
    columns: tuple[str, ...]
    where: str = ""


def find_duplicates(
    connection: sqlite3.Connection, table: str, present: Tables
) -> Iterator[Finding]:
    """Find the rows that are duplicates in PostgreSQL and that this table allows."""
    catalog = present[table]
    enforced = {_Unique(columns) for columns in catalog.uniques} | {
        _Unique(index.columns, index.where) for index in catalog.indexes.values() if index.unique
    }
    enforced.add(_Unique(tuple(sorted(c.name for c in catalog.columns.values() if c.key))))
    for unique in sorted(set(_uniques(table)), key=lambda each: (each.columns, each.where)):
        key = _Unique(tuple(sorted(unique.columns)), unique.where)
        if unique in enforced or key in enforced or not set(unique.columns) <= set(catalog.columns):
            continue
        names = ", ".join(quoted(column) for column in unique.columns)
        conditions = [f"{quoted(column)} IS NOT NULL" for column in unique.columns]
        conditions += [unique.where] if unique.where else []
        statement = (
            f"SELECT count(*), {names} FROM {quoted(table)}"  # noqa: S608
            f" WHERE {' AND '.join(conditions)} GROUP BY {names} HAVING count(*) > 1"
        )
        rows = 0
        examples: list[str] = []
        for count, *values in connection.execute(statement):
            rows += count
            if len(examples) < EXAMPLES:
                examples.append(format_key(values))
        if rows:
            reason = f"are equal in {', '.join(unique.columns)}, which PostgreSQL refuses"
            yield Finding("unique", table, "", reason, rows, tuple(examples))


def _uniques(table: str) -> Iterator[_Unique]:
    """Yield the keys, unique constraints and unique indexes of a fresh home and of PostgreSQL."""
    fresh = sqlite_catalog.expected()[table]
    keys = sorted((column.key, column.name) for column in fresh.columns.values() if column.key)
    yield _Unique(tuple(name for _position, name in keys))
    for columns in (*fresh.uniques, *postgres_head.unique_constraints(table)):
        yield _Unique(columns)
    for index in fresh.indexes.values():
        if index.unique:
            yield _Unique(index.columns, index.where)


def find_dangling_references(
    connection: sqlite3.Connection, table: str, present: Tables
) -> Iterator[Finding]:
    """Find the rows that refer to a row that does not exist, by the references of a fresh home.

    It does not matter whether this table declares the reference.
    """
    fresh, catalog = sqlite_catalog.expected()[table], present[table]
    for reference in sorted(fresh.foreign_keys | catalog.foreign_keys, key=str):
        parent = present.get(reference.table)
        targets = reference.targets
        if not set(reference.columns) <= set(catalog.columns):
            continue
        if parent is None or not set(targets) <= set(parent.columns):
            yield Finding(
                "foreign-key", table, "", f"{reference.shown}: not checked, no such parent"
            )
            continue
        pairs = zip(reference.columns, targets, strict=True)
        match = " AND ".join(f"p.{quoted(target)} = c.{quoted(name)}" for name, target in pairs)
        is_set = " AND ".join(f"c.{quoted(name)} IS NOT NULL" for name in reference.columns)
        statement = (
            f"SELECT c._rowid_ FROM {quoted(table)} c WHERE {is_set} AND NOT EXISTS"  # noqa: S608
            f" (SELECT 1 FROM {quoted(reference.table)} p WHERE {match})"
        )
        rows = 0
        examples: list[str] = []
        for (rowid,) in connection.execute(statement):
            rows += 1
            if len(examples) < EXAMPLES:
                examples.append(read_key(connection, table, present, rowid))
        if rows:
            column = reference.columns[0] if len(reference.columns) == 1 else ""
            reason = f"{reference.shown}: refers to a row that does not exist"
            yield Finding("foreign-key", table, column, reason, rows, tuple(examples))
