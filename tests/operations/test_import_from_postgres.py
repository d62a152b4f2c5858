"""Imports of a server's tables to the SQLite file of a home."""

from __future__ import annotations

import contextlib
import json
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
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import postgres_server
from home_builder import build_home
from json_schemas import problems
from postgres_server import Server
from program import COMMAND, Answer, call, run
from real_homes import unpack
from returned_homes import (
    BAD_ROWS,
    ODD_ROWS,
    STORED,
    learnings_of,
    moved,
    value_of,
    values_of,
)
from sagewai_ops.database.postgres.snapshot_session import SnapshotSession
from sagewai_ops.errors import OpsError
from sagewai_ops.home.paths import COMPANION, DATABASE, locate
from sagewai_ops.home.server_record import read_server_record, record_of, write_server_record
from sagewai_ops.operations import import_from_postgres as importing
from sagewai_ops.restore import to_sqlite as to_sqlite_module
from sagewai_ops.restore.compare_sqlite import compare_database
from sagewai_ops.schema import sqlite_head
from sagewai_ops.snapshots import database_check
from server_homes import ServerHome, content, make_server_home
from small_homes import everything_of
from step_counter import killed
from targets import at_head, counts_of, home_with, state_of, url_of

PASSWORD = "s3cr3t @:/ Wort"
OLD = "019_fleet_tasks"


def bring_back(home: ServerHome, target: Path, *words: object) -> Answer:
    """Import the database of a home to a directory."""
    url = home.server.url(home.database)
    return call("import-from-postgres", url, "--to", target, *words)


def valid(answer: Answer) -> dict[str, Any]:
    """Return a JSON answer's result, after its schema was checked, and the report's."""
    assert problems("envelope", answer.document) == []
    assert problems("import-from-postgres", answer.result) == []
    files = answer.result["files"]
    if "report" in files:
        assert json.loads(Path(files["report"]).read_text()) == answer.result
    return answer.result


@pytest.fixture(scope="module")
def original(
    _postgres_session: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ServerHome, dict[str, list[Any]]]]:
    """A home of the real Sagewai on a server; and its values before the move."""
    if not postgres_server.installations():
        pytest.skip("no PostgreSQL here")
    server = postgres_server.running(postgres_server.installations()[0])
    home = locate(unpack("real-small", tmp_path_factory.mktemp("original")), {})
    before = values_of(home.root)
    made = moved(home, server)
    yield made, before
    server.drop(made.database)


@pytest.fixture(scope="module")
def small(
    _postgres_session: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerHome]:
    """A small home on a server, without rows that a home cannot have."""
    if not postgres_server.installations():
        pytest.skip("no PostgreSQL here")
    server = postgres_server.running(postgres_server.installations()[0])
    made = make_server_home(tmp_path_factory.mktemp("small") / "home", server)
    made.run("DELETE FROM workflow_events")
    yield made
    server.drop(made.database)


def test_a_home_that_moved_comes_back(
    original: tuple[ServerHome, dict[str, list[Any]]], tmp_path: Path
) -> None:
    """Every value of all 55 tables; the server is unchanged, and the next steps name both sides."""
    home, before = original
    state = state_of(home.server, home.database)

    answer = bring_back(home, tmp_path / "back", "--json")

    assert answer.code == 0, answer.err
    result = valid(answer)
    after = values_of(tmp_path / "back")
    for name in before:
        assert after[name] == before[name], name
    assert (result["imported"], result["rows"]) == (True, sum(map(len, before.values())))
    assert result["findings"] == []
    assert state_of(home.server, home.database) == state
    assert sorted(path.name for path in (tmp_path / "back/db").iterdir()) == ["sagewai.db"]
    assert any(line.startswith("unset SAGEWAI_DATABASE_URL") for line in result["cut_over"])
    checked = call("--home", tmp_path / "back", "db", "check", "--json")
    assert (checked.code, checked.result["findings"]) == (0, [])
    modes = {os.stat(tmp_path / "back" / name).st_mode & 0o777 for name in (".", "db", "secrets")}
    assert modes == {0o700}
    assert os.stat(tmp_path / "back" / DATABASE).st_mode & 0o777 == 0o600


def test_it_moves_again(original: tuple[ServerHome, dict[str, list[Any]]], tmp_path: Path) -> None:
    """The imported home exports, and the server has the same rows as before."""
    home, _before = original
    assert bring_back(home, tmp_path / "back").code == 0

    again = moved(locate(tmp_path / "back", {}), home.server)

    assert content(home.server, again.database) == content(home.server, home.database)


def test_every_version(every_postgres: Server, tmp_path: Path) -> None:
    """Odd values, each in the form that Sagewai writes to SQLite."""
    made = make_server_home(tmp_path / "home", every_postgres)
    made.run("DELETE FROM workflow_events", *ODD_ROWS)

    answer = bring_back(made, tmp_path / "back", "--json")

    assert (answer.code, valid(answer)["findings"]) == (0, []), answer.err
    for table, column, where, expected in STORED:
        value = value_of(tmp_path / "back", f"SELECT {column} FROM {table} WHERE {where}")
        assert (value, type(value)) == (expected, type(expected)), (table, column, where)
    every_postgres.drop(made.database)


def test_findings_change_nothing_or_are_set_apart(postgres: Server, tmp_path: Path) -> None:
    """Exit 4 and no home; or 3, and every row and value is in a file of its own."""
    made = make_server_home(tmp_path / "home", postgres)
    made.run(*BAD_ROWS.values())

    plan = bring_back(made, tmp_path / "back", "--plan", "--json")
    refused = bring_back(made, tmp_path / "back", "--json")
    there = (tmp_path / "back").exists()
    answer = bring_back(made, tmp_path / "back", "--on-invalid", "quarantine", "--json")

    assert (plan.code, refused.code, answer.code, there) == (4, 4, 3, False), answer.err
    assert valid(plan)["findings"] == valid(refused)["findings"] == valid(answer)["findings"]
    assert valid(refused)["open_findings"] == len(BAD_ROWS)
    found = {
        (item["table"], item["column"], item["kind"]): item for item in answer.result["findings"]
    }
    assert found.keys() == BAD_ROWS.keys()
    file = Path(answer.result["files"]["refused"])
    assert file.stat().st_mode & 0o777 == 0o600
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert answer.result["refused"] == len(lines)
    for (table, column, kind), item in found.items():
        mine = [line for line in lines if (line["table"], line["kind"]) == (table, kind)]
        mine = [line for line in mine if line["column"] == column]
        assert len(mine) == item["count"], (table, column, kind)
        for line in mine:
            assert line["value"] is not None if kind == "unknown-column" else line["row"]
    rows = {line["row"]["session_id"] for line in lines if line["kind"] == "not-a-timestamp"}
    assert rows == {"i", "b", "y"}
    back = tmp_path / "back"
    assert value_of(back, "SELECT count(*) FROM sessions") == 50
    assert value_of(back, "SELECT count(*) FROM prompt_logs") == 0
    assert f"they are in {file}" in answer.err + str(answer.document)
    postgres.drop(made.database)


def test_rows_that_no_snapshot_reads_are_findings(postgres: Server, tmp_path: Path) -> None:
    """A table of another schema is one; a view is a warning."""
    made = make_server_home(tmp_path / "home", postgres)
    made.run(
        "DELETE FROM workflow_events",
        "CREATE MATERIALIZED VIEW own AS SELECT 1 AS x",
        "CREATE SCHEMA other",
        "CREATE TABLE other.things AS SELECT 1 AS x",
    )

    refused = bring_back(made, tmp_path / "back", "--json")
    answer = bring_back(made, tmp_path / "back", "--on-invalid", "quarantine", "--json")

    assert (refused.code, answer.code) == (4, 3)
    result = valid(answer)
    (item,) = result["findings"]
    assert (item["table"], item["kind"]) == ("other.things", "not-read")
    assert any("own" in text for text in result["notes"])
    assert (result["imported"], result["refused"], result["rows"]) == (True, 0, 50)
    postgres.drop(made.database)


def test_a_plan_changes_nothing(small: ServerHome, tmp_path: Path) -> None:
    """No file is left, also not of the directories above the target."""
    answer = bring_back(small, tmp_path / "a/b/back", "--plan", "--json")

    assert answer.code == 0, answer.err
    result = valid(answer)
    assert (result["imported"], result["rows"], result["files"]) == (False, 50, {})
    assert result["estimate_seconds"] > 0
    assert [*tmp_path.iterdir()] == []


def test_ids_of_an_export_are_named(postgres: Server, tmp_path: Path) -> None:
    """Twelve digits return, a text has become a UUID and stays one."""
    home = home_with(tmp_path / "home", rows=2)
    with contextlib.closing(sqlite3.connect(home.database)) as connection:
        for number, key in enumerate(("0123456789ab", "a text"), 1):
            change = "UPDATE harness_policies SET id = ? WHERE rowid = ?"
            assert connection.execute(change, (key, number)).rowcount == 1
        connection.commit()
    made = moved(home, postgres)

    result = valid(bring_back(made, tmp_path / "back", "--json"))

    (kept,) = [item for item in result["kept_ids"] if item["table"] == "harness_policies"]
    query = "SELECT id FROM harness_policies WHERE rowid = {}"
    assert (kept["column"], kept["count"]) == ("id", 1)
    assert kept["keys"] == [value_of(tmp_path / "back", query.format(2))]
    assert value_of(tmp_path / "back", query.format(1)) == "0123456789ab"
    postgres.drop(made.database)


def test_learnings_stay_and_the_record_goes(postgres: Server, tmp_path: Path) -> None:
    """In a home without rows only the database is replaced; an undo brings all of it back."""
    home = home_with(tmp_path / "home", vectors=28)
    made = moved(home, postgres, learnings="facts")
    with contextlib.closing(sqlite3.connect(home.database)) as connection:
        for name in sqlite_head.tables():
            connection.execute(f"DELETE FROM {name}")
        connection.execute("CREATE TABLE own (x); ")
        connection.execute("INSERT INTO own VALUES (1)")
        connection.commit()
    learned = learnings_of(home.root)
    before = everything_of(home.root)
    assert read_server_record(home.root)

    answer = bring_back(made, home.root, "--json")

    assert answer.code == 0, answer.err
    result = valid(answer)
    assert result["learnings"] == 28
    assert learnings_of(home.root) == learned != {}
    assert value_of(home.root, "SELECT x FROM own") == 1
    assert value_of(home.root, "SELECT count(*) FROM agent_runs") != 0
    assert read_server_record(home.root) is None
    assert result["previous"].startswith(f"{home.root}/.sagewai-ops-before-restore-")
    assert call("--home", home.root, "restore", "--undo").code == 0
    after = everything_of(home.root)
    assert {path: after[path] for path in before if path != "db"} == {
        path: before[path]
        for path in before
        if path != "db"  # its time changes
    }
    postgres.drop(made.database)


def test_rows_in_the_home_are_refused(small: ServerHome, tmp_path: Path) -> None:
    """Exit 15, with the command that keeps them; nothing is changed."""
    home = build_home(tmp_path / "home", rows=1, vectors=0, artifacts=False)
    before = everything_of(home.root)

    answer = bring_back(small, home.root)

    assert answer.code == 15
    assert "its database has" in answer.err
    assert "restore latest --replace --to-sqlite" in answer.err
    assert everything_of(home.root) == before


@pytest.mark.parametrize("kind", ["file", "directory", "other record", "link"])
def test_targets_that_are_refused(small: ServerHome, tmp_path: Path, kind: str) -> None:
    """What is no home, or a home of another server, is unchanged."""
    target = tmp_path / "target"
    if kind == "file":
        target.write_text("x")
    elif kind == "directory":
        (target / "things").mkdir(parents=True)
    else:
        assert call("--home", target, "init").code == 0
        if kind == "link":
            (target / DATABASE).rename(tmp_path / "elsewhere.db")
            (target / DATABASE).symlink_to(tmp_path / "elsewhere.db")
        else:
            record = record_of(url_of(small.server, "another"), {})
            write_server_record(locate(target, {}), record)
    before = everything_of(tmp_path)

    answer = bring_back(small, target)

    assert answer.code == (2 if kind in ("other record", "link") else 15), answer.err
    assert everything_of(tmp_path) == before


def test_a_new_home_of_init_is_filled(small: ServerHome, tmp_path: Path) -> None:
    """Its key and its documents stay."""
    assert call("--home", tmp_path / "home", "init").code == 0
    key = (tmp_path / "home/secrets/master.key").read_bytes()

    answer = bring_back(small, tmp_path / "home")

    assert answer.code == 0, answer.err
    assert value_of(tmp_path / "home", "SELECT count(*) FROM sessions") == 50
    assert (tmp_path / "home/secrets/master.key").read_bytes() == key


def test_without_to_it_is_the_home(small: ServerHome, tmp_path: Path) -> None:
    """And without an argument the variable names the server; the password is shown nowhere."""
    variable = small.server.tcp_url(small.database, password=PASSWORD)

    answer = run(
        *("--home", tmp_path / "home", "import-from-postgres"),
        environment={"SAGEWAI_DATABASE_URL": variable},
    )

    assert answer.code == 0, answer.err
    assert value_of(tmp_path / "home", "SELECT count(*) FROM sessions") == 50
    assert "here it is SAGEWAI_DATABASE_URL" in answer.out
    written = "".join(path.read_text() for path in (tmp_path / "home.exports").iterdir())
    for text in (answer.out, answer.err, written):
        assert "s3cr3t" not in text


def test_a_database_in_use_is_refused(small: ServerHome, tmp_path: Path) -> None:
    """Exit 15 names the session; a rehearsal proceeds, and so does a plan."""
    with small.server.session(small.database, "SELECT 1"):
        refused = bring_back(small, tmp_path / "back")
        planned = bring_back(small, tmp_path / "back", "--plan")
        rehearsed = bring_back(small, tmp_path / "live", "--allow-live", "--json")

    assert (refused.code, planned.code, rehearsed.code) == (15, 0, 3)
    assert "in use by session of" in refused.err
    assert not (tmp_path / "back").exists()
    result = valid(rehearsed)
    assert result["imported"]
    assert result["live"]
    assert "written during the import or later are not in the home" in result["notes"][-1]


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


def test_a_directory_of_litestream_goes_with_the_previous_database(
    small: ServerHome, tmp_path: Path
) -> None:
    """The same remark as after a restore."""
    home = tmp_path / "home"
    assert call("--home", home, "init").code == 0
    (home / COMPANION).mkdir()

    answer = bring_back(small, home, "--json")

    assert answer.code == 0, answer.err
    assert any(str(home / COMPANION) in note for note in valid(answer)["notes"])
    assert not (home / COMPANION).exists()


def test_a_key_that_the_server_has_twice(
    postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first row stays, and is the one compared; an import that fails leaves no directory."""
    made = make_server_home(tmp_path / "home", postgres)
    columns = "id, channel_type, config"
    made.run(
        "DELETE FROM workflow_events",
        "ALTER TABLE notification_channels DROP CONSTRAINT notification_channels_pkey CASCADE",
        f"INSERT INTO notification_channels ({columns}) VALUES (91, 'a', '1')",
        f"INSERT INTO notification_channels ({columns}) VALUES (91, 'b', '2')",
    )

    with monkeypatch.context() as patch:
        patch.setattr(importing, "_check", lambda *_: (_ for _ in ()).throw(OpsError("x")))
        failed = bring_back(made, tmp_path / "back", "--on-invalid", "quarantine")
    left = [path.name for path in tmp_path.iterdir()]
    answer = bring_back(made, tmp_path / "back", "--on-invalid", "quarantine")

    assert (failed.code, left, answer.code) == (1, ["home"], 3), answer.err
    query = "SELECT channel_type FROM notification_channels WHERE id = 91"
    assert value_of(tmp_path / "back", query) == "a"
    postgres.drop(made.database)


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


@pytest.mark.parametrize("words", [(), ("--allow-live",)])
def test_a_home_in_use_is_refused(
    small: ServerHome, tmp_path: Path, words: tuple[str, ...]
) -> None:
    """A process has its database open; --allow-live is about the server only."""
    assert call("--home", tmp_path / "home", "init").code == 0
    with subprocess.Popen(
        ["sh", "-c", "exec 9<db/sagewai.db; echo; exec sleep 100"],
        cwd=tmp_path / "home",
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout
        process.stdout.readline()
        answer = bring_back(small, tmp_path / "home", *words)
        process.kill()

    assert answer.code == 15
    assert f"pid {process.pid}" in answer.err or str(process.pid) in answer.err


def test_an_older_schema_stays_at_its_revision(postgres: Server, tmp_path: Path) -> None:
    """The upgrade is offered, and works."""
    made = make_server_home(tmp_path / "home", postgres, revision=OLD)
    made.run("DELETE FROM workflow_events")

    answer = bring_back(made, tmp_path / "back", "--json")

    assert answer.code == 0, answer.err
    assert valid(answer)["revision"] == OLD
    assert "sagewai-ops db upgrade" in str(answer.document["warnings"])
    assert call("--home", tmp_path / "back", "db", "upgrade", "--no-snapshot", "--yes").code == 0
    postgres.drop(made.database)


@pytest.mark.parametrize(
    ("statement", "code"),
    [
        ("UPDATE alembic_version SET version_num = '999_later'", 18),
        ("DELETE FROM alembic_version", 18),
        ("DROP SCHEMA public CASCADE; CREATE SCHEMA public", 10),
    ],
)
def test_databases_that_are_refused(
    postgres: Server, tmp_path: Path, statement: str, code: int
) -> None:
    """A later schema, one without a revision, and no tables at all."""
    database = at_head(postgres)
    postgres.run(database, statement)

    answer = call("import-from-postgres", postgres.url(database), "--to", tmp_path / "back")

    assert answer.code == code, answer.err
    assert [*tmp_path.iterdir()] == []
    postgres.drop(database)


def test_a_role_that_may_not_read_is_refused(postgres: Server, tmp_path: Path) -> None:
    """Exit 14, and the hint is not that of `backup`."""
    database = at_head(postgres)
    postgres.run(database, "CREATE ROLE reader LOGIN")

    answer = call(
        "import-from-postgres", postgres.url(database, user="reader"), "--to", tmp_path / "back"
    )

    postgres.run(database, "DROP ROLE reader")
    assert answer.code == 14, answer.err
    assert "backup" not in answer.err
    postgres.drop(database)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "no URL of a PostgreSQL database is given"),
        (("sqlite:///x.db",), "the URL is not that of a PostgreSQL database"),
        (("postgresql://h/d", "--url-file", "f"), "the URL is given as well"),
    ],
    ids=["none", "sqlite", "both"],
)
def test_urls_that_are_refused(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    """As those of an export."""
    answer = call("import-from-postgres", *words, "--to", tmp_path / "back")

    assert answer.code == 2
    assert message in answer.err
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


def test_a_killed_run_leaves_the_target(small: ServerHome, tmp_path: Path) -> None:
    """Killed after the rows are written: the next run removes the staging and completes."""

    def work() -> None:
        with pytest.MonkeyPatch.context() as patch:
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


TEXTS = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=20)
NUMBERS = st.one_of(
    st.integers(-(10**18), 10**18), st.floats(allow_nan=False, allow_infinity=False, width=32)
)
DOCUMENTS = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=8,
)
NULLABLE = st.one_of(st.none(), DOCUMENTS.map(json.dumps))
TIMES = st.datetimes().map(lambda moment: f"{moment:%H:%M:%S.%f}").map("2026-02-03 {}".format)
ROWS = st.fixed_dictionaries(
    {
        "sessions": st.lists(st.tuples(TEXTS, NULLABLE, NULLABLE, TEXTS, TIMES), max_size=4),
        "agent_runs": st.lists(
            st.tuples(st.floats(allow_nan=False), st.integers(-(2**31), 2**31 - 1)), max_size=4
        ),
        "workers": st.lists(st.lists(TEXTS, max_size=4), max_size=3),
        "workflow_runs": st.lists(
            st.tuples(*[st.text("ab:é", min_size=1, max_size=3)] * 3), max_size=4, unique=True
        ),
    }
)


def fill(connection: sqlite3.Connection, rows: dict[str, list[Any]]) -> None:
    """Insert rows as Sagewai writes them."""
    for number, (agent, messages, keys, summary, moment) in enumerate(rows["sessions"]):
        connection.execute(
            "INSERT INTO sessions (session_id, project_id, agent_name, messages, memory_keys,"
            " summary, created_at, updated_at) VALUES (?, 'default', ?, ?, ?, ?, ?, ?)",
            (str(number), agent, messages or "null", keys or "[]", summary, moment, moment),
        )
    for number, (cost, tokens) in enumerate(rows["agent_runs"]):
        connection.execute(
            "UPDATE agent_runs SET cost_usd = ?, total_tokens = ? WHERE rowid = ?",
            (cost, tokens, number + 1),
        )
    for number, listed in enumerate(rows["workers"]):
        connection.execute(
            "UPDATE workers SET models_supported = ? WHERE rowid = ?",
            (json.dumps(listed), number + 1),
        )
    for number, (project, workflow, run_id) in enumerate(rows["workflow_runs"]):
        connection.execute(
            "UPDATE OR IGNORE workflow_runs SET id = ?, project_id = ?, workflow_name = ?,"
            " run_id = ? WHERE rowid = ?",
            (f"{project}:{workflow}:{run_id}", project, workflow, run_id, number + 1),
        )


@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
@given(rows=ROWS)
def test_there_and_back(
    postgres: Server, tmp_path_factory: pytest.TempPathFactory, rows: dict[str, list[Any]]
) -> None:
    """Home, server, home: equal by value, whatever the rows have that both sides can store."""
    place = tmp_path_factory.mktemp("there")
    home = home_with(place / "home", lambda connection: fill(connection, rows), rows=4)
    before = values_of(home.root)
    made = moved(home, postgres, policy="quarantine")
    kept = counts_of(postgres, made.database)

    answer = bring_back(made, place / "back", "--json")

    assert answer.code == 0, answer.err
    after = values_of(place / "back")
    for name, expected in before.items():
        if kept.get(name, 0) == len(expected):  # else the export has quarantined some
            assert after[name] == expected, name
        else:
            assert len(after[name]) == kept.get(name, 0)
    postgres.drop(made.database)
