"""Learnings on their way: as facts, as vectors, those that cannot go, and what is refused."""

from __future__ import annotations

import sqlite3
import struct
from array import array
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from home_builder import vectors as builder
from postgres_server import Server, installations, running
from sagewai_ops.database.sqlite.vectors import VectorRow, load_extension, read_vectors
from sagewai_ops.errors import DifferenceError, TargetBusyError, UsageError
from sagewai_ops.export.learnings import learnings, memory_facts, pgvector
from sagewai_ops.home.paths import Home
from sagewai_ops.schema import sqlite_head
from targets import at_head, counts_of, exported, home_with, state_of

SLOT = struct.Struct("<I12s")  # a text of vec0: its length in bytes, and its beginning
WIDE = 2001  # dimensions, one more than pgvector's index takes
CHOICES = ["facts", "pgvector"]


@pytest.fixture(params=["with sqlite-vec", "without"])
def _reading(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to read vectors, where this Python has both."""
    if request.param == "without":
        monkeypatch.setattr(learnings, "load_extension", lambda _: False)
        return
    with closing(sqlite3.connect(":memory:")) as connection:
        if not load_extension(connection):
            pytest.skip("this Python cannot load sqlite-vec")


@pytest.fixture
def vector_server(postgres: Server) -> Server:
    """A server that has pgvector."""
    if not _has_pgvector(postgres):
        pytest.skip("the default PostgreSQL has no pgvector")
    return postgres


def _home(directory: Path, **vectors: Any) -> Home:
    """Build a home with learnings and nothing else in its database: the rest has its own tests."""

    def empty(connection: sqlite3.Connection) -> None:
        for table in sqlite_head.tables():
            connection.execute(f"DELETE FROM {table}")

    return home_with(directory / "home", empty, rows=1, **vectors)


def _has_pgvector(server: Server) -> bool:
    query = "SELECT 1 FROM pg_available_extensions WHERE name = 'vector'"
    return bool(server.rows("postgres", query))


@pytest.mark.usefixtures("_reading")
def test_vectors_of_any_name_and_dimension_arrive_bit_by_bit(
    tmp_path: Path, vector_server: Server
) -> None:
    """With the extension and without: each is what its text means, and its index is there."""
    tables = {"own_memory": (1030, 7), "wide": (3, WIDE), "none": (0, 4)}
    home = _home(tmp_path, vectors=28, more_vectors=tables)
    database = at_head(vector_server)

    report = exported(home, vector_server, database, learnings="pgvector")

    sizes = {name: count for name, (count, _) in tables.items()} | {"vec_learnings": 28}
    assert report.exit_code == 0
    assert {each.to: each.sent for each in report.learnings.tables} == sizes
    for name, (count, dimension) in (*tables.items(), ("vec_learnings", (28, 384))):
        rows = vector_server.rows(database, f'SELECT content, embedding::text FROM "{name}"')
        assert len(rows) == count
        for content, written in rows:
            floats = [float(word) for word in str(written).strip("[]").split(",")]
            computed = builder.embedding(str(content), dimension)
            assert struct.pack(f"<{dimension}f", *floats) == computed
    indexed = vector_server.rows(
        database, "SELECT tablename::text FROM pg_indexes WHERE indexdef LIKE '%hnsw%'"
    )
    assert {name for (name,) in indexed} == {"vec_learnings", "own_memory", "none"}


@pytest.mark.usefixtures("_reading")
def test_learnings_become_facts_in_their_order(tmp_path: Path, postgres: Server) -> None:
    """Short and long texts, in any script; search finds them."""
    home = _home(tmp_path, vectors=28)
    with closing(sqlite3.connect(home.database)) as connection:
        _set_text(connection, 1, "Fledermäuse hören 🦇 at night")
    database = at_head(postgres)

    report = exported(home, postgres, database, learnings="facts")

    (copied,) = report.learnings.tables
    assert (copied.to, copied.rows, copied.sent) == ("global_memory_facts", 28, 28)
    assert postgres.rows(
        database,
        "SELECT content, metadata::text FROM global_memory_facts"
        " WHERE content_tsv @@ plainto_tsquery('english', 'nights')",
    ) == [("Fledermäuse hören 🦇 at night", "{}")]
    assert postgres.rows(
        database, "SELECT min(id), max(id), count(DISTINCT scope) > 1 FROM global_memory_facts"
    ) == [(1, 28, True)]


def test_a_null_makes_no_fact(
    tmp_path: Path, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An auxiliary column of vec0 may hold one; the row is named, and no text is made up for it."""

    def without_content(*arguments: Any, **options: Any) -> Iterator[VectorRow]:
        for number, row in enumerate(read_vectors(*arguments, **options)):
            yield row if number else replace(row, values=(row.values[0], None))

    monkeypatch.setattr("sagewai_ops.export.learnings.vector_rows.read_vectors", without_content)
    home = _home(tmp_path, vectors=12)
    database = at_head(postgres)

    refused = exported(home, postgres, database, learnings="facts")
    apart = exported(home, postgres, database, learnings="facts", policy="quarantine")

    (finding,) = refused.open_findings
    assert (finding.table, finding.column, finding.kind) == ("vec_learnings", "content", "null")
    assert apart.exit_code == 3
    assert counts_of(postgres, database) == {"global_memory_facts": 11}


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize(
    ("text", "kind"), [(b"one\0two and more than inline", "nul"), (b"a\xffb" * 9, "invalid-utf8")]
)
def test_texts_that_postgresql_refuses_are_findings(
    tmp_path: Path, vector_server: Server, choice: str, text: bytes, kind: str
) -> None:
    """By default nothing is committed; else the others arrive, and the exit code shows it."""
    home = _home(tmp_path, vectors=12)
    with closing(sqlite3.connect(home.database)) as connection:
        key = _set_text(connection, 3, text)
    database = at_head(vector_server)

    planned = exported(home, vector_server, database, learnings=choice, purpose="plan")
    refused = exported(home, vector_server, database, learnings=choice)
    before = counts_of(vector_server, database)
    apart = exported(home, vector_server, database, learnings=choice, policy="quarantine")

    (finding,) = refused.open_findings
    assert (finding.table, finding.column, finding.kind) == ("vec_learnings", "content", kind)
    assert finding.keys == (key,)
    assert (refused.exit_code, before) == (4, {})
    assert (apart.exit_code, apart.committed) == (3, True)
    assert apart.learnings.findings == planned.learnings.findings == [finding]
    assert (planned.open_findings, planned.findings, planned.exit_code) == ((finding,), (), 4)
    assert counts_of(vector_server, database)[apart.learnings.tables[0].to] == 11


def test_a_text_beyond_the_limit_of_a_search_index_is_a_finding(
    tmp_path: Path, postgres: Server
) -> None:
    """PostgreSQL's own words are in it."""
    home = _home(tmp_path, vectors=3)
    words = " ".join(f"w{number}x" for number in range(160_000))
    with closing(sqlite3.connect(home.database)) as connection:
        _set_text(connection, 2, words)

    database = at_head(postgres)

    planned = exported(home, postgres, database, learnings="facts", purpose="plan")
    report = exported(home, postgres, database, learnings="facts")

    assert planned.open_findings == report.open_findings
    (finding,) = report.open_findings
    assert (finding.kind, finding.count) == ("too-large", 1)
    assert "tsvector" in finding.detail


def test_a_vector_that_is_not_finite_is_a_finding(tmp_path: Path, vector_server: Server) -> None:
    """For pgvector there are no infinities; a fact needs no vector."""
    home = _home(tmp_path, vectors=3)
    with closing(sqlite3.connect(home.database)) as connection:
        ((chunks,),) = connection.execute("SELECT vectors FROM vec_learnings_vector_chunks00")
        _, offset = _place(connection, 1)
        start = offset * 4 * 384
        broken = chunks[:start] + struct.pack("<f", float("inf")) + chunks[start + 4 :]
        connection.execute("UPDATE vec_learnings_vector_chunks00 SET vectors = ?", (broken,))
        connection.commit()

    database = at_head(vector_server)

    planned = exported(home, vector_server, database, learnings="pgvector", purpose="plan")
    refused = exported(home, vector_server, database, learnings="pgvector")
    taken = exported(home, vector_server, at_head(vector_server), learnings="facts")

    (finding,) = refused.open_findings
    assert (finding.column, finding.kind, finding.count) == ("embedding", "not-finite", 1)
    assert planned.open_findings == refused.open_findings
    assert taken.exit_code == 0


def test_vectors_without_scope_and_content_make_no_facts(
    tmp_path: Path, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are named, not made up."""
    monkeypatch.setattr(memory_facts, "CONTENT", "another")
    home = _home(tmp_path, vectors=3)
    database = at_head(postgres)

    planned = exported(home, postgres, database, learnings="facts", purpose="plan")
    refused = exported(home, postgres, database, learnings="facts")
    apart = exported(home, postgres, database, learnings="facts", policy="repair")

    assert [each.kind for each in refused.open_findings] == ["no-facts"]
    assert planned.open_findings == refused.open_findings
    assert (apart.exit_code, apart.committed) == (3, True)
    assert "global_memory_facts" not in counts_of(postgres, database)


@pytest.mark.parametrize(
    ("choice", "table", "words"),
    [
        ("facts", memory_facts.FACTS_TABLE, "has rows"),
        ("pgvector", "vec_learnings", "exists already"),
    ],
)
def test_a_table_that_is_in_use_is_never_added_to(
    tmp_path: Path, vector_server: Server, choice: str, table: str, words: str
) -> None:
    """It may lie in another schema of the path, where the look at the target does not reach."""
    home = _home(tmp_path, vectors=3)
    database = at_head(vector_server)
    vector_server.run(
        database,
        "CREATE SCHEMA elsewhere",
        f"CREATE TABLE elsewhere.{table} (id bigserial, scope text, content text)",
        f"INSERT INTO elsewhere.{table} (scope) VALUES ('p')",
        f'ALTER DATABASE "{database}" SET search_path = public, elsewhere',
    )
    before = state_of(vector_server, database)

    for purpose in ("plan", "move"):
        with pytest.raises(TargetBusyError, match=words):
            exported(home, vector_server, database, learnings=choice, purpose=purpose)

    assert state_of(vector_server, database) == before


@pytest.mark.usefixtures("_postgres_session")
def test_a_server_without_pgvector_is_refused(tmp_path: Path) -> None:
    """Before anything is sent for it."""
    # Debian packs pgvector apart; the packaged servers of Python bring it along.
    packaged = [found for found in installations() if found.name.startswith("debian")]
    lacking = [server for server in map(running, packaged) if not _has_pgvector(server)]
    if not lacking:
        pytest.skip("no PostgreSQL without pgvector here")
    home = _home(tmp_path, vectors=3)
    database = at_head(lacking[0])

    with pytest.raises(UsageError, match="no extension vector"):
        exported(home, lacking[0], database, learnings="pgvector")

    assert counts_of(lacking[0], database) == {}


def test_vector_that_differs_in_one_bit_is_rolled_back(
    tmp_path: Path, vector_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One float of one row is sent with another sign; the new tables are rolled back too."""
    fitting = pgvector._fitting
    seen: list[object] = []

    def flip(*arguments: Any) -> array[float] | None:
        floats = fitting(*arguments)
        seen.append(arguments)
        if floats is not None and len(seen) == 2:
            floats[-1] = -floats[-1]
        return floats

    monkeypatch.setattr(pgvector, "_fitting", flip)
    home = _home(tmp_path, vectors=3)
    database = at_head(vector_server)
    before = state_of(vector_server, database)

    with pytest.raises(DifferenceError, match="row 1 of the target differs"):
        exported(home, vector_server, database, learnings="pgvector")

    assert state_of(vector_server, database) == before


def test_a_home_without_learnings_needs_nothing(tmp_path: Path, postgres: Server) -> None:
    """Neither a table nor an extension is made for none."""
    home = _home(tmp_path)
    for choice in CHOICES:
        database = at_head(postgres)

        report = exported(home, postgres, database, learnings=choice)

        assert report.exit_code == 0
        made = "SELECT to_regclass('global_memory_facts') IS NULL"
        assert postgres.rows(database, made) == [(True,)]
        assert postgres.rows(database, "SELECT extname::text FROM pg_extension") == [("plpgsql",)]


def _place(connection: sqlite3.Connection, row: int) -> tuple[int, int]:
    """Return the rowid and the slot of the n-th learning."""
    query = "SELECT rowid, chunk_offset FROM vec_learnings_rowids ORDER BY rowid LIMIT 1 OFFSET ?"
    ((rowid, offset),) = connection.execute(query, (row - 1,))
    return int(rowid), int(offset)


def _set_text(connection: sqlite3.Connection, row: int, text: str | bytes) -> str:
    """Return the n-th learning another long text, as vec0 stores it, and return its id."""
    raw = text.encode() if isinstance(text, str) else text
    rowid, offset = _place(connection, row)
    connection.execute("DELETE FROM vec_learnings_metadatatext01 WHERE rowid = ?", (rowid,))
    connection.execute(
        "INSERT INTO vec_learnings_metadatatext01 (rowid, data) VALUES (?, CAST(? AS TEXT))",
        (rowid, raw),
    )
    ((slots,),) = connection.execute("SELECT data FROM vec_learnings_metadatachunks01")
    start = offset * SLOT.size
    slots = slots[:start] + SLOT.pack(len(raw), raw[:12]) + slots[start + SLOT.size :]
    connection.execute("UPDATE vec_learnings_metadatachunks01 SET data = ?", (slots,))
    connection.commit()
    ((key,),) = connection.execute("SELECT id FROM vec_learnings_rowids WHERE rowid = ?", (rowid,))
    return str(key)
