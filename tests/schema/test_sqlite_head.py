"""The SQL file with the schema of a home's database: it equals the reference, and all is parsed."""

from __future__ import annotations

import contextlib
import sqlite3
from importlib import resources

import pytest

import schema_catalogs
from sagewai_ops.schema import sqlite_catalog, sqlite_head
from sagewai_ops.schema.drift import find_drift
from sagewai_ops.schema.revision_graph import HEAD, ancestors, applied, revisions
from sagewai_ops.schema.sqlite_revision import read_level

SCRIPT = resources.files("sagewai_ops.schema").joinpath("sqlite_head.sql").read_text("utf-8")


def test_statements_build_what_a_fresh_home_has() -> None:
    """Every table, column, type, default, key, check, unique and index equals the reference."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        for statement in sqlite_head.statements():
            connection.execute(statement)
        built = schema_catalogs.read_sqlite(connection)
        digests = schema_catalogs.read_digests(connection)

    reference = schema_catalogs.sqlite()
    assert built == reference
    assert list(built) == list(reference)
    assert {table: list(built[table]["columns"]) for table in built} == {
        table: list(reference[table]["columns"]) for table in reference
    }
    assert digests == schema_catalogs.sqlite_digests()


@pytest.mark.parametrize("revision", revisions())
def test_tables_at_a_revision(revision: str) -> None:
    """A database with them is at that revision, and an upgrade brings it to the head."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        for table in sqlite_head.tables_at(applied([revision])).values():
            for statement in (table.statement, *table.indexes.values()):
                connection.execute(statement)
        level = read_level(connection)
        drift = {item.kind for item in find_drift(connection) if not item.is_addable}

    assert revision in ancestors(level.revision)
    assert level.extra_columns == ()
    assert drift == set()
    added = sqlite_head.tables_at(applied([HEAD]))
    assert added == dict(sqlite_head.tables())


def test_file_runs_as_it_is() -> None:
    """A database administrator can run it with sqlite3; the comments change nothing."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(SCRIPT)

        assert schema_catalogs.read_sqlite(connection) == schema_catalogs.sqlite()


def test_every_column_key_and_index_is_parsed() -> None:
    """What the expressions miss would be missing from every upgrade."""
    tables = sqlite_head.tables()
    catalog = sqlite_catalog.expected()

    assert len(tables) == 55
    for name, table in tables.items():
        columns = catalog[name].columns
        assert list(table.columns) == list(columns)
        assert [column.type for column in table.columns.values()] == [
            column.type for column in columns.values()
        ]
        keys = sorted((column.key, column.name) for column in columns.values() if column.key)
        assert table.key == tuple(column for _place, column in keys)
        assert table.indexes.keys() == catalog[name].indexes.keys()


def test_every_comment_is_a_revision() -> None:
    """The lines with a comment of their own are those of later revisions."""
    found = {
        column.revision
        for table in sqlite_head.tables().values()
        for column in table.columns.values()
    }

    assert found <= set(revisions())
    assert "--" not in "".join(sqlite_head.statements())
    assert SCRIPT.count("\n  ") == sum(
        statement.count("\n  ") for statement in sqlite_head.statements()
    )
