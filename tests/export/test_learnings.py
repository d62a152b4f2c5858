"""Learnings as facts and as vectors, and what prevents either."""

from __future__ import annotations

import contextlib
import sqlite3
import struct

import pytest

from postgres_server import Server, installations, running
from sagewai_ops.database.sqlite.vectors import load_extension, read_vectors, vector_tables
from sagewai_ops.errors import DifferenceError, TargetBusyError, UsageError
from sagewai_ops.export.learnings import learnings
from sagewai_ops.export.mapping.source_rows import open_copy
from sagewai_ops.home.paths import Home
from targets import at_head, catalog_of, counts_of, exported, home_with

TABLES = {"vec_learnings": (28, 384), "Notes_2": (1100, 8), "wide": (5, 1536)}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home with three tables of vectors: more than one chunk, and more floats than usual."""
    more = {name: size for name, size in TABLES.items() if name != "vec_learnings"}
    return home_with(
        tmp_path_factory.mktemp("original") / "home", vectors=28, dimension=384, more_vectors=more
    )


def stored(home: Home, name: str) -> dict[str, tuple[object, ...]]:
    """Read a table of vectors from the home, by key."""
    with open_copy(home.database) as source:
        (table,) = [each for each in vector_tables(source) if each.name == name]
        return {str(row.key): (row.vector, *row.values) for row in read_vectors(source, table)}


def arrived(server: Server, database: str, name: str) -> dict[str, tuple[object, ...]]:
    """Read it from the target: vectors as little-endian floats, as the home has them."""
    rows = server.rows(
        database,
        f"SELECT rowid_::text, vector_, others FROM ({_columns(server, database, name)}) x",
    )
    found: dict[str, tuple[object, ...]] = {}
    for key, vector, others in rows:
        floats = [float(each) for each in str(vector).strip("[]").split(",")]
        assert isinstance(others, list)
        found[str(key)] = (struct.pack(f"<{len(floats)}f", *floats), *others)
    return found


def _columns(server: Server, database: str, name: str) -> str:
    names = [
        str(column)
        for (column,) in server.rows(
            database,
            "SELECT attname FROM pg_attribute WHERE attrelid = $1::regclass AND attnum > 0"
            " ORDER BY attnum",
            f'"{name}"',
        )
    ]
    others = ", ".join(f'"{each}"::text' for each in names[2:])
    return (
        f'SELECT "{names[0]}" AS rowid_, "{names[1]}"::text AS vector_,'
        f' ARRAY[{others}]::text[] AS others FROM "{name}"'
    )


def test_vectors_arrive_in_tables_of_every_name_and_dimension(home: Home, postgres: Server) -> None:
    """Keys, texts and every bit of every float."""
    database = at_head(postgres)

    report = exported(home, postgres, database, learnings="pgvector")

    assert report.committed
    assert {each.table: (each.rows, each.dimensions) for each in report.learnings.tables} == TABLES
    for copied in report.learnings.tables:
        assert (copied.to, copied.sent) == (copied.table, copied.rows)
        assert arrived(postgres, database, copied.table) == stored(home, copied.table)


def test_vectors_get_an_index_that_searches_use(home: Home, postgres: Server) -> None:
    """Of the metric that sqlite-vec had; without it a search reads every row."""
    database = at_head(postgres)

    exported(home, postgres, database, learnings="pgvector")

    indexes = postgres.rows(
        database,
        "SELECT tablename::text FROM pg_indexes WHERE indexdef LIKE '%hnsw%vector_l2_ops%'"
        " OR indexdef LIKE '%hnsw%vector_cosine_ops%' ORDER BY 1",
    )
    assert [name for (name,) in indexes] == sorted(TABLES)


def test_the_extension_and_the_shadows_read_the_same(
    home: Home, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not sqlite-vec can be loaded."""
    with open_copy(home.database) as source:
        if not load_extension(source):
            pytest.skip("this Python loads no SQLite extensions")
    asked, decoded = at_head(postgres), at_head(postgres)

    with_extension = exported(home, postgres, asked, learnings="pgvector")
    monkeypatch.setattr(learnings, "load_extension", lambda _source: False)
    without = exported(home, postgres, decoded, learnings="pgvector")

    for name in TABLES:
        assert arrived(postgres, asked, name) == arrived(postgres, decoded, name)
    for left, right in zip(with_extension.learnings.tables, without.learnings.tables, strict=True):
        assert left.sent == right.sent > 0


def test_facts_are_what_sagewai_reads_on_postgresql(home: Home, postgres: Server) -> None:
    """Scope and content of every learning, and they are found by their words."""
    database = at_head(postgres)

    exported(home, postgres, database, learnings="facts")

    expected = sorted(
        tuple(values) for name in TABLES for _, *values in stored(home, name).values()
    )
    rows = postgres.rows(database, "SELECT scope, content FROM global_memory_facts")
    assert sorted(rows) == expected
    (_, content) = rows[0]
    assert postgres.rows(
        database,
        "SELECT count(*) > 0 FROM global_memory_facts"
        " WHERE content_tsv @@ plainto_tsquery('english', $1)",
        content,
    ) == [(True,)]


def test_a_text_that_postgresql_refuses_is_a_finding(home: Home, postgres: Server) -> None:
    """Nothing is sent; with quarantine the others are, and the report names the one."""
    with contextlib.closing(sqlite3.connect(home.database)) as connection:
        connection.execute(
            "UPDATE vec_learnings_metadatatext01 SET data = replace(data, ' ', char(0))"
            " WHERE rowid = (SELECT min(rowid) FROM vec_learnings_metadatatext01)"
        )
        connection.commit()
    database = at_head(postgres)

    refused = exported(home, postgres, database, learnings="pgvector")

    assert not refused.committed
    assert refused.exit_code == 4
    assert [(each.table, each.kind) for each in refused.open_findings] == [("vec_learnings", "nul")]
    assert counts_of(postgres, database) == {}
    report = exported(home, postgres, database, learnings="pgvector", policy="quarantine")
    assert report.committed
    assert report.exit_code == 3
    assert postgres.rows(database, "SELECT count(*) FROM vec_learnings") == [(27,)]


def test_a_vector_with_an_infinity_is_a_finding(home: Home, postgres: Server) -> None:
    """Which pgvector cannot hold."""
    with contextlib.closing(sqlite3.connect(home.database)) as connection:
        ((chunk,),) = connection.execute("SELECT vectors FROM wide_vector_chunks00").fetchall()
        size = 4 * TABLES["wide"][1]
        vectors = [chunk[start : start + size] for start in range(0, len(chunk), size)]
        spoiled = b"".join(struct.pack("<f", float("inf")) + vector[4:] for vector in vectors)
        connection.execute("UPDATE wide_vector_chunks00 SET vectors = ?", (spoiled,))
        connection.commit()

    report = exported(home, postgres, at_head(postgres), learnings="pgvector")

    assert [(each.table, each.kind, each.count) for each in report.open_findings] == [
        ("wide", "not-finite", 5)
    ]


@pytest.mark.parametrize("choice", ["facts", "pgvector"])
def test_a_table_that_is_there_already_is_not_touched(
    home: Home, postgres: Server, choice: str
) -> None:
    """Exit 15; the target is as it was."""
    database = at_head(postgres)
    postgres.run(
        database,
        "CREATE TABLE global_memory_facts (id bigserial, scope text, content text)",
        "INSERT INTO global_memory_facts (scope, content) VALUES ('s', 'c')",
        "CREATE TABLE vec_learnings (id text)",
    )
    before = catalog_of(postgres, database)

    with pytest.raises(TargetBusyError):
        exported(home, postgres, database, learnings=choice)

    assert catalog_of(postgres, database) == before


@pytest.mark.parametrize(
    ("choice", "table", "change"),
    [
        ("facts", "global_memory_facts", "content = content || ' '"),
        ("pgvector", "wide", "{vector} = {vector} + {vector}"),
    ],
)
def test_a_verification_compares_learnings_on_request(
    home: Home, postgres: Server, choice: str, table: str, change: str
) -> None:
    """In any order; without the choice it was not compared; with it every change is found."""
    database = at_head(postgres)
    exported(home, postgres, database, learnings=choice)
    ((vector,),) = postgres.rows(
        database,
        "SELECT attname::text FROM pg_attribute WHERE attrelid = $1::regclass AND attnum = 2",
        table,
    )
    postgres.run(database, f"UPDATE {table} SET {vector} = {vector} WHERE ctid = '(0,1)'")

    same = exported(home, postgres, database, learnings=choice, purpose="verify")
    without = exported(home, postgres, database, purpose="verify")

    assert (same.exit_code, same.notes) == (0, [])
    assert [each.sent for each in same.learnings.tables] == [
        each.rows for each in same.learnings.tables
    ]
    assert without.exit_code == 0
    assert any(f"table {table}" in note and "--learnings" in note for note in without.notes)
    row = f"WHERE ctid = (SELECT max(ctid) FROM {table})"
    postgres.run(database, f"UPDATE {table} SET {change.format(vector=vector)} {row}")
    with pytest.raises(DifferenceError, match=f"{table}: 1 rows of the home are not there, 1 are"):
        exported(home, postgres, database, learnings=choice, purpose="verify")
    postgres.run(database, f"DROP TABLE {table}")
    with pytest.raises(DifferenceError, match=f"table {table}: is not there"):
        exported(home, postgres, database, learnings=choice, purpose="verify")


def test_the_lines_of_the_cut_over_verify_what_was_moved(home: Home, postgres: Server) -> None:
    """With the same choice for learnings."""
    report = exported(home, postgres, at_head(postgres), learnings="facts")

    assert any("--verify-only --learnings facts" in line for line in report.cut_over)


def test_a_server_without_pgvector_is_reported(home: Home) -> None:
    """With what to do instead."""
    bare = [found for found in installations() if found.name.startswith("debian")]
    if not bare or (bare[0].programs.parent / "share/extension/vector.control").exists():
        pytest.skip("every PostgreSQL here has pgvector")
    server = running(bare[0])
    database = at_head(server)

    with pytest.raises(UsageError, match="no extension vector") as raised:
        exported(home, server, database, learnings="pgvector")

    assert "--learnings facts" in raised.value.hint
    assert counts_of(server, database) == {}
