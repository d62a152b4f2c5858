"""Schemas that we and the real Sagewai take turns at, on both engines."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

import old_homes
import schema_catalogs
from interop import environment
from interop.homes import ask_driver, copy_home
from postgres_server import Server
from sagewai_ops.database import url as database_url
from sagewai_ops.database.postgres import connection as postgres_connection
from sagewai_ops.schema import migrate_postgres
from sagewai_ops.schema.check_postgres import check_postgres
from sagewai_ops.schema.revision_graph import HEAD
from sagewai_ops.schema.revision_graph import revisions as all_revisions
from sagewai_ops.schema.upgrade_sqlite import upgrade_database

pytestmark = pytest.mark.interop

ROWS = {
    "001_initial": "INSERT INTO workflow_runs (id, workflow_name, run_id, data, input)"
    " VALUES ('default:w:1', 'w', '1', '{}', '{}')",
    "017_api_tokens": "INSERT INTO workers (worker_id, labels, metadata, models_supported,"
    " models_canonical, capabilities) VALUES ('w', '{}', '{}', '[]', '[]', '{}')",
    "019_fleet_tasks": "INSERT INTO fleet_tasks (run_id, org_id, labels, payload)"
    " VALUES ('t', 'o', '{}', '{}')",
}


@pytest.mark.parametrize("with_rows", [False, True], ids=["empty", "with rows"])
@pytest.mark.parametrize("revision", ROWS)
def test_sagewai_finds_nothing_to_add_after_our_upgrade(
    tmp_path: Path,
    revision: str,
    with_rows: bool,  # noqa: FBT001
) -> None:
    """A home from before 020 is brought to what Sagewai itself would have made of it."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    (ours / "db").mkdir(parents=True)
    database = ours / "db" / "sagewai.db"
    old_homes.build(database, revision)
    if with_rows:
        with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
            connection.execute(ROWS[revision])
    copy_home(ours, theirs)

    upgrade_database(database)
    before, after = _schemas(ours)
    _schemas(theirs)

    assert before == after
    assert _catalog(ours) == _catalog(theirs)


def _schemas(home: Path) -> list[list[list[str]]]:
    """Return the schema before and after the upgrade that Sagewai makes at its start."""
    answer = ask_driver(home, "schema")
    assert isinstance(answer, list)
    return answer


def _catalog(home: Path) -> dict[str, schema_catalogs.SqliteTable]:
    with contextlib.closing(sqlite3.connect(home / "db" / "sagewai.db")) as connection:
        return schema_catalogs.read_sqlite(connection)


def test_we_go_on_where_sagewai_stopped(every_postgres: Server) -> None:
    """Its chain to the middle, ours to the head: no difference is left, in any column's order."""
    name, whole = every_postgres.create(), every_postgres.create()
    _sagewai(every_postgres.url(name), "upgrade", "006_artifact_destination")

    moved = asyncio.run(migrate_postgres.upgrade(_parsed(every_postgres.url(name))))
    _sagewai(every_postgres.url(whole), "upgrade", "head")
    asyncio.run(migrate_postgres.upgrade(_parsed(every_postgres.url(whole))))

    assert moved.before == ("006_artifact_destination",)
    for database in (name, whole):
        assert _postgres(every_postgres, database) == schema_catalogs.postgres(HEAD)
        checked = asyncio.run(check_postgres(_parsed(every_postgres.url(database))))
        assert checked.findings == ()
        every_postgres.drop(database)


def test_sagewai_goes_on_where_we_stopped(postgres: Server) -> None:
    """Our chain to the middle, its to the head; then its way down through what is ours."""
    name, ours, theirs = postgres.at("012_tenant_agent"), postgres.at(HEAD), postgres.create()
    _sagewai(postgres.url(name), "upgrade", "head")
    _sagewai(postgres.url(theirs), "upgrade", "head")

    assert _postgres(postgres, name) == schema_catalogs.postgres(HEAD)
    assert _orders(postgres, ours) == _orders(postgres, theirs)

    _sagewai(postgres.url(ours), "downgrade", "004_sealed_revocations")
    asyncio.run(migrate_postgres.downgrade(_parsed(postgres.url(theirs)), "004_sealed_revocations"))

    for database in (ours, theirs):
        assert _postgres(postgres, database) == schema_catalogs.postgres("004_sealed_revocations")
        postgres.drop(database)
    postgres.drop(name)


def test_either_goes_on_from_every_revision(postgres: Server) -> None:
    """At each of the 21, up to the head and back to the base, neither leaves a difference."""
    theirs = {revision: postgres.create() for revision in all_revisions()}
    ours = {revision: postgres.at(revision) for revision in all_revisions()}

    _chain((postgres.url(name), "upgrade", revision) for revision, name in theirs.items())
    reached = {name: _orders(postgres, name) for name in (*theirs.values(), *ours.values())}
    for name in theirs.values():
        asyncio.run(migrate_postgres.upgrade(_parsed(postgres.url(name))))
    _chain((postgres.url(name), "upgrade", "head") for name in ours.values())

    for revision in all_revisions():
        mine, yours = ours[revision], theirs[revision]
        assert reached[mine] == reached[yours]
        assert _postgres(postgres, yours) == schema_catalogs.postgres(HEAD)
        assert _orders(postgres, mine) == _orders(postgres, yours)

    _chain((postgres.url(name), "downgrade", revision) for revision, name in theirs.items())
    for revision, name in ours.items():
        asyncio.run(migrate_postgres.downgrade(_parsed(postgres.url(name)), revision))
        assert _postgres(postgres, name) == _postgres(postgres, theirs[revision])
    _chain((postgres.url(name), "downgrade", "base") for name in ours.values())
    for revision, name in theirs.items():
        asyncio.run(migrate_postgres.downgrade(_parsed(postgres.url(name)), "base"))
        assert _postgres(postgres, name) == _postgres(postgres, ours[revision])
        assert list(_orders(postgres, name)) == ["alembic_version"]
        for database in (name, ours[revision]):
            postgres.drop(database)


def _chain(moves: Iterable[tuple[str, str, str]]) -> None:
    """Have the real Sagewai move databases along its chain."""
    environment.run_in_sagewai(Path(__file__).with_name("chain.py"), json.dumps(list(moves)))


def _sagewai(url: str, command: str, revision: str) -> None:
    """Run `sagewai db COMMAND --revision REVISION` on a PostgreSQL database."""
    program = environment.python_of_sagewai().with_name("sagewai")
    done = subprocess.run(
        [program, "db", command, "--revision", revision],
        env=environment.quiet_environment() | {"SAGEWAI_DATABASE_URL": url},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _parsed(url: str) -> database_url.PostgresUrl:
    parsed = database_url.parse(url)
    assert isinstance(parsed, database_url.PostgresUrl)
    return parsed


def _postgres(server: Server, database: str) -> schema_catalogs.PostgresCatalog:
    async def read() -> schema_catalogs.PostgresCatalog:
        url = _parsed(server.url(database))
        async with postgres_connection.open_transaction(url) as connection:
            return await schema_catalogs.read_postgres(connection)

    return asyncio.run(read())


def _orders(server: Server, database: str) -> dict[str, list[str]]:
    """List each table's columns in their order."""
    tables = _postgres(server, database)["tables"]
    return {name: list(table["columns"]) for name, table in tables.items()}
