"""Restores of a server's database to the SQLite file of a home."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import postgres_server
from home_builder import build_home
from postgres_server import Server
from program import Answer, call
from returned_homes import (
    BAD_ROWS,
    ODD_ROWS,
    STORED,
    learnings_of,
    moved,
    real_on_server,
    value_of,
    values_of,
)
from sagewai_ops.archive.age import Encryption, temporary_identity
from sagewai_ops.errors import UsageError
from sagewai_ops.export.convert import sqlite_value
from sagewai_ops.home.paths import locate
from sagewai_ops.home.server_record import read_server_record, record_of, write_server_record
from sagewai_ops.restore import conversion, server_rows
from sagewai_ops.restore import to_sqlite as to_sqlite_module
from sagewai_ops.schema.revision_graph import HEAD
from sagewai_ops.snapshots.server_database import ServerFacts
from server_homes import ServerHome, content, make_server_home
from small_homes import everything_of
from step_counter import killed
from targets import url_of

OLD = "019_fleet_tasks"


def to_sqlite(home: ServerHome, target: Path, *words: object) -> Answer:
    """Restore the latest snapshot to a directory, with the database on SQLite."""
    return call(*("--home", home.root, "restore", "latest", "--to", target, "--to-sqlite", *words))


@pytest.fixture(scope="module")
def small(
    _postgres_session: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerHome]:
    """A small home on a server, and its snapshot."""
    if not postgres_server.installations():
        pytest.skip("no PostgreSQL here")
    server = postgres_server.running(postgres_server.installations()[0])
    made = make_server_home(tmp_path_factory.mktemp("small") / "home", server)
    made.back_up()
    yield made
    server.drop(made.database)


@pytest.fixture
def home(small: ServerHome) -> ServerHome:
    """That home."""
    return small


@pytest.fixture(scope="module")
def original(
    _postgres_session: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ServerHome, dict[str, list[Any]]]]:
    """A home of the real Sagewai on a server, with a snapshot; and its values before the move."""
    with real_on_server(tmp_path_factory.mktemp("original")) as (made, before):
        made.back_up()
        yield made, before


def test_round_trip(original: tuple[ServerHome, dict[str, list[Any]]], tmp_path: Path) -> None:
    """Home, server, snapshot, home: every value of all 55 tables, and the learnings."""
    home, before = original

    answer = to_sqlite(home, tmp_path / "copy", "--json")

    assert answer.code == 0, answer.err
    after = values_of(tmp_path / "copy")
    for name in before:
        assert after[name] == before[name], name
    assert answer.result["converted_rows"] == sum(map(len, before.values()))
    assert answer.result["database"]["schema_level"] == HEAD
    assert answer.result["database"]["integrity"] == ["ok"]
    assert learnings_of(tmp_path / "copy") == learnings_of(home.root) != {}
    assert read_server_record(tmp_path / "copy") is None
    assert sorted(path.name for path in (tmp_path / "copy/db").iterdir()) == ["sagewai.db"]
    checked = call("--home", tmp_path / "copy", "db", "check", "--json")
    assert (checked.code, checked.result["findings"]) == (0, [])


def test_back_on_a_server(
    original: tuple[ServerHome, dict[str, list[Any]]], tmp_path: Path
) -> None:
    """The restored home exports again, and the server has the same rows as before."""
    home, _before = original
    assert to_sqlite(home, tmp_path / "copy").code == 0

    again = moved(locate(tmp_path / "copy", {}), home.server)

    assert content(home.server, again.database) == content(home.server, home.database)


def test_plan_changes_nothing(home: ServerHome, tmp_path: Path) -> None:
    """A dry run shows what a home on SQLite cannot have."""
    answer = to_sqlite(home, tmp_path / "copy", "--dry-run")

    assert answer.code == 0, answer.err
    assert "rows in 65 tables" in answer.out
    assert "not converted: workflow_events: a home on SQLite has no such table" in answer.out
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("--database-url", "postgresql://h/d"),
        ("--url-file", "f"),
        ("--without-database",),
        ("--only", "config"),
    ],
    ids=lambda words: words[0],
)
def test_contradictions_are_2(home: ServerHome, tmp_path: Path, words: tuple[str, ...]) -> None:
    """Nothing is restored."""
    answer = to_sqlite(home, tmp_path / "copy", *words)

    assert answer.code == 2
    assert "--to-sqlite" in answer.err
    assert not (tmp_path / "copy").exists()


def test_home_on_sqlite_has_nothing_to_convert(tmp_path: Path) -> None:
    """An ordinary restore is offered."""
    home = build_home(tmp_path / "home", rows=1, vectors=0, artifacts=False)
    assert call("--home", home.root, "backup").code == 0

    answer = call("--home", home.root, "restore", "latest", "--to", tmp_path / "c", "--to-sqlite")

    assert answer.code == 2
    assert "has no database of a server" in answer.err


def test_odd_values(postgres: Server, tmp_path: Path) -> None:
    """Escapes, numbers, times, lists, ids: each in the form that Sagewai writes to SQLite."""
    made = make_server_home(tmp_path / "home", postgres)
    made.run("DELETE FROM workflow_events", *ODD_ROWS)
    made.back_up()

    answer = to_sqlite(made, tmp_path / "copy", "--json")

    assert (answer.code, answer.result["not_converted"]) == (0, []), answer.err
    for table, column, where, expected in STORED:
        value = value_of(tmp_path / "copy", f"SELECT {column} FROM {table} WHERE {where}")
        assert (value, type(value)) == (expected, type(expected)), (table, column, where)
    document = json.loads(
        str(value_of(tmp_path / "copy", "SELECT messages FROM sessions WHERE session_id = 'texts'"))
    )
    assert document == {"a": "\u00e9\\n", "n": 10**22}
    listed = value_of(tmp_path / "copy", "SELECT models_supported FROM workers")
    assert json.loads(str(listed)) == [
        *("", "null", "NULL", "a b", "a,b", "{x}", 'q"q', "b\\b", "t\tt", "n\nn", "\u00e9"),
    ]
    postgres.drop(made.database)


def test_values_without_a_conversion_are_findings(postgres: Server, tmp_path: Path) -> None:
    """Exit 3, each named with its key; their rows are omitted, and all others are there."""
    made = make_server_home(tmp_path / "home", postgres)
    made.run(*BAD_ROWS.values())
    made.back_up()

    answer = to_sqlite(made, tmp_path / "copy", "--json")

    assert answer.code == 3, answer.err
    found = {
        (item["table"], item["column"], item["kind"]): item
        for item in answer.result["not_converted"]
    }
    assert found.keys() == BAD_ROWS.keys()
    assert found["sessions", "created_at", "not-a-timestamp"]["keys"] == [
        "i, default",
        "b, default",
        "y, default",
    ]
    assert found["prompt_logs", "", "orphan"]["keys"] == ["l"]
    assert found["users", "own", "unknown-column"]["count"] == 1
    copy = tmp_path / "copy"
    assert value_of(copy, "SELECT count(*) FROM sessions") == 50
    assert value_of(copy, "SELECT count(*) FROM users") == 2
    assert value_of(copy, "SELECT count(*) FROM eval_datasets") == 1
    assert value_of(copy, "SELECT count(*) FROM prompt_logs") == 0
    named = [text for text in answer.document["warnings"] if text.startswith("not converted: ")]
    assert len(named) == len(BAD_ROWS)
    postgres.drop(made.database)


def test_rows_longer_than_a_member_and_too_large(
    postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row of several pieces arrives; one that SQLite cannot take is a finding."""
    made = make_server_home(tmp_path / "home", postgres)
    made.run(
        "DELETE FROM workflow_events",
        "INSERT INTO sessions (session_id, agent_name, summary)"
        " SELECT n::text || 'm', '', repeat('x', n * 1000000) FROM (VALUES (1), (3)) v (n)",
    )
    made.back_up()
    monkeypatch.setattr(server_rows, "MOST_ROW_BYTES", 2_000_000)

    answer = to_sqlite(made, tmp_path / "copy", "--json")

    assert answer.code == 3, answer.err
    (item,) = answer.result["not_converted"]
    assert (item["table"], item["kind"], item["count"]) == ("sessions", "too-large", 1)
    query = "SELECT length(summary) FROM sessions WHERE session_id = '1m'"
    assert value_of(tmp_path / "copy", query) == 1_000_000
    assert value_of(tmp_path / "copy", "SELECT count(*) FROM sessions") == 51
    postgres.drop(made.database)


def test_snapshot_at_an_older_revision(postgres: Server, tmp_path: Path) -> None:
    """The home gets the tables of that revision; the upgrade is offered, and works."""
    made = make_server_home(tmp_path / "home", postgres, revision=OLD)
    made.back_up()

    answer = to_sqlite(made, tmp_path / "copy", "--json")

    assert answer.code == 3, answer.err  # workflow_events
    assert answer.result["database"]["schema_level"] == OLD
    assert f"at revision {OLD}, not at {HEAD}: sagewai-ops db upgrade" in str(answer.document)
    upgraded = call("--home", tmp_path / "copy", "db", "upgrade", "--no-snapshot", "--json")
    assert upgraded.code == 0, upgraded.err
    assert call("--home", tmp_path / "copy", "db", "current", "--json").code == 0
    assert value_of(tmp_path / "copy", "SELECT count(*) FROM sessions") == 50
    postgres.drop(made.database)


def test_unknown_revision_is_18(postgres: Server, tmp_path: Path) -> None:
    """Two revisions that are never together, of which each alone is known."""
    made = make_server_home(tmp_path / "home", postgres)
    made.run("INSERT INTO alembic_version VALUES ('001_initial')")
    made.back_up()

    answer = to_sqlite(made, tmp_path / "copy")

    assert answer.code == 18
    assert not (tmp_path / "copy").exists()
    postgres.drop(made.database)


@pytest.mark.parametrize("only", ["", "db", "db/sagewai.db"])
def test_home_moves_back_in_place(
    postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, only: str
) -> None:
    """The record of the server is gone with it, and an undo brings both back."""
    made = make_server_home(tmp_path / "home", postgres)
    made.back_up()
    monkeypatch.setenv("SAGEWAI_DATABASE_URL", made.environment["SAGEWAI_DATABASE_URL"])
    home = locate(made.root, made.environment)
    write_server_record(home, record_of(url_of(postgres, made.database), {}))
    before = {name: item[2] for name, item in everything_of(made.root).items()}
    words = ("--only", only) if only else ("--replace",)

    answer = call("--home", made.root, "restore", "latest", "--to-sqlite", *words)

    assert answer.code == 3, answer.err  # workflow_events
    assert "SAGEWAI_DATABASE_URL: names a server, which Sagewai would use" in answer.err
    assert read_server_record(made.root) is None
    assert value_of(made.root, "SELECT count(*) FROM sessions") == 50
    assert postgres.rows(made.database, "SELECT count(*) FROM sessions") == [(50,)]
    undone = call("--home", made.root, "restore", "--undo")
    assert undone.code == 0, undone.err
    assert read_server_record(made.root) is not None
    after = {name: item for name, item in everything_of(made.root).items() if "before" not in name}
    assert {name: item[2] for name, item in after.items()} == before
    postgres.drop(made.database)


def test_access_is_revoked_and_the_fleet_rebound(postgres: Server, tmp_path: Path) -> None:
    """Both are done to the converted tables, in an encrypted snapshot too."""
    made = make_server_home(tmp_path / "home", postgres)
    made.run(
        "INSERT INTO workers (worker_id, org_id) VALUES ('w', 'default:0000')",
        "INSERT INTO api_token (id, org_id, subject_user_id, token_hash, scopes)"
        " VALUES ('t', 'o', 'u', 'h', '[]')",
    )
    recipient, identity = temporary_identity()
    (tmp_path / "identity").write_text(identity)
    (tmp_path / "identity").chmod(0o600)
    made.back_up(encryption=Encryption(recipients=(recipient,)))

    answer = to_sqlite(
        *(made, tmp_path / "copy", "--revoke-sessions", "--rebind-fleet", "--json"),
        *("--identity", tmp_path / "identity"),
    )

    assert answer.code == 3, answer.err
    assert (answer.result["api_tokens"], answer.result["rebound_rows"]) == (0, 1)
    assert value_of(tmp_path / "copy", "SELECT revoked_at FROM api_token") is not None
    postgres.drop(made.database)


@pytest.mark.parametrize("choice", ["facts", "pgvector"])
def test_learnings_on_the_server(postgres: Server, tmp_path: Path, choice: str) -> None:
    """Copies of those in the home are no findings; a fact of its own is one."""
    home = locate(build_home(tmp_path / "home", rows=1, artifacts=False).root, {})
    try:
        made = moved(home, postgres, learnings=choice)
    except UsageError:
        pytest.skip("the server has no pgvector")
    made.back_up()

    same = to_sqlite(made, tmp_path / "copy", "--json")
    if choice == "facts":
        made.run("INSERT INTO global_memory_facts (scope, content) VALUES ('s', 'new')")
    else:
        made.run(
            "UPDATE vec_learnings SET id = 'new' WHERE id = (SELECT min(id) FROM vec_learnings)"
        )
    made.back_up()
    more = to_sqlite(made, tmp_path / "more", "--json")

    assert (same.code, same.result["not_converted"]) == (0, []), same.err
    assert learnings_of(tmp_path / "copy") == learnings_of(made.root) != {}
    (item,) = more.result["not_converted"]
    assert (more.code, item["kind"], item["count"]) == (3, "no-learning", 1)
    postgres.drop(made.database)


def test_mirror(home: ServerHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain directory of `backup --format directory` is converted as an archive is."""
    monkeypatch.setenv("SAGEWAI_DATABASE_URL", home.environment["SAGEWAI_DATABASE_URL"])
    mirror = tmp_path / "mirror"
    backed_up = call(
        *("--home", home.root, "backup", "--format", "directory", "--snapshots", mirror)
    )
    assert backed_up.code == 0, backed_up.err

    answer = call(
        *("--home", home.root, "restore", mirror / "tree"),
        *("--to", tmp_path / "copy", "--to-sqlite"),
    )

    assert answer.code == 3, answer.err  # workflow_events
    assert value_of(tmp_path / "copy", "SELECT count(*) FROM sessions") == 50


def test_home_without_a_database_of_its_own(postgres: Server, tmp_path: Path) -> None:
    """A home that began on a server gets a new file, private and in WAL mode."""
    made = make_server_home(tmp_path / "home", postgres)
    for file in (made.root / "db").iterdir():
        file.unlink()
    made.back_up()

    answer = to_sqlite(made, tmp_path / "copy")

    assert answer.code == 3, answer.err
    database = tmp_path / "copy/db/sagewai.db"
    assert database.stat().st_mode & 0o7777 == 0o600
    assert value_of(tmp_path / "copy", "PRAGMA journal_mode") == "wal"
    assert value_of(tmp_path / "copy", "SELECT count(*) FROM sessions") == 50
    postgres.drop(made.database)


def test_own_tables_of_the_file_stay(postgres: Server, tmp_path: Path) -> None:
    """A column of one's own in a table of Sagewai's is named: the table is created again."""
    made = make_server_home(tmp_path / "home", postgres, own_table=True, own_column=True)
    made.back_up()

    answer = to_sqlite(made, tmp_path / "copy")

    assert answer.code == 3, answer.err
    assert "of your own: not in the restored home" in answer.err
    tables = "SELECT group_concat(name) FROM sqlite_master WHERE type = 'table'"
    own = set(str(value_of(made.root, tables)).split(","))
    assert own <= set(str(value_of(tmp_path / "copy", tables)).split(","))
    postgres.drop(made.database)


def test_other_value_is_20(
    home: ServerHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A conversion that changes a value is found by the comparison, and nothing is restored."""
    monkeypatch.setitem(
        sqlite_value._COLUMNS, "timestamptz", lambda texts: ["2026-01-01"] * len(texts)
    )

    answer = to_sqlite(home, tmp_path / "copy")

    assert answer.code == 20
    assert "sessions.created_at of 1, default differs from the snapshot" in answer.err
    assert not (tmp_path / "copy").exists()


def test_killed_run_leaves_the_target(home: ServerHome, tmp_path: Path) -> None:
    """Killed after the rows are written: the next run removes the staging and completes."""
    target = tmp_path / "copy"
    target.mkdir()
    (target / "old").write_text("old")

    def run() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                to_sqlite_module, "read_level", lambda _c: os.kill(os.getpid(), signal.SIGKILL)
            )
            to_sqlite(home, target, "--replace")

    assert killed(run)
    assert everything_of(target).keys() == {"old"}
    assert to_sqlite(home, target, "--replace").code == 3
    assert value_of(target, "SELECT count(*) FROM sessions") == 50
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_rows_that_the_manifest_does_not_record(
    home: ServerHome, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every table's rows are compared with its hash; another one is damage."""
    plan = conversion.plan_conversion

    def other(facts: ServerFacts) -> Any:
        tables = [replace(table, sha256="0" * 64) for table in facts.tables]
        return plan(replace(facts, tables=tuple(tables)))

    monkeypatch.setattr(conversion, "plan_conversion", other)

    answer = to_sqlite(home, tmp_path / "copy")

    assert answer.code == 16
    assert not (tmp_path / "copy").exists()
