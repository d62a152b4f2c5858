"""What an engine writes is bounded by what is expected, whatever the repository contains."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine_repositories import Repository, repository
from program import call
from sagewai_ops.engines.engine import NewTree
from sagewai_ops.engines.repository import Connection, open_engine
from sagewai_ops.errors import DamagedError
from sagewai_ops.remote.store import ENTRY_BYTES, Bounds
from small_homes import small

__all__ = ["repository"]
_MOST_BYTES = 4 * 1024 * 1024
_BOUNDS = Bounds(_MOST_BYTES, 1 << 40)


def test_longer_file_is_damage_and_not_written(repository: Repository, tmp_path: Path) -> None:
    """One with the permitted size is written."""
    address = repository.place
    engine = open_engine(
        Connection(repository.engine, address, str(repository.path), dict(os.environ))
    )
    engine.initialise()
    source = tmp_path / "source"
    (source / "tree").mkdir(parents=True)
    (source / "tree/short").write_bytes(os.urandom(_MOST_BYTES))
    with (source / "tree/manifest.json").open("wb") as stream:
        stream.truncate(4 * _MOST_BYTES)
    stored = engine.store_tree(source, NewTree("a.tree", 1, "0" * 64), None)
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()

    with pytest.raises(DamagedError, match="more than"):
        engine.restore(stored, None, first, _BOUNDS)
    engine.restore(stored, ["short"], second, _BOUNDS)

    assert sum(path.stat().st_size for path in first.rglob("manifest*")) <= _MOST_BYTES
    assert (second / "tree/short").stat().st_size == _MOST_BYTES


@pytest.mark.parametrize("is_large", [True, False])
def test_more_than_the_manifest_has_is_damage(
    repository: Repository, tmp_path: Path, *, is_large: bool
) -> None:
    """Another writer of the repository can add any number of files; each counts as a block."""
    address = (repository.engine, repository.place, str(repository.path))
    engine = open_engine(Connection(*address, dict(os.environ)))
    engine.initialise()
    repository.weaken()
    source = tmp_path / "source"
    (source / "tree/below").mkdir(parents=True)
    content = os.urandom(_MOST_BYTES // 4) if is_large else b""
    count = 8 if is_large else 300
    for number in range(count):
        (source / f"tree/below/{number}").write_bytes(content)
    stored = engine.store_tree(source, NewTree("a.tree", 1, "0" * 64), None)
    enough = (count + 3) * max(len(content), ENTRY_BYTES)
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()

    with pytest.raises(DamagedError, match="writes more than"):
        engine.restore(stored, None, first, Bounds(_MOST_BYTES, enough // 2))
    engine.restore(stored, None, second, Bounds(_MOST_BYTES, enough))

    assert len([*(second / "tree/below").iterdir()]) == count


@pytest.mark.parametrize("repository", ["restic"], indirect=True)
def test_tree_without_its_directory_is_damage(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Exit code 16, with the name of the snapshot."""
    home = small(tmp_path / "home").root
    first = call("--home", home, "backup", "--json", *repository.words, "--init-repository")
    assert first.code == 0, first
    repository.skip(tmp_path / "bin", monkeypatch, "restore")

    answer = call("--home", home, "snapshots", "verify", "latest", *repository.words)

    assert answer.code == 16, answer
    assert first.result["id"] in answer.err
