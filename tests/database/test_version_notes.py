"""What is known against versions of SQLite, and where it is reported."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from program import call
from sagewai_ops.database.sqlite.version_notes import Version, has_wal_reset_bug, version_note
from small_homes import small

FAULTY = [(3, 7, 0), (3, 40, 1), (3, 44, 5), (3, 45, 0), (3, 50, 6), (3, 51, 0), (3, 51, 2)]
SOUND = [
    (3, 6, 23),
    (3, 44, 6),
    (3, 44, 9),
    (3, 50, 7),
    (3, 51, 3),
    (3, 52, 0),
    (3, 53, 1),
    (4, 0, 0),
]


@pytest.mark.parametrize("version", FAULTY)
def test_a_faulty_version_is_noted_for_a_wal_database(version: Version) -> None:
    """With its number, and where to read on."""
    output = version_note(version, "wal")

    assert has_wal_reset_bug(version)
    assert f"SQLite {version[0]}.{version[1]}.{version[2]} " in output
    assert output.endswith("docs/database.md")


@pytest.mark.parametrize("version", SOUND)
def test_a_repaired_version_is_no_note(version: Version) -> None:
    """Fixed upstream, in a branch, or older than WAL itself."""
    assert not has_wal_reset_bug(version)
    assert version_note(version, "wal") == ""


@pytest.mark.parametrize("journal_mode", ["delete", "truncate", ""])
def test_without_wal_there_is_nothing_to_note(journal_mode: str) -> None:
    """The fault is in the WAL alone."""
    assert version_note((3, 40, 1), journal_mode) == ""


@pytest.mark.parametrize(("version", "count"), [((3, 40, 1), 1), ((3, 51, 3), 0)])
def test_status_notes_it_quietly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: Version, count: int
) -> None:
    """On stdout, without a warning and without another exit code."""
    monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
    built = small(tmp_path / "home")

    asked = call("--home", built.root, "status")
    answer = call("--home", built.root, "status", "--json")

    assert (asked.code, asked.err) == (0, "")
    assert asked.out.count("  note       SQLite") == count
    assert len(answer.result["notes"]) == count
    assert answer.result["database"]["journal_mode"] == "wal"
    assert answer.result["sqlite_version"] == sqlite3.sqlite_version


def test_a_home_without_a_database_has_no_note(tmp_path: Path) -> None:
    """Nothing is there to be damaged."""
    bare = tmp_path / "bare"
    (bare / "config").mkdir(parents=True)
    (bare / "config/connections.json").write_text('{"version": 2, "connections": []}')

    answer = call("--home", bare, "status", "--json")

    assert answer.result["notes"] == []
