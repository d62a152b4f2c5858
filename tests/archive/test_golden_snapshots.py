"""Snapshots of every version of the format, written by the releases of their time, can be read."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from postgres_server import Server
from program import call
from server_homes import restore_archive

GOLDEN = Path(__file__).parents[2] / "fixtures/snapshots"
FILES_ALONE = ("--without-database",)
VERSIONS = sorted(path.stem for path in GOLDEN.glob("version-*.json"))


def contents_of(root: Path) -> dict[str, str]:
    """Map each path below a directory to its type and content."""
    return {
        str(path.relative_to(root)): f"link {os.readlink(path)}"
        if path.is_symlink()
        else "folder"
        if path.is_dir()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_plain_snapshot_of_every_version_is_restored(tmp_path: Path, version: str) -> None:
    """Each file equals the original."""
    archive = shutil.copy(GOLDEN / f"{version}.tar.zst", tmp_path)

    verified = call("snapshots", "verify", archive)
    words = FILES_ALONE if version.endswith("postgres") else ()
    restored = call("restore", archive, "--to", tmp_path / "home", "--without-key", *words)

    assert (verified.code, restored.code) == (0, 0), verified.err + restored.err
    assert contents_of(tmp_path / "home") == json.loads((GOLDEN / f"{version}.json").read_bytes())


def test_database_of_a_golden_snapshot_is_restored_by_psql(
    every_postgres: Server, tmp_path: Path
) -> None:
    """Its rows, columns and sequences, by the script in it."""
    archive = GOLDEN / "version-2-postgres.tar.zst"

    restored = restore_archive(archive, every_postgres, tmp_path / "there")

    rows = every_postgres.rows(restored, 'SELECT id, "a.b", d, g FROM "own ""table""" ORDER BY 1')
    assert rows == [(1, None, b"\0\xff", 7), (2, "x" * 20, None, 7)]
    rows = every_postgres.rows(restored, "SELECT agent_name, messages FROM sessions ORDER BY 1")
    assert rows == [("tab\tnewline\nbackslash\\", '[1, "x"]'), ("ü€", None)]
    query = 'SELECT nextval(\'workflow_events_id_seq\'), nextval(\'"own ""table""_id_seq"\')'
    assert every_postgres.rows(restored, query) == [(3, 3)]


@pytest.mark.parametrize("version", VERSIONS)
def test_encrypted_snapshot_of_every_version_is_restored(tmp_path: Path, version: str) -> None:
    """With the key in it, which opens the secrets of the home."""
    archive = shutil.copy(GOLDEN / f"{version}.tar.zst.age", tmp_path)
    identity = shutil.copy(GOLDEN / "identity.txt", tmp_path)
    os.chmod(identity, 0o600)

    words = FILES_ALONE if version.endswith("postgres") else ()
    restored = call("restore", archive, "--to", tmp_path / "home", "--identity", identity, *words)

    assert restored.code == 0, restored.err
    expected = json.loads((GOLDEN / f"{version}.json").read_bytes())
    found = contents_of(tmp_path / "home")
    assert found.pop("secrets/master.key")
    assert found == expected
