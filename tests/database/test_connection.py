"""Connections to PostgreSQL, and how their failures are reported."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import text

from postgres_server import GUARDED, Server
from sagewai_ops.database import url as database_url
from sagewai_ops.database.postgres import connection as postgres_connection
from sagewai_ops.database.postgres import tls
from sagewai_ops.errors import (
    DifferenceError,
    LockedError,
    NotFoundError,
    OpsError,
    PermissionDeniedError,
    RemoteError,
    UsageError,
)

PASSWORD = "p@ss:w/ord%20é"


def _parsed(url: str) -> database_url.PostgresUrl:
    parsed = database_url.parse(url)
    assert isinstance(parsed, database_url.PostgresUrl)
    return parsed


async def _ask(url: database_url.PostgresUrl, query: str = "SELECT current_user::text") -> object:
    async with postgres_connection.connect_sqlalchemy(url) as connection:
        return (await connection.execute(text(query))).scalar_one()


@pytest.fixture
def guarded(postgres: Server) -> str:
    """A database that wants the password of the role `ann`."""
    postgres.run(
        "postgres",
        "DROP ROLE IF EXISTS ann",
        f"CREATE ROLE ann LOGIN PASSWORD '{PASSWORD}'",
    )
    return postgres.create(name=GUARDED)


@pytest.mark.parametrize(
    "form",
    [
        "postgres://ann:{password}@127.0.0.1:{port}/{database}",
        "postgresql://ann:{password}@127.0.0.1:{port}/{database}?sslmode=disable",
        "postgresql+asyncpg://ann:{password}@127.0.0.1:{port}/{database}?sslmode=prefer",
        "postgresql://ann:{password}@/{database}?host={sockets}&port={port}",
        "postgresql://ann:{password}@{encoded_sockets}:{port}/{database}?connect_timeout=9",
        "postgresql://127.0.0.1:1,127.0.0.1:{port}/{database}?user=ann&password={password}",
    ],
)
def test_every_form_connects(postgres: Server, guarded: str, form: str) -> None:
    """Over TCP and the socket, with a password full of signs, in all its spellings."""
    url = form.format(
        password="p%40ss%3Aw%2Ford%2520%C3%A9",
        port=postgres.port,
        database=guarded,
        sockets=postgres.sockets,
        encoded_sockets=str(postgres.sockets).replace("/", "%2F"),
    )

    assert asyncio.run(_ask(_parsed(url))) == "ann"


def test_password_comes_from_the_environment_or_its_file(
    postgres: Server, guarded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A URL without a password works where PGPASSWORD or the password file has it."""
    url = _parsed(f"postgresql://ann@127.0.0.1:{postgres.port}/{guarded}")

    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    by_variable = asyncio.run(_ask(url))
    monkeypatch.delenv("PGPASSWORD")
    passfile = tmp_path / "pgpass"
    escaped = PASSWORD.replace(":", "\\:")
    passfile.write_text(f"*:*:{guarded}:ann:{escaped}\n", encoding="utf-8")
    passfile.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(passfile))
    by_file = asyncio.run(_ask(url))

    assert (by_variable, by_file) == ("ann", "ann")


def test_host_and_port_may_come_from_the_environment(
    postgres: Server, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PGHOST and PGPORT fill in what the URL leaves out."""
    monkeypatch.setenv("PGPORT", str(postgres.port))

    by_port = asyncio.run(_ask(_parsed(f"postgresql://postgres@127.0.0.1/{database}")))
    monkeypatch.setenv("PGHOST", str(postgres.sockets))
    by_host = asyncio.run(_ask(_parsed(f"postgresql://postgres@/{database}")))

    assert (by_port, by_host) == ("postgres", "postgres")


def test_session_is_in_utc_and_says_who_it_is(postgres: Server, database: str) -> None:
    """Whatever zone the server or the role prefers, timestamps of a home are read as UTC."""
    url = _parsed(postgres.url(database) + "&application_name=other")

    assert asyncio.run(_ask(url, "SHOW timezone")) == "UTC"
    assert asyncio.run(_ask(url, "SHOW application_name")) == "sagewai-ops"


def test_limits_of_the_role_do_not_hold(every_postgres: Server) -> None:
    """They are meant for a server's statements; a migration takes its time. The URL's are ours."""
    database = every_postgres.create()
    limits = ["statement_timeout", "idle_in_transaction_session_timeout"]
    if every_postgres.installation.major >= 17:
        limits.append("transaction_timeout")
    role = "ALTER ROLE hasty SET"
    every_postgres.run(
        database,
        "DROP ROLE IF EXISTS hasty",
        "CREATE ROLE hasty LOGIN",
        *(f"{role} {limit} = '9min'" for limit in limits),
    )
    url = every_postgres.url(database, user="hasty")

    met = [asyncio.run(_ask(_parsed(url), f"SHOW {limit}")) for limit in limits]
    asked = asyncio.run(_ask(_parsed(url + "&statement_timeout=5000"), "SHOW statement_timeout"))
    every_postgres.drop(database)

    assert met == ["0"] * len(limits)
    assert asked == "5s"


def test_search_path_of_the_url_is_used(postgres: Server, database: str) -> None:
    """Anything else after the question mark is sent to the server."""
    postgres.run(database, "CREATE SCHEMA other")
    url = _parsed(postgres.url(database) + "&search_path=other")

    assert asyncio.run(_ask(url, "SELECT current_schema()")) == "other"


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"password": "wrong"}, PermissionDeniedError, "password authentication failed"),
        ({"user": "missing-role"}, PermissionDeniedError, "failed"),
        ({"database": "missing"}, NotFoundError, 'database "missing" does not exist'),
        ({"tls": {"sslmode": "require"}}, RemoteError, "ssl"),
        ({"settings": {"no_such_setting": "1"}}, UsageError, "no_such_setting"),
    ],
)
def test_refused_connection_has_a_reason(
    postgres: Server, guarded: str, change: dict[str, object], kind: type[OpsError], words: str
) -> None:
    """Each refusal has its exit code, names the database and shows no password."""
    fields: dict[str, object] = {"user": "ann", "password": PASSWORD, "database": guarded}
    url = database_url.PostgresUrl((("127.0.0.1", postgres.port),), **{**fields, **change})  # type: ignore[arg-type]

    with pytest.raises(kind) as caught:
        asyncio.run(_ask(url))

    assert caught.value.message.startswith(url.display)
    assert words in caught.value.message.lower()
    assert PASSWORD not in caught.value.message + caught.value.hint


def test_port_without_a_server_is_remote() -> None:
    """A port without a server exits as a network failure."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = database_url.PostgresUrl((("127.0.0.1", unused.getsockname()[1]),), "u", None, "d")

        with pytest.raises(RemoteError, match="connect call failed"):
            asyncio.run(_ask(url))


def test_silent_server_is_given_up() -> None:
    """A server that accepts and prints nothing does not hang a cron job."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        host = ("127.0.0.1", silent.getsockname()[1])
        url = database_url.PostgresUrl((host,), "u", None, "d", timeout_seconds=0.2)

        with pytest.raises(RemoteError, match=r"no answer within 0\.2 seconds"):
            asyncio.run(_ask(url))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sslmode": "perhaps"}, "sslmode unknown, not one of disable, allow,"),
        ({"sslmode": "verify-full"}, r"sslrootcert .*/\.postgresql/root\.crt: not readable"),
        ({"sslmode": "require", "sslrootcert": "/none.crt"}, "sslrootcert /none.crt: not readable"),
        ({"sslcert": "/none.crt", "sslpassword": "hushed"}, "sslcert /none.crt: not readable"),
        ({"sslkey": "/none.key"}, "sslkey /none.key: not readable"),
    ],
)
def test_wrong_tls_option_is_named_before_anything_is_sent(
    options: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A word that is no mode, or a file that is not there: not a failure of the network."""
    monkeypatch.setenv("HOME", str(tmp_path))
    url = database_url.PostgresUrl((("127.0.0.1", 1),), "u", None, "d", tls=options)

    with pytest.raises(UsageError, match=words) as caught:
        asyncio.run(_ask(url))

    assert "hushed" not in caught.value.message


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("PGPORT", "1,2", "2 ports for 1 hosts"),
        ("PGTARGETSESSIONATTRS", "none", "contradicted by the PG"),
    ],
)
def test_contradicting_options_are_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: str
) -> None:
    """They are named before anything is sent."""
    monkeypatch.setenv(variable, value)
    url = database_url.PostgresUrl((("127.0.0.1", None),), "u", None, "d")

    with pytest.raises(UsageError, match=words):
        asyncio.run(_ask(url))


def test_authorities_of_the_system_are_found_where_python_looks_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Python that was built for another system names a file that is not there."""
    bundle = tmp_path / "bundle.crt"
    bundle.touch()
    elsewhere = ssl.get_default_verify_paths()._replace(cafile="")
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: elsewhere)
    monkeypatch.setattr(tls, "_BUNDLES", ("/none.crt", str(bundle)))
    url = database_url.PostgresUrl(tls={"sslmode": "verify-full", "sslrootcert": "system"})

    assert tls.options(url, {})["sslrootcert"] == str(bundle)

    bundle.unlink()
    with pytest.raises(UsageError, match="sslrootcert system: not readable"):
        tls.options(url, {})


class _Tls:
    """A server that takes TLS as PostgreSQL does, with the certificate of another name."""

    def __init__(self, directory: Path) -> None:
        self.certificate, self._key = directory / "server.crt", directory / "server.key"
        subprocess.run(
            [
                *("openssl", "req", "-new", "-x509", "-nodes", "-subj", "/CN=elsewhere"),
                *("-out", self.certificate, "-keyout", self._key),
            ],
            check=True,
            capture_output=True,
        )

    async def ask(self, **options: str) -> object:
        """Connect to it with these options."""
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        async with server:
            host = ("127.0.0.1", server.sockets[0].getsockname()[1])
            return await _ask(database_url.PostgresUrl((host,), "u", "hushed", "d", tls=options))

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)  # SSLRequest
        writer.write(b"S")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self._key)
        transport = writer.transport
        with contextlib.suppress(OSError):
            await asyncio.get_running_loop().start_tls(
                transport, transport.get_protocol(), context, server_side=True
            )
        transport.close()


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl makes the certificate")
@pytest.mark.parametrize(
    ("root", "words"),
    [("mine", "not trusted, .*127.0.0.1"), ("system", "not trusted, self"), ("junk", "TLS: no ")],
)
def test_server_that_is_not_trusted_is_remote(tmp_path: Path, root: str, words: str) -> None:
    """Neither the server's name nor its authority is taken on trust, and the reason is reported."""
    if root == "system" and not tls.system_authorities():
        pytest.skip("this system has no authorities")
    server = _Tls(tmp_path)
    (tmp_path / "junk").write_text("junk")
    named = {"mine": str(server.certificate), "junk": str(tmp_path / "junk")}

    with pytest.raises(RemoteError, match=words) as caught:
        asyncio.run(server.ask(sslmode="verify-full", sslrootcert=named.get(root, root)))

    assert "hushed" not in caught.value.message


def test_refusal_inside_the_block_is_reported(postgres: Server, database: str) -> None:
    """What the server refuses later gets its exit code too."""
    url = _parsed(postgres.url(database))
    postgres.run(database, "CREATE TABLE held ()")

    with pytest.raises(PermissionDeniedError, match="read-only"):
        asyncio.run(
            _ask(
                _parsed(postgres.url(database) + "&default_transaction_read_only=on"),
                "CREATE TABLE t () -- ",
            ),
        )
    with pytest.raises(LockedError, match="lock timeout"):
        asyncio.run(_wait_for_a_table(url))


async def _wait_for_a_table(url: database_url.PostgresUrl) -> None:
    async with postgres_connection.connect_sqlalchemy(url) as holder:
        await holder.execute(text("LOCK TABLE held"))
        async with postgres_connection.connect_sqlalchemy(url) as other:
            await other.execute(text("SET lock_timeout = 50"))
            await other.execute(text("SELECT * FROM held"))


_RAISE = "DO $$ BEGIN RAISE EXCEPTION USING MESSAGE = {message}, ERRCODE = '{state}'; END $$"


@pytest.mark.parametrize(
    ("statement", "kind", "words"),
    [
        ("SELECT no_such_function()", DifferenceError, "no_such_function"),
        ("SELECT 1 / 0", DifferenceError, "division by zero"),
        (_RAISE.format(message="'not today'", state="P0001"), RemoteError, "not today"),
        (_RAISE.format(message="'private'", state="42501"), PermissionDeniedError, "private"),
        (_RAISE.format(message="'odd'", state="ZZ999"), RemoteError, "odd"),
        (_RAISE.format(message="'no session'", state="08P01"), RemoteError, "server itself"),
        (_RAISE.format(message="E'\\x1b[2Jcleared'", state="ZZ999"), RemoteError, r"\\x1b"),
        (_RAISE.format(message="repeat('long', 999)", state="ZZ999"), RemoteError, r"long\.\.\.$"),
    ],
)
def test_every_error_of_the_server_has_an_exit_code(
    postgres: Server, database: str, statement: str, kind: type[OpsError], words: str
) -> None:
    """Whatever its code: the server's own words, printable and of a limited length."""
    with pytest.raises(kind, match=words) as caught:
        asyncio.run(_ask(_parsed(postgres.url(database)), statement))

    assert len(caught.value.message) < 700
    assert caught.value.message.isprintable()


def test_connection_lost_in_the_middle_is_remote(postgres: Server, database: str) -> None:
    """A server that goes away ends in a network failure, and the connection is closed."""
    url = _parsed(postgres.url(database))

    async def lose() -> None:
        async with postgres_connection.connect_sqlalchemy(url) as connection:
            pid = (await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one()
            killer = await postgres.connect("postgres")
            await killer.execute("SELECT pg_terminate_backend($1)", pid)
            await killer.close()
            await connection.execute(text("SELECT 1"))

    with pytest.raises(RemoteError):
        asyncio.run(lose())


def test_an_error_in_a_callback_prints_no_traceback() -> None:
    """The loop logs it, for example `Fatal error: protocol.data_received() call failed`."""
    program = """
import asyncio, socket
from sagewai_ops.database.postgres import connection
from sagewai_ops.process.signals import run_interruptibly

class Broken(asyncio.Protocol):
    def data_received(self, data):
        raise ValueError("boom")

    def connection_lost(self, error):
        ended.set_result(repr(error))

async def receive():
    global ended
    ended = asyncio.get_running_loop().create_future()
    ours, theirs = socket.socketpair()
    await asyncio.get_running_loop().create_connection(Broken, sock=ours)
    theirs.send(b"x")
    print(await ended)

run_interruptibly(receive)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("ValueError('boom')\n", "")
