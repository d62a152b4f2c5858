"""A copy that is made of a duplicate of an earlier one, and compared with it at the same time."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sqlite3
import stat
from pathlib import Path

import pytest

from sagewai_ops.database.sqlite import online_copy
from sagewai_ops.database.sqlite.online_copy import copy_database, duplicate
from sagewai_ops.database.sqlite.page_changes import find_page_changes
from sagewai_ops.database.sqlite.page_comparison import (
    PageComparison,
    compare_files,
    open_comparison,
)
from sagewai_ops.database.sqlite.read_transaction import NeedsStagingError
from sagewai_ops.errors import DamagedError, InterruptedRunError, TargetBusyError
from sagewai_ops.progress import no_progress


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A database of two megabytes in WAL mode, closed."""
    path = tmp_path / "home" / "s.db"
    path.parent.mkdir()
    execute(
        path,
        "PRAGMA journal_mode = WAL",
        "CREATE TABLE t (id INTEGER PRIMARY KEY, x)",
        "INSERT INTO t SELECT value, hex(randomblob(500)) FROM ("
        "WITH RECURSIVE n(value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM n LIMIT 2000)"
        " SELECT value FROM n)",
    )
    return path


@pytest.fixture
def earlier(source: Path, tmp_path: Path) -> Path:
    """The first copy of it."""
    return copy_database(source, tmp_path / "earlier.db").path


def execute(path: Path, *statements: str) -> None:
    """Run statements on a database."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def copy_over(source: Path, earlier: Path, later: Path) -> tuple[str, PageComparison]:
    """Copy a database over a duplicate of an earlier copy; return the method too."""
    with open_comparison(earlier) as comparison:
        copied = copy_database(source, later, comparison=comparison)
    return copied.method, comparison


def test_a_duplicate_is_private_and_equal(earlier: Path, tmp_path: Path) -> None:
    """Its digest is that of the content; a file that exists is not replaced."""
    later = tmp_path / "later.db"

    digest = duplicate(earlier, later)

    assert later.read_bytes() == earlier.read_bytes()
    assert digest == hashlib.sha256(earlier.read_bytes()).hexdigest()
    assert stat.S_IMODE(later.stat().st_mode) == 0o600
    with pytest.raises(TargetBusyError, match="exists"):
        duplicate(earlier, later)
    assert later.read_bytes() == earlier.read_bytes()


CHANGES = {
    "nothing": (),
    "updated": ("UPDATE t SET x = 'later' WHERE id % 500 = 1",),
    "grown": ("INSERT INTO t (x) SELECT x FROM t",),
    "shrunk": ("DELETE FROM t WHERE id > 100", "VACUUM"),
    "another page size": ("PRAGMA journal_mode = DELETE", "PRAGMA page_size = 1024", "VACUUM"),
    "rollback mode": ("PRAGMA journal_mode = DELETE", "DELETE FROM t WHERE id = 4"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_found_during_the_copy_is_what_is_found_after_it(
    source: Path, earlier: Path, tmp_path: Path, name: str
) -> None:
    """The copy is that of the source, only its own pages were written."""
    later = tmp_path / "later.db"
    execute(source, *CHANGES[name])
    digest = duplicate(earlier, later)

    method, comparison = copy_over(source, earlier, later)

    found = find_page_changes(earlier, later, ["t"], comparison=comparison)
    assert method == "bytes"
    assert later.read_bytes() == source.read_bytes()
    with open_comparison(earlier) as afterwards:
        compare_files(afterwards, later, no_progress)
    assert found == find_page_changes(earlier, later, ["t"], comparison=afterwards)
    assert found.digest == digest
    assert (found.changed == 0) == (name == "nothing")


@pytest.mark.parametrize("method", ["pages", "staged", "empty"])
def test_another_method_leaves_the_comparison_to_the_caller(
    source: Path, earlier: Path, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the duplicate stays, which was larger."""
    later = tmp_path / "later.db"
    execute(source, *CHANGES["another page size"], "DELETE FROM t WHERE id > 9", "VACUUM")
    duplicate(earlier, later)
    if method == "pages":
        monkeypatch.setattr(online_copy, "_can_copy_bytes", lambda *_: False)
    elif method == "staged":

        def refuse(*_arguments: object, **_options: object) -> None:
            raise NeedsStagingError("not writable")

        monkeypatch.setattr(online_copy, "open_read_transaction", refuse)
    else:
        os.truncate(source, 0)

    used, comparison = copy_over(source, earlier, later)

    assert used == method
    assert comparison.digest == ""
    if method == "empty":
        assert later.read_bytes() == b""
        return
    with contextlib.closing(sqlite3.connect(later)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("SELECT count(*) FROM t").fetchall() == [(9,)]


def test_a_duplicate_that_was_changed_is_written_over(
    source: Path, earlier: Path, tmp_path: Path
) -> None:
    """In a page that does not differ between the copies: its content is not trusted."""
    later = tmp_path / "later.db"
    execute(source, CHANGES["updated"][0])
    duplicate(earlier, later)
    with later.open("r+b") as file:
        file.seek(40 * 4096 + 500)
        file.write(b"forged")
        file.seek(0, os.SEEK_END)
        file.write(bytes(100 * 4096))

    _, comparison = copy_over(source, earlier, later)

    assert later.read_bytes() == source.read_bytes()
    assert find_page_changes(earlier, later, ["t"], comparison=comparison).changed < 20


def test_an_earlier_copy_that_was_changed_has_another_digest(
    source: Path, earlier: Path, tmp_path: Path
) -> None:
    """Also behind the end of the later copy."""
    later, kept = tmp_path / "later.db", tmp_path / "kept.db"
    execute(source, *CHANGES["shrunk"])
    shutil.copy(earlier, kept)
    size = earlier.stat().st_size
    for place in (5000, size - 5000):
        shutil.copy(kept, earlier)
        digest = duplicate(earlier, later)
        with earlier.open("r+b") as file:
            file.seek(place)
            file.write(b"forged")

        _, comparison = copy_over(source, earlier, later)

        assert comparison.digest == hashlib.sha256(earlier.read_bytes()).hexdigest() != digest
        later.unlink()


def test_a_copy_that_fails_is_removed(source: Path, earlier: Path, tmp_path: Path) -> None:
    """By an interruption, or because the source is damaged: never half of two states."""
    later = tmp_path / "later.db"
    duplicate(earlier, later)

    def interrupt(_stage: str, _done: int, _total: int) -> None:
        raise InterruptedRunError(2)

    with open_comparison(earlier) as comparison, pytest.raises(InterruptedRunError):
        copy_database(source, later, comparison=comparison, progress=interrupt)
    assert not later.exists()

    duplicate(earlier, later)
    source.write_bytes(b"no database" * 1000)
    with open_comparison(earlier) as comparison, pytest.raises(DamagedError):
        copy_database(source, later, comparison=comparison)
    assert not later.exists()
