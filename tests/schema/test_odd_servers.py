"""Servers and databases that are set up otherwise than a fresh one."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from postgres_server import Server
from sagewai_ops.errors import PermissionDeniedError, RemoteError, UsageError
from sagewai_ops.export.export import Options, export
from sagewai_ops.schema import check_postgres, migrate_postgres
from targets import at_head, home_with, url_of

SETTINGS = {
    "quote_all_identifiers": "on",
    "DateStyle": "SQL, DMY",
    "IntervalStyle": "sql_standard",
    "bytea_output": "escape",
    "extra_float_digits": "-3",
    "standard_conforming_strings": "off",
    "statement_timeout": "9min",
    "lock_timeout": "9min",
    "idle_in_transaction_session_timeout": "9min",
    "idle_session_timeout": "9min",
}


def test_settings_of_a_database_change_nothing(postgres: Server) -> None:
    """Definitions are compared as the server prints them by default."""
    database = at_head(postgres)
    for name, value in SETTINGS.items():
        postgres.run(database, f"ALTER DATABASE \"{database}\" SET {name} = '{value}'")

    assert asyncio.run(check_postgres.check_postgres(url_of(postgres, database))).findings == ()


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_encoding_that_cannot_hold_every_text_is_named(postgres: Server, encoding: str) -> None:
    """An upgrade is refused, and a check finds it."""
    name = f"in_{encoding.lower()}"
    postgres.run(
        "postgres",
        f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0",
    )
    url = url_of(postgres, name)

    with pytest.raises(UsageError, match=f"encoding {encoding}, not UTF8"):
        asyncio.run(migrate_postgres.upgrade(url))
    checked = asyncio.run(check_postgres.check_postgres(url))
    postgres.drop(name)

    assert [finding.kind for finding in checked.findings] == ["encoding", "level"]


def test_event_trigger_that_raises_is_reported(postgres: Server, database: str) -> None:
    """Its words, and nothing is changed."""
    url = url_of(postgres, database)
    postgres.run(
        database,
        "CREATE FUNCTION f() RETURNS event_trigger LANGUAGE plpgsql"
        " AS 'BEGIN RAISE EXCEPTION ''no changes today''; END'",
        "CREATE EVENT TRIGGER e ON ddl_command_start EXECUTE FUNCTION f()",
    )

    with pytest.raises(RemoteError, match="no changes today"):
        asyncio.run(migrate_postgres.upgrade(url))


def test_database_without_connections_is_reported(postgres: Server) -> None:
    """It exists, and the server's words state why it is closed."""
    closed = postgres.create()
    postgres.run("postgres", f"ALTER DATABASE {closed} ALLOW_CONNECTIONS false")

    with pytest.raises(RemoteError, match="not currently accepting connections"):
        asyncio.run(migrate_postgres.inspect_database(url_of(postgres, closed)))


def test_schema_and_role_with_capitals(postgres: Server, database: str, tmp_path: Path) -> None:
    """Each name is quoted, and a schema that differs in case is another one."""
    home = home_with(tmp_path / "home")
    postgres.run(
        database,
        'DROP ROLE IF EXISTS "Ann B"',
        'CREATE ROLE "Ann B" LOGIN',
        'CREATE SCHEMA "App"',
        'GRANT USAGE ON SCHEMA "App" TO "Ann B"',
        "CREATE SCHEMA app CREATE TABLE org (other int)",
    )
    url = url_of(postgres, database)
    in_schema = replace(url, settings={"search_path": '"App"'})
    as_ann = replace(in_schema, user="Ann B")

    with pytest.raises(PermissionDeniedError) as refused:
        asyncio.run(migrate_postgres.upgrade(as_ann))
    asyncio.run(migrate_postgres.upgrade(in_schema))
    checked = asyncio.run(check_postgres.check_postgres(in_schema))
    report = export(home, in_schema, Options())

    assert refused.value.hint == 'GRANT CREATE, USAGE ON SCHEMA "App" TO "Ann B";'
    assert (checked.findings, report.committed) == ((), True)


def test_row_security_is_refused_by_the_plan(postgres: Server, tmp_path: Path) -> None:
    """Before anything is sent: COPY would be refused, or rows hidden."""
    home = home_with(tmp_path / "home")
    database = postgres.create()
    postgres.run(
        database,
        "DROP ROLE IF EXISTS secluded",
        "CREATE ROLE secluded LOGIN",
        f"ALTER DATABASE {database} OWNER TO secluded",
        "ALTER SCHEMA public OWNER TO secluded",
    )
    url = url_of(postgres, database, user="secluded")
    asyncio.run(migrate_postgres.upgrade(url))
    postgres.run(
        database,
        "ALTER TABLE sessions ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
    )

    for purpose in ("plan", "move"):
        with pytest.raises(PermissionDeniedError, match="row-level security of table sessions"):
            export(home, url, Options(purpose=purpose))


def test_tables_of_an_extension_are_not_rows(postgres: Server, tmp_path: Path) -> None:
    """They are neither Sagewai's nor the user's."""
    home = home_with(tmp_path / "home")
    database = at_head(postgres)
    postgres.run(
        database,
        "CREATE TABLE spatial_ref_sys AS SELECT 1 AS srid",
        "ALTER EXTENSION plpgsql ADD TABLE spatial_ref_sys",
    )

    assert export(home, url_of(postgres, database), Options()).committed
