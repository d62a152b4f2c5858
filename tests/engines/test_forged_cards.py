"""Cards (metadata files) of another writer displace none of this home."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from engine_repositories import Repository, forge_snapshot, repository
from program import Answer, call
from sagewai_ops.engines.repository import Connection, RepositoryStore, open_engine
from sagewai_ops.snapshots.catalog import tree_name
from small_homes import rows_of, small

__all__ = ["repository"]
_FORGED = {"complete": False, "sound": False, "sequence": 900, "archive_sha256": "00" * 32}
_only_restic = pytest.mark.parametrize("repository", ["restic"], indirect=True)


@pytest.fixture
def home(tmp_path: Path, repository: Repository) -> Path:
    """A home with two snapshots, of which the first is proved."""
    root: Path = small(tmp_path / "home").root
    for night in range(2):
        (root / "data/night").write_text(str(night))
        create = ("--init-repository",) if not night else ()
        assert call("--home", root, "backup", *repository.words, *create).code == 0
        if not night:
            repository.weaken()
            assert call("--home", root, "drill", "latest", *repository.words).code == 0
    return root


def _seen(home: Path, repository: Repository) -> tuple[list[Any], Any, Any]:
    """Return what is listed, the state of the snapshots, and what a prune would keep."""
    listed = _result(home, repository, "snapshots", "list")["snapshots"]
    status = _result(home, repository, "status")["snapshots"]
    pruned = _result(home, repository, "snapshots", "prune", "--keep-last", "1", "--dry-run")
    return listed, status, [(item["id"], item["reasons"]) for item in pruned["snapshots"]]


def _result(home: Path, repository: Repository, *words: object) -> dict[str, Any]:
    answer: Answer = call("--home", home, *words, "--json", *repository.words)
    assert answer.code == 0, answer
    found: dict[str, Any] = answer.result
    return found


def _plant(repository: Repository, name: str, content: bytes, **labels: object) -> None:
    """Store a small file as another client of the repository does, with any labels."""
    values: Mapping[str, object] = {
        "name": name,
        "bytes": len(content),
        "order": 3 * 10**15,  # in sixty years
        **labels,
    }
    words = [f"{label}={value}" for label, value in values.items()]
    repository.store(name, content, words)


def test_cards_of_another_writer_displace_none(
    home: Path, repository: Repository, tmp_path: Path
) -> None:
    """Neither in a list, the state, retention and a restore, nor with a tree of the same name."""
    before = _seen(home, repository)
    ids = [item["id"] for item in before[0]]
    names = [tree_name(each) for each in ids]
    engine = open_engine(
        Connection(repository.engine, repository.place, str(repository.path), dict(os.environ))
    )
    stored = {item.name: item for item in engine.list().objects}
    genuine = [json.loads(engine.read_file(stored[f"{name}.json"])) for name in names]

    _plant(repository, f"{names[1]}.json", json.dumps(genuine[1] | _FORGED).encode())
    _plant(repository, f"{names[1]}.json", json.dumps(genuine[0]).encode())  # of the other one
    _plant(repository, f"{names[1]}.json", b"{", order=3 * 10**15 + 1)
    _plant(repository, f"{names[0]}.json", b"short", bytes=9000)
    _plant(repository, f"{names[0]}.json.removed", json.dumps(genuine[0] | _FORGED).encode())
    for digest in ("00" * 32, stored[names[0]].digest):
        labels = [f"name={names[0]}", "bytes=9", f"manifest={digest}"]
        repository.store(names[0], b"a tree", labels)

    assert _seen(home, repository) == before
    restored = call(
        *("--home", home, "restore", ids[0], "--to", tmp_path / "new", *repository.words),
        *("--install-key", home / "secrets/master.key"),
    )
    assert restored.code == 0, restored
    assert rows_of(tmp_path / "new/db/sagewai.db") == rows_of(home / "db/sagewai.db")
    (home / "data/night").write_text("later")
    assert call("--home", home, "backup", *repository.words).code == 0
    left = engine.list().objects
    assert [item.name for item in left].count(f"{names[1]}.json") == 1
    assert {stored[f"{name}.json"].engine_id for name in names} <= {item.engine_id for item in left}


def test_a_lost_home_is_restored_by_its_escrowed_key(
    home: Path, repository: Repository, tmp_path: Path
) -> None:
    """Its key names the genuine card, and that the genuine tree."""
    (last,) = _result(home, repository, "snapshots", "list")["snapshots"][1:]
    name, key = tree_name(last["id"]), tmp_path / "key"
    key.write_bytes((home / "secrets/master.key").read_bytes())
    key.chmod(0o600)
    rows = rows_of(home / "db/sagewai.db")
    forged = {"archive": name, "id": last["id"], "archive_sha256": "00" * 32}
    _plant(repository, f"{name}.json", json.dumps(forged).encode())
    repository.store(name, b"a tree", [f"name={name}", "bytes=9", f"manifest={'00' * 32}"])
    home.rename(tmp_path / "gone")

    words = ("--to", tmp_path / "new", "--install-key", key, *repository.words)
    restored = call("--home", tmp_path / "new", "restore", last["id"], *words)

    assert restored.code == 0, restored
    assert rows_of(tmp_path / "new/db/sagewai.db") == rows


def test_only_cards_that_one_of_this_home_replaced_are_forgotten(
    repository: Repository, tmp_path: Path
) -> None:
    """Only another home knows which of its two cards is the genuine one."""
    named = Connection(repository.engine, repository.place, str(repository.path), dict(os.environ))
    store = RepositoryStore(
        named,
        lambda: contextlib.nullcontext(tmp_path),
        lambda _name, content: content.startswith(b"ours"),
    )
    store.prepare(create=True, allow_clear=False)
    for name, content in (
        *(("a.json", b"theirs"), ("a.json", b"forged")),
        *(("b.json", b"ours, 1"), ("b.json", b"ours, 2"), ("b.json", b"forged")),
    ):
        _plant(repository, name, content, order=len(content))
        store.refresh()

    assert store.read("b.json", 0, 7) == b"ours, 2"
    store.prepare(create=False, allow_clear=False)

    names = [item.name for item in open_engine(named).list().objects]
    assert sorted(names) == ["a.json", "a.json", "b.json"]
    assert store.read("b.json", 0, 7) == b"ours, 2"


@_only_restic
def test_snapshots_that_restic_cannot_parse_are_passed_over_with_a_warning(
    home: Path, repository: Repository
) -> None:
    """Everyone with the password can store any bytes as one."""
    before = _seen(home, repository)
    genuine = json.loads(repository.run("cat", "snapshot", repository.stored()[0]))
    label: dict[str, Any] = {
        "tags": ["sagewai-ops", f"name={tree_name(before[0][0]['id'])}.json", "bytes=2"]
    }
    changes: tuple[dict[str, Any], ...] = (
        *({"time": time} for time in ("0000-01-01T00:00:00Z", "99999-01-01T00:00:00Z", 5, None)),
        {"time": "2026-01-01T00:00:00.123456789+23:59"},
        {"paths": ["x" * 4_000_000]},
        {"tags": [*label["tags"], *(f"t{number}" for number in range(100_000))]},
        {"tags": ["sagewai-ops", f"name={'x' * 100_000}", f"bytes={'9' * 100_000}"]},
        {"tree": "none"},
        {"tree": None},
        {"paths": 5},
    )
    for change in changes:
        forge_snapshot(repository, json.dumps({**genuine, **label, **change}).encode())
    forge_snapshot(repository, b"no document")

    assert _seen(home, repository) == before
    answer = call("--home", home, "snapshots", "list", *repository.words)
    assert "passed over, of another writer" in answer.err
    assert call("--home", home, "backup", *repository.words).code == 0
    assert call("--home", home, "snapshots", "verify", "latest", *repository.words).code == 0
