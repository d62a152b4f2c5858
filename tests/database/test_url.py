"""Database URLs, in every form that people use."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagewai_ops.database.url import PostgresUrl, SqliteUrl, parse, resolve
from sagewai_ops.errors import UsageError

TEXT = st.text(st.characters(min_codepoint=33, exclude_categories=["Cs"]), min_size=1)


@pytest.mark.parametrize(
    "scheme",
    ["postgres", "postgresql", "postgresql+asyncpg", "postgresql+psycopg2", "POSTGRESQL"],
)
def test_every_scheme_of_postgres_is_the_same(scheme: str) -> None:
    """The driver that the URL names does not matter."""
    assert parse(f"{scheme}://ann:secret@db.example:5433/sagewai") == PostgresUrl(
        (("db.example", 5433),), "ann", "secret", "sagewai"
    )


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://", PostgresUrl()),
        ("postgresql:///sagewai", PostgresUrl(database="sagewai")),
        ("postgresql://h", PostgresUrl((("h", None),))),
        ("postgresql://u@h/d", PostgresUrl((("h", None),), "u", None, "d")),
        ("postgresql://u:p%40s%3As@h/d", PostgresUrl((("h", None),), "u", "p@s:s", "d")),
        ("postgresql://u:p@ss:w@h/d", PostgresUrl((("h", None),), "u", "p@ss:w", "d")),
        ("postgresql://u:100%25@h/d%20e", PostgresUrl((("h", None),), "u", "100%", "d e")),
        ("postgresql://u:a+b@h/d", PostgresUrl((("h", None),), "u", "a+b", "d")),
        ("postgresql://[::1]:5433/d", PostgresUrl((("::1", 5433),), database="d")),
        ("postgresql://a:1,b/d", PostgresUrl((("a", 1), ("b", None)), database="d")),
        ("postgresql://%2Frun%2Fpg/d", PostgresUrl((("/run/pg", None),), database="d")),
        ("postgresql:///d?host=/run/pg", PostgresUrl((("/run/pg", None),), database="d")),
        (
            "postgresql://u@/d?host=/run/pg&port=5433",
            PostgresUrl((("/run/pg", 5433),), "u", None, "d"),
        ),
        ("postgresql:///d?port=5433", PostgresUrl((("localhost", 5433),), database="d")),
        (
            "postgresql://?host=a,b&port=1,2&user=u&password=p+%26&dbname=d",
            PostgresUrl((("a", 1), ("b", 2)), "u", "p+&", "d"),
        ),
        (
            "postgresql://h/d?sslmode=verify-full&sslrootcert=/etc/ca.pem",
            PostgresUrl(
                (("h", None),),
                database="d",
                tls={"sslmode": "verify-full", "sslrootcert": "/etc/ca.pem"},
            ),
        ),
        (
            "postgresql+asyncpg://h/d?ssl=require&prepared_statement_cache_size=0",
            PostgresUrl((("h", None),), database="d", tls={"sslmode": "require"}),
        ),
        (
            "postgresql://h/d?sslmode=require&channel_binding=require&sslsni=1",
            PostgresUrl(
                (("h", None),),
                database="d",
                tls={"sslmode": "require", "channel_binding": "require"},
            ),
        ),
        (
            "postgresql://h/d?connect_timeout=5&search_path=a,b&application_name=x",
            PostgresUrl(
                (("h", None),), database="d", settings={"search_path": "a,b"}, timeout_seconds=5.0
            ),
        ),
    ],
)
def test_form_is_read(url: str, expected: PostgresUrl) -> None:
    """Users, passwords, hosts, sockets, ports, databases and options end up where they belong."""
    assert parse(url) == expected


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:////srv/home/db/sagewai.db", "/srv/home/db/sagewai.db"),
        ("sqlite+aiosqlite:///relative.db", "relative.db"),
        ("sqlite+aiosqlite:////srv/a b.db?timeout=3", "/srv/a b.db"),
        ("sqlite:///file:/srv/a%20b.db?uri=true", "/srv/a b.db"),
    ],
)
def test_sqlite_file_is_read(url: str, path: str) -> None:
    """A URL of SQLite is a path."""
    assert parse(url) == SqliteUrl(Path(path))


@pytest.mark.parametrize(
    "url",
    [
        "hunter2",
        "ann:hunter2@host/db",
        "mysql://ann:hunter2@host/db",
        "postgresql://ann:hunter2/x@host/db",
        "postgresql://ann:1234hunter2/",
        "postgresql://host:0/hunter2",
        "postgresql://host:65536/hunter2",
        "postgresql://[::1/hunter2",
        "postgresql://host/db?hunter2",
        "postgresql://host/db?connect_timeout=hunter2",
        "postgresql:///db?host=a,b&port=1,2,3&password=hunter2",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite://hunter2/x.db",
    ],
)
def test_refusal_never_shows_what_was_given(url: str) -> None:
    """Any part of what was given may be a password."""
    with pytest.raises(UsageError, match="database URL: ") as caught:
        parse(url)

    assert "hunter2" not in caught.value.message + caught.value.hint


@given(user=TEXT, password=TEXT, database=TEXT)
def test_what_was_parsed_can_be_written_and_parsed_again(
    user: str, password: str, database: str
) -> None:
    """Any text survives, and the form for messages has no password."""
    url = PostgresUrl((("h", 5433), ("::1", None)), user, password, database)
    sockets = PostgresUrl((("/run/p g", 5433),), user, password, database, tls={"sslmode": "allow"})

    assert parse(url.to_string()) == url
    assert parse(sockets.to_string()) == sockets
    assert parse(url.display) == PostgresUrl(url.hosts, user, None, database)


def test_password_is_in_no_representation() -> None:
    """Neither `repr` nor the name for messages holds it."""
    url = parse("postgresql://ann:hunter2@h/d?sslpassword=hunter2")

    assert "hunter2" not in repr(url) + url.display
    assert url.display == "postgresql://ann@h/d"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, SqliteUrl(Path("/home/db/sagewai.db"))),
        ({"SAGEWAI_DATABASE_URL": ""}, SqliteUrl(Path("/home/db/sagewai.db"))),
        ({"DATABASE_URL": "postgresql://b"}, PostgresUrl((("b", None),))),
        (
            {"SAGEWAI_DATABASE_URL": "postgresql://a", "DATABASE_URL": "postgresql://b"},
            PostgresUrl((("a", None),)),
        ),
        (
            {"SAGEWAI_DATABASE_URL": "", "DATABASE_URL": "sqlite:////x.db"},
            SqliteUrl(Path("/x.db")),
        ),
    ],
)
def test_database_is_the_one_that_the_server_would_use(
    environment: dict[str, str], expected: SqliteUrl | PostgresUrl
) -> None:
    """SAGEWAI_DATABASE_URL, then DATABASE_URL, then the home's file; empty is unset."""
    assert resolve(environment, Path("/home/db/sagewai.db")) == expected


def test_bad_variable_is_named() -> None:
    """The message reports which variable to correct."""
    with pytest.raises(UsageError, match=r"^DATABASE_URL: database URL: "):
        resolve({"DATABASE_URL": "oracle"}, Path("x"))
