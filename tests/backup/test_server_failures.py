"""Snapshots of servers that restart, cancel, or whose snapshot directory is full."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from postgres_server import Server
from program import PATIENCE_SECONDS, call
from sagewai_ops.database.postgres.snapshot_session import SnapshotSession
from server_homes import ServerHome, content, facts_of, make_server_home, restore
from targets import small_directory

BIG = "CREATE TABLE big AS SELECT n, md5(n::text) || md5((n + 1)::text) AS a FROM generate_series"


@pytest.fixture
def home(tmp_path: Path, postgres: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerHome]:
    """A home with a table of 14 MB on a server, which the variable names."""
    made = make_server_home(tmp_path / "home", postgres)
    made.run(f"{BIG}(1, 200000) n")
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SAGEWAI_HOME", str(made.root))
    yield made
    postgres.drop(made.database)


def at_second_chunk(monkeypatch: pytest.MonkeyPatch, action: Any) -> None:
    """Act while the rows of the large table arrive."""
    copy = SnapshotSession.copy

    def acting(
        session: SnapshotSession, *words: Any, **options: Any
    ) -> Generator[bytes, None, int]:
        chunks, number = copy(session, *words, **options), 0
        while True:
            try:
                chunk = next(chunks)
            except StopIteration as end:
                return int(end.value)
            number += 1
            if words[1] == "big" and number == 2:
                action()
            yield chunk

    monkeypatch.setattr(SnapshotSession, "copy", acting)


def test_server_that_restarts_while_it_is_read(
    home: ServerHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 19 in two lines, no snapshot, nothing left; the next run succeeds."""
    with monkeypatch.context() as patch:
        at_second_chunk(patch, home.server.restart)
        answer = call("backup")

    assert (answer.code, len(answer.err.splitlines())) == (19, 2), answer.err
    assert [*home.snapshots.iterdir()] == []
    assert call("backup").code == 0


def test_session_that_an_administrator_ends(
    home: ServerHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for one session."""
    end = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = 'sagewai-ops'"
    )
    at_second_chunk(monkeypatch, lambda: home.run(end))

    answer = call("backup")

    assert (answer.code, len(answer.err.splitlines())) == (19, 2), answer.err
    assert [*home.snapshots.iterdir()] == []


def test_full_snapshot_directory(home: ServerHome) -> None:
    """Exit 13 in two lines, and no partial; the earlier snapshot remains."""
    with small_directory(home.snapshots, "4M"):
        home.snapshots.chmod(0o700)
        first = call("backup", "--exclude-table", "big", "--json")
        before = sorted(home.snapshots.iterdir())

        answer = call("backup")

        assert first.code == 0, first.err
        assert (answer.code, len(answer.err.splitlines())) == (13, 2), answer.err
        assert sorted(home.snapshots.iterdir()) == before


@pytest.fixture
def standby(postgres: Server) -> Iterator[Server]:
    """A standby of the default server that ends what its replay waits for at once."""
    made = Server(postgres.installation)
    made.follow(postgres, "max_standby_streaming_delay = 0")
    yield made
    made.stop()


def replayed(standby: Server, primary: Server) -> None:
    """Wait until a standby has all that its primary wrote."""
    ((position,),) = primary.rows("postgres", "SELECT pg_current_wal_insert_lsn()::text")
    query = "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn"
    deadline = time.monotonic() + PATIENCE_SECONDS
    while standby.rows("postgres", query, position) != [(True,)]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_standby(
    home: ServerHome, standby: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A snapshot of one is whole; where replay cancels it, the hint is the setting that helps."""
    primary = home.server
    replayed(standby, primary)
    reader = ServerHome(home.root, standby, home.database)

    report = reader.back_up()

    assert facts_of(report).standby
    assert facts_of(report).lsn
    restored = restore(report, primary, tmp_path / "there")
    assert content(primary, restored) == content(primary, home.database)
    primary.drop(restored)

    def vacuum() -> None:
        home.run("DELETE FROM big WHERE n > 10", "VACUUM big")
        time.sleep(1.0)  # it is replayed only when the session can end

    monkeypatch.setenv("SAGEWAI_DATABASE_URL", standby.url(home.database))
    before = sorted(home.snapshots.iterdir())
    with monkeypatch.context() as patch:
        at_second_chunk(patch, vacuum)
        answer = call("backup")

    error, hint = answer.err.splitlines()
    assert answer.code == 19
    assert "conflict with recovery" in error
    assert "hot_standby_feedback" in hint
    assert sorted(home.snapshots.iterdir()) == before
    refused = call("restore", "latest", "--replace")
    assert (refused.code, len(refused.err.splitlines())) == (14, 2), refused.err
    assert "read-only" in refused.err
