"""The server is stopped at once and started again, as `pg_ctl -m immediate` does, during an export.

Its processes end and it recovers from its log, so this is more than the end of a session.
"""

from __future__ import annotations

import importlib
import shlex
import sqlite3
import sys
from collections.abc import Callable
from typing import Any

import pytest

from postgres_server import Server
from program import Answer, call
from sagewai_ops.database.postgres.transaction import LOST, UnknownOutcomeError
from sagewai_ops.export import target_session
from sagewai_ops.export.target_session import Session
from sagewai_ops.export.workdir import export_directory
from sagewai_ops.home.paths import Home
from sagewai_ops.home.server_record import PLACE
from sagewai_ops.swap.pending import require_settled
from targets import at_head, counts_of, home_with, state_of

RESUME = "sagewai-ops export-to-postgres URL --resumable  # continues"
AGAIN = "sagewai-ops: warning: nothing was changed: Sagewai can be started again"
CHANGE = """
import sqlite3, sys
with sqlite3.connect(sys.argv[1]) as connection:
    connection.execute("UPDATE agent_runs SET output_text = 'later' WHERE rowid % 3 = 0")
    connection.execute("DELETE FROM rate_limits")
    connection.execute("UPDATE org SET name = name || ' later'")
"""


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home with a little in every table, and 2 MB in one."""

    def enlarge(connection: sqlite3.Connection) -> None:
        connection.execute("UPDATE agent_runs SET output_text = hex(randomblob(500))")

    return home_with(
        tmp_path_factory.mktemp("original") / "home", enlarge, rows_in={"agent_runs": 2000}
    )


@pytest.fixture
def database(postgres: Server) -> str:
    """A database at head, whose commits are in the log when they are answered."""
    return _durable(postgres, at_head(postgres))


def _durable(server: Server, database: str) -> str:
    server.run("postgres", f"ALTER DATABASE {database} SET synchronous_commit = on")
    return database


def export(home: Home, server: Server, database: str, *words: object) -> Answer:
    """Run the command in this process."""
    url = server.url(database)
    return call("--home", home.root, "export-to-postgres", url, *words)


def live_first(home: Home, server: Server, database: str) -> Answer:
    """Run it while the home is in use; it changes until it has stopped."""
    program = home.root.parent / "stop.py"
    program.write_text(CHANGE)
    command = shlex.join([sys.executable, str(program), str(home.database)])
    return export(home, server, database, "--live-first", "--stop-command", command)


def is_verified(home: Home, server: Server, database: str) -> bool:
    """Return whether every row of the target is that of the home."""
    url = server.url(database)
    answer = call("--home", home.root, "export-to-postgres", "--verify-only", url)
    return bool(answer.code == 0)


def at_call(
    monkeypatch: pytest.MonkeyPatch, step: str, number: int, action: Callable[[], None]
) -> list[int]:
    """Do something before a call of a function; return the numbers of the calls.

    Args:
        step: Called in the main thread: a server ends with the thread that started it.
    """
    place, _, name = step.rpartition(".")
    try:
        owner: Any = importlib.import_module(place)
    except ModuleNotFoundError:
        place, _, kind = place.rpartition(".")
        owner = getattr(importlib.import_module(place), kind)
    function = getattr(owner, name)
    calls: list[int] = []

    def replacement(*arguments: object, **options: object) -> object:
        calls.append(len(calls) + 1)
        if len(calls) == number:
            action()
        return function(*arguments, **options)

    monkeypatch.setattr(owner, name, replacement)
    return calls


COPY = "asyncpg.connection.Connection.copy_to_table"
LIVE_FIRST = {
    "bulk": (COPY, 8),
    "comparison of the bulk": ("asyncpg.connection.Connection.copy_from_query", 20),
    "before the stop": ("sagewai_ops.export.live_first.wait_until_stopped", 1),
    "second copy": ("sagewai_ops.export.live_first.start_workers", 1),
    "deletes": ("sagewai_ops.export.delta._delete", 2),
    "rows of the delta": ("sagewai_ops.export.delta.send_tables", 1),
    "comparison": ("sagewai_ops.export.delta_comparison._compare_rows", 3),
}


@pytest.mark.parametrize("moment", LIVE_FIRST)
def test_live_first_is_rolled_back(
    home: Home, postgres: Server, database: str, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Exit 19 in two lines; nothing is left on either side, and a second run arrives."""
    before = state_of(postgres, database)
    step, number = LIVE_FIRST[moment]

    with monkeypatch.context() as patched:
        calls = at_call(patched, step, number, postgres.restart)
        answer = live_first(home, postgres, database)

    lines = answer.err.splitlines()
    assert len(calls) >= number
    assert answer.code == 19, answer.err
    assert (AGAIN in lines) == ("bulk" not in moment)
    assert len([line for line in lines if line != AGAIN]) == 2, answer.err
    assert state_of(postgres, database) == before
    assert not list(export_directory(home).glob(".*"))
    assert not (home.root / PLACE).exists()
    assert live_first(home, postgres, database).code == 0
    assert is_verified(home, postgres, database)


@pytest.mark.parametrize("mode", ["--live-first", "--resumable"])
def test_a_restart_at_the_commit_is_found_out(
    home: Home, postgres: Server, database: str, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """It came before the COMMIT: nothing was changed, and nothing is pending."""
    target = database if mode == "--live-first" else _durable(postgres, postgres.create())
    run = live_first if mode == "--live-first" else resumable

    with monkeypatch.context() as patched:
        at_call(patched, "sagewai_ops.export.target_session._commit", 1, postgres.restart)
        answer = run(home, postgres, target)

    assert answer.code == 19, answer.err
    assert "connection lost during the commit; nothing was changed" in answer.err
    assert counts_of(postgres, target) == {}
    require_settled(home.root)
    again = run(home, postgres, target)
    assert again.code == 0, again.err
    assert is_verified(home, postgres, target)


@pytest.mark.parametrize("mode", ["--live-first", "--resumable"])
def test_a_restart_after_the_commit_is_found_out(
    home: Home, postgres: Server, database: str, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Its answer is lost: everything is committed, and the home records where its database is."""
    target = database if mode == "--live-first" else _durable(postgres, postgres.create())
    run = live_first if mode == "--live-first" else resumable
    commit = target_session._commit

    async def lose(session: Session, committing: Any) -> None:
        await commit(session, committing)
        session.committed = False
        postgres.restart()
        raise UnknownOutcomeError(LOST)

    monkeypatch.setattr(target_session, "_commit", lose)
    answer = run(home, postgres, target)

    assert answer.code == 19, answer.err
    assert "connection lost during the commit; everything is committed" in answer.err
    assert (home.root / PLACE).exists()
    assert is_verified(home, postgres, target)


@pytest.mark.parametrize("mode", ["--live-first", "--resumable"])
def test_a_server_that_stays_stopped_at_the_commit_leaves_it_unknown(
    home: Home, postgres: Server, database: str, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """`recover` finds out when it is started, and a second run arrives."""
    target = database if mode == "--live-first" else _durable(postgres, postgres.create())
    run = live_first if mode == "--live-first" else resumable
    file = home.root.parent / "url"
    file.write_text(postgres.url(target))
    file.chmod(0o600)

    with monkeypatch.context() as patched:
        at_call(patched, "sagewai_ops.export.target_session._commit", 1, postgres.halt)
        answer = run(home, postgres, target)
    postgres.resume()

    assert answer.code == 19, answer.err
    assert "committed or not, unknown" in answer.err
    assert "recover --url-file FILE" in answer.err
    assert AGAIN not in answer.err
    assert counts_of(postgres, target) == {}
    recovered = call("--home", home.root, "recover", "--url-file", file)
    assert recovered.code == 0, recovered.err
    assert not (home.root / PLACE).exists()
    again = run(home, postgres, target)
    assert again.code == 0, again.err
    assert is_verified(home, postgres, target)


def resumable(home: Home, server: Server, database: str, *words: object) -> Answer:
    """Begin a move, or continue it."""
    return export(home, server, database, "--resumable", *words)


RESUMABLE = {
    "ranges": (COPY, 30),
    "comparison": ("asyncpg.connection.Connection.copy_from_query", 20),
    "sequences": ("sagewai_ops.export.last_transaction.set_sequences", 1),
    "move": ("sagewai_ops.export.incoming.move_to", 1),
}


@pytest.mark.parametrize("moment", RESUMABLE)
def test_a_resumable_move_is_continued(
    home: Home, postgres: Server, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Exit 19 with the next command; the ranges that were recorded are there, and no table is."""
    database = _durable(postgres, postgres.create())
    monkeypatch.setattr("sagewai_ops.export.ranges.RANGE_BYTES", 1)
    monkeypatch.setattr("sagewai_ops.export.ranges.RANGE_SECONDS", 0)
    step, number = RESUMABLE[moment]

    def restart() -> None:
        postgres.run("postgres", "CHECKPOINT")  # commits of ranges need not be in the log at once
        postgres.restart()

    with monkeypatch.context() as patched:
        calls = at_call(patched, step, number, restart)
        answer = resumable(home, postgres, database)

    assert len(calls) >= number
    assert answer.code == 19, answer.err
    assert RESUME in answer.err
    assert counts_of(postgres, database) == {}
    assert not (home.root / PLACE).exists()
    again = resumable(home, postgres, database, "--json")
    assert again.code == 0, again.err
    assert again.result["resumable"]["rows_before"] > 0
    assert is_verified(home, postgres, database)
