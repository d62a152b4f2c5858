"""What the live writer promises to the tests that back up under it."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import time
from pathlib import Path

import pytest

import home_writer
from home_builder import build_home


def wait_for_rows(database: Path, count: int) -> None:
    """Return when the writer committed so many pairs; fails after a minute."""
    deadline = time.monotonic() + 60
    while home_writer.pairs(database)[0] < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_every_commit_adds_a_pair(tmp_path: Path) -> None:
    """Rows of both tables are equally many while it writes, and as many as it reports."""
    home = build_home(tmp_path / "home", vectors=0, leftovers=False)

    with home_writer.start(home.root) as writer:
        wait_for_rows(home.database, 100)
        report = writer.stop()

    first, second = home_writer.pairs(home.database)
    assert first == second == report.commits >= 100


def test_documents_stay_whole_and_files_change(tmp_path: Path) -> None:
    """It replaces the three documents, changes artifacts and leaves no temporary file."""
    home = build_home(tmp_path / "home", vectors=0, leftovers=False)

    with home_writer.start(home.root) as writer:
        wait_for_rows(home.database, 150)
        report = writer.stop()

    assert report.documents >= 3
    assert report.files >= 3
    for path in (home.admin_state, home.connections, home.profiles):
        assert "x_writer" in json.loads(path.read_bytes())
        assert path.stat().st_mode & 0o777 == 0o600
    assert not list(home.root.rglob("*.tmp"))
    assert list((home.root / home_writer.LIVE_FOLDER).iterdir())


def test_killed_writer_leaves_whole_transactions(tmp_path: Path) -> None:
    """After SIGKILL the pairs are whole, still in the WAL, and a next writer goes on counting."""
    home = build_home(tmp_path / "home", vectors=0)

    with home_writer.start(home.root, files=False) as writer:
        wait_for_rows(home.database, 50)
        writer.kill()
    wal = home.database.with_name("sagewai.db-wal")
    assert wal.stat().st_size > 0
    before = home_writer.pairs(home.database)
    with home_writer.start(home.root, files=False) as writer:
        wait_for_rows(home.database, before[0] + 10)

    assert before[0] == before[1] >= 50
    assert home_writer.pairs(home.database)[0] >= before[0] + 10


def test_torn_copy_breaks_the_invariant(tmp_path: Path) -> None:
    """A database that lost one row of a pair is told from a whole one."""
    home = build_home(tmp_path / "home", vectors=0, journal="none")
    with home_writer.start(home.root, files=False):
        wait_for_rows(home.database, 20)
    torn = tmp_path / "torn.db"
    shutil.copy(home.database, torn)
    with contextlib.closing(sqlite3.connect(torn)) as connection:
        connection.execute("DELETE FROM budget_spend WHERE cost_usd = 7.0")
        connection.commit()

    with pytest.raises(ValueError, match="budget_spend"):
        home_writer.pairs(torn)
