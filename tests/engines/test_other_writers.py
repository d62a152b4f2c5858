"""Other writers of a repository, wrong clocks, and lists that are not whole."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

import sagewai_ops.engines.borg as borg_module
import sagewai_ops.engines.restic as restic_module
from engine_repositories import Repository, repository
from sagewai_ops.backup import repository as backup_repository
from sagewai_ops.backup.repository import require_stored, sweep_repository
from sagewai_ops.engines.engine import home_label
from sagewai_ops.engines.repository import Connection, RepositoryStore, open_engine
from sagewai_ops.errors import DamagedError, OpsError, RemoteError
from sagewai_ops.remote.path import Place, RemotePath
from sagewai_ops.remote.store import Bounds
from sagewai_ops.snapshots.catalog import Snapshot, list_remote, new_id, tree_name
from sagewai_ops.snapshots.remote_trash import list_trash, move_to_trash, purge, undelete

__all__ = ["repository"]
_ID = new_id(datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc))
_TREE = tree_name(_ID)
_MOMENT_NS = 1_700_000_000_000_000_000
_only_restic = pytest.mark.parametrize("repository", ["restic"], indirect=True)


class _Scratch:
    """A private directory, as a store wants it."""

    def __init__(self, parent: Path) -> None:
        self.parent = parent

    def __call__(self) -> AbstractContextManager[Path]:
        return _PathOf(dir=self.parent)


class _PathOf(TemporaryDirectory[str]):
    def __enter__(self) -> Path:  # type: ignore[override]
        return Path(super().__enter__())


@pytest.fixture
def open_store(repository: Repository, tmp_path: Path) -> Callable[[], RepositoryStore]:
    """Open the repository, each time as another run does."""
    made = _store(repository, tmp_path)
    made.prepare(create=True, allow_clear=False)
    return lambda: _store(repository, tmp_path)


def _store(repository: Repository, tmp_path: Path) -> RepositoryStore:
    named = (repository.engine, repository.place, str(repository.path))
    return RepositoryStore(Connection(*named, dict(os.environ)), _Scratch(tmp_path))


def _place(store: RepositoryStore) -> RemotePath:
    return RemotePath(Place(store.address, lambda: store, has_trees=True))


def _write(directory: Path, content: str) -> Path:
    """Write the file of a tree, in place and with the same time."""
    (directory / "tree").mkdir(parents=True, exist_ok=True)
    path = directory / "tree/f"
    path.write_text(content)
    os.utime(path, ns=(_MOMENT_NS, _MOMENT_NS))
    (directory / "tree/newer").touch()  # borg reads the newest file of a tree in any case
    return directory


def _read(store: RepositoryStore, target: Path, name: str = _TREE) -> str:
    target.mkdir()
    store.fetch(name, None, target, Bounds(1 << 30, 1 << 30))
    return (target / "tree/f").read_text()


def _card(digest: str) -> bytes:
    return json.dumps({"archive_sha256": digest}).encode()


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("could not load snapshot 21d912e8: read: context deadline exceeded", OpsError),
        ("could not load snapshot 21d912e8: dial tcp: connection refused", RemoteError),
        ("something of a later version", OpsError),
        ("Load(<snapshot/21d912e84c>, 0, 0) returned error, retrying after 1s: timed out", None),
        ("Load(<snapshot/21d912e84c>, 0, 0) operation successful after 1 retries", None),
        ("subprocess ssh: Warning: Permanently added 'host' to the list of known hosts.", None),
    ],
)
def test_list_of_restic_that_may_not_be_whole_is_an_error(
    line: str, kind: type[OpsError] | None, tmp_path: Path
) -> None:
    """With exit 0: the sweep would remove trees whose card is not listed."""
    program = tmp_path / "restic"
    program.write_text(f'#!/bin/sh\necho "{line}" >&2\necho "[]"\n')
    program.chmod(0o755)
    engine = open_engine(
        Connection("restic", "restic:/none", "/none", {"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    )
    if kind is None:
        assert engine.list().objects == []
        return
    with pytest.raises(OpsError) as raised:
        engine.list()
    assert type(raised.value) is kind


@pytest.mark.parametrize(
    "time",
    ["0000-01-01T00:00:00Z", "99999-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "yesterday", ""],
)
def test_snapshot_with_a_time_that_is_none_is_no_object(time: str, tmp_path: Path) -> None:
    """Another writer of the repository stops no list; one without a time is of an unknown form."""
    genuine = {
        "id": "a" * 64,
        "tags": ["sagewai-ops", "name=x.json", "bytes=3"],
        "time": "2026-01-02T03:04:05.678901234+01:00",
    }
    program, listed = tmp_path / "restic", tmp_path / "listed"
    program.write_text(f'#!/bin/sh\ncat "{listed}"\n')
    program.chmod(0o755)
    engine = open_engine(
        Connection("restic", "restic:/none", "/none", {"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    )
    forged = genuine | {"id": "b" * 64, "time": time}

    listed.write_text(json.dumps([forged, genuine]))
    assert [item.engine_id for item in engine.list().objects] == ["a" * 64]
    for unknown in ({"time": None}, {"time": 5}, {"id": 5}):
        listed.write_text(json.dumps([genuine, genuine | unknown]))
        with pytest.raises(OpsError, match="unknown form"):
            engine.list()


def test_tree_of_another_writer_replaces_no_snapshot(
    repository: Repository, open_store: Callable[[], RepositoryStore], tmp_path: Path
) -> None:
    """The tree of the metadata file counts, and none is forgotten on the way."""
    own, other = open_store(), open_store()
    own.store_tree(_TREE, _write(tmp_path / "a", "genuine"), 7, "aa", home_id="home")
    own.put(f"{_TREE}.json", _card("aa"))
    other.store_tree(_TREE, _write(tmp_path / "b", "planted"), 7, "bb", home_id="home")

    later = open_store()
    later.prepare(create=False, allow_clear=False)

    assert _read(later, tmp_path / "found") == "genuine"
    assert len(repository.stored()) == 3


def test_a_file_that_only_has_inode_size_and_time_of_an_earlier_one_is_read(
    repository: Repository, open_store: Callable[[], RepositoryStore], tmp_path: Path
) -> None:
    """As converted trees have, after each other; a tree of hard links names its predecessor."""
    names = [tree_name(f"{_ID[:-1]}{digit}") for digit in "012"]
    store = open_store()
    store.store_tree(names[0], _write(tmp_path / "a", "first row"), 9, "00")
    store.store_tree(names[1], _write(tmp_path / "a", "other row"), 9, "11", previous="unknown")

    assert _read(store, tmp_path / "one", names[1]) == "other row"
    assert _read(store, tmp_path / "zero", names[0]) == "first row"
    store = open_store()
    store.store_tree(names[2], tmp_path / "a", 9, "22", previous="11")
    if repository.engine == "restic":
        listed = json.loads(repository.run("snapshots", "--json"))
        by_tag = {tag: item for item in listed for tag in item["tags"]}
        parents = [by_tag[f"name={name}"].get("parent") for name in names]
        assert parents == [None, None, by_tag["manifest=11"]["id"]]


def test_only_trees_of_the_own_home_are_swept(
    open_store: Callable[[], RepositoryStore],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Another home may be storing its own, with another clock."""
    names = [tree_name(f"{_ID[:-1]}{digit}") for digit in "012"]
    store = open_store()
    for name, home in zip(names, ("mine", "other", ""), strict=True):
        store.store_tree(name, _write(tmp_path / "a", name), 30, "00", home_id=home)
    monkeypatch.setattr(backup_repository, "_KILLED_AFTER", timedelta(seconds=-9))

    assert sweep_repository(_place(open_store()), ["mine", "former"]) == names[:1]
    assert [item.name for item in open_store().list()] == names[1:]


@pytest.mark.parametrize("repository", ["borg"], indirect=True)
def test_checkpoints_of_the_own_home_are_swept(
    repository: Repository, open_store: Callable[[], RepositoryStore], tmp_path: Path
) -> None:
    """Those of yesterday; a run that continues, another home and another program keep theirs."""
    store = open_store()
    store.store_tree(_TREE, _write(tmp_path / "a", "new"), 3, "00", home_id="mine")
    old, new = "20260102030405000000", f"{datetime.now(timezone.utc):%Y%m%d%H%M%S%f}"
    archives = [
        (f"{_TREE}~{old}.checkpoint", "mine", "sagewai-ops"),
        (f"{_TREE}~{old}.checkpoint.1", "mine", "sagewai-ops"),
        (f"{_TREE}~{new}.checkpoint", "mine", "sagewai-ops"),
        (f"{_TREE}~{old}.checkpoint.2", "other", "sagewai-ops"),
        ("photos.checkpoint", "mine", "photos"),
    ]
    for name, home, mark in archives:
        comment = f"{mark} name={_TREE} bytes=3 manifest=00 home={home_label(home)}"
        repository.run("create", "--comment", comment, f"::{name}", tmp_path / "a")

    listed = [item.name for item in open_store().list()]
    sweep_repository(_place(open_store()), ["mine"])

    found = json.loads(repository.run("list", "--json", "--consider-checkpoints"))["archives"]
    assert listed == [_TREE]
    assert [item["name"] for item in found][1:] == [name for name, *_ in archives[2:]]


@_only_restic
def test_an_object_of_the_future_sweeps_nothing(
    repository: Repository, open_store: Callable[[], RepositoryStore], tmp_path: Path
) -> None:
    """The clock of this computer counts too."""
    open_store().store_tree(_TREE, _write(tmp_path / "a", "new"), 3, "00", home_id="mine")
    tags = ("--tag", "sagewai-ops,name=z,bytes=3")
    repository.run("backup", "--time", "2099-01-01 00:00:00", *tags, tmp_path / "a/tree/f")

    assert sweep_repository(_place(open_store()), ["mine"]) == []


def test_a_snapshot_whose_tree_is_gone_is_no_success(
    repository: Repository, open_store: Callable[[], RepositoryStore], tmp_path: Path
) -> None:
    """The list is read again once the card is stored."""
    store = open_store()
    store.store_tree(_TREE, _write(tmp_path / "a", "new"), 3, "00")
    store.put(f"{_TREE}.json", _card("00"))
    require_stored(_place(store) / _TREE)
    if repository.engine == "restic":
        repository.run("forget", "--tag", "manifest=00", "latest")
    else:
        repository.run("delete", "--glob-archives", f"{_TREE}~*")

    with pytest.raises(DamagedError, match="removed from the repository"):
        require_stored(_place(store) / _TREE)


def test_a_fast_clock_elsewhere_hides_no_later_result(
    open_store: Callable[[], RepositoryStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A computer two hours ahead stored the one before."""

    class Fast(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]  # noqa: ARG003
            return datetime.now(timezone.utc) + timedelta(hours=2)

    with monkeypatch.context() as patch:
        patch.setattr(restic_module, "datetime", Fast)
        patch.setattr(borg_module, "datetime", Fast)
        open_store().put("result.json", b"fast", replace=True)
    open_store().put("result.json", b"later", replace=True)

    assert open_store().read("result.json", 0, 5) == b"later"


def test_archives_of_borg_have_the_time_of_their_name_in_utc() -> None:
    """Not of the local zone; no name is like an option."""
    item = {
        "name": "r.json~20261025003000000000",
        "comment": "sagewai-ops name=r.json bytes=1",
        "time": "2026-10-25T02:30:00.000000",
    }
    found = borg_module._parse(item)
    assert found
    assert found.stored_at == datetime(2026, 10, 25, 0, 30, tzinfo=timezone.utc)
    for name in ("-x", "--help", ""):
        forged = {
            "name": f"{name}~20261025003000000000",
            "comment": f"sagewai-ops name={name} bytes=1",
        }
        assert borg_module._parse(item | forged) is None
    assert borg_module._parse(item | {"name": "r.json~20269999999999999999"}) is None


def test_what_another_run_undeleted_is_not_purged(
    open_store: Callable[[], RepositoryStore], tmp_path: Path
) -> None:
    """Nor does a clean-up remove what another run stored under the same name."""
    own = open_store()
    own.store_tree(_TREE, _write(tmp_path / "a", "new"), 3, "00")
    own.put(f"{_TREE}.json", _card("00"))
    move_to_trash(list_remote(_place(own)))
    purging = open_store()
    trash: list[Snapshot] = list_trash(_place(purging))
    undelete(list_trash(_place(open_store())))

    purge(_place(purging), trash)

    assert len(trash) == 1
    assert [item.name for item in open_store().list()] == [_TREE, f"{_TREE}.json"]
    failed = open_store()
    failed.store_tree(_TREE, _write(tmp_path / "b", "bad"), 3, "11")
    failed.discard(_TREE)
    assert _read(open_store(), tmp_path / "found") == "new"
