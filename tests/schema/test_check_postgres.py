"""`db check` of a PostgreSQL database: its revision, its drift, incomplete indexes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import text

import schema_catalogs
from postgres_server import Server
from sagewai_ops.database import url as database_url
from sagewai_ops.database.postgres import connection
from sagewai_ops.errors import LockedError
from sagewai_ops.schema.check_postgres import CheckedPostgres, check_postgres
from sagewai_ops.schema.postgres_head import head, index_entries
from sagewai_ops.schema.revision_graph import HEAD

RENAMED = (
    "DROP FUNCTION sandbox_mode_rank; CREATE FUNCTION sandbox_mode_rank({} text) RETURNS int"
    " LANGUAGE sql AS 'SELECT 1'"
)
INDEX = "ux_agent_global_name"
COSTS = "agent_name, model, cost_usd, tokens"

Check = Callable[..., CheckedPostgres]


@pytest.fixture
def check(postgres: Server) -> Iterator[Check]:
    """Run statements on a database at a revision, and check it."""
    made = []

    def run(*statements: str, revision: str = HEAD) -> CheckedPostgres:
        made.append(postgres.at(revision) if revision else postgres.create())
        postgres.run(made[-1], *statements)
        url = database_url.parse(postgres.url(made[-1]))
        assert isinstance(url, database_url.PostgresUrl)
        return asyncio.run(check_postgres(url))

    yield run
    for name in made:
        postgres.drop(name)


def test_database_at_head_has_no_findings(every_postgres: Server) -> None:
    """Our revisions leave the schema of the facts, on every server."""
    name = every_postgres.at(HEAD)
    url = database_url.parse(every_postgres.url(name))
    assert isinstance(url, database_url.PostgresUrl)

    checked = asyncio.run(check_postgres(url))
    every_postgres.drop(name)

    assert checked.findings == ()
    assert checked.unknown_tables == ()
    assert len(checked.rows) == 64


def test_facts_are_the_references() -> None:
    """The schema at head that the program includes is the catalog's."""
    catalog = schema_catalogs.postgres(HEAD)

    assert head()["functions"] == {
        signature: function["parameters"] for signature, function in catalog["functions"].items()
    }
    assert {
        name: {"constraints": table["constraints"], "indexes": table["indexes"]}
        for name, table in catalog["tables"].items()
    } == {
        name: {"constraints": table["constraints"], "indexes": table["indexes"]}
        for name, table in head()["tables"].items()
    }
    for name, table in catalog["tables"].items():
        for column, facts in table["columns"].items():
            definition = facts["type"] + (" NOT NULL" if facts["not_null"] else "")
            definition += f" DEFAULT {facts['default']}" if "default" in facts else ""
            assert head()["tables"][name]["columns"][column] == definition


def test_every_index_has_its_columns() -> None:
    """Also one that only PostgreSQL has, one of an array, and one that counts downwards."""
    entries = index_entries()

    assert ("target_pool",) in entries["workflow_runs"]
    assert ("models_canonical",) in entries["workers"]
    assert ("profile_id", "secret_key") in entries["sealed_revocations"]
    for table, facts in head()["tables"].items():
        assert {name for entry in entries[table] for name in entry} <= facts["columns"].keys()
        kept = [each for each in facts["constraints"].values() if each.startswith(("PRIM", "UNIQ"))]
        assert bool(entries[table]) == bool(kept or facts["indexes"])


@pytest.mark.parametrize(
    ("statement", "shown"),
    [
        ("DROP TABLE provider", "provider: missing table"),
        ("ALTER TABLE agent DROP COLUMN spec",
         "agent.spec: missing column, the head has json NOT NULL"),
        ("ALTER TABLE agent ADD COLUMN mine int", "agent.mine: extra column, found integer"),
        ("ALTER TABLE agent ALTER COLUMN name TYPE varchar(9)",
         "agent.name: different column, the head has text NOT NULL, found character varying(9)"),
        ("ALTER TABLE agent ALTER COLUMN name DROP NOT NULL",
         "agent.name: different column, the head has text NOT NULL, found text"),
        ("ALTER TABLE agent ALTER COLUMN name SET DEFAULT 'x'",
         "agent.name: different column, the head has text NOT NULL, found text NOT NULL DEFAULT"),
        ("ALTER TABLE fleet_tasks DROP CONSTRAINT ck_fleet_tasks_status",
         "fleet_tasks: missing constraint ck_fleet_tasks_status, the head has CHECK"),
        ("ALTER TABLE agent ADD CONSTRAINT mine UNIQUE (name)",
         "agent: extra constraint mine, found UNIQUE (name)"),
        ("DROP INDEX ix_agent_project_id",
         "agent: missing index ix_agent_project_id, the head has CREATE INDEX"),
        (f"DROP INDEX {INDEX}; CREATE INDEX {INDEX} ON agent (name)",
         "agent: different index ux_agent_global_name, the head has CREATE UNIQUE INDEX"),
        ("DROP FUNCTION sandbox_mode_rank", "function sandbox_mode_rank(text) is missing"),
        (RENAMED.format("word"),
         "function sandbox_mode_rank(text): the parameter is named word, the head has m, and"),
        (RENAMED.format("mine"),
         "function sandbox_mode_rank(text): the parameter is named mine, the head has m"),
        ("ALTER TABLE agent ADD CONSTRAINT mine CHECK (name <> '') NOT VALID",
         "agent: constraint mine is not validated"),
        (f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{INDEX}'::regclass",
         f"agent: index {INDEX} is not valid"),
        (f"INSERT INTO cost_records (id, {COSTS}) VALUES (7, 'a', 'm', 1, 1)",
         "cost_records.id: the next number of the sequence is 1, and row 7 exists"),
    ],
)  # fmt: skip
def test_difference_is_found(check: Check, statement: str, shown: str) -> None:
    """Each kind of drift, with both sides."""
    found = [finding.shown for finding in check(statement).findings]

    assert any(line.startswith(shown) for line in found), found


def test_sequence_that_was_used_is_fine(check: Check) -> None:
    """A row that took its number from the sequence is no finding."""
    insert = (
        "INSERT INTO cost_records (agent_name, model, cost_usd, tokens) VALUES ('a', 'm', 1, 1)"
    )

    assert check(insert).findings == ()


def test_users_own_tables_indexes_and_functions_are_no_findings(check: Check) -> None:
    """They are counted and named."""
    checked = check(
        "CREATE TABLE mine (x int)",
        "CREATE INDEX my_index ON agent (created_at)",
        "CREATE FUNCTION my_function() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    )

    assert checked.findings == ()
    assert checked.unknown_tables == ("mine",)


@pytest.mark.parametrize(
    ("revision", "statements", "reason"),
    [
        ("", (), "is empty"),
        ("", ("CREATE TABLE t ()",), "has tables that no revision made"),
        ("012_tenant_agent", (), "is behind, at 012_tenant_agent"),
        ("006_replay_snapshots",
         ("INSERT INTO alembic_version VALUES ('006_artifact_destination')",),
         "is at two revisions, 006_artifact_destination, 006_replay_snapshots; an upgrade joins"),
        (HEAD, ("UPDATE alembic_version SET version_num = '021_x'",), "is ahead, at 021_x, later"),
        (HEAD, ("UPDATE alembic_version SET version_num = 'x'",), "is at x, which is unknown"),
    ],
)  # fmt: skip
def test_position_is_the_first_finding(
    check: Check, revision: str, statements: tuple[str, ...], reason: str
) -> None:
    """Off the head there is no other measure, so nothing else is compared."""
    findings = check(*statements, revision=revision).findings

    assert [finding.kind for finding in findings] == ["level"]
    assert findings[0].reason.startswith(reason)


def test_table_that_is_locked_is_given_up_in_time(postgres: Server) -> None:
    """A change of the schema that is in progress limits the check."""
    name = postgres.at(HEAD)
    url = database_url.parse(postgres.url(name))
    assert isinstance(url, database_url.PostgresUrl)

    async def beside() -> None:
        async with connection.connect_sqlalchemy(url) as holder:
            await holder.execute(text("LOCK TABLE agent"))
            await check_postgres(url, wait_seconds=0.2)

    with pytest.raises(LockedError, match="lock timeout"):
        asyncio.run(beside())
    postgres.drop(name)


def test_nothing_is_written(check: Check, postgres: Server) -> None:
    """A database that may not be written to is checked like any other."""
    name = postgres.at(HEAD)
    url = database_url.parse(postgres.url(name) + "&default_transaction_read_only=on")
    assert isinstance(url, database_url.PostgresUrl)

    assert asyncio.run(check_postgres(url)).findings == ()
    postgres.drop(name)
