"""The export that copies while Sagewai runs: what is written until it stops arrives too."""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import signal
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cut_connection import COMMIT, cutting
from other_process import running
from postgres_server import Server
from sagewai_ops.database.url import PostgresUrl, parse
from sagewai_ops.errors import (
    DamagedError,
    DifferenceError,
    InterruptedRunError,
    NoSpaceError,
    PermissionDeniedError,
    RemoteError,
    TargetBusyError,
)
from sagewai_ops.export.export import Options, export
from sagewai_ops.export.live_first import STOP, STOPPED, UNCHANGED, LiveFirst, StopOptions
from sagewai_ops.export.report import Report
from sagewai_ops.home.paths import Home
from sagewai_ops.home.server_record import PLACE
from targets import (
    at_head,
    copy_of,
    counts_of,
    exported,
    home_with,
    opened_elsewhere,
    small_directory,
    state_of,
    url_of,
)

Change = Callable[[sqlite3.Connection], object]


def run_live_first(
    home: Home,
    server: Server,
    database: str,
    change: Change | None = None,
    *,
    every_row: bool = False,
    **options: object,
) -> tuple[Report, list[str]]:
    """Export a home that changes when it has to stop; return the report and the events."""
    events: list[str] = []

    def notify(event: str) -> None:
        events.append(event)
        if event == STOP and change is not None:
            write(home, change)

    phase = LiveFirst(notify, StopOptions(wait_seconds=1), every_row=every_row)
    return exported(home, server, database, live_first=phase, **options), events


def write(home: Home, change: Change) -> None:
    """Change the database of a home."""
    with contextlib.closing(sqlite3.connect(home.database)) as connection:
        change(connection)
        connection.commit()


def execute(*statements: str) -> Change:
    """Return a change that runs statements."""

    def change(connection: sqlite3.Connection) -> None:
        for statement in statements:
            connection.execute(statement)

    return change


def require_equal(home: Home, server: Server, database: str, **options: object) -> None:
    """Compare every row of the target with the home, and the sequences."""
    report = exported(home, server, database, purpose="verify", **options)
    assert all(table.compared and table.compared.same for table in report.tables)


NO_LOG = "run_id NOT IN (SELECT run_id FROM prompt_logs WHERE run_id IS NOT NULL)"
CHANGES = {
    "nothing": execute(),
    "inserted": execute(
        "INSERT INTO budget_spend (id, project_id, agent_name, cost_usd) VALUES (9001, 'p', 'a', 1)"
    ),
    "deleted": execute(f"DELETE FROM agent_runs WHERE rowid % 2 = 0 AND {NO_LOG}"),
    "updated": execute("UPDATE agent_runs SET output_text = 'later' WHERE rowid % 3 = 0"),
    "text key": execute(f"UPDATE agent_runs SET run_id = run_id || '-later' WHERE {NO_LOG}"),
    "composite key": execute("UPDATE sessions SET project_id = 'elsewhere' WHERE rowid = 1"),
    "uuid key": execute("UPDATE harness_keys SET name = 'later'", "DELETE FROM harness_policies"),
    "number key": execute("UPDATE rate_limits SET count = count + 1"),
    "workflow id": execute("UPDATE workflow_runs SET status = 'completed', run_id = run_id || 'x'"),
    "parents": execute(
        "UPDATE org SET name = name || ' later'", "UPDATE users SET email = 'later-' || email"
    ),
    "emptied": execute("DELETE FROM prompt_logs", "DELETE FROM agent_runs"),
    "audit": execute("DELETE FROM audit_event WHERE rowid = 1"),
    "unique values": execute(
        "UPDATE org SET slug = 'free' WHERE rowid = 1",
        "INSERT INTO org (id, name, slug, timezone, settings)"
        " SELECT 'other', name, 'taken', timezone, settings FROM org WHERE rowid = 1",
    ),
    "row numbers": execute(f"UPDATE agent_runs SET rowid = rowid + 10000 WHERE {NO_LOG}"),
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home with rows in every table, one of them large enough for deferred indexes."""
    return home_with(tmp_path_factory.mktemp("original") / "home", rows_in={"agent_runs": 700})


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_written_until_the_stop_arrives(home: Home, postgres: Server, name: str) -> None:
    """Rows that are inserted, deleted, updated, with keys of every kind."""
    database = at_head(postgres)

    report, events = run_live_first(home, postgres, database, CHANGES[name])

    assert report.committed
    assert report.exit_code == 0
    assert events == [STOP, STOPPED]
    caught_up = report.caught_up
    assert caught_up is not None
    assert (caught_up.sent + caught_up.deleted > 0) == (name != "nothing")
    assert caught_up.compared_again == caught_up.sent or caught_up.compared_whole
    assert 0 < caught_up.stopped_seconds < 600
    assert counts_of(postgres, database) == {each.name: each.rows for each in report.tables}
    assert all(each.compared is not None and each.compared.same for each in report.tables)
    require_equal(home, postgres, database)


def test_every_row_is_compared_again_when_asked(home: Home, postgres: Server) -> None:
    """Not a sample: each table as a whole."""
    database = at_head(postgres)

    report, _ = run_live_first(home, postgres, database, CHANGES["updated"], every_row=True)

    assert report.committed
    assert report.caught_up is not None
    assert set(report.caught_up.compared_whole) == {table.name for table in report.tables}
    require_equal(home, postgres, database)


def test_tables_change_whether_they_have_rows(tmp_path: Path, postgres: Server) -> None:
    """One gets its first row between the copies, another loses its last."""
    home = home_with(tmp_path / "home", execute("DELETE FROM budget_spend"))
    database = at_head(postgres)

    report, _ = run_live_first(
        home,
        postgres,
        database,
        execute(
            "INSERT INTO budget_spend (id, project_id, agent_name, cost_usd)"
            " VALUES (7, 'p', 'a', 1)",
            "DELETE FROM rate_limits",
        ),
    )

    assert report.committed
    assert "rate_limits" in report.empty
    assert counts_of(postgres, database)["budget_spend"] == 1
    assert "rate_limits" not in counts_of(postgres, database)
    require_equal(home, postgres, database)


def test_a_vacuum_is_correct_and_reported(home: Home, postgres: Server) -> None:
    """Every page differs, and no row."""
    database = at_head(postgres)
    write(home, execute("DELETE FROM agent_runs WHERE rowid BETWEEN 100 AND 300 AND " + NO_LOG))

    def vacuum(connection: sqlite3.Connection) -> None:
        connection.execute("VACUUM")

    report, _ = run_live_first(home, postgres, database, vacuum)

    caught_up = report.caught_up
    assert report.committed
    assert caught_up is not None
    assert caught_up.changed_pages > caught_up.pages / 2
    require_equal(home, postgres, database)


def test_rows_that_move_to_other_pages_are_not_sent(home: Home, postgres: Server) -> None:
    """One row grows, its neighbours have to move: only that one is replaced."""
    database = at_head(postgres)
    grow = "UPDATE agent_runs SET output_text = hex(zeroblob(1200)) WHERE rowid = 350"

    report, _ = run_live_first(home, postgres, database, execute(grow))

    caught_up = report.caught_up
    assert report.committed
    assert caught_up is not None
    assert (caught_up.deleted, caught_up.sent) == (1, 1)
    assert caught_up.changed_pages > 2
    require_equal(home, postgres, database)


def test_many_changes_are_found_without_the_pages(
    home: Home, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows of the table are read then, and the report names it."""
    database = at_head(postgres)
    monkeypatch.setattr("sagewai_ops.database.sqlite.page_changes.MOST_ROWS", 50)

    report, _ = run_live_first(home, postgres, database, CHANGES["updated"])

    assert report.committed
    assert report.caught_up is not None
    assert report.caught_up.scanned == ("agent_runs",)
    require_equal(home, postgres, database)


def test_a_writer_that_moves_values_between_tables_leaves_their_sum(
    home: Home, postgres: Server
) -> None:
    """Each transaction moves an amount; the target has what the home has at the end, no half."""
    database = at_head(postgres)
    write(
        home,
        execute("UPDATE budget_spend SET cost_usd = 100", "UPDATE agent_runs SET cost_usd = 0"),
    )
    (before,) = _amounts(home)
    stop = threading.Event()
    moved: list[int] = []

    def transfer() -> None:
        with contextlib.closing(sqlite3.connect(home.database, timeout=60)) as connection:
            while not stop.is_set():
                connection.execute("BEGIN IMMEDIATE")
                connection.execute(
                    "UPDATE budget_spend SET cost_usd = cost_usd - 1 WHERE rowid = 1"
                )
                connection.execute("UPDATE agent_runs SET cost_usd = cost_usd + 1 WHERE rowid = 3")
                connection.execute("COMMIT")
                moved.append(1)

    writer = threading.Thread(target=transfer)

    def notify(event: str) -> None:
        if event == STOP:
            while len(moved) < 20:
                assert writer.is_alive()
            stop.set()
            writer.join()

    writer.start()
    try:
        report = exported(home, postgres, database, live_first=LiveFirst(notify))
    finally:
        stop.set()
        writer.join()

    assert report.committed
    query = (
        "SELECT (SELECT sum(cost_usd) FROM budget_spend) + (SELECT sum(cost_usd) FROM agent_runs)"
    )
    assert postgres.rows(database, query) == [(before,)]
    require_equal(home, postgres, database)


def _amounts(home: Home) -> tuple[float]:
    query = (
        "SELECT (SELECT sum(cost_usd) FROM budget_spend) + (SELECT sum(cost_usd) FROM agent_runs)"
    )
    with contextlib.closing(sqlite3.connect(home.database)) as connection:
        row: tuple[float] = connection.execute(query).fetchone()
    return row


def test_a_process_that_does_not_stop_ends_the_export(home: Home, postgres: Server) -> None:
    """Exit 15 after the wait; neither side is changed."""
    database = at_head(postgres)
    before = state_of(postgres, database)
    events: list[str] = []
    phase = LiveFirst(events.append, StopOptions(wait_seconds=0.5))

    with (
        opened_elsewhere(home) as process,
        pytest.raises(TargetBusyError, match="in use by") as met,
    ):
        exported(home, postgres, database, live_first=phase)

    assert f"pid {process.pid}" in met.value.message
    assert events == [STOP, UNCHANGED]
    assert state_of(postgres, database) == before
    assert not (home.root / PLACE).exists()


WRITER = """
import sqlite3, time
connection = sqlite3.connect(sys.argv[1], timeout=60)
connection.execute("UPDATE budget_spend SET cost_usd = 0")
connection.commit()
pause()
while True:
    connection.execute("UPDATE budget_spend SET cost_usd = cost_usd + 1")
    connection.commit()
    time.sleep(0.005)
"""


def test_a_writer_that_never_stops_ends_the_export(home: Home, postgres: Server) -> None:
    """Exit 15: it wrote before the stop and after it, and the target has nothing."""
    database = at_head(postgres)
    before = state_of(postgres, database)
    events: list[str] = []
    amounts: list[float] = []

    def notify(event: str) -> None:
        events.append(event)
        query = "SELECT max(cost_usd) FROM budget_spend"
        with contextlib.closing(sqlite3.connect(home.database, timeout=60)) as connection:
            amounts.extend(connection.execute(query).fetchone())

    phase = LiveFirst(notify, StopOptions(wait_seconds=0.5))
    with running(WRITER, str(home.database)) as writer:
        assert writer.process.stdin
        writer.process.stdin.write("\n")
        writer.process.stdin.flush()
        with pytest.raises(TargetBusyError, match=f"in use by .*pid {writer.pid}") as met:
            exported(home, postgres, database, live_first=phase)

    assert met.value.exit_code == 15
    assert events == [STOP, UNCHANGED]
    assert 0 < amounts[0] < amounts[1]
    assert state_of(postgres, database) == before
    assert not (home.root / PLACE).exists()
    assert not list(home.root.parent.glob("home.exports/.*"))


def test_a_writer_after_the_stop_ends_the_export(home: Home, postgres: Server) -> None:
    """A row that was written after the second copy would be lost."""
    database = at_head(postgres)
    before = state_of(postgres, database)

    def notify(event: str) -> None:
        if event == STOPPED:
            copied = threading.Timer(0, write, (home, CHANGES["inserted"]))
            copied.start()
            copied.join()

    with pytest.raises(TargetBusyError, match="changed after Sagewai had stopped"):
        exported(home, postgres, database, live_first=LiveFirst(notify))

    assert state_of(postgres, database) == before


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE agent_runs ADD COLUMN later TEXT",
        "CREATE TABLE own (id INTEGER PRIMARY KEY)",
        "CREATE INDEX later ON agent_runs (model, cost_usd)",
        "DROP TABLE rate_limits",
    ],
)
def test_another_schema_ends_the_export(home: Home, postgres: Server, statement: str) -> None:
    """An upgrade between the copies is refused, and rolled back."""
    database = at_head(postgres)
    before = state_of(postgres, database)

    with pytest.raises(TargetBusyError, match="its schema was changed during the export"):
        run_live_first(home, postgres, database, execute(statement))

    assert state_of(postgres, database) == before


def test_a_table_that_is_built_again_arrives(home: Home, postgres: Server) -> None:
    """Its pages are others, its definition is the same."""
    database = at_head(postgres)

    def rebuild(connection: sqlite3.Connection) -> None:
        query = "SELECT sql FROM sqlite_master WHERE tbl_name = 'rate_limits' AND sql IS NOT NULL"
        definitions = [sql for (sql,) in connection.execute(query + " ORDER BY type DESC")]
        connection.execute("CREATE TEMP TABLE kept AS SELECT * FROM rate_limits")
        connection.execute("DROP TABLE rate_limits")
        for definition in definitions:
            connection.execute(definition)
        connection.execute("INSERT INTO rate_limits SELECT * FROM kept ORDER BY bucket_key DESC")

    report, _ = run_live_first(home, postgres, database, rebuild)

    assert report.committed
    require_equal(home, postgres, database)


def test_a_copy_that_was_changed_is_refused(home: Home, postgres: Server) -> None:
    """Exit 16: what is compared must be what was sent."""
    database = at_head(postgres)
    before = state_of(postgres, database)

    def spoil_copy(_event: str) -> None:
        (copy,) = home.root.parent.glob("home.exports/*/copy.db")
        content = copy.read_bytes()
        place = content.rindex(b"completed")
        with copy.open("r+b") as file:
            file.seek(place)
            file.write(b"Completed")

    with pytest.raises(DamagedError, match="changed since it was made") as met:
        exported(home, postgres, database, live_first=LiveFirst(spoil_copy))

    assert met.value.exit_code == 16
    assert state_of(postgres, database) == before


@pytest.mark.parametrize("policy", ["repair", "quarantine", "repair,quarantine"])
def test_rows_that_become_invalid_are_settled(
    tmp_path: Path, postgres: Server, policy: str
) -> None:
    """The policies apply to what the home has at the end: found, lost, and with other effects."""
    home = home_with(
        tmp_path / "home",
        execute(
            "UPDATE agent_runs SET output_text = 'a' || char(0) WHERE rowid IN (1, 2)",
            "UPDATE agent_runs SET cost_usd = 'much' WHERE rowid = 5",
        ),
        rows_in={"agent_runs": 40},
    )
    database = at_head(postgres)

    report, _ = run_live_first(
        home,
        postgres,
        database,
        execute(
            "UPDATE agent_runs SET output_text = 'valid' WHERE rowid = 1",
            "UPDATE agent_runs SET output_text = 'b' || char(0) WHERE rowid = 3",
        ),
        policy=policy,
    )

    if policy == "repair":
        assert not report.committed  # a word is no number
        assert counts_of(postgres, database) == {}
        return
    assert report.committed
    kept = {finding.kind: finding.count for finding in report.findings}
    assert kept["nul"] == 2
    lines = {
        name: Path(file).read_text().splitlines()
        for name, file in report.files.items()
        if name != "report"
    }
    if policy == "quarantine":
        assert lines.keys() == {"refused"}
        assert report.refused == len(lines["refused"]) >= 3
    else:
        assert len(lines["changes"]) == report.repaired == 2
        assert report.refused == len(lines["refused"]) >= 1
    require_equal(home, postgres, database, policy=policy)


@pytest.mark.parametrize("policy", ["fail", "repair", "quarantine", "repair,quarantine"])
def test_tables_of_the_home_may_have_the_names_of_ours(
    tmp_path: Path, postgres: Server, policy: str
) -> None:
    """Also in capitals, longer ones, and other objects; their rows are refused as all unknown."""
    home = home_with(
        tmp_path / "home",
        execute(
            "CREATE TABLE sagewai_ops_changed (owner, row)",
            "CREATE TABLE Sagewai_Ops_Repaired (a)",
            "CREATE TABLE sagewai_ops_repaired_ (owner, name, row, kind, value)",
            "CREATE INDEX sagewai_ops_refused ON sagewai_ops_changed (owner)",
            "CREATE TABLE sagewai_ops_refused__ (owner, row, kind, name, detail)",
        ),
        rows_in={"agent_runs": 40},
    )
    if policy == "repair,quarantine":
        fake = "INSERT INTO sagewai_ops_refused__ (owner, row) VALUES ('agent_runs', 2)"
        write(home, execute(fake))
    if policy != "fail":
        write(home, execute("UPDATE agent_runs SET output_text = 'a' || char(0) WHERE rowid = 1"))
    database = at_head(postgres)

    report, _ = run_live_first(home, postgres, database, CHANGES["inserted"], policy=policy)

    assert report.committed
    assert report.repaired == ("repair" in policy)
    assert counts_of(postgres, database)["agent_runs"] == (39 if policy == "quarantine" else 40)
    if policy == "repair,quarantine":
        assert "sagewai_ops_refused__" in Path(report.files["refused"]).read_text()
    require_equal(home, postgres, database, policy=policy)


def test_a_repair_that_another_row_makes_necessary_reaches_unchanged_rows(
    tmp_path: Path, postgres: Server
) -> None:
    """A row that is not changed gets another key, because a later one has the same."""
    home = home_with(tmp_path / "home", execute("DROP INDEX IF EXISTS idx_workflow_runs_run"))
    database = at_head(postgres)

    def double(connection: sqlite3.Connection) -> None:
        names = [row[1] for row in connection.execute("PRAGMA table_info(workflow_runs)")]
        others = ", ".join(name for name in names if name not in ("id", "project_id"))
        connection.execute(
            f"INSERT INTO workflow_runs (id, project_id, {others})"
            f" SELECT 'twin', 'twin', {others} FROM workflow_runs WHERE rowid = 1"
        )

    report, _ = run_live_first(home, postgres, database, double, policy="repair,quarantine")

    assert report.committed
    assert "duplicate" in {finding.kind for finding in report.findings}
    require_equal(home, postgres, database, policy="repair,quarantine")


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("UPDATE agent_runs SET output_text = 'a' || char(0) WHERE rowid = 3", "nul"),
        ("UPDATE prompt_logs SET run_id = 'gone' WHERE rowid = 1", "orphan"),
        ("UPDATE agent_runs SET total_tokens = 'many' WHERE rowid = 3", "storage-class"),
    ],
)
def test_a_new_finding_ends_the_export(
    home: Home, postgres: Server, statement: str, kind: str
) -> None:
    """Exit 4, as in a plain export: the report has the finding, and nothing was changed."""
    database = at_head(postgres)
    before = state_of(postgres, database)

    report, events = run_live_first(home, postgres, database, execute(statement))

    assert not report.committed
    assert report.exit_code == 4
    assert kind in {finding.kind for finding in report.open_findings}
    assert events == [STOP, STOPPED, UNCHANGED]
    assert state_of(postgres, database) == before


def test_learnings_are_those_at_the_end(tmp_path: Path, postgres: Server) -> None:
    """They are copied after the stop."""
    home = home_with(tmp_path / "home", vectors=20)
    database = at_head(postgres)

    report, _ = run_live_first(home, postgres, database, CHANGES["inserted"], learnings="facts")

    assert report.committed
    assert counts_of(postgres, database)["global_memory_facts"] == 20
    require_equal(home, postgres, database, learnings="facts")


def test_a_trigger_of_the_target_has_every_row_compared(home: Home, postgres: Server) -> None:
    """It may change what was compared before; here it does."""
    database = at_head(postgres)
    postgres.run(
        database,
        "CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF NEW.agent_name = 'meddler' THEN UPDATE agent_runs SET model = 'x'; END IF;"
        " RETURN NEW; END $$",
    )
    postgres.run(
        database,
        "CREATE TRIGGER meddle AFTER INSERT ON budget_spend FOR EACH ROW EXECUTE FUNCTION meddle()",
    )
    insert = (
        "INSERT INTO budget_spend (id, project_id, agent_name, cost_usd)"
        " VALUES (9002, 'p', 'meddler', 1)"
    )

    with pytest.raises(DifferenceError, match="table agent_runs"):
        run_live_first(home, postgres, database, execute(insert))

    assert counts_of(postgres, database) == {}


@pytest.mark.parametrize("setting", ["idle_in_transaction_session_timeout", "statement_timeout"])
def test_a_limit_that_stays_is_refused(home: Home, postgres: Server, setting: str) -> None:
    """A session that waits must not end; limits of a role are turned off, not those of a URL."""
    database = at_head(postgres)
    limited = parse(f"{postgres.url(database)}&{setting}=60000")
    assert isinstance(limited, PostgresUrl)
    phase = LiveFirst(lambda _event: None)

    with pytest.raises(PermissionDeniedError, match=f"{setting} = 60000ms"):
        export(home, limited, Options(live_first=phase))

    postgres.run("postgres", f"ALTER DATABASE {database} SET {setting} = '60s'")
    assert exported(home, postgres, database, live_first=phase).committed


STEPS = (
    "sagewai_ops.export.live_first.duplicate",
    "sagewai_ops.export.live_first.find_users",
    "sagewai_ops.export.live_first.copy_database",
    "sagewai_ops.export.live_first.find_page_changes",
    "sagewai_ops.export.delta.drop_references",
    "sagewai_ops.export.delta.send_tables",
    "sagewai_ops.export.live_first.set_sequences",
    "sagewai_ops.export.delta_comparison.select_rows",
    "sagewai_ops.export.live_first.require_unused",
    "sagewai_ops.export.export.current_transaction",
)


@pytest.mark.parametrize("step", STEPS)
def test_an_interruption_at_any_step_changes_nothing(
    home: Home, postgres: Server, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """As at a SIGINT: rolled back, the copies are removed, and a second run arrives."""
    database = at_head(postgres)
    before = state_of(postgres, database)
    place, _, name = step.rpartition(".")
    original = getattr(importlib.import_module(place), name)
    calls: list[str] = []

    def interrupt(*arguments: object, **options: object) -> object:
        if not calls:
            calls.append(name)
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments, **options)

    monkeypatch.setattr(step, interrupt)
    with pytest.raises(InterruptedRunError):
        run_live_first(home, postgres, database, CHANGES["parents"])

    assert calls == [name]
    assert state_of(postgres, database) == before
    assert not list(home.root.parent.glob("home.exports/.*"))
    assert not (home.root / PLACE).exists()
    report, _ = run_live_first(home, postgres, database, CHANGES["updated"])
    assert report.committed
    require_equal(home, postgres, database)


def test_a_server_that_restarts_while_it_waits_ends_the_export(
    home: Home, postgres: Server
) -> None:
    """The connection is asked from time to time: exit 19, not a wait until the home is unused."""
    database = at_head(postgres)
    before = state_of(postgres, database)

    query = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = 'sagewai-ops'"
    )

    def end_session(event: str) -> None:
        if event == STOP:
            ending = threading.Thread(target=postgres.run, args=("postgres", query))
            ending.start()
            ending.join()

    phase = LiveFirst(end_session, StopOptions(wait_seconds=600))
    with opened_elsewhere(home), pytest.raises(RemoteError):
        exported(home, postgres, database, live_first=phase)

    assert state_of(postgres, database) == before


@pytest.mark.parametrize(
    "end",
    [
        300_000,  # bytes of the bulk
        b"SET LOCAL enable_hashjoin = off",
        b"DELETE FROM ONLY",
        b"SET LOCAL enable_hashjoin = DEFAULT",
        b"pg_catalog.count(*) FROM ONLY",
    ],
)
def test_a_connection_that_is_cut_leaves_nothing(
    home: Home, postgres: Server, end: int | bytes
) -> None:
    """Exit 19 in two lines; a second run arrives."""
    database = at_head(postgres)
    before = state_of(postgres, database)
    url = url_of(postgres, database)
    events: list[str] = []

    def notify(event: str) -> None:
        events.append(event)
        if event == STOP:
            write(home, CHANGES["parents"])

    with cutting(postgres, end) as port:
        cut = replace(url, hosts=(("127.0.0.1", port),))
        with pytest.raises(RemoteError) as met:
            export(home, cut, Options(live_first=LiveFirst(notify)))

    assert met.value.exit_code == 19
    assert met.value.hint
    assert "\n" not in met.value.message + met.value.hint
    assert events == ([] if isinstance(end, int) else [STOP, STOPPED, UNCHANGED])
    assert state_of(postgres, database) == before
    assert not list(home.root.parent.glob("home.exports/.*"))
    report, _ = run_live_first(home, postgres, database, CHANGES["updated"])
    assert report.committed
    require_equal(home, postgres, database)


def test_a_connection_that_is_cut_at_the_commit_leaves_it_unknown(
    home: Home, postgres: Server
) -> None:
    """Then the home must not be used before `recover` has found out, and no event permits it."""
    url = url_of(postgres, at_head(postgres))
    events: list[str] = []

    with cutting(postgres, COMMIT) as port:
        cut = replace(url, hosts=(("127.0.0.1", port),), timeout_seconds=1)
        with pytest.raises(RemoteError, match="unknown") as met:
            export(home, cut, Options(live_first=LiveFirst(events.append)))

    assert met.value.hint.endswith("recover --url-file FILE")
    assert events == [STOP, STOPPED]


def test_a_disk_without_space_for_two_copies_ends_it_before_the_stop(
    home: Home, postgres: Server, tmp_path: Path
) -> None:
    """The duplicate is made before anything is sent."""
    database = at_head(postgres)
    before = state_of(postgres, database)
    events: list[str] = []
    size = home.database.stat().st_size

    with (
        small_directory(tmp_path / "small", str(size * 3 // 2)) as place,
        pytest.raises(NoSpaceError, match=r"second\.db: no space left"),
    ):
        exported(home, postgres, database, live_first=LiveFirst(events.append), work_dir=place)

    assert events == []
    assert state_of(postgres, database) == before


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), count=st.integers(1, 30), every_row=st.booleans())
def test_random_changes_arrive(
    original: Home,
    postgres: Server,
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    count: int,
    *,
    every_row: bool,
) -> None:
    """Of any table, in any order, with VACUUM in between: the target has what the home has."""
    home = copy_of(original, tmp_path_factory.mktemp("random") / "home")
    database = at_head(postgres)
    chance = random.Random(seed)

    def change(connection: sqlite3.Connection) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys = ON")
        query = "SELECT name FROM sqlite_master WHERE type = 'table' AND sql NOT LIKE '%VIRTUAL%'"
        tables = [name for (name,) in connection.execute(query) if not name.startswith("sqlite")]
        for _ in range(count):
            table = chance.choice([*tables, "agent_runs", "agent_runs", "agent_runs"])
            names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            grown = "output_text = output_text || hex(randomblob(3000))"
            statement = chance.choice(
                [
                    f"DELETE FROM {table} WHERE abs(random()) % 3 = 0",
                    f"UPDATE {table} SET rowid = rowid + 1000000 WHERE abs(random()) % 3 = 0",
                    f"UPDATE {table} SET {names[0]} = {names[0]} || 'x' WHERE rowid % 5 = 0",
                    f"UPDATE agent_runs SET {grown} WHERE abs(random()) % 50 = 0",
                    "VACUUM",
                ]
            )
            with contextlib.suppress(sqlite3.Error):  # a constraint of the home
                connection.execute(statement)

    report, _ = run_live_first(home, postgres, database, change, every_row=every_row)

    if report.committed:
        require_equal(home, postgres, database)
    else:  # such as an id of digits and an x
        assert report.open_findings
        assert counts_of(postgres, database) == {}
