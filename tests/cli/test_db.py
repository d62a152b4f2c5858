"""The `db` commands, as people and scripts meet them."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest

import old_homes
from json_schemas import problems
from postgres_server import GUARDED, Server
from program import Answer, call, run
from sagewai_ops.database.sqlite import connect
from sagewai_ops.database.sqlite.connect import Connection
from sagewai_ops.schema.create import create_database
from sagewai_ops.schema.revision_graph import HEAD, revisions


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with an empty database at the current schema."""
    root = tmp_path / "home"
    (root / "db").mkdir(parents=True, mode=0o700)
    create_database(root / "db" / "sagewai.db")
    return root


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A home from before 019, with a worker in it."""
    root = tmp_path / "home"
    (root / "db").mkdir(parents=True, mode=0o700)
    path = root / "db" / "sagewai.db"
    old_homes.build(path, "018_fleet_schema_correction")
    _execute(path, "INSERT INTO agent_runs (run_id, agent_name) VALUES ('r', 'a')")
    return root


@pytest.fixture
def url(postgres: Server, database: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh PostgreSQL database, as the one that Sagewai's server would use."""
    monkeypatch.setenv("SAGEWAI_DATABASE_URL", postgres.url(database))
    return postgres.url(database)


def _execute(path: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def _valid(name: str, answer: Answer) -> dict[str, object]:
    """Return the result of a JSON answer, after checking its schema."""
    assert problems(name, answer.result) == []
    return answer.result


def test_upgrade_takes_a_snapshot_and_is_silent_under_cron(old: Path) -> None:
    """Success is silent; the snapshot has the old database, the home the new one."""
    answer = run("--home", old, "db", "upgrade")

    assert (answer.code, answer.out, answer.err) == (0, "", "")
    (archive,) = (old.parent / "home.snapshots").glob("*.tar.zst")
    shown = call("--home", old, "snapshots", "show", archive, "--json").result
    assert shown["tags"] == ["before-upgrade"]
    assert shown["database"]["schema_level"] == "018_fleet_schema_correction"
    assert call("--home", old, "db", "current", "--json").result["state"] == "current"


def test_upgrade_in_json_is_complete(old: Path) -> None:
    """The additions, the remaining differences, the counts and the snapshot."""
    result = _valid("db-upgrade", call("--home", old, "db", "upgrade", "--json"))

    assert (result["before"], result["after"]) == (["018_fleet_schema_correction"], [HEAD])
    added = result["added"]
    assert isinstance(added, list)
    assert added[0] == "fleet_tasks"
    assert str(result["snapshot"]).endswith(".tar.zst")
    assert result["rehearsed"] is None


def test_second_upgrade_takes_no_snapshot(old: Path) -> None:
    """There is nothing to add."""
    call("--home", old, "db", "upgrade", "--no-snapshot")

    answer = call("--home", old, "db", "upgrade", "--json")

    assert (answer.result["added"], answer.result["snapshot"]) == ([], None)
    assert not (old.parent / "home.snapshots").exists()


def test_rehearsal_is_shown_and_changes_nothing(old: Path) -> None:
    """The result is printed also into a pipe."""
    answer = call("--home", old, "db", "upgrade", "--rehearse")
    result = _valid("db-upgrade", call("--home", old, "db", "upgrade", "--rehearse", "--json"))

    assert answer.code == 0
    assert "rehearsed by copy from 018_fleet_schema_correction" in answer.out
    assert result["rehearsed"] == "copy"
    assert call("--home", old, "db", "current", "--json").result["state"] == "behind"
    assert sorted(path.name for path in old.iterdir()) == ["db"]


def test_index_that_cannot_be_added_is_incomplete(old: Path) -> None:
    """Exit 3 and a warning that names it."""
    insert = "INSERT INTO provider (id, provider_name, data) VALUES"
    _execute(
        old / "db" / "sagewai.db",
        "DROP INDEX ux_provider_global_name",
        f"{insert} ('1', 'x', '{{}}'), ('2', 'x', '{{}}')",
    )

    answer = call("--home", old, "db", "upgrade", "--no-snapshot")

    assert answer.code == 3
    assert "provider.ux_provider_global_name: not added, UNIQUE constraint failed" in answer.err


def test_a_signal_after_the_commit_is_too_late(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`interrupted` would mean that the schema was not changed."""

    class Signalling(Connection):
        def execute(self, statement: str, *arguments: Any) -> sqlite3.Cursor:
            done = super().execute(statement, *arguments)
            if statement == "COMMIT" and self.total_changes:
                os.kill(os.getpid(), signal.SIGTERM)
            return done

    monkeypatch.setattr(connect, "Connection", Signalling)

    answer = call("--home", old, "db", "upgrade", "--no-snapshot", "--json")

    assert answer.code == 0
    assert answer.result["after"] == [HEAD]


def test_sql_of_a_home_upgrades_it(old: Path) -> None:
    """The statements on stdout do what the command does."""
    answer = call("--home", old, "db", "upgrade", "--sql")

    with contextlib.closing(sqlite3.connect(old / "db" / "sagewai.db")) as connection:
        connection.executescript(answer.out)
    result = _valid("db-current", call("--home", old, "db", "current", "--json"))
    assert result["state"] == "current"
    assert result["advice"] is None
    nothing = call("--home", old, "db", "upgrade", "--sql", "--json")
    assert _valid("db-upgrade", nothing)["sql"] == ""


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["upgrade", "019_fleet_tasks"], 2, "only the head is"),
        (["upgrade", "nonsense"], 10, "revision nonsense: not found"),
        (["upgrade", "head", "--revision", "019"], 2, "--revision 019: contradicts head"),
        (["downgrade", "base", "--yes"], 2, "downgrade: not possible for a home's SQLite database"),
    ],
)
def test_revisions_of_a_home_are_refused(
    home: Path, words: list[str], code: int, message: str
) -> None:
    """With the reason and a hint."""
    answer = call("--home", home, "db", *words)

    assert answer.code == code
    assert message in answer.err
    assert "sagewai-ops: hint: sagewai-ops " in answer.err or code == 2


@pytest.mark.parametrize("words", [["current"], ["check"], ["upgrade"], ["upgrade", "--rehearse"]])
def test_home_without_a_database_is_not_found(tmp_path: Path, words: list[str]) -> None:
    """Exit 10, and nothing is made."""
    (tmp_path / "home").mkdir()

    answer = call("--home", tmp_path / "home", "db", *words)

    assert answer.code == 10
    assert list((tmp_path / "home").iterdir()) == []


def test_newer_home_is_refused(home: Path) -> None:
    """Exit 18, with the unknown column."""
    _execute(home / "db" / "sagewai.db", "ALTER TABLE workers ADD COLUMN region TEXT")

    answer = call("--home", home, "db", "upgrade")
    result = _valid("db-current", call("--home", home, "db", "current", "--json"))

    assert answer.code == 18
    assert "workers.region" in answer.err
    assert (result["state"], result["extra_columns"]) == ("ahead", ["workers.region"])
    assert "ahead" in call("--home", home, "db", "current").out


def test_other_run_on_the_home_is_named(old: Path) -> None:
    """Two at once: the second exits 11 when the first does not end in time."""
    from sagewai_ops.fs import locks

    with locks.exclusive(old):
        answer = run("--home", old, "db", "upgrade", "--no-snapshot", "--wait", "0.1")

    assert answer.code == 11
    assert ": locked by pid " in answer.err


def test_current_names_what_is_missing_and_yours(old: Path) -> None:
    """The state, what an upgrade adds, the user's own tables, and the command that repairs it."""
    _execute(old / "db" / "sagewai.db", "CREATE TABLE mine (x)")

    answer = call("--home", old, "db", "current")

    assert answer.out.splitlines() == [
        f"{old}/db/sagewai.db: behind, at 018_fleet_schema_correction",
        "  missing  fleet_tasks",
        "  yours    mine",
        "  repair   sagewai-ops db upgrade",
    ]


def test_history_lists_every_revision(home: Path) -> None:
    """In order, with what each does."""
    answer = call("--home", home, "db", "history")
    result = _valid("db-history", call("--home", home, "db", "history", "--json"))

    assert [line.split()[0] for line in answer.out.splitlines()[1:]] == list(revisions())
    listed = result["revisions"]
    assert isinstance(listed, list)
    assert all(len(entry["does"]) > 10 for entry in listed)
    assert result["head"] == HEAD


def test_check_of_a_sound_home_finds_nothing(home: Path) -> None:
    """Exit 0 and one line."""
    answer = call("--home", home, "db", "check")

    assert answer.code == 0
    assert answer.out == f"{home}/db/sagewai.db: no findings in 0 rows of 55 tables\n"
    _valid("db-check", call("--home", home, "db", "check", "--json"))


def test_check_exits_with_findings(home: Path) -> None:
    """Exit 4; table, column, reason, count and keys, and never a value."""
    _execute(
        home / "db" / "sagewai.db",
        "INSERT INTO org (id, name, slug, timezone, settings)"
        " VALUES ('o1', 'a', 'a', 'UTC', '{\"k\": \"hunter2\\u0000\"}')",
        "CREATE TABLE mine (x)",
    )

    answer = call("--home", home, "db", "check")
    result = _valid("db-check", call("--home", home, "db", "check", "--json"))

    assert answer.code == 4
    assert "  json-nul     org.settings: an escaped NUL character, 1 rows: o1\n" in answer.out
    assert "  yours        mine, 0 rows\n" in answer.out
    assert "hunter2" not in answer.out
    assert result["unknown_tables"] == ["mine"]


def test_postgres_is_upgraded_and_downgraded(url: str, home: Path) -> None:
    """Upgrade, state, check and downgrade, each in JSON by its schema."""
    up = _valid("db-upgrade", call("--home", home, "db", "upgrade", "--json"))
    at_head = _valid("db-current", call("--home", home, "db", "current", "--json"))
    checked = _valid("db-check", call("--home", home, "db", "check", "--json"))
    down = _valid("db-downgrade", call("--home", home, "db", "downgrade", "005", "--yes", "--json"))

    assert (up["engine"], up["after"], up["snapshot"]) == ("postgresql", [HEAD], None)
    assert (at_head["state"], at_head["advice"]) == ("current", None)
    assert checked["findings"] == []
    assert down["after"] == ["005_execution_mode"]
    behind = call("--home", home, "db", "current")
    assert behind.out.splitlines()[1] == "  repair   sagewai-ops db upgrade"


def test_postgres_is_upgraded_without_a_home(url: str, tmp_path: Path) -> None:
    """A server that keeps everything in PostgreSQL has no file here."""
    answer = call("--home", tmp_path / "none", "db", "upgrade", "019_fleet_tasks", "--json")

    assert answer.code == 0
    assert answer.result["after"] == ["019_fleet_tasks"]


def test_postgres_rehearsal_and_sql_change_nothing(url: str, home: Path) -> None:
    """Both only report."""
    rehearsed = call("--home", home, "db", "upgrade", "--rehearse", "--json")
    paper = call("--home", home, "db", "upgrade", "--sql")

    assert _valid("db-upgrade", rehearsed)["rehearsed"] == "scratch"
    assert paper.out.startswith("BEGIN;\n")
    assert call("--home", home, "db", "current", "--json").result["state"] == "empty"


def test_downgrade_asks_for_confirmation(url: str, home: Path) -> None:
    """Without a terminal and without --yes it refuses; --sql does not ask."""
    call("--home", home, "db", "upgrade")

    refused = call("--home", home, "db", "downgrade", "base")
    paper = call("--home", home, "db", "downgrade", "019", "--sql", "--json")

    assert refused.code == 2
    assert "drop from postgresql://" in refused.err
    assert "add --yes" in refused.err
    assert "lease_expires_at" in str(_valid("db-downgrade", paper)["sql"])
    assert call("--home", home, "db", "current", "--json").result["state"] == "current"


def test_dry_runs_name_the_revisions_and_change_nothing(url: str, home: Path) -> None:
    """The same ones that a run applies or reverts."""
    words = ("--home", home, "db")
    planned = call(*words, "upgrade", "--dry-run", "--json").result["steps"]
    assert call(*words, "current", "--json").result["state"] == "empty"
    done = call(*words, "upgrade", "--json").result["ran"]
    assert sorted(planned) == sorted(f"apply revision {revision}" for revision in done)

    planned = call(*words, "downgrade", "018", "--dry-run", "--json").result["steps"]
    assert call(*words, "current", "--json").result["state"] == "current"
    done = call(*words, "downgrade", "018", "--yes", "--json").result["ran"]
    assert sorted(planned) == sorted(f"revert revision {revision}" for revision in done)


def test_downgrade_reports_rows_dropped_and_kept(
    url: str, home: Path, postgres: Server, database: str
) -> None:
    """The rows that were dropped and those that were kept, each table once."""
    call("--home", home, "db", "upgrade")
    rows = (
        "INSERT INTO fleet_tasks (run_id, org_id) VALUES ('t', 'o')",
        "INSERT INTO org (id, name, slug) VALUES ('o', 'o', 'o'), ('p', 'p', 'p')",
    )
    postgres.run(database, *rows)

    result = _valid(
        "db-downgrade", call("--home", home, "db", "downgrade", "018", "--yes", "--json")
    )
    call("--home", home, "db", "upgrade")
    postgres.run(database, rows[0])
    answer = call("--home", home, "--verbose", "db", "downgrade", "018", "--yes")

    assert result["dropped_rows"] == {"fleet_tasks": 1}
    kept = result["kept_rows"]
    assert isinstance(kept, dict)
    assert {table: count for table, count in kept.items() if count} == {"org": 2}
    assert "fleet_tasks" not in kept
    assert answer.out.splitlines()[-3:] == [
        "  dropped   fleet_tasks, 1 row",
        "  kept      org, 2 rows",
        f"  kept      {len(kept) - 1} other tables, without rows",
    ]


@pytest.mark.parametrize(
    ("statement", "code"),
    [
        ("CREATE TABLE users (id text)", 17),
        ("CREATE TABLE alembic_version AS SELECT 'deadbeef' AS version_num", 18),
    ],
)
def test_database_without_known_revision_has_its_exit_code(
    url: str, home: Path, postgres: Server, database: str, statement: str, code: int
) -> None:
    """Created without revisions, and at an unknown one."""
    postgres.run(database, statement)

    assert call("--home", home, "db", "upgrade").code == code


def test_password_is_never_shown(
    postgres: Server, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither on success nor in an error, in text or in JSON."""
    postgres.run("postgres", "DROP ROLE IF EXISTS bob", "CREATE ROLE bob LOGIN PASSWORD 'hunt%er2'")
    name = postgres.create(name=GUARDED)
    postgres.run("postgres", f"ALTER DATABASE {name} OWNER TO bob")
    monkeypatch.setenv(
        "SAGEWAI_DATABASE_URL", postgres.tcp_url(name, user="bob", password="hunt%er2")
    )

    good = [call("--home", home, "db", "upgrade", *more) for more in ((), ("--json",))]
    monkeypatch.setenv("SAGEWAI_DATABASE_URL", postgres.tcp_url(name, user="bob", password="hunt%"))
    bad = [call("--home", home, "db", "current", *more) for more in ((), ("--json",))]

    assert [answer.code for answer in good + bad] == [0, 0, 14, 14]
    assert not any("hunt" in answer.out + answer.err for answer in good + bad)


def test_bad_url_is_a_usage_error(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable is named, its content is not."""
    monkeypatch.setenv("SAGEWAI_DATABASE_URL", "hunter2")

    answer = call("--home", home, "db", "current")

    assert answer.code == 2
    assert "SAGEWAI_DATABASE_URL: database URL: " in answer.err
    assert "hunter2" not in answer.err
