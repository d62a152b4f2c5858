"""A database with functions and operators of another role: none runs with the caller's rights."""

from __future__ import annotations

import ast
import asyncio
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import sagewai_ops
from postgres_server import Server
from sagewai_ops.database.postgres import connection as postgres_connection
from sagewai_ops.database.postgres.sessions import read_sessions
from sagewai_ops.database.url import PostgresUrl
from sagewai_ops.errors import PermissionDeniedError
from sagewai_ops.export.target_session import MOVE, PLAN, VERIFY, open_session
from sagewai_ops.keys import postgres as keys_postgres
from sagewai_ops.schema import check_postgres, migrate_postgres, rehearse_postgres
from targets import at_head, url_of

LIBRARY = Path(sagewai_ops.__file__).parent
SOURCES = (
    *LIBRARY.glob("database/postgres/*.py"),
    *LIBRARY.glob("schema/*postgres*.py"),
    LIBRARY / "keys/postgres.py",
    *(
        LIBRARY / "export" / f"{name}.py"
        for name in (
            "target_session",
            "load",
            "sequences",
            "verify",
            "mapping/target_catalog",
            "pipeline/deferred_indexes",
            "learnings/memory_facts",
            "learnings/pgvector",
            "learnings/vector_rows",
            "validate/server_probes",
        )
    ),
)
# Words before a parenthesis that are no functions: keywords, and names given to columns.
KEYWORDS = {
    "OPERATOR",
    "coalesce",
    "path",
    "u",
    "tables",
    "objects",
    "ANY",
    "ARRAY",
    "EXISTS",
    "IN",
}
CALL = re.compile(r"(?<![\w.{}])([A-Za-z_]\w*)\(")
LITERAL = re.compile(r"'[^']*'")
QUALIFIED = re.compile(r"pg_catalog\.(\w+)\(")
RELATION = re.compile(r"\b(?:FROM|JOIN)\s+(pg_(?!catalog\.)\w+)")
SQL = re.compile(r"^\s*(?:SELECT|WITH|INSERT|UPDATE|DELETE|CREATE|ALTER|EXISTS)\b|\bSELECT\b")
MOTTO = "function of another role"

# Types of what our statements pass, for overloads that would match better than pg_catalog's own.
UNARY = (
    "name",
    "text",
    "varchar",
    "oid",
    "int4",
    "int8",
    "regclass",
    "bool",
    "int2vector",
    '"char"',
)
BINARY = ("name", "text", "varchar", "oid", "int4", "int8")
OPERANDS = ("name", "text", "oid", "regclass", "int2", "int4", "int8", "bool", '"char"', "text[]")
PAIRS = tuple(itertools.product(OPERANDS, OPERANDS))
OPERATORS = ("=", "<>", "||", ">", "<=", "+", "<<", "~~", "/")


def statements() -> Iterator[tuple[Path, str]]:
    """Yield the strings of the sources that are SQL."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [
                    part.value if isinstance(part, ast.Constant) else "{}" for part in node.values
                ]
                text = "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            else:
                continue
            if SQL.search(text) and not text.startswith(("Return", "psql ")):
                yield path, LITERAL.sub("''", text)


def test_every_statement_is_qualified() -> None:
    """A function or catalog table without pg_catalog is found by the path, and by its arguments."""
    found = [
        (path.name, name)
        for path, text in statements()
        for name in (*CALL.findall(text), *RELATION.findall(text))
        if name not in KEYWORDS
    ]

    assert not found
    assert len(list(statements())) > 50


@pytest.fixture
def hostile(postgres: Server) -> Iterator[PostgresUrl]:
    """A database at the head with an overload of everything that our statements use.

    They are a superuser's, so that they are not refused: our own statements must not reach them.
    The caller is an ordinary role, which owns the tables.
    """
    database = at_head(postgres)
    names = sorted(
        {name for _, text in statements() for name in re.findall(r"pg_catalog\.(\w+)\(", text)}
    )
    made: list[tuple[str, tuple[str, ...]]] = [(name, (kind,)) for name in names for kind in UNARY]
    made += [(name, pair) for name in names for pair in itertools.product(BINARY, BINARY)]
    functions = [
        f"CREATE FUNCTION public.{name}({', '.join(types)}) RETURNS text LANGUAGE plpgsql AS"
        f" 'BEGIN RAISE ''{MOTTO} {name}''; END'"
        for name, types in made
    ]
    operators = [
        f"CREATE FUNCTION public.hostile({left}, {right}) RETURNS bool LANGUAGE plpgsql AS"
        f" 'BEGIN RAISE ''{MOTTO} operator''; END'"
        for left, right in PAIRS
    ]
    operators += [
        f"CREATE OPERATOR public.{name} (FUNCTION = public.hostile, LEFTARG = {left},"
        f" RIGHTARG = {right})"
        for name in OPERATORS
        for left, right in PAIRS
    ]
    postgres.run(
        database,
        "DROP ROLE IF EXISTS keeper",
        "CREATE ROLE keeper LOGIN",
        f'GRANT ALL ON DATABASE "{database}" TO keeper',
        "GRANT ALL ON SCHEMA public TO keeper",
        "DO $$ DECLARE t record; BEGIN FOR t IN SELECT tablename FROM pg_tables"
        " WHERE schemaname = 'public' LOOP EXECUTE format('ALTER TABLE public.%I OWNER TO keeper',"
        " t.tablename); END LOOP; END $$",
        "; ".join([*functions, *operators]),
    )
    yield url_of(postgres, database, user="keeper")
    postgres.drop(database)
    postgres.run("postgres", "DROP ROLE keeper")


def test_no_statement_reaches_a_better_match(hostile: PostgresUrl) -> None:
    """Functions of the same name, and operators of types that pg_catalog lacks, are not called."""

    async def sessions() -> None:
        for purpose in (PLAN, MOVE, VERIFY):
            async with open_session(hostile, purpose) as session:
                assert session.tables

    found = asyncio.run(migrate_postgres.inspect_database(hostile))
    checked = asyncio.run(check_postgres.check_postgres(hostile))
    asyncio.run(sessions())
    keys_postgres.read_tables(hostile).close()
    keys_postgres.replace_tokens_on_server(hostile, {})
    others = read_sessions(hostile)

    assert found.position.state == "current"
    assert not [finding for finding in checked.findings if finding.kind != "drift"]
    assert others == ()


def test_revisions_reach_no_better_match(postgres: Server, hostile: PostgresUrl) -> None:
    """Those of Alembic neither; its operators are the reason why those of others are refused."""
    postgres.run(
        str(hostile.database),
        *(f"DROP FUNCTION hostile({', '.join(pair)}) CASCADE" for pair in PAIRS),
    )

    down = asyncio.run(migrate_postgres.downgrade(hostile, "019_fleet_tasks"))
    rehearsed = asyncio.run(rehearse_postgres.rehearse(hostile))
    up = asyncio.run(migrate_postgres.upgrade(hostile))

    assert down.ran == rehearsed.ran == up.ran


@pytest.fixture
def mallory(postgres: Server) -> Iterator[str]:
    """A database at the head in whose schema every role may create, as before PostgreSQL 15."""
    database = at_head(postgres)
    postgres.run(
        database,
        "DROP ROLE IF EXISTS mallory",
        "CREATE ROLE mallory LOGIN",
        "GRANT ALL ON SCHEMA public TO PUBLIC",
    )
    yield database
    postgres.drop(database)
    postgres.run("postgres", "DROP ROLE mallory")


def test_operator_of_another_role_is_refused(postgres: Server, mallory: str) -> None:
    """Alembic compares a varchar, for which pg_catalog has no operator of its own."""
    postgres.run(
        mallory,
        "CREATE FUNCTION public.same(varchar, varchar) RETURNS bool LANGUAGE sql AS 'SELECT true'",
        "CREATE OPERATOR public.= (FUNCTION = public.same, LEFTARG = varchar, RIGHTARG = varchar)",
        user="mallory",
    )

    with pytest.raises(PermissionDeniedError, match="operator = belongs to the role mallory"):
        asyncio.run(migrate_postgres.inspect_database(url_of(postgres, mallory)))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            "CREATE TRIGGER t AFTER INSERT ON org EXECUTE FUNCTION public.evil()",
            r"function evil of table org belongs to the role mallory",
        ),
        ("ALTER TABLE mine ADD CHECK (public.is_evil(n))", "function is_evil of table mine"),
        ("CREATE RULE r AS ON INSERT TO mine DO ALSO SELECT 1", "rule r of table mine"),
    ],
)
def test_code_that_a_change_would_run_is_refused(
    postgres: Server, mallory: str, code: str, words: str
) -> None:
    """Triggers, checks and rules of another role run with the rights of the one that writes."""
    postgres.run(mallory, "GRANT TRIGGER ON org TO mallory")
    postgres.run(
        mallory,
        "CREATE FUNCTION public.evil() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN END'",
        "CREATE FUNCTION public.is_evil(int) RETURNS bool LANGUAGE sql AS 'SELECT true'",
        "CREATE TABLE mine (n int)",
        code,
        user="mallory",
    )
    url = url_of(postgres, mallory)

    async def move() -> None:
        async with open_session(url, MOVE):
            pass

    with pytest.raises(PermissionDeniedError, match=words):
        asyncio.run(migrate_postgres.downgrade(url, "019_fleet_tasks"))
    with pytest.raises(PermissionDeniedError, match=words):
        asyncio.run(move())
    with pytest.raises(PermissionDeniedError, match=words):
        keys_postgres.replace_tokens_on_server(url, {})


def test_row_security_neither_hides_rows_nor_runs(postgres: Server, mallory: str) -> None:
    """A policy is an error for a role that it would apply to."""
    postgres.run(
        mallory,
        "CREATE FUNCTION public.evil() RETURNS bool LANGUAGE plpgsql AS 'BEGIN RAISE ''ran''; END'",
        "CREATE TABLE mine (n int)",
        "ALTER TABLE mine ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY p ON mine USING (public.evil())",
        "GRANT SELECT ON mine TO PUBLIC",
        user="mallory",
    )
    postgres.run(
        mallory, "DROP ROLE IF EXISTS reader", "CREATE ROLE reader LOGIN IN ROLE pg_read_all_data"
    )

    with pytest.raises(PermissionDeniedError, match="row-level security"):
        asyncio.run(check_postgres.check_postgres(url_of(postgres, mallory, user="reader")))

    postgres.run("postgres", "DROP ROLE reader")


def test_messages_of_a_server_are_bounded_and_printable() -> None:
    """A server is anyone who answers at the address."""
    import asyncpg

    error = asyncpg.PostgresError("\x1b]0;title\x07\u2028" + "x" * 10_000 + "\nDETAIL: a row")

    line = postgres_connection.first_line(error)

    assert line.isprintable()
    assert len(line) < 600
    assert "DETAIL" not in line
