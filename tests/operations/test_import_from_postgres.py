"""Imports of a server's tables to the SQLite file of a home."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
from pathlib import Path

import pytest

from home_builder import build_home
from postgres_server import Server
from program import call, run
from returned_homes import (
    BAD_ROWS,
    bring_back,
    learnings_of,
    moved,
    valid,
    value_of,
)
from sagewai_ops.errors import OpsError
from sagewai_ops.home.paths import COMPANION, DATABASE, locate
from sagewai_ops.home.server_record import read_server_record, record_of, write_server_record
from sagewai_ops.operations import import_from_postgres as importing
from sagewai_ops.restore import row_writer
from sagewai_ops.schema import sqlite_head
from server_homes import ServerHome, make_server_home
from small_homes import everything_of
from targets import at_head, home_with, url_of

PASSWORD = "s3cr3t @:/ Wort"
OLD = "019_fleet_tasks"


@pytest.mark.parametrize("least", [row_writer.LEAST_BYTES, 0], ids=["here", "process"])
def test_findings_change_nothing_or_are_set_apart(
    postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least: int
) -> None:
    """Exit 4 and no home; or 3, and every row and value is in a file of its own."""
    monkeypatch.setattr(row_writer, "LEAST_BYTES", least)
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


def test_a_column_that_the_server_computes_is_named(postgres: Server, tmp_path: Path) -> None:
    """One that a home has is a finding, another one a warning: no row that is read has either."""
    made = make_server_home(tmp_path / "home", postgres)
    made.run(
        "DELETE FROM workflow_events",
        "ALTER TABLE sessions ADD own text GENERATED ALWAYS AS (agent_name || 'x') STORED",
        "ALTER TABLE sessions DROP summary",
        "ALTER TABLE sessions ADD summary text GENERATED ALWAYS AS (agent_name || 'y') STORED",
    )

    refused = bring_back(made, tmp_path / "back", "--json")

    assert refused.code == 4, refused.err
    (item,) = valid(refused)["findings"]
    assert (item["table"], item["column"], item["kind"]) == ("sessions", "summary", "not-read")
    assert any("sessions.own" in text for text in refused.result["notes"])
    assert not (tmp_path / "back").exists()
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
    postgres.run(database, "CREATE ROLE excluded LOGIN")

    answer = call(
        "import-from-postgres", postgres.url(database, user="excluded"), "--to", tmp_path / "back"
    )

    postgres.run(database, "DROP ROLE excluded")
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
