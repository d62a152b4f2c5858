"""Whole backups to SeaweedFS, through a proxy that fails on purpose."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fault_proxy import FaultProxy, Rule, fault_proxy
from program import Answer, call
from remote_servers import Bucket, S3Server
from sagewai_ops.cli.settings import Settings
from sagewai_ops.remote.address import parse_address
from sagewai_ops.remote.object_store import MIB, ObjectStore, Patience
from sagewai_ops.remote.path import Place, RemotePath
from sagewai_ops.snapshots.catalog import list_snapshots
from sagewai_ops.snapshots.verify import verify_snapshot
from small_homes import small

QUICK = Patience(connect_seconds=2, request_seconds=2, retries=2, retry_seconds=5)
ARCHIVE, CARD = r"\.tar\.zst(\?|$)", r"\.tar\.zst\.json"
NOISE_BYTES = 20 * MIB  # three parts


@dataclass(frozen=True, slots=True)
class Night:
    """A place behind a proxy, and a backup of a home to it."""

    proxy: FaultProxy
    bucket: Bucket
    server: S3Server
    store: ObjectStore
    home: Path

    def backup(self) -> Answer:
        """Run a whole backup."""
        words = ("--json", "--to", self.bucket.url, "--allow-clear")
        return call("--home", self.home, "backup", *words)

    def names(self) -> list[str]:
        """Return what is in the place."""
        return [item.name for item in self.store.list()]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose archive has three parts."""
    root: Path = small(tmp_path_factory.mktemp("faults") / "home").root
    (root / "data/noise.bin").write_bytes(random.Random(16).randbytes(NOISE_BYTES))
    return root


@pytest.fixture
def night(seaweedfs: S3Server, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Night]:
    """An empty place."""
    monkeypatch.setattr("sagewai_ops.remote.object_store._LEAST_BYTES_PER_SECOND", 8 * MIB)
    bucket = seaweedfs.bucket()
    with fault_proxy(seaweedfs.port) as proxy:

        def connect(port: int) -> ObjectStore:
            endpoint = f"http://127.0.0.1:{port}"
            address = parse_address("test:", {"test": {**bucket.remote, "endpoint": endpoint}})
            return ObjectStore(address, bucket.environment, QUICK)

        monkeypatch.setattr(Settings, "_open", lambda _self, _address: connect(proxy.port))
        store = connect(seaweedfs.port)
        yield Night(proxy, bucket, seaweedfs, store, home)
        store.close()


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        (Rule("PUT", "partNumber=1&", cut_request_after=MIB), 19),
        (Rule("PUT", "partNumber=2&", status=503), 19),
        (Rule("PUT", "partNumber=3&", cut_request_after=MIB), 19),
        (Rule("PUT", "partNumber=2&", silent=True), 19),
        (Rule("POST", "uploadId=", status=503), 19),
        (Rule("HEAD", ARCHIVE, headers={"Content-Length": "5"}), 19),
        (Rule("GET", ARCHIVE, cut_answer_after=1000), 19),
        (Rule("GET", ARCHIVE, length_change=-1), 16),
        (Rule("GET", ARCHIVE, flip_byte=9 * MIB), 16),
        (Rule("GET", ARCHIVE, replace_body=b"of another time"), 16),
        (Rule("PUT", CARD, status=503), 19),
    ],
    ids=[
        *("first-part-cut", "part-refused", "last-part-cut", "part-unanswered"),
        *("completion-refused", "wrong-size", "read-back-cut", "read-back-short"),
        *("byte-flipped", "replayed", "card-refused"),
    ],
)
def test_backup_through_a_fault_is_whole_or_nothing(night: Night, rule: Rule, code: int) -> None:
    """Nothing of it remains, here or there, and the next run succeeds."""
    before = sorted(night.home.parent.iterdir())
    night.proxy.rules[:] = [rule]

    failed = night.backup()

    assert failed.code == code, failed
    night.proxy.rules.clear()
    assert night.names() == []
    assert night.server.pending_uploads(night.bucket.name) == 0
    assert sorted(night.home.parent.iterdir()) == before
    _assert_whole(night, night.backup())


def test_backup_survives_faults_that_pass(night: Night) -> None:
    """A cut in each part, a refusal of each kind of request, lost answers and a slow server."""
    night.proxy.rules[:] = [
        *(
            Rule("PUT", f"partNumber={number}&", times=1, cut_request_after=MIB)
            for number in (1, 2, 3)
        ),
        Rule("POST", "uploads", times=1, status=503),
        Rule("POST", "uploadId=", times=1, status=500),
        Rule("GET", "list-type=2", times=1, status=503),
        Rule("HEAD", ARCHIVE, times=1, status=503),
        Rule("GET", ARCHIVE, times=1, cut_answer_after=9 * MIB),
        Rule("PUT", CARD, times=1, swallow=True),
        Rule(delay_seconds=0.1),
    ]

    _assert_whole(night, night.backup())

    assert len(night.proxy.requests) > 15


def _assert_whole(night: Night, answer: Answer) -> None:
    assert answer.code == 0, answer
    result = answer.document["result"]
    archive = f"sagewai-{result['id']}.tar.zst"
    assert night.names() == [archive, f"{archive}.json"]
    place = RemotePath(Place(night.bucket.url, lambda: night.store))
    (snapshot,) = list_snapshots(place)
    assert snapshot.card["read_back"] == {"bytes": result["archive_bytes"]}
    assert verify_snapshot(snapshot.path, None, ()).id == result["id"]
