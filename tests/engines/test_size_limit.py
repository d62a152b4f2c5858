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
from small_homes import small

__all__ = ["repository"]
_MOST_BYTES = 4 * 1024 * 1024


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
        engine.restore(stored, None, first, _MOST_BYTES)
    engine.restore(stored, ["short"], second, _MOST_BYTES)

    assert sum(path.stat().st_size for path in first.rglob("manifest*")) <= _MOST_BYTES
    assert (second / "tree/short").stat().st_size == _MOST_BYTES


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
