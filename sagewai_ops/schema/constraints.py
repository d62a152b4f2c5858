"""Rows of a home that break what its own tables, a fresh home's, or PostgreSQL's demand.

SQLite checks a reference only on connections that ask for it, and an old table lacks constraints
that later ones have; PostgreSQL has all of them. Here every row is tried, whatever the table says.
"""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sagewai_ops.database.sqlite.read_transaction import quoted
from sagewai_ops.schema import sqlite_catalog
from sagewai_ops.schema.findings import EXAMPLES, Finding, Tally, spelled_key
from sagewai_ops.schema.scan import Plan, key_of

if TYPE_CHECKING:
    from sqlalchemy import Table

Facts = Mapping[str, sqlite_catalog.Table]


def broken_checks(connection: sqlite3.Connection, table: Table, plan: Plan, tally: Tally) -> None:
    """Find the rows that break a CHECK of PostgreSQL or of a fresh home."""
    from sqlalchemy import CheckConstraint

    present = {column.name for column in plan.columns}
    checks = [
        (str(constraint.name), str(constraint.sqltext))
        for constraint in sorted(table.constraints, key=lambda each: str(each.name))
        if isinstance(constraint, CheckConstraint) and _columns_of(constraint, table) <= present
    ]
    if not checks:
        return
    # A CHECK holds unless it is false: NULL passes.
    broken = [f"({condition}) IS 0" for _, condition in checks]
    statement = (
        f"SELECT _rowid_, {', '.join(broken)} FROM {quoted(table.name)} NOT INDEXED"  # noqa: S608
        f" WHERE {' OR '.join(broken)}"
    )
    for number, *failed in connection.execute(statement):
        for (name, _), is_broken in zip(checks, failed, strict=True):
            if is_broken:
                reason = f"breaks the CHECK {name}"
                key = functools.partial(key_of, connection, plan)
                tally.add("check", table.name, "", reason, [number], key)


def _columns_of(constraint: object, table: Table) -> set[str]:
    """Name the columns that a condition is about, by the words in it."""
    words = set(sqlite_catalog.normalised(str(getattr(constraint, "sqltext", ""))).split())
    return words & set(table.columns.keys())


@dataclass(frozen=True, slots=True)
class _Unique:
    columns: tuple[str, ...]
    where: str = ""


def duplicates(connection: sqlite3.Connection, table: Table, present: Facts) -> Iterator[Finding]:
    """Find the rows that PostgreSQL would call duplicates and that this table lets stand."""
    there = present[table.name]
    enforced = {_Unique(columns) for columns in there.uniques} | {
        _Unique(index.columns, index.where) for index in there.indexes.values() if index.unique
    }
    enforced.add(_Unique(tuple(sorted(c.name for c in there.columns.values() if c.key))))
    for unique in sorted(_uniques(table), key=lambda each: (each.columns, each.where)):
        key = _Unique(tuple(sorted(unique.columns)), unique.where)
        if unique in enforced or key in enforced or not set(unique.columns) <= set(there.columns):
            continue
        names = ", ".join(quoted(column) for column in unique.columns)
        conditions = [f"{quoted(column)} IS NOT NULL" for column in unique.columns]
        conditions += [unique.where] if unique.where else []
        statement = (
            f"SELECT count(*), {names} FROM {quoted(table.name)}"  # noqa: S608
            f" WHERE {' AND '.join(conditions)} GROUP BY {names} HAVING count(*) > 1"
        )
        rows = 0
        examples: list[str] = []
        for count, *values in connection.execute(statement):
            rows += count
            if len(examples) < EXAMPLES:
                examples.append(spelled_key(values))
        if rows:
            reason = f"are equal in {', '.join(unique.columns)}, which PostgreSQL refuses"
            yield Finding("unique", table.name, "", reason, rows, tuple(examples))


def _uniques(table: Table) -> Iterator[_Unique]:
    from sqlalchemy import PrimaryKeyConstraint, UniqueConstraint

    for constraint in table.constraints:
        if isinstance(constraint, (PrimaryKeyConstraint, UniqueConstraint)):
            yield _Unique(tuple(constraint.columns.keys()))
    for index in table.indexes:
        if index.unique:
            where = index.dialect_options["sqlite"].get("where")
            condition = sqlite_catalog.normalised(str(where)) if where is not None else ""
            yield _Unique(tuple(column.name for column in index.columns), condition)


def dangling_references(
    connection: sqlite3.Connection, table: str, plan: Plan, present: Facts
) -> Iterator[Finding]:
    """Find the rows that refer to a row that is not there, by the references of a fresh home.

    Whether this table declares the reference does not matter.
    """
    fresh, there = sqlite_catalog.expected()[table], present[table]
    for reference in sorted(fresh.foreign_keys | there.foreign_keys, key=str):
        parent = present.get(reference.table)
        targets = reference.targets
        if not set(reference.columns) <= set(there.columns):
            continue
        if parent is None or not set(targets) <= set(parent.columns):
            yield Finding(
                "foreign-key", table, "", f"{reference.shown}: cannot be checked, no such parent"
            )
            continue
        pairs = zip(reference.columns, targets, strict=True)
        match = " AND ".join(f"p.{quoted(target)} = c.{quoted(name)}" for name, target in pairs)
        given = " AND ".join(f"c.{quoted(name)} IS NOT NULL" for name in reference.columns)
        statement = (
            f"SELECT c._rowid_ FROM {quoted(table)} c WHERE {given} AND NOT EXISTS"  # noqa: S608
            f" (SELECT 1 FROM {quoted(reference.table)} p WHERE {match})"
        )
        rows = 0
        examples: list[str] = []
        for (number,) in connection.execute(statement):
            rows += 1
            if len(examples) < EXAMPLES:
                examples.append(key_of(connection, plan, number))
        if rows:
            column = reference.columns[0] if len(reference.columns) == 1 else ""
            reason = f"{reference.shown}: refers to a row that is not there"
            yield Finding("foreign-key", table, column, reason, rows, tuple(examples))
