"""The additive upgrade of a home's SQLite database."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import old_homes
import real_homes
import schema_catalogs
from program import PATIENCE_SECONDS
from sagewai_ops.database.sqlite import connect
from sagewai_ops.errors import (
    DamagedError,
    DifferenceError,
    LockedError,
    NoSpaceError,
    NotFoundError,
    PermissionDeniedError,
    SchemaAheadError,
)
from sagewai_ops.schema import upgrade_sqlite
from sagewai_ops.schema.create import create_database
from sagewai_ops.schema.revision_graph import HEAD, revisions
from sagewai_ops.schema.sqlite_revision import read_level

UNPRIVILEGED = 65534


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A home's database from before 018, with a worker, a workflow run and a broken reference."""
    path = tmp_path / "sagewai.db"
    old_homes.build(path, "001_initial")
    _execute(
        path,
        "INSERT INTO workers (worker_id, labels, metadata, models_supported, models_canonical,"
        " capabilities) VALUES ('w', '{}', '{}', '[]', '[]', '{}')",
        "INSERT INTO workflow_runs (id, workflow_name, run_id, data, input)"
        " VALUES ('default:wf:1', 'wf', '1', '{}', '{}')",
        "INSERT INTO prompt_logs (log_id, run_id, agent_name) VALUES ('p', 'gone', 'a')",
        'CREATE TABLE "the user\'s own" (x)',
        'INSERT INTO "the user\'s own" VALUES (1), (2)',
    )
    return path


def _execute(path: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def _rows(path: Path, query: str) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


def _dump(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """Read the whole schema and every row; `iterdump` stumbles over a name with an apostrophe."""
    schema = _rows(path, "SELECT name, type, sql FROM sqlite_master ORDER BY name, type")
    tables = [str(name) for name, kind, _ in schema if kind == "table"]
    return {"": schema} | {name: _rows(path, f'SELECT * FROM "{name}"') for name in tables}


@pytest.mark.parametrize("revision", revisions())
def test_every_older_home_is_upgraded_to_head(tmp_path: Path, revision: str) -> None:
    """All tables, columns and indexes exist afterwards, and a second run adds nothing."""
    path = tmp_path / "sagewai.db"
    old_homes.build(path, revision)

    first = upgrade_sqlite.upgrade_database(path)
    second = upgrade_sqlite.upgrade_database(path)

    assert (first.after.revision, first.after.state) == (HEAD, "current")
    assert bool(first.added) == (revision != HEAD)
    assert (first.failed, first.bare, second.added) == ({}, (), ())
    assert upgrade_sqlite.plan_upgrade(path) == ()


def test_upgrade_of_empty_tables_equals_a_fresh_home(tmp_path: Path) -> None:
    """Without rows every column can be added with its default and NOT NULL."""
    path = tmp_path / "sagewai.db"
    old_homes.build(path, "019_fleet_tasks")
    _execute(path, "DROP TABLE fleet_tasks")

    upgrade_sqlite.upgrade_database(path)

    fresh = schema_catalogs.sqlite()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        now = schema_catalogs.read_sqlite(connection)
    assert now["fleet_tasks"] == fresh["fleet_tasks"]
    assert {t: now[t]["columns"] for t in fresh} == {t: fresh[t]["columns"] for t in fresh}
    assert {t: now[t]["indexes"] for t in fresh} == {t: fresh[t]["indexes"] for t in fresh}


def test_rehearsal_names_the_original_in_errors(old: Path) -> None:
    """The copy is removed before the user could look at it."""
    _execute(old, "ALTER TABLE agent_runs ADD COLUMN later TEXT")

    with pytest.raises(SchemaAheadError) as caught:
        upgrade_sqlite.rehearse_upgrade(old, old.parent)

    assert caught.value.message.startswith(f"database {old}: ")


def test_printed_sql_equals_the_upgrade(old: Path, tmp_path: Path) -> None:
    """Run by another program on the same rows, no statement fails, and no column differs."""
    by_hand = tmp_path / "by-hand.db"
    by_hand.write_bytes(old.read_bytes())
    before = _dump(old)

    statements = upgrade_sqlite.plan_sql(old)
    planned = _dump(old)
    _execute(by_hand, *statements)
    done = upgrade_sqlite.upgrade_database(old)

    assert planned == before
    assert done.bare
    assert _dump(by_hand) == _dump(old)


def test_rows_are_kept_and_remaining_differences_reported(old: Path) -> None:
    """Columns that SQLite cannot add with NOT NULL are bare, and their NULLs are counted."""
    reports: list[tuple[str, int, int]] = []

    done = upgrade_sqlite.upgrade_database(old, progress=lambda *report: reports.append(report))

    assert done.before.state == "behind"
    assert (done.rows_before["workers"], done.rows_after["workers"]) == (1, 1)
    assert done.rows_after["the user's own"] == 2
    assert done.rows_after["fleet_tasks"] == 0
    assert "workflow_runs.directive_chain" in done.bare
    assert "workflow_runs.requires_image" not in done.bare
    assert done.nulls == {
        "workflow_runs.directive_chain": 1,
        "workflow_runs.effective_env_keys": 1,
        "workflow_runs.effective_secret_keys": 1,
    }
    kinds = {(item.table, item.name, item.kind) for item in done.remaining}
    assert ("workflow_runs", "directive_chain", "missing-not-null") in kinds
    assert ("workers", "project_id", "extra-not-null") in kinds
    assert ("workers", "project_id", "default") in kinds
    assert ("prompt_logs", "", "missing-foreign-key") in kinds
    assert not any(item.is_addable for item in done.remaining)
    assert reports[-1] == ("additions", len(done.added), len(done.added))
    assert _rows(old, "SELECT requires_image, directive_chain FROM workflow_runs") == [
        ("ghcr.io/sagewai/sandbox-base:0.0.0-dev", None)
    ]
    assert _rows(old, "SELECT count(*) FROM sqlite_master WHERE name LIKE 'alembic%'") == [(0,)]


def test_home_of_the_real_sagewai_needs_nothing(tmp_path: Path) -> None:
    """A home that 1.0.1 wrote, with learnings, stays as it is to the byte."""
    database = real_homes.unpack("real-small", tmp_path) / "db" / "sagewai.db"
    before = _rows(database, "SELECT * FROM sqlite_master")

    done = upgrade_sqlite.upgrade_database(database)

    assert (done.added, done.remaining, done.nulls) == ((), (), {})
    assert _rows(database, "SELECT * FROM sqlite_master") == before


@pytest.mark.parametrize("content", [b"", None])
def test_empty_database_gets_the_whole_schema(tmp_path: Path, content: bytes | None) -> None:
    """A file of no bytes, or of no tables, becomes what Sagewai would make of it."""
    path = tmp_path / "sagewai.db"
    if content is None:
        _execute(path, "CREATE TABLE t (x)", "DROP TABLE t")
    else:
        path.write_bytes(content)

    done = upgrade_sqlite.upgrade_database(path)

    assert done.before.state == "empty"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert schema_catalogs.read_sqlite(connection) == schema_catalogs.sqlite()


def test_index_over_duplicates_is_reported_and_the_others_are_added(old: Path) -> None:
    """A unique index over duplicates fails alone, with SQLite's reason."""
    _execute(
        old,
        "DROP INDEX idx_workflow_runs_idempotency_key",
        "UPDATE workflow_runs SET idempotency_key = 'k'",
        "INSERT INTO workflow_runs (id, workflow_name, run_id, data, input, idempotency_key)"
        " VALUES ('default:wf:2', 'wf', '2', '{}', '{}', 'k')",
    )

    done = upgrade_sqlite.upgrade_database(old)

    assert list(done.failed) == ["workflow_runs.idx_workflow_runs_idempotency_key"]
    assert "UNIQUE constraint failed" in done.failed[next(iter(done.failed))]
    assert done.after.state == "current"


def test_index_name_of_another_table_is_reported(old: Path) -> None:
    """An index whose name a table of the user has fails alone."""
    _execute(
        old, "DROP INDEX idx_workers_pool", "CREATE INDEX idx_workers_pool ON sessions (summary)"
    )

    done = upgrade_sqlite.upgrade_database(old)

    assert "already exists" in done.failed["workers.idx_workers_pool"]


def test_users_own_table_is_kept_and_named(old: Path) -> None:
    """Its rows and indexes are not changed."""
    _execute(
        old,
        "CREATE TABLE mine (a TEXT UNIQUE, b BLOB)",
        "INSERT INTO mine VALUES ('one', x'00ff'), ('two', NULL)",
    )
    before = _dump(old)["mine"]

    done = upgrade_sqlite.upgrade_database(old)

    assert done.after.state == "current"
    assert "mine" in done.after.unknown_tables
    assert _dump(old)["mine"] == before
    assert (done.rows_before["mine"], done.rows_after["mine"]) == (2, 2)


def test_plan_is_what_a_run_adds(old: Path) -> None:
    """The plan reads only, and its statements are those that are run."""
    before = old.read_bytes()

    plan = upgrade_sqlite.plan_upgrade(old)
    untouched = old.read_bytes()
    done = upgrade_sqlite.upgrade_database(old)

    assert untouched == before
    assert tuple(addition.name for addition in plan) == done.added
    assert {addition.kind for addition in plan} == {"table", "column", "index"}


def test_rehearsal_reports_the_upgrade_and_changes_nothing(old: Path) -> None:
    """It runs on a temporary copy."""
    before = _dump(old)

    rehearsed = upgrade_sqlite.rehearse_upgrade(old, old.parent)
    unchanged, left = _dump(old), sorted(os.listdir(old.parent))
    real = upgrade_sqlite.upgrade_database(old)

    assert rehearsed.rehearsed
    assert (rehearsed.added, rehearsed.bare, rehearsed.nulls) == (real.added, real.bare, real.nulls)
    assert rehearsed.rows_after == real.rows_after
    assert (unchanged, left) == (before, ["sagewai.db"])


def test_next_rehearsal_removes_the_copy_of_a_killed_run(old: Path) -> None:
    """A private copy does not remain in the home."""
    leftover = old.parent / f"{upgrade_sqlite.REHEARSALS}dead"
    leftover.mkdir()
    (leftover / "sagewai.db").write_bytes(b"secret")

    upgrade_sqlite.rehearse_upgrade(old, old.parent)

    assert os.listdir(old.parent) == ["sagewai.db"]


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE workers ADD COLUMN region TEXT",
        "ALTER TABLE agent_runs DROP COLUMN error",
    ],
)
def test_newer_or_unknown_schema_is_refused(tmp_path: Path, change: str) -> None:
    """Columns of a later Sagewai, with or without others missing, are not ours to add to."""
    path = tmp_path / "sagewai.db"
    create_database(path)
    _execute(path, "ALTER TABLE sessions ADD COLUMN mood TEXT", change)
    before = _dump(path)

    for attempt in (upgrade_sqlite.upgrade_database, upgrade_sqlite.plan_upgrade):
        with pytest.raises(SchemaAheadError, match=r"sessions\.mood"):
            attempt(path)

    assert _dump(path) == before


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (None, NotFoundError),
        (b"not a database, whatever its name is", DamagedError),
        (b"SQLite format 3\x00" + b"\x00" * 100, DamagedError),
    ],
)
def test_file_that_is_not_a_database_is_refused(
    tmp_path: Path, content: bytes | None, kind: type[Exception]
) -> None:
    """Missing and other files are distinguished, and none is written."""
    path = tmp_path / "sagewai.db"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(kind, match=r"sagewai\.db"):
        upgrade_sqlite.upgrade_database(path)

    assert (path.read_bytes() if path.exists() else None) == content


def test_truncated_database_is_refused(old: Path) -> None:
    """A file that was cut is damaged, and stays as it is."""
    _execute(old, "PRAGMA wal_checkpoint(TRUNCATE)")
    cut = old.read_bytes()[: 4096 * 5]
    old.write_bytes(cut)

    with pytest.raises(DamagedError):
        upgrade_sqlite.upgrade_database(old)

    assert old.read_bytes() == cut


def test_upgrade_waits_for_a_writer(old: Path) -> None:
    """A lock that ends in time only delays."""
    holder = sqlite3.connect(old, isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN IMMEDIATE")
    holder.execute("DELETE FROM workers")
    release = threading.Timer(0.6, lambda: holder.execute("COMMIT"))
    release.start()
    try:
        done = upgrade_sqlite.upgrade_database(old, wait_seconds=20)
    finally:
        release.join()
        holder.close()

    assert done.rows_before["workers"] == 0
    assert done.after.state == "current"


def test_wait_for_a_writer_times_out(old: Path) -> None:
    """The wait is bounded, and nothing was changed."""
    with contextlib.closing(sqlite3.connect(old, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")

        with pytest.raises(LockedError, match=r"locked by a writer for 0\.3 seconds"):
            upgrade_sqlite.upgrade_database(old, wait_seconds=0.3)

        holder.execute("ROLLBACK")
    with contextlib.closing(sqlite3.connect(old)) as connection:
        assert read_level(connection).state == "behind"


def test_concurrent_upgrades_succeed(old: Path) -> None:
    """The second waits, and finds nothing left to add."""
    done: list[upgrade_sqlite.Upgrade] = []
    upgrade_sqlite.plan_upgrade(old)  # imports, once, before there are threads
    threads = [
        threading.Thread(target=lambda: done.append(upgrade_sqlite.upgrade_database(old)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(bool(upgrade.added) for upgrade in done) == [False, True]


def test_live_readers_see_the_old_schema_until_the_commit(old: Path) -> None:
    """A server that reads during the upgrade is not disturbed."""
    with contextlib.closing(sqlite3.connect(old, isolation_level=None)) as server:
        server.execute("BEGIN")
        server.execute("SELECT count(*) FROM workers").fetchone()

        upgrade_sqlite.upgrade_database(old)

        assert "name" not in [row[1] for row in server.execute("PRAGMA table_info(workers)")]
        server.execute("COMMIT")
        assert "name" in [row[1] for row in server.execute("PRAGMA table_info(workers)")]


def test_kill_in_the_middle_changes_nothing(old: Path) -> None:
    """SIGKILL between two additions: the old schema, whole, and the next run succeeds."""
    before = _dump(old)
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from sagewai_ops.schema import upgrade_sqlite\n"
        "def kill(stage, done, total):\n"
        "    if done == total // 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "upgrade_sqlite.upgrade_database(Path(sys.argv[1]), progress=kill)\n"
    )

    killed = subprocess.run(
        [sys.executable, "-c", code, str(old)], check=False, timeout=PATIENCE_SECONDS
    )

    assert killed.returncode == -9
    assert _dump(old) == before
    assert upgrade_sqlite.upgrade_database(old).after.state == "current"


class _Small(connect.Connection):
    """A connection to a disk with no room left."""

    def __init__(self, *arguments: object, **more: object) -> None:
        super().__init__(*arguments, **more)  # type: ignore[arg-type]
        pages = self.execute("PRAGMA page_count").fetchone()[0]
        self.execute(f"PRAGMA max_page_count = {pages + 3}")


def test_full_disk_changes_nothing(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No space in the middle rolls back and exits as such."""
    before = _dump(old)
    monkeypatch.setattr(connect, "Connection", _Small)

    with pytest.raises(NoSpaceError):
        upgrade_sqlite.upgrade_database(old)

    monkeypatch.undo()
    assert _dump(old) == before


@contextlib.contextmanager
def _unprivileged() -> Iterator[None]:
    """Drop root's privileges in the block, which would open everything."""
    was_root = os.geteuid() == 0
    if was_root:
        os.seteuid(UNPRIVILEGED)
    try:
        yield
    finally:
        if was_root:
            os.seteuid(0)


@pytest.mark.parametrize("mode", [0o444, 0o000])
def test_database_that_may_not_be_written_is_refused(old: Path, mode: int) -> None:
    """The mode of the file is respected."""
    upgrade_sqlite.plan_upgrade(old)  # imports, while they may be read
    _execute(old, "PRAGMA journal_mode = DELETE")
    for directory in (old.parent, *old.parent.parents[:2]):
        directory.chmod(0o755)
    old.chmod(mode)

    with _unprivileged(), pytest.raises(PermissionDeniedError):
        upgrade_sqlite.upgrade_database(old)


def test_lost_row_rolls_back(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A count that changes is a difference, and nothing was changed."""
    before = _dump(old)
    add = upgrade_sqlite._add

    def lossy(connection: sqlite3.Connection, *more: object) -> object:
        connection.execute("DELETE FROM workers")
        return add(connection, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(upgrade_sqlite, "_add", lossy)

    with pytest.raises(DifferenceError, match="table workers had 1 rows before and 0 after"):
        upgrade_sqlite.upgrade_database(old)

    assert _dump(old) == before


def test_broken_reference_rolls_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """References are counted after the additions, and a new break is a difference."""
    path = tmp_path / "sagewai.db"
    create_database(path)
    _execute(path, "INSERT INTO prompt_logs (log_id, run_id, agent_name) VALUES ('p', NULL, 'a')")

    def breaking(connection: sqlite3.Connection, *_more: object) -> object:
        connection.execute("UPDATE prompt_logs SET run_id = 'gone'")
        return (), {}

    monkeypatch.setattr(upgrade_sqlite, "_add", breaking)

    with pytest.raises(DifferenceError, match="1 references would break"):
        upgrade_sqlite.upgrade_database(path)

    assert _rows(path, "SELECT run_id FROM prompt_logs") == [(None,)]


def test_references_broken_before_are_reported(tmp_path: Path) -> None:
    """They do not stop an upgrade, which cannot have broken them."""
    path = tmp_path / "sagewai.db"
    create_database(path)
    _execute(
        path,
        "INSERT INTO prompt_logs (log_id, run_id, agent_name) VALUES ('p', 'gone', 'a')",
        "DROP TABLE fleet_tasks",
    )

    done = upgrade_sqlite.upgrade_database(path)

    assert (done.dangling, done.after.state) == (1, "current")


def test_reference_that_cannot_be_checked_does_not_stop_an_upgrade(tmp_path: Path) -> None:
    """A parent without its unique key is drift; SQLite cannot check what refers to it."""
    path = tmp_path / "sagewai.db"
    create_database(path)
    _execute(path, "DROP TABLE project", "CREATE TABLE project (id TEXT NOT NULL PRIMARY KEY)")

    done = upgrade_sqlite.upgrade_database(path)

    assert done.after.state == "current"
    assert ("project", "missing-unique") in {(item.table, item.kind) for item in done.remaining}
