"""The move that can be resumed: its end is that of a plain one, whatever happened before it."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cut_connection import cutting
from postgres_server import Server
from sagewai_ops.errors import (
    DamagedError,
    LockedError,
    NoSpaceError,
    OpsError,
    PermissionDeniedError,
    RemoteError,
    TargetBusyError,
    UsageError,
)
from sagewai_ops.export import incoming, ranges, resumable
from sagewai_ops.export.abandon import abandon
from sagewai_ops.export.export import Options
from sagewai_ops.export.report import Report
from sagewai_ops.export.resumable import export_resumably
from sagewai_ops.export.workdir import directory_of, export_directory
from sagewai_ops.fs import locks
from sagewai_ops.home.paths import Home
from sagewai_ops.home.server_record import PLACE
from sagewai_ops.operations.recover import recover_home
from sagewai_ops.progress import Progress
from sagewai_ops.swap import unfinished_export
from targets import (
    at_head,
    copy_of,
    counts_of,
    exported,
    home_with,
    small_tablespace,
    state_of,
    url_of,
)

LARGE = "agent_runs"  # of several ranges
OURS = "application_name = 'sagewai-ops'"
# Exports and is killed at the end of the stage that its argument names.
DYING = """
import os, signal, sys
from pathlib import Path
from sagewai_ops.database.url import parse
from sagewai_ops.home.paths import locate
from sagewai_ops.export import ranges
from sagewai_ops.export.export import Options
from sagewai_ops.export.resumable import export_resumably
ranges.RANGE_BYTES = 1
ranges.RANGE_SECONDS = 0
wanted = sys.argv[3]
def kill(stage, done, total):
    if stage == wanted and done >= total > 0:
        os.kill(os.getpid(), signal.SIGKILL)
export_resumably(locate(Path(sys.argv[1]), {}), parse(sys.argv[2]), Options(), progress=kill)
"""


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home with a little in every table, and 2 MB in one."""

    def enlarge(connection: sqlite3.Connection) -> None:
        connection.execute(f"UPDATE {LARGE} SET output_text = hex(randomblob(500))")

    rows_in = {LARGE: 2000, "prompt_logs": 700}
    return home_with(tmp_path_factory.mktemp("original") / "home", enlarge, rows_in=rows_in)


@pytest.fixture
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a range of each piece that the reader sends."""
    monkeypatch.setattr(ranges, "RANGE_BYTES", 1)
    monkeypatch.setattr(ranges, "RANGE_SECONDS", 0)


def resumed(
    home: Home, server: Server, database: str, progress: Progress | None = None, **options: Any
) -> Report:
    """Run a resumable export."""
    return export_resumably(home, url_of(server, database), Options(**options), progress=progress)


def stopped(home: Home, server: Server, database: str, table: str = LARGE, **options: Any) -> None:
    """Run a resumable export until the second half of a table is sent."""

    def stop(stage: str, done: int, total: int) -> None:
        if stage == f"copy {table}" and done > total / 2:
            raise RemoteError("stopped by the test")

    with pytest.raises(RemoteError, match="stopped by the test"):
        resumed(home, server, database, stop, **options)


def schemas(server: Server, database: str) -> list[str]:
    """Return the schemas of ours."""
    query = "SELECT nspname::text FROM pg_namespace WHERE nspname ~ '^sagewai'"
    return [str(name) for (name,) in server.rows(database, query)]


def rows_there(server: Server, database: str) -> dict[str, int]:
    """Return the rows that the schema records."""
    query = f"SELECT name, rows FROM {incoming.SCHEMA}.{incoming.ROWS_TABLE}"
    return {str(name): int(str(rows)) for name, rows in server.rows(database, query)}


def options_of(server: Server, database: str, table: str) -> object:
    """Return the storage parameters of a table of Sagewai, in whichever schema it is."""
    query = f"SELECT reloptions FROM pg_class WHERE relname = '{table}'"
    ((options,),) = server.rows(database, query)
    return options


def quiet(server: Server, database: str) -> None:
    """Wait until no session of ours is left on a database."""
    query = f"SELECT 1 FROM pg_stat_activity WHERE datname = '{database}' AND {OURS}"
    while server.rows("postgres", query):
        threading.Event().wait(0.02)


def test_its_end_is_that_of_a_plain_move(home: Home, every_postgres: Server) -> None:
    """Catalog, rows and sequences; nothing is left next to the home or in another schema."""
    plain, parts = every_postgres.create(), every_postgres.create()
    exported(copy_of(home, home.root.with_name("twin")), every_postgres, plain)

    report = resumed(home, every_postgres, parts)

    assert report.committed
    assert report.exit_code == 0
    assert state_of(every_postgres, parts) == state_of(every_postgres, plain)
    assert counts_of(every_postgres, parts) == {each.name: each.rows for each in report.tables}
    assert all(each.compared is not None and each.compared.same for each in report.tables)
    (left,) = export_directory(home).iterdir()
    assert left.suffix == ".json"
    assert schemas(every_postgres, parts) == []
    assert (home.root / PLACE).exists()
    assert exported(home, every_postgres, parts, purpose="verify").exit_code == 0


@pytest.mark.usefixtures("small_ranges")
def test_a_second_run_sends_what_is_missing(home: Home, postgres: Server) -> None:
    """Neither the rows that are there nor any other; until then the copy is private."""
    database = postgres.create()
    stopped(home, postgres, database)

    assert counts_of(postgres, database) == {}
    there = rows_there(postgres, database)
    directory = directory_of(home, None)
    assert 0 < there[LARGE] < 2000
    assert directory.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}
    assert options_of(postgres, database, LARGE) == ["autovacuum_enabled=off"]

    report = resumed(home, postgres, database)

    parts = report.resumable
    assert parts is not None
    assert parts.resumed
    assert parts.rows_before == sum(there.values())
    assert parts.ranges_before > 1
    assert parts.ranges > 1
    assert report.committed
    assert counts_of(postgres, database)[LARGE] == 2000
    assert options_of(postgres, database, LARGE) is None
    assert schemas(postgres, database) == []
    assert not directory.exists()


def test_a_range_of_many_bytes_lasts_its_time(
    home: Home, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a quick line there are few commits, and each table has one range."""
    monkeypatch.setattr(ranges, "RANGE_BYTES", 1)
    monkeypatch.setattr(ranges, "RANGE_SECONDS", 3600)

    report = resumed(home, postgres, postgres.create())

    assert report.committed
    assert report.resumable is not None
    assert report.resumable.ranges == len(report.tables)


@pytest.mark.usefixtures("small_ranges")
def test_rows_in_gaps_of_earlier_pages_need_no_second_comparison(
    tmp_path: Path, every_postgres: Server
) -> None:
    """Such as short rows among long ones; that the server has disordered them is checked too."""

    def enlarge(connection: sqlite3.Connection) -> None:
        connection.execute(f"UPDATE {LARGE} SET output_text = hex(randomblob(rowid * 37 % 1500))")

    home = home_with(tmp_path / "home", enlarge, rows_in={LARGE: 2000})
    database = every_postgres.create()
    stages: set[str] = set()

    report = resumed(home, every_postgres, database, lambda stage, _done, _all: stages.add(stage))

    assert report.committed
    assert f"compare {LARGE}" in stages
    assert not {stage for stage in stages if "by key" in stage}
    stored = every_postgres.rows(database, f"SELECT run_id FROM {LARGE}")
    with contextlib.closing(sqlite3.connect(home.database)) as connection:
        sent = connection.execute(f"SELECT run_id FROM {LARGE} ORDER BY rowid").fetchall()
    assert stored != sent
    assert sorted(stored) == sorted(sent)


def test_killed_after_any_table_it_is_continued(home: Home, postgres: Server) -> None:
    """And after the comparison of any: the same rows arrive, once."""
    plan = exported(home, postgres, postgres.create(), purpose="plan")
    tables = [table.name for table in plan.tables]
    stages = ["database", *(f"copy {name}" for name in tables[::8])]
    stages += [f"compare {name}" for name in tables[::20]]
    database = postgres.create()
    for stage in stages:
        command = [sys.executable, "-c", DYING, str(home.root), postgres.url(database), stage]
        done = subprocess.run(command, check=False)
        assert done.returncode in (-signal.SIGKILL, 0), stage
        quiet(postgres, database)
        if done.returncode == 0:
            break
        assert counts_of(postgres, database) == {}, stage
    plain = postgres.create()
    exported(copy_of(home, home.root.with_name("twin")), postgres, plain)

    if not counts_of(postgres, database):
        assert resumed(home, postgres, database).committed

    assert state_of(postgres, database) == state_of(postgres, plain)
    assert not list(export_directory(home).glob(".*"))


@pytest.mark.usefixtures("small_ranges")
@pytest.mark.parametrize("size", [300_000, 700_000, 1_500_000])
def test_a_cut_line_costs_what_was_not_recorded(
    home: Home, postgres: Server, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """After so many bytes; the error names how to go on."""
    database = postgres.create()
    url = url_of(postgres, database)
    # The test's proxy has another port than the server.
    monkeypatch.setattr(resumable, "target_of", lambda _work: "the target")

    with cutting(postgres, size) as port, pytest.raises(RemoteError) as raised:
        export_resumably(home, replace(url, hosts=(("127.0.0.1", port),)), Options())
    assert "--resumable  # continues" in raised.value.hint
    quiet(postgres, database)
    assert counts_of(postgres, database) == {}
    there = rows_there(postgres, database)

    report = resumed(home, postgres, database)

    assert report.committed
    assert report.resumable is not None
    assert report.resumable.rows_before == sum(there.values()) > 0


@pytest.mark.usefixtures("small_ranges")
def test_a_session_that_the_server_ends_is_continued(home: Home, postgres: Server) -> None:
    """As at its restart: with rows of the current range lost, those before it are there."""
    database = postgres.create()
    ended = threading.Event()

    def end(stage: str, done: int, total: int) -> None:
        if stage == f"copy {LARGE}" and done > total / 2 and not ended.is_set():
            ended.set()
            query = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {OURS}"
            thread = threading.Thread(target=postgres.rows, args=("postgres", query))
            thread.start()
            thread.join()

    with pytest.raises(RemoteError):
        resumed(home, postgres, database, end)
    report = resumed(home, postgres, database)

    assert report.committed
    assert report.resumable is not None
    assert report.resumable.rows_before > 0


def test_a_changed_copy_is_damage(home: Home, postgres: Server) -> None:
    """One value of it; nothing is sent from it, and --abandon makes a new beginning possible."""
    database = postgres.create()
    stopped(home, postgres, database)
    with contextlib.closing(sqlite3.connect(directory_of(home, None) / "copy.db")) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("UPDATE prompt_logs SET model = 'forged' WHERE rowid = 3")
        connection.commit()

    with pytest.raises(DamagedError, match=r"copy\.db: changed since") as raised:
        resumed(home, postgres, database)

    assert "--abandon" in raised.value.hint
    assert abandon(home, url_of(postgres, database)).resumable is not None
    assert schemas(postgres, database) == []
    assert resumed(home, postgres, database).committed


@pytest.mark.parametrize(
    "change",
    [
        f"UPDATE {LARGE} SET model = 'forged' WHERE ctid = (SELECT min(ctid) FROM {LARGE})",
        f"DELETE FROM {LARGE} WHERE ctid = (SELECT min(ctid) FROM {LARGE})",
        f"INSERT INTO {LARGE} (run_id, agent_name) VALUES ('forged', 'a')",
        f"UPDATE {incoming.ROWS_TABLE} SET rows = rows - 1 WHERE name = '{LARGE}'",
        f"UPDATE {incoming.ROWS_TABLE} SET rows = rows + 10000 WHERE name = '{LARGE}'",
        f"UPDATE {incoming.ROWS_TABLE} SET name = 'other' WHERE name = '{LARGE}'",
        (
            f"ALTER TABLE {incoming.ROWS_TABLE} ALTER rows DROP NOT NULL;"
            f" UPDATE {incoming.ROWS_TABLE} SET rows = NULL WHERE name = '{LARGE}'"
        ),
    ],
)
@pytest.mark.usefixtures("small_ranges")
def test_changed_rows_are_damage(home: Home, postgres: Server, change: str) -> None:
    """A value, a row less or more, another count: nothing reaches the tables of Sagewai."""
    database = postgres.create()
    stopped(home, postgres, database)
    postgres.run(database, f"SET search_path = {incoming.SCHEMA}", change)

    with pytest.raises(OpsError) as raised:
        resumed(home, postgres, database)

    assert raised.value.exit_code == DamagedError.exit_code, raised.value.message
    assert counts_of(postgres, database) == {}
    assert schemas(postgres, database) == [incoming.SCHEMA]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("ALTER SCHEMA sagewai_incoming OWNER TO {role}", "belongs to the role {role}"),
        ("GRANT CREATE, USAGE ON SCHEMA sagewai_incoming TO {role}", "other roles have rights"),
        ("ALTER TABLE sagewai_incoming.org OWNER TO {role}", "relation org"),
        (
            "CREATE TRIGGER t BEFORE UPDATE ON sagewai_incoming.org FOR EACH ROW"  # noqa: ISC004
            " EXECUTE FUNCTION suppress_redundant_updates_trigger()",
            "trigger t",
        ),
        ("CREATE RULE r AS ON INSERT TO sagewai_incoming.org DO ALSO SELECT 1", "rule r"),
        ("CREATE VIEW sagewai_incoming.v AS SELECT 1", "relation v"),
        ("CREATE POLICY p ON sagewai_incoming.org", "policy p"),
        ("CREATE TABLE heir () INHERITS (sagewai_incoming.org)", "inheritance of org"),
    ],
)
def test_a_schema_that_is_not_ours_alone_is_refused(
    home: Home, postgres: Server, change: str, words: str
) -> None:
    """Also by --abandon, which would drop what others made."""
    role = "stranger"
    database = postgres.create()
    stopped(home, postgres, database)
    with contextlib.suppress(Exception):
        postgres.run("postgres", f"CREATE ROLE {role}")
    postgres.run(database, change.format(role=role))

    for act in (resumed, _abandoned):
        with pytest.raises(PermissionDeniedError, match=words.format(role=role)) as raised:
            act(home, postgres, database)
        assert "DROP SCHEMA sagewai_incoming" in raised.value.hint
    postgres.drop(database)


def test_a_schema_of_another_is_refused_by_it_alone(home: Home, postgres: Server) -> None:
    """A stranger who creates the schema first cannot stop a plain move."""
    database = postgres.create()
    with contextlib.suppress(Exception):
        postgres.run("postgres", "CREATE ROLE stranger")
    postgres.run(database, "CREATE SCHEMA sagewai_incoming AUTHORIZATION stranger")

    with pytest.raises(PermissionDeniedError, match="belongs to the role stranger"):
        resumed(home, postgres, database)
    assert exported(home, postgres, database).committed
    postgres.drop(database)


def test_of_two_runs_one_is_locked_out(home: Home, postgres: Server, tmp_path: Path) -> None:
    """By the home, and by the target; a plain move is locked out as well."""
    database = postgres.create()
    twin = copy_of(home, tmp_path / "twin")
    found: list[str] = []

    def second(stage: str, done: int, total: int) -> None:
        if stage != f"copy {LARGE}" or done < total or found:
            return
        found.append("")

        def run(run_home: Home, act: Any) -> None:
            try:
                act(run_home, postgres, database)
            except LockedError as error:
                found.append(error.message)

        for run_home, act in ((twin, resumed), (twin, exported), (twin, _abandoned)):
            thread = threading.Thread(target=run, args=(run_home, act))
            thread.start()
            thread.join()

    assert resumed(home, postgres, database, second).committed

    assert len(found) == 4
    assert all("locked by another export" in message for message in found[1:])
    with locks.exclusive(twin.root), _in_other_process(twin, postgres.create(), postgres) as done:
        assert done.returncode == LockedError.exit_code, done.stderr


def _abandoned(home: Home, server: Server, database: str) -> Report:
    return abandon(home, url_of(server, database))


@contextlib.contextmanager
def _in_other_process(
    home: Home, database: str, server: Server
) -> Iterator[subprocess.CompletedProcess[str]]:
    from program import COMMAND

    words = ["--home", str(home.root), "export-to-postgres", server.url(database), "--resumable"]
    yield subprocess.run([*COMMAND, *words], capture_output=True, text=True, check=False)


def test_a_plain_move_is_refused_until_it_is_continued_or_abandoned(
    home: Home, postgres: Server, tmp_path: Path
) -> None:
    """The message names both ways; a plan reports it, and for another home the server shows it."""
    database = postgres.create()
    stopped(home, postgres, database)
    twin = copy_of(home, tmp_path / "twin")

    for source in (home, twin):
        with pytest.raises(TargetBusyError, match=r"resumable export .*is unfinished") as raised:
            exported(source, postgres, database)
        assert "--resumable" in raised.value.hint
        assert "--abandon" in raised.value.hint
        plan = exported(source, postgres, database, purpose="plan")
        assert sum("unfinished" in text for text in plan.warnings) == 1
    with pytest.raises(TargetBusyError, match="has no copy"):
        resumed(twin, postgres, database)
    with pytest.raises(TargetBusyError, match=f"rows of {home.root}"):
        abandon(twin, url_of(postgres, database))

    assert resumed(home, postgres, database).committed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"policy": "repair"}, "--on-invalid fail, not repair"),
        ({"learnings": "facts"}, "--learnings keep, not facts"),
        ({"port": 1}, "target .*, not .*:1/"),
    ],
)
def test_other_options_are_refused_with_the_reason(
    home: Home, postgres: Server, options: dict[str, Any], words: str
) -> None:
    """The rows that are there were made with the first ones."""
    database = postgres.create()
    stopped(home, postgres, database)

    url = url_of(postgres, database)
    if "port" in options:
        url = replace(url, hosts=((url.hosts[0][0], 1),))
    chosen = {name: value for name, value in options.items() if name != "port"}

    with pytest.raises(UsageError, match=words) as raised:
        export_resumably(home, url, Options(**chosen))

    assert "--abandon" in raised.value.hint


def test_another_version_is_refused(
    home: Home, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may convert values otherwise."""
    database = postgres.create()
    stopped(home, postgres, database)
    monkeypatch.setattr(resumable, "__version__", "9.9")

    with pytest.raises(UsageError, match=r"begun with version .*, not 9.9"):
        resumed(home, postgres, database)


def test_a_home_that_changed_is_refused_and_all_stays(home: Home, postgres: Server) -> None:
    """At the beginning of a run, and at its end; a time of change alone is no change."""
    database = postgres.create()
    stopped(home, postgres, database)
    os.utime(home.database)
    stopped(home, postgres, database)

    def change(stage: str, done: int, total: int) -> None:
        if stage == f"compare {LARGE}" and done >= total:
            with contextlib.closing(sqlite3.connect(home.database)) as connection:
                connection.execute("UPDATE budget_spend SET cost_usd = 2")
                connection.commit()

    for progress in (change, None):
        with pytest.raises(TargetBusyError, match="was changed since its copy") as raised:
            resumed(home, postgres, database, progress)
        assert "--abandon" in raised.value.hint
        assert counts_of(postgres, database) == {}
        assert schemas(postgres, database) == [incoming.SCHEMA]

    abandon(home, url_of(postgres, database))
    assert resumed(home, postgres, database).committed


def test_findings_leave_nothing(tmp_path: Path, postgres: Server) -> None:
    """A value that the worker refuses after rows were sent, and one that the server refuses."""

    def spoil(connection: sqlite3.Connection) -> None:
        connection.execute(f"UPDATE {LARGE} SET model = 'a' || char(0) WHERE rowid = 700")

    home = home_with(tmp_path / "home", spoil, rows_in={LARGE: 800})
    database = postgres.create()

    report = resumed(home, postgres, database)

    assert report.exit_code == 4
    assert [finding.kind for finding in report.open_findings] == ["nul"]
    assert schemas(postgres, database) == []
    assert not directory_of(home, None).exists()
    assert counts_of(postgres, database) == {}


@pytest.mark.usefixtures("small_ranges")
def test_quarantined_rows_are_in_one_file(tmp_path: Path, postgres: Server) -> None:
    """Of the run that completes it, with those that the first run found."""

    def spoil(connection: sqlite3.Connection) -> None:
        connection.execute(f"UPDATE {LARGE} SET output_text = hex(randomblob(500))")
        connection.execute(f"UPDATE {LARGE} SET model = 'a' || char(0) WHERE rowid IN (7, 900)")
        connection.execute(f"UPDATE {LARGE} SET total_tokens = 'many' WHERE rowid = 8")
        # With the name of one of ours, which are found again in the copy.
        connection.execute("CREATE TABLE sagewai_ops_refused (x)")
        connection.execute("INSERT INTO sagewai_ops_refused VALUES (1)")

    home = home_with(tmp_path / "home", spoil, rows_in={LARGE: 1000})
    twin = copy_of(home, tmp_path / "twin")
    database, plain = postgres.create(), postgres.create()
    policy = "repair,quarantine"
    wanted = exported(twin, postgres, plain, policy=policy)
    stopped(home, postgres, database, policy=policy)
    assert [path.suffix for path in export_directory(home).iterdir() if path.is_file()] == [".json"]

    report = resumed(home, postgres, database, policy=policy)

    assert report.committed
    assert report.resumable is not None
    assert report.resumable.rows_before > 0
    assert (report.exit_code, report.refused, report.repaired) == (3, 2, 2)
    for name in ("refused", "changes"):
        found = Path(report.files[name]).read_text()
        assert found == Path(wanted.files[name]).read_text(), name
    assert len(list(export_directory(home).glob("*.refused.jsonl"))) == 1
    assert report.findings == wanted.findings
    assert state_of(postgres, database) == state_of(postgres, plain)
    again = exported(home, postgres, database, purpose="verify", policy=policy)
    assert again.exit_code == 3


@pytest.mark.parametrize("choice", ["facts", "pgvector"])
def test_learnings_arrive_as_in_a_plain_move(tmp_path: Path, postgres: Server, choice: str) -> None:
    """In the schema of Sagewai's tables, and the extension there too."""
    home = home_with(tmp_path / "home", vectors=5)
    twin = copy_of(home, tmp_path / "twin")
    database, plain = postgres.create(), postgres.create()

    wanted = exported(twin, postgres, plain, learnings=choice)
    report = resumed(home, postgres, database, learnings=choice)

    assert report.committed
    assert [table.to for table in report.learnings.tables] == [
        table.to for table in wanted.learnings.tables
    ]
    assert state_of(postgres, database) == state_of(postgres, plain)


def test_default_privileges_of_the_schema_apply(home: Home, postgres: Server) -> None:
    """As to tables that are created there."""
    postgres.run("postgres", "CREATE ROLE grantee")
    query = (
        "SELECT c.relname::text, c.relacl::text FROM pg_class c"
        " WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'S') ORDER BY 1"
    )
    found = []
    for act in (exported, resumed):
        database = postgres.create()
        postgres.run(
            database,
            "ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO grantee",
            "ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT USAGE ON SEQUENCES TO grantee"
            " WITH GRANT OPTION",
        )
        act(copy_of(home, home.root.with_name(act.__name__)), postgres, database)
        found.append(postgres.rows(database, query))
        postgres.drop(database)
    postgres.run("postgres", "DROP ROLE grantee")

    assert found[0] == found[1]
    assert any("grantee" in str(acl) for _name, acl in found[0])


def test_a_target_with_tables_is_refused(home: Home, postgres: Server) -> None:
    """Also one at the head without rows, whose tables would be others afterwards."""
    database = at_head(postgres)
    before = state_of(postgres, database)

    with pytest.raises(TargetBusyError, match="--resumable needs a database without them"):
        resumed(home, postgres, database)

    assert state_of(postgres, database) == before
    assert schemas(postgres, database) == []
    assert not directory_of(home, None).exists()


def test_a_target_that_is_filled_meanwhile_is_refused(home: Home, postgres: Server) -> None:
    """What was sent stays."""
    database = postgres.create()
    stopped(home, postgres, database)
    postgres.run(database, "CREATE TABLE org (x text)")

    with pytest.raises(OpsError):
        resumed(home, postgres, database)

    assert schemas(postgres, database) == [incoming.SCHEMA]
    postgres.run(database, "DROP TABLE org")
    assert resumed(home, postgres, database).committed


@pytest.mark.usefixtures("small_ranges")
def test_a_full_disk_on_the_server_is_continued(home: Home, postgres: Server) -> None:
    """After room was made there."""
    with contextlib.closing(sqlite3.connect(home.database)) as connection:
        connection.execute(f"UPDATE {LARGE} SET output_text = hex(randomblob(9000))")
        connection.commit()
    with small_tablespace(postgres, "96M") as tablespace:
        postgres.run(
            "postgres",
            f"CREATE DATABASE tight TEMPLATE template0 TABLESPACE {tablespace}",
            f"CREATE TABLE ballast TABLESPACE {tablespace} AS"
            " SELECT generate_series(1, 1500000) AS number",
        )
        try:
            with pytest.raises(NoSpaceError) as raised:
                resumed(home, postgres, "tight")
            assert "continues" in raised.value.hint
            assert counts_of(postgres, "tight") == {}
            assert schemas(postgres, "tight") == [incoming.SCHEMA]
            postgres.run("postgres", "DROP TABLE ballast")
            assert resumed(home, postgres, "tight").committed
        finally:
            postgres.drop("tight")
            postgres.run("postgres", "DROP TABLE IF EXISTS ballast")


@pytest.mark.usefixtures("small_ranges")
def test_abandon_removes_all_and_only_when_asked(home: Home, postgres: Server) -> None:
    """Rows and copy; without either there is nothing to do."""
    database = postgres.create()
    url = url_of(postgres, database)
    assert abandon(home, url).resumable is None
    stopped(home, postgres, database)

    seen = abandon(home, url, dry_run=True)
    assert seen.resumable is not None
    assert seen.resumable.rows_before > 0
    assert schemas(postgres, database) == [incoming.SCHEMA]
    assert directory_of(home, None).exists()
    abandon(home, url)

    assert schemas(postgres, database) == []
    assert not directory_of(home, None).exists()
    assert abandon(home, url).resumable is None


def test_what_others_made_of_the_rows_is_not_dropped(home: Home, postgres: Server) -> None:
    """A view in another schema: --abandon is refused, and nothing is lost."""
    database = postgres.create()
    stopped(home, postgres, database)
    postgres.run(database, f"CREATE VIEW mine AS SELECT * FROM {incoming.SCHEMA}.{LARGE}")

    with pytest.raises(TargetBusyError, match="other objects depend on it"):
        abandon(home, url_of(postgres, database))

    assert schemas(postgres, database) == [incoming.SCHEMA]
    assert directory_of(home, None).exists()


def test_the_copy_can_be_in_another_directory(home: Home, postgres: Server, tmp_path: Path) -> None:
    """Of the user's choice, and the next run needs the same."""
    database = postgres.create()
    place = tmp_path / "large"
    place.mkdir(mode=0o700)
    stopped(home, postgres, database, work_dir=place)
    assert directory_of(home, place).is_dir()

    with pytest.raises(TargetBusyError, match="has no copy") as raised:
        resumed(home, postgres, database)
    assert "--work-dir DIR" in raised.value.hint

    assert resumed(home, postgres, database, work_dir=place).committed
    assert list(place.iterdir()) == []


def test_a_directory_that_others_can_write_is_refused(
    home: Home, postgres: Server, tmp_path: Path
) -> None:
    """Another user could put a copy there."""
    place = tmp_path / "open"
    place.mkdir()
    place.chmod(0o777)

    with pytest.raises(PermissionDeniedError, match="writable by other users"):
        resumed(home, postgres, postgres.create(), work_dir=place)


def test_a_state_that_cannot_be_read_is_refused(home: Home, postgres: Server) -> None:
    """With the way to remove it."""
    database = postgres.create()
    stopped(home, postgres, database)
    (directory_of(home, None) / "state.json").write_text("{}")

    with pytest.raises(OpsError):
        resumed(home, postgres, database)

    assert abandon(home, url_of(postgres, database)).resumable is not None
    assert not directory_of(home, None).exists()


def test_recover_removes_the_copy_after_a_kill_behind_the_commit(
    home: Home, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal names it."""
    database = postgres.create()
    pid = os.fork()
    if not pid:
        monkeypatch.setattr(resumable, "record_server", lambda _work: os._exit(7))
        with contextlib.suppress(BaseException):
            resumed(home, postgres, database)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert counts_of(postgres, database)
    assert directory_of(home, None).exists()

    recover_home(home, {"SAGEWAI_DATABASE_URL": postgres.url(database)})

    assert (home.root / PLACE).exists()
    assert not directory_of(home, None).exists()


def test_a_run_after_a_commit_that_left_its_copy_removes_it(home: Home, postgres: Server) -> None:
    """The server has no schema of it any more."""
    database = postgres.create()
    stopped(home, postgres, database)
    directory = directory_of(home, None)
    twin = home.root.with_name("before")
    subprocess.run(["cp", "-a", directory, twin], check=True)
    assert resumed(home, postgres, database).committed
    twin.rename(directory)

    with pytest.raises(TargetBusyError, match="has tables of Sagewai"):
        resumed(home, postgres, database)

    assert not unfinished_export.exists(directory)
