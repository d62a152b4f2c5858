"""A new database: its schema, its file, and what happens when it cannot be made."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
from pathlib import Path

import pytest

import schema_catalogs
from sagewai_ops.errors import OpsError, TargetBusyError
from sagewai_ops.schema import sqlite_head
from sagewai_ops.schema.create import create_database
from sagewai_ops.schema.revision_graph import HEAD
from sagewai_ops.schema.sqlite_revision import Level, read_level


def test_new_database_equals_a_fresh_home(tmp_path: Path) -> None:
    """The schema equals the reference, the mode is WAL, and no rows are in it."""
    path = tmp_path / "sagewai.db"

    create_database(path)

    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert schema_catalogs.read_sqlite(connection) == schema_catalogs.sqlite()
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert read_level(connection) == Level(HEAD, "current")


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_new_database_is_private_under_any_umask(tmp_path: Path, umask: int) -> None:
    """No other user can read it, and it has no side files."""
    before = os.umask(umask)
    try:
        create_database(tmp_path / "sagewai.db")
    finally:
        os.umask(before)

    assert os.listdir(tmp_path) == ["sagewai.db"]
    assert stat.S_IMODE((tmp_path / "sagewai.db").stat().st_mode) == 0o600


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_existing_name_is_never_replaced(tmp_path: Path, kind: str) -> None:
    """A file, directory or link of that name is kept, and no temporary file remains."""
    path = tmp_path / "sagewai.db"
    if kind == "file":
        path.write_bytes(b"")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("nowhere")

    with pytest.raises(TargetBusyError, match=r"sagewai\.db: exists"):
        create_database(path)

    assert os.listdir(tmp_path) == ["sagewai.db"]


def test_database_created_by_another_program_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that another program makes while ours is built is kept."""
    path = tmp_path / "sagewai.db"
    statements = sqlite_head.statements()

    def create_other() -> tuple[str, ...]:
        path.write_bytes(b"theirs")
        return statements

    monkeypatch.setattr(sqlite_head, "statements", create_other)

    with pytest.raises(TargetBusyError):
        create_database(path)

    assert os.listdir(tmp_path) == ["sagewai.db"]
    assert path.read_bytes() == b"theirs"


def test_file_system_without_hard_links_is_supported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a link cannot be made, the finished file is renamed."""

    def refuse(*_names: object, **_options: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)

    create_database(tmp_path / "sagewai.db")

    assert os.listdir(tmp_path) == ["sagewai.db"]


def test_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A statement that fails names the database and leaves the directory empty."""
    monkeypatch.setattr(
        sqlite_head, "statements", lambda: ("CREATE TABLE org (id)", "CREATE TABLE org (id)")
    )

    with pytest.raises(OpsError, match=r"sagewai\.db: not created"):
        create_database(tmp_path / "sagewai.db")

    assert os.listdir(tmp_path) == []


def test_missing_directory_is_named(tmp_path: Path) -> None:
    """The directory is the caller's; without it the error names what is missing."""
    with pytest.raises(OpsError, match="no such file or directory"):
        create_database(tmp_path / "db" / "sagewai.db")
