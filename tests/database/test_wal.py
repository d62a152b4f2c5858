"""The pages of a `-wal` in a copy: as SQLite reads them, at one commit, whatever others do."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sqlite3
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from other_process import running
from sagewai_ops.database.sqlite import online_copy, raw_copy, wal
from sagewai_ops.database.sqlite.online_copy import copy_database, duplicate
from sagewai_ops.database.sqlite.page_comparison import open_comparison
from sagewai_ops.database.sqlite.wal import WalIndex, apply_log, read_index
from sagewai_ops.errors import DamagedError, LockedError

# Page sizes, reserved bytes of each page, and modes of auto_vacuum.
SHAPES = [(512, 32, 1), (1024, 0, 2), (4096, 0, 0), (4096, 16, 2), (65536, 0, 1)]

# A random history: transactions that are committed, rolled back and spilled, that shrink the
# database and rebuild it, and checkpoints, complete or held back by a reader.
HISTORY = """
import random, sqlite3
path, seed, page_size, reserved, vacuum = sys.argv[1], *map(int, sys.argv[2:])
chance = random.Random(seed)

def connect():
    connection = sqlite3.connect(path, isolation_level=None, timeout=0)
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute("PRAGMA wal_autocheckpoint=0")
    connection.execute("PRAGMA cache_size=5")  # spills pages of open transactions
    return connection

connection = sqlite3.connect(path, isolation_level=None)
connection.execute(f"PRAGMA page_size={page_size}")
connection.execute(f"PRAGMA auto_vacuum={vacuum}")
connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, x, y)")
connection.execute("DROP TABLE t")
connection.execute("VACUUM")
connection.close()
if reserved:
    with open(path, "r+b") as file:
        first = bytearray(file.read(page_size))
        first[20] = reserved
        first[105:107] = (page_size - reserved).to_bytes(2, "big")
        file.seek(0)
        file.write(first)
connection = connect()
connection.execute("PRAGMA journal_mode=WAL")
connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, x, y)")
connection.execute("CREATE INDEX i ON t (y)")
reader = connect()

def change():
    start, count = chance.randrange(300), chance.randrange(1, 60)
    rows = [(start + row, chance.randbytes(chance.randrange(900)), chance.random())
            for row in range(count)]
    if chance.random() < 0.25:
        connection.execute("DELETE FROM t WHERE id BETWEEN ? AND ?", (start, start + 3 * count))
    else:
        connection.executemany("INSERT OR REPLACE INTO t VALUES (?, ?, ?)", rows)

def transaction():
    connection.execute("BEGIN IMMEDIATE")
    change()
    if chance.random() < 0.3:
        connection.execute("SAVEPOINT s")
        change()
        connection.execute("ROLLBACK TO s")
    connection.execute("ROLLBACK" if chance.random() < 0.25 else "COMMIT")

def hold():
    if reader.in_transaction:
        reader.execute("COMMIT")
    else:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM t").fetchone()

def checkpoint():
    mode = chance.choice(["PASSIVE", "PASSIVE", "PASSIVE", "FULL", "RESTART", "TRUNCATE"])
    connection.execute(f"PRAGMA wal_checkpoint({mode})")

def shrink():
    connection.execute("PRAGMA incremental_vacuum(5)").fetchall()
    if chance.random() < 0.2:
        connection.execute("VACUUM")

pause()
while True:
    for _ in range(chance.randrange(1, 12)):
        chance.choices([transaction, hold, checkpoint, shrink], [8, 2, 2, 1])[0]()
    with_open_transaction = chance.random() < 0.5
    if with_open_transaction:
        connection.execute("BEGIN IMMEDIATE")
        change()  # some of its pages are in the -wal
    pause()
    if with_open_transaction:
        connection.execute("COMMIT" if chance.random() < 0.5 else "ROLLBACK")
"""


def pages_of(path: Path, page_size: int) -> list[bytes]:
    """Return the pages, without what SQLite's backup changes in the header of its copy."""
    content = bytearray(path.read_bytes())
    for first, end in ((24, 28), (40, 44), (92, 100)):  # counters, and who wrote last
        content[first:end] = bytes(end - first)
    return [bytes(content[at : at + page_size]) for at in range(0, len(content), page_size)]


def by_page(source: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Copy a database by SQLite's backup interface and return its pages."""
    with monkeypatch.context() as patched:
        patched.setattr(online_copy, "_can_copy_bytes", lambda *_: False)
        copied = copy_database(source, target)
    assert copied.method == "pages"
    pages = pages_of(target, copied.page_size)
    target.unlink()
    return pages


def by_bytes(source: Path, target: Path) -> list[bytes]:
    """Copy it by its bytes; the copy is sound."""
    copied = copy_database(source, target)
    assert copied.method == "bytes"
    with contextlib.closing(sqlite3.connect(f"file:{target}?immutable=1", uri=True)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    pages = pages_of(target, copied.page_size)
    assert len(pages) == copied.page_count
    target.unlink()
    return pages


@pytest.mark.parametrize(("page_size", "reserved", "vacuum"), SHAPES)
def test_copy_equals_that_of_sqlite_after_any_history(
    page_size: int, reserved: int, vacuum: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Page by page, while another process has the database open, and after it was killed."""
    monkeypatch.setattr(wal, "_BLOCK_BYTES", 5 * page_size)
    monkeypatch.setattr(wal, "_MOST_PIECES", 3)
    source, target = tmp_path / "source" / "s.db", tmp_path / "copy.db"
    source.parent.mkdir()
    frames = 0
    for seed in range(4):
        arguments = (seed, page_size, reserved, vacuum)
        with running(HISTORY, str(source), *map(str, arguments)) as other:
            for _ in range(8):
                other.next()
                frames += (source.parent / "s.db-wal").stat().st_size > 0

                assert by_bytes(source, target) == by_page(source, target, monkeypatch)
            other.kill()

        killed = tmp_path / "killed"
        shutil.copytree(source.parent, killed)
        assert by_bytes(killed / "s.db", target) == by_page(killed / "s.db", target, monkeypatch)
        (killed / "s.db-shm").unlink()
        assert by_bytes(killed / "s.db", target) == by_page(killed / "s.db", target, monkeypatch)
        shutil.rmtree(killed)
        for file in source.parent.iterdir():
            file.unlink()
    assert frames > 16


@pytest.mark.parametrize(("page_size", "reserved", "vacuum"), SHAPES)
def test_copy_over_a_duplicate_equals_one_from_scratch_after_any_history(
    page_size: int, reserved: int, vacuum: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether pages are in the main file or in the -wal, the comparison has those that differ."""
    monkeypatch.setattr(wal, "_BLOCK_BYTES", 5 * page_size)
    source, earlier, later = tmp_path / "source" / "s.db", tmp_path / "1.db", tmp_path / "2.db"
    source.parent.mkdir()
    frames = equal = 0
    with running(HISTORY, str(source), *map(str, (5, page_size, reserved, vacuum))) as other:
        copy_database(source, earlier)
        for _ in range(16):
            other.next()
            frames += (source.parent / "s.db-wal").stat().st_size > 0
            digest = duplicate(earlier, later)

            with open_comparison(earlier) as comparison:
                copied = copy_database(source, later, comparison=comparison)

            before, after = earlier.read_bytes(), later.read_bytes()
            places = range(0, len(after), page_size)
            differing = [before[at:][:page_size] != after[at:][:page_size] for at in places]
            marked = list(comparison.changed[1:])[: len(differing)]
            assert copied.method == "bytes"
            assert comparison.digest == digest == hashlib.sha256(before).hexdigest()
            assert [*marked, *[0] * (len(differing) - len(marked))] == differing
            equal += len(differing) - sum(differing)
            assert pages_of(later, page_size) == by_bytes(source, tmp_path / "3.db")
            later.rename(earlier)
    assert frames > 4
    assert equal > 16


WRITER = """
import sqlite3, threading
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA journal_mode=WAL")
connection.execute("PRAGMA synchronous=OFF")
connection.execute("PRAGMA wal_autocheckpoint=%d" % int(sys.argv[2]))
connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, step INTEGER, pad)")
connection.execute("CREATE TABLE last (step INTEGER)")
connection.execute("INSERT INTO last VALUES (0)")
connection.execute("BEGIN")
connection.executemany("INSERT INTO t VALUES (?, 0, ?)", [(row, b"0" * 900) for row in range(500)])
connection.execute("COMMIT")
pause()

def checkpoint():
    other = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=5)
    while True:
        other.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

threading.Thread(target=checkpoint, daemon=True).start()
step = 0
while True:
    step += 1
    connection.execute("BEGIN IMMEDIATE")
    for row in range(5):
        connection.execute("UPDATE t SET step = ?, pad = ? WHERE id = ?",
                           (step, b"%d" % (step % 10) * 900, (step * 7919 + row * 101) % 500))
    connection.execute("UPDATE last SET step = ?", (step,))
    connection.execute("COMMIT")
"""


def steps_at(step: int) -> dict[int, int]:
    """Return the last step that changed each row, at a step of the writer."""
    rows = dict.fromkeys(range(500), 0)
    for number in range(max(step - 600, 1), step + 1):
        for row in range(5):
            rows[(number * 7919 + row * 101) % 500] = number
    return rows


@pytest.mark.parametrize("automatic", [0, 20])
def test_copy_is_one_commit_while_others_commit_and_checkpoint(
    automatic: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each copy has exactly what the writer's transactions had written up to one of them."""
    monkeypatch.setattr(wal, "_BLOCK_BYTES", 10 * 4120)
    monkeypatch.setattr(raw_copy, "_BLOCK_BYTES", 3 * 4096)
    source = tmp_path / "source" / "s.db"
    source.parent.mkdir()
    steps = []
    with running(WRITER, str(source), str(automatic)) as other:
        assert other.process.stdin
        other.process.stdin.write("\n")
        other.process.stdin.flush()
        for number in range(25):
            target = tmp_path / f"copy-{number}.db"

            copied = copy_database(source, target)

            assert copied.method == "bytes"
            with contextlib.closing(sqlite3.connect(target)) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
                ((step,),) = connection.execute("SELECT step FROM last").fetchall()
                rows = dict(connection.execute("SELECT id, step FROM t").fetchall())
                pads = connection.execute("SELECT step, pad FROM t WHERE step > 0").fetchall()
            assert rows == steps_at(step)
            assert all(pad == b"%d" % (written % 10) * 900 for written, pad in pads)
            steps.append(step)
            target.unlink()
    assert steps == sorted(steps)
    assert steps[-1] > steps[0]


def test_checkpoint_during_the_copy_changes_no_page_that_is_newer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a checkpoint writes while the main file is read is of frames that are applied too."""
    writer = """
import sqlite3
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA journal_mode=WAL")
connection.execute("PRAGMA wal_autocheckpoint=0")
connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, generation INTEGER, pad)")
connection.executemany("INSERT INTO t VALUES (?, 0, zeroblob(3000))", [(i,) for i in range(200)])
connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
connection.execute("UPDATE t SET generation = 1")
pause()
connection.execute("UPDATE t SET generation = 2 WHERE id % 2")
pause("%d %d %d" % connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone())
"""
    source, target = tmp_path / "s.db", tmp_path / "copy.db"
    copy_blocks = raw_copy.copy_blocks
    contents = []
    checkpoints = []

    with running(writer, str(source)) as other:

        def copy_after_checkpoint(main: int, *others: Any) -> None:
            contents.append(os.pread(main, 1 << 20, 0))
            checkpoints.append(other.next())
            contents.append(os.pread(main, 1 << 20, 0))
            copy_blocks(main, *others)

        monkeypatch.setattr(online_copy, "copy_blocks", copy_after_checkpoint)
        copied = copy_database(source, target)

    assert copied.method == "bytes"
    assert contents[0] != contents[1]
    (busy, frames, written) = map(int, checkpoints[0].split())
    assert busy == 0
    assert 0 < written < frames
    with contextlib.closing(sqlite3.connect(target)) as connection:
        found = connection.execute("SELECT DISTINCT id % 2, generation FROM t").fetchall()
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert sorted(found) == [(0, 1), (1, 2)]


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A database with 100 rows in its -wal, as a killed process leaves it."""
    source, killed = tmp_path / "running", tmp_path / "killed"
    source.mkdir()
    with contextlib.closing(sqlite3.connect(source / "s.db", isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, pad)")
        for number in range(100):
            connection.execute("INSERT INTO t VALUES (?, zeroblob(1500))", (number,))
        shutil.copytree(source, killed)
    return killed / "s.db"


def rows_of(database: Path) -> int:
    """Count the rows of a database that no other process uses."""
    with contextlib.closing(sqlite3.connect(f"file:{database}?immutable=1", uri=True)) as reader:
        assert reader.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return int(reader.execute("SELECT count(*) FROM t").fetchone()[0])


def checksum(content: bytes | bytearray, first: int, second: int) -> tuple[int, int]:
    """Return SQLite's checksum of big-endian words, continued from another."""
    for even, odd in struct.iter_unpack(">II", content):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return first, second


def test_log_of_a_big_endian_machine_is_read(killed: Path, tmp_path: Path) -> None:
    """Its magic number differs, and its checksums are of words in the other order."""
    log = killed.with_name("s.db-wal")
    content = bytearray(log.read_bytes())
    content[:4] = (0x377F0683).to_bytes(4, "big")
    sums = checksum(content[:24], 0, 0)
    struct.pack_into(">II", content, 24, *sums)
    for start in range(32, len(content), 4120):
        sums = checksum(content[start : start + 8], *sums)
        sums = checksum(content[start + 24 : start + 4120], *sums)
        struct.pack_into(">II", content, start + 16, *sums)
    log.write_bytes(content)

    copied = copy_database(killed, tmp_path / "copy.db")

    assert copied.method == "bytes"
    assert rows_of(copied.path) == 100


def test_transaction_that_a_crash_cut_is_left_out(killed: Path, tmp_path: Path) -> None:
    """A flipped bit in a frame ends the log at the commit before it, as it does for SQLite."""
    log = killed.with_name("s.db-wal")
    content = bytearray(log.read_bytes())
    content[-2000] ^= 1
    log.write_bytes(content)

    copied = copy_database(killed, tmp_path / "copy.db")

    assert copied.method == "bytes"
    assert rows_of(copied.path) == 99


def test_index_of_another_version_is_not_read(
    killed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then SQLite copies the pages; so it does where the index cannot be read."""
    monkeypatch.setattr(wal, "_VERSION", 3007001)

    copied = copy_database(killed, tmp_path / "copy.db")

    assert copied.method == "pages"
    assert rows_of(copied.path) == 100


def test_index_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two copies of the header must agree, with a checksum over both."""
    monkeypatch.setattr(wal, "_ATTEMPTS", 3)
    monkeypatch.setattr(wal, "_PAUSE_SECONDS", 0)
    source = tmp_path / "s.db"
    connection = sqlite3.connect(source, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE t (x)")
    header = source.with_name("s.db-shm").read_bytes()[:96]
    connection.close()
    file = tmp_path / "index"

    def read(content: bytes | bytearray) -> WalIndex | None:
        file.write_bytes(content)
        with file.open("rb") as stream:
            return read_index(stream.fileno(), 4096)

    index = read(header)
    assert index is not None
    assert (index.page_size, index.frames, index.page_count) == (4096, 2, 2)
    for position in range(96):
        torn = bytearray(header)
        torn[position] ^= 1
        assert read(torn) is None
    changed = bytearray(header[:48])
    changed[16] ^= 1  # the last frame, in both copies
    assert read(bytes(changed) * 2) is None
    assert read(b"") is None
    assert read(bytes(96)) is None


@pytest.mark.parametrize(
    ("frames", "pages", "error"),
    [(0, 1 << 31, DamagedError), (1_000_000, 0, LockedError), (-1, 1, LockedError)],
)
def test_index_that_contradicts_the_log_is_refused(
    frames: int,
    pages: int,
    error: type[Exception],
    killed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither a size that nothing fills nor an end that is no commit results in a copy."""

    def forged(shm: int, page_size: int) -> WalIndex | None:
        index = read_index(shm, page_size)
        assert index
        return replace(index, frames=index.frames + frames, page_count=index.page_count + pages)

    monkeypatch.setattr(online_copy, "read_index", forged)
    target = tmp_path / "out" / "copy.db"
    target.parent.mkdir()

    with pytest.raises(error, match=r"s\.db"):
        copy_database(killed, target)

    assert list(target.parent.iterdir()) == []


def test_restart_after_the_last_frame_was_read_is_noticed(tmp_path: Path) -> None:
    """The header of the log has other salts then."""
    log, copy = tmp_path / "log", tmp_path / "copy"
    page = bytes(512)
    log.write_bytes(
        bytes(16) + b"8 bytes." + bytes(8) + struct.pack(">II", 1, 1) + bytes(16) + page
    )
    index = WalIndex(page_size=512, frames=1, page_count=1, salts=b"8 bytes.")
    results = []
    for salts in (b"8 bytes.", b"another."):
        with log.open("r+b") as source, copy.open("w+b") as target:
            source.seek(16)
            source.write(salts)
            source.flush()
            results.append(
                apply_log(index, source.fileno(), target.fileno(), log, lambda _count: None)
            )

    assert results == [True, False]
    assert copy.read_bytes() == page


def test_write_that_ends_early_is_continued(
    killed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system may take a part of what it is given."""
    written: list[int] = []

    def write(descriptor: int, pieces: list[memoryview], offset: int) -> int:
        content = b"".join(pieces)[:5000]
        written.append(len(content))
        return os.pwrite(descriptor, content, offset)

    monkeypatch.setattr(os, "pwritev", write)

    copied = copy_database(killed, tmp_path / "copy.db")

    assert 5000 in written
    assert rows_of(copied.path) == 100
