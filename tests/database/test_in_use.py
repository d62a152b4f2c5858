"""Naming the processes that have a database open, by three witnesses."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from other_process import OtherProcess, running
from sagewai_ops.database.sqlite import in_use
from sagewai_ops.database.sqlite.in_use import find_users, require_unused, stop_command
from sagewai_ops.errors import TargetBusyError
from sagewai_ops.process import procfs
from unprivileged import reachable_directory, unprivileged

HOLDER = """
import sqlite3
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA journal_mode=" + sys.argv[2])
connection.execute("CREATE TABLE IF NOT EXISTS t (x)")
pause()
"""
WITNESSES = ("_openers", "_lock_owners", "_blockers")
# What only Linux reports.
linux = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Where a holder makes a database."""
    return tmp_path / "used.db"


@pytest.fixture
def holder(database: Path) -> Iterator[OtherProcess]:
    """A process that has it open in WAL mode and does nothing."""
    with running(HOLDER, str(database), "wal") as other:
        yield other


def test_idle_user_is_named(holder: OtherProcess, database: Path) -> None:
    """Number, command line and start of a process that just has it open."""
    (found,) = find_users(database)

    assert found.pid == holder.pid
    assert Path(sys.executable).name in found.command
    assert found.started_at is not None
    age = datetime.now(timezone.utc) - found.started_at
    assert timedelta(seconds=-5) < age < timedelta(minutes=5)


def test_every_user_is_named_once(holder: OtherProcess, database: Path) -> None:
    """Two processes are two answers, in the order of their numbers."""
    with running(HOLDER, str(database), "wal") as second:
        found = find_users(database)

    assert [user.pid for user in found] == sorted([holder.pid, second.pid])


def test_killed_user_leaves_nothing(holder: OtherProcess, database: Path) -> None:
    """The -wal and -shm that it left are not taken for use."""
    holder.kill()

    assert database.with_name("used.db-shm").exists()
    assert find_users(database) == ()


def test_closed_database_has_no_user(database: Path) -> None:
    """Having had it open is not having it open."""
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE t (x)")

    assert find_users(database) == ()


@pytest.mark.parametrize("witness", WITNESSES)
@linux
def test_each_witness_alone_is_enough(
    witness: str, holder: OtherProcess, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every one of the three finds an idle holder without the others."""
    for other in WITNESSES:
        if other != witness:
            monkeypatch.setattr(in_use, other, lambda _: ())

    assert [user.pid for user in find_users(database)] == [holder.pid]


@linux
def test_idle_user_in_rollback_mode_is_named(database: Path) -> None:
    """It holds no lock at all, but its open file reveals it."""
    with running(HOLDER, str(database), "delete") as other:
        found = find_users(database)

        assert [user.pid for user in found] == [other.pid]


@linux
def test_user_through_a_symlink_is_named(holder: OtherProcess, database: Path) -> None:
    """The file counts, not the name that it was asked for by."""
    link = database.with_name("link.db")
    link.symlink_to(database)

    assert [user.pid for user in find_users(link)] == [holder.pid]


def test_database_of_the_same_name_elsewhere_does_not_count(
    holder: OtherProcess, database: Path, tmp_path: Path
) -> None:
    """A copy that no user uses has no holder, though its name is the same."""
    other = tmp_path / "elsewhere" / database.name
    other.parent.mkdir()
    shutil.copy(database, other)

    assert find_users(other) == ()


def test_missing_database_has_no_user(database: Path) -> None:
    """There is nothing to hold."""
    assert find_users(database) == ()


@linux
def test_own_process_is_named_only_on_request(database: Path) -> None:
    """A command that has the database open itself asks who else has."""
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE t (x)")

        assert find_users(database) == ()
        assert [user.pid for user in find_users(database, include_self=True)] == [os.getpid()]


def test_own_locks_survive_the_question(database: Path) -> None:
    """Asking opens nothing here: closing it would drop this process's locks on the database."""
    prober = """
import sqlite3
connection = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)
pause()
try:
    connection.execute("BEGIN IMMEDIATE")
except sqlite3.OperationalError as error:
    print(error, flush=True)
else:
    print("taken", flush=True)
"""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE t (x)")
        connection.execute("BEGIN IMMEDIATE")
        with running(prober, str(database)) as other:
            find_users(database)
            answer = other.next()

    assert answer == "database is locked"


@linux
def test_user_of_another_user_is_named() -> None:
    """Without rights on the other's open files, its locks still report."""
    with reachable_directory() as directory, ExitStack() as stack:
        database = directory / "used.db"
        other = stack.enter_context(running(HOLDER, str(database), "wal"))
        for path in directory.iterdir():
            path.chmod(0o644)

        with unprivileged():
            found = find_users(database)

    assert [user.pid for user in found] == [other.pid]


@linux
def test_user_in_another_container_is_named_without_a_number(
    holder: OtherProcess, database: Path
) -> None:
    """From within another process namespace the kernel still reports that a process is there."""
    code = "\n".join(
        (
            "from pathlib import Path",
            "from sagewai_ops.database.sqlite.in_use import find_users",
            f"print([(user.pid, user.command) for user in find_users(Path({str(database)!r}))])",
        )
    )
    unshare = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code]
    answer = subprocess.run(unshare, capture_output=True, text=True, check=False)
    if answer.returncode and "sagewai_ops" not in answer.stderr:
        pytest.skip("namespaces are not allowed")

    assert answer.stdout.strip() == "[(0, '')]"
    assert holder.process.poll() is None


def test_system_without_proc_asks_the_kernel_alone(
    holder: OtherProcess, database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on macOS, where F_GETLK is the only witness."""
    monkeypatch.setattr(procfs, "_PROC", tmp_path / "no-proc")

    assert [user.pid for user in find_users(database)] == [holder.pid]


def test_probe_that_cannot_run_is_passed_over(
    holder: OtherProcess, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An embedded interpreter has no program to start; the other witnesses remain."""
    monkeypatch.setattr(sys, "executable", "")
    without = [user.pid for user in find_users(database)]
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    broken = [user.pid for user in find_users(database)]

    assert without == broken == ([holder.pid] if os.path.isdir("/proc/self/fd") else [])


def test_used_database_is_refused_with_the_process_and_its_stop(
    holder: OtherProcess, database: Path
) -> None:
    """The error names home and process, the hint stops the process."""
    with pytest.raises(TargetBusyError) as caught:
        require_unused(database.parent, database.with_name("other.db"), database)

    assert caught.value.message.startswith(f"home {database.parent}: in use by pid {holder.pid} ")
    assert caught.value.hint == f"kill {holder.pid}  # or stop its service"


def test_a_run_of_this_program_is_to_be_waited_for(database: Path) -> None:
    """Others are to be stopped."""
    users = [
        procfs.Process(7, "/usr/bin/python3 /usr/local/bin/sagewai-ops db upgrade"),
        procfs.Process(8, "sagewai-ops"),
        procfs.Process(9, "/usr/bin/python3 -m sagewai admin serve"),
    ]

    assert stop_command(users, database).splitlines() == [
        "# wait until sagewai-ops ends: pid 7, 8",
        "kill 9  # or stop its service",
    ]


def test_session_on_a_server_is_refused_too(database: Path) -> None:
    """What a server reports counts like a process; the hint is to list what uses the home."""
    with pytest.raises(TargetBusyError) as caught:
        require_unused(database.parent, database, sessions=["session 7 of sagewai"])

    assert caught.value.message == f"home {database.parent}: in use by session 7 of sagewai"
    assert caught.value.hint == f"sagewai-ops --home {database.parent} status"


def test_unused_database_passes(database: Path) -> None:
    """A database without a user raises nothing."""
    require_unused(database.parent, database)
