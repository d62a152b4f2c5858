"""A remote place in memory, which counts requests and fails where a test wants it to."""

from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

from sagewai_ops.errors import NotFoundError, OpsError, PermissionDeniedError
from sagewai_ops.remote.path import Place, RemotePath
from sagewai_ops.remote.store import Deletion, ObjectFacts

PIECE_BYTES = 100_000


@dataclass
class MemoryStore:
    """A store.

    Attributes:
        objects: Name -> content and time.
        fails: (operation, name) -> an error to raise, or None.
        hides: Whether a delete only hides, as with versions or an object lock.
        writes_only: Whether reading and deleting are refused.
    """

    objects: dict[str, tuple[bytes, datetime]] = field(default_factory=dict)
    requests: Counter[str] = field(default_factory=Counter)
    read_bytes: int = 0
    fails: Callable[[str, str], OpsError | None] = lambda _operation, _name: None
    hides: bool = False
    writes_only: bool = False
    address: str = "s3://bucket/prefix"
    now: datetime = datetime(2026, 1, 1, tzinfo=timezone.utc)

    def path(self) -> RemotePath:
        """Return the path of the place."""
        return RemotePath(Place(self.address, lambda: self))

    def names(self) -> list[str]:
        """Return the names of all objects."""
        return sorted(self.objects)

    def list(self) -> list[ObjectFacts]:
        """List all objects."""
        self._request("list", "", reads=True)
        return [
            ObjectFacts(name, len(content), moment)
            for name, (content, moment) in sorted(self.objects.items())
        ]

    def facts(self, name: str) -> ObjectFacts | None:
        """Return the facts of an object."""
        self._request("facts", name, reads=True)
        if name not in self.objects:
            return None
        content, moment = self.objects[name]
        return ObjectFacts(name, len(content), moment)

    def read(self, name: str, offset: int, count: int) -> bytes:
        """Read a range."""
        self._request("read", name, reads=True)
        piece = self._content(name)[offset : offset + count]
        assert len(piece) == count
        self.read_bytes += count
        return piece

    def stream(self, name: str) -> Generator[bytes, None, None]:
        """Yield the content."""
        self._request("stream", name, reads=True)
        content = self._content(name)
        for start in range(0, len(content), PIECE_BYTES):
            self.read_bytes += len(content[start : start + PIECE_BYTES])
            yield content[start : start + PIECE_BYTES]

    def put(self, name: str, content: bytes, *, replace: bool = False) -> bool:
        """Write an object."""
        self._request("put", name)
        if name in self.objects and not replace:
            return False
        self._store(name, content)
        return True

    @contextmanager
    def upload(self, name: str, expected_bytes: int) -> Iterator["_Upload"]:
        """Open an object for writing."""
        self._request("upload", name)
        assert expected_bytes >= 0
        yield _Upload(self, name)

    def delete(self, name: str) -> Deletion:
        """Delete an object."""
        self._request("delete", name, reads=True)
        self.objects.pop(name, None)
        return Deletion.HIDDEN if self.hides else Deletion.DELETED

    def retained_until(self, name: str) -> datetime | None:
        """Return the end of an object lock."""
        self._request("retained", name)
        return datetime(2026, 2, 1, tzinfo=timezone.utc) if self.hides else None

    def close(self) -> None:
        """End."""

    def _content(self, name: str) -> bytes:
        if name not in self.objects:
            raise NotFoundError(f"{self.address}/{name}: not found")
        return self.objects[name][0]

    def _store(self, name: str, content: bytes) -> None:
        self.now += timedelta(seconds=1)
        self.objects[name] = (content, self.now)

    def _request(self, operation: str, name: str, *, reads: bool = False) -> None:
        self.requests[operation] += 1
        if reads and self.writes_only:
            raise PermissionDeniedError(f"{self.address}: refused")
        if error := self.fails(operation, name):
            raise error


class _Upload:
    def __init__(self, store: MemoryStore, name: str) -> None:
        self._store, self._name, self._content = store, name, bytearray()

    def write(self, data: bytes) -> int:
        if error := self._store.fails("write", self._name):
            raise error
        self._content += data
        return len(data)

    def finish(self) -> None:
        self._store.requests["finish"] += 1
        if error := self._store.fails("finish", self._name):
            raise error
        self._store._store(self._name, bytes(self._content))
