"""The tables as statements for SQLite, in an order in which they can be run."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy import Column, Index, Table


@functools.cache
def create_all() -> tuple[str, ...]:
    """Spell every statement that makes an empty file what a fresh Sagewai home has."""
    from sagewai_ops.schema.tables import metadata

    return tuple(
        statement
        for table in metadata.sorted_tables
        for statement in (create_table(table), *(create_index(index) for index in indexes(table)))
    )


def create_table(table: Table) -> str:
    """Spell CREATE TABLE, without the table's indexes."""
    from sqlalchemy.dialects import sqlite
    from sqlalchemy.schema import CreateTable

    return str(CreateTable(table).compile(dialect=sqlite.dialect())).strip()


def create_index(index: Index) -> str:
    """Spell CREATE INDEX."""
    from sqlalchemy.dialects import sqlite
    from sqlalchemy.schema import CreateIndex

    return str(CreateIndex(index).compile(dialect=sqlite.dialect())).strip()


def indexes(table: Table) -> tuple[Index, ...]:
    """Put the indexes of a table in one order, by name: SQLAlchemy keeps them in a set."""
    return tuple(sorted(table.indexes, key=lambda index: str(index.name)))


def column_clause(column: Column[object]) -> str:
    """Spell a column as CREATE TABLE and ADD COLUMN take it: name, type, default, NOT NULL."""
    from sqlalchemy.dialects import sqlite
    from sqlalchemy.schema import CreateColumn

    return str(CreateColumn(column).compile(dialect=sqlite.dialect())).strip()


def quoted(name: str) -> str:
    """Quote an identifier that came out of a database, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'
