"""Limits of the bandwidth that a remote place uses.

A limit holds on average: an object store sends a part as fast as the network can, and the next one
is filled at the rate of the limit.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator
from typing import TYPE_CHECKING

from sagewai_ops.errors import UsageError
from sagewai_ops.remote.store import HasRetention

if TYPE_CHECKING:
    from datetime import datetime

    from sagewai_ops.remote.store import Deletion, ObjectFacts, Store, Upload

_PIECE_BYTES = 64 * 1024  # that is sent at once, so that a limit is kept evenly


class Pace:
    """A rate in bytes per second that is kept on average.

    Time in which nothing was sent is not made up for.
    """

    def __init__(self, bytes_per_second: float) -> None:
        self._rate = bytes_per_second
        self._next = 0.0

    def take(self, count: int) -> None:
        """Wait until bytes may be sent, and count them."""
        now = time.monotonic()
        if self._next > now:
            time.sleep(self._next - now)
        self._next = max(self._next, now) + count / self._rate


def limit_store(
    store: Store, *, upload_kib: int | None = None, download_kib: int | None = None
) -> Store:
    """Return a store that sends and receives at most so many KiB per second.

    Args:
        upload_kib: None for no limit.
        download_kib: None for no limit.

    Raises:
        UsageError: A limit is not positive.
    """
    for flag, limit in (("--limit-upload", upload_kib), ("--limit-download", download_kib)):
        if limit is not None and limit <= 0:
            raise UsageError(f"{flag}: not a positive number of KiB per second, {limit}")
    if upload_kib is None and download_kib is None:
        return store
    return LimitedStore(
        store,
        Pace(upload_kib * 1024) if upload_kib else None,
        Pace(download_kib * 1024) if download_kib else None,
    )


class LimitedStore:
    """A store with a pace in each direction; None for no limit."""

    def __init__(self, store: Store, upload: Pace | None, download: Pace | None) -> None:
        self._store = store
        self._upload = upload
        self._download = download

    @property
    def address(self) -> str:
        """The place, for messages."""
        return self._store.address

    def list(self) -> list[ObjectFacts]:
        """List all objects."""
        return self._store.list()

    def facts(self, name: str) -> ObjectFacts | None:
        """Return the facts of an object."""
        return self._store.facts(name)

    def read(self, name: str, offset: int, count: int) -> bytes:
        """Read a part of an object."""
        if self._download:
            self._download.take(count)
        return self._store.read(name, offset, count)

    def stream(self, name: str) -> Generator[bytes, None, None]:
        """Yield the bytes of an object."""
        for piece in self._store.stream(name):
            if self._download:
                self._download.take(len(piece))
            yield piece

    def put(self, name: str, content: bytes, *, replace: bool = False) -> bool:
        """Write a small object."""
        if self._upload:
            self._upload.take(len(content))
        return self._store.put(name, content, replace=replace)

    @contextlib.contextmanager
    def upload(self, name: str, expected_bytes: int) -> Generator[Upload, None, None]:
        """Open an object for writing."""
        with self._store.upload(name, expected_bytes) as upload:
            yield LimitedUpload(upload, self._upload) if self._upload else upload

    def delete(self, name: str) -> Deletion:
        """Delete an object."""
        return self._store.delete(name)

    def retained_until(self, name: str) -> datetime | None:
        """Return until when an object cannot be deleted."""
        return self._store.retained_until(name) if isinstance(self._store, HasRetention) else None

    def close(self) -> None:
        """End the connections."""
        self._store.close()


class LimitedUpload:
    """An upload with a pace."""

    def __init__(self, upload: Upload, pace: Pace) -> None:
        self._upload = upload
        self._pace = pace

    def write(self, data: bytes, /) -> int:
        """Send bytes."""
        for start in range(0, len(data), _PIECE_BYTES):
            piece = data[start : start + _PIECE_BYTES]
            self._pace.take(len(piece))
            self._upload.write(piece)
        return len(data)

    def finish(self) -> None:
        """Complete the object."""
        self._upload.finish()
