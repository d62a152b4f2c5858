"""Restores of a home with the database of its server, together or not at all."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from other_process import running
from postgres_server import Server
from program import Answer, call
from sagewai_ops.backup.report import BackupReport
from sagewai_ops.errors import PermissionDeniedError
from sagewai_ops.home.paths import locate
from sagewai_ops.home.server_record import read_server_record
from sagewai_ops.home.state_files import read_documents
from sagewai_ops.restore.access import count_access
from sagewai_ops.restore.server import ServerRestore, open_server_restore
from sagewai_ops.schema.revision_graph import HEAD
from sagewai_ops.swap import journal as swap_journal
from server_homes import ServerHome, content, facts_of, home_and_snapshot, make_server_home
from step_counter import killed
from targets import url_of

SESSION = """
import asyncio, asyncpg
async def main():
    connection = await asyncpg.connect(sys.argv[1])
    pause()
asyncio.run(main())
"""
OLD = "019_fleet_tasks"


@pytest.fixture(scope="module")
def original(
    _postgres_session: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ServerHome, BackupReport]]:
    """A home on a server, and its snapshot."""
    yield from home_and_snapshot(tmp_path_factory)


def bring_back(home: ServerHome, target: Path, database: str, *words: object) -> Answer:
    """Restore the latest snapshot to a directory and a database."""
    return call(
        *("--home", home.root, "restore", "latest", "--to", target),
        *("--database-url", home.server.url(database), *words),
    )


def public(server: Server, database: str) -> dict[str, Any]:
    """Return the content of the schema of Sagewai's tables."""
    return {key: value for key, value in content(server, database).items() if "before" not in key}


def schemas(server: Server, database: str) -> list[str]:
    """Return the schemas that restores left."""
    query = "SELECT nspname::text FROM pg_namespace WHERE nspname LIKE 'sagewai_before%' ORDER BY 1"
    return [str(name) for (name,) in server.rows(database, query)]


def test_files_and_database_are_restored(home: ServerHome, empty: str, tmp_path: Path) -> None:
    """Into an empty database: every row, definition and sequence; the home names the database."""
    answer = bring_back(home, tmp_path / "copy", empty, "--json")

    assert answer.code == 0, answer.err
    assert answer.result["server_rows"] >= 53
    assert answer.result["server_before"] == ""
    assert content(home.server, empty) == content(home.server, home.database)
    assert (tmp_path / "copy/config/admin-state.json").exists()
    record = read_server_record(tmp_path / "copy")
    assert record is not None
    assert record.database == empty
    checked = call(
        *("--home", tmp_path / "copy", "db", "check", "--json"),
        *("--url-file", _file(tmp_path, home.server.url(empty))),
    )
    assert (checked.code, checked.result["findings"]) == (0, [])


def _file(directory: Path, url: str) -> Path:
    file = directory / "url"
    file.write_text(url)
    file.chmod(0o600)
    return file


def test_plan_changes_nothing(home: ServerHome, empty: str, tmp_path: Path) -> None:
    """A dry run meets what a run would meet."""
    answer = bring_back(home, tmp_path / "copy", empty, "--dry-run")
    refused = bring_back(home, tmp_path / "copy", home.database, "--dry-run")

    assert answer.code == 0, answer.err
    assert "rows in 65 tables" in answer.out
    assert (schemas(home.server, empty), content(home.server, empty)) == ([], content_of_none(home))
    assert refused.code == 15


def content_of_none(home: ServerHome) -> dict[str, Any]:
    """Return the content of an empty database."""
    name = home.server.create()
    found = content(home.server, name)
    home.server.drop(name)
    return found


def test_database_with_tables_needs_replace(home: ServerHome, tmp_path: Path) -> None:
    """The previous tables are kept in a schema; an undo of both brings them back, and a second."""
    server = home.server
    database = server.at(OLD)
    server.run(database, "INSERT INTO sessions (session_id, agent_name) VALUES ('old', 'a')")
    before = content(server, database)
    target = tmp_path / "copy"
    target.mkdir()
    (target / "old").write_text("old")
    url = _file(tmp_path, server.url(database))

    refused = bring_back(home, target, database)
    assert (refused.code, content(server, database)) == (15, before)
    answer = bring_back(home, target, database, "--replace", "--json")

    assert answer.code == 0, answer.err
    (kept,) = schemas(server, database)
    assert answer.result["server_before"] == kept
    assert server.rows(database, f"SELECT session_id FROM {kept}.sessions") == [("old",)]
    assert server.rows(database, "SELECT count(*) FROM public.sessions") == [(50,)]
    undone = call("--home", target, "restore", "--undo", "--url-file", url)
    assert undone.code == 0, undone.err
    assert (target / "old").read_text() == "old"
    assert server.rows(database, "SELECT session_id FROM public.sessions") == [("old",)]
    (again,) = schemas(server, database)
    assert again != kept
    assert call("--home", target, "restore", "--undo", "--url-file", url).code == 0
    assert server.rows(database, "SELECT count(*) FROM public.sessions") == [(50,)]
    assert not (target / "old").exists()
    server.drop(database)


def test_home_and_its_own_database(
    tmp_path: Path, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variable names it, as for Sagewai; --only db leaves the other files as they are."""
    made = make_server_home(tmp_path / "home", postgres)
    made.back_up()
    monkeypatch.setenv("SAGEWAI_DATABASE_URL", made.environment["SAGEWAI_DATABASE_URL"])
    words = ("--home", made.root, "restore", "latest", "--replace")
    (made.root / "config/new").write_text("new")
    made.run("DELETE FROM sessions")

    both = call(*words)
    rows = postgres.rows(made.database, "SELECT count(*) FROM public.sessions")
    assert (both.code, rows, (made.root / "config/new").exists()) == (0, [(50,)], False), both.err
    (made.root / "config/new").write_text("new")
    made.run("DELETE FROM sessions")
    refused = call(*words[:-1], "--only", "db")
    part = call(*words, "--only", "db")

    rows = postgres.rows(made.database, "SELECT count(*) FROM public.sessions")
    assert (refused.code, part.code, rows) == (15, 0, [(50,)]), part.err
    assert (made.root / "config/new").exists()
    record = read_server_record(made.root)
    assert record is not None
    assert record.database == made.database
    assert len(schemas(postgres, made.database)) == 2
    made.run("DELETE FROM sessions")
    config = call(*words, "--only", "config")
    assert (config.code, postgres.rows(made.database, "SELECT 1 FROM public.sessions")) == (0, [])
    postgres.drop(made.database)


def test_database_needs_a_url(home: ServerHome, tmp_path: Path) -> None:
    """Never the home's own database for a copy; files alone are requested by name."""
    words = ("--home", home.root, "restore", "latest", "--to", tmp_path / "copy")

    refused = call(*words)
    files = call(*words, "--without-database", "--rebind-fleet", "--json")

    assert refused.code == 2
    assert "--without-database" in refused.err
    assert files.code == 0, files.err
    copy = locate(tmp_path / "copy", {})
    in_documents = count_access(read_documents(copy), None)
    assert count_access({}, copy.database).api_tokens  # in the unused file, and not counted
    access = {name: files.result[name] for name in ("sessions", "api_tokens", "fleet_rows")}
    assert access == asdict(in_documents)
    assert files.result["rebound_rows"] == 0


def test_other_session_is_named(home: ServerHome, empty: str, tmp_path: Path) -> None:
    """Exit 15, and nothing is restored."""
    with running(SESSION, home.server.url(empty)):
        answer = bring_back(home, tmp_path / "copy", empty)

    assert answer.code == 15
    assert "session of postgres (server process " in answer.err
    assert not (tmp_path / "copy").exists()


def test_row_that_differs_rolls_everything_back(
    home: ServerHome, empty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that stores another value than it was sent: 20, both sides as before."""
    compare = ServerRestore.compare

    def changed(session: ServerRestore) -> None:
        session.run(lambda c: c.execute("UPDATE public.sessions SET agent_name = 'x'"))
        compare(session)

    monkeypatch.setattr(ServerRestore, "compare", changed)

    answer = bring_back(home, tmp_path / "copy", empty)

    assert answer.code == 20
    assert "table sessions differs" in answer.err
    assert not (tmp_path / "copy").exists()
    assert schemas(home.server, empty) == []


def test_snapshot_at_an_older_revision(tmp_path: Path, postgres: Server) -> None:
    """It is restored at its own; the upgrade is offered, and works."""
    old = make_server_home(tmp_path / "home", postgres, revision=OLD)
    old.back_up()
    database = postgres.create()

    answer = bring_back(old, tmp_path / "copy", database)

    assert answer.code == 0
    assert f"at revision {OLD}, not at {HEAD}: sagewai-ops db upgrade" in answer.err
    url = _file(tmp_path, postgres.url(database))
    assert call("--home", tmp_path / "copy", "db", "upgrade", "--url-file", url).code == 0
    postgres.drop(database)
    postgres.drop(old.database)


@pytest.mark.parametrize(
    "outcome", ["rolled back", "completed"], ids=["before the commit", "after it"]
)
def test_killed_run_ends_in_old_or_new_for_both(
    home: ServerHome, empty: str, tmp_path: Path, outcome: str
) -> None:
    """Killed at the commit or right after it; other commands refuse until it is recovered."""
    committed = outcome == "completed"
    target = tmp_path / "copy"
    target.mkdir()
    (target / "old").write_text("old")
    url = _file(tmp_path, home.server.url(empty))

    def run() -> None:
        def kill(*_arguments: object) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        with pytest.MonkeyPatch.context() as patch:
            if committed:
                patch.setattr(swap_journal, "complete", kill)
            else:
                patch.setattr(ServerRestore, "commit", kill)
            bring_back(home, target, empty, "--replace")

    assert killed(run)

    assert call("--home", target, "verify-perms", "--fix").code == 11
    assert call("--home", target, "recover").code == 2
    answer = call("--home", target, "recover", "--url-file", url, "--json")
    assert answer.code == 0, answer.err
    assert answer.result["recovered"][0]["outcome"] == outcome
    assert (target / "old").exists() is not committed
    assert bool(schemas(home.server, empty)) is committed
    rows = home.server.rows(empty, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
    assert rows == [(65 if committed else 0,)]


def test_unauthentic_sql_runs_for_no_superuser(
    home: ServerHome, empty: str, tmp_path: Path
) -> None:
    """Its writer is unknown without the key, and a superuser's SQL may run programs."""
    facts = facts_of(home.back_up())
    url = url_of(home.server, empty)
    with (
        pytest.raises(PermissionDeniedError, match="not authentic"),
        open_server_restore(url, "sagewai_before_restore_x", replace=False) as session,
    ):
        session.expect(facts, is_authentic=False)
