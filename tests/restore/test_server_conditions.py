"""Restores to servers under adverse conditions: restarts, full disks, privileges, encodings."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from postgres_server import Server
from program import Answer, call
from sagewai_ops.backup.report import BackupReport
from sagewai_ops.errors import RemoteError
from sagewai_ops.home.paths import locate
from sagewai_ops.home.state_files import read_documents
from sagewai_ops.restore.access import count_access, organisation_id
from sagewai_ops.restore.server import ServerRestore
from sagewai_ops.schema import postgres_replaced
from sagewai_ops.schema.migrate_postgres import LOCK
from sagewai_ops.swap import journal as swap_journal
from server_homes import DEFINITIONS, ServerHome, content, home_and_snapshot, make_server_home
from targets import small_tablespace

BIG = "CREATE TABLE big AS SELECT n, md5(n::text) || md5((n + 1)::text) AS a FROM generate_series"


@pytest.fixture(scope="module")
def original(
    _postgres_session: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ServerHome, BackupReport]]:
    """A home on a server with a table of 7 MB, and its snapshot."""
    yield from home_and_snapshot(tmp_path_factory, statement=f"{BIG}(1, 100000) n")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A home to replace."""
    made = tmp_path / "copy"
    made.mkdir()
    (made / "old").write_text("old")
    return made


def bring_back(home: ServerHome, target: Path, url: str, *words: object) -> Answer:
    """Replace a home and a database by the latest snapshot."""
    file = target.with_name("url")
    file.write_text(url)
    file.chmod(0o600)
    return call(
        *("--home", home.root, "restore", "latest", "--to", target, "--replace"),
        *("--url-file", file, *words),
    )


def is_untouched(home: ServerHome, target: Path, database: str) -> bool:
    """Return whether home and database are as before, and nothing is left next to them."""
    schemas = home.server.rows(database, "SELECT 1 FROM pg_namespace WHERE nspname LIKE 'sagewai%'")
    tables = home.server.rows(database, "SELECT 1 FROM pg_tables WHERE schemaname = 'public'")
    names = {path.name for path in target.parent.iterdir()} - {"url"}
    return (
        not (schemas or tables)
        and [path.name for path in target.iterdir()] == ["old"]
        and names == {target.name}
    )


def test_server_that_restarts_during_the_load(
    home: ServerHome, empty: str, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 19 in two lines; home and server are as before, and the next run succeeds."""
    put, pieces = ServerRestore._put, []

    def restart(session: ServerRestore, piece: bytes | None) -> None:
        pieces.append(piece)
        if len(pieces) == 3:
            home.server.restart()
        put(session, piece)

    with monkeypatch.context() as patch:
        patch.setattr(ServerRestore, "_put", restart)
        answer = bring_back(home, target, home.server.url(empty))

    assert (answer.code, len(answer.err.splitlines())) == (19, 2), answer.err
    assert is_untouched(home, target, empty)
    again = bring_back(home, target, home.server.url(empty))
    assert again.code == 0, again.err
    assert home.server.rows(empty, "SELECT count(*) FROM big") == [(100_000,)]


def test_server_that_restarts_at_the_commit(
    home: ServerHome, empty: str, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 19: it did not commit, which is found out, and nothing is changed or pending."""
    commit = ServerRestore.commit

    def restart(session: ServerRestore) -> None:
        home.server.restart()
        commit(session)

    monkeypatch.setattr(ServerRestore, "commit", restart)
    answer = bring_back(home, target, home.server.url(empty))

    assert (answer.code, len(answer.err.splitlines())) == (19, 2), answer.err
    assert "connection lost during the commit; home and database are unchanged" in answer.err
    assert is_untouched(home, target, empty)


def lose_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lose the answer to every commit."""
    commit = ServerRestore.commit

    def lose(session: ServerRestore) -> None:
        commit(session)
        raise ConnectionError("connection lost during the commit")

    monkeypatch.setattr(ServerRestore, "commit", lose)


def test_lost_answer_to_a_commit(
    home: ServerHome, empty: str, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 19: it did commit, which is found out, and the files are exchanged too."""
    lose_answer(monkeypatch)
    answer = bring_back(home, target, home.server.url(empty))

    assert (answer.code, len(answer.err.splitlines())) == (19, 2), answer.err
    assert "connection lost during the commit; home and database are as requested" in answer.err
    assert not (target / "old").exists()
    assert home.server.rows(empty, "SELECT count(*) FROM big") == [(100_000,)]
    assert call("--home", target, "recover", "--dry-run").out.endswith("nothing pending\n")


def test_lost_answer_and_a_server_that_is_away(
    home: ServerHome, empty: str, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 19, not completed: `recover` ends both in the same, and waits for a live transaction."""
    lose_answer(monkeypatch)
    away = RemoteError("the server is away")
    monkeypatch.setattr(ServerRestore, "find_outcome", mock.Mock(side_effect=away))
    answer = bring_back(home, target, home.server.url(empty))

    error, hint = answer.err.splitlines()
    assert answer.code == 19
    assert "restore not completed, connection lost during the commit, the server is away" in error
    assert hint.endswith(f"--home {target} recover")
    recover = ("--home", target, "recover", "--url-file", target.with_name("url"))
    monkeypatch.setattr(postgres_replaced, "_WAIT_SECONDS", 1)
    with home.server.session(empty, f"BEGIN; SELECT pg_advisory_xact_lock({LOCK})"):
        busy = call(*recover)
    assert busy.code == 11, busy.err
    recovered = call(*recover)
    assert recovered.code == 0, recovered.err
    assert not (target / "old").exists()


@pytest.mark.parametrize(("refusals", "code"), [(1, 0), (2, 1)])
def test_refusal_after_the_commit(
    home: ServerHome,
    empty: str,
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
    refusals: int,
    code: int,
) -> None:
    """A step of the files is tried once more; what stays refused is completed by `recover`."""
    complete, left = swap_journal.complete, [refusals]

    def refuse(journal: swap_journal.Journal) -> None:
        if left[0]:
            left[0] -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        complete(journal)

    monkeypatch.setattr(swap_journal, "complete", refuse)
    answer = bring_back(home, target, home.server.url(empty))

    assert answer.code == code, answer.err
    if code:
        assert "restore not completed" in answer.err
        assert (target / "old").exists()
        assert call("--home", target, "recover", "--url-file", target.with_name("url")).code == 0
    assert not (target / "old").exists()
    assert home.server.rows(empty, "SELECT count(*) FROM big") == [(100_000,)]


def test_full_disk_of_the_server(home: ServerHome, target: Path) -> None:
    """Exit 13 in two lines; home and database are as before."""
    server = home.server
    with small_tablespace(server, "12M") as tablespace:
        server.run("postgres", f"CREATE DATABASE tight TABLESPACE {tablespace}")
        try:
            answer = bring_back(home, target, server.url("tight"))

            assert (answer.code, len(answer.err.splitlines())) == (13, 2), answer.err
            assert is_untouched(home, target, "tight")
        finally:
            server.drop("tight")


def test_objects_of_another_role_are_all_named(home: ServerHome, target: Path) -> None:
    """Not the first alone: they are to be handed over in one go."""
    server = home.server
    database, role = server.create(), "restorer_of_some"
    server.run("postgres", f"CREATE ROLE {role} LOGIN")
    server.run(
        database,
        f'GRANT CREATE ON DATABASE "{database}" TO {role}',
        f"GRANT ALL ON SCHEMA public TO {role}",
        *(f"CREATE TABLE {name} (a int)" for name in ("first", "second", '"a third"')),
    )

    answer = bring_back(home, target, server.url(database, user=role))

    assert answer.code == 14
    assert '3 objects belong to another role: "a third", first, second' in answer.err
    server.drop(database)
    server.run("postgres", f"DROP ROLE {role}")


def test_name_with_quotes_and_blanks(home: ServerHome, target: Path) -> None:
    """A database of any name, encoding and collation is restored, undone and backed up."""
    server = home.server
    name = 'it\'s "our" d%tabase; --'
    quoted = '"{}"'.format(name.replace('"', '""'))
    server.run(
        "postgres",
        f"CREATE DATABASE {quoted} TEMPLATE template0 LOCALE 'C.UTF-8'",
    )
    url = target.with_name("url")

    answer = bring_back(home, target, server.url(name))

    assert answer.code == 0, answer.err
    # Without the sequences: a restart of the server moves those of the original.
    restored, original = (content(server, each) for each in (name, home.database))
    assert restored | {DEFINITIONS[0]: []} == original | {DEFINITIONS[0]: []}
    saved = call("--home", target, "backup", "--url-file", url, "--json")
    assert saved.code == 0, saved.err
    undone = call("--home", target, "restore", "--undo", "--url-file", url)
    assert undone.code == 0, undone.err
    assert [path.name for path in target.iterdir()] == ["old"]
    assert server.rows(name, "SELECT 1 FROM pg_tables WHERE schemaname = 'public'") == []
    server.run("postgres", f"DROP DATABASE {quoted} WITH (FORCE)")


def test_text_of_another_encoding(target: Path, postgres: Server, tmp_path: Path) -> None:
    """A snapshot of LATIN1 is restored to UTF8 and to LATIN1, and not to others."""
    latin = "ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"
    postgres.run("postgres", f"CREATE DATABASE latin {latin}", f"CREATE DATABASE latin_too {latin}")
    ascii_too = "CREATE DATABASE no_encoding ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0"
    postgres.run("postgres", ascii_too)
    utf8 = postgres.create()
    postgres.run("latin", "CREATE TABLE t (a text)", "INSERT INTO t VALUES ('h\u00e9t')")
    made = make_server_home(tmp_path / "home", postgres)
    postgres.drop(made.database)
    home = ServerHome(made.root, postgres, "latin")
    home.back_up()

    for database, code in (("latin_too", 0), (utf8, 0), ("no_encoding", 2)):
        answer = bring_back(home, target, postgres.url(database))
        assert answer.code == code, answer.err
        if not code:
            assert postgres.rows(database, "SELECT a FROM t") == [("h\u00e9t",)]

    for database in ("latin", "latin_too", "no_encoding", utf8):
        postgres.drop(database)


def test_signal_during_the_load(
    home: ServerHome, empty: str, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 143, and both are as before."""
    put, pieces = ServerRestore._put, []

    def interrupt(session: ServerRestore, piece: bytes | None) -> None:
        pieces.append(piece)
        if len(pieces) == 3:
            signal.raise_signal(signal.SIGTERM)
        put(session, piece)

    monkeypatch.setattr(ServerRestore, "_put", interrupt)

    assert bring_back(home, target, home.server.url(empty)).code == 143
    assert is_untouched(home, target, empty)


ACCESS = (
    "INSERT INTO org (id, name, slug) VALUES ('o', 'o', 'o')",
    "INSERT INTO user_account (id, org_id, email) VALUES ('u', 'o', 'u@o')",
    """INSERT INTO user_session (id, org_id, user_id, token_hash, expires_at)
       VALUES ('valid', 'o', 'u', 'h1', now() + interval '1 day'),
       ('expired', 'o', 'u', 'h2', now() - interval '1 day')""",
    """INSERT INTO api_token (id, org_id, subject_user_id, token_hash, scopes, revoked_at)
       VALUES ('valid', 'o', 'u', 'h3', '', NULL), ('revoked', 'o', 'u', 'h4', '', now())""",
    """INSERT INTO workers (worker_id, org_id)
       VALUES ('moved', 'default:0123456789abcdef'), ('of an org', 'o')""",
)


def test_access_is_counted_revoked_and_rebound(postgres: Server, tmp_path: Path) -> None:
    """The options change the loaded rows, not only the files; without them access is counted."""
    home = make_server_home(tmp_path / "home", postgres)
    home.run(*ACCESS)
    home.back_up()
    kept, changed = postgres.create(), postgres.create()
    words = ("--revoke-sessions", "--rebind-fleet", "--json")

    plain = bring_back(home, tmp_path / "plain", postgres.url(kept), "--json")
    answer = bring_back(home, tmp_path / "copy", postgres.url(changed), *words)

    assert (plain.code, answer.code) == (0, 0), answer.err
    of_files = count_access(read_documents(locate(tmp_path / "plain", {})), None)
    assert plain.result["sessions"] == of_files.sessions + 1
    assert plain.result["api_tokens"] == of_files.api_tokens + 1
    assert any("1 fleet rows belong to" in text for text in plain.document["warnings"])
    assert (answer.result["sessions"], answer.result["api_tokens"]) == (0, 0)
    assert answer.result["rebound_rows"] == 1
    assert postgres.rows(changed, "SELECT 1 FROM user_session") == []
    assert postgres.rows(changed, "SELECT 1 FROM api_token WHERE revoked_at IS NULL") == []
    (moved,) = postgres.rows(changed, "SELECT org_id FROM workers WHERE worker_id = 'moved'")
    documents = read_documents(locate(tmp_path / "copy", {}))
    assert moved == (organisation_id(documents, locate(tmp_path / "copy", {})),)
    for database in (kept, changed, home.database):
        postgres.drop(database)
