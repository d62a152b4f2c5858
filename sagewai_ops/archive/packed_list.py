"""A list in little memory: packed, compressed in blocks, unpacked while it is read.

A million entries of a manifest take 500 MB as objects, and an archive of a megabyte can list as
many. Each iteration unpacks the items again, so code that reads them should do it once.
"""

import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar, overload

Item = TypeVar("Item")

_BLOCK_ITEMS = 2048
_LENGTH = struct.Struct("<I")


class PackedList(Sequence[Item]):
    """A list that can be appended to and iterated; by index it is slow.

    Args:
        pack: Returns the bytes of an item.
        unpack: Returns the item of these bytes.
    """

    def __init__(self, pack: Callable[[Item], bytes], unpack: Callable[[bytes], Item]) -> None:
        self._pack = pack
        self._unpack = unpack
        self._blocks: list[bytes] = []
        self._last: list[bytes] = []
        self._count = 0

    def append(self, item: Item) -> None:
        """Add an item at the end."""
        packed = self._pack(item)
        self._last.append(_LENGTH.pack(len(packed)) + packed)
        self._count += 1
        if len(self._last) == _BLOCK_ITEMS:
            self._blocks.append(zlib.compress(b"".join(self._last), 1))
            self._last.clear()

    def __len__(self) -> int:
        """Return the number of items."""
        return self._count

    def __iter__(self) -> Iterator[Item]:
        """Yield the items in order."""
        for block in self._blocks:
            yield from self._read(zlib.decompress(block))
        yield from self._read(b"".join(self._last))

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...

    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        """Return an item or several, after unpacking all."""
        return tuple(self)[index]

    def _read(self, block: bytes) -> Iterator[Item]:
        position = 0
        while position < len(block):
            (length,) = _LENGTH.unpack_from(block, position)
            position += _LENGTH.size
            yield self._unpack(block[position : position + length])
            position += length
