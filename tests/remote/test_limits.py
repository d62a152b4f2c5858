"""Limits of bandwidth."""

from __future__ import annotations

import time

import pytest

from remote_servers import SshServer
from sagewai_ops.errors import UsageError
from sagewai_ops.remote.address import open_store, parse_address
from sagewai_ops.remote.limits import limit_store

KIB = 1024


def test_a_limit_is_kept_in_its_direction(sshd: SshServer) -> None:
    """400 KiB at 400 KiB/s take a second; the other direction is not limited."""
    url, environment, _directory = sshd.place()
    store = open_store(parse_address(url), environment)
    content = bytes(400 * KIB)
    store.list()

    def seconds(upload: int | None, download: int | None) -> tuple[float, float, float]:
        limited = limit_store(store, upload_kib=upload, download_kib=download)
        times = [time.monotonic()]
        with limited.upload("archive", len(content)) as writer:
            writer.write(content)
            writer.finish()
        times.append(time.monotonic())
        assert b"".join(limited.stream("archive")) == content
        times.append(time.monotonic())
        for offset in range(0, len(content), 40 * KIB):
            limited.read("archive", offset, 40 * KIB)
        times.append(time.monotonic())
        return times[1] - times[0], times[2] - times[1], times[3] - times[2]

    slow_up = seconds(400, None)
    slow_down = seconds(None, 400)
    store.close()

    # The last piece is not waited for.
    assert slow_up[0] > 0.7
    assert slow_down[2] > 0.7
    assert slow_up[0] > slow_down[0]
    assert slow_down[2] > slow_up[2]


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_is_positive(sshd: SshServer, limit: int) -> None:
    """Zero is an error: it would never end."""
    url, environment, _directory = sshd.place()
    store = open_store(parse_address(url), environment)

    with pytest.raises(UsageError, match="--limit-upload"):
        limit_store(store, upload_kib=limit)
    with pytest.raises(UsageError, match="--limit-download"):
        limit_store(store, download_kib=limit)
    assert limit_store(store) is store
