"""Digests of archives: of pieces, computed while the caller continues, and of what was written."""

import hashlib
from concurrent.futures import Future

from sagewai_ops.archive.manifest import Entry
from sagewai_ops.archive.tar import member_header
from sagewai_ops.process.threads import ThreadPool
from sagewai_ops.records import dataclass

_LARGE_BYTES = 256 * 1024  # hashing fewer takes less time than passing them to a thread


@dataclass(frozen=True, slots=True)
class Written:
    """What the writer of an archive knows of it.

    Attributes:
        archive: SHA-256 of all its bytes, before encryption.
        members: The `MemberDigest` of the members that it wrote.
    """

    archive: bytes
    members: bytes


class MemberDigest:
    """SHA-256 of the tar headers and the hashes of the contents of all members, in order."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add_header(self, entry: Entry) -> bytes:
        """Add the tar header of a member, and return it."""
        header = member_header(entry)
        self._digest.update(header)
        return header

    def add_content(self, entry: Entry) -> None:
        """Add the hash of the content of the member whose header is the last one."""
        self._digest.update(entry.sha256)

    def digest(self) -> bytes:
        """Return the digest."""
        return self._digest.digest()


class ThreadedDigest:
    """Hash pieces in order, large ones in a thread, one at a time.

    Args:
        pool: Of one thread or more.
    """

    def __init__(self, pool: ThreadPool) -> None:
        self._pool = pool
        self._digest = hashlib.sha256()
        self._hashing: Future[None] | None = None

    def update(self, piece: bytes | memoryview) -> None:
        """Add a piece, which must not change until the next call."""
        self._wait()
        if len(piece) < _LARGE_BYTES:
            self._digest.update(piece)
        else:
            self._hashing = self._pool.submit(self._digest.update, piece)

    def digest(self) -> bytes:
        """Return the hash of all pieces."""
        self._wait()
        return self._digest.digest()

    def hexdigest(self) -> str:
        """Return the hash of all pieces as hex digits."""
        return self.digest().hex()

    def _wait(self) -> None:
        if self._hashing:
            self._hashing.result()
            self._hashing = None
