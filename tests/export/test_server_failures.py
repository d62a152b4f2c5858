"""What may go wrong on the way and leaves the target as it was: kills, cuts, full disks, rights."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest

from cut_connection import COMMIT, cutting, signal_self
from postgres_server import Server, free_port
from program import COMMAND, PATIENCE_SECONDS
from sagewai_ops.database.postgres import connection as postgres_connection
from sagewai_ops.database.postgres import transaction
from sagewai_ops.errors import (
    DamagedError,
    DifferenceError,
    LockedError,
    NoSpaceError,
    NotFoundError,
    OpsError,
    PermissionDeniedError,
    RemoteError,
    SchemaAheadError,
    SchemaBehindError,
    TargetBusyError,
    UsageError,
)
from sagewai_ops.export import load, target_session
from sagewai_ops.export.compare import source_order
from sagewai_ops.export.export import Options, export
from sagewai_ops.export.pipeline import comparer, sender, worker
from sagewai_ops.export.workdir import export_directory
from sagewai_ops.fs import atomic
from sagewai_ops.home.paths import Home
from sagewai_ops.process import parent
from sagewai_ops.process.interpreter import Interpreter
from sagewai_ops.schema import migrate_postgres
from sagewai_ops.schema import postgres_server as schema_server
from sagewai_ops.swap.pending import require_settled
from targets import (
    at_head,
    counts_of,
    exported,
    home_with,
    small_tablespace,
    state_of,
    url_of,
)

KILLS = 20
OURS = "application_name = 'sagewai-ops'"
# For each line on stdin a child of its own exports, and is killed at the end of the stage that the
# line names, or after so many seconds.
DYING = """
import os, signal, sys, time
from pathlib import Path
import asyncpg
from sagewai_ops.database.url import parse
from sagewai_ops.home.paths import locate
from sagewai_ops.export.export import Options, export
def kill(stage, done, total):
    if stage == wanted and done >= total > 0:
        os.kill(os.getpid(), signal.SIGKILL)
for line in sys.stdin:
    wanted, target, seconds = line.rstrip().split(";")
    child = os.fork()
    if not child:
        try:
            export(locate(Path(sys.argv[1]), {}), parse(target), Options(), progress=kill)
        finally:
            os._exit(0)
    if seconds:
        time.sleep(float(seconds))
        os.kill(child, signal.SIGKILL)
    print(os.WTERMSIG(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home with a little in every table, and more in some."""
    rows_in = {"agent_runs": 2500, "prompt_logs": 2500, "cost_records": 2500}
    return home_with(tmp_path_factory.mktemp("original") / "home", rows_in=rows_in)


def quiet(server: Server, database: str) -> None:
    """Wait until no session of ours is left on a database."""
    query = f"SELECT 1 FROM pg_stat_activity WHERE datname = '{database}' AND {OURS}"
    for _attempt in range(3000):
        if not server.rows("postgres", query):
            return
        time.sleep(0.02)
    raise AssertionError("a session stayed behind")


def test_killed_at_any_moment_it_leaves_the_target_empty(home: Home, postgres: Server) -> None:
    """Twenty times, or whole where the commit was quicker; the next run succeeds."""
    chance = random.Random(4)
    database = at_head(postgres)
    before = state_of(postgres, database)
    started = time.monotonic()
    exported(home, postgres, at_head(postgres))
    usual = time.monotonic() - started
    with dying(home) as die:
        for _kill in range(KILLS):
            die(f";{postgres.url(database)};{chance.uniform(0.05, 1.05) * usual}")
            quiet(postgres, database)
            if counts_of(postgres, database):
                assert exported(home, postgres, database, purpose="verify").exit_code == 0
                database = at_head(postgres)

    assert state_of(postgres, database) == before
    assert exported(home, postgres, database).committed
    assert not list(export_directory(home).glob(".*"))


def test_killed_between_any_two_tables_it_leaves_the_target_empty(
    tmp_path: Path, postgres: Server
) -> None:
    """Once behind the rows of every table that is copied, and once behind some of the compared."""
    home = home_with(tmp_path / "home", rows_in={"cost_records": 600})
    database = at_head(postgres)
    before = state_of(postgres, database)
    plan = exported(home, postgres, database, purpose="plan")
    tables = [table.name for table in plan.tables]
    stages = [f"copy {name}" for name in tables] + [f"compare {name}" for name in tables[::20]]
    with dying(home) as die:
        for stage in stages:
            assert die(f"{stage};{postgres.url(database)};") == signal.SIGKILL, stage
            quiet(postgres, database)
            assert counts_of(postgres, database) == {}, stage

    assert len(tables) == 55
    assert state_of(postgres, database) == before
    assert exported(home, postgres, database).committed


def test_a_signal_ends_it_and_nothing_is_left(home: Home, postgres: Server) -> None:
    """SIGTERM: exit 143, the target as it was, no copy of the database next to the home."""
    database = at_head(postgres)
    before = state_of(postgres, database)
    command = [*COMMAND, "--home", str(home.root), "export-to-postgres", postgres.url(database)]

    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        query = f"SELECT 1 FROM pg_stat_activity WHERE datname = '{database}' AND {OURS}"
        while not postgres.rows("postgres", query):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, text = process.communicate()

    assert process.returncode == 143, text
    quiet(postgres, database)
    assert state_of(postgres, database) == before
    assert not list(export_directory(home).glob(".*"))


def test_a_session_that_the_server_ends_is_a_remote_error(home: Home, postgres: Server) -> None:
    """In the middle of the copy."""
    database = at_head(postgres)
    before = state_of(postgres, database)
    ended = threading.Event()

    def end(stage: str, done: int, _total: int) -> None:
        if stage == "copy prompt_logs" and done and not ended.is_set():
            ended.set()
            query = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {OURS}"
            thread = threading.Thread(target=postgres.rows, args=("postgres", query))
            thread.start()
            thread.join()

    with pytest.raises(RemoteError):
        export(home, url_of(postgres, database), Options(), progress=end)

    assert ended.is_set()
    assert state_of(postgres, database) == before


@pytest.mark.parametrize("size", [1000, 300_000, 700_000])
def test_a_cut_connection_is_a_remote_error(home: Home, postgres: Server, size: int) -> None:
    """After so many bytes that were sent."""
    database = at_head(postgres)
    before = state_of(postgres, database)
    url = url_of(postgres, database)

    with cutting(postgres, size) as port, pytest.raises(RemoteError):
        export(home, replace(url, hosts=(("127.0.0.1", port),)), Options())

    quiet(postgres, database)
    assert state_of(postgres, database) == before


def test_a_connection_that_breaks_at_the_commit_leaves_it_open_what_happened(
    home: Home, postgres: Server
) -> None:
    """With the way to it cut for good the outcome is unknown; the message names `recover`."""
    url = url_of(postgres, at_head(postgres))

    with (
        cutting(postgres, COMMIT) as port,
        pytest.raises(RemoteError, match="committed or not, unknown") as raised,
    ):
        export(home, replace(url, hosts=(("127.0.0.1", port),), timeout_seconds=1), Options())

    assert raised.value.hint.endswith("recover --url-file FILE")
    with pytest.raises(LockedError, match="export pending"):
        require_settled(home.root)


def test_a_signal_at_the_commit_waits_for_it(home: Home, postgres: Server) -> None:
    """What the server did is what is reported: it is done, whatever the signal wanted."""
    database = at_head(postgres)
    url = url_of(postgres, database)

    with cutting(postgres, COMMIT, signal_self) as port:
        report = export(home, replace(url, hosts=(("127.0.0.1", port),)), Options())

    assert report.committed
    assert counts_of(postgres, database)


def test_a_signal_behind_the_commit_comes_too_late(
    home: Home, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the connection is being closed: the move is done, and is reported as done."""

    async def late(connection: asyncpg.Connection[asyncpg.Record]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            await asyncio.sleep(60)
        finally:
            connection.terminate()

    monkeypatch.setattr(postgres_connection, "_close", late)

    report = exported(home, postgres, at_head(postgres), report=home.root.parent / "report.json")

    assert report.committed
    assert report.error == ""
    assert '"committed": true' in (home.root.parent / "report.json").read_text()


def test_a_signal_ends_the_wait_for_a_commit_without_an_answer(
    home: Home, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while, with the same message as when the connection breaks."""
    monkeypatch.setattr(transaction, "COMMIT_SECONDS", 0.2)
    url = url_of(postgres, at_head(postgres))
    over = threading.Event()

    def stall() -> None:
        signal_self()
        over.wait(PATIENCE_SECONDS)

    with cutting(postgres, COMMIT, stall) as port:
        with pytest.raises(RemoteError, match="committed or not, unknown"):
            export(home, replace(url, hosts=(("127.0.0.1", port),), timeout_seconds=1), Options())
        over.set()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_reading_process_that_dies_or_is_stopped_is_noticed(
    home: Home, postgres: Server, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """The copy is given up, the target is as it was."""
    monkeypatch.setattr(parent, "_PAUSE_SECONDS", 0.1)
    database = at_head(postgres)

    def kill(stage: str, done: int, _total: int) -> None:
        if stage == "copy agent_runs" and done:
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            for child in children:
                with contextlib.suppress(OSError):  # it has ended
                    words = Path(f"/proc/{child}/cmdline").read_bytes()
                    if b"pipeline.worker" in words:
                        os.kill(int(child), number)

    with pytest.raises(OpsError, match="worker process"):
        export(home, url_of(postgres, database), Options(), progress=kill)

    assert counts_of(postgres, database) == {}


def test_a_process_that_is_far_ahead_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a full disk on the server: what it has encoded is not read."""
    program = "import sys; sys.stdout.buffer.write(bytes(10**8))"
    monkeypatch.setattr(Interpreter, "module_command", lambda self, _name: self.command(program))

    async def leave() -> None:
        async with sender.start_workers(tmp_path / "copy.db", 1) as (reader,):
            transport = reader._process._transport.get_pipe_transport(1)  # type: ignore[attr-defined]
            while transport.is_reading():
                await asyncio.sleep(0.01)

    asyncio.run(leave())


def test_orders_for_a_process_that_is_gone_are_dropped_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It reported why, and is read at the next turn; asyncio would complain on stderr."""

    async def order_on() -> None:
        async with sender.start_workers(tmp_path / "none.db", 1) as (reader,):
            await reader.send(worker.JOB, b"no job at all")
            with pytest.raises(OpsError):
                await reader.receive()
            for _ in range(20):
                await reader.send(worker.JOB, b"more")

    asyncio.run(order_on())

    assert caplog.messages == []


def test_a_full_disk_on_the_server_is_reported_as_one(home: Home, postgres: Server) -> None:
    """The database is in a small file system of its own."""
    with contextlib.closing(sqlite3.connect(home.database)) as connection:
        connection.execute("UPDATE agent_runs SET output_text = hex(randomblob(6000))")
        connection.commit()
    with small_tablespace(postgres, "24M") as tablespace:
        template = at_head(postgres)
        postgres.run(
            "postgres", f'CREATE DATABASE tight TEMPLATE "{template}" TABLESPACE {tablespace}'
        )
        try:
            with pytest.raises(NoSpaceError):
                exported(home, postgres, "tight")
            assert counts_of(postgres, "tight") == {}
        finally:
            postgres.drop("tight")


@pytest.mark.parametrize(
    ("grants", "words"),
    [
        ((), "permission denied for table alembic_version"),
        (
            (
                "GRANT ALL ON SCHEMA public TO {role}",
                "GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}",
            ),
            "belong to postgres",
        ),
    ],
)
def test_a_role_without_rights_is_refused(
    home: Home, postgres: Server, grants: tuple[str, ...], words: str
) -> None:
    """Before anything is tried; the message names what is missing."""
    database, role = at_head(postgres), f"guest_{len(grants)}"
    postgres.run("postgres", f"DROP ROLE IF EXISTS {role}", f"CREATE ROLE {role} LOGIN")
    for grant in grants:
        postgres.run(database, grant.format(role=role))

    with pytest.raises(PermissionDeniedError, match=words):
        export(home, url_of(postgres, database, user=role), Options())

    assert counts_of(postgres, database) == {}
    postgres.drop(database)


def test_a_role_that_may_not_create_is_refused_on_an_empty_database(
    home: Home, postgres: Server
) -> None:
    """Its tables could not be made."""
    database = postgres.create()
    postgres.run("postgres", "DROP ROLE IF EXISTS visitor", "CREATE ROLE visitor LOGIN")
    postgres.run(database, "REVOKE CREATE ON SCHEMA public FROM PUBLIC")

    with pytest.raises(PermissionDeniedError, match="may not create tables"):
        export(home, url_of(postgres, database, user="visitor"), Options())


def test_a_server_that_is_too_old_is_refused(
    home: Home, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the versions that are supported."""
    monkeypatch.setattr(schema_server, "OLDEST", 99)
    monkeypatch.setattr(target_session, "OLDEST", 99)

    with pytest.raises(UsageError, match="too old"):
        exported(home, postgres, at_head(postgres))


def test_a_target_with_a_row_anywhere_is_refused(home: Home, postgres: Server) -> None:
    """Also in a table that homes do not have."""
    database = at_head(postgres)
    postgres.run(database, "INSERT INTO projects (slug, name) VALUES ('s', 'n')")
    before = state_of(postgres, database)

    for purpose in ("plan", "move"):
        with pytest.raises(TargetBusyError, match="rows in 1 tables such as projects"):
            exported(home, postgres, database, purpose=purpose)

    assert state_of(postgres, database) == before


def test_a_target_at_another_revision_is_refused(home: Home, postgres: Server) -> None:
    """Behind, ahead, unknown, and without a version: each in its own words."""
    behind, ahead, unknown, strange = (at_head(postgres) for _ in range(4))
    asyncio.run(migrate_postgres.downgrade(url_of(postgres, behind), "019_fleet_tasks"))
    postgres.run(ahead, "UPDATE alembic_version SET version_num = '099_later'")
    postgres.run(unknown, "UPDATE alembic_version SET version_num = 'abc'")
    postgres.run(strange, "DROP TABLE alembic_version")
    empty = postgres.create()

    with pytest.raises(SchemaBehindError, match="019_fleet_tasks"):
        exported(home, postgres, behind)
    with pytest.raises(SchemaAheadError, match="099_later"):
        exported(home, postgres, ahead)
    with pytest.raises(SchemaAheadError, match="abc"):
        exported(home, postgres, unknown)
    with pytest.raises(SchemaBehindError, match="not created by revisions"):
        exported(home, postgres, strange)
    with pytest.raises(SchemaBehindError, match="nothing was exported"):
        exported(home, postgres, empty, purpose="verify")


def test_a_target_that_is_being_written_is_refused(home: Home, postgres: Server) -> None:
    """The message names who writes; a second export does not wait either."""
    database = at_head(postgres)

    async def meanwhile(*statements: str) -> OpsError:
        connection = await postgres.connect(database)
        try:
            transaction = connection.transaction()
            await transaction.start()
            for statement in statements:
                await connection.execute(statement)
            with pytest.raises(OpsError) as refused:
                await asyncio.to_thread(exported, home, postgres, database)
            await transaction.rollback()
        finally:
            await connection.close()
        return refused.value

    written = asyncio.run(meanwhile("INSERT INTO projects (slug, name) VALUES ('s', 'n')"))
    locked = asyncio.run(meanwhile(f"SELECT pg_advisory_xact_lock({migrate_postgres.LOCK})"))

    assert isinstance(written, TargetBusyError)
    assert "in use by session of postgres (server process" in written.message
    assert "table projects" in written.message
    assert isinstance(locked, LockedError)


def test_an_encoding_that_cannot_hold_every_text_is_refused(home: Home, postgres: Server) -> None:
    """Before it comes to the first such text."""
    postgres.run(
        "postgres", "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"
    )

    with pytest.raises(UsageError, match="encoding LATIN1, not UTF8"):
        exported(home, postgres, "latin")


def test_a_target_that_is_not_there_is_not_found(home: Home, postgres: Server) -> None:
    """Neither the database nor a server."""
    with pytest.raises(NotFoundError):
        exported(home, postgres, "nowhere")
    no_user = replace(url_of(postgres, "x"), hosts=(("127.0.0.1", free_port()),))
    with pytest.raises(RemoteError):
        export(home, no_user, Options())


def test_a_damaged_home_is_reported_as_damage(home: Home, postgres: Server) -> None:
    """Pages of a table that are no pages."""
    content = bytearray(home.database.read_bytes())
    with contextlib.closing(sqlite3.connect(home.database)) as connection:
        ((page,),) = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'prompt_logs'"
        ).fetchall()
    content[(page - 1) * 4096 : page * 4096] = bytes(4096)
    home.database.write_bytes(content)
    database = at_head(postgres)

    with pytest.raises(DamagedError, match="malformed"):
        exported(home, postgres, database)

    assert counts_of(postgres, database) == {}


def test_a_difference_is_rolled_back(
    home: Home, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A target that changes what it is given, by a trigger of its own, is not committed."""
    database = at_head(postgres)
    postgres.run(
        database,
        "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN NEW.model := upper(NEW.model); RETURN NEW; END'",
        "CREATE TRIGGER spoil BEFORE INSERT ON agent_runs FOR EACH ROW EXECUTE FUNCTION spoil()",
    )

    with pytest.raises(DifferenceError, match=r"agent_runs: .* model differs; nothing was changed"):
        exported(home, postgres, database)

    assert counts_of(postgres, database) == {}


def test_a_trigger_that_changes_a_table_filled_before_is_noticed(
    home: Home, postgres: Server
) -> None:
    """Where a later table's trigger may reach back, all is compared when all is there."""
    database = at_head(postgres)
    order = [table.name for table in exported(home, postgres, at_head(postgres)).tables]
    first, last = sorted(("agent_runs", "prompt_logs"), key=order.index)
    postgres.run(
        database,
        "CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS"
        f" 'BEGIN UPDATE {first} SET model = upper(model); RETURN NULL; END'",
        f"CREATE TRIGGER meddle AFTER INSERT ON {last} EXECUTE FUNCTION meddle()",
    )

    with pytest.raises(DifferenceError, match=rf"{first}: .* model differs; nothing was changed"):
        exported(home, postgres, database)

    assert counts_of(postgres, database) == {}


def test_a_row_that_the_server_loses_is_noticed(home: Home, postgres: Server) -> None:
    """Its own count is compared with ours."""
    database = at_head(postgres)
    postgres.run(
        database,
        "CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN IF NEW.id = 2 THEN RETURN NULL; END IF; RETURN NEW; END'",
        "CREATE TRIGGER lose BEFORE INSERT ON budget_spend FOR EACH ROW EXECUTE FUNCTION lose()",
    )

    with pytest.raises(DifferenceError, match="budget_spend: 3 rows to copy, 3 sent, 2 stored"):
        exported(home, postgres, database)

    assert counts_of(postgres, database) == {}


def test_a_report_that_cannot_be_written_is_refused_at_the_start(
    home: Home, postgres: Server, tmp_path: Path
) -> None:
    """And not after the commit."""
    database = at_head(postgres)

    with pytest.raises(PermissionDeniedError, match="not writable"):
        exported(home, postgres, database, report=tmp_path / "no" / "such" / "folder" / "r.json")

    assert counts_of(postgres, database) == {}


def test_next_to_a_home_on_a_read_only_root_a_report_needs_a_path(
    home: Home, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container, where only the home itself is a volume."""
    database = at_head(postgres)

    def refuse(path: Path, *_options: object) -> None:
        raise PermissionDeniedError(f"{path}: read-only file system", hint="ls -ld")

    monkeypatch.setattr(atomic, "make_directory", refuse)
    with pytest.raises(PermissionDeniedError, match="read-only") as caught:
        exported(home, postgres, database)

    assert "--report FILE" in caught.value.next_step
    assert counts_of(postgres, database) == {}


def test_indexes_that_something_hangs_on_stay_where_they_are(home: Home, postgres: Server) -> None:
    """A view that depends on a primary key does not stop the move."""
    database = at_head(postgres)
    postgres.run(
        database,
        "CREATE VIEW runs AS SELECT run_id, model, count(*) FROM agent_runs GROUP BY run_id",
    )

    assert exported(home, postgres, database).committed


def test_blocks_are_compared_here_when_the_other_process_is_busy(
    home: Home, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both see the same; a difference is found by either."""
    monkeypatch.setattr(comparer, "BLOCK_BYTES", 4096)
    monkeypatch.setattr(comparer, "QUEUE_BYTES", 0)
    database = at_head(postgres)

    assert exported(home, postgres, database).committed
    postgres.run(
        database,
        "UPDATE prompt_logs SET model = 'other' WHERE log_id = "
        "(SELECT max(log_id) FROM prompt_logs)",
    )
    with pytest.raises(DifferenceError, match=r"prompt_logs: .*model differs"):
        exported(home, postgres, database, purpose="verify")


@pytest.mark.parametrize("aside_bytes", [source_order.ASIDE_BYTES, 0])
def test_rows_in_another_order_are_the_same_rows(
    home: Home, postgres: Server, monkeypatch: pytest.MonkeyPatch, aside_bytes: int
) -> None:
    """Few are put in order, else all are compared by key; and the hashes of all events, too."""
    monkeypatch.setattr(source_order, "ASIDE_BYTES", aside_bytes)
    database = at_head(postgres)
    events = next(
        table for table in exported(home, postgres, database).tables if table.name == "audit_event"
    )
    postgres.run(database, "UPDATE audit_event SET action = action WHERE seq = 1")

    again = exported(home, postgres, database, purpose="verify")

    (compared,) = [table.compared for table in again.tables if table.name == "audit_event"]
    assert compared is not None
    assert events.compared is not None
    assert compared.same
    assert compared.audit == events.compared.audit


def test_large_and_small_tables_take_their_own_ways_to_the_same_end(
    home: Home, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all indexes in place, and with all of them set aside."""
    for rows in (1, 10**9):
        monkeypatch.setattr(load, "DEFERRED_ROWS", rows)
        database = at_head(postgres)

        assert exported(home, postgres, database).committed


@contextlib.contextmanager
def dying(home: Home) -> Iterator[Callable[[str], int]]:
    """Start a process that exports and dies as requested, and return what requests it."""
    command = [sys.executable, "-c", DYING, str(home.root)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        output, answers = process.stdin, process.stdout

        def die(line: str) -> int:
            output.write(f"{line}\n")
            return int(answers.readline())

        yield die
        output.close()
