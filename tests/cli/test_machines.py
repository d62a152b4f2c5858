"""Real machines: file systems that lack operations, volumes, overlays, limits, odd terminals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from program import PATIENCE_SECONDS, call
from refusals import LACKING, build_library, refusing
from small_homes import small

# Runs one command after another in one process: their codes, outputs and errors, as JSON.
_SEVERAL = """
import contextlib, io, json, os, sys
from sagewai_ops.cli.main import run
os.umask(0o077)
answers = []
for words in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(words)
    answers.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the library that refuses, once."""
    return build_library(tmp_path_factory.mktemp("refusals"))


def _run_several(environment: dict[str, str], *commands: list[object]) -> list[tuple[int, str]]:
    """Run commands in one process; return their exit codes and what they printed."""
    words = json.dumps([list(map(str, command)) for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", _SEVERAL, words],
        env={**os.environ, **environment},
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        check=True,
    )
    return [(code, out + err) for code, out, err in json.loads(done.stdout)]


@pytest.mark.parametrize("lacking", LACKING)
def test_every_command_works_on_a_file_system_that_lacks_operations(
    tmp_path: Path, library: Path, lacking: str
) -> None:
    """A home, its snapshots and a restored home on one: nothing is refused that is not needed."""
    volume = tmp_path / "volume"
    volume.mkdir(mode=0o700)
    home, copy = volume / "home", volume / "copy"
    archive = volume / "home.snapshots"
    at_home = ["--home", home]

    answers = _run_several(
        refusing(library, volume, LACKING[lacking]),
        [*at_home, "init"],
        [*at_home, "status"],
        [*at_home, "backup", "--keep-last", 2],
        [*at_home, "backup", "--format", "directory"],
        [*at_home, "backup", "--format", "directory"],
        [*at_home, "verify-perms"],
        [*at_home, "snapshots", "list"],
        [*at_home, "snapshots", "verify", "latest"],
        [*at_home, "drill"],
        [*at_home, "db", "current"],
        [*at_home, "db", "check"],
        [*at_home, "keys", "check"],
        ["restore", "latest", "--snapshots", archive, "--to", copy],
        [*at_home, "restore", "latest", "--replace", "--yes"],
        [*at_home, "restore", "--undo", "--yes"],
        ["snapshots", "extract", "latest", "--snapshots", archive, "--to", volume / "files"],
    )

    assert [(code, text) for code, text in answers if code] == []
    assert (copy / "db/sagewai.db").is_file()
    assert sum(path.name.startswith(".") for path in archive.iterdir()) <= 1  # .trash


def _volume(path: Path) -> Path:
    """Make the root of a volume: it has `lost+found`, which only root reads."""
    path.mkdir(mode=0o700)
    (path / "lost+found").mkdir(mode=0o000)
    return path


def test_lost_and_found_is_neither_archived_nor_moved_nor_content(tmp_path: Path) -> None:
    """A home that is the root of a volume is complete; a new volume is empty."""
    home, new, extracted = (_volume(tmp_path / name) for name in ("home", "new", "files"))
    snapshots = tmp_path / "snapshots"
    assert call("--home", home, "init").code == 0

    backup = call("--home", home, "backup", "--to", snapshots, "--json")
    assert backup.code == 0, backup.err
    assert "lost+found" not in backup.out
    assert call("restore", "latest", "--snapshots", snapshots, "--to", new).code == 0
    assert (new / "db/sagewai.db").exists()
    options = ("--snapshots", snapshots)
    assert call("snapshots", "extract", "latest", *options, "--to", extracted).code == 0
    assert call("--home", home, "restore", "latest", *options, "--replace", "--yes").code == 0
    assert call("--home", home, "restore", "--undo", "--yes").code == 0
    assert call("--home", home, "verify-perms").code == 0

    for volume in (home, new, extracted):
        assert (volume / "lost+found").stat().st_mode & 0o777 == 0
        assert not list(volume.glob("*/lost+found"))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
def test_home_in_a_lower_layer_is_restored_entry_by_entry(tmp_path: Path) -> None:
    """Directories of an image cannot be renamed: files are exchanged, and undone."""
    lower, upper, work, mount = (tmp_path / name for name in ("low", "up", "work", "mount"))
    for directory in (lower, upper, work, mount):
        directory.mkdir()
    home = mount / "home"
    small(lower / "home")
    (lower / "home/data/nested").mkdir(parents=True, exist_ok=True)
    (lower / "home/data/nested/note.txt").write_text("saved")
    assert call("--home", lower / "home", "backup", "--format", "directory").code == 0
    layers = f"lowerdir={lower},upperdir={upper},workdir={work}"
    mounted: list[str | Path] = ["mount", "-t", "overlay", "overlay", "-o", layers, mount]
    if subprocess.run(mounted, capture_output=True, check=False).returncode:
        pytest.skip("this system has no overlay")
    try:
        snapshots = ("--snapshots", tmp_path / "snapshots")
        assert call("--home", home, "backup", *snapshots).code == 0
        (home / "data/nested/note.txt").write_text("changed")
        (home / "data/nested/added.txt").write_text("later")
        before = _texts(home)

        answer = call("--home", home, "restore", "latest", *snapshots, "--replace", "--yes")
        assert answer.code == 0, answer.err
        assert _texts(home / "data/nested") == {"note.txt": "saved"}
        assert call("--home", home, "db", "check").code == 0
        assert call("--home", home, "restore", "--undo", "--yes").code == 0
        assert _texts(home) == before
        mirror = ("--format", "directory", "--all-paths")
        assert call("--home", home, "backup", *mirror).code == 0
        tree = mount / "home.snapshots/tree"
        assert _texts(tree / "data/nested") == {"note.txt": "changed", "added.txt": "later"}
        assert not list(tree.parent.glob(".*"))
    finally:
        subprocess.run(["umount", mount], check=True)


def _texts(directory: Path) -> dict[str, str]:
    """Return the texts below a directory, without what this program keeps there."""
    return {
        str(path.relative_to(directory)): path.read_text()
        for path in directory.rglob("*.txt")
        if ".sagewai-ops-" not in str(path)
    }
