"""Snapshots in real stores: the commands of a night and of a bad day."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import pyrage
import pytest

from program import Answer, run, started
from remote_servers import S3Server
from sagewai_ops.remote.address import open_store, parse_address
from sagewai_ops.remote.marker import new_marker, write_marker
from sagewai_ops.remote.path import Place, RemotePath
from sagewai_ops.remote.probe import probe
from sagewai_ops.snapshots.catalog import list_snapshots
from sagewai_ops.snapshots.verify import verify_snapshot
from small_homes import small

IDENTITY = pyrage.x25519.Identity.generate()
KINDS = ("s3", "az", "sftp")


Opened: TypeAlias = tuple[Mapping[str, object], Mapping[str, str]]


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Callable[[str], Opened]:
    """Return the table of a new place with a marker, and the environment that opens it."""

    def create(kind: str) -> Opened:
        table: Mapping[str, object]
        if kind == "sftp":
            url, environment, _directory = request.getfixturevalue("sshd").place()
            table = {"url": url}
        else:
            server = request.getfixturevalue("seaweedfs" if kind == "s3" else "azurite")
            bucket = server.bucket() if kind == "s3" else server.container()
            table, environment = bucket.remote, bucket.environment
        opened = open_store(parse_address("test:", {"test": table}), environment)
        write_marker(opened, new_marker(probe(opened)[0]))
        opened.close()
        return table, environment

    return create


@pytest.mark.parametrize("kind", KINDS)
def test_a_night_and_a_bad_day(
    tmp_path: Path,
    place: Callable[[str], Opened],
    kind: str,
) -> None:
    """Back up twice, list, verify, prune, copy back, drill, restore elsewhere."""
    table, environment = place(kind)
    configuration = tmp_path / "config.toml"
    lines = [f"{name} = {json.dumps(value)}" for name, value in table.items()]
    configuration.write_text("\n".join(["[remote.test]", *lines]))
    configuration.chmod(0o600)
    identity = tmp_path / "identity"
    identity.write_text(str(IDENTITY))
    identity.chmod(0o600)
    home = small(tmp_path / "home").root
    before = sorted(tmp_path.iterdir())

    def ops(*words: object) -> Answer:
        start = ("--home", home, "--config", configuration, "--json")
        answer = run(*start, *words, environment=environment)
        assert answer.code == 0, answer
        return answer

    first = ops("backup", "--to", "test:", "--recipient", IDENTITY.to_public())
    ops("backup", "--to", "test:", "--recipient", IDENTITY.to_public(), "--keep-last", 5)
    assert sorted(tmp_path.iterdir()) == before
    listed = ops("snapshots", "list", "--snapshots", "test:").document["result"]["snapshots"]
    assert [item["authenticity"] for item in listed] == ["authentic", "authentic"]
    assert listed[0]["id"] == first.document["result"]["id"]
    ops("snapshots", "verify", "latest", "--snapshots", "test:", "--hash")
    ops("snapshots", "verify", "latest", "--snapshots", "test:", "--identity", identity)
    ops("snapshots", "copy", "test:", tmp_path / "copies", "--all")
    assert len(list((tmp_path / "copies").glob("*.age"))) == 2
    ops("drill", "--snapshots", "test:", "--identity", identity)
    ops("snapshots", "prune", "--snapshots", "test:", "--keep-last", 1)
    ops("restore", "latest", "--snapshots", "test:", "--identity", identity, "--to", tmp_path / "n")
    assert (tmp_path / "n/db/sagewai.db").exists()
    (left,) = ops("snapshots", "list", "--snapshots", "test:").document["result"]["snapshots"]
    assert left["proved_restorable_at"]


def test_kills_leave_no_broken_snapshot_and_nothing_here(
    tmp_path: Path, seaweedfs: S3Server
) -> None:
    """At any moment of an upload: the list has whole snapshots only, and the next run succeeds."""
    bucket = seaweedfs.bucket()
    store = open_store(parse_address(bucket.url), bucket.environment)
    write_marker(store, new_marker(probe(store)[0]))
    home = small(tmp_path / "home").root
    (home / "data/noise.bin").write_bytes(os.urandom(30_000_000))
    before = sorted(tmp_path.iterdir())
    words = ("--home", home, "backup", "--to", bucket.url, "--allow-clear")
    environment = {**os.environ, **bucket.environment}
    begun = time.monotonic()
    assert run(*words, environment=bucket.environment).code == 0
    seconds = time.monotonic() - begun
    for turn in range(8):
        with started(*words, env=environment) as process:
            time.sleep(seconds * (turn + 1) / 9)
            process.kill()
            process.wait()

    assert run(*words, environment=bucket.environment).code == 0
    assert sorted(tmp_path.iterdir()) == before
    place = RemotePath(Place(bucket.url, lambda: store))
    found = list_snapshots(place)
    assert len(found) >= 2
    for snapshot in found:
        assert verify_snapshot(snapshot.path, None, ()).id == snapshot.id


def test_place_without_marker_is_refused(tmp_path: Path, seaweedfs: S3Server) -> None:
    """A mistyped bucket is neither created nor used: exit 10."""
    bucket = seaweedfs.bucket()
    home = small(tmp_path / "home").root
    for url in (bucket.url, bucket.url + "x"):
        answer = run(
            *("--home", home, "backup", "--to", url, "--allow-clear"),
            environment=bucket.environment,
        )
        assert answer.code == 10, answer
    assert open_store(parse_address(bucket.url), bucket.environment).list() == []
