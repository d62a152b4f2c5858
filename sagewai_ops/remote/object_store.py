"""Object stores through obstore: S3 and what speaks its protocol, Google Cloud Storage, Azure.

Each call runs in a thread, because obstore does not return to Python before a request has ended,
and a signal must not wait for a server that stopped answering. What is in memory of an upload is
one part that is filled and two that are sent.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Mapping, Sized
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from sagewai_ops.errors import (
    NotFoundError,
    OpsError,
    PermissionDeniedError,
    RemoteError,
    UsageError,
)
from sagewai_ops.process.signals import uninterrupted
from sagewai_ops.process.threads import Thread
from sagewai_ops.records import dataclass
from sagewai_ops.remote.object_client import connect, import_library
from sagewai_ops.remote.object_credentials import find_credentials
from sagewai_ops.remote.object_errors import translate_error
from sagewai_ops.remote.object_retention import retention_of
from sagewai_ops.remote.store import Deletion, ObjectFacts
from sagewai_ops.text import printable

if TYPE_CHECKING:
    from sagewai_ops.remote.address import Address
    from sagewai_ops.remote.store import Upload

MIB = 1 << 20
LEAST_PART_BYTES = 8 * MIB  # S3 demands 5 MiB; fewer requests are faster
MOST_PARTS = 900  # of the expected size; S3 allows 10,000, so an archive may be 11 times as large
_PARTS_IN_TRANSIT = 2
_PIECE_BYTES = 1 * MIB  # of a stream, at least
_MOST_OBJECTS = 1_000_000  # in one directory; a snapshot has two
_LISTED_AT_ONCE = 1000  # as S3 answers
_MOST_DEEPER = 10_000  # objects of deeper prefixes that are listed, and skipped here
_ABORT_SECONDS = 20.0  # for the end of a request when an upload is given up
# Slower than this, a part is not uploaded: 16 KiB/s.
_LEAST_BYTES_PER_SECOND = 16 * 1024
_SIGNED_FOR = timedelta(minutes=5)
_NO_LIMIT = timedelta(days=7)  # of an answer that is read in pieces; each has its own

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a store waits.

    Attributes:
        connect_seconds: For a connection.
        request_seconds: For a whole request without much content, and for the next bytes of an
            answer.
        retries: Of a request that a server or the network failed.
        retry_seconds: After which no request is repeated.
    """

    connect_seconds: float = 10.0
    request_seconds: float = 60.0
    retries: int = 6
    retry_seconds: float = 120.0


class ObjectStore:
    """A bucket or container, or a prefix in it, as a `Store`.

    Args:
        environment: Where the credentials are, or the paths of their files.

    Raises:
        UsageError: obstore is not installed, or a file with credentials is malformed.
        NotFoundError: A file with credentials does not exist.
    """

    def __init__(
        self, address: Address, environment: Mapping[str, str], patience: Patience | None = None
    ) -> None:
        self._library = import_library()
        self._address = address
        self._patience = patience or Patience()
        self._environment = environment
        self._credentials = find_credentials(address, environment)
        # An answer that is read in pieces has no time limit as a whole.
        self._small = self._connect(self._patience.request_seconds)
        self._reading = self._connect(None)
        self._worker = _Worker()

    @property
    def address(self) -> str:
        """The name in the configuration, or else the URL."""
        return self._address.shown

    def list(self) -> list[ObjectFacts]:
        """List the objects below the prefix, without those of deeper prefixes."""
        found: list[ObjectFacts] = []
        deeper = 0
        chunks = iter(self._call("", self._library.list, self._small, chunk_size=_LISTED_AT_ONCE))
        while chunk := self._call("", next, chunks, None):
            own = [_facts(meta) for meta in chunk if "/" not in meta["path"]]
            deeper += len(chunk) - len(own)
            found += own
            self._require_few(found)
            if deeper > _MOST_DEEPER:  # other programs use the prefix: only the server skips them
                page = self._call("", self._library.list_with_delimiter, self._small)
                found = [_facts(meta) for meta in page["objects"]]
                self._require_few(found)
                break
        # Consoles create an object with the name of the prefix.
        return sorted((each for each in found if each.name), key=lambda each: each.name)

    def _require_few(self, found: Sized) -> None:
        if len(found) > _MOST_OBJECTS:
            raise RemoteError(f"{self.address}: more than {_MOST_OBJECTS} objects")

    def facts(self, name: str) -> ObjectFacts | None:
        """Return the facts of an object; None if it does not exist."""
        meta = self._meta(name)
        return None if meta is None else _facts({**meta, "path": name})

    def read(self, name: str, offset: int, count: int) -> bytes:
        """Read exactly `count` bytes of an object, in one request."""
        if not count:
            return b""
        options = {"range": (offset, offset + count)}
        found = self._call(name, self._library.get, self._reading, _path(name), options=options)
        if tuple(found.range) != (offset, offset + count) or found.meta["size"] < offset + count:
            raise RemoteError(
                f"{self.address}: {printable(name)}: answered bytes {found.range[0]} to"
                f" {found.range[1]} of {found.meta['size']}, not {offset} to {offset + count}"
            )
        content = bytearray()
        for piece in self._pieces(name, found):
            content += piece
            if len(content) > count:
                break
        if len(content) != count:
            raise self._wrong_length(name, len(content), count)
        return bytes(content)

    def stream(self, name: str) -> Generator[bytes, None, None]:
        """Yield the bytes of an object in pieces of at most some MiB, in one request."""
        found = self._call(name, self._library.get, self._reading, _path(name))
        expected, done = found.meta["size"], 0
        for piece in self._pieces(name, found):
            done += len(piece)
            if done > expected:
                break
            yield piece
        if done != expected:
            raise self._wrong_length(name, done, expected)

    def put(self, name: str, content: bytes, *, replace: bool = False) -> bool:
        """Write a small object in one request; see `Store.put`."""
        mode = "overwrite" if replace else "create"
        try:
            self._call(
                name,
                self._library.put,
                self._small,
                _path(name),
                content,
                mode=mode,
                use_multipart=False,
            )
        except _ExistsError:
            return self._is_own(name, content)
        return True

    @contextlib.contextmanager
    def upload(self, name: str, expected_bytes: int) -> Generator[Upload, None, None]:
        """Open an object for writing; at an exception in the block, nothing of it remains."""
        part = part_size(expected_bytes)
        seconds = self._patience.request_seconds + part / _LEAST_BYTES_PER_SECOND
        upload = _ObjectUpload(self, name, self._connect(seconds), part)
        try:
            yield upload
        finally:
            if not upload.is_complete:
                upload.abort()

    def delete(self, name: str) -> Deletion:
        """Delete an object; one that does not exist is deleted."""
        meta: dict[str, Any] | None = {}
        with contextlib.suppress(PermissionDeniedError):
            meta = self._meta(name)
        if meta is None:
            return Deletion.DELETED
        with contextlib.suppress(NotFoundError):
            self._call(name, self._library.delete, self._small, _path(name))
        with contextlib.suppress(PermissionDeniedError):
            if self._meta(name) is not None:
                return Deletion.HIDDEN  # an older version has become visible
        return Deletion.HIDDEN if self._has_version(name, meta) else Deletion.DELETED

    def close(self) -> None:
        """End the thread; obstore closes its connections by itself."""
        self._worker.end()

    def retained_until(self, name: str) -> datetime | None:
        """Return until when an object cannot be deleted; None if it can, or that is unknown.

        obstore does not return the headers that state it, so a signed URL is requested.
        """
        try:
            url = self._call(
                name, self._library.sign, self._small, "HEAD", _path(name), _SIGNED_FOR
            )
            return self._worker.run(lambda: retention_of(str(url), self._patience.request_seconds))
        except (OpsError, OSError):
            return None

    def _meta(self, name: str) -> dict[str, Any] | None:
        try:
            meta = self._call(name, self._library.head, self._small, _path(name))
        except NotFoundError:
            return None
        return dict(meta)

    def _has_version(self, name: str, meta: dict[str, Any]) -> bool:
        """Return whether the version of an object that was deleted can still be read."""
        version = meta.get("version")
        if not version or version == "null":  # "null": of S3 without versioning
            return False
        options = {"version": version, "head": True}
        try:
            self._call(name, self._library.get, self._small, _path(name), options=options)
        except NotFoundError:
            return False
        except OpsError:
            return True  # the rights to read versions are not needed, and it had one
        return True

    def _is_own(self, name: str, content: bytes) -> bool:
        """Return whether an object that exists is the one that a repeated request has written."""
        try:
            found = self.facts(name)
            if found is None or found.size_bytes != len(content):
                return False
            return self.read(name, 0, len(content)) == content
        except OpsError:
            return False

    def _pieces(self, name: str, found: Any) -> Generator[bytes, None, None]:
        pieces = iter(self._call(name, found.stream, min_chunk_size=_PIECE_BYTES))
        while (piece := self._call(name, next, pieces, None)) is not None:
            yield bytes(piece)

    def _wrong_length(self, name: str, found: int, expected: int) -> RemoteError:
        return RemoteError(
            f"{self.address}: {printable(name)}: the answer has {found} bytes, not {expected}"
        )

    def _call(
        self, name: str, function: Callable[..., Result], *given: Any, **options: Any
    ) -> Result:
        """Call obstore, and raise its errors as those of this program."""
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        try:
            return self._worker.run(lambda: function(*given, **options))
        except (AlreadyExistsError, PreconditionError):
            raise _ExistsError from None
        except (BaseError, OSError, ValueError) as error:
            place, secrets = self.address, self._credentials.secrets
            raise translate_error(error, place, name, secrets) from None

    def _connect(self, request_seconds: float | None) -> Any:
        """Return obstore's client for the place.

        Args:
            request_seconds: For a whole request; None for one whose answer is read in pieces.
        """
        from obstore.exceptions import BaseError

        client: dict[str, Any] = {
            "connect_timeout": timedelta(seconds=self._patience.connect_seconds),
            "timeout": timedelta(seconds=request_seconds) if request_seconds else _NO_LIMIT,
        }
        if request_seconds is None:
            client["read_timeout"] = timedelta(seconds=self._patience.request_seconds)
        retry = {
            "max_retries": self._patience.retries,
            "retry_timeout": timedelta(seconds=self._patience.retry_seconds),
            "backoff": {
                "init_backoff": timedelta(seconds=0.2),
                "max_backoff": timedelta(seconds=15),
                "base": 2,
            },
        }
        try:
            return connect(self._address, self._credentials, self._environment, client, retry)
        except (BaseError, ValueError) as error:
            problem = translate_error(error, self.address, secrets=self._credentials.secrets)
            raise UsageError(problem.message, hint=problem.hint) from None


def part_size(expected_bytes: int) -> int:
    """Return the size of the parts of an upload, in bytes."""
    return max(LEAST_PART_BYTES, -(-expected_bytes // MOST_PARTS))


class _ExistsError(Exception):
    """An object exists that is not to be replaced."""


class _ObjectUpload:
    """An upload in parts, two of which are sent while a third is filled."""

    def __init__(self, store: ObjectStore, name: str, client: Any, part_bytes: int) -> None:
        self._store = store
        self._name = name
        self._writer: Any = store._call(  # noqa: SLF001 - its own module
            name,
            store._library.open_writer,  # noqa: SLF001
            client,
            _path(name),
            buffer_size=part_bytes,
            max_concurrency=_PARTS_IN_TRANSIT,
        )
        self._done = 0
        self._is_finishing = False
        self.is_complete = False

    def write(self, data: bytes, /) -> int:
        """Send bytes."""
        self._store._call(self._name, self._writer.write, data)  # noqa: SLF001
        self._done += len(data)
        return len(data)

    def finish(self) -> None:
        """Complete the object, and check its size where the rights suffice."""
        self._is_finishing = True
        self._store._call(self._name, self._writer.close)  # noqa: SLF001
        with contextlib.suppress(PermissionDeniedError):  # rights to write only
            found = self._store.facts(self._name)
            if found is None or found.size_bytes != self._done:
                size = "missing" if found is None else f"{found.size_bytes} bytes long"
                raise RemoteError(
                    f"{self._store.address}: {printable(self._name)}: {size} after an upload of"
                    f" {self._done} bytes"
                )
        self.is_complete = True

    def abort(self) -> None:
        """Remove the parts, and the object if it may exist; what cannot be removed stays."""
        store = self._store
        if not store._worker.wait(_ABORT_SECONDS):  # noqa: SLF001
            return  # a request that does not end; a lifecycle rule removes the parts
        with contextlib.suppress(Exception):
            aborted = RuntimeError("aborted")
            self._writer.__exit__(type(aborted), aborted, None)
        if self._is_finishing:
            with contextlib.suppress(OpsError, _ExistsError):
                store._call(self._name, store._library.delete, store._small, _path(self._name))  # noqa: SLF001


class _Worker:
    """A thread that calls obstore, so that a signal ends the waiting."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: Thread | None = None
        self._last_ended = threading.Event()
        self._last_ended.set()

    def run(self, function: Callable[[], Result]) -> Result:
        """Return the result of a function, or raise its error."""
        if threading.current_thread() is not threading.main_thread():
            return function()  # signals are the main thread's
        if self._thread is None:
            self._thread = Thread(target=self._work, daemon=True)
            self._thread.start()
        results: list[Result] = []
        errors: list[BaseException] = []
        ended = threading.Event()

        def call() -> None:
            try:
                results.append(function())
            except BaseException as error:  # noqa: BLE001 - raised by the caller
                errors.append(error)
            ended.set()

        with uninterrupted():
            self._calls.put(call)
            self._last_ended = ended
        ended.wait()
        if errors:
            raise errors[0]
        return results[0]

    def wait(self, seconds: float) -> bool:
        """Wait until a call that was interrupted has ended; return whether it has."""
        return self._last_ended.wait(seconds)

    def end(self) -> None:
        """End the thread."""
        self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()


def _facts(meta: Mapping[str, Any]) -> ObjectFacts:
    return ObjectFacts(str(meta["path"]), int(meta["size"]), meta["last_modified"])


def _path(name: str) -> str:
    """Check a name, which obstore would otherwise encode or resolve.

    Raises:
        RemoteError: It is not one of a directory level.
    """
    if not name or "/" in name or name in (".", ".."):
        raise RemoteError(f"object {printable(name)!r}: not a name")
    return name
