"""Object stores, against SeaweedFS, Azurite and a proxy that fails on purpose."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta, timezone

import pytest

import remote_servers
from fault_proxy import FaultProxy, Rule, fault_proxy
from remote_servers import (  # noqa: F401 - fixtures
    READER,
    READER_SECRET,
    SECRET,
    WRITER,
    WRITER_SECRET,
    AzureServer,
    Bucket,
    S3Server,
    s3_environment,
)
from sagewai_ops.errors import (
    InterruptedRunError,
    NotFoundError,
    PermissionDeniedError,
    RemoteError,
)
from sagewai_ops.process.signals import raise_on_signals
from sagewai_ops.remote import object_store
from sagewai_ops.remote.address import parse_address
from sagewai_ops.remote.object_store import MIB, ObjectStore, Patience
from sagewai_ops.remote.store import Deletion

QUICK = Patience(connect_seconds=2, request_seconds=2, retries=2, retry_seconds=5)
CONTENT = random.Random(16).randbytes(20 * MIB + 17)


def connect(
    bucket: Bucket,
    prefix: str = "hosts/one",
    *,
    environment: Mapping[str, str] | None = None,
    port: int | None = None,
) -> ObjectStore:
    """Open a place in a bucket, possibly through a proxy."""
    remote = dict(bucket.remote)
    if port:
        remote["endpoint"] = remote["endpoint"].replace(str(bucket.port), str(port))
    address = parse_address(f"test:{prefix}", {"test": remote})
    return ObjectStore(address, environment or bucket.environment, QUICK)


@pytest.fixture(params=["seaweedfs", "azurite"])
def store(request: pytest.FixtureRequest) -> Iterator[ObjectStore]:
    """A place in an empty bucket of each server."""
    server = request.getfixturevalue(request.param)
    bucket = server.container() if isinstance(server, AzureServer) else server.bucket()
    found = connect(bucket)
    yield found
    found.close()


@pytest.fixture
def proxied(seaweedfs: S3Server) -> Iterator[tuple[ObjectStore, FaultProxy, Bucket]]:
    """A place behind a proxy."""
    bucket = seaweedfs.bucket()
    with fault_proxy(seaweedfs.port) as proxy:
        found = connect(bucket, port=proxy.port)
        yield found, proxy, bucket
        found.close()


def upload(store: ObjectStore, name: str, content: bytes = CONTENT) -> None:
    """Upload an object in pieces of 1 MiB."""
    with store.upload(name, len(content)) as writer:
        for start in range(0, len(content), MIB):
            writer.write(content[start : start + MIB])
        writer.finish()


def test_an_object_is_written_and_read(store: ObjectStore) -> None:
    """What was put is listed with its size and time, read by range and as a stream, and deleted."""
    assert store.list() == []
    assert store.put("card.json", b"content")
    upload(store, "archive.tar.zst")

    listed = store.list()

    assert [(each.name, each.size_bytes) for each in listed] == [
        ("archive.tar.zst", len(CONTENT)),
        ("card.json", 7),
    ]
    age = datetime.now(timezone.utc) - listed[0].modified_at
    assert timedelta(minutes=-1) < age < timedelta(minutes=5)
    assert store.facts("card.json") == listed[1]
    assert store.read("archive.tar.zst", 8 * MIB - 5, 10) == CONTENT[8 * MIB - 5 : 8 * MIB + 5]
    pieces = list(store.stream("archive.tar.zst"))
    assert b"".join(pieces) == CONTENT
    assert max(map(len, pieces)) < 4 * MIB
    assert store.delete("card.json") is Deletion.DELETED
    assert store.facts("card.json") is None
    assert [each.name for each in store.list()] == ["archive.tar.zst"]


def test_an_existing_object_is_replaced_only_on_request(store: ObjectStore) -> None:
    """A second put is refused and changes nothing; the same content counts as written."""
    assert store.put("marker", b"first")

    assert not store.put("marker", b"later")
    assert store.read("marker", 0, 5) == b"first"
    assert store.put("marker", b"first")  # a request that was repeated after a lost answer
    assert store.put("marker", b"final", replace=True)
    assert store.read("marker", 0, 5) == b"final"


def test_a_missing_object_is_reported(store: ObjectStore) -> None:
    """There are no facts, reading raises NotFoundError, deleting succeeds."""
    assert store.facts("missing") is None
    with pytest.raises(NotFoundError, match="missing: not found"):
        store.read("missing", 0, 1)
    with pytest.raises(NotFoundError):
        list(store.stream("missing"))
    assert store.delete("missing") is Deletion.DELETED


def test_a_range_beyond_the_end_is_an_error(store: ObjectStore) -> None:
    """Fewer bytes than were asked for are never returned."""
    store.put("small", b"12345")

    assert store.read("small", 0, 5) == b"12345"
    assert store.read("small", 2, 0) == b""
    with pytest.raises(RemoteError):
        store.read("small", 3, 5)
    with pytest.raises(RemoteError):
        store.read("small", 9, 1)


def test_two_places_of_a_bucket_do_not_see_each_other(seaweedfs: S3Server) -> None:
    """Neither objects of deeper prefixes nor those of similar ones are listed."""
    bucket = seaweedfs.bucket()
    places = [connect(bucket, prefix) for prefix in ("", "a", "ab", "a/b")]

    for place, name in zip(places, ("none", "one", "two", "three"), strict=True):
        place.put(name, b"x")

    assert [[each.name for each in place.list()] for place in places] == [
        ["none"],
        ["one"],
        ["two"],
        ["three"],
    ]


def test_a_place_with_too_many_objects_is_refused_while_it_is_listed(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not after all of them were received, which takes the memory that the limit is to save."""
    for number in range(7):
        store.put(f"object-{number}", b"")
    real, received = store._library.list, []

    def list_counted(*arguments: object, **options: object) -> Iterator[object]:
        for chunk in real(*arguments, **options):
            received.append(chunk)
            yield chunk

    monkeypatch.setattr(store._library, "list", list_counted)
    monkeypatch.setattr(object_store, "_LISTED_AT_ONCE", 2)
    assert len(store.list()) == 7
    assert len(received) == 4

    received.clear()
    monkeypatch.setattr(object_store, "_MOST_OBJECTS", 3)
    with pytest.raises(RemoteError, match="more than 3 objects"):
        store.list()
    assert len(received) == 2


def test_a_prefix_that_other_programs_use_is_listed_by_the_server(
    seaweedfs: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many objects of deeper prefixes are not received."""
    bucket = seaweedfs.bucket()
    place, other = connect(bucket), connect(bucket, "hosts/one/deeper")
    for number in range(4):
        other.put(f"object-{number}", b"")
    place.put("one", b"1")
    monkeypatch.setattr(object_store, "_LISTED_AT_ONCE", 2)
    calls = []
    real = place._library.list_with_delimiter

    def list_counted(*arguments: object) -> object:
        calls.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(place._library, "list_with_delimiter", list_counted)
    for most, expected in ((10, 0), (2, 1)):
        monkeypatch.setattr(object_store, "_MOST_DEEPER", most)
        assert [found.name for found in place.list()] == ["one"]
        assert len(calls) == expected
    other.close()
    place.close()


def test_a_name_that_leads_elsewhere_is_refused(store: ObjectStore) -> None:
    """A listing that an attacker wrote cannot make a store leave its prefix."""
    for name in ("", ".", "..", "../other", "a/b", "/a"):
        with pytest.raises(RemoteError, match="not a name"):
            store.read(name, 0, 1)
        with pytest.raises(RemoteError, match="not a name"):
            store.delete(name)


@pytest.mark.parametrize("size", [0, MIB, 8 * MIB, 20 * MIB])
def test_an_upload_that_fails_leaves_nothing(
    store: ObjectStore,
    seaweedfs: S3Server,
    size: int,
) -> None:
    """At an exception, and without `finish`, there is neither an object nor a part."""

    def fail() -> None:
        with store.upload("archive", size) as writer:
            writer.write(CONTENT[:size])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with store.upload("archive", size) as writer:
        writer.write(CONTENT[:size])

    assert store.list() == []
    if store._address.scheme == "s3":
        assert seaweedfs.pending_uploads(store._address.bucket) == 0


def test_a_bucket_that_does_not_exist_is_not_created(seaweedfs: S3Server) -> None:
    """A mistyped bucket is an error with 10; listing it does not create it."""
    bucket = seaweedfs.bucket()
    other = Bucket(
        f"{bucket.url}-typo",
        bucket.port,
        bucket.environment,
        {**bucket.remote, "url": f"{bucket.url}-typo"},
    )

    for _each in range(2):
        with pytest.raises(NotFoundError, match="does not exist"):
            connect(other).list()


def test_rights_that_do_not_suffice_are_denied(seaweedfs: S3Server) -> None:
    """A reader cannot write, a writer cannot read, a wrong key can do nothing."""
    bucket = seaweedfs.bucket()
    endpoint = bucket.environment["AWS_ENDPOINT_URL"]
    connect(bucket).put("object", b"x")
    reader = connect(bucket, environment=s3_environment(endpoint, READER, READER_SECRET))
    writer = connect(bucket, environment=s3_environment(endpoint, WRITER, WRITER_SECRET))
    stranger = connect(bucket, environment=s3_environment(endpoint, READER, "wrong-secret"))

    assert reader.read("object", 0, 1) == b"x"
    for refused in (
        lambda: reader.put("object", b"y", replace=True),
        lambda: upload(reader, "archive"),
        lambda: reader.delete("object"),
        lambda: writer.read("object", 0, 1),
        writer.list,
        lambda: writer.facts("object"),
        stranger.list,
        lambda: stranger.put("other", b""),
    ):
        with pytest.raises(PermissionDeniedError) as caught:
            refused()
        assert "secret" not in caught.value.message
        assert "\n" not in caught.value.message
    assert writer.put("other", b"x")
    upload(writer, "archive")


def test_a_deleted_version_that_remains_is_hidden(seaweedfs: S3Server) -> None:
    """With versioning, a delete only hides; without, it deletes."""
    versioned = connect(seaweedfs.bucket(versioning=True))
    versioned.put("object", b"x")

    assert versioned.delete("object") is Deletion.HIDDEN
    assert versioned.list() == []
    assert versioned.facts("object") is None


def test_a_server_that_fails_for_a_moment_is_asked_again(
    proxied: tuple[ObjectStore, FaultProxy, Bucket],
) -> None:
    """Errors and cut connections are repeated a bounded number of times."""
    store, proxy, _bucket = proxied
    proxy.rules[:] = [
        Rule("PUT", "card", times=1, status=500),
        Rule("GET", "card", times=1, status=503),
        Rule("PUT", "partNumber=2", times=1, status=500),
        Rule("PUT", "partNumber=1", times=1, cut_request_after=3 * MIB),
        Rule("GET", "archive", times=1, cut_answer_after=2 * MIB),
    ]

    assert store.put("card", b"content")
    assert store.read("card", 0, 7) == b"content"
    upload(store, "archive")
    assert b"".join(store.stream("archive")) == CONTENT


def test_a_put_whose_answer_is_lost_has_succeeded(
    proxied: tuple[ObjectStore, FaultProxy, Bucket],
) -> None:
    """The repeated request is refused because of the first, whose content is there."""
    store, proxy, _bucket = proxied
    proxy.rules[:] = [Rule("PUT", "card", times=1, swallow=True)]

    assert store.put("card", b"content")
    assert store.read("card", 0, 7) == b"content"


@pytest.mark.parametrize(
    "rule",
    [
        Rule("PUT", "partNumber=2", status=500),
        Rule("PUT", "partNumber=1", cut_request_after=MIB),
        Rule("POST", "uploads", status=500),
        Rule("POST", "uploadId=", status=500),
        Rule("PUT", "partNumber=2", silent=True),
    ],
)
def test_a_network_that_is_lost_ends_the_upload(
    seaweedfs: S3Server,
    proxied: tuple[ObjectStore, FaultProxy, Bucket],
    rule: Rule,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The upload is an error with 19, its parts are aborted, and there is no object."""
    store, proxy, bucket = proxied
    monkeypatch.setattr("sagewai_ops.remote.object_store._LEAST_BYTES_PER_SECOND", 16 * MIB)
    proxy.rules[:] = [rule]

    with pytest.raises(RemoteError) as caught:
        upload(store, "archive")

    assert caught.value.message.startswith("test:hosts/one: ")
    assert store.list() == []
    assert seaweedfs.pending_uploads(bucket.name) == 0


@pytest.mark.parametrize(
    "rule",
    [
        Rule("GET", "archive", cut_answer_after=1000),
        Rule("GET", "archive", length_change=7),
        Rule("GET", "archive", replace_body=CONTENT[:100]),
        Rule("GET", "archive", silent=True),
        Rule("GET", "archive", status=500),
        Rule("GET", "archive", headers={"Content-Range": "bytes 0-99/100"}),
        Rule("GET", "archive", headers={"Content-Range": "bytes 100-1048675/200"}),
    ],
)
def test_a_wrong_answer_is_never_returned(
    proxied: tuple[ObjectStore, FaultProxy, Bucket], rule: Rule
) -> None:
    """A truncated, longer, older or silent answer to a range is an error with 19."""
    store, proxy, _bucket = proxied
    upload(store, "archive")
    proxy.rules[:] = [rule]

    with pytest.raises(RemoteError):
        store.read("archive", 100, MIB)


@pytest.mark.parametrize(
    "rule",
    [
        Rule("GET", "archive", cut_answer_after=MIB),
        Rule("GET", "archive", length_change=7),
        Rule("GET", "archive", status=500),
    ],
)
def test_a_stream_that_ends_early_is_an_error(
    proxied: tuple[ObjectStore, FaultProxy, Bucket], rule: Rule
) -> None:
    """A stream is complete or raises, also if the end comes between two pieces."""
    store, proxy, _bucket = proxied
    upload(store, "archive")
    proxy.rules[:] = [rule]

    with pytest.raises(RemoteError):
        list(store.stream("archive"))


def test_a_size_that_differs_after_an_upload_is_an_error(
    proxied: tuple[ObjectStore, FaultProxy, Bucket],
) -> None:
    """A store that states another size has not stored what was sent."""
    store, proxy, _bucket = proxied
    proxy.rules[:] = [Rule("HEAD", "archive", headers={"Content-Length": "5"})]

    with pytest.raises(RemoteError, match="5 bytes long after an upload of 1048576"):
        upload(store, "archive", CONTENT[:MIB])


def test_a_signal_does_not_wait_for_the_server(
    proxied: tuple[ObjectStore, FaultProxy, Bucket],
) -> None:
    """SIGTERM ends a call at once, though the server does not answer."""
    store, proxy, _bucket = proxied
    store.put("card", b"x")
    proxy.rules[:] = [Rule(silent=True)]
    started = time.monotonic()

    signal.signal(signal.SIGALRM, lambda *_given: os.kill(os.getpid(), signal.SIGTERM))
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    with pytest.raises(InterruptedRunError), raise_on_signals():
        store.list()

    assert time.monotonic() - started < 1.5


def test_a_server_that_cannot_be_reached_is_an_error_with_19(seaweedfs: S3Server) -> None:
    """The message names the place and not the request."""
    bucket = seaweedfs.bucket()
    (port,) = remote_servers._free_ports(1)

    with pytest.raises(RemoteError, match="error sending request") as caught:
        connect(bucket, port=port).list()

    assert caught.value.exit_code == 19
    assert caught.value.message.startswith("test:hosts/one: ")
    assert "in 0" not in caught.value.message


def test_a_part_grows_with_the_expected_size() -> None:
    """An archive of any size fits into the 10,000 parts that S3 allows."""
    from sagewai_ops.remote.object_store import part_size

    assert part_size(0) == 8 * MIB
    assert part_size(7 * 1024 * MIB) == 8 * MIB
    assert part_size(900 * 1024 * MIB) == 1024 * MIB


MEMORY = """
import resource, sys
from sagewai_ops.remote.address import parse_address
from sagewai_ops.remote.object_store import ObjectStore, MIB
import os
store = ObjectStore(parse_address("t:", {"t": {"url": sys.argv[1]}}), dict(os.environ))
store.list()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with store.upload("archive", 100 * MIB) as upload:
    for number in range(100):
        upload.write(bytes([number]) * MIB)
    upload.finish()
for piece in store.stream("archive"):
    pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_memory_is_bounded_by_parts_in_transit(seaweedfs: S3Server) -> None:
    """An upload of 100 MiB and its stream need at most 60 MiB."""
    bucket = seaweedfs.bucket()

    done = subprocess.run(
        [sys.executable, "-c", MEMORY, bucket.url],
        env={**os.environ, **bucket.environment},
        capture_output=True,
        text=True,
        check=True,
    )

    assert int(done.stdout) < 60
