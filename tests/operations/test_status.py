"""What a home is at this moment: read while others use it, and never written."""

import json
import os
from pathlib import Path

import pytest

import home_writer
import real_homes
from sagewai_ops.backup.create import create_snapshot
from sagewai_ops.backup.report import BackupOptions
from sagewai_ops.errors import NotFoundError
from sagewai_ops.home.paths import locate
from sagewai_ops.operations.status import Status, read_status
from small_homes import everything_of, small


def _read(root: Path, environment: dict[str, str] | None = None) -> Status:
    home = locate(root, environment or {})
    return read_status(home, home.snapshots, environment or {})


@pytest.mark.parametrize(
    ("name", "layout"),
    [("real-small", "canonical"), ("legacy-flat", "flat"), ("legacy-both-differ", "mixed")],
)
def test_a_home_of_the_real_sagewai_is_described_and_untouched(
    tmp_path: Path, name: str, layout: str
) -> None:
    """Layout, documents and key; every byte and time stays."""
    root = real_homes.unpack(name, tmp_path)
    before = everything_of(root)

    found = _read(root)

    assert everything_of(root) == before
    assert found.layout == layout
    assert found.key_fingerprint
    assert found.documents
    assert not found.interrupted_restore
    assert not found.interrupted_rotation
    assert not found.interrupted_layout_migration
    assert found.snapshots.newest is None


@pytest.mark.parametrize("journal", ["everything", "tail"])
def test_rows_are_counted_where_they_are(tmp_path: Path, journal: str) -> None:
    """A main file of 4096 bytes is no empty database."""
    built = small(tmp_path / "home", journal=journal, rows=2)
    before = everything_of(built.root)

    found = _read(built.root)

    assert everything_of(built.root) == before
    assert found.database is not None
    assert {table: found.database.tables[table] for table in built.rows} == dict(built.rows)
    assert found.database.wal_bytes > 0
    assert found.database.schema_state == "current"


def test_sizes_are_those_of_the_files(tmp_path: Path) -> None:
    """By part; links count as links, what they lead to does not."""
    built = small(tmp_path / "home", small_files=20)
    (built.root / "data/far").symlink_to("/usr/bin")

    found = _read(built.root)

    below = [path for path in (built.root / "data").rglob("*") if path.is_symlink() or
             path.is_file()]  # fmt: skip
    assert found.sizes["data"] == sum(path.lstat().st_size for path in below)
    every = everything_of(built.root)
    assert found.files == sum(not (built.root / path).is_dir() or
                              (built.root / path).is_symlink() for path in every)  # fmt: skip


def test_who_has_the_database_open_is_named(tmp_path: Path) -> None:
    """Process and command; and none once it is gone."""
    built = small(tmp_path / "home")
    with home_writer.start(built.root) as writer:
        during = _read(built.root)
        writer.stop()
    after = _read(built.root)

    assert [user.pid for user in during.used_by] == [writer.process.pid]
    assert "home_writer" in during.used_by[0].command
    assert after.used_by == ()


def test_a_key_that_sagewai_refuses_is_no_key_in_use(tmp_path: Path) -> None:
    """It is a candidate with a problem."""
    built = small(tmp_path / "home")
    built.master_key.chmod(0o644)

    found = _read(built.root)

    assert (found.key_source, found.key_fingerprint) == ("", "")
    assert [key.problem for key in found.keys] == ["mode 0644, accessible to other users"]


def test_the_newest_snapshot_of_this_home_is_reported(tmp_path: Path) -> None:
    """Those of other homes in the same directory do not count."""
    built = small(tmp_path / "home")
    other = small(tmp_path / "other")
    state = json.loads(other.admin_state.read_bytes())
    state["admin"]["id"] = "another-admin"
    other.admin_state.write_text(json.dumps(state))
    home = locate(built.root, {})
    first = create_snapshot(home, home.snapshots, BackupOptions())
    create_snapshot(locate(other.root, {}), home.snapshots, BackupOptions())

    found = _read(built.root)

    assert found.snapshots.newest is not None
    assert (found.snapshots.newest.id, found.snapshots.count) == (first.id, 1)


@pytest.mark.parametrize("content", [b"no database", b"SQLite format 3\0" + bytes(50)])
def test_a_database_that_cannot_be_read_is_a_problem_not_an_error(
    tmp_path: Path, content: bytes
) -> None:
    """The rest of the home is still described."""
    built = small(tmp_path / "home", journal="none")
    built.database.write_bytes(content)

    found = _read(built.root)

    assert found.database is not None
    assert "sagewai.db" in found.database.problem
    assert found.documents


def test_an_empty_home_is_a_home(tmp_path: Path) -> None:
    """Nothing in it is nothing wrong."""
    (tmp_path / "home").mkdir()

    found = _read(tmp_path / "home")

    assert (found.layout, found.files, found.database, found.key_source) == ("empty", 0, None, "")


def test_no_home_is_an_error(tmp_path: Path) -> None:
    """And none is made."""
    with pytest.raises(NotFoundError):
        _read(tmp_path / "home")

    assert os.listdir(tmp_path) == []
