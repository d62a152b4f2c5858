"""The level of a home's database, read from its tables."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

import old_homes
import real_homes
import schema_catalogs
from program import PATIENCE_SECONDS
from sagewai_ops.schema import sqlite_head
from sagewai_ops.schema.revision_graph import HEAD, revisions
from sagewai_ops.schema.sqlite_revision import Level, read_level

NEXT = {  # revisions that bring nothing to SQLite are reached with the one before
    "006_replay_snapshots": "007_merge_006_branches",
    "012_tenant_agent": "013_tenant_run_telemetry",
}


@pytest.mark.parametrize("revision", revisions())
def test_older_home_is_at_the_revision_that_left_it(tmp_path: Path, revision: str) -> None:
    """The newest revision whose tables and columns are all there is the level."""
    old_homes.build(tmp_path / "sagewai.db", revision)

    with contextlib.closing(sqlite3.connect(tmp_path / "sagewai.db")) as connection:
        level = read_level(connection)

    assert level.revision == NEXT.get(revision, revision)
    assert level.state == ("current" if revision == HEAD else "behind")
    assert bool(level.missing) == (revision != HEAD)


def test_missing_tables_and_columns_are_named(tmp_path: Path) -> None:
    """A table that is missing is named once, a column with its table."""
    old_homes.build(tmp_path / "sagewai.db", "018_fleet_schema_correction")
    with contextlib.closing(sqlite3.connect(tmp_path / "sagewai.db")) as connection:
        connection.execute("DROP INDEX idx_workers_pool")
        connection.execute("ALTER TABLE workers DROP COLUMN approved_by")

        level = read_level(connection)

    assert level.missing == ("workers.approved_by", "fleet_tasks")
    assert level.revision == "017_api_tokens"


def test_other_branch_alone_counts_as_its_own_revision(tmp_path: Path) -> None:
    """Of the two 006, either may have come first."""
    old_homes.build(tmp_path / "sagewai.db", "007_merge_006_branches")
    with contextlib.closing(sqlite3.connect(tmp_path / "sagewai.db")) as connection:
        connection.execute("ALTER TABLE workflow_runs DROP COLUMN artifact_destination")

        assert read_level(connection).revision == "006_replay_snapshots"


@pytest.mark.parametrize("name", real_homes.NAMES)
def test_homes_of_the_real_sagewai_are_current(tmp_path: Path, name: str) -> None:
    """Homes that Sagewai 1.0.1 wrote have nothing missing and nothing unknown."""
    home = real_homes.unpack(name, tmp_path)
    for database in home.rglob("*.db"):
        with contextlib.closing(sqlite3.connect(database)) as connection:
            level = read_level(connection)

        assert (level.revision, level.state, level.unknown_tables) == (HEAD, "current", ())


def test_empty_file_is_empty() -> None:
    """A database without tables has no level."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        assert read_level(connection) == Level("", "empty")


def test_users_own_tables_alone_are_an_empty_home() -> None:
    """Tables of the user's own are named and change nothing."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.execute('CREATE TABLE "my ""own""" (x)')

        assert read_level(connection) == Level("", "empty", unknown_tables=('my "own"',))


def test_column_of_a_later_sagewai_is_ahead(fresh: sqlite3.Connection) -> None:
    """A column that we do not know, with nothing missing, is a newer schema."""
    fresh.execute("ALTER TABLE workers ADD COLUMN region TEXT")

    level = read_level(fresh)

    assert (level.state, level.extra_columns) == ("ahead", ("workers.region",))
    assert level.revision == HEAD


def test_generated_column_of_a_later_sagewai_is_seen(fresh: sqlite3.Connection) -> None:
    """A column that table_info does not list counts as well."""
    fresh.execute("ALTER TABLE workers ADD COLUMN region TEXT AS (pool)")

    assert read_level(fresh).extra_columns == ("workers.region",)


def test_missing_and_extra_together_are_unknown(fresh: sqlite3.Connection) -> None:
    """Neither older nor newer: nothing should be added."""
    fresh.execute("ALTER TABLE workers ADD COLUMN region TEXT")
    fresh.execute("ALTER TABLE workers DROP COLUMN sdk_version")

    assert read_level(fresh).state == "unknown"


def test_table_without_its_key_is_unknown() -> None:
    """A table of another program that happens to have our name is not taken for an old one."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE agent (project_id TEXT, name TEXT)")

        assert read_level(connection).state == "unknown"


def test_columns_that_only_postgres_has_are_not_ahead(fresh: sqlite3.Connection) -> None:
    """They are known, though a home does not have them."""
    fresh.execute("ALTER TABLE users ADD COLUMN totp_secret VARCHAR(64)")

    assert read_level(fresh).state == "current"


def test_virtual_tables_hide_their_shadows(fresh: sqlite3.Connection) -> None:
    """A shadow table is not one of the user's own."""
    fresh.execute("CREATE VIRTUAL TABLE notes USING fts5(body)")
    fresh.execute("CREATE TABLE notes_mine (x)")
    fresh.execute("PRAGMA writable_schema = ON")
    fresh.execute(
        "INSERT INTO sqlite_master VALUES"
        " ('table', 'v', 'v', 0, 'CREATE VIRTUAL TABLE v\nUSING vec0(id TEXT PRIMARY KEY)')"
    )
    for suffix in ("info", "chunks", "rowids", "vector_chunks00", "metadatatext01", "mine"):
        fresh.execute(f"CREATE TABLE v_{suffix} (x)")

    level = read_level(fresh)

    assert level.unknown_tables == ("notes_mine", "v_mine")
    assert level.virtual_tables == ("notes", "v")
    assert level.state == "current"


def test_revisions_of_columns_agree_with_the_reference() -> None:
    """Each column of a home came with the first revision at which PostgreSQL has it."""
    seen: set[tuple[str, str]] = set()
    columns = [
        (column.revision, (table.name, column.name))
        for table in sqlite_head.tables().values()
        for column in table.columns.values()
    ]
    for revision in revisions():
        tables = schema_catalogs.postgres(revision)["tables"]
        there = {
            (table, column)
            for table, content in schema_catalogs.sqlite().items()
            for column in content["columns"]
            if table in tables and column in tables[table]["columns"]
        }
        added = {place for since, place in columns if since == revision}
        assert added == there - seen, revision
        seen |= there
    assert seen == {place for _revision, place in columns}


def test_reading_a_level_loads_no_sqlalchemy() -> None:
    """Backup and status stay light."""
    code = "import sys, sagewai_ops.schema.sqlite_revision; sys.exit('sqlalchemy' in sys.modules)"

    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE_SECONDS)
