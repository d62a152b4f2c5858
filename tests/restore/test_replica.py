"""`restore --database-from litestream`: files and keys of a snapshot, the replica's database."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing, suppress
from datetime import datetime, timezone
from pathlib import Path

import pytest

import litestream
from json_schemas import problems
from litestream import needs_litestream
from program import Answer, call
from sagewai_ops.database.sqlite.read_transaction import quoted
from sagewai_ops.home.paths import COMPANION, DATABASE
from sagewai_ops.keys.locations import COLUMNS, PREFIX
from small_homes import everything_of, rows_of, small

pytestmark = needs_litestream


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a snapshot and a replica that is newer."""
    root = small(tmp_path / "home").root
    litestream.replicate(litestream.configure(tmp_path, root / DATABASE))
    litestream.on_path(monkeypatch)
    assert call("--home", root, "backup").code == 0
    _change(root, "PRAGMA user_version = 0")  # newer than the snapshot
    return root


def _change(home: Path, statement: str) -> None:
    """Change the database and send it to the replica."""
    with closing(sqlite3.connect(home / DATABASE)) as connection, connection:
        connection.execute(statement)
    litestream.replicate(home.parent / "litestream.yml")


def _restore(home: Path, *words: object, source: str = "litestream") -> Answer:
    return call(
        *("--json", "--home", home, "restore", "latest", "--replace", "--database-from", source),
        *("--litestream-config", home.parent / "litestream.yml", *words),
    )


def test_files_are_of_the_snapshot_and_rows_of_the_replica(home: Path) -> None:
    """The undo returns both."""
    _change(home, "CREATE TABLE later (x)")
    wanted = rows_of(home / DATABASE)
    (home / "config/admin-state.json").write_text("{}")
    before = everything_of(home)

    plan = _restore(home, "--dry-run")
    unchanged = everything_of(home)
    done = _restore(home)

    assert (plan.code, done.code) == (0, 0), done.out
    assert unchanged == before
    assert problems("restore", plan.result) == problems("restore", done.result) == []
    for result in (plan.result, done.result):
        assert result["database_from"] == f"litestream:{home / DATABASE}"
        assert result["database_state_at"].startswith("20")
    for answer in (plan, done):
        assert "which nothing authenticates" in str(answer.document["warnings"])
    assert "tables that Sagewai and the snapshot do not have: later" in str(
        done.document["warnings"]
    )
    assert rows_of(home / DATABASE) == wanted
    assert (home / DATABASE).stat().st_mode & 0o777 == 0o600
    assert (home / "config/admin-state.json").read_text() != "{}"
    assert not (home / COMPANION).exists()
    assert sorted(path.name for path in (home / "db").iterdir() if "ops" in path.name) == []

    assert call("--home", home, "restore", "--undo").code == 0
    assert (home / "config/admin-state.json").read_text() == "{}"


def test_the_summary_names_the_replica(home: Path) -> None:
    """Its rows are not those of the snapshot."""
    shown = call(
        *("--home", home, "--verbose", "restore", "latest", "--replace"),
        *("--database-from", "litestream", "--litestream-config", home.parent / "litestream.yml"),
    )
    assert f"rows, of litestream:{home / DATABASE}, last change at 20" in shown.out


def test_a_moment_is_restored(home: Path) -> None:
    """The state before a change; to another directory, and the database alone."""
    time.sleep(1.1)  # the moment has seconds
    moment = f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}"
    time.sleep(1.1)
    _change(home, "CREATE TABLE later (x)")

    answer = _restore(home, "--only", "db", source=f"litestream:{moment}")

    assert answer.code == 0, answer.out
    assert "later" not in rows_of(home / DATABASE)


def test_another_key_than_the_snapshots_is_refused(home: Path) -> None:
    """Even if both are available: a home has one."""
    assert call("--home", home, "keys", "rotate", "--no-snapshot", "--yes").code == 0
    _change(home, "CREATE TABLE later (x)")
    (old,) = (home / "secrets").glob("master.key.legacy-*")
    before = everything_of(home)

    answer = _restore(home, "--install-key", old)

    assert answer.code == 12, answer.out
    assert "does not open" in answer.document["error"]["message"]
    assert everything_of(home) == before


def test_another_schema_than_the_snapshots_is_refused(home: Path) -> None:
    """An upgrade between the two."""
    _change(home, "ALTER TABLE agent_runs ADD COLUMN of_later TEXT")
    before = everything_of(home)

    answer = _restore(home)

    assert answer.code == 20, answer.out
    assert "not combined" in answer.document["error"]["message"]
    assert everything_of(home) == before


def test_a_replica_that_fails_leaves_the_home_unchanged(home: Path, tmp_path: Path) -> None:
    """Whenever it fails: here after the snapshot was extracted."""
    for file in (tmp_path / "replica").rglob("*.ltx"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    before = everything_of(home)

    answer = _restore(home)

    assert answer.code == 16, answer.out
    assert everything_of(home) == before
    assert not [path for path in home.parent.iterdir() if ".home." in path.name]


def test_an_emptied_database_is_refused_or_accepted(home: Path) -> None:
    """As Sagewai creates it again after a disaster: it has no value that a key fails to open."""
    with closing(sqlite3.connect(home / DATABASE)) as connection, connection:
        tables = connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND sql NOT LIKE 'CREATE VIRTUAL%'"
            " AND name NOT LIKE 'sqlite%' AND name NOT LIKE '~_litestream%' ESCAPE '~'"
            " AND name NOT LIKE '%alembic%'"
        ).fetchall()
        for (table,) in tables:
            connection.execute(f'DELETE FROM "{table}"')
    litestream.replicate(home.parent / "litestream.yml")
    before = everything_of(home)

    refused = _restore(home)
    unchanged = everything_of(home)
    accepted = _restore(home, "--accept-change")

    assert refused.code == 20, refused.out
    assert "0 rows, had 1" in refused.document["error"]["message"]
    assert unchanged == before
    assert accepted.code == 0, accepted.out


def test_a_replica_without_encrypted_values_is_refused(home: Path) -> None:
    """Even if no table lost most of its rows: the key check has nothing to try."""
    with closing(sqlite3.connect(home / DATABASE)) as connection, connection:
        for column in COLUMNS:
            name, table = quoted(column.name), quoted(column.table)
            with suppress(sqlite3.OperationalError):  # a table of another level
                connection.execute(
                    f"UPDATE {table} SET {name} = replace(CAST({name} AS TEXT), ?, 'plain')",
                    (PREFIX,),
                )
    litestream.replicate(home.parent / "litestream.yml")

    answer = _restore(home)

    assert answer.code == 20, answer.out
    assert "no encrypted value, had" in answer.document["error"]["message"]


def test_a_replica_older_than_the_snapshot_is_refused(home: Path) -> None:
    """Without a moment; with one that it has, the user named it."""
    time.sleep(1.1)  # times have seconds
    assert call("--home", home, "backup").code == 0
    before = everything_of(home)

    refused = _restore(home)
    later = _restore(home, source="litestream:2199-01-01T00:00:00Z")
    unchanged = everything_of(home)
    moment = refused.document["error"]["hint"][-1].partition("litestream:")[2]
    named = _restore(home, source=f"litestream:{moment}")

    assert (refused.code, later.code) == (20, 20), refused.out
    assert "whose database is newer" in refused.document["error"]["message"]
    assert "it may not reach to that moment" in later.document["error"]["message"]
    assert unchanged == before
    assert named.code == 0, named.out


@pytest.mark.parametrize(
    "words",
    [
        ("--only", "config"),
        ("--to-sqlite",),
        ("--without-database",),
        ("--require-authentic",),
    ],
)
def test_what_contradicts_it_is_refused(home: Path, words: tuple[str, ...]) -> None:
    """Options about another database, or none."""
    assert _restore(home, *words).code == 2


def test_a_moment_without_a_state_is_refused(home: Path) -> None:
    """Nothing was changed."""
    before = everything_of(home)

    assert _restore(home, source="litestream:2020-01-01T00:00:00Z").code == 10
    assert everything_of(home) == before
