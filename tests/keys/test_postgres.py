"""Keys of a home whose tables are on a PostgreSQL server: looked at, and exchanged."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from home_builder import BuiltHome
from opened_values import CLOSED, opened
from other_process import running
from postgres_server import Server
from program import call
from sagewai_ops.database.postgres.connection import open_transaction
from sagewai_ops.database.url import PostgresUrl
from sagewai_ops.errors import RemoteError
from sagewai_ops.home.paths import locate
from sagewai_ops.keys import postgres as keys_postgres
from sagewai_ops.keys.candidates import fingerprint
from sagewai_ops.operations.rotate_keys import Options, rotate
from sagewai_ops.swap.pending import pending_operations
from small_homes import small
from step_counter import killed
from targets import at_head, exported

ROWS = {
    "project": "data_key_ref",
    "provider": "data::text",
    "admin_resources": "data::text",
    "connection": "concat(protocol_data::text, credentials_backend::text)",
}
NO_SNAPSHOT = ("--no-snapshot", "--yes")


_MOVED: dict[Path, tuple[BuiltHome, str]] = {}  # by server: made once for all tests


@pytest.fixture
def moved(postgres: Server, tmp_path_factory: pytest.TempPathFactory) -> tuple[BuiltHome, str]:
    """A home that was exported to a server, and the template that it went to."""
    if postgres.directory not in _MOVED:
        root = tmp_path_factory.mktemp("moved") / "home"
        built = small(root, rows=2, journal="none", remote_backends=False)
        template = at_head(postgres)
        exported(locate(built.root, {}), postgres, template)
        _MOVED[postgres.directory] = (built, template)
    return _MOVED[postgres.directory]


@pytest.fixture
def site(
    moved: tuple[BuiltHome, str],
    postgres: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[tuple[Path, str]]:
    """A copy of the home and of its database, which the environment names."""
    built, template = moved
    shutil.copytree(built.root, tmp_path / "home", symlinks=True)
    database = postgres.create(template=template)
    monkeypatch.setenv("SAGEWAI_DATABASE_URL", postgres.url(database))
    yield tmp_path / "home", database
    postgres.drop(database)


def on_server(postgres: Server, database: str) -> str:
    """Return all that the server holds that may be sealed, as one text."""
    return "\n".join(
        str(cell)
        for table, column in ROWS.items()
        for (cell,) in postgres.rows(database, f"SELECT {column} FROM {table} ORDER BY 1")
    )


def without_tokens(text: str) -> list[str]:
    """Return the lines of a text with every token taken out, sorted."""
    return sorted(re.sub(r"fernet:[A-Za-z0-9_=-]+", "", line) for line in text.splitlines())


def opened_on_server(
    postgres: Server, database: str, key: bytes, built: BuiltHome, scratch: Path
) -> list[str]:
    """Open every token on the server with the home's key and those of its projects."""
    (scratch / "config").mkdir(parents=True, exist_ok=True)
    (scratch / "config/all").write_text(on_server(postgres, database))
    return opened(scratch, key, built.data_keys.values())


def test_what_is_on_the_server_is_checked(
    site: tuple[Path, str], moved: tuple[BuiltHome, str], postgres: Server
) -> None:
    """Opened as well as the home's own, data keys of projects between; plaintext is found."""
    home, database = site
    postgres.run(
        database,
        'UPDATE provider SET data = \'{"config": {"api_key": "in-the-clear"}}\''
        " WHERE id = (SELECT min(id) FROM provider)",
        "UPDATE connection SET last_test_ok = true",
    )

    answer = call("--home", home, "keys", "check", "--json")

    on_it = [each for each in answer.result["values"] if each["where"].startswith("server:")]
    places = {each["place"] for each in on_it}
    assert places == {
        "project.data_key_ref",
        "provider.data",
        "admin_resources.data",
        "connection.protocol_data",
    }
    assert any(each["through_project"] for each in on_it)
    assert answer.result["sealed"]["unopened"] == []
    assert answer.result["unread"] == {}
    clear = [each for each in answer.result["plaintext"] if each["where"].startswith("server:")]
    assert any(each["finding"] and each["where"].endswith("/config/api_key") for each in clear)
    assert "in-the-clear" not in answer.out


def test_an_empty_server_and_one_of_others_hold_nothing(
    site: tuple[Path, str], postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables that are not there are no error."""
    home, _database = site
    empty = postgres.create()
    monkeypatch.setenv("SAGEWAI_DATABASE_URL", postgres.url(empty))

    answer = call("--home", home, "keys", "check", "--json")

    assert not [each for each in answer.result["values"] if each["where"].startswith("server:")]
    assert answer.result["unread"] == {}
    postgres.drop(empty)


def test_both_databases_and_the_documents_are_exchanged(
    site: tuple[Path, str], moved: tuple[BuiltHome, str], postgres: Server, tmp_path: Path
) -> None:
    """All under the new key; on the server nothing else changes, to the character."""
    home, database = site
    built, _ = moved
    scratch = tmp_path / "scratch"
    old = on_server(postgres, database)
    before = opened_on_server(postgres, database, built.master_keys[0], built, scratch)

    answer = call("--home", home, "keys", "rotate", "--json", *NO_SNAPSHOT)

    assert answer.code == 0
    new_key = (home / "secrets/master.key").read_bytes()
    assert opened_on_server(postgres, database, new_key, built, scratch) == before
    assert CLOSED not in before
    assert CLOSED not in opened(home, new_key, built.data_keys.values())
    new = on_server(postgres, database)
    assert new != old
    assert without_tokens(new) == without_tokens(old)
    checked = call("--home", home, "keys", "check", "--json").result
    assert checked["lost_to_sagewai"] == 0
    assert {each["fingerprint"] for each in checked["values"]} == {fingerprint(new_key)}


def test_columns_of_another_type_are_exchanged_too(
    site: tuple[Path, str], moved: tuple[BuiltHome, str], postgres: Server
) -> None:
    """An administrator made them jsonb or varchar; the cell keeps its type."""
    home, database = site
    built, _ = moved
    postgres.run(
        database,
        "ALTER TABLE connection ALTER protocol_data TYPE jsonb USING protocol_data::jsonb",
        "ALTER TABLE project ALTER data_key_ref TYPE varchar(900)",
    )

    assert call("--home", home, "keys", "rotate", *NO_SNAPSHOT).code == 0

    key = Fernet((home / "secrets/master.key").read_bytes())
    cells = postgres.rows(database, "SELECT data_key_ref FROM project WHERE data_key_ref <> ''")
    assert {key.decrypt(str(cell).removeprefix("fernet:")) for (cell,) in cells} <= set(
        built.data_keys.values()
    )
    types = postgres.rows(database, "SELECT DISTINCT jsonb_typeof(protocol_data) FROM connection")
    assert types == [("object",)]


def test_other_sessions_of_the_role_are_refused(site: tuple[Path, str], postgres: Server) -> None:
    """A Sagewai that runs on the server would go on with the old key."""
    home, database = site
    other = (
        "import asyncio, asyncpg, sys\n"
        "async def hold():\n"
        "    connection = await asyncpg.connect(sys.argv[1])\n"
        "    pause()\n"
        "asyncio.run(hold())\n"
    )
    with running(other, postgres.url(database)):
        answer = call("--home", home, "keys", "rotate", *NO_SNAPSHOT)

    assert answer.code == 15
    assert "postgres (server process " in answer.err


def test_killed_after_the_servers_commit_it_is_finished(
    site: tuple[Path, str],
    moved: tuple[BuiltHome, str],
    postgres: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the same server named; with another, or none, it refuses and waits."""
    home, database = site
    built, _ = moved
    url = os.environ["SAGEWAI_DATABASE_URL"]

    def die() -> None:
        substitute = keys_postgres.replace_tokens_on_server

        def and_die(*arguments: object) -> None:
            substitute(*arguments)  # type: ignore[arg-type]
            os.kill(os.getpid(), signal.SIGKILL)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(keys_postgres, "replace_tokens_on_server", and_die)
            environment = {"SAGEWAI_DATABASE_URL": url}
            rotate(locate(home, environment), environment, Options())

    assert killed(die)
    assert pending_operations(home)
    words = ("--home", home, "keys", "rotate", "--recover", "--json")

    monkeypatch.delenv("SAGEWAI_DATABASE_URL")
    without = call(*words)
    monkeypatch.setenv("SAGEWAI_DATABASE_URL", postgres.url("another"))
    another = call(*words)
    monkeypatch.setenv("SAGEWAI_DATABASE_URL", url)
    answer = call(*words)

    assert (without.code, another.code, answer.code) == (2, 2, 0)
    assert answer.result["recovery"] == "finished"
    new = (home / "secrets/master.key").read_bytes()
    scratch = tmp_path / "scratch"
    assert CLOSED not in opened_on_server(postgres, database, new, built, scratch)
    assert CLOSED not in opened(home, new, built.data_keys.values())


def test_a_server_that_goes_away_takes_nothing_along(
    site: tuple[Path, str], moved: tuple[BuiltHome, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle: the home's own database is undone as soon as the server is there again."""
    home, _database = site
    built, _ = moved
    calls = []

    def refuse(url: PostgresUrl, **_options: object) -> object:
        calls.append(url)
        raise RemoteError(f"{url.display}: connection refused")

    substitute = keys_postgres.replace_tokens_on_server

    def broken(*arguments: object) -> None:
        monkeypatch.setattr(keys_postgres, "open_transaction", refuse)
        substitute(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(keys_postgres, "replace_tokens_on_server", broken)
    failed = call("--home", home, "keys", "rotate", *NO_SNAPSHOT)
    monkeypatch.setattr(keys_postgres, "replace_tokens_on_server", substitute)
    still = call("--home", home, "keys", "rotate", "--recover")
    monkeypatch.setattr(keys_postgres, "open_transaction", open_transaction)
    answer = call("--home", home, "keys", "rotate", "--recover", "--json")

    assert (failed.code, still.code, answer.code) == (19, 19, 0)
    assert f"sagewai-ops --home {home} recover" in failed.err
    new = (home / "secrets/master.key").read_bytes()
    assert CLOSED not in opened(home, new, built.data_keys.values())
    assert len(calls) >= 2


def test_a_server_that_cannot_be_reached_is_refused_at_once(
    site: tuple[Path, str], moved: tuple[BuiltHome, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its values would stay under the old key."""
    home, _database = site
    monkeypatch.setenv("SAGEWAI_DATABASE_URL", "postgresql://u:pw-of-mine@127.0.0.1:1/s")

    answer = call("--home", home, "keys", "rotate", *NO_SNAPSHOT)

    assert answer.code == 19
    assert "pw-of-mine" not in answer.err
    assert (home / "secrets/master.key").read_bytes() == moved[0].master_keys[0]
    assert not pending_operations(home)
