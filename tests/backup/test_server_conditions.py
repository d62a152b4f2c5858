"""Snapshots of servers under adverse conditions: writers, DDL, versions, encodings, names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import pytest

from home_builder import build_home
from postgres_server import Installation, Server, installations, running
from program import call
from sagewai_ops.database.postgres.snapshot_session import SnapshotSession
from sagewai_ops.errors import LockedError
from sagewai_ops.schema.revision_graph import HEAD, revisions
from server_homes import DEFINITIONS, ServerHome, content, facts_of, make_server_home, restore


@pytest.fixture
def home(tmp_path: Path, postgres: Server) -> Iterator[ServerHome]:
    """A small home whose database is at the head."""
    made = make_server_home(tmp_path / "home", postgres)
    yield made
    postgres.drop(made.database)


def at_each_step(action: Callable[[], None]) -> Callable[[str, int, int], None]:
    """Return a progress callback that acts while the tables are read."""

    def progress(stage: str, _done: int, _total: int) -> None:
        if stage == "pack":
            action()

    return progress


@pytest.mark.parametrize("target", installations(), ids=lambda found: found.name)
def test_every_version_restores_every_other(
    target: Installation, every_postgres: Server, tmp_path: Path
) -> None:
    """Psql of each version, and a restore to it, rebuild a snapshot of each, equal in all."""
    home = make_server_home(tmp_path / "home", every_postgres)
    server = running(target)
    ours = server.create()

    report = home.back_up()
    answer = call(
        *("--home", home.root, "restore", report.path, "--to", tmp_path / "copy"),
        *("--database-url", server.url(ours)),
    )

    assert answer.code == 0, answer.err
    theirs = restore(report, server, tmp_path / "there")
    source = content(every_postgres, home.database)
    native = content(server, server.at(HEAD))
    sequences, *definitions = DEFINITIONS
    assert source[sequences]
    for restored in (content(server, theirs), content(server, ours)):
        assert {name: rows for name, rows in restored.items() if name not in definitions} == {
            name: rows for name, rows in source.items() if name not in definitions
        }
        for query in definitions:  # as this version prints them
            assert restored[query] == native[query]
    for name in (ours, theirs):
        server.drop(name)
    every_postgres.drop(home.database)


@pytest.mark.parametrize("revision", [revisions()[0], revisions()[8], HEAD])
def test_every_revision_is_stored_as_it_is(revision: str, postgres: Server, tmp_path: Path) -> None:
    """The header names the revision, and psql rebuilds its schema."""
    database = postgres.at(revision)
    build_home(tmp_path / "home", rows=1, vectors=0, artifacts=False, leftovers=False)
    home = ServerHome(tmp_path / "home", postgres, database)

    report = home.back_up()

    assert facts_of(report).revision == (revision,)
    restored = restore(report, postgres, tmp_path / "there")
    assert content(postgres, restored) == content(postgres, database)


def test_an_invariant_over_two_tables_holds(home: ServerHome, tmp_path: Path) -> None:
    """Transactions that commit while the tables are read are in the snapshot wholly or not."""
    home.run(
        "CREATE TABLE a_first (n int PRIMARY KEY, amount bigint)",
        "CREATE TABLE z_last (n int PRIMARY KEY, amount bigint)",
        "INSERT INTO a_first SELECT n, 100 FROM generate_series(1, 100) n",
        "INSERT INTO z_last SELECT n, 100 FROM generate_series(1, 100) n",
    )
    moved = []

    def move() -> None:
        moved.append(1)
        home.run(
            "BEGIN; UPDATE a_first SET amount = amount - 7; UPDATE z_last SET amount = amount + 7;"
            "INSERT INTO a_first VALUES (1000 + (SELECT count(*) FROM a_first), 0); COMMIT"
        )

    report = home.back_up(progress=at_each_step(move))

    assert len(moved) > 5
    restored = restore(report, home.server, tmp_path / "there")
    query = "SELECT (SELECT sum(amount) FROM a_first) + (SELECT sum(amount) FROM z_last)"
    assert home.server.rows(restored, query) == [(20_000,)]
    assert home.server.rows(restored, "SELECT count(*) FROM a_first") == [(100,)]


def test_no_table_is_altered_or_dropped_while_it_is_read(home: ServerHome, tmp_path: Path) -> None:
    """DDL waits for the end; a table that is created during it is not in the snapshot."""
    home.run("CREATE TABLE z_last (n int)", "INSERT INTO z_last VALUES (1)")
    refused: list[str] = []

    def change() -> None:
        if len(refused) < 2:
            statement = ("DROP TABLE z_last", "ALTER TABLE z_last ADD COLUMN m int")[len(refused)]
            try:
                home.run(f"SET lock_timeout = '50ms'; {statement}")
            except asyncpg.LockNotAvailableError:
                refused.append(statement)
            home.run("CREATE TABLE IF NOT EXISTS zz_new (n int)")

    report = home.back_up(progress=at_each_step(change))

    assert len(refused) == 2
    rows = {table.name: table.rows for table in facts_of(report).tables}
    assert rows["z_last"] == 1
    assert "zz_new" not in rows
    restored = restore(report, home.server, tmp_path / "there")
    assert home.server.rows(restored, "SELECT * FROM z_last") == [(1,)]


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        (["DROP TABLE doomed"], None),
        (["DROP TABLE doomed", "CREATE TABLE doomed (a int, b int)"], ("a", "b")),
        (["ALTER TABLE doomed RENAME TO other"], None),
        (["ALTER TABLE doomed ADD COLUMN b int"], ("a", "b")),
    ],
)
def test_a_table_that_changes_before_its_lock_is_listed_again(
    home: ServerHome,
    monkeypatch: pytest.MonkeyPatch,
    statements: list[str],
    expected: tuple[str, ...] | None,
) -> None:
    """The snapshot has the table as it is once it is locked."""
    home.run("CREATE TABLE doomed (a int)")
    original = SnapshotSession._tables
    waiting = [*statements]

    async def listing(self: SnapshotSession, connection: object, is_wanted: object) -> object:
        found = await original(self, connection, is_wanted)  # type: ignore[arg-type]
        if waiting:
            other = await home.server.connect(home.database)
            for statement in waiting:
                await other.execute(statement)
            waiting.clear()
            await other.close()
        return found

    monkeypatch.setattr(SnapshotSession, "_tables", listing)
    report = home.back_up()

    columns = {table.name: table.columns for table in facts_of(report).tables}
    assert columns.get("doomed") == expected


def test_a_table_that_stays_locked_is_named(
    home: ServerHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A migration that holds a lock ends the backup after the wait, exit 11."""
    monkeypatch.setattr("sagewai_ops.backup.server._WAIT_SECONDS", 0.1)

    async def attempt() -> None:
        other = await home.server.connect(home.database)
        await other.execute("BEGIN; LOCK TABLE sessions")
        try:
            with pytest.raises(LockedError):
                home.back_up()
        finally:
            await other.close()

    import asyncio

    asyncio.run(attempt())
    assert [*home.snapshots.iterdir()] == []


@pytest.mark.parametrize(
    ("encoding", "value", "target"),
    [
        ("LATIN1", r"E'\xe9'", "UTF8"),
        ("EUC_JP", r"E'\xa4\xa2'", "UTF8"),
        ("SQL_ASCII", r"E'\xe9\xff'", "SQL_ASCII"),
    ],
)
def test_other_encodings_are_read_and_restored(
    encoding: str, value: str, target: str, postgres: Server, tmp_path: Path
) -> None:
    """Text is stored in UTF-8, or as it is if the database does not know its encoding."""
    database = f"in_{encoding.lower()}"
    make = f"CREATE DATABASE {database} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0"
    postgres.run("postgres", make)
    postgres.run(database, "CREATE TABLE t (a text)")
    # As bytes: the client's own encoding is UTF-8.
    postgres.run(database, f"SET client_encoding = 'SQL_ASCII'; INSERT INTO t VALUES ({value})")
    build_home(tmp_path / "home", rows=1, vectors=0, artifacts=False, leftovers=False)
    home = ServerHome(tmp_path / "home", postgres, database)

    report = home.back_up()

    facts = facts_of(report)
    assert (facts.encoding, facts.text_encoding) == (encoding, target)
    restored = restore(report, postgres, tmp_path / "there", encoding=target)
    query = "SELECT encode(convert_to(a, 'UTF8'), 'hex') FROM t"
    if encoding == "SQL_ASCII":
        query = "SELECT encode(a::bytea, 'hex') FROM t"
    assert postgres.rows(restored, query) == postgres.rows(database, query)
    postgres.drop(database)


def test_no_row_or_name_is_code_of_psql(postgres: Server, tmp_path: Path) -> None:
    """A newline in a revision ends no comment; a table that psql cannot name is reported."""
    database = postgres.create()
    command = "\n\\! touch ran\n"
    postgres.run(
        database,
        "CREATE TABLE alembic_version (version_num text)",
        f"INSERT INTO alembic_version VALUES ('x{command}')",
        f'CREATE TABLE "t{command}" (a int)',
        f'CREATE TABLE keyed (a int CONSTRAINT "c{command}" CHECK (a > 0))',
        f'CREATE INDEX "i{command}" ON keyed (a)',
        f'CREATE SEQUENCE "s{command}"',
        f"CREATE TYPE e AS ENUM ('l{command}')",
    )
    build_home(tmp_path / "home", rows=1, vectors=0, artifacts=False, leftovers=False)

    report = ServerHome(tmp_path / "home", postgres, database).back_up()

    assert [item.kind for item in report.unstored] == ["table"]
    assert not report.is_complete
    restore(report, postgres, tmp_path / "there")
    assert not (tmp_path / "there/ran").exists()


def test_schema_and_names_with_quotes(postgres: Server, tmp_path: Path) -> None:
    """The schema of the search_path is stored, whatever its name is."""
    database = postgres.create()
    schema = 'my "own" schema\'s'
    quoted = '"my ""own"" schema\'s"'
    postgres.run(
        database,
        f"CREATE SCHEMA {quoted}",
        f"ALTER DATABASE {database} SET search_path = {quoted}",
        f'CREATE TABLE {quoted}."t ""x"" %s" (id serial PRIMARY KEY, "c\'""" text)',
        f'INSERT INTO {quoted}."t ""x"" %s" ("c\'""") VALUES (\'a\'), (NULL)',
        f'CREATE INDEX "i ""x" ON {quoted}."t ""x"" %s" ("c\'""")',
    )
    build_home(tmp_path / "home", rows=1, vectors=0, artifacts=False, leftovers=False)

    report = ServerHome(tmp_path / "home", postgres, database).back_up()

    assert facts_of(report).schema == schema
    restored = restore(report, postgres, tmp_path / "there")
    postgres.run("postgres", f"ALTER DATABASE {restored} SET search_path = {quoted}")
    assert content(postgres, restored) == content(postgres, database)
