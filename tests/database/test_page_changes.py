"""The rows that differ between two copies, found by their pages, against a comparison of all."""

from __future__ import annotations

import contextlib
import hashlib
import random
import shutil
import sqlite3
import struct
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagewai_ops.database.sqlite.page_changes import PageChanges, find_page_changes
from sagewai_ops.database.sqlite.page_comparison import compare_files, open_comparison
from sagewai_ops.errors import DamagedError
from sagewai_ops.progress import no_progress

PAGE_SIZES = [512, 1024, 4096, 16384, 65536]
TABLES = ["plain", "keyed", "other"]
SCHEMA = """
CREATE TABLE plain (id INTEGER PRIMARY KEY, body TEXT, moment TEXT);
CREATE TABLE keyed (name TEXT PRIMARY KEY, body BLOB);
CREATE TABLE other (id INTEGER PRIMARY KEY, body TEXT UNIQUE);
CREATE TABLE ended (name TEXT PRIMARY KEY, body TEXT) WITHOUT ROWID;
"""


def fill(connection: sqlite3.Connection, rows: int, size: int, seed: int = 1) -> None:
    """Insert rows into all tables, every fifth one with overflow pages."""
    chance = random.Random(seed)
    for number in range(1, rows + 1):
        length = size * 20 if number % 5 == 0 else chance.randrange(size)
        body = "".join(chance.choices("abcdef", k=length))
        connection.execute("INSERT INTO plain VALUES (?, ?, 'early')", (number * 3, body))
        connection.execute("INSERT INTO keyed VALUES (?, ?)", (f"k{number}", body.encode()))
        connection.execute("INSERT INTO other VALUES (?, ?)", (number, f"{number} {body}"))
        connection.execute("INSERT INTO ended VALUES (?, ?)", (f"k{number}", body))


def create(path: Path, page_size: int, *, rows: int, size: int, vacuum: int = 0) -> None:
    """Create a database with rows."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA page_size = {page_size}")
        connection.execute(f"PRAGMA auto_vacuum = {vacuum}")
        connection.executescript(SCHEMA)
        fill(connection, rows, size)
        connection.commit()


def rows_of(path: Path, table: str) -> dict[int, Any]:
    """Return all rows by rowid."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        # A blob that grew by `||` is text, and not UTF-8.
        connection.text_factory = bytes
        return {row[0]: row[1:] for row in connection.execute(f"SELECT rowid, * FROM {table}")}


def differing(before: Path, after: Path, table: str) -> set[int]:
    """Return the rowids of rows that only one has, or that differ."""
    left, right = rows_of(before, table), rows_of(after, table)
    return {row for row in left.keys() | right.keys() if left.get(row) != right.get(row)}


def changed(path: Path, *statements: str) -> Path:
    """Copy a database, change the copy, and return its path."""
    copy = path.with_name("after.db")
    shutil.copy(path, copy)
    with contextlib.closing(sqlite3.connect(copy, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)
    return copy


def changes_of(before: Path, after: Path, tables: list[str], **options: Any) -> PageChanges:
    """Compare two copies, and return the changes."""
    with open_comparison(before) as comparison:
        compare_files(comparison, after, no_progress)
    return find_page_changes(before, after, tables, comparison=comparison, **options)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("insert"), st.sampled_from(TABLES), st.integers(1, 400)),
        st.tuples(st.just("delete"), st.sampled_from(TABLES), st.integers(2, 40)),
        st.tuples(st.just("grow"), st.sampled_from(TABLES), st.integers(2, 40)),
        st.tuples(st.just("tail"), st.sampled_from(TABLES), st.integers(2, 40)),
        st.tuples(st.just("move"), st.just("plain"), st.integers(2, 40)),
        st.tuples(st.just("rebuild"), st.sampled_from(TABLES), st.integers(1, 5)),
        st.tuples(st.just("vacuum"), st.just(""), st.just(0)),
    ),
    max_size=8,
)


def apply_step(connection: sqlite3.Connection, kind: str, table: str, number: int) -> None:
    """Change a database in one way."""
    if kind == "vacuum":
        connection.execute("VACUUM")
    elif kind == "insert":
        length = number * 7 % 6000
        if table == "keyed":
            values = f"('n' || hex(randomblob(8)), randomblob({length}))"
        else:
            values = f"(NULL, hex(randomblob(8)) || hex(randomblob({length})))"
        names = "name, body" if table == "keyed" else "id, body"
        connection.execute(f"INSERT INTO {table} ({names}) VALUES {values}")
    elif kind == "delete":
        connection.execute(f"DELETE FROM {table} WHERE rowid % {number} = 0")
    elif kind == "grow":
        more = f"body || hex(randomblob({number * 9}))"
        connection.execute(f"UPDATE {table} SET body = {more} WHERE rowid % {number} = 1")
    elif kind == "tail":
        # Of the same length: SQLite overwrites the row where it is, perhaps in overflow pages only.
        last = "substr(body, 1, length(body) - 1) || 'Z'"
        connection.execute(
            f"UPDATE {table} SET body = {last} WHERE rowid % {number} = 0 AND length(body) > 0"
        )
        connection.execute(f"UPDATE plain SET moment = 'later' WHERE id % {number} = 0")
    elif kind == "move":
        highest = "(SELECT max(id) FROM plain)"
        connection.execute(f"UPDATE plain SET id = id + {highest} WHERE id % {number} = 0")
    else:
        (sql,) = connection.execute(
            "SELECT sql FROM sqlite_master WHERE name = ?", (table,)
        ).fetchone()
        connection.execute(f"CREATE TEMP TABLE kept AS SELECT * FROM {table}")
        connection.execute(f"DROP TABLE {table}")
        connection.execute(sql)
        connection.execute(f"INSERT INTO {table} SELECT * FROM kept ORDER BY 1 LIMIT -1 OFFSET 1")
        connection.execute("DROP TABLE kept")


@settings(max_examples=120, deadline=None)
@given(
    page_size=st.sampled_from(PAGE_SIZES),
    vacuum=st.sampled_from([0, 1, 2]),
    rows=st.integers(0, 150),
    size=st.sampled_from([10, 90, 700]),
    steps=STEPS,
)
def test_no_row_that_differs_is_missed(
    page_size: int, vacuum: int, rows: int, size: int, steps: list[tuple[str, str, int]]
) -> None:
    """On random histories, with every page size: what is not returned is equal."""
    with TemporaryDirectory() as directory:
        before, after = Path(directory, "before.db"), Path(directory, "after.db")
        create(before, page_size, rows=rows, size=size, vacuum=vacuum)
        shutil.copy(before, after)
        with contextlib.closing(sqlite3.connect(after, isolation_level=None)) as connection:
            for step in steps:
                apply_step(connection, *step)

        found = changes_of(before, after, TABLES)

        for table in TABLES:
            candidates = found.rows[table]
            assert candidates is not None
            assert differing(before, after, table) <= set(candidates)
            if not steps:
                assert candidates == []
        assert found.digest == hashlib.sha256(before.read_bytes()).hexdigest()


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_only_rows_whose_bytes_differ_are_returned(tmp_path: Path, page_size: int) -> None:
    """One that is changed, one that is inserted, one that is deleted; their neighbours are not."""
    before = tmp_path / "before.db"
    create(before, page_size, rows=300, size=60)
    after = changed(
        before,
        "UPDATE plain SET moment = 'later' WHERE id = 300",
        "INSERT INTO plain VALUES (4000, 'x', 'y')",
        "DELETE FROM other WHERE id = 7",
    )

    found = changes_of(before, after, [*TABLES, "ended"])

    plain, other = found.rows["plain"] or [], found.rows["other"] or []
    assert {300, 4000} <= set(plain)
    assert 7 in other
    assert len(plain) + len(other) <= 3 or page_size < 4096  # else rows move to other pages
    assert found.rows["keyed"] == []
    assert found.rows["ended"] is None  # WITHOUT ROWID
    assert 0 < found.changed < found.pages


def test_a_change_of_overflow_pages_alone_is_found(tmp_path: Path) -> None:
    """SQLite writes a row of the same length in place: the leaf, which has its start, is equal."""
    before = tmp_path / "before.db"
    create(before, 4096, rows=50, size=700)
    after = changed(before, "UPDATE plain SET moment = 'LATER' WHERE id IN (15, 30)")
    left, right = before.read_bytes(), after.read_bytes()
    starts = range(4096, len(left), 4096)
    places = [place for place in starts if left[place:][:4096] != right[place:][:4096]]
    assert len(places) == 2
    assert all(left[place] == 0 for place in places)  # no leaf, but a reference to the next page

    found = changes_of(before, after, TABLES)

    assert found.rows == {"plain": [15, 30], "keyed": [], "other": []}


def test_many_rows_are_any_row(tmp_path: Path) -> None:
    """The memory for the rowids is bounded."""
    before = tmp_path / "before.db"
    create(before, 4096, rows=200, size=30)
    after = changed(before, "UPDATE plain SET moment = 'all of them'")

    found = changes_of(before, after, TABLES, most_rows=100)

    assert found.rows == {"plain": None, "keyed": [], "other": []}


def test_another_page_size_is_any_row(tmp_path: Path) -> None:
    """A VACUUM can change it."""
    before = tmp_path / "before.db"
    create(before, 4096, rows=20, size=30)
    after = changed(before, "PRAGMA page_size = 1024", "VACUUM")

    found = changes_of(before, after, TABLES)

    assert found.rows == dict.fromkeys(TABLES)
    assert found.changed == found.pages


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_copy_ends_with_an_error_or_an_answer(data: st.DataObject) -> None:
    """Every loop has an end, whatever the pages contain."""
    with TemporaryDirectory() as directory:
        before = Path(directory, "before.db")
        create(before, 512, rows=40, size=60)
        content = bytearray(before.read_bytes())
        for _ in range(data.draw(st.integers(1, 6))):
            page = data.draw(st.integers(1, len(content) // 512 - 1)) * 512
            place = page + data.draw(st.integers(0, 40))
            link = struct.pack(">I", data.draw(st.integers(0, len(content) // 512 + 1)))
            value = data.draw(st.sampled_from([b"\0", b"\xff", b"\x05", b"\x0d", link]))
            content[place : place + len(value)] = value
        after = Path(directory, "after.db")
        after.write_bytes(content)

        for left, right in ((before, after), (after, before)):
            with contextlib.suppress(DamagedError):
                changes_of(left, right, TABLES)


def test_databases_without_a_page_are_no_damage(tmp_path: Path) -> None:
    """A file of 0 bytes is a database without tables, to which an export may add its own."""
    for name in ("before", "after"):
        (tmp_path / name).touch()

    found = changes_of(tmp_path / "before", tmp_path / "after", ["one"])

    assert (found.pages, found.changed, found.rows) == (0, 0, {"one": None})


def test_a_file_that_is_no_database_is_damaged(tmp_path: Path) -> None:
    """Exit 16."""
    before = tmp_path / "before.db"
    create(before, 4096, rows=1, size=1)
    after = tmp_path / "after.db"
    after.write_bytes(bytes(8192))

    with pytest.raises(DamagedError, match=r"after\.db: page 1: not a database"):
        changes_of(before, after, TABLES)
