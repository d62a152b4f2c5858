"""The Alembic chain on real PostgreSQL servers: every revision, up and down."""

from __future__ import annotations

import ast
import asyncio
from importlib import resources
from pathlib import Path

import pytest
from sqlalchemy import create_engine

import schema_catalogs
from postgres_server import Server
from sagewai_ops.database import url as database_url
from sagewai_ops.database.postgres import connection as postgres_connection
from sagewai_ops.schema import alembic_runner, revision_graph
from sagewai_ops.schema.revision_graph import HEAD, revisions

TRUNK = [revision for revision in revisions() if not revision.startswith("006_")]
SCRIPTS = Path(str(resources.files("sagewai_ops.migrations")))
EMPTY: schema_catalogs.PostgresCatalog = {
    "tables": {
        "alembic_version": {
            "columns": {"version_num": {"type": "character varying(32)", "not_null": True}},
            "constraints": {"alembic_version_pkc": "PRIMARY KEY (version_num)"},
            "indexes": {},
        }
    },
    "sequences": {},
    "functions": {},
    "others": [],
}


async def _move(url: database_url.PostgresUrl, target: str, *, down: bool = False) -> list[str]:
    """Move to a revision and return those that were run, in order."""
    ran: list[str] = []
    async with postgres_connection.connect_sqlalchemy(url) as connection, connection.begin():
        await alembic_runner.migrate(connection, target, down=down, applied=ran.append)
    return ran


async def _catalog(url: database_url.PostgresUrl) -> schema_catalogs.PostgresCatalog:
    async with postgres_connection.open_transaction(url) as connection:
        return await schema_catalogs.read_postgres(connection)


def _url(server: Server, database: str) -> database_url.PostgresUrl:
    url = database_url.parse(server.url(database))
    assert isinstance(url, database_url.PostgresUrl)
    return url


def test_every_revision_equals_sagewais(every_postgres: Server) -> None:
    """Tables, columns, keys, indexes, sequences and functions equal the reference throughout."""
    name = every_postgres.create()
    url = _url(every_postgres, name)
    differ = []

    async def up_and_down() -> schema_catalogs.PostgresCatalog:
        for revision in TRUNK:
            await _move(url, revision)
            catalog, reference = await _catalog(url), schema_catalogs.postgres(revision)
            if catalog != reference or _columns(catalog) != _columns(reference):
                differ.append(f"up to {revision}")
        for revision in reversed(TRUNK[:-1]):
            await _move(url, revision, down=True)
            if await _catalog(url) != schema_catalogs.postgres(revision):
                differ.append(f"down to {revision}")
        await _move(url, "base", down=True)
        return await _catalog(url)

    at_base = asyncio.run(up_and_down())
    every_postgres.drop(name)

    assert differ == []
    assert at_base == EMPTY


def _columns(catalog: schema_catalogs.PostgresCatalog) -> dict[str, list[str]]:
    """Return the columns in their order, which `==` ignores.

    The catalogs of 007 and later do not define which 006 comes first: the next test does.
    """
    return {
        name: list(table["columns"])
        for name, table in catalog["tables"].items()
        if name != "workflow_runs"
    }


def test_replay_comes_before_artifacts(postgres: Server, database: str) -> None:
    """Run in one step, the two 006 leave their columns in the order in which Sagewai does."""
    asyncio.run(_move(_url(postgres, database), "007_merge_006_branches"))

    last = postgres.rows(
        database,
        "SELECT attname::text FROM pg_attribute WHERE attrelid = 'workflow_runs'::regclass"
        " ORDER BY attnum DESC LIMIT 4",
    )

    assert last == [
        ("artifact_destination",),
        ("code_hash",),
        ("replay_from_step",),
        ("replay_of_run_id",),
    ]


@pytest.mark.parametrize("first", ["006_artifact_destination", "006_replay_snapshots"])
def test_either_branch_may_come_first(postgres: Server, database: str, first: str) -> None:
    """Each 006 alone equals the reference, and the others follow in one step."""
    url = _url(postgres, database)

    async def branch() -> tuple[schema_catalogs.PostgresCatalog, list[str]]:
        await _move(url, first)
        return await _catalog(url), await _move(url, HEAD)

    alone, rest = asyncio.run(branch())

    assert alone == schema_catalogs.postgres(first)
    assert rest[:2] == [
        ({"006_artifact_destination", "006_replay_snapshots"} - {first}).pop(),
        "007_merge_006_branches",
    ]
    assert asyncio.run(_catalog(url)) == schema_catalogs.postgres(HEAD)


def test_graph_is_sagewais() -> None:
    """Ids, parents and the order in which they run."""
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    graph = {
        script.revision: sorted(script._versioned_down_revisions)
        for script in ScriptDirectory.from_config(config).walk_revisions()
    }

    assert graph == {step["revision"]: sorted(step["down"]) for step in schema_catalogs.revisions()}
    assert graph == {
        revision: sorted(after) for revision, after in revision_graph.parents().items()
    }


def test_migrations_import_sqlalchemy_and_alembic_only() -> None:
    """They depend on no code that can change."""
    imported = set()
    for script in SCRIPTS.rglob("*.py"):
        for node in ast.walk(ast.parse(script.read_text())):
            if isinstance(node, ast.Import):
                imported |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                ours = node.module.startswith("sagewai_ops.migrations.")
                imported.add("ours" if ours else node.module.partition(".")[0])

    assert imported == {"__future__", "alembic", "ours", "pathlib", "re", "sqlalchemy", "typing"}


def test_downgrade_moves_rows_without_a_project_to_the_default(
    postgres: Server, database: str
) -> None:
    """Before 013 and 018 a run, prompt or worker had a project; no row is lost."""
    url = _url(postgres, database)
    asyncio.run(_move(url, HEAD))
    postgres.run(
        database,
        "INSERT INTO agent_runs (run_id, project_id, agent_name) VALUES ('r', NULL, 'a')",
        "INSERT INTO prompt_logs (log_id, project_id, run_id, agent_name)"
        " VALUES ('p', NULL, 'r', 'a')",
        "INSERT INTO workers (worker_id) VALUES ('w')",
    )

    asyncio.run(_move(url, "012_tenant_agent", down=True))

    assert (
        postgres.rows(
            database,
            "SELECT project_id FROM agent_runs UNION ALL SELECT project_id FROM prompt_logs"
            " UNION ALL SELECT project_id FROM workers",
        )
        == [("default",)] * 3
    )


def test_printed_sql_builds_the_same_schema(postgres: Server, database: str) -> None:
    """The statements of `--sql`, run by any client, lead to the head and back to the base."""
    url = _url(postgres, database)
    postgres.run(database, alembic_runner.format_sql((), HEAD))

    assert asyncio.run(_catalog(url)) == schema_catalogs.postgres(HEAD)

    postgres.run(database, alembic_runner.format_sql((HEAD,), revision_graph.BASE, down=True))
    tables = postgres.rows(database, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")

    assert tables in ([], [("alembic_version",)])


def test_sqlite_is_refused() -> None:
    """The scripts never run on a home's file."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    config.attributes["connection"] = create_engine("sqlite://").connect()
    try:
        with pytest.raises(RuntimeError, match="PostgreSQL connection"):
            command.upgrade(config, "head")
    finally:
        config.attributes["connection"].close()
        config.attributes["connection"].engine.dispose()
