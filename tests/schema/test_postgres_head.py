"""The data file with the PostgreSQL schema at the head: it is what the revisions result in."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3

import pytest

import postgres_head
import schema_catalogs
from postgres_server import Server
from sagewai_ops.database import url as database_url
from sagewai_ops.schema import sqlite_catalog, sqlite_head
from sagewai_ops.schema.postgres_head import checks, unique_constraints
from sagewai_ops.schema.revision_graph import HEAD

REFERENCE = schema_catalogs.postgres(HEAD)["tables"]
TABLES = list(sqlite_head.tables())


def test_file_is_current(postgres: Server) -> None:
    """After a new revision, fixtures/postgres_head.py writes it again."""
    name = postgres.at(HEAD)
    url = database_url.parse(postgres.url(name))
    assert isinstance(url, database_url.PostgresUrl)

    head = asyncio.run(postgres_head.read_head(url))
    postgres.drop(name)

    assert postgres_head.render(head) == postgres_head.PATH.read_text(encoding="utf-8")


@pytest.mark.parametrize("table", TABLES)
def test_every_check_is_a_condition_of_sqlite(table: str) -> None:
    """All CHECKs of PostgreSQL are translated, and a home has no other."""
    found = dict(checks(table))
    definitions = REFERENCE[table]["constraints"]

    assert found.keys() == {n for n, d in definitions.items() if d.startswith("CHECK")}
    assert schema_catalogs.sqlite()[table]["checks"].keys() <= found.keys()
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.execute(sqlite_head.tables()[table].statement)
        for condition in found.values():
            connection.execute(f"SELECT {condition} FROM {table}").fetchall()


@pytest.mark.parametrize(
    ("role", "project", "holds"),
    [("org:owner", None, 1), ("org:owner", "p", 0), ("project:admin", "p", 1), ("x", None, 0)],
)
def test_translated_check_means_the_same(role: str, project: str | None, holds: int) -> None:
    """The longest of them, on the values that it distinguishes."""
    condition = dict(checks("membership"))["ck_membership_role_scope"]
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        query = f"SELECT {condition} FROM (SELECT ? AS role, ? AS project_id)"

        assert connection.execute(query, (role, project)).fetchone() == (holds,)


@pytest.mark.parametrize("table", TABLES)
def test_unique_constraints_equal_the_reference(table: str) -> None:
    """Those of keys aside."""
    definitions = REFERENCE[table]["constraints"].values()

    assert sorted(unique_constraints(table)) == sorted(
        tuple(part.strip('"') for part in definition[len("UNIQUE (") : -1].split(", "))
        for definition in definitions
        if definition.startswith("UNIQUE")
    )


def test_some_unique_constraints_exist_on_postgresql_only() -> None:
    """The versions of saved workflows: rows of a home may violate them."""
    only = {
        table: found
        for table in TABLES
        if (
            found := {
                columns
                for columns in unique_constraints(table)
                if columns not in sqlite_catalog.expected()[table].uniques
                and set(columns) <= sqlite_catalog.expected()[table].columns.keys()
            }
        )
    }

    assert only["saved_workflow_versions"] == {("workflow_id", "version")}
