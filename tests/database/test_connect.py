"""Every connection of the program: hostile schemas, sidecars and journals."""

import os
import sqlite3
import struct
from contextlib import closing
from pathlib import Path

import pytest

from sagewai_ops.database.sqlite import connect
from sagewai_ops.database.sqlite.connect import check_sidecars, open_connection, super_journal
from sagewai_ops.database.sqlite.integrity import check_integrity
from sagewai_ops.database.sqlite.online_copy import copy_database
from sagewai_ops.database.sqlite.read_transaction import (
    from_database_error,
    open_read_transaction,
)
from sagewai_ops.database.sqlite.schema_objects import find_unexpected, stored_columns
from sagewai_ops.database.sqlite.write_transaction import open_write_transaction
from sagewai_ops.errors import DamagedError

_MAGIC = bytes.fromhex("d9d505f920a163d7")


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A database with one table and one row."""
    return _built(tmp_path / "some.db", "CREATE TABLE t (x)", "INSERT INTO t VALUES (1)")


def _built(path: Path, *statements: str) -> Path:
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()
    return path


def _check_refused(database: Path, state: str) -> None:
    with pytest.raises(DamagedError, match=state):
        check_sidecars(database)


def _write_journal(database: Path, victim: bytes) -> None:
    pages = database.stat().st_size // 4096
    head = (_MAGIC + struct.pack(">IIIII", 0, 1, pages, 512, 4096)).ljust(512, b"\0")
    tail = struct.pack(">I", 0x40000000 // 4096 + 1) + victim
    tail += struct.pack(">II", len(victim), sum(victim)) + _MAGIC
    database.with_name(database.name + "-journal").write_bytes(head + tail)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("suffix", ["", "-journal"])
def test_pipe_in_the_place_of_a_file_does_not_block(database: Path, suffix: str) -> None:
    """SQLite itself would wait for a process that writes to it."""

    def read() -> None:
        connection = None if suffix == "" else open_connection(database)
        database.with_name(database.name + suffix).unlink(missing_ok=True)
        os.mkfifo(f"{database}{suffix}")
        with closing(connection or open_connection(database)) as opened:
            opened.execute("SELECT * FROM t").fetchall()

    with pytest.raises(sqlite3.Error, match="I/O") as caught:
        read()
    error = from_database_error(caught.value, database)

    assert isinstance(error, DamagedError)
    assert error.message == f"database {database}: {database.name}{suffix} is a pipe"


def test_journal_with_a_super_journal_is_refused(database: Path) -> None:
    """SQLite would delete the file that it names."""
    victim = database.with_name("precious")
    victim.write_text("x")
    _write_journal(database, os.fsencode(victim))

    with pytest.raises(DamagedError, match="super-journal"), open_write_transaction(database, 0.0):
        pass
    with pytest.raises(DamagedError, match="super-journal") as refused:
        open_read_transaction(database).__enter__()

    assert victim.exists()
    assert f"{database}-journal.refused" in refused.value.hint


def test_copy_of_such_a_journal_is_refused(database: Path, tmp_path: Path) -> None:
    """Neither the source nor a copy of it is opened, and nothing is left."""
    victim = tmp_path / "precious"
    victim.write_text("x")
    _write_journal(database, os.fsencode(victim))

    with pytest.raises(DamagedError, match="super-journal"):
        copy_database(database, tmp_path / "copy.db")

    assert victim.exists()
    assert not (tmp_path / "copy.db").exists()


def test_journal_without_one_is_none(database: Path) -> None:
    """A plain hot journal, and a file that is too short, name nothing."""
    journal = database.with_name("some.db-journal")
    for content in (b"", b"short", _MAGIC + bytes(504), bytes(8) + _MAGIC):
        journal.write_bytes(content)
        assert super_journal(journal) == ""


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
def test_sidecar_that_is_not_a_plain_file_is_refused(database: Path, suffix: str) -> None:
    """A link, a directory, and a file with two names."""
    other = database.with_name("other")
    other.write_bytes(b"")
    file = database.with_name(database.name + suffix)
    file.symlink_to(other)
    _check_refused(database, "a link")
    file.unlink()
    os.link(other, file)
    _check_refused(database, "has 2 names")
    file.unlink()
    os.mkfifo(file)
    _check_refused(database, "not a regular file")
    file.unlink()
    check_sidecars(database)


@pytest.mark.skipif(os.geteuid() != 0, reason="root creates files of other users")
def test_sidecar_of_another_user_is_refused(database: Path) -> None:
    """Unless it is the database's owner."""
    file = database.with_name(database.name + "-wal")
    file.write_bytes(b"")
    os.chown(file, 40001, 40001)

    with pytest.raises(DamagedError, match="owned by uid 40001"):
        check_sidecars(database)

    os.chown(database, 40001, 40001)
    check_sidecars(database)


def test_view_does_not_run(tmp_path: Path) -> None:
    """A query on one fails when it is prepared, also without columns, and inside a query."""
    path = _built(
        tmp_path / "some.db",
        "CREATE VIEW endless AS WITH RECURSIVE r(x) AS"
        " (SELECT 'a' UNION ALL SELECT x FROM r) SELECT x FROM r",
        "CREATE VIEW constant AS SELECT 1 AS x",
    )
    for query in ("SELECT x FROM endless", "SELECT count(*) FROM constant"):
        with (
            pytest.raises(DamagedError, match="view or a trigger"),
            open_read_transaction(path) as opened,
        ):
            opened.connection.execute(query)


@pytest.mark.parametrize("body", ["SELECT raise(IGNORE)", "INSERT INTO t VALUES (2)"])
def test_trigger_does_not_fire(tmp_path: Path, body: str) -> None:
    """The statement that would fire it is refused, and nothing is changed."""
    path = _built(
        tmp_path / "some.db",
        "CREATE TABLE t (x)",
        "INSERT INTO t VALUES (1)",
        f"CREATE TRIGGER trap BEFORE DELETE ON t BEGIN {body}; END",
    )

    with (
        pytest.raises(DamagedError, match="view or a trigger"),
        open_write_transaction(path, 0.0) as connection,
    ):
        connection.execute("DELETE FROM t")

    with open_read_transaction(path) as opened:
        assert opened.connection.execute("SELECT x FROM t").fetchall() == [(1,)]


def test_expression_cannot_allocate_gigabytes(tmp_path: Path) -> None:
    """It is longer than any value of so small a database."""
    path = _built(
        tmp_path / "some.db",
        "PRAGMA ignore_check_constraints = ON",
        "CREATE TABLE t (x, CHECK (length(hex(zeroblob(499999999))) > 0))",
        "INSERT INTO t VALUES (1)",
    )

    health = check_integrity(path)

    assert health.integrity


def test_endless_check_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the limit."""
    monkeypatch.setattr(connect, "_SECONDS", 0.1)
    monkeypatch.setattr(connect, "_PAUSE_SECONDS", 0.02)
    slow = " AND ".join(["length(hex(zeroblob(200000 + x))) > 0"] * 50)
    path = _built(
        tmp_path / "some.db",
        f"CREATE TABLE t (x, CHECK ({slow}))",
        "PRAGMA ignore_check_constraints = ON",
        "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r WHERE x < 2000)"
        " INSERT INTO t SELECT x FROM r",
    )

    health = check_integrity(path)

    assert any("seconds of processor time" in finding for finding in health.integrity)


def test_unexpected_objects_are_listed(tmp_path: Path) -> None:
    """Triggers, and whatever has the name of a table without being one."""
    path = _built(
        tmp_path / "some.db",
        "CREATE TABLE kept (x, y AS (x + 1))",
        "CREATE VIEW Provider AS SELECT 1 AS id",
        "CREATE VIEW harmless AS SELECT 1 AS id",
        "CREATE VIRTUAL TABLE project USING fts5(id)",
        "CREATE TRIGGER trap AFTER DELETE ON kept BEGIN SELECT 1; END",
    )
    with open_read_transaction(path) as opened:
        found = find_unexpected(opened.connection, ("provider", "project", "kept"))
        columns = [stored_columns(opened.connection, name) for name in ("KEPT", "provider")]

    assert {(item.kind, item.table) for item in found} == {
        ("view", "provider"),
        ("virtual table", "project"),
        ("trigger", "kept"),
    }
    assert columns == [{"x"}, set()]


def test_memory_has_no_file(tmp_path: Path) -> None:
    """A database in memory runs no views either."""
    with closing(open_connection(None)) as connection:
        connection.execute("CREATE VIEW v AS SELECT 1 AS x")
        with pytest.raises(sqlite3.DatabaseError):
            connection.execute("SELECT x FROM v")
