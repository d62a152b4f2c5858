"""The mirror as a source for restic: little is stored again, and a restore verifies it."""

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import pytest

from home_builder import BuiltHome, build_home
from round_trips import assert_same_home, bring_back
from sagewai_ops.backup.mirror import update_mirror
from sagewai_ops.backup.report import BackupOptions
from sagewai_ops.home.paths import DATABASE, locate

pytestmark = pytest.mark.in_memory  # the repository is synced at each step

DATABASE_BYTES = 24_000_000
# The tables that grow with use, and the text in them that the home's builder made long.
GROWING = {
    "agent_runs": "input_text",
    "context_chunks": "content",
    "prompt_logs": "input_text",
    "sessions": "messages",
}

pytestmark = pytest.mark.skipif(shutil.which("restic") is None, reason="restic is not installed")


def restic(repository: Path, *words: object) -> list[dict[str, Any]]:
    """Run restic on a repository and return its output, an object a line."""
    done = subprocess.run(
        ["restic", "--json", "--no-cache", *map(str, words)],
        env={
            "PATH": os.environ["PATH"],
            "RESTIC_REPOSITORY": str(repository),
            "RESTIC_PASSWORD": "of this test",
        },
        capture_output=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith(b"{")]


def change_newest(built: BuiltHome) -> tuple[int, int]:
    """Rewrite the newest hundredth of the rows; return their number and that of all."""
    changed = rows = 0
    with contextlib.closing(sqlite3.connect(built.database)) as connection:
        for table, column in GROWING.items():
            (count,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
            connection.execute(
                f"UPDATE {table} SET {column} = replace({column}, 'e', 'E') WHERE rowid IN"
                f" (SELECT rowid FROM {table} ORDER BY rowid DESC LIMIT ?)",
                (-(-count // 100),),
            )
            changed += connection.execute("SELECT changes()").fetchone()[0]
            rows += count
        connection.commit()
    return changed, rows


def test_restic_stores_little_when_few_rows_changed(tmp_path: Path) -> None:
    """One percent of the rows, the newest: under fifteen percent of the database."""
    built = build_home(
        tmp_path / "home",
        rows=1,
        vectors=0,
        database_bytes=DATABASE_BYTES,
        artifacts=False,
        leftovers=False,
    )
    home, directory, repository = (
        locate(built.root, {}),
        tmp_path / "backups",
        tmp_path / "repository",
    )
    restic(repository, "init")
    update_mirror(home, directory, BackupOptions())
    first = restic(repository, "backup", directory / "tree")[-1]

    changed, rows = change_newest(built)
    update_mirror(home, directory, BackupOptions())
    second = restic(repository, "backup", directory / "tree")[-1]

    size_bytes = (directory / "tree" / DATABASE).stat().st_size
    assert 0.01 * rows <= changed < 0.02 * rows
    assert first["data_added"] > 0.9 * size_bytes
    assert 0 < second["data_added"] < 0.15 * size_bytes

    restic(repository, "restore", "latest", "--target", tmp_path / "out")
    found = tmp_path / "out" / (directory / "tree").relative_to("/")
    key = {"SAGEWAI_MASTER_KEY": built.master_key.read_text()}
    bring_back(found, tmp_path / "back", environment=key)
    assert_same_home(built.root, tmp_path / "back", "secrets/master.key")
