"""The tables as metadata: what they are on SQLite and what their columns are on PostgreSQL."""

from __future__ import annotations

import re

import pytest
from sqlalchemy import CheckConstraint, Column, Table, UniqueConstraint
from sqlalchemy.dialects import postgresql

import schema_catalogs
from sagewai_ops.schema.tables import LAX, metadata

HEAD = schema_catalogs.postgres("020_fleet_task_lease")

TABLES = list(metadata.tables.values())
COLUMNS = [
    pytest.param(table, column, id=f"{table}.{column.name}")
    for table in TABLES
    for column in table.columns
]
SPELLED = {"FLOAT": "double precision", "VARCHAR": "character varying"}


@pytest.mark.parametrize(("table", "column"), COLUMNS)
def test_column_is_on_postgres_what_the_reference_says(
    table: Table, column: Column[object]
) -> None:
    """Type and NULL-ability on PostgreSQL can be read off the metadata."""
    reference = HEAD["tables"][table.name]["columns"][column.name]

    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    spelled = column.type.compile(dialect=dialect)
    spelled = re.sub(r"^[A-Z]+", lambda word: SPELLED.get(word[0], word[0]), spelled)

    assert spelled.lower() == reference["type"]
    assert (not column.nullable and LAX not in column.info) == reference["not_null"]


@pytest.mark.parametrize("table", TABLES, ids=str)
def test_checks_and_uniques_of_postgres_can_be_read_off_the_metadata(table: Table) -> None:
    """Nothing that PostgreSQL refuses about a row or a pair of rows is unknown to the metadata."""
    reference = HEAD["tables"][table.name]["constraints"]

    checks = {c.name for c in table.constraints if isinstance(c, CheckConstraint)}
    uniques = {
        ", ".join(column.name for column in constraint.columns)
        for constraint in table.constraints
        if isinstance(constraint, UniqueConstraint)
    } | {
        ", ".join(column.name for column in index.columns)
        for index in table.indexes
        if index.unique
    }

    assert {n for n, d in reference.items() if d.startswith("CHECK")} == checks
    assert {
        names
        for names in (d[8:-1] for d in reference.values() if d.startswith("UNIQUE"))
        if set(names.split(", ")) <= set(table.columns.keys())
    } <= uniques
