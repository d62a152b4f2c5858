"""`db check` of a home: everything that is wrong with it, and nothing written."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import string
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import asyncpg
import pytest

import old_homes
import real_homes
from postgres_server import Server
from sagewai_ops.errors import DamagedError, InterruptedRunError, NotFoundError, OpsError
from sagewai_ops.export.validate import home_values
from sagewai_ops.operations import check_database as check_database_module
from sagewai_ops.operations.check_database import check_database
from sagewai_ops.operations.check_worker import CheckWorker
from sagewai_ops.process.threads import ThreadPool
from sagewai_ops.schema import check_sqlite
from sagewai_ops.schema.create import create_database
from sagewai_ops.schema.findings import Finding, format_key
from sagewai_ops.schema.revision_graph import HEAD
from sagewai_ops.schema.upgrade_sqlite import upgrade_database
from targets import home_with

TO_WORKFLOWS = (
    "references saved_workflows (id) on delete cascade: refers to a row that does not exist"
)
TO_KEYS = "references harness_keys (id) on delete set null: not checked, no such parent"

# Fails to commit while others read, and then keeps new readers out.
_WAITING_WRITER = """
import sqlite3, sys
server = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=0)
server.execute("BEGIN IMMEDIATE")
server.execute("DELETE FROM org")
try:
    server.execute("COMMIT")
except sqlite3.OperationalError:
    print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A fresh home's database."""
    path = tmp_path / "sagewai.db"
    create_database(path)
    return path


@pytest.fixture(autouse=True, params=["thread", "process"])
def checker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each check in two threads, and again with a process for one of them."""
    if request.param == "process":
        monkeypatch.setattr(check_database_module, "_WORKER_BYTES", 0)
        monkeypatch.setattr(check_sqlite, "_WORKER_ROWS", 0)


def _execute(path: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        for statement in statements:
            connection.execute(statement)


def _found(path: Path) -> list[tuple[str, str, int]]:
    """Return kind, place and count of each finding of a check."""
    return [
        (finding.kind, finding.place, finding.count) for finding in check_database(path).findings
    ]


def test_fresh_home_has_no_findings(home: Path) -> None:
    """Nothing is wrong with what Sagewai would build."""
    checked = check_database(home)

    assert checked.findings == ()
    assert (checked.level.revision, checked.level.state) == (HEAD, "current")
    assert set(checked.rows.values()) == {0}
    assert checked.pages * checked.page_size == home.stat().st_size
    assert checked.free_pages == 0


@pytest.mark.parametrize("name", ["real-small", "legacy-flat", "legacy-both-differ"])
def test_healthy_home_of_the_real_sagewai_has_no_findings(tmp_path: Path, name: str) -> None:
    """Its rows are counted, its learnings are not unknown tables, and its bytes do not change."""
    database = real_homes.unpack(name, tmp_path) / "db" / "sagewai.db"
    files = [database, Path(f"{database}-wal")]
    before = [file.read_bytes() for file in files]

    checked = check_database(database)

    assert checked.virtual_tables == ("vec_learnings",)
    assert checked.unknown_tables == ()
    assert sum(checked.rows.values()) > 100
    assert checked.findings == ()
    assert [file.read_bytes() for file in files] == before


def test_harness_ids_and_text_booleans_are_notes(tmp_path: Path) -> None:
    """An ordinary home has both in many tables: an export converts them."""
    home = home_with(tmp_path / "home", rows=5)

    checked = check_database(home.database)

    assert checked.findings == ()
    notes = {(note.kind, note.place): note for note in checked.notes}
    assert notes["derived-uuid", "harness_keys.id"].count == 5
    assert {kind for kind, _ in notes} <= {"derived-uuid", "boolean-word", "null-list"}
    assert ("boolean-word", "workflow_runs.input_encrypted") in notes


def test_every_kind_of_value_is_found_with_keys(home: Path) -> None:
    """Column, reason, count and the first keys; never the value."""
    _execute(
        home,
        *(
            f"INSERT INTO workers (worker_id, labels, metadata, models_supported, models_canonical,"
            f" capabilities, max_concurrent) VALUES ('w{n}', '{{}}', '{{\"pw\": \"\\u0000\"}}',"
            f" '[]', '[1]', '{{}}', 99999999999)"
            for n in range(7)
        ),
        "INSERT INTO harness_audit (id, timestamp, event_type, details)"
        " VALUES ('0d4268756d86', '2026-02-30 00:00:00', 'x', 'NaN')",
        "INSERT INTO users (id, email, display_name, is_active)"
        " VALUES (CAST(x'ff' AS TEXT), 'e', 'a' || char(0), 'false')",
    )

    checked = check_database(home)

    found = {(finding.place, finding.kind): finding for finding in checked.findings}
    assert {(note.place, note.kind) for note in checked.notes} == {
        ("harness_audit.id", "derived-uuid"),
        ("users.is_active", "boolean-word"),
    }
    assert set(found) == {
        ("workers.max_concurrent", "out-of-range"),
        ("workers.metadata", "json-nul"),
        ("workers.models_canonical", "list-element"),
        ("harness_audit.timestamp", "not-a-timestamp"),
        ("harness_audit.details", "json-nan"),
        ("users.id", "invalid-utf8"),
        ("users.display_name", "nul"),
    }
    many = found["workers.metadata", "json-nul"]
    assert (many.count, many.examples) == (7, ("w0", "w1", "w2", "w3", "w4"))
    assert many.shown == (
        "workers.metadata: an escaped NUL character, 7 rows: w0, w1, w2, w3, w4, ..."
    )
    assert found["users.id", "invalid-utf8"].examples == ("\\xff",)


def _noise(length: int) -> str:
    """Make a text that PostgreSQL cannot compress."""
    return "".join(random.Random(length).choices(string.ascii_letters + string.digits, k=length))


_AGENT = (
    "INSERT INTO agent (id, project_id, name, spec)"
    f" VALUES ('k', '{_noise(2000)}', '{_noise(2001)}', '{{}}')"
)
_RUN = (
    "INSERT INTO workflow_runs (id, workflow_name, run_id, data, input, effective_env_keys,"
    " effective_secret_keys, directive_chain, target_pool)"
    f" VALUES ('d:w:1', 'w', '1', '{{}}', '{{}}', '$', '$', '[]', '{_noise(4000)}')"
)
_WORKER = (
    "INSERT INTO workers (worker_id, labels, metadata, models_supported, capabilities,"
    f" models_canonical) VALUES ('k', '{{}}', '{{}}', '$', '{{}}', '%\"a\", \"{_noise(4000)}\"%')"
)


@pytest.mark.parametrize(
    ("place", "reason", "insert"),
    [
        ("agent", "more than 2600 bytes in an index of project_id and name", _AGENT),
        ("workflow_runs.target_pool", "more than 2600 bytes in an index of target_pool", _RUN),
        (
            "workers.models_canonical",
            "more than 2600 bytes in an index of models_canonical",
            _WORKER,
        ),
    ],
)
def test_rows_that_an_index_of_postgres_refuses_are_found(
    home: Path, postgres: Server, place: str, reason: str, insert: str
) -> None:
    """Also by an index that a home lacks, of an array, and by several texts of which none does."""
    _execute(home, insert.replace("$", "[]").replace("%", "[", 1).replace("%", "]"))
    database = postgres.at(HEAD)

    found = [finding for finding in check_database(home).findings if finding.kind == "index-row"]

    assert [(finding.place, finding.reason, finding.count) for finding in found] == [
        (place, reason, 1)
    ]
    with pytest.raises(asyncpg.PostgresError, match="index row size"):
        postgres.run(database, insert.replace("$", "{}").replace("%", "{", 1).replace("%", "}"))
    postgres.drop(database)


def test_long_text_that_may_compress_is_a_note(home: Path) -> None:
    """The server alone decides whether its index accepts it."""
    _execute(home, _RUN.replace("$", "[]").replace(_noise(4000), "x" * 4000))

    checked = check_database(home)

    assert checked.findings == ()
    assert ("index-row", "workflow_runs.target_pool") in {
        (note.kind, note.place) for note in checked.notes
    }


def test_long_texts_without_a_common_index_are_accepted(home: Path) -> None:
    """Two of 1300 bytes, a list of many, and long ones without an index."""
    many = ", ".join(f'"{_noise(2000)}"' for _ in range(9))
    _execute(
        home,
        f"INSERT INTO agent (id, project_id, name, spec) VALUES ('{_noise(2600)}',"
        f" '{_noise(1300)}', '{_noise(1300)}', '\"{_noise(9000)}\"')",
        "INSERT INTO workers (worker_id, labels, metadata, models_supported, capabilities,"
        f" models_canonical) VALUES ('k', '{{}}', '{{}}', '[]', '{{}}', '[{many}]')",
    )

    assert check_database(home).findings == ()


def test_references_that_lead_nowhere_are_found(home: Path) -> None:
    """Simple and composite; one with a NULL in it refers to nothing and is fine."""
    _execute(
        home,
        "INSERT INTO org (id, name, slug, timezone, settings) VALUES ('o', 'O', 'o', 'UTC', '{}')",
        "INSERT INTO prompt_logs (log_id, run_id, agent_name, is_example) VALUES ('p', '', 'a', 0)",
        "INSERT INTO audit_event (org_id, project_id, action, metadata, seq, hash)"
        " VALUES ('o', 'gone', 'x', '{}', 1, 'h'), ('o', NULL, 'x', '{}', 2, 'h')",
    )

    found = check_database(home).findings

    assert [
        (finding.kind, finding.place, finding.count, finding.examples) for finding in found
    ] == [
        ("foreign-key", "audit_event", 1, ("1",)),
        ("foreign-key", "prompt_logs.run_id", 1, ("p",)),
    ]


def test_checks_that_only_postgres_has_are_tried(home: Path) -> None:
    """A workflow run in a mode that PostgreSQL does not know; NULL is no mode."""
    _execute(
        home,
        "INSERT INTO workflow_runs (id, workflow_name, run_id, data, input, effective_env_keys,"
        " effective_secret_keys, directive_chain, execution_mode, requires_variant,"
        " input_encrypted, output_encrypted, replay_re_evaluate_directives)"
        " VALUES ('a', 'w', 'r', '{}', '{}', '[]', '[]', '[]', 'wild', NULL, 0, 0, 0)",
        "INSERT INTO fleet_tasks (run_id, org_id, labels, payload, status)"
        " VALUES ('t', 'o', '{}', '{}', 'lost')",
    )

    found = [finding.shown for finding in check_database(home).findings]

    assert found == [
        "fleet_tasks: violates the CHECK ck_fleet_tasks_status, 1 rows: t",
        "workflow_runs: violates the CHECK runs_execution_mode_valid, 1 rows: a",
    ]


def test_duplicates_that_only_postgres_refuses_are_found(home: Path) -> None:
    """Saved, deleted and saved again: ordinary in a home, refused on PostgreSQL."""
    _execute(
        home,
        "INSERT INTO saved_workflows (id, name, yaml_content, is_active)"
        " VALUES ('1', 'n', '', 0), ('2', 'n', '', 1)",
        "INSERT INTO saved_workflow_versions (id, workflow_id, version, yaml_content)"
        " VALUES ('v1', '1', 1, ''), ('v2', '1', 1, ''), ('v3', '2', 1, '')",
    )

    found = {
        finding.table: finding
        for finding in check_database(home).findings
        if finding.kind == "unique"
    }

    assert {
        table: (finding.kind, finding.count, finding.examples) for table, finding in found.items()
    } == {
        "saved_workflows": ("unique", 2, ("default/n",)),
        "saved_workflow_versions": ("unique", 2, ("1/1",)),
    }


def test_duplicates_are_found_where_an_index_is_missing(home: Path) -> None:
    """Partial indexes count for their rows alone, and NULL equals nothing."""
    _execute(
        home,
        "DROP INDEX ux_provider_global_name",
        "DROP INDEX ux_provider_proj_name",
        "INSERT INTO provider (id, project_id, provider_name, data) VALUES ('1', NULL, 'x', '{}'),"
        " ('2', NULL, 'x', '{}'), ('3', 'p', 'x', '{}'), ('4', 'q', 'x', '{}')",
    )

    found = [finding for finding in check_database(home).findings if finding.kind == "unique"]

    assert [(finding.table, finding.count, finding.examples) for finding in found] == [
        ("provider", 2, ("x",))
    ]


def test_old_home_is_behind(tmp_path: Path) -> None:
    """The level, and every table and column that is missing."""
    path = tmp_path / "sagewai.db"
    old_homes.build(path, "017_api_tokens")

    found = check_database(path).findings

    assert found[0] == Finding("level", "", "", "is behind, at 017_api_tokens")
    assert ("drift", "fleet_tasks") in {(finding.kind, finding.place) for finding in found}
    assert ("drift", "workers.secret_hash") in {(finding.kind, finding.place) for finding in found}


def test_nulls_that_an_upgrade_leaves_are_notes(tmp_path: Path) -> None:
    """The export writes the default into columns that were added without it."""
    path = tmp_path / "sagewai.db"
    old_homes.build(path, "001_initial")
    _execute(
        path,
        "INSERT INTO workflow_runs (id, workflow_name, run_id, data, input)"
        " VALUES ('a', 'w', 'r', '{}', '{}')",
    )
    upgrade_database(path)

    nulls = [finding.place for finding in check_database(path).notes if finding.kind == "null"]

    assert nulls == [
        "workflow_runs.effective_env_keys",
        "workflow_runs.effective_secret_keys",
        "workflow_runs.directive_chain",
    ]


def test_missing_parent_and_lost_reference_are_found(home: Path) -> None:
    """A reference that the table does not declare is checked too."""
    _execute(
        home,
        "DROP TABLE saved_workflow_versions",
        "CREATE TABLE saved_workflow_versions (id TEXT NOT NULL PRIMARY KEY, workflow_id TEXT)",
        "INSERT INTO saved_workflow_versions VALUES ('v', 'gone')",
        "DROP TABLE harness_keys",
    )

    found = {
        finding.shown for finding in check_database(home).findings if finding.kind == "foreign-key"
    }

    assert found == {
        f"saved_workflow_versions.workflow_id: workflow_id {TO_WORKFLOWS}, 1 rows: v",
        f"harness_spend: key_id {TO_KEYS}",
    }


def test_users_own_tables_are_named_and_no_finding(home: Path) -> None:
    """They stay in the file; another tool's version table is a finding."""
    _execute(home, "CREATE TABLE mine (x)", "INSERT INTO mine VALUES (NULL), (x'00')")

    checked = check_database(home)

    assert (checked.findings, checked.unknown_tables) == ((), ("mine",))
    assert checked.rows["mine"] == 2
    _execute(home, "CREATE TABLE alembic_version (version_num TEXT)")
    assert [(finding.kind, finding.table) for finding in check_database(home).findings] == [
        ("level", "alembic_version")
    ]


@pytest.mark.parametrize("state", ["ahead", "empty"])
def test_level_that_is_not_ours_is_a_finding(tmp_path: Path, state: str) -> None:
    """Ahead and empty are different states."""
    path = tmp_path / "sagewai.db"
    create_database(path)
    if state == "ahead":
        _execute(path, "ALTER TABLE workers ADD COLUMN region TEXT")
    else:
        path.write_bytes(b"")

    assert check_database(path).findings[0].reason == f"is {state}"


def test_damage_is_found_beside_everything_else(home: Path) -> None:
    """A page overwritten: SQLite's sentences, and the tables that cannot be read to their end."""
    rows = ", ".join(f"('r{n}', 'a', '{'x' * 200}')" for n in range(200))
    _execute(
        home,
        f"INSERT INTO agent_runs (run_id, agent_name, input_text) VALUES {rows}",
        "INSERT INTO prompt_logs (log_id, run_id, agent_name) VALUES ('p', 'gone', 'a')",
        "PRAGMA wal_checkpoint(TRUNCATE)",
    )
    with contextlib.closing(sqlite3.connect(home)) as connection:
        page = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'agent_runs'"
        ).fetchone()[0]
    content = bytearray(home.read_bytes())
    for place in range((page - 1) * 4096, page * 4096):
        content[place] ^= 0xFF
    home.write_bytes(content)

    found = check_database(home).findings

    assert {"integrity"} <= {finding.kind for finding in found}
    assert ("integrity", "agent_runs") in {(finding.kind, finding.place) for finding in found}


def test_cut_database_is_found_out(home: Path) -> None:
    """A file that lost pages at its end is damaged, wherever it was cut, and never sound."""
    whole = home.read_bytes()
    for kept in (len(whole) - 4096, len(whole) // 2, 4096 + 1, 4096, 100):
        home.write_bytes(whole[:kept])

        try:
            found = [finding.kind for finding in check_database(home).findings]
        except DamagedError:
            found = ["integrity"]

        assert "integrity" in found
        assert home.read_bytes() == whole[:kept]


def test_table_of_another_program_is_read_for_what_it_has(home: Path) -> None:
    """One that has our name and no column of ours is drift, and no failure."""
    _execute(home, "DROP TABLE agent", "CREATE TABLE agent (mine TEXT)")
    _execute(home, "INSERT INTO agent VALUES ('x')")

    checked = check_database(home)

    assert checked.level.state == "unknown"
    assert ("drift", "agent.id") in {(finding.kind, finding.place) for finding in checked.findings}


def test_long_rows_are_read_alone(home: Path) -> None:
    """A row too long to be joined with others is checked like them."""
    long = "x" * 40_000
    insert = "INSERT INTO sessions (session_id, agent_name, messages, memory_keys) VALUES"
    _execute(
        home,
        f"{insert} ('fine', 'a', '[\"{long}\"]', '[]')",
        f"{insert} ('nul', 'a', '[\"{long}\\u0000\"]', '[]')",
        f"{insert} ('bytes', 'a' || CAST(x'ff' AS TEXT), '[\"{long}\"]', '[]')",
        f"{insert} ('null', 'a', '[\"{long}\"]', '0.5')",
    )

    found = {finding.place: finding.examples for finding in check_database(home).findings}

    assert found == {
        "sessions.messages": ("nul/default",),
        "sessions.agent_name": ("bytes/default",),
    }


def test_rows_far_apart_are_all_read(home: Path) -> None:
    """Row ids at both ends of what there is, and gaps between."""
    values = ", ".join(
        f"({number}, 'a{number}', '', 1, 0, '', '')"
        for number in (-(2**63), -5, 0, 7, 10**12, 2**63 - 1)
    )
    _execute(
        home,
        "INSERT INTO budget_limits (id, agent_name, project_id, max_daily_usd, max_monthly_usd,"
        f" action, fallback_chain) VALUES {values}",
        "UPDATE budget_limits SET max_daily_usd = 'much'",
    )

    assert _found(home) == [
        ("out-of-range", "budget_limits.id", 3),  # beyond 32 bits
        ("storage-class", "budget_limits.max_daily_usd", 6),
    ]


def test_table_without_row_ids_is_a_finding(home: Path) -> None:
    """Its values are not passed over in silence."""
    _execute(
        home,
        "DROP TABLE playground_agents",
        "CREATE TABLE playground_agents (name VARCHAR(255) PRIMARY KEY) WITHOUT ROWID",
    )

    found = [finding.shown for finding in check_database(home).findings]

    assert "playground_agents: is WITHOUT ROWID, so its values were not read" in found


@pytest.mark.parametrize(("content", "kind"), [(None, NotFoundError), (b"x" * 5000, DamagedError)])
def test_what_is_no_database_is_an_error(
    tmp_path: Path, content: bytes | None, kind: type[Exception]
) -> None:
    """There is nothing to check, which is more than a finding."""
    path = tmp_path / "sagewai.db"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(kind):
        check_database(path)


def test_live_writer_is_neither_waited_for_nor_stopped(home: Path) -> None:
    """A server in the middle of a transaction writes on; one moment is checked."""
    with contextlib.closing(sqlite3.connect(home, isolation_level=None)) as server:
        server.execute("BEGIN IMMEDIATE")
        server.execute("INSERT INTO org (id, name, slug, timezone, settings)"
                       " VALUES ('o', 'O', 'o', 'UTC', 'NaN')")  # fmt: skip

        before = check_database(home)
        server.execute("COMMIT")
        after = check_database(home)

    assert (before.rows["org"], before.findings) == (0, ())
    assert [finding.place for finding in after.findings] == ["org.settings"]


@pytest.mark.parametrize("checker", ["process"], indirect=True)
def test_writer_that_waits_is_no_damage(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lets in no other process, so this one checks everything itself."""
    can_share = []
    open_database = CheckWorker.open
    with contextlib.closing(sqlite3.connect(home, isolation_level=None)) as server:
        server.execute("PRAGMA journal_mode = DELETE")

    def wait(worker: CheckWorker, path: Path) -> bool:
        command = [sys.executable, "-c", _WAITING_WRITER, os.fspath(path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"locked\n"
            can_share.append(open_database(worker, path))
            writer.communicate()
        return can_share[0]

    monkeypatch.setattr(CheckWorker, "open", wait)

    checked = check_database(home)

    assert can_share == [False]
    assert checked.findings == ()


@pytest.mark.parametrize("checker", ["process"], indirect=True)
def test_worker_that_is_killed_is_an_error(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a check has no result."""
    find_damage = CheckWorker.find_damage

    def kill(worker: CheckWorker) -> tuple[tuple[str, ...], dict[str, str]]:
        worker.stop()
        return find_damage(worker)

    monkeypatch.setattr(CheckWorker, "find_damage", kill)

    with pytest.raises(OpsError, match="worker process: ended with status -9"):
        check_database(home)


def test_nothing_is_left_beside_the_database(home: Path) -> None:
    """No file appears, and the database's own does not change."""
    before = home.read_bytes()

    check_database(home)

    assert os.listdir(home.parent) == ["sagewai.db"]
    assert home.read_bytes() == before


def test_interruption_ends_the_check_at_once(home: Path) -> None:
    """What the progress callback raises is raised, and the other thread ends."""
    _execute(
        home,
        "INSERT INTO org (id, name, slug, timezone, settings) VALUES ('o', 'O', 'o', 'UTC', '{}')",
    )

    def interrupt(_stage: str, _done: int, _total: int) -> None:
        raise InterruptedRunError(2)

    with pytest.raises(InterruptedRunError):
        check_database(home, progress=interrupt)

    assert [thread.name for thread in threading.enumerate() if "check" in thread.name] == []


def test_interruption_of_the_first_submission_ends_the_threads(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check of a large database would take minutes after the message."""
    submit = ThreadPool.submit

    def interrupt(pool: ThreadPool, function: Any, *arguments: Any) -> None:
        submit(pool, function, *arguments)
        raise InterruptedRunError(2)

    monkeypatch.setattr(ThreadPool, "submit", interrupt)

    with pytest.raises(InterruptedRunError):
        check_database(home)

    assert [thread.name for thread in threading.enumerate() if "check" in thread.name] == []


def test_progress_counts_the_rows(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends at the number of rows in Sagewai's tables."""
    _execute(home, *(f"INSERT INTO rate_limits VALUES ('k', {n}, 1)" for n in range(50)))
    monkeypatch.setattr(home_values, "_ROWS", 20)
    calls: list[tuple[str, int, int]] = []

    check_database(home, progress=lambda *call: calls.append(call))

    assert calls == [("values", 20, 50), ("values", 40, 50), ("values", 50, 50)]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (("a", 5), "a/5"),
        ((b"\xc3\xa9\xff",), "é\\xff"),
        (("line\nbreak",), "line\\nbreak"),
        (("x" * 100,), "x" * 60 + "..."),
    ],
)
def test_keys_fit_on_a_line(values: tuple[object, ...], text: str) -> None:
    """Control characters and broken bytes are escaped, long ones cut."""
    assert format_key(values) == text
