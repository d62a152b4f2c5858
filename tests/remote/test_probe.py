"""Probing and the marker, against every server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from fault_proxy import FaultProxy, Rule, fault_proxy
from remote_servers import (
    READER,
    READER_SECRET,
    WRITER,
    WRITER_SECRET,
    AzureServer,
    Bucket,
    S3Server,
    SshServer,
    s3_environment,
)
from sagewai_ops.errors import (
    DamagedError,
    NotFoundError,
    PermissionDeniedError,
    RemoteError,
    SchemaAheadError,
    TargetBusyError,
)
from sagewai_ops.remote.address import open_store, parse_address
from sagewai_ops.remote.marker import (
    MARKER,
    new_marker,
    read_marker,
    require_marker,
    write_marker,
)
from sagewai_ops.remote.probe import Capabilities, probe
from sagewai_ops.remote.store import Store

GOOD = Capabilities(
    put_if_absent=True,
    exact_ranges=True,
    multipart=True,
    consistent_list=True,
    overwrite=True,
    deleting="deleted",
    locked_seconds=None,
    clock_skew_seconds=0,
)


def connect(bucket: Bucket, *, port: int | None = None, environment: object = None) -> Store:
    """Open a place in a bucket, possibly through a proxy."""
    remote = dict(bucket.remote)
    if port:
        remote["endpoint"] = remote["endpoint"].replace(str(bucket.port), str(port))
    given = environment if isinstance(environment, dict) else bucket.environment
    return open_store(parse_address("test:prefix", {"test": remote}), given)


@pytest.fixture(params=["seaweedfs", "azurite", "sshd"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    """An empty place on each server."""
    server = request.getfixturevalue(request.param)
    if isinstance(server, SshServer):
        url, environment, _directory = server.place()
        found = open_store(parse_address(url), environment)
    else:
        bucket = server.container() if isinstance(server, AzureServer) else server.bucket()
        found = connect(bucket)
    yield found
    found.close()


@pytest.fixture
def proxied(seaweedfs: S3Server) -> Iterator[tuple[Store, FaultProxy]]:
    """A place behind a proxy."""
    with fault_proxy(seaweedfs.port) as proxy:
        found = connect(seaweedfs.bucket(), port=proxy.port)
        yield found, proxy
        found.close()


def kinds(store: Store) -> list[str]:
    """Return the kinds of what a probe finds."""
    return [finding.kind for finding in probe(store)[1]]


def test_a_good_place_has_no_finding_and_is_left_empty(store: Store) -> None:
    """Each server can do everything, and no object of the probe remains."""
    found, findings = probe(store)

    assert findings == ()
    assert abs(found.clock_skew_seconds) < 120
    assert replace(found, clock_skew_seconds=0) == GOOD
    assert store.list() == []


def test_a_gateway_that_ignores_conditions_and_ranges_is_diagnosed(rclone: S3Server) -> None:
    """The gateway of rclone replaces what exists and answers ranges wrongly."""
    found, findings = probe(connect(rclone.bucket()))

    assert not found.put_if_absent
    assert not found.exact_ranges
    assert {finding.kind for finding in findings if finding.is_blocking} >= {
        "put-if-absent",
        "ranges",
    }


def test_a_replayed_object_is_diagnosed(proxied: tuple[Store, FaultProxy]) -> None:
    """A server that answers with an older content is not safe."""
    store, proxy = proxied
    proxy.rules[:] = [Rule("GET", "sagewai-ops-probe", replace_body=bytes(1000), skip=1)]

    assert "ranges" in kinds(store) or "multipart" in kinds(store)


def test_a_flipped_byte_is_diagnosed(proxied: tuple[Store, FaultProxy]) -> None:
    """An object of several parts is compared as a whole."""
    store, proxy = proxied
    proxy.rules[:] = [Rule("GET", "sagewai-ops-probe", flip_byte=7)]

    assert {"put-if-absent", "multipart"} <= set(kinds(store))


def test_a_wrong_clock_is_reported(proxied: tuple[Store, FaultProxy]) -> None:
    """The clock of the server is compared with this machine's."""
    store, proxy = proxied
    hour = datetime.now(timezone.utc) + timedelta(hours=1)
    header = {"Last-Modified": f"{hour:%a, %d %b %Y %H:%M:%S GMT}"}
    proxy.rules[:] = [Rule("HEAD", "probe", headers=header)]

    found, findings = probe(store)

    assert 3500 < found.clock_skew_seconds < 3700
    assert [finding.kind for finding in findings] == ["clock"]
    assert not findings[0].is_blocking


def test_versions_that_remain_are_reported(seaweedfs: S3Server) -> None:
    """In a bucket with versioning, deleting hides."""
    found, findings = probe(connect(seaweedfs.bucket(versioning=True)))

    assert found.deleting == "hidden"
    assert findings == ()


def test_a_lock_is_found_with_its_period(seaweedfs: S3Server) -> None:
    """In a bucket with an object lock, new objects have the period of the bucket."""
    found, _findings = probe(connect(seaweedfs.bucket(lock_days=3)))

    assert found.deleting == "hidden"
    assert found.locked_seconds is not None
    assert abs(found.locked_seconds - 3 * 86400) < 600


def test_rights_that_are_missing_are_reported(seaweedfs: S3Server) -> None:
    """Without the right to write or to list, probing is an error with 14."""
    bucket = seaweedfs.bucket()
    endpoint = bucket.environment["AWS_ENDPOINT_URL"]

    for key, secret in ((READER, READER_SECRET), (WRITER, WRITER_SECRET)):
        with pytest.raises(PermissionDeniedError):
            probe(connect(bucket, environment=s3_environment(endpoint, key, secret)))


def test_a_bucket_that_is_missing_is_not_created(seaweedfs: S3Server) -> None:
    """Probing a mistyped bucket writes nothing: some servers would create it."""
    bucket = seaweedfs.bucket()
    url = f"{bucket.url}-typo"
    typo = connect(Bucket(url, bucket.port, bucket.environment, {**bucket.remote, "url": url}))

    for _each in range(2):
        with pytest.raises(NotFoundError):
            probe(typo)


def test_an_interrupted_probe_leaves_no_object(proxied: tuple[Store, FaultProxy]) -> None:
    """At an error, the objects of the probe are deleted."""
    store, proxy = proxied
    proxy.rules[:] = [Rule("GET", "list-type", status=400, skip=1, times=1)]

    with pytest.raises(RemoteError):
        probe(store)

    assert store.list() == []


def test_a_marker_is_written_once(store: Store) -> None:
    """A place with a marker is not initialised again, and the first marker remains."""
    marker = new_marker(GOOD)
    with pytest.raises(NotFoundError) as caught:
        require_marker(store)
    assert "remote init" in caught.value.hint

    write_marker(store, marker)

    assert require_marker(store) == marker
    with pytest.raises(TargetBusyError, match="already initialised"):
        write_marker(store, new_marker(GOOD))
    assert read_marker(store) == marker


def test_rights_to_write_only_suffice_without_the_marker(seaweedfs: S3Server) -> None:
    """Who cannot read the marker cannot be asked for it."""
    bucket = seaweedfs.bucket()
    endpoint = bucket.environment["AWS_ENDPOINT_URL"]
    writer = connect(bucket, environment=s3_environment(endpoint, WRITER, WRITER_SECRET))

    assert require_marker(writer) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"format": 1}',
        b'{"format": "1"}',
        b"\xff\xfe",
        b"[" * 50_000,
        b"x" * 70_000,
        b'{"format": 1, "place_id": "a", "created_at": "now", "capabilities": {}}',
    ],
)
def test_what_is_no_marker_is_damaged(sshd: SshServer, content: bytes) -> None:
    """Whatever the marker contains, the outcome is an error with 16."""
    url, environment, directory = sshd.place()
    store = open_store(parse_address(url), environment)
    (directory / MARKER).write_bytes(content)

    with pytest.raises(DamagedError):
        require_marker(store)
    store.close()


def test_a_marker_of_a_newer_format_is_an_error_with_18(sshd: SshServer) -> None:
    """A newer version of this program is needed."""
    url, environment, directory = sshd.place()
    store = open_store(parse_address(url), environment)
    (directory / MARKER).write_text('{"format": 2}')

    with pytest.raises(SchemaAheadError):
        read_marker(store)
    store.close()


def test_what_has_changed_is_named() -> None:
    """The clock changes by itself; a lock is compared by whether there is one."""
    later = replace(GOOD, exact_ranges=False, deleting="denied", clock_skew_seconds=9)

    assert GOOD.differences(later) == ("exact_ranges", "deleting")
    assert GOOD.differences(replace(GOOD, locked_seconds=5)) == ("locked_seconds",)
    assert replace(GOOD, locked_seconds=6).differences(replace(GOOD, locked_seconds=5)) == ()
