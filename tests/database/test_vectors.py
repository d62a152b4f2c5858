"""vec0 tables, found by their definition and read with sqlite-vec or from their shadows."""

from __future__ import annotations

import random
import sqlite3
import struct
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from home_builder import build_home
from home_builder import vectors as builder
from sagewai_ops.database.sqlite.vectors import (
    Column,
    VectorRow,
    VectorTable,
    count_vectors,
    load_extension,
    read_vectors,
    vector_tables,
)
from sagewai_ops.errors import DamagedError, SchemaAheadError

DIMENSIONS = 5
EVERYTHING = (
    "owner TEXT partition  key, id text PRIMARY KEY, emb float[5] distance_metric=cosine,"
    " +note text, +raw blob, n integer, f float, b boolean, t text, u text, chunk_size=8"
)


@pytest.fixture
def vec() -> Iterator[sqlite3.Connection]:
    """An empty database in a connection that has sqlite-vec."""
    with closing(sqlite3.connect(":memory:")) as connection:
        if not load_extension(connection):
            pytest.skip("this Python cannot load sqlite-vec")
        yield connection


@pytest.fixture
def learnings(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """A home's database with two vec0 tables of different names and dimensions."""
    built = build_home(tmp_path / "home", more_vectors={"own_memory": (1030, 7)})
    with closing(sqlite3.connect(built.database)) as connection:
        yield connection


def test_tables_are_found_by_their_definition_whatever_their_name(
    learnings: sqlite3.Connection,
) -> None:
    """Both tables are listed with their columns and dimensions, and no shadow table is."""
    found = vector_tables(learnings)

    assert [(table.name, table.dimensions) for table in found] == [
        ("own_memory", 7),
        ("vec_learnings", 384),
    ]
    assert found[1] == VectorTable(
        "vec_learnings",
        "id",
        True,
        "embedding",
        384,
        (Column("project_id", "metadata", "text"), Column("content", "metadata", "text")),
    )


def test_shadows_have_every_live_row_with_its_vector_and_its_long_texts(
    learnings: sqlite3.Connection,
) -> None:
    """Rows of several chunks come out whole, and slots of deleted rows do not."""
    table = vector_tables(learnings)[0]

    rows = list(read_vectors(learnings, table))

    assert len(rows) == count_vectors(learnings, table) == 1030
    for row in rows:
        content = row.values[1]
        assert isinstance(content, str)
        assert row.vector == builder.embedding(content, 7)


@pytest.mark.parametrize("factory", [bytes, bytearray])
def test_a_text_factory_of_bytes_changes_nothing(
    learnings: sqlite3.Connection, factory: type
) -> None:
    """The exporter reads with a connection that returns bytes, and gets the same rows."""
    tables = vector_tables(learnings)
    expected = list(read_vectors(learnings, tables[0]))

    learnings.text_factory = factory

    assert vector_tables(learnings) == tables
    assert list(read_vectors(learnings, tables[0])) == expected


def test_sqlite_vec_and_the_shadows_answer_the_same_for_what_the_fixtures_wrote(
    learnings: sqlite3.Connection,
) -> None:
    """The hand-written shadows of the fixtures are real ones."""
    if not load_extension(learnings):
        pytest.skip("this Python cannot load sqlite-vec")

    for table in vector_tables(learnings):
        asked = read_vectors(learnings, table, extension=True)
        assert by_key(asked) == by_key(read_vectors(learnings, table))


def test_every_kind_of_column_is_decoded_as_sqlite_vec_decodes_it(vec: sqlite3.Connection) -> None:
    """Partition keys, auxiliary columns, metadata of every kind, after deletes and updates."""
    chance = random.Random(5)
    vec.execute(f'CREATE VIRTUAL TABLE "my ""vec" USING vec0({EVERYTHING})')
    for number in range(60):
        insert(vec, '"my ""vec"', number, chance)
    vec.execute('DELETE FROM "my ""vec" WHERE n % 5 = 0')
    for number in range(1, 60, 7):
        vec.execute('UPDATE "my ""vec" SET t = ? WHERE id = ?', ("long, long é" * 3, f"k{number}"))
    (table,) = vector_tables(vec)

    decoded = by_key(read_vectors(vec, table))

    assert decoded == by_key(read_vectors(vec, table, extension=True))
    assert len(decoded) == count_vectors(vec, table) > 20
    assert table.metric == "cosine"


def test_a_table_without_a_primary_key_is_keyed_by_its_rowid(vec: sqlite3.Connection) -> None:
    """The rowid takes the key's place, read either way."""
    vec.execute("CREATE VIRTUAL TABLE bare USING vec0(e float[2])")
    vec.execute("INSERT INTO bare(rowid, e) VALUES (99, '[1, 2]')")
    (table,) = vector_tables(vec)

    decoded = list(read_vectors(vec, table))

    assert decoded == list(read_vectors(vec, table, extension=True))
    assert decoded == [VectorRow(99, struct.pack("<2f", 1, 2), ())]


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(("insert", "delete", "update")),
            st.integers(0, 25),
            st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
        ),
        max_size=60,
    )
)
def test_after_any_history_the_shadows_equal_the_answers(
    vec: sqlite3.Connection, steps: list[tuple[str, int, str]]
) -> None:
    """Inserts, deletes, updates and re-inserts in any order leave no row lost and none revived."""
    vec.execute("DROP TABLE IF EXISTS h")
    vec.execute("CREATE VIRTUAL TABLE h USING vec0(id text primary key, e float[2], t text)")
    present: dict[str, str] = {}
    for step, number, text in steps:
        key = f"k{number}"
        if step == "insert" and key not in present:
            vec.execute("INSERT INTO h(id, e, t) VALUES (?, ?, ?)", (key, f"[{number}, 1]", text))
            present[key] = text
        elif step == "delete":
            vec.execute("DELETE FROM h WHERE id = ?", (key,))
            present.pop(key, None)
        elif step == "update" and key in present:
            vec.execute("UPDATE h SET t = ? WHERE id = ?", (text, key))
            present[key] = text
    (table,) = vector_tables(vec)

    decoded = by_key(read_vectors(vec, table))

    assert decoded == by_key(read_vectors(vec, table, extension=True))
    assert {row.key: row.values[0] for row in decoded} == present


@pytest.mark.parametrize(
    ("body", "obstacle"),
    [
        ("id text primary key, e int8[8]", "its vectors are of int8"),
        ("e bit[16]", "its vectors are of bit"),
        ("a float[2], b float[2]", "it has 2 vector columns"),
        ("id text primary key", "it has 0 vector columns"),
        ("e float[2] indexed by diskann()", "its vector column has unknown options"),
        ("e float[2], shape polygon", "column 'shape polygon' has no known type"),
    ],
)
def test_a_table_that_cannot_be_read_is_named_with_the_reason(body: str, obstacle: str) -> None:
    """It is listed, not left out; reading it reports why it cannot be."""
    with closing(sqlite3.connect(":memory:")) as connection:
        declare(connection, "odd", body)
        (table,) = vector_tables(connection)

        assert obstacle in table.obstacle
        with pytest.raises(SchemaAheadError, match="vectors odd"):
            list(read_vectors(connection, table))


def test_other_virtual_tables_are_not_vectors() -> None:
    """A full-text index is left to others."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE VIRTUAL TABLE notes USING fts5(body)")

        assert vector_tables(connection) == ()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("DELETE FROM vec_learnings_rowids WHERE chunk_offset = 4", "its slots and the table"),
        ("UPDATE vec_learnings_rowids SET chunk_id = 9 WHERE rowid = 5", "its slots and the table"),
        ("DELETE FROM vec_learnings_vector_chunks00", "no row in vec_learnings_vector_chunks00"),
        ("UPDATE vec_learnings_vector_chunks00 SET vectors = x'00'", "1 bytes for 1024 vectors"),
        ("UPDATE vec_learnings_chunks SET validity = x'ff'", "its bitmap and its size differ"),
        (
            "UPDATE vec_learnings_chunks SET validity = zeroblob(128)",
            "rows, but 0 live slots",
        ),
        (
            "DELETE FROM vec_learnings_metadatatext01 WHERE rowid = 2",
            r"a text of \d+ bytes is missing",
        ),
    ],
)
def test_shadows_that_contradict_each_other_are_refused(
    learnings: sqlite3.Connection, damage: str, message: str
) -> None:
    """A row is never guessed: what does not fit together is damage."""
    table = vector_tables(learnings)[1]
    learnings.execute(damage)

    with pytest.raises(DamagedError, match=message):
        list(read_vectors(learnings, table))


def test_shadows_of_another_generation_are_left_to_sqlite_vec(
    learnings: sqlite3.Connection,
) -> None:
    """A later sqlite-vec may keep its rows in other ways."""
    table = vector_tables(learnings)[1]
    learnings.execute("UPDATE vec_learnings_info SET value = 2 WHERE key LIKE '%MINOR'")

    with pytest.raises(SchemaAheadError, match="written by sqlite-vec v0"):
        list(read_vectors(learnings, table))


def by_key(rows: Iterator[VectorRow]) -> list[VectorRow]:
    """Order rows, which come in no order."""
    return sorted(rows, key=lambda row: str(row.key))


def insert(connection: sqlite3.Connection, table: str, number: int, chance: random.Random) -> None:
    """Add one row with values of every kind, short and long."""
    connection.execute(
        f"INSERT INTO {table}(owner, id, emb, note, raw, n, f, b, t, u)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            f"owner {number % 3}",
            f"k{number}",
            struct.pack("<5f", *(chance.random() for _ in range(DIMENSIONS))),
            "note ü" * number,
            b"\0\1" * (number % 4),
            chance.randrange(-(2**63), 2**63),
            chance.random(),
            number % 2,
            "ü" * (number % 9),
            "x\0y" * number,
        ),
    )


def declare(connection: sqlite3.Connection, name: str, body: str) -> None:
    """Leave the definition of a virtual table in a database without running its module."""
    connection.execute("PRAGMA writable_schema = ON")
    connection.execute(
        "INSERT INTO sqlite_master (type, name, tbl_name, rootpage, sql)"
        " VALUES ('table', ?, ?, 0, ?)",
        (name, name, f"CREATE VIRTUAL TABLE {name} USING vec0({body})"),
    )
