"""A digest of pieces, computed while the caller continues."""

import hashlib
from concurrent.futures import Future

from sagewai_ops.process.threads import ThreadPool

_LARGE_BYTES = 256 * 1024  # hashing fewer takes less time than passing them to a thread


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
