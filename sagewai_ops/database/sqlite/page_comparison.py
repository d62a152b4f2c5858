"""Find the pages that an earlier copy of a database does not have, while a later one is made.

The blocks of the later copy are compared as they are read, so that it is not read again for that;
see `copy_database`. The earlier copy is read once too, for the comparison and for its digest.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sagewai_ops.database.sqlite.connect import open_regular
from sagewai_ops.database.sqlite.raw_copy import header_page_size
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.process.threaded_digest import ThreadedDigest
from sagewai_ops.process.threads import ThreadPool
from sagewai_ops.progress import Progress

STAGE = "differences"

_BLOCK_BYTES = 1024 * 1024  # a multiple of every page size
_LEAST_PAGE_BYTES = 512  # a smaller size is damage, which the walk of the b-trees reports


@contextmanager
def open_digest() -> Iterator[ThreadedDigest]:
    """Run the thread of a digest for the block."""
    with ThreadPool(1, thread_name_prefix="digest") as pool:
        yield ThreadedDigest(pool)


class PageComparison:
    """An earlier copy that a later one is compared with; use `open_comparison`.

    Attributes:
        changed: Which pages of the later copy differ, by number; those after its end do not.
        digest: SHA-256 of the earlier copy, in hexadecimal digits; empty until `finish`.
    """

    def __init__(self, earlier: int, digest: ThreadedDigest) -> None:
        self.changed = bytearray(1)
        self.digest = ""
        self._earlier = earlier
        self._digest = digest
        self._end = 0  # of the part of the earlier copy that was read
        self._page_size = max(header_page_size(earlier), _LEAST_PAGE_BYTES)

    def compare(self, offset: int, block: bytearray) -> None:
        """Compare the next block of the later copy, of whole pages but at its end."""
        known = os.pread(self._earlier, len(block), offset)
        self._digest.update(known)
        self._end = offset + len(known)
        if known != block:
            self._mark(offset, block, known)

    def replace(self, offset: int, page: memoryview) -> None:
        """Compare a page that was written over one that was compared, or after the last one."""
        known = os.pread(self._earlier, len(page), offset)
        self._mark(offset, bytes(page), known)

    def finish(self) -> None:
        """Read what the earlier copy has more than the later one, and set the digest."""
        while block := os.pread(self._earlier, _BLOCK_BYTES, self._end):
            self._digest.update(block)
            self._end += len(block)
        self.digest = self._digest.hexdigest()

    def _mark(self, offset: int, block: bytes | bytearray, known: bytes) -> None:
        size = self._page_size
        first = offset // size + 1
        missing = first + -(-len(block) // size) - len(self.changed)
        self.changed.extend(bytes(max(missing, 0)))
        for start in range(0, len(block), size):
            is_changed = block[start : start + size] != known[start : start + size]
            self.changed[first + start // size] = is_changed


@contextmanager
def open_comparison(earlier: Path) -> Iterator[PageComparison]:
    """Open an earlier copy, which no process writes to, for the block."""
    with translate_os_errors(earlier):
        descriptor = open_regular(earlier)
    with open(descriptor, "rb", 0), open_digest() as digest:
        yield PageComparison(descriptor, digest)


def compare_files(comparison: PageComparison, later: Path, report: Progress) -> None:
    """Compare a copy that was made without the comparison.

    Args:
        report: Called with `differences`; an exception that it raises ends it.
    """
    with open(open_regular(later, os.O_RDONLY), "rb", 0) as file:
        offset = 0
        while block := file.read(_BLOCK_BYTES):
            comparison.compare(offset, bytearray(block))
            offset += len(block)
            report(STAGE, 0, 0)
    comparison.finish()
