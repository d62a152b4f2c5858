"""Compare a home's tables with a fresh home's, one finding for each difference."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from typing import Literal

from sagewai_ops.records import dataclass
from sagewai_ops.schema import sqlite_catalog

Kind = Literal[
    "missing-table",
    "missing-column",
    "extra-column",
    "type",
    "missing-not-null",
    "extra-not-null",
    "default",
    "primary-key",
    "missing-check",
    "extra-check",
    "missing-unique",
    "extra-unique",
    "missing-foreign-key",
    "extra-foreign-key",
    "missing-index",
    "different-index",
]
ADDED_BY_UPGRADE: frozenset[Kind] = frozenset(("missing-table", "missing-column", "missing-index"))


@dataclass(frozen=True, slots=True)
class Drift:
    """One difference.

    Attributes:
        name: The column or index; empty for what concerns the whole table.
        wanted: What a fresh home has, in the words of DDL; empty for nothing.
        found: What this home has.
    """

    table: str
    name: str
    kind: Kind
    wanted: str = ""
    found: str = ""

    @property
    def is_addable(self) -> bool:
        """Whether `db upgrade` adds it."""
        return self.kind in ADDED_BY_UPGRADE

    @property
    def shown(self) -> str:
        """One line about it."""
        place = f"{self.table}.{self.name}" if self.name else self.table
        parts = [f"{place}: {self.kind.replace('-', ' ')}"]
        if self.wanted:
            parts.append(f"a fresh home has {self.wanted}")
        if self.found:
            parts.append(f"found {self.found}")
        return ", ".join(parts)


def find_drift(connection: sqlite3.Connection) -> tuple[Drift, ...]:
    """Compare every table of Sagewai with a fresh home's; the user's own are not compared.

    Raises:
        sqlite3.Error: The database cannot be read.
    """
    return tuple(drift_of(sqlite_catalog.read_tables(connection, sqlite_catalog.expected())))


def drift_of(present: Mapping[str, sqlite_catalog.Table]) -> Iterator[Drift]:
    """Compare the tables of Sagewai that a database has with a fresh home's."""
    for table, fresh in sqlite_catalog.expected().items():
        if table not in present:
            yield Drift(table, "", "missing-table")
            continue
        yield from _columns(table, fresh, present[table])
        yield from _constraints(table, fresh, present[table])
        yield from _indexes(table, fresh, present[table])


def _columns(
    table: str, fresh: sqlite_catalog.Table, found: sqlite_catalog.Table
) -> Iterator[Drift]:
    for name, column in fresh.columns.items():
        if name not in found.columns:
            yield Drift(table, name, "missing-column", column.type)
            continue
        existing = found.columns[name]
        if existing.type != column.type:
            yield Drift(table, name, "type", column.type, existing.type or "none")
        if column.not_null and not existing.not_null:
            yield Drift(table, name, "missing-not-null", "NOT NULL")
        if existing.not_null and not column.not_null:
            yield Drift(table, name, "extra-not-null", "", "NOT NULL")
        if existing.default != column.default:
            yield Drift(table, name, "default", column.default or "", existing.default or "none")
        if existing.key != column.key:
            positions = [f"position {k}" if k else "none" for k in (column.key, existing.key)]
            yield Drift(table, name, "primary-key", *positions)
    for name, column in found.columns.items():
        if name not in fresh.columns:
            yield Drift(table, name, "extra-column", "", column.type or "no type")


def _constraints(
    table: str, fresh: sqlite_catalog.Table, found: sqlite_catalog.Table
) -> Iterator[Drift]:
    for check in sorted(fresh.checks - found.checks):
        yield Drift(table, "", "missing-check", check)
    for check in sorted(found.checks - fresh.checks):
        yield Drift(table, "", "extra-check", "", check)
    for columns in sorted(fresh.uniques - found.uniques):
        yield Drift(table, "", "missing-unique", ", ".join(columns))
    for columns in sorted(found.uniques - fresh.uniques):
        yield Drift(table, "", "extra-unique", "", ", ".join(columns))
    for key in sorted(fresh.foreign_keys - found.foreign_keys, key=str):
        yield Drift(table, "", "missing-foreign-key", key.shown)
    for key in sorted(found.foreign_keys - fresh.foreign_keys, key=str):
        yield Drift(table, "", "extra-foreign-key", "", key.shown)


def _indexes(
    table: str, fresh: sqlite_catalog.Table, found: sqlite_catalog.Table
) -> Iterator[Drift]:
    for name, index in fresh.indexes.items():
        if name not in found.indexes:
            yield Drift(table, name, "missing-index", index.shown)
        elif found.indexes[name] != index:
            yield Drift(table, name, "different-index", index.shown, found.indexes[name].shown)
