"""Upgrades and downgrades of PostgreSQL databases, and everything that they refuse."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from sqlalchemy import text

import schema_catalogs
from cut_connection import COMMIT, cutting, signal_self
from postgres_server import Server
from program import PATIENCE_SECONDS
from sagewai_ops.database import url as database_url
from sagewai_ops.database.postgres import connection as postgres_connection
from sagewai_ops.errors import (
    DifferenceError,
    LockedError,
    OpsError,
    PermissionDeniedError,
    RemoteError,
    SchemaAheadError,
    SchemaBehindError,
    UsageError,
)
from sagewai_ops.process.signals import run_interruptibly
from sagewai_ops.schema import alembic_runner, migrate_postgres, postgres_server, rehearse_postgres
from sagewai_ops.schema.revision_graph import HEAD
from sagewai_ops.schema.revision_graph import revisions as all_revisions

At = Callable[[str], database_url.PostgresUrl]
MIDDLE = "012_tenant_agent"


@pytest.fixture
def url(postgres: Server, database: str) -> database_url.PostgresUrl:
    """The URL of the test's database, which is empty."""
    return _url(postgres, database)


@pytest.fixture
def at(postgres: Server) -> Iterator[At]:
    """Return databases at a revision."""
    made = []

    def make(revision: str) -> database_url.PostgresUrl:
        made.append(postgres.at(revision))
        return _url(postgres, made[-1])

    yield make
    for name in made:
        postgres.drop(name)


def _url(postgres: Server, database: str, **more: str) -> database_url.PostgresUrl:
    parsed = database_url.parse(postgres.url(database, **more))
    assert isinstance(parsed, database_url.PostgresUrl)
    return parsed


def _catalog(url: database_url.PostgresUrl) -> schema_catalogs.PostgresCatalog:
    async def read() -> schema_catalogs.PostgresCatalog:
        async with postgres_connection.open_transaction(url) as connection:
            return await schema_catalogs.read_postgres(connection)

    return asyncio.run(read())


def _state(url: database_url.PostgresUrl) -> str:
    return asyncio.run(migrate_postgres.inspect_database(url)).position.state


def test_empty_database_is_upgraded_to_head(url: database_url.PostgresUrl) -> None:
    """Every revision is run once, in order, and reported as it ends."""
    reports: list[tuple[str, int, int]] = []

    moved = asyncio.run(
        migrate_postgres.upgrade(url, progress=lambda *report: reports.append(report))
    )

    assert (moved.before, moved.after) == ((), (HEAD,))
    assert sorted(moved.ran) == sorted(all_revisions())
    assert reports == [("revisions", n, 21) for n in range(1, 22)]
    assert moved.rows_before == {}
    assert set(moved.rows_after.values()) == {0}
    assert len(moved.rows_after) == 64
    assert _catalog(url) == schema_catalogs.postgres(HEAD)


def test_second_upgrade_changes_nothing(at: At) -> None:
    """It runs no revision."""
    url = at(HEAD)

    again = asyncio.run(migrate_postgres.upgrade(url))

    assert again.ran == ()
    assert again.before == again.after == (HEAD,)


_OLD_FUNCTIONS = tuple(
    statement
    for name in ("network_policy_rank", "sandbox_mode_rank")
    for statement in (
        f"DROP FUNCTION {name}(text)",
        f"CREATE FUNCTION {name}(word text) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 1'",
    )
)
_REPAIRED = ("network_policy_rank", "sandbox_mode_rank")


def test_later_sagewai_can_replace_the_functions(at: At, postgres: Server) -> None:
    """CREATE OR REPLACE FUNCTION refuses another name of the parameter; ours is Sagewai's."""
    postgres.run(
        str(at(HEAD).database),
        *(
            f"CREATE OR REPLACE FUNCTION {name}({parameter} text) RETURNS integer"
            " LANGUAGE sql IMMUTABLE AS 'SELECT 1'"
            for name, parameter in (("network_policy_rank", "p"), ("sandbox_mode_rank", "m"))
        ),
    )


@pytest.mark.parametrize("revision", [MIDDLE, HEAD])
def test_upgrade_repairs_the_parameters_of_an_older_version(
    at: At, postgres: Server, revision: str
) -> None:
    """Databases that sagewai-ops 0.1 migrated get Sagewai's names, also at the head."""
    url = at(revision)
    postgres.run(str(url.database), *_OLD_FUNCTIONS)

    rehearsed = asyncio.run(rehearse_postgres.rehearse(url))
    upgraded = asyncio.run(migrate_postgres.upgrade(url))
    again = asyncio.run(migrate_postgres.upgrade(url))

    assert rehearsed.repaired_functions == upgraded.repaired_functions == _REPAIRED
    assert again.repaired_functions == ()
    assert _catalog(url)["functions"] == schema_catalogs.postgres(HEAD)["functions"]


def test_sql_of_an_upgrade_repairs_the_parameters(at: At, postgres: Server) -> None:
    """The printed statements do the same."""
    url = at(MIDDLE)
    postgres.run(str(url.database), *_OLD_FUNCTIONS)

    postgres.run(str(url.database), asyncio.run(migrate_postgres.plan_sql(url, HEAD)))

    assert _catalog(url) == schema_catalogs.postgres(HEAD)


def test_function_that_a_view_needs_is_not_repaired(at: At, postgres: Server) -> None:
    """The view is named, and nothing is changed."""
    url = at(MIDDLE)
    view = "CREATE VIEW ranks AS SELECT sandbox_mode_rank('none')"
    postgres.run(str(url.database), *_OLD_FUNCTIONS, view)

    with pytest.raises(DifferenceError, match="ranks"):
        asyncio.run(migrate_postgres.upgrade(url))

    assert asyncio.run(migrate_postgres.inspect_database(url)).position.heads == (MIDDLE,)


def test_downgrade_leaves_the_parameters_alone(at: At, postgres: Server) -> None:
    """It only drops; below the revision that creates them the functions are gone."""
    url = at(HEAD)
    postgres.run(str(url.database), *_OLD_FUNCTIONS)

    down = asyncio.run(migrate_postgres.downgrade(url, "001_initial"))

    assert down.repaired_functions == ()
    assert _catalog(url) == schema_catalogs.postgres("001_initial")


def test_rows_survive_an_upgrade_and_a_downgrade(at: At, postgres: Server) -> None:
    """Counts before and after are reported, also of created and dropped tables."""
    url = at(MIDDLE)
    postgres.run(
        str(url.database),
        "INSERT INTO agent_runs (run_id, agent_name) SELECT n, 'a' FROM generate_series(1, 7) n",
        'CREATE TABLE "the user:s own" (x int)',
        'INSERT INTO "the user:s own" VALUES (1)',
    )

    up = asyncio.run(migrate_postgres.upgrade(url))
    postgres.run(str(url.database), "INSERT INTO fleet_tasks (run_id, org_id) VALUES ('t', 'o')")
    down = asyncio.run(migrate_postgres.downgrade(url, MIDDLE))

    assert up.rows_before["agent_runs"] == up.rows_after["agent_runs"] == 7
    assert up.rows_after["the user:s own"] == 1
    assert "fleet_tasks" not in up.rows_before
    assert down.rows_before["fleet_tasks"] == 1
    assert "fleet_tasks" not in down.rows_after
    assert down.rows_after["agent_runs"] == 7
    assert sorted(down.ran) == sorted(up.ran)


def test_forked_database_is_upgraded(url: database_url.PostgresUrl) -> None:
    """Alembic can leave both 006 at once; an upgrade continues to the head."""
    asyncio.run(migrate_postgres.upgrade(url, "006_replay_snapshots"))
    asyncio.run(migrate_postgres.upgrade(url, "006_artifact_destination"))

    assert _state(url) == "forked"

    moved = asyncio.run(migrate_postgres.upgrade(url))

    assert moved.before == ("006_artifact_destination", "006_replay_snapshots")
    assert moved.ran[0] == "007_merge_006_branches"
    assert _catalog(url) == schema_catalogs.postgres(HEAD)


def test_downgrade_to_base_leaves_nothing(at: At) -> None:
    """All tables are gone but Alembic's own, which is empty."""
    url = at(HEAD)

    moved = asyncio.run(migrate_postgres.downgrade(url, "base"))

    assert moved.after == ()
    assert moved.rows_after == {}
    assert _state(url) == "empty"


@pytest.mark.parametrize(
    ("start", "target", "down", "hint"),
    [
        (HEAD, MIDDLE, False, f"sagewai-ops db downgrade {MIDDLE}"),
        (MIDDLE, HEAD, True, f"sagewai-ops db upgrade {HEAD}"),
        ("006_replay_snapshots", "006_artifact_destination", True, "db upgrade 006_artifact"),
    ],
)
def test_wrong_direction_is_refused(
    at: At,
    start: str,
    target: str,
    down: bool,  # noqa: FBT001
    hint: str,
) -> None:
    """The hint is the command for the other direction."""
    url = at(start)
    move = migrate_postgres.downgrade if down else migrate_postgres.upgrade

    with pytest.raises(UsageError) as caught:
        asyncio.run(move(url, target))

    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("statements", "kind", "words"),
    [
        (["CREATE TABLE users (id text)"], SchemaBehindError, "not created by revisions"),
        (
            [
                "CREATE TABLE users (id text)",
                "CREATE TABLE alembic_version (version_num varchar(32))",
            ],
            SchemaBehindError,
            "not created by revisions",
        ),
        (
            [
                "CREATE TABLE alembic_version (version_num varchar(32))",
                "INSERT INTO alembic_version VALUES ('021_later')",
            ],
            SchemaAheadError,
            "later than 020_fleet_task_lease",
        ),
        (
            [
                "CREATE TABLE alembic_version (version_num varchar(32))",
                "INSERT INTO alembic_version VALUES ('deadbeef')",
            ],
            SchemaAheadError,
            "unknown revision deadbeef",
        ),
    ],
)
def test_database_without_known_revision_is_refused(
    url: database_url.PostgresUrl,
    postgres: Server,
    database: str,
    statements: list[str],
    kind: type[OpsError],
    words: str,
) -> None:
    """Created without Alembic, later than the head, or unknown: each with its reason."""
    postgres.run(database, *statements)
    before = _catalog(url)

    with pytest.raises(kind, match=words) as caught:
        asyncio.run(migrate_postgres.upgrade(url))
    with pytest.raises(kind):
        asyncio.run(rehearse_postgres.rehearse(url))

    assert caught.value.hint
    assert _catalog(url) == before


def test_second_upgrade_waits_for_the_first(url: database_url.PostgresUrl) -> None:
    """Both succeed, and each revision is run once."""

    async def both() -> tuple[migrate_postgres.Migration, migrate_postgres.Migration]:
        return await asyncio.gather(migrate_postgres.upgrade(url), migrate_postgres.upgrade(url))

    first, second = asyncio.run(both())

    assert sorted([len(first.ran), len(second.ran)]) == [0, 21]


def test_lock_of_another_run_times_out(url: database_url.PostgresUrl) -> None:
    """Another run that does not end is named."""

    async def wait() -> None:
        async with postgres_connection.connect_sqlalchemy(url) as holder:
            await holder.execute(
                text("SELECT pg_advisory_lock(:lock)"), {"lock": migrate_postgres.LOCK}
            )
            await migrate_postgres.upgrade(url, wait_seconds=0.2)

    with pytest.raises(LockedError, match=r"locked by session of postgres \(.*sagewai-ops\)"):
        asyncio.run(wait())
    assert _state(url) == "empty"


def test_lock_on_a_table_times_out(at: At) -> None:
    """The wait for a locked table is limited too, and nothing was changed."""
    url = at("019_fleet_tasks")

    async def wait() -> None:
        async with postgres_connection.connect_sqlalchemy(url) as holder:
            await holder.execute(text("SELECT * FROM fleet_tasks"))
            await migrate_postgres.upgrade(url, wait_seconds=0.2)

    with pytest.raises(LockedError, match="lock timeout"):
        asyncio.run(wait())
    assert _catalog(url) == schema_catalogs.postgres("019_fleet_tasks")


def test_killed_upgrade_changes_nothing(at: At, postgres: Server) -> None:
    """SIGKILL between two revisions: the database is as it was, and the next run succeeds."""
    url = at("002_sandbox_requirements")
    code = (
        "import asyncio, os, signal, sys\n"
        "from sagewai_ops.database import url as database_url\n"
        "from sagewai_ops.schema import migrate_postgres\n"
        "def kill(stage, done, total):\n"
        "    if done == 9: os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(migrate_postgres.upgrade(database_url.parse(sys.argv[1]), progress=kill))\n"
    )

    killed = subprocess.run(
        [sys.executable, "-c", code, url.to_string()],
        check=False,
        timeout=PATIENCE_SECONDS,
    )

    assert killed.returncode == -signal.SIGKILL
    deadline = time.monotonic() + PATIENCE_SECONDS
    while postgres.rows("postgres", "SELECT 1 FROM pg_locks WHERE locktype = 'advisory'"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert _catalog(url) == schema_catalogs.postgres("002_sandbox_requirements")
    assert asyncio.run(migrate_postgres.upgrade(url)).after == (HEAD,)


def test_signal_at_the_commit_waits_for_it(at: At, postgres: Server) -> None:
    """What the server did is reported: the upgrade is complete."""
    url = at(MIDDLE)

    with cutting(postgres, COMMIT, signal_self) as port:
        through = replace(url, hosts=(("127.0.0.1", port),))
        moved = run_interruptibly(migrate_postgres.upgrade, through)

    assert moved.after == (HEAD,)
    assert _catalog(url) == schema_catalogs.postgres(HEAD)


def test_commit_without_an_answer_is_not_reported_as_rolled_back(at: At, postgres: Server) -> None:
    """Only the server knows its outcome."""
    url = at(MIDDLE)

    with (
        cutting(postgres, COMMIT) as port,
        pytest.raises(RemoteError, match="during the commit: committed or not, unknown") as raised,
    ):
        asyncio.run(migrate_postgres.upgrade(replace(url, hosts=(("127.0.0.1", port),))))

    assert raised.value.hint.startswith("sagewai-ops db check")


def test_role_without_create_is_refused_before_anything(
    postgres: Server, database: str, url: database_url.PostgresUrl
) -> None:
    """The grant that is missing is the hint."""
    postgres.run(
        database,
        "DROP ROLE IF EXISTS clerk",
        "CREATE ROLE clerk LOGIN",
        "REVOKE CREATE ON SCHEMA public FROM public",
    )

    with pytest.raises(PermissionDeniedError, match="may not create tables in schema public") as it:
        asyncio.run(migrate_postgres.upgrade(_url(postgres, database, user="clerk")))

    assert it.value.hint == "GRANT CREATE, USAGE ON SCHEMA public TO clerk;"
    assert _state(url) == "empty"


def test_tables_of_another_role_are_refused_before_anything(postgres: Server, at: At) -> None:
    """ALTER TABLE would fail in the middle; the owner is named at once."""
    url = at(MIDDLE)
    postgres.run(
        str(url.database),
        "DROP ROLE IF EXISTS guest",
        "CREATE ROLE guest LOGIN",
        "GRANT ALL ON SCHEMA public TO guest",
        "GRANT ALL ON ALL TABLES IN SCHEMA public TO guest",
    )

    with pytest.raises(PermissionDeniedError, match="tables belong to postgres, not to guest"):
        asyncio.run(migrate_postgres.upgrade(_url(postgres, str(url.database), user="guest")))
    postgres.drop(str(url.database))
    postgres.run("postgres", "DROP ROLE guest")


def test_read_only_database_is_refused(postgres: Server, database: str) -> None:
    """A standby, or a role that may only read."""
    url = database_url.parse(postgres.url(database) + "&default_transaction_read_only=on")
    assert isinstance(url, database_url.PostgresUrl)

    with pytest.raises(PermissionDeniedError, match="read-only"):
        asyncio.run(migrate_postgres.upgrade(url))


def test_old_server_is_refused(
    url: database_url.PostgresUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version below the oldest supported is named."""
    monkeypatch.setattr(postgres_server, "OLDEST", 99)

    with pytest.raises(UsageError, match=r"PostgreSQL \d+\.\d+.*: too old"):
        asyncio.run(migrate_postgres.upgrade(url))


def test_missing_schema_is_refused(postgres: Server, database: str) -> None:
    """A search_path without an existing schema is an error."""
    url = database_url.parse(postgres.url(database) + "&search_path=nowhere")
    assert isinstance(url, database_url.PostgresUrl)

    with pytest.raises(UsageError, match="no schema of the search_path exists"):
        asyncio.run(migrate_postgres.inspect_database(url))


def test_versions_in_another_schema_are_refused(postgres: Server, database: str) -> None:
    """Alembic would read one schema and create tables in the other."""
    asyncio.run(migrate_postgres.upgrade(_url(postgres, database), "001_initial"))
    postgres.run(database, 'CREATE SCHEMA "my own"')
    url = database_url.parse(postgres.url(database) + "&search_path=%22my%20own%22,public")
    assert isinstance(url, database_url.PostgresUrl)

    with pytest.raises(UsageError, match="alembic_version is in schema public"):
        asyncio.run(migrate_postgres.upgrade(url))


def test_another_schema_can_be_upgraded(postgres: Server, database: str) -> None:
    """The first schema of the search_path is Sagewai's, whatever its name."""
    postgres.run(database, 'CREATE SCHEMA "my own"')
    url = database_url.parse(postgres.url(database) + "&search_path=%22my%20own%22")
    assert isinstance(url, database_url.PostgresUrl)

    asyncio.run(migrate_postgres.upgrade(url, MIDDLE))
    moved = asyncio.run(rehearse_postgres.rehearse(url))

    assert moved.rehearsed == "scratch"
    schemas = postgres.rows(
        database, "SELECT DISTINCT schemaname::text FROM pg_tables WHERE schemaname !~ '^pg_|^inf'"
    )
    assert schemas == [("my own",)]


def test_lost_row_rolls_back(at: At, postgres: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A count that changes is a difference, and nothing was changed."""
    url = at("019_fleet_tasks")
    postgres.run(str(url.database), "INSERT INTO fleet_tasks (run_id, org_id) VALUES ('t', 'o')")
    migrate = alembic_runner.migrate

    async def lossy(connection: object, target: str, **more: object) -> None:
        await migrate(connection, target, **more)  # type: ignore[arg-type]
        await connection.execute(text("DELETE FROM fleet_tasks"))  # type: ignore[attr-defined]

    monkeypatch.setattr(alembic_runner, "migrate", lossy)

    with pytest.raises(DifferenceError, match="fleet_tasks: 1 rows before and 0 after"):
        asyncio.run(migrate_postgres.upgrade(url))

    assert postgres.rows(str(url.database), "SELECT count(*) FROM fleet_tasks") == [(1,)]
    assert _catalog(url) == schema_catalogs.postgres("019_fleet_tasks")


@pytest.mark.parametrize("start", [MIDDLE, HEAD])
def test_rehearsal_changes_nothing_and_reports_the_upgrade(
    at: At, postgres: Server, start: str
) -> None:
    """On a copy in a scratch schema: same revisions, same counts, and no trace."""
    url = at(start)
    postgres.run(
        str(url.database),
        "INSERT INTO agent_runs (run_id, agent_name) SELECT n, 'a' FROM generate_series(1, 7) n",
        "INSERT INTO prompt_logs (log_id, run_id, agent_name) VALUES ('p', '1', 'a')",
    )
    before = _catalog(url)

    rehearsed = asyncio.run(rehearse_postgres.rehearse(url))
    schemas = postgres.rows(
        str(url.database), "SELECT nspname::text FROM pg_namespace WHERE nspname LIKE 'sagewai%'"
    )
    untouched = _catalog(url)
    real = asyncio.run(migrate_postgres.upgrade(url))

    assert (rehearsed.rehearsed, rehearsed.after) == ("scratch", (HEAD,))
    assert rehearsed.rows_before["agent_runs"] == 7
    assert (rehearsed.ran, rehearsed.rows_after) == (real.ran, real.rows_after)
    assert (untouched, schemas) == (before, [])


def test_rehearsal_of_an_empty_database_runs_every_revision(url: database_url.PostgresUrl) -> None:
    """There is nothing to copy, and 21 revisions to run."""
    moved = asyncio.run(rehearse_postgres.rehearse(url))

    assert (moved.rehearsed, len(moved.ran)) == ("scratch", 21)
    assert _state(url) == "empty"


def test_rehearsal_without_privilege_to_create_schemas_rolls_back(
    postgres: Server, database: str
) -> None:
    """The owner of the tables who may not create schemas rehearses in a transaction."""
    postgres.run("postgres", "DROP ROLE IF EXISTS owner_only", "CREATE ROLE owner_only LOGIN")
    postgres.run(database, "GRANT ALL ON SCHEMA public TO owner_only")
    url = _url(postgres, database, user="owner_only")
    asyncio.run(migrate_postgres.upgrade(url, MIDDLE))
    before = _catalog(url)

    moved = asyncio.run(rehearse_postgres.rehearse(url))

    assert (moved.rehearsed, moved.before, moved.after) == ("rollback", (MIDDLE,), (HEAD,))
    assert _catalog(url) == before
    postgres.drop(database)
    postgres.run("postgres", "DROP ROLE owner_only")


def test_rehearsal_locks_no_table_of_a_server(at: At) -> None:
    """On a copy, a session with locks on every table does not matter."""
    url = at(MIDDLE)

    async def beside() -> migrate_postgres.Migration:
        async with postgres_connection.connect_sqlalchemy(url) as writer:
            await writer.execute(
                text("INSERT INTO agent_runs (run_id, agent_name) VALUES ('x', 'a')")
            )
            return await rehearse_postgres.rehearse(url, wait_seconds=0.2)

    assert asyncio.run(beside()).after == (HEAD,)


def test_rehearsal_finds_a_table_that_was_dropped(at: At, postgres: Server) -> None:
    """A schema that differs from its revision is found before the real run."""
    url = at(MIDDLE)
    postgres.run(str(url.database), "DROP TABLE provider")

    with pytest.raises(DifferenceError, match="table provider not found"):
        asyncio.run(rehearse_postgres.rehearse(url))


@pytest.mark.parametrize(
    ("statement", "upgraded", "rehearsed"),
    [
        ("CREATE TABLE fleet_tasks (x int)",
         'relation "fleet_tasks" already exists', "fleet_tasks exists, but a later"),
        ("ALTER TABLE workers ADD approved_by int",
         'column "approved_by" of relation "workers" already exists',
         "workers.approved_by exists, but a later revision creates it"),
        ("ALTER TABLE workers DROP COLUMN project_id",
         'column "project_id" of relation "workers" does not exist',
         'column "project_id" does not exist'),
        ("ALTER TABLE workers ALTER pool DROP NOT NULL; UPDATE workers SET pool = NULL",
         "", 'null value in column "pool"'),
    ],
)  # fmt: skip
def test_schema_changed_by_hand_is_reported(
    at: At, postgres: Server, statement: str, upgraded: str, rehearsed: str
) -> None:
    """Rehearsal and upgrade report the reason, and nothing is changed."""
    url = at(MIDDLE)
    insert = "INSERT INTO workers (worker_id) VALUES ('secret-worker')"
    postgres.run(str(url.database), insert, *statement.split("; "))
    before = _catalog(url)

    with pytest.raises(DifferenceError) as trial:
        asyncio.run(rehearse_postgres.rehearse(url))

    assert rehearsed in trial.value.message
    assert "secret-worker" not in trial.value.message
    if upgraded:
        with pytest.raises(DifferenceError, match=f"schema differs from revision {MIDDLE}") as real:
            asyncio.run(migrate_postgres.upgrade(url))
        assert upgraded in real.value.message
    assert _catalog(url) == before


def test_downgrade_of_a_table_with_a_view_is_refused(at: At, postgres: Server) -> None:
    """A view of the user's is not dropped with its table."""
    url = at(HEAD)
    postgres.run(str(url.database), "CREATE VIEW mine AS SELECT * FROM provider")

    with pytest.raises(DifferenceError, match="cannot drop table provider because other objects"):
        asyncio.run(migrate_postgres.downgrade(url, "010_tenant_audit"))

    assert _state(url) == "current"


def test_role_without_usage_is_refused(postgres: Server, database: str) -> None:
    """A schema that the role may not use is not one that does not exist."""
    postgres.run(
        database,
        "DROP ROLE IF EXISTS stranger",
        "CREATE ROLE stranger LOGIN",
        "REVOKE ALL ON SCHEMA public FROM public",
    )

    with pytest.raises(PermissionDeniedError, match="stranger may not use schema public") as caught:
        asyncio.run(migrate_postgres.inspect_database(_url(postgres, database, user="stranger")))

    assert caught.value.hint == "GRANT CREATE, USAGE ON SCHEMA public TO stranger;"


def test_printed_sql_is_not_run(at: At, postgres: Server) -> None:
    """The statements begin at the database's revision, and work."""
    url = at(MIDDLE)

    script = asyncio.run(migrate_postgres.plan_sql(url, HEAD))

    assert "fleet_tasks" in script
    assert "harness_keys" not in script
    assert _catalog(url) == schema_catalogs.postgres(MIDDLE)
    postgres.run(str(url.database), script)
    assert _catalog(url) == schema_catalogs.postgres(HEAD)
    back = asyncio.run(migrate_postgres.plan_sql(url, MIDDLE, down=True))
    postgres.run(str(url.database), back)
    assert _catalog(url) == schema_catalogs.postgres(MIDDLE)


@pytest.mark.parametrize(
    ("target", "down"), [(HEAD, False), ("005_execution_mode", True), ("base", True)]
)
def test_printed_sql_starts_at_a_fork(
    url: database_url.PostgresUrl,
    postgres: Server,
    target: str,
    down: bool,  # noqa: FBT001
) -> None:
    """From both 006 there is a way on and a way back."""
    asyncio.run(migrate_postgres.upgrade(url, "006_replay_snapshots"))
    asyncio.run(migrate_postgres.upgrade(url, "006_artifact_destination"))

    postgres.run(str(url.database), asyncio.run(migrate_postgres.plan_sql(url, target, down=down)))

    if target == "base":
        assert _state(url) == "empty"
    else:
        assert _catalog(url) == schema_catalogs.postgres(target)


def test_printed_sql_upgrades_a_downgraded_database(
    url: database_url.PostgresUrl, postgres: Server
) -> None:
    """After a downgrade to the base, `alembic_version` is there, without rows."""
    asyncio.run(migrate_postgres.upgrade(url, "002_sandbox_requirements"))
    asyncio.run(migrate_postgres.downgrade(url, "base"))

    postgres.run(str(url.database), asyncio.run(migrate_postgres.plan_sql(url, HEAD)))

    assert _catalog(url) == schema_catalogs.postgres(HEAD)


def test_every_server_can_be_upgraded_and_rehearsed(every_postgres: Server) -> None:
    """15, 16 and 18, wherever they are installed."""
    name = every_postgres.create()
    url = _url(every_postgres, name)

    asyncio.run(migrate_postgres.upgrade(url, MIDDLE))
    rehearsed = asyncio.run(rehearse_postgres.rehearse(url))
    moved = asyncio.run(migrate_postgres.upgrade(url))
    every_postgres.drop(name)

    assert rehearsed.ran == moved.ran
    assert moved.server.startswith(str(every_postgres.installation.major))
