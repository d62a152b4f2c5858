"""Imports that are interrupted, refused or sent other rows: nothing is changed or left."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from postgres_server import Server
from program import COMMAND, call
from returned_homes import (
    bring_back,
    value_of,
)
from sagewai_ops.database.postgres.snapshot_session import SnapshotSession
from sagewai_ops.errors import OpsError
from sagewai_ops.home.paths import DATABASE, locate
from sagewai_ops.operations import import_from_postgres as importing
from sagewai_ops.process import parent
from sagewai_ops.restore import row_writer
from sagewai_ops.restore import to_sqlite as to_sqlite_module
from sagewai_ops.restore.compare_sqlite import compare_database
from sagewai_ops.restore.server_stream import ServerStream
from sagewai_ops.snapshots import database_check
from sagewai_ops.snapshots.server_database import StoredTable
from server_homes import ServerHome, make_server_home
from small_homes import everything_of
from step_counter import killed
from targets import url_of


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE sessions SET summary = 'later' WHERE session_id = '17'",
        "INSERT INTO sessions (session_id, agent_name) VALUES ('later', '')",
    ],
)
def test_rows_that_are_written_during_the_import_are_noticed(
    postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    """By a session that has ended: refused before the rename; reads and VACUUM are no change."""
    made = make_server_home(tmp_path / "home", postgres)
    made.run("DELETE FROM workflow_events")
    statements = ["VACUUM FREEZE sessions", "SELECT * FROM sessions FOR UPDATE"]
    compare = compare_database

    def late(*words: Any, **options: Any) -> None:
        compare(*words, **options)
        for each in statements:
            made.run(each)

    monkeypatch.setattr(importing, "compare_database", late)
    unchanged = bring_back(made, tmp_path / "unchanged")
    statements = [statement]
    changed = bring_back(made, tmp_path / "back")

    assert (unchanged.code, changed.code) == (0, 15), unchanged.err
    assert "changed during the import: public.sessions" in changed.err
    assert not (tmp_path / "back").exists()
    postgres.drop(made.database)


def test_a_home_that_is_written_during_the_import_is_noticed(
    small: ServerHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its row would go with the previous database."""
    home = tmp_path / "home"
    assert call("--home", home, "init").code == 0
    compare = compare_database

    def late(*words: Any, **options: Any) -> None:
        compare(*words, **options)
        with contextlib.closing(sqlite3.connect(home / DATABASE)) as connection:
            connection.execute("INSERT INTO notification_channels (channel_type) VALUES ('x')")
            connection.commit()

    monkeypatch.setattr(importing, "compare_database", late)
    answer = bring_back(small, home)

    assert answer.code == 15
    assert "its database was changed during the import" in answer.err
    assert value_of(home, "SELECT channel_type FROM notification_channels") == "x"


def test_a_server_that_sends_more_rows_than_it_counted(
    small: ServerHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends the import after the first piece, before they fill the disk."""
    copy = SnapshotSession.copy
    pieces: list[bytes] = []

    def endless(self: SnapshotSession, schema: str, table: str, *words: Any, **options: Any) -> Any:
        received = b"".join(copy(self, schema, table, *words, **options))
        while table == "sessions" and len(pieces) < 1000:
            pieces.append(received)
            yield received * 100
        yield received

    monkeypatch.setattr(SnapshotSession, "copy", endless)
    answer = bring_back(small, tmp_path / "back")

    assert answer.code == 19
    assert "sessions: more than 50 rows" in answer.err
    assert len(pieces) < 10
    assert [*tmp_path.iterdir()] == []


def test_a_session_that_comes_during_the_import_is_noticed(
    small: ServerHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows would be lost: refused before the rename."""
    compare = compare_database
    with contextlib.ExitStack() as stack:

        def late(*words: Any, **options: Any) -> None:
            compare(*words, **options)
            stack.enter_context(small.server.session(small.database, "SELECT 1"))

        monkeypatch.setattr(importing, "compare_database", late)
        answer = bring_back(small, tmp_path / "back")

    assert answer.code == 15
    assert [*tmp_path.iterdir()] == []


def test_another_value_is_20(
    small: ServerHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value that the server sends differently the second time ends the import."""
    copy, seen = SnapshotSession.copy, set[str]()

    def tampered(
        self: SnapshotSession, schema: str, table: str, *words: Any, **options: Any
    ) -> Generator[bytes, None, int]:
        rows = copy(self, schema, table, *words, **options)
        if table != "sessions" or table not in seen:
            seen.add(table)
            return (yield from rows)
        count = 0
        for chunk in rows:
            yield chunk.replace(b"17\t", b"71\t", 1)
            count += chunk.count(b"\n")
        return count

    monkeypatch.setattr(SnapshotSession, "copy", tampered)

    answer = bring_back(small, tmp_path / "back")

    assert answer.code == 20, answer.err
    assert "sessions.session_id of 71, default differs from the server" in answer.err
    assert "db check" not in answer.err  # of a home that was not written
    assert [*tmp_path.iterdir()] == []


def test_a_session_that_the_server_ends_is_19(small: ServerHome, tmp_path: Path) -> None:
    """In the middle of the rows: nothing is left."""
    ended = threading.Event()

    def end(stage: str, _done: int, _total: int) -> None:
        if stage == "convert" and not ended.is_set():
            ended.set()
            query = (
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                f" WHERE datname = '{small.database}'"
            )
            thread = threading.Thread(target=small.server.rows, args=("postgres", query))
            thread.start()
            thread.join()

    url = url_of(small.server, small.database)
    with pytest.raises(OpsError) as raised:
        importing.import_from_postgres(
            url, locate(tmp_path / "back", {}), importing.ImportOptions(), progress=end
        )

    assert raised.value.exit_code == 19
    assert ended.is_set()
    assert [*tmp_path.iterdir()] == []


def contents_of(root: Path) -> dict[str, tuple[int, bytes | str]]:
    """Return the modes and contents below a directory; the staging changes times."""
    return {path: (mode, text) for path, (mode, _time, text) in everything_of(root).items()}


@pytest.mark.parametrize("stage", ["convert", "compare"])
@pytest.mark.parametrize("target", ["new", "init"])
def test_a_server_that_restarts_is_19(
    small: ServerHome,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    target: str,
) -> None:
    """At once, while rows are read the first or the second time: two lines, nothing is left."""
    if target == "init":
        assert call("--home", tmp_path / "home", "init").code == 0
    before = contents_of(tmp_path)
    pieces, read = ServerStream._pieces, []

    def restart(self: ServerStream, stored: StoredTable) -> Iterator[bytes]:
        if stored.name == "sessions":
            read.append(stored.name)
            if len(read) == (1 if stage == "convert" else 2):
                small.server.restart()
        return pieces(self, stored)

    with monkeypatch.context() as patch:
        patch.setattr(ServerStream, "_pieces", restart)
        answer = bring_back(small, tmp_path / "home")

    assert (answer.code, len(answer.err.splitlines())) == (19, 2), answer.err
    assert contents_of(tmp_path) == before
    assert bring_back(small, tmp_path / "home").code == 0


def test_a_writer_that_ends_is_an_error(
    small: ServerHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that inserts rows is killed: nothing is left."""
    insert = row_writer.ProcessWriter.insert

    def kill(self: row_writer.ProcessWriter, *words: Any) -> None:
        self._process.kill()
        insert(self, *words)

    monkeypatch.setattr(row_writer, "LEAST_BYTES", 0)
    monkeypatch.setattr(row_writer.ProcessWriter, "insert", kill)
    answer = bring_back(small, tmp_path / "back")

    assert (answer.code, len(answer.err.splitlines())) == (1, 2), answer.err
    assert "writer process: ended with status -9" in answer.err
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("is_interrupted", [False, True])
def test_a_writer_that_is_stopped_is_ended(
    small: ServerHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_interrupted: bool
) -> None:
    """The owner of a home may stop it, and root's process would not end."""
    insert = row_writer.ProcessWriter.insert

    def stop(self: row_writer.ProcessWriter, *words: Any) -> None:
        self._process.send_signal(signal.SIGSTOP)
        if is_interrupted:
            raise OpsError("interrupted")
        insert(self, *words)

    monkeypatch.setattr(row_writer, "LEAST_BYTES", 0)
    monkeypatch.setattr(parent, "_PAUSE_SECONDS", 600 if is_interrupted else 0.1)
    monkeypatch.setattr(row_writer.ProcessWriter, "insert", stop)
    answer = bring_back(small, tmp_path / "back")

    assert (answer.code, len(answer.err.splitlines())) == (1, 2), answer.err
    cause = "interrupted" if is_interrupted else "writer process: ended with status -9"
    assert cause in answer.err
    assert [*tmp_path.iterdir()] == []


def test_a_lack_of_memory_is_no_damage(
    small: ServerHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither of the server's rows nor of the database that is built of them."""

    def fail(*_words: object) -> None:
        raise MemoryError

    monkeypatch.setattr(to_sqlite_module._Building, "_convert", fail)
    answer = bring_back(small, tmp_path / "back")

    assert (answer.code, len(answer.err.splitlines())) == (1, 2), answer.err
    assert "not enough memory to convert its rows" in answer.err
    assert [*tmp_path.iterdir()] == []


def test_what_sqlite_refuses_in_the_writer_is_reported(
    small: ServerHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its message, in two lines."""
    monkeypatch.setattr(row_writer, "LEAST_BYTES", 0)
    monkeypatch.setattr(to_sqlite_module._Building, "_statement", lambda *_: "INSERT INTO nothing")
    answer = bring_back(small, tmp_path / "back")

    assert (answer.code, len(answer.err.splitlines())) == (16, 2), answer.err
    assert "syntax error" in answer.err
    assert [*tmp_path.iterdir()] == []


def test_a_signal_leaves_nothing(
    original: tuple[ServerHome, dict[str, list[Any]]], tmp_path: Path
) -> None:
    """SIGTERM: exit 143."""
    home, _before = original
    url = home.server.url(home.database)
    command = [*COMMAND, "import-from-postgres", url, "--to", str(tmp_path / "back")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while not [*tmp_path.glob(".back.restore-*/db/sagewai.db")]:
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        _, text = process.communicate()

    assert process.returncode == 143, text
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("least", [row_writer.LEAST_BYTES, 0], ids=["here", "process"])
def test_a_killed_run_leaves_the_target(small: ServerHome, tmp_path: Path, least: int) -> None:
    """Killed after the rows are written: the next run removes the staging and completes."""

    def work() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(row_writer, "LEAST_BYTES", least)
            patch.setattr(
                to_sqlite_module._Building,
                "finish",
                lambda *_: os.kill(os.getpid(), signal.SIGKILL),
            )
            bring_back(small, tmp_path / "back")

    assert killed(work)
    assert not (tmp_path / "back").exists()
    assert bring_back(small, tmp_path / "back").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "back.exports"]


def test_damage_that_sqlite_finds_is_16(
    small: ServerHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database is checked whole before the rename."""
    examine = database_check.examine_database

    def damaged(*words: Any) -> Any:
        return replace(examine(*words), integrity=("row 1 missing",))

    monkeypatch.setattr(database_check, "examine_database", damaged)

    answer = bring_back(small, tmp_path / "back")

    assert answer.code == 16
    assert [*tmp_path.iterdir()] == []
