"""Examining a frozen database: what is wrong with it, and what is in it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from directory_state import state_of
from home_builder import BuiltHome, build_home
from sagewai_ops.database.sqlite import integrity
from sagewai_ops.database.sqlite.integrity import ForeignKeyViolation, check_integrity, count_rows
from sagewai_ops.database.sqlite.online_copy import copy_database
from sagewai_ops.errors import DamagedError, NotFoundError


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> BuiltHome:
    """A home with a table of the user's own, two vec0 tables and three orphans."""
    return build_home(
        tmp_path_factory.mktemp("built") / "home",
        artifacts=False,
        more_vectors={"notes": (5, 8)},
        orphans=3,
        own_table=True,
    )


@pytest.fixture(scope="module")
def frozen(built: BuiltHome, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of its database; tests must not change it."""
    target = tmp_path_factory.mktemp("frozen") / "copy.db"
    copy_database(built.database, target)
    return target


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Where a test makes a database of its own."""
    return tmp_path / "own.db"


def make(path: Path, *statements: str) -> None:
    """Run statements on a database and close it."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def test_every_table_is_counted(frozen: Path, built: BuiltHome) -> None:
    """Counts are those that were planted, learnings by their virtual table, shadows left out."""
    health = check_integrity(frozen)

    expected = {**built.rows, **built.vectors}
    counts = dict(health.counts)
    assert {table: counts.pop(table) for table in expected} == expected
    assert not [table for table in counts if table.startswith(("vec_learnings", "notes_"))]
    assert health.uncounted == ()
    assert not [table for table in counts if table.startswith("sqlite_")]


def test_sound_database_with_orphans_is_sound(frozen: Path, built: BuiltHome) -> None:
    """Broken references are findings of their own, with table, row and parent."""
    health = check_integrity(frozen)

    assert health.sound
    assert health.integrity == ()
    assert health.foreign_key_total == built.orphans == 3
    assert {(each.table, each.parent) for each in health.foreign_keys} == {
        ("prompt_logs", "agent_runs")
    }
    assert health.foreign_keys_unchecked == ()


def test_shape_is_reported(frozen: Path) -> None:
    """Page size, page count, encoding and journal mode are the file's own."""
    health = check_integrity(frozen)

    assert health.page_size * health.page_count == frozen.stat().st_size
    assert (health.encoding, health.journal_mode) == ("UTF-8", "wal")


def test_rows_are_counted_alike_within_a_transaction(frozen: Path) -> None:
    """A connection that is open already gets the same counts."""
    with closing(sqlite3.connect(f"file://{frozen}?immutable=1", uri=True)) as connection:
        counts = count_rows(connection)

    assert counts == check_integrity(frozen).counts


def test_examined_file_is_left_as_it_was(frozen: Path) -> None:
    """Bytes, time and mode stay, and nothing is left next to it."""
    before = state_of(frozen.parent)

    check_integrity(frozen)

    assert state_of(frozen.parent) == before


def test_rollback_mode_is_reported(own: Path) -> None:
    """The journal mode comes from the header."""
    make(own, "CREATE TABLE t (x)", "INSERT INTO t VALUES (1)")

    health = check_integrity(own)

    assert (health.journal_mode, health.counts) == ("rollback", {"t": 1})


def test_check_violations_are_found(own: Path) -> None:
    """They are reported only where SQLite may write, so it may."""
    make(
        own,
        "PRAGMA journal_mode=WAL",
        "CREATE TABLE limits (amount INTEGER CHECK (amount > 0))",
        "PRAGMA ignore_check_constraints=ON",
        "INSERT INTO limits VALUES (-1)",
    )

    health = check_integrity(own)

    assert health.integrity == ("CHECK constraint failed in limits",)
    assert not health.sound


def test_quick_check_does_not_compare_an_index_with_its_table(own: Path) -> None:
    """It finds what is wrong with rows and pages; an index loses no data."""
    make(
        own,
        "CREATE TABLE t (a INTEGER CHECK (a > 0), b)",
        "CREATE INDEX i ON t (a)",
        "INSERT INTO t VALUES (1, 2)",
        "PRAGMA writable_schema=ON",
        "UPDATE sqlite_master SET sql = 'CREATE INDEX i ON t (b)' WHERE name = 'i'",
    )

    assert check_integrity(own).integrity == ("row 1 missing from index i",)
    assert check_integrity(own, is_quick=True).sound

    make(own, "PRAGMA ignore_check_constraints=ON", "DROP INDEX i", "UPDATE t SET a = -1")
    assert check_integrity(own, is_quick=True).integrity == ("CHECK constraint failed in t",)


def test_violations_are_all_counted_and_the_first_kept(own: Path) -> None:
    """A hundred violations are listed; the total reports how many there are."""
    make(
        own,
        "CREATE TABLE parent (id INTEGER PRIMARY KEY)",
        "CREATE TABLE child (id INTEGER PRIMARY KEY, parent_id REFERENCES parent)",
        "INSERT INTO child WITH RECURSIVE n(x) AS"
        " (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 150) SELECT x, 999 FROM n",
    )

    health = check_integrity(own)

    assert health.foreign_key_total == 150
    assert len(health.foreign_keys) == 100
    assert health.foreign_keys[0] == ForeignKeyViolation("child", 1, "parent")


def test_violation_in_a_table_without_rowids_has_none(own: Path) -> None:
    """Such a row has no number to name it by."""
    make(
        own,
        "CREATE TABLE parent (id INTEGER PRIMARY KEY)",
        "CREATE TABLE child (id TEXT PRIMARY KEY, p REFERENCES parent) WITHOUT ROWID",
        "INSERT INTO child VALUES ('a', 5)",
    )

    assert check_integrity(own).foreign_keys == (ForeignKeyViolation("child", None, "parent"),)


def test_reference_that_cannot_be_checked_is_named_and_the_rest_checked(own: Path) -> None:
    """A foreign key to a column that is not unique stops SQLite's check of its table alone."""
    make(
        own,
        "CREATE TABLE parent (id INTEGER PRIMARY KEY, name TEXT)",
        "CREATE TABLE broken (p REFERENCES parent (name))",
        "CREATE TABLE child (p REFERENCES parent (id))",
        "INSERT INTO broken VALUES ('x')",
        "INSERT INTO child VALUES (9)",
    )

    health = check_integrity(own)

    assert health.foreign_keys_unchecked == (
        'broken: foreign key mismatch - "broken" referencing "parent"',
    )
    assert health.foreign_keys == (ForeignKeyViolation("child", 1, "parent"),)
    assert health.sound


def test_tables_of_other_modules_are_counted_by_their_own_name(own: Path) -> None:
    """A full-text table counts once, its shadow tables not; a look-alike of one counts."""
    make(
        own,
        "CREATE VIRTUAL TABLE notes USING fts5(body)",
        "CREATE TABLE notes_about (x)",
        "INSERT INTO notes VALUES ('a'), ('b')",
    )

    assert check_integrity(own).counts == {"notes": 2, "notes_about": 0}


def test_virtual_table_of_an_unknown_module_is_named(own: Path) -> None:
    """Rows that this SQLite cannot count are not passed off as none."""
    make(
        own,
        "CREATE TABLE t (x)",
        "PRAGMA writable_schema=ON",
        "INSERT INTO sqlite_master VALUES"
        " ('table', 'odd', 'odd', 0, 'CREATE VIRTUAL TABLE odd USING nobody_knows(a)')",
    )

    health = check_integrity(own)

    assert health.uncounted == ("odd",)
    assert health.counts == {"t": 0}
    assert health.sound


def test_names_that_need_quoting_are_counted(own: Path) -> None:
    """A table may be called anything."""
    make(own, 'CREATE TABLE "odd ""name"" % é" (x)', "CREATE TABLE sqliteish (x)")

    assert check_integrity(own).counts == {'odd "name" % é': 0, "sqliteish": 0}


def test_index_that_lacks_a_row_is_found(own: Path) -> None:
    """The check compares indexes with their tables, entry by entry."""
    make(
        own,
        "CREATE TABLE t (x, y)",
        "INSERT INTO t VALUES (1, 1), (2, 2)",
        "CREATE INDEX of_x ON t (x) WHERE y = 1",
        "PRAGMA writable_schema=ON",
        "UPDATE sqlite_master SET sql = 'CREATE INDEX of_x ON t (x)' WHERE name = 'of_x'",
    )

    assert check_integrity(own).integrity[0] == "row 2 missing from index of_x"


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_flipped_bit_in_any_page_header_is_found_and_never_raised(
    data: st.DataObject, frozen: Path, tmp_path: Path
) -> None:
    """Damage to the kind or the cell count of a b-tree page is reported in the answer."""
    damaged = tmp_path / "damaged.db"
    content = bytearray(frozen.read_bytes())
    trees = [100, *(at for at in range(0, len(content), 4096) if content[at] in (2, 5, 10, 13))]
    at = data.draw(st.sampled_from(trees))
    offset = data.draw(st.sampled_from([0, 3, 4]))
    content[at + offset] ^= 1 << data.draw(st.integers(0, 7))
    damaged.write_bytes(content)

    health = check_integrity(damaged)

    assert not health.sound


def test_unreadable_table_is_missing_from_the_counts_and_named(own: Path) -> None:
    """A count that could not be finished is no count; the other tables have theirs."""
    make(
        own,
        "CREATE TABLE t (x)",
        "CREATE TABLE u (x)",
        "INSERT INTO t VALUES (1)",
        "INSERT INTO u VALUES (1)",
    )
    content = bytearray(own.read_bytes())
    content[4096] ^= 1  # the kind of page 2, the root of t
    own.write_bytes(content)

    health = check_integrity(own)

    assert health.counts == {"u": 1}
    assert health.integrity[-1] == "table t: database disk image is malformed"


def test_unreadable_schema_is_a_finding(frozen: Path, own: Path) -> None:
    """A database whose schema is damaged can still be copied, so it is not refused."""
    content = bytearray(frozen.read_bytes())
    content[100] ^= 1  # the kind of page 1, the root of the schema
    own.write_bytes(content)

    health = check_integrity(own)

    assert health.integrity[-1] == "schema: database disk image is malformed"
    assert health.counts == {}
    assert health.page_size == 4096


@pytest.mark.parametrize("content", [b"#!/bin/sh\n" * 1000, b"SQLite format 3\0" + b"\xff" * 4080])
def test_what_is_no_database_is_refused(content: bytes, own: Path) -> None:
    """A file without SQLite's header is damage, not a finding."""
    own.write_bytes(content)

    with pytest.raises(DamagedError, match=r"own\.db: "):
        check_integrity(own)


def test_missing_file_is_not_found(own: Path) -> None:
    """It is not created either."""
    with pytest.raises(NotFoundError):
        check_integrity(own)

    assert not own.exists()


def test_empty_file_has_no_tables(own: Path) -> None:
    """A database before its first commit is sound."""
    own.touch()

    health = check_integrity(own)

    assert (health.sound, health.page_count, health.counts) == (True, 0, {})


def test_progress_counts_the_parts_and_can_end_it(
    frozen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The callback is called between and within the parts; what it raises comes out."""
    monkeypatch.setattr(integrity, "_STEPS", 100)
    output: list[tuple[str, int, int]] = []

    check_integrity(frozen, progress=lambda *values: output.append(values))

    assert len(output) > 20
    assert output[-1] == ("integrity", 3, 3)
    assert {values[1] for values in output} == {0, 1, 2, 3}

    def stop(_stage: str, done: int, _total: int) -> None:
        if len(output) > 5 + done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_integrity(frozen, progress=stop)


@pytest.mark.parametrize("part", [0, 1, 2])
def test_interrupt_within_a_part_is_no_finding(
    part: int, frozen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever part is running, its end by request is not reported as damage."""
    monkeypatch.setattr(integrity, "_STEPS", 10)
    calls = 0

    def stop(_stage: str, done: int, _total: int) -> None:
        nonlocal calls
        calls += done == part
        if calls == 3:
            raise InterruptedError("stop")

    with pytest.raises(InterruptedError, match="stop"):
        check_integrity(frozen, progress=stop)
