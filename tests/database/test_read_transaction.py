"""Looking at a live database without changing it, and what its errors mean."""

from __future__ import annotations

import ctypes
import errno
import os
import sqlite3
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from other_process import running
from sagewai_ops.database.sqlite import connect
from sagewai_ops.database.sqlite.connect import database_uri
from sagewai_ops.database.sqlite.read_transaction import (
    NeedsStagingError,
    call_while_running,
    from_database_error,
    open_read_transaction,
    quoted,
)
from sagewai_ops.errors import (
    DamagedError,
    LockedError,
    NoSpaceError,
    NotFoundError,
    OpsError,
    PermissionDeniedError,
)
from small_homes import small
from unprivileged import reachable_directory, unprivileged

WRITER = """
import sqlite3
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA journal_mode=WAL")
connection.execute("CREATE TABLE IF NOT EXISTS t (x)")
while True:
    pause()
    connection.execute("INSERT INTO t VALUES (1)")
"""
COUNT = "SELECT count(*) FROM t"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A database in WAL mode, closed cleanly."""
    path = tmp_path / "some.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE t (x)")
    return path


def test_pinned_connection_sees_one_moment(database: Path) -> None:
    """What others commit in the meantime is not seen; the next look sees it."""
    with running(WRITER, str(database)) as other:
        with open_read_transaction(database) as pin:
            other.next()
            (during,) = pin.connection.execute(COUNT).fetchone()
        with open_read_transaction(database) as pin:
            (after,) = pin.connection.execute(COUNT).fetchone()

    assert (during, after) == (0, 1)


def test_pinned_connection_cannot_write(database: Path) -> None:
    """The connection is read-only."""
    with (
        open_read_transaction(database) as pin,
        pytest.raises(sqlite3.OperationalError, match="readonly"),
    ):
        pin.connection.execute("INSERT INTO t VALUES (1)")


def test_shape_of_the_database_is_reported(database: Path) -> None:
    """Page size, page count and journal mode come with the pin."""
    with open_read_transaction(database) as pin:
        shape = (pin.page_size, pin.page_count, pin.journal_mode)

    assert shape == (4096, 2, "wal")


def test_sidecars_of_others_are_kept(database: Path) -> None:
    """A process that opens the database while we look keeps its -wal and -shm."""
    with ExitStack() as looking, ExitStack() as working:
        looking.enter_context(open_read_transaction(database))
        other = working.enter_context(running(WRITER, str(database)))
        looking.close()
        names = sorted(path.name for path in database.parent.iterdir())
        other.next()

        assert names == ["some.db", "some.db-shm", "some.db-wal"]
        with open_read_transaction(database) as pin:
            assert pin.connection.execute(COUNT).fetchone() == (1,)


def test_second_pin_in_one_process_is_our_own_fault(database: Path) -> None:
    """Its end would drop the first one's locks, so it is not even begun."""
    with (
        open_read_transaction(database),
        pytest.raises(RuntimeError, match="second read transaction"),
        open_read_transaction(database),
    ):
        pass
    with open_read_transaction(database):
        pass


def test_interrupt_while_pinning_closes_the_connection(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal between opening and reading leaves nothing open and nothing behind."""

    class Interrupted(connect.Connection):
        def execute(self, *_: object) -> sqlite3.Cursor:
            raise KeyboardInterrupt

    monkeypatch.setattr(connect, "Connection", Interrupted)
    with pytest.raises(KeyboardInterrupt), open_read_transaction(database):
        pass

    assert [path.name for path in database.parent.iterdir()] == ["some.db"]


def test_file_that_may_not_be_read_is_forbidden() -> None:
    """Exit 14, not 16: nothing is known of its content."""
    with reachable_directory() as directory:
        path = directory / "some.db"
        path.write_bytes(b"x")
        path.chmod(0)
        with (
            unprivileged(),
            pytest.raises(PermissionDeniedError, match="not readable by uid"),
            open_read_transaction(path),
        ):
            pass


def test_wal_that_a_killed_process_left_meanwhile_is_kept(database: Path) -> None:
    """Only an empty -wal is ours to remove: one with content belongs to another program."""
    with open_read_transaction(database), running(WRITER, str(database)) as other:
        other.next()
        other.kill()

    with open_read_transaction(database) as pin:
        assert pin.connection.execute(COUNT).fetchone() == (1,)


def test_error_within_the_block_still_removes_the_litter(database: Path) -> None:
    """The sidecars that our look created go in any case."""
    with pytest.raises(KeyError), open_read_transaction(database):
        raise KeyError("x")

    assert [path.name for path in database.parent.iterdir()] == ["some.db"]


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (sqlite3.OperationalError("database is locked"), LockedError),
        (sqlite3.OperationalError("database table is locked"), LockedError),
        (sqlite3.OperationalError("locking protocol"), LockedError),
        (sqlite3.OperationalError("database or disk is full"), NoSpaceError),
        (sqlite3.OperationalError("unable to open database file"), NeedsStagingError),
        (sqlite3.OperationalError("attempt to write a readonly database"), NeedsStagingError),
        (sqlite3.OperationalError("disk I/O error"), DamagedError),
        (sqlite3.DatabaseError("file is not a database"), DamagedError),
        (sqlite3.DatabaseError("database disk image is malformed"), DamagedError),
        (OSError(errno.ENOSPC, "x"), NoSpaceError),
        (OSError(errno.EDQUOT, "x"), NoSpaceError),
        (FileNotFoundError(errno.ENOENT, "x"), NotFoundError),
        (NotADirectoryError(errno.ENOTDIR, "x"), NotFoundError),
        (PermissionError(errno.EACCES, "x"), PermissionDeniedError),
        (OSError(errno.EROFS, "x"), PermissionDeniedError),
        (OSError(errno.EIO, "x"), DamagedError),
        (OSError(errno.EMFILE, "Too many open files"), OpsError),
    ],
)
def test_every_failure_has_its_exit_code(
    error: OSError | sqlite3.Error, meaning: type[OpsError]
) -> None:
    """Each failure becomes the leaf that scripts can distinguish, and names the database."""
    failure = from_database_error(error, Path("/h/db/s.db"))

    assert type(failure) is meaning
    assert failure.message.startswith("database /h/db/s.db: ")


@pytest.mark.parametrize(
    ("blocks", "free", "meaning"),
    [(100, 0, NoSpaceError), (100, 7, NoSpaceError), (100, 8, DamagedError), (0, 0, DamagedError)],
)
def test_input_error_on_a_full_disk_is_reported_as_such(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    blocks: int,
    free: int,
    meaning: type[OpsError],
) -> None:
    """SQLite cannot lengthen its -shm by 32 KiB then, and calls that an I/O error."""
    system = SimpleNamespace(f_blocks=blocks, f_bavail=free, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda _path: system)

    failure = from_database_error(sqlite3.OperationalError("disk I/O error"), tmp_path / "s.db")

    assert type(failure) is meaning


def test_uri_quotes_what_a_uri_would_read_otherwise() -> None:
    """Bytes outside plain ASCII, and the characters that end a URI's path, are percent-encoded."""
    path = Path(os.fsdecode(b"//srv/a?b#c%d\xff"))

    assert database_uri(path, mode="ro") == "file:////srv/a%3Fb%23c%25d%FF?mode=ro"


def test_quoted_identifier_cannot_break_out() -> None:
    """Quotes within a name are doubled."""
    assert quoted('a"b') == '"a""b"'


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError("x")])
def test_watched_statement_ends_with_what_the_callback_raises(
    error: type[BaseException] | BaseException,
) -> None:
    """SQLite would raise `interrupted`; the original error is raised."""

    def stop() -> None:
        raise error

    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT sum(x) FROM n"
    with closing(sqlite3.connect(":memory:")) as connection:
        with (
            pytest.raises((KeyboardInterrupt, ValueError)),
            call_while_running(connection, stop, 1000),
        ):
            connection.execute(endless)
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_statement_interrupted_from_elsewhere_counts_as_an_interrupt() -> None:
    """A signal between SQLite's call and ours is not passed off as a database error."""
    with (
        closing(sqlite3.connect(":memory:")) as connection,
        pytest.raises(KeyboardInterrupt),
        call_while_running(connection, lambda: None, 1000),
    ):
        raise sqlite3.OperationalError("interrupted")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not the C library of GNU")
def test_a_recovered_wal_leaves_nothing_of_our_memory_in_a_file(tmp_path: Path) -> None:
    """SQLite builds the `-shm` in memory that it does not clear; a key may have been there."""
    root = small(tmp_path / "home").root
    database = root / "db/sagewai.db"
    for path in database.parent.iterdir():
        with path.open("r+b") as file:
            file.seek(100)
            file.write(b"\xff" * 4000)
    secret = b"planted in memory that is given back "
    for size in (4096, 16384, 32768, 36864, 40960, 65536):
        kept = [bytearray(secret * (size // len(secret))) for _ in range(20)]
        kept.clear()

    with suppress(OpsError), open_read_transaction(database):
        pass

    assert secret not in database.with_name("sagewai.db-shm").read_bytes()
