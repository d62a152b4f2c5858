"""A home that the real Sagewai filled in all its tables, moved to PostgreSQL, where it goes on."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from interop import environment
from interop.client import Client
from interop.filling import HARNESS
from interop.homes import MARKER, Site, ask_driver, read_home
from interop.program import Ended, call, succeed
from interop.server import running
from postgres_server import Server, installations
from postgres_server import running as running_postgres
from sagewai_ops.schema import sqlite_head
from sagewai_ops.schema.revision_graph import HEAD
from targets import counts_of, state_of

pytestmark = pytest.mark.interop

TABLES = 55
SEQUENCES = 19  # of tables that both engines have
NEW = "moved"  # marker of what is written after the move


@pytest.fixture(params=["oldest", "newest"])
def server(request: pytest.FixtureRequest, _postgres_session: None) -> Server:
    """The oldest and the newest PostgreSQL of this machine; one alone is both."""
    found = sorted(installations(), key=lambda each: each.major)
    if not found:
        pytest.skip("no PostgreSQL here")
    return running_postgres(found[0] if request.param == "oldest" else found[-1])


def test_sagewai_goes_on_in_postgresql(site: Site, server: Server) -> None:
    """It reads there what it read in its home, and inserts into every table with a sequence."""
    database = server.create()
    url = server.url(database)

    moved = succeed(site.home, "export-to-postgres", url)
    _check_the_move(site, moved)
    _check_the_database(site, url)
    before = _highest_numbers(server, database)
    answer = ask_driver(site.home, "go-on", NEW, variables={"SAGEWAI_DATABASE_URL": url})

    assert isinstance(answer, dict)
    assert answer["reading"] == site.reading
    after = _highest_numbers(server, database)
    assert len(before) == SEQUENCES
    assert {table: after[table] > before[table] for table in before} == dict.fromkeys(before, True)
    counts = site.reading["counts"]
    assert isinstance(counts, dict)
    # Sagewai cannot write the harness tables there: it sends text where the columns are uuid.
    grown = {name for name, count in answer["counts"].items() if count > counts[name]}
    assert counts.keys() - grown == set(HARNESS)
    server.drop(database)


def test_a_server_on_postgresql_lists_the_same(site: Site, server: Server, log: Path) -> None:
    """Every resource and every statistic, over HTTP, and what is created then is listed too."""
    database = server.create()
    url = server.url(database)
    succeed(site.home, "export-to-postgres", url)

    _check_that_it_goes_on(site, log, {"SAGEWAI_DATABASE_URL": url})
    server.drop(database)


def test_sagewai_goes_on_in_sqlite_after_the_return(
    site: Site, postgres: Server, tmp_path: Path, log: Path
) -> None:
    """In a home of `restore --to-sqlite` it reads and lists what it did before the move."""
    database = postgres.create()
    url, snapshots = postgres.url(database), tmp_path / "snapshots"
    succeed(site.home, "export-to-postgres", url)
    succeed(site.home, "backup", "--to", snapshots, url=url)

    restore = ("restore", "latest", "--replace", "--to-sqlite")
    back = call(site.home, *restore, snapshots=snapshots, url=url)
    postgres.drop(database)

    assert back.code == 0, back.answer
    assert read_home(site.home) == site.reading
    _check_that_it_goes_on(site, log)


def test_sagewai_goes_on_in_sqlite_after_an_import(site: Site, postgres: Server, log: Path) -> None:
    """In a home of `import-from-postgres` it reads and lists what it did before the move."""
    database = postgres.create()
    url = postgres.url(database)
    succeed(site.home, "export-to-postgres", url)
    with contextlib.closing(sqlite3.connect(site.home / "db/sagewai.db")) as connection:
        for name in sqlite_head.tables():  # as if the home had always been on the server
            connection.execute(f"DELETE FROM {name}")
        connection.commit()

    back = call(site.home, "import-from-postgres", url)
    postgres.drop(database)

    assert back.code == 0, back.answer
    assert read_home(site.home) == site.reading
    _check_that_it_goes_on(site, log)


def test_a_database_that_sagewai_migrated_is_filled_once(site: Site, postgres: Server) -> None:
    """Its own empty schema is as good a target as none; a second export changes nothing."""
    database = postgres.create()
    url = postgres.url(database)
    _migrate(url)

    moved = succeed(site.home, "export-to-postgres", url)
    _check_the_move(site, moved)
    before = state_of(postgres, database)
    again = call(site.home, "export-to-postgres", url)

    assert moved.result["migrated"] is False
    assert again.code == 15, again.answer
    assert state_of(postgres, database) == before
    postgres.drop(database)


def test_learnings_are_found_as_facts(site: Site, postgres: Server) -> None:
    """Sagewai's PostgreSQL memory finds every one by its own words, and takes another."""
    database = postgres.create()
    url = postgres.url(database)

    moved = succeed(site.home, "export-to-postgres", "--learnings", "facts", url)
    answer = ask_driver(site.home, "facts", variables={"SAGEWAI_DATABASE_URL": url})

    assert isinstance(answer, list)
    learnings = site.reading["learnings"]
    assert isinstance(learnings, list)
    assert len(answer) == len(learnings)
    assert [fact for fact in answer if not fact["found"]] == []
    output = moved.result["learnings"]
    assert isinstance(output, dict)
    assert [table["sent"] for table in output["tables"]] == [len(learnings)]
    assert counts_of(postgres, database)["global_memory_facts"] == len(learnings) + 1
    postgres.drop(database)


def test_learnings_are_searched_as_vectors(site: Site, postgres: Server) -> None:
    """A search for the vector of a learning finds that learning; the home keeps its own."""
    offered = postgres.rows(
        "postgres", "SELECT 1 FROM pg_available_extensions WHERE name = 'vector'"
    )
    if not offered:
        pytest.skip("this PostgreSQL has no pgvector")
    database = postgres.create()
    learnings = site.reading["learnings"]
    assert isinstance(learnings, list)

    moved = succeed(
        site.home, "export-to-postgres", "--learnings", "pgvector", postgres.url(database)
    )

    output = moved.result["learnings"]
    assert isinstance(output, dict)
    (table,) = output["tables"]
    assert (table["sent"], table["rows"]) == (len(learnings), len(learnings))
    found = postgres.rows(
        database,
        "SELECT sought.id FROM vec_learnings sought, LATERAL (SELECT embedding <-> sought.embedding"
        " AS distance FROM vec_learnings ORDER BY 1 LIMIT 1) nearest WHERE nearest.distance = 0",
    )
    assert len(found) == len(learnings)
    contents = postgres.rows(database, "SELECT content FROM vec_learnings")
    assert sorted(str(text) for (text,) in contents) == sorted(
        learning["content"] for learning in learnings
    )
    postgres.drop(database)


def _utc(value: object) -> object:
    """Leave the mark of UTC off: Sagewai writes it where the database returns it, and means it."""
    return json.loads(re.sub(r'(T\d\d:\d\d:\d\d[.\d]*)(Z|\+00:00)"', r'\1"', json.dumps(value)))


def _check_that_it_goes_on(
    site: Site, log: Path, variables: Mapping[str, str] | None = None
) -> None:
    """Check what a server on the home lists, and that it lists too what is created then."""
    with running(site.home, log, variables) as sagewai:
        client = Client(sagewai.url)
        client.log_in()
        listings, pages = client.listings(), client.pages()
        client.create_each(NEW)
        later = client.listings()

    assert _utc(listings) == _utc(site.listings)
    assert _utc(pages) == _utc(site.pages)
    for name, listing in later.items():
        assert NEW in json.dumps(listing), name
        assert MARKER in json.dumps(listing), name


def _check_the_move(site: Site, moved: Ended) -> None:
    """Every table arrived with every row, compared, and every audit event verifies."""
    tables = moved.result["tables"]
    assert isinstance(tables, list)
    assert moved.result["committed"] is True
    assert {table["name"]: table["rows"] for table in tables} == site.reading["counts"]
    assert len(tables) == TABLES
    assert all(table["compared"]["same"] for table in tables)
    (audit,) = (table["compared"]["audit"] for table in tables if table["name"] == "audit_event")
    assert audit["verified"] > 0
    assert (audit["broken"], audit["broken_before"]) == (0, 0)


def _check_the_database(site: Site, url: str) -> None:
    """Our own commands report that the copy is the same, and that the schema is the head's."""
    verified = succeed(site.home, "export-to-postgres", "--verify-only", url)
    checked = succeed(site.home, "db", "check", url=url)
    upgraded = succeed(site.home, "db", "upgrade", url=url)

    assert verified.result["error"] == ""
    assert checked.result["findings"] == []
    assert (upgraded.result["before"], upgraded.result["ran"]) == ([HEAD], [])


def _highest_numbers(server: Server, database: str) -> dict[str, int]:
    """Return the highest number of every table that both engines have and a sequence numbers."""
    owned = server.rows(
        database,
        "SELECT c.relname::text, a.attname::text FROM pg_depend d"
        " JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'"
        " JOIN pg_class c ON c.oid = d.refobjid"
        " JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = d.refobjsubid"
        " WHERE c.relname <> 'workflow_events'",
    )
    return {
        str(table): int(str(server.rows(database, f'SELECT max("{column}") FROM "{table}"')[0][0]))
        for table, column in owned
    }


def _migrate(url: str) -> None:
    """Create the target by Sagewai's own command."""
    program = environment.python_of_sagewai().with_name("sagewai")
    done = subprocess.run(
        [program, "db", "upgrade", "--revision", "head"],
        env=environment.quiet_environment() | {"SAGEWAI_DATABASE_URL": url},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
