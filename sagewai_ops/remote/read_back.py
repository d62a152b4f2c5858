"""Read an object back and compare it with what was sent, whole or in part.

The store's own checksums are not trusted: bytes are sent, and bytes are compared.
"""

from __future__ import annotations

import hashlib
import random
import re
from typing import TYPE_CHECKING

from sagewai_ops.errors import DamagedError, UsageError
from sagewai_ops.records import dataclass

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sagewai_ops.remote.path import RemotePath

BLOCK_BYTES = 8 * 1024 * 1024
_UNITS = {"": 1, "k": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}  # as restic's
_AMOUNT = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)(%|[kMGT]?)")


@dataclass(frozen=True, slots=True)
class ReadBack:
    """How much of an object is read back; the blocks are chosen at random.

    Attributes:
        share: Of its bytes, 0 to 1.
        size_bytes: At most so many, if it is not None.
    """

    share: float = 1.0
    size_bytes: int | None = None

    @property
    def is_none(self) -> bool:
        """Whether nothing is read."""
        return not self.share or self.size_bytes == 0

    @classmethod
    def parse(cls, text: str) -> ReadBack:
        """Parse `full`, `none`, a percentage such as `10%`, or bytes such as `512M`.

        Raises:
            UsageError: It is another text.
        """
        if text in ("full", "none"):
            return cls(1.0 if text == "full" else 0.0)
        match = _AMOUNT.fullmatch(text)
        if match is None or (match[2] == "%" and float(match[1]) > 100):
            raise UsageError(
                f"--read-back {text}: not full, none, a percentage or a number of bytes",
                hint="sagewai-ops backup --read-back 10%",
            )
        if match[2] == "%":
            return cls(float(match[1]) / 100)
        return cls(size_bytes=int(float(match[1]) * _UNITS[match[2]]))

    def blocks(self, count: int) -> list[int]:
        """Choose blocks of an object that has `count` of them; their numbers, ascending."""
        wanted = count * self.share
        if self.size_bytes is not None:
            wanted = min(wanted, self.size_bytes / BLOCK_BYTES)
        # At least one: `1%` of a small archive is not nothing.
        number = count if self == ReadBack() else min(count, max(1, round(wanted)))
        return sorted(random.SystemRandom().sample(range(count), 0 if self.is_none else number))


class BlockHashes:
    """Count the bytes of an object, and hash each block of them."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self._finished: list[bytes] = []
        self._current = hashlib.sha256()

    def update(self, data: bytes) -> None:
        """Add bytes."""
        view = memoryview(data)
        while view:
            piece = view[: BLOCK_BYTES - self.size_bytes % BLOCK_BYTES]
            self._current.update(piece)
            self.size_bytes += len(piece)
            view = view[len(piece) :]
            if self.size_bytes % BLOCK_BYTES == 0:
                self._finished.append(self._current.digest())
                self._current = hashlib.sha256()

    @property
    def digests(self) -> Sequence[bytes]:
        """The SHA-256 of each block; the last one may be shorter."""
        is_partial = self.size_bytes % BLOCK_BYTES
        return [*self._finished, *([self._current.digest()] if is_partial else [])]


def read_back(
    path: RemotePath,
    sent: BlockHashes,
    amount: ReadBack,
    on_bytes: Callable[[int], None] | None = None,
) -> int:
    """Read an object back, and compare it with what was sent.

    Args:
        on_bytes: Called with the number of bytes read since the last call.

    Returns:
        The number of bytes that were read.

    Raises:
        DamagedError: It differs.
        RemoteError, NotFoundError, PermissionDeniedError: It cannot be read.
    """
    digests = sent.digests
    chosen = amount.blocks(len(digests))
    if len(chosen) == len(digests) and digests:
        return _read_all(path, sent, on_bytes)
    done = 0
    for number in chosen:
        offset = number * BLOCK_BYTES
        count = min(BLOCK_BYTES, sent.size_bytes - offset)
        content = path.store.read(path.member, offset, count)
        if hashlib.sha256(content).digest() != digests[number]:
            raise _difference(path, offset)
        done += count
        if on_bytes:
            on_bytes(count)
    return done


def _read_all(path: RemotePath, sent: BlockHashes, on_bytes: Callable[[int], None] | None) -> int:
    found = BlockHashes()
    for piece in path.store.stream(path.member):
        found.update(piece)
        if on_bytes:
            on_bytes(len(piece))
        if found.size_bytes > sent.size_bytes:
            break
    pairs = enumerate(zip(found.digests, sent.digests, strict=False))
    for number, (stored, expected) in pairs:
        if stored != expected:
            raise _difference(path, number * BLOCK_BYTES)
    if found.size_bytes != sent.size_bytes:
        raise _difference(path, min(found.size_bytes, sent.size_bytes))
    return found.size_bytes


def _difference(path: RemotePath, offset: int) -> DamagedError:
    return DamagedError(
        f"{path}: the store returns other bytes than were sent, from about byte {offset}",
        hint=f"sagewai-ops remote check {path.parent}",
    )
