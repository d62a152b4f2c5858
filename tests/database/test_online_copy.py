"""Copying a live database: the copy is one committed state, the source stays as it was."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sqlite3
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import home_writer
from directory_state import state_of
from home_builder import BuiltHome, build_home
from other_process import running
from sagewai_ops.database.sqlite import online_copy, raw_copy, wal
from sagewai_ops.database.sqlite.connect import Connection
from sagewai_ops.database.sqlite.online_copy import DatabaseCopy, copy_database
from sagewai_ops.database.sqlite.read_transaction import open_read_transaction
from sagewai_ops.errors import (
    DamagedError,
    LockedError,
    NoSpaceError,
    NotFoundError,
    TargetBusyError,
)
from unprivileged import reachable_directory, unprivileged

METHODS = ("bytes", "pages", "compact")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> BuiltHome:
    """A home whose database is partly in its -wal."""
    return build_home(tmp_path_factory.mktemp("built") / "home", artifacts=False)


@pytest.fixture
def database(built: BuiltHome, tmp_path: Path) -> Path:
    """A copy of that home's database with its sidecars, as a killed server leaves them."""
    directory = tmp_path / "db"
    shutil.copytree(built.database.parent, directory)
    return directory / built.database.name


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """The copy to be, in a directory of its own."""
    directory = tmp_path / "out"
    directory.mkdir(mode=0o700)
    return directory / "copy.db"


def choose(method: str, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Force one of the methods; the answer is `compact`'s."""
    monkeypatch.setattr(online_copy, "_can_copy_bytes", lambda *_: method == "bytes")
    return method == "compact"


def settle(database: Path, *, journal: str = "wal") -> None:
    """Close a database cleanly: everything in the main file, nothing next to it."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute(f"PRAGMA journal_mode={journal}")
    for suffix in ("-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)


def query(database: Path, statement: str) -> list[tuple[object, ...]]:
    """Ask a database that no other process uses, leaving nothing next to it."""
    uri = f"file://{database}?mode=ro&immutable=1"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
        return connection.execute(statement).fetchall()


def assert_whole(copied: DatabaseCopy, built: BuiltHome) -> None:
    """Check a copy of the built home's database: all rows, sound, alone, private."""
    assert query(copied.path, "PRAGMA integrity_check") == [("ok",)]
    for table, count in built.rows.items():
        assert query(copied.path, f'SELECT count(*) FROM "{table}"') == [(count,)]
    for table, count in built.vectors.items():
        assert query(copied.path, f'SELECT count(*) FROM "{table}_rowids"') == [(count,)]
    assert [path.name for path in copied.path.parent.iterdir()] == [copied.path.name]
    assert copied.path.stat().st_size == copied.page_size * copied.page_count
    assert stat.S_IMODE(copied.path.stat().st_mode) == 0o600


@pytest.mark.parametrize("method", METHODS)
def test_copy_holds_everything_that_is_in_the_wal(
    method: str,
    database: Path,
    target: Path,
    built: BuiltHome,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows that only the -wal has are in the copy, which is one private file in WAL mode."""
    compact = choose(method, monkeypatch)
    wal_bytes = database.with_name("sagewai.db-wal").stat().st_size
    old_umask = os.umask(0)

    try:
        copied = copy_database(database, target, compact=compact)
    finally:
        os.umask(old_umask)

    assert wal_bytes > 0
    assert (copied.method, copied.wal_bytes) == (method, wal_bytes)
    assert_whole(copied, built)
    assert target.read_bytes()[18:20] == b"\x02\x02"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("left", ["wal and shm", "wal", "nothing", "rollback"])
def test_source_is_left_as_it_was(
    left: str, method: str, database: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names, contents, modes and times next to the source are the same afterwards."""
    compact = choose(method, monkeypatch)
    if left == "wal":
        database.with_name("sagewai.db-shm").unlink()
    elif left != "wal and shm":
        settle(database, journal="delete" if left == "rollback" else "wal")
    os.utime(database, (1, 1))
    before = state_of(database.parent)

    copy_database(database, target, compact=compact)

    assert state_of(database.parent) == before


def test_clean_database_is_copied_byte_for_byte(database: Path, target: Path) -> None:
    """Pages keep their places, so that deduplicating stores find them again."""
    settle(database)

    copied = copy_database(database, target)

    assert copied.method == "bytes"
    assert target.read_bytes() == database.read_bytes()


def test_database_that_is_all_in_its_wal_is_read_as_bytes(tmp_path: Path, target: Path) -> None:
    """A main file of one page, everything else in the -wal, takes no backup page by page."""
    built = build_home(tmp_path / "home", journal="everything", artifacts=False)

    copied = copy_database(built.database, target)

    assert built.database.stat().st_size == 4096
    assert copied.method == "bytes"
    assert_whole(copied, built)


@pytest.mark.parametrize("method", METHODS)
def test_copy_under_a_writer_is_a_transaction_boundary(
    method: str,
    built: BuiltHome,
    tmp_path: Path,
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With 200 commits a second all the while, the paired rows of two tables agree in the copy."""
    compact = choose(method, monkeypatch)
    monkeypatch.setattr(online_copy, "_STEP_PAGES", 20)
    monkeypatch.setattr(online_copy, "_VACUUM_STEPS", 20)
    monkeypatch.setattr(raw_copy, "_BLOCK_BYTES", 65536)
    home = tmp_path / "home"
    shutil.copytree(built.root, home)
    log = home / "db" / "sagewai.db-wal"
    seen: set[int] = set()

    def linger(_stage: str, _done: int, _total: int) -> None:
        """Wait for the writer to commit between two steps, the first few dozen times."""
        deadline = time.monotonic() + 5
        while len(seen) < 40 and log.stat().st_mtime_ns in seen and time.monotonic() < deadline:
            time.sleep(0.001)
        seen.add(log.stat().st_mtime_ns)

    with home_writer.start(home, rate=200, files=False) as writer:
        before = home_writer.pairs(writer.database)[0]
        copied = copy_database(writer.database, target, compact=compact, progress=linger)
        after = home_writer.pairs(writer.database)[0]

    first, second = home_writer.pairs(target)
    assert query(target, "PRAGMA integrity_check") == [("ok",)]
    assert copied.method == method
    assert len(seen) > 5
    assert first == second
    assert before <= first <= after
    assert after > before


def test_wal_that_is_started_over_while_it_is_read_is_read_again(
    tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames of two generations of the -wal never meet in one copy."""
    source = tmp_path / "live.db"
    writer = """
import sqlite3
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA journal_mode=WAL")
connection.execute("PRAGMA wal_autocheckpoint=0")
connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, generation INTEGER, pad)")
connection.execute("INSERT INTO t SELECT value, 0, zeroblob(3000) FROM ("
    "WITH RECURSIVE n(value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM n LIMIT 300)"
    " SELECT value FROM n)")
connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
connection.execute("UPDATE t SET generation = 1 WHERE id <= 100")
connection.execute("UPDATE t SET generation = 2")
connection.execute("PRAGMA wal_checkpoint(PASSIVE)")  # all folded in; the next commit starts over
pause()
connection.execute("UPDATE t SET generation = 3")
pause()
"""
    monkeypatch.setattr(wal, "_BLOCK_BYTES", 110 * (24 + 4096))  # of more than 300 frames
    read = os.preadv
    results: list[bool] = []
    disturbed: list[int] = []
    apply_log = wal.apply_log

    with running(writer, str(source)) as other:

        def read_and_disturb(descriptor: int, buffers: list[bytearray], offset: int) -> int:
            size = read(descriptor, buffers, offset)
            in_wal = os.readlink(f"/proc/self/fd/{descriptor}").endswith("-wal")
            if in_wal and offset > 32 and not disturbed:
                disturbed.append(offset)
                other.next()
            return size

        def logged(*arguments: Any) -> bool:
            results.append(apply_log(*arguments))
            return results[-1]

        if os.path.isdir("/proc/self/fd"):
            monkeypatch.setattr(os, "preadv", read_and_disturb)
        monkeypatch.setattr(online_copy, "apply_log", logged)
        copy_database(source, target)

    generations = query(target, "SELECT DISTINCT generation FROM t")
    assert results in ([False, True], [True])
    assert generations in ([(2,)], [(3,)])
    assert query(target, "PRAGMA integrity_check") == [("ok",)]


def test_database_held_exclusively_is_refused_after_the_wait(tmp_path: Path, target: Path) -> None:
    """The refusal names the file, comes after the wait, and leaves no target."""
    source = tmp_path / "held.db"
    holder = """
import sqlite3
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA locking_mode=EXCLUSIVE")
connection.execute("CREATE TABLE t (x)")
connection.execute("BEGIN EXCLUSIVE")
pause()
"""
    with running(holder, str(source)):
        began = time.monotonic()
        with pytest.raises(LockedError, match=r"held\.db: locked by another process"):
            copy_database(source, target, wait_seconds=0.6)
        waited = time.monotonic() - began

    assert waited >= 0.6
    assert not target.exists()


def test_lock_that_is_given_up_in_time_is_waited_for(tmp_path: Path, target: Path) -> None:
    """A holder that lets go within the wait does not fail the copy."""
    source = tmp_path / "held.db"
    holder = """
import sqlite3
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("CREATE TABLE t (x)")
connection.execute("BEGIN EXCLUSIVE")
pause()
connection.execute("COMMIT")
pause()
"""
    with running(holder, str(source)) as other:
        release = threading.Timer(0.3, other.next)
        release.start()
        copied = copy_database(source, target, wait_seconds=30)
        release.join()

    assert copied.page_count == 2


@pytest.mark.parametrize("method", ["as it is", "compact"])
@pytest.mark.parametrize("left", ["wal and shm", "wal", "nothing", "rollback", "hot journal"])
@pytest.mark.parametrize("locked", ["folder", "files"])
def test_home_that_may_not_be_written_is_copied(
    locked: str, left: str, method: str, built: BuiltHome
) -> None:
    """Whatever SQLite finds next to a database that it may not write, the copy is whole."""
    with reachable_directory() as place:
        source = place / "db" / built.database.name
        shutil.copytree(built.database.parent, source.parent)
        (place / "out").mkdir()
        (place / "out").chmod(0o777)
        if left == "wal":
            source.with_name("sagewai.db-shm").unlink()
        elif left != "wal and shm":
            settle(source, journal="wal" if left == "nothing" else "delete")
        if left == "hot journal":
            leave_hot_journal(source)
        for path in source.parent.iterdir():
            path.chmod(0o444)
        source.parent.chmod(0o555 if locked == "folder" else 0o777)
        before = state_of(source.parent)

        with unprivileged():
            copied = copy_database(source, place / "out" / "copy.db", compact=method == "compact")

        assert state_of(source.parent) == before
        if os.getuid() == 0:
            assert copied.path.stat().st_uid != 0
        assert_whole(copied, built)


def leave_hot_journal(source: Path) -> None:
    """Die in the middle of a transaction that has already changed the main file."""
    dying = """
import sqlite3
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size=2")
connection.execute("BEGIN")
connection.execute("DELETE FROM cost_records")
connection.execute("CREATE TABLE junk AS SELECT randomblob(300000) AS x UNION SELECT 1")
connection.execute("UPDATE junk SET x = zeroblob(400000)")
pause()
"""
    with running(dying, str(source)) as other:
        other.kill()
    assert source.with_name(source.name + "-journal").stat().st_size > 512


@pytest.mark.parametrize("left", ["wal and shm", "wal", "nothing"])
def test_database_on_a_read_only_mount_is_copied(
    left: str, database: Path, target: Path, built: BuiltHome
) -> None:
    """A container that mounts the home read-only can take the copy."""
    if left == "wal":
        database.with_name("sagewai.db-shm").unlink()
    elif left == "nothing":
        settle(database)
    before = state_of(database.parent)

    with read_only_mount(database.parent):
        copied = copy_database(database, target)

    assert state_of(database.parent) == before
    assert_whole(copied, built)


@contextlib.contextmanager
def read_only_mount(directory: Path) -> Iterator[None]:
    """Mount a directory over itself, read-only; skips where that is not allowed."""
    place = str(directory)
    if subprocess.run(["mount", "--bind", place, place], check=False).returncode:
        pytest.skip("mount is not allowed")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", place], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", place], check=True)  # a descriptor may have leaked


def test_unlocked_files_that_keep_changing_are_refused(
    database: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be locked and changes is not passed off as a copy."""
    settle(database)
    pour = raw_copy.copy_blocks
    monkeypatch.setattr(raw_copy, "_SETTLED_NS", 0)
    monkeypatch.setattr(raw_copy, "_ATTEMPTS", 3)

    def disturb(*arguments: object) -> None:
        pour(*arguments)  # type: ignore[arg-type]
        os.utime(database)

    monkeypatch.setattr(raw_copy, "copy_blocks", disturb)
    database.chmod(0o444)
    with (
        unprivileged_access(monkeypatch),
        pytest.raises(LockedError, match="changed in each of 3 passes"),
    ):
        copy_database(database, target)

    assert not target.exists()


@contextlib.contextmanager
def unprivileged_access(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Yield while the code believes that it may write in directories only."""
    access = os.access
    with monkeypatch.context() as patch:
        patch.setattr(
            os,
            "access",
            lambda path, mode: access(path, mode) and (mode != os.W_OK or os.path.isdir(path)),
        )
        yield


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "name", [b"a?b#c%41 d.db", b"caf\xe9\xff.db", "schön🚀.db".encode(), b"-&mode=rwc.db"]
)
def test_any_file_name_is_taken_literally(
    name: bytes, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name with URI characters or bytes that are not UTF-8 leads to the file that it names."""
    compact = choose(method, monkeypatch)
    directory = tmp_path / os.fsdecode(b"in \xfe?x=1#")
    directory.mkdir()
    source, target = directory / os.fsdecode(name), directory / os.fsdecode(b"to-" + name)
    plain = tmp_path / "plain.db"
    with contextlib.closing(sqlite3.connect(plain)) as connection, connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE t AS SELECT 7 AS x")
    plain.rename(source)

    copy_database(source, target, compact=compact)

    target.rename(plain)
    assert query(plain, "SELECT x FROM t") == [(7,)]
    assert [path.name for path in directory.iterdir()] == [source.name]


def test_database_behind_a_symlink_is_copied_with_its_wal(
    database: Path, target: Path, tmp_path: Path, built: BuiltHome
) -> None:
    """SQLite keeps the -wal next to the real file, and so do we."""
    link = tmp_path / "link.db"
    link.symlink_to(database)

    copied = copy_database(link, target)

    assert_whole(copied, built)


@pytest.mark.parametrize("page_size", [512, 65536])
@pytest.mark.parametrize("method", METHODS)
def test_every_page_size_is_kept(
    method: str, page_size: int, tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smallest and the largest page come through, with a -wal next to them."""
    compact = choose(method, monkeypatch)
    source = tmp_path / "paged.db"
    with contextlib.closing(sqlite3.connect(source, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA page_size={page_size}")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE t AS SELECT randomblob(100000) AS x")
        shutil.copytree(tmp_path, tmp_path.with_name("killed"))

    copied = copy_database(tmp_path.with_name("killed") / "paged.db", target, compact=compact)

    assert copied.page_size == page_size
    assert query(target, "SELECT length(x) FROM t") == [(100000,)]
    shutil.rmtree(tmp_path.with_name("killed"))


def test_what_lies_behind_the_last_page_is_left_out(database: Path, target: Path) -> None:
    """A main file that is longer than its pages results in a copy of whole pages."""
    settle(database)
    clean = database.read_bytes()
    with database.open("ab") as file:
        file.write(b"left over" * 1000)

    copied = copy_database(database, target)

    assert copied.path.read_bytes() == clean


def test_empty_file_is_an_empty_database(tmp_path: Path, target: Path) -> None:
    """Zero bytes are what SQLite makes before its first commit."""
    source = tmp_path / "empty.db"
    source.touch()

    copied = copy_database(source, target)

    assert (copied.method, copied.page_count) == ("empty", 0)
    assert target.read_bytes() == b""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.db", "out"]


def test_empty_file_beside_a_full_wal_is_refused_and_the_wal_kept(
    database: Path, target: Path
) -> None:
    """SQLite would delete such a -wal at the first look, even read-only."""
    os.truncate(database, 0)
    before = state_of(database.parent)

    with pytest.raises(DamagedError, match="its -wal has"):
        copy_database(database, target)

    assert state_of(database.parent) == before


def test_missing_and_odd_sources_are_distinguished(tmp_path: Path, target: Path) -> None:
    """No file, a directory and a pipe are refused, each with its reason."""
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(NotFoundError, match="not found"):
        copy_database(tmp_path / "no.db", target)
    with pytest.raises(DamagedError, match="not a regular file"):
        copy_database(tmp_path, target)
    with pytest.raises(DamagedError, match="not a regular file"):
        copy_database(tmp_path / "pipe", target)

    assert not target.exists()


@pytest.mark.parametrize("method", ["as it is", "compact"])
@pytest.mark.parametrize("damage", ["not SQLite", "cut in half", "cut in the header"])
def test_damaged_database_is_refused(
    damage: str, method: str, database: Path, target: Path
) -> None:
    """What is no database, or only a part of one, ends as damage and leaves no target."""
    settle(database)
    if damage == "not SQLite":
        database.write_bytes(b"#!/bin/sh\n" * 1000)
    else:
        size = database.stat().st_size
        os.truncate(database, size // 2 // 4096 * 4096 if damage == "cut in half" else 60)

    with pytest.raises(DamagedError, match=r"sagewai\.db: "):
        copy_database(database, target, compact=method == "compact")

    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("method", ["bytes", "pages"])
def test_database_with_a_damaged_schema_is_copied(
    method: str,
    database: Path,
    target: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What still can be read is copied, -wal and all; that it is damaged is found later."""
    choose(method, monkeypatch)
    killed = tmp_path / "killed"
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("CREATE TABLE late AS SELECT 'in the log' AS x")
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute("UPDATE sqlite_master SET sql = 'no SQL' WHERE name = 'late'")
        shutil.copytree(database.parent, killed)

    copied = copy_database(killed / database.name, target)

    assert copied.method == method
    assert b"in the log" in target.read_bytes()
    assert [path.name for path in target.parent.iterdir()] == ["copy.db"]


def test_existing_target_is_refused_and_left_alone(database: Path, target: Path) -> None:
    """Nothing is written over."""
    target.write_text("mine")

    with pytest.raises(TargetBusyError, match="exists"):
        copy_database(database, target)

    assert target.read_text() == "mine"


def test_missing_target_directory_is_named(database: Path, tmp_path: Path) -> None:
    """The message is about the target, not the source."""
    with pytest.raises(NotFoundError, match=r"nowhere/copy\.db: not found"):
        copy_database(database, tmp_path / "nowhere" / "copy.db")


@pytest.mark.parametrize("error", [KeyboardInterrupt, LockedError("stop"), OSError(errno.EIO, "x")])
@pytest.mark.parametrize("method", METHODS)
def test_interrupted_copy_leaves_nothing_behind(
    method: str,
    error: type[BaseException] | BaseException,
    database: Path,
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the progress callback raises ends the copy, removes it, and comes out."""
    compact = choose(method, monkeypatch)
    monkeypatch.setattr(online_copy, "_VACUUM_STEPS", 100)
    before = state_of(database.parent)

    def interrupt(_stage: str, _done: int, _total: int) -> None:
        raise error

    with pytest.raises((KeyboardInterrupt, LockedError, DamagedError)):
        copy_database(database, target, compact=compact, progress=interrupt)

    assert list(target.parent.iterdir()) == []
    assert state_of(database.parent) == before


def test_full_disk_is_distinguished_from_a_damaged_source(
    database: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENOSPC is about the target's file system."""

    def full(_descriptor: int, _content: memoryview) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    choose("bytes", monkeypatch)
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(NoSpaceError, match=r"copy\.db: no space left"):
        copy_database(database, target)

    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("method", METHODS)
def test_real_full_disk_leaves_nothing_behind(
    method: str, database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system of one megabyte every method ends the same way."""
    compact = choose(method, monkeypatch)
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)]
    if subprocess.run(mount, check=False).returncode:
        pytest.skip("mount is not allowed")
    try:
        with pytest.raises(NoSpaceError, match="no space left"):
            copy_database(database, small / "copy.db", compact=compact)
        left = list(small.iterdir())
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)

    assert left == []


@pytest.mark.parametrize("method", METHODS)
def test_progress_counts_pages_up_to_all(
    method: str, database: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Progress never goes back or beyond the total, and is in pages."""
    compact = choose(method, monkeypatch)
    monkeypatch.setattr(online_copy, "_VACUUM_STEPS", 20)
    monkeypatch.setattr(online_copy, "_STEP_PAGES", 50)
    monkeypatch.setattr(raw_copy, "_BLOCK_BYTES", 65536)
    output: list[tuple[str, int, int]] = []

    copied = copy_database(
        database, target, compact=compact, progress=lambda *values: output.append(values)
    )

    done = [values[1] for values in output]
    assert len(output) > 3
    assert done == sorted(done)
    assert all(0 <= values[1] <= values[2] for values in output)
    assert compact or output[-1][2] == copied.page_count
    assert {values[0] for values in output} == {"database"}


def test_path_that_is_too_long_for_sqlite_is_copied(tmp_path: Path, target: Path) -> None:
    """SQLite opens no path of more than 504 bytes; we do."""
    directory = tmp_path.joinpath(*["long" * 40] * 4)
    directory.mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(tmp_path / "x.db")) as connection, connection:
        connection.execute("CREATE TABLE t AS SELECT 7 AS x")
    (tmp_path / "x.db").rename(directory / "x.db")

    copied = copy_database(directory / "x.db", target)

    assert copied.method == "staged"
    assert query(target, "SELECT x FROM t") == [(7,)]


def test_disk_error_of_the_source_names_the_source(
    database: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failing disk is damage of the home, and names the path."""

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    choose("bytes", monkeypatch)
    monkeypatch.setattr(os, "preadv", fail)

    with pytest.raises(DamagedError, match=r"sagewai\.db: input/output error") as caught:
        copy_database(database, target)

    assert caught.value.hint == "dmesg | tail"
    assert list(target.parent.iterdir()) == []


def test_wal_that_never_holds_still_under_a_pin_is_refused(
    database: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot happen where locks work; where they do not, no copy is better than a bad one."""
    choose("bytes", monkeypatch)
    monkeypatch.setattr(online_copy, "apply_log", lambda *_: False)

    with pytest.raises(LockedError, match="-wal restarted during a read transaction"):
        copy_database(database, target)

    assert list(target.parent.iterdir()) == []


def test_copy_that_is_replaced_before_it_is_settled_is_no_database(
    database: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was written, what SQLite cannot open is not handed out."""

    def spoil(*_: object) -> str:
        target.write_bytes(b"no database" * 1000)
        return "bytes"

    monkeypatch.setattr(online_copy, "_copy", spoil)

    with pytest.raises(DamagedError, match="file is not a database"):
        copy_database(database, target)

    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("failure", "expected", "message"),
    [
        ("database or disk is full", NoSpaceError, "copy.db: no space left"),
        ("database disk image is malformed", DamagedError, "-wal could not be checkpointed"),
    ],
)
def test_log_that_cannot_be_folded_in_is_no_copy(
    failure: str,
    expected: type[Exception],
    message: str,
    database: Path,
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A copy whose -wal had to stay next to it is not handed out without it."""

    class Failing(Connection):
        def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
            if "wal_checkpoint" in statement:
                raise sqlite3.OperationalError(failure)
            return super().execute(statement, *values)

        def close(self) -> None:
            super().close()
            target.with_name("copy.db-wal").write_bytes(b"not folded in")

    choose("bytes", monkeypatch)
    connect = sqlite3.connect

    def connect_failing(name: str, **named: object) -> sqlite3.Connection:
        if "mode=rw" in name:
            named["factory"] = Failing
        return connect(name, **named)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(sqlite3, "connect", connect_failing)

    with pytest.raises(expected, match=message):
        copy_database(database, target)

    assert list(target.parent.iterdir()) == []


def test_nothing_waits_for_the_disk(
    database: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy is read at once and removed, so neither the file nor its directory is flushed."""
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", flushed.append)

    copy_database(database, target)

    assert flushed == []


def test_pin_outlives_the_bytes_that_are_read_under_it(database: Path) -> None:
    """Our own descriptor of the main file does not drop SQLite's lock on it while it is open."""
    prober = """
import sqlite3
connection = sqlite3.connect(sys.argv[1], timeout=0)
pause()
print(connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0], flush=True)
"""
    with (
        raw_copy.open_descriptor(database),
        open_read_transaction(database),
        running(prober, str(database)) as other,
    ):
        busy = other.next()

    assert busy == "1"
