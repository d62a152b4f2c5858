"""Find the rows that may differ between two copies of a database, page by page.

Rows are stored in the leaf pages of their table's b-tree, and what does not fit there in a chain of
overflow pages. A page that both copies have, at the same place and with the same bytes, has the
same rows if it is a leaf of the same table in both: so only the leaves that differ are decoded, and
of these only the rows whose bytes differ are returned. They may still be equal, as a row that moved
to another page is; a row that is not returned is equal.

The b-trees are walked over their interior pages, which are one in some hundred: SQLite's `dbstat`,
which not every SQLite has, would read every page. Overflow pages have no reference to their row, so
where one differs whose row is not known, all leaves are searched for it.

Format: https://sqlite.org/fileformat2.html, sections 1.3 (header), 1.5 (freelist), 1.6 (b-trees and
overflow), 1.8 (pointer maps). Both files are untrusted: each page has one use, and all numbers
are checked.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import field
from pathlib import Path
from typing import NamedTuple

from sagewai_ops.database.sqlite.connect import open_regular
from sagewai_ops.database.sqlite.page_comparison import (
    STAGE,
    PageComparison,
)
from sagewai_ops.database.sqlite.read_transaction import MAGIC, open_frozen
from sagewai_ops.errors import DamagedError
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.progress import Progress, no_progress
from sagewai_ops.records import dataclass

_HEADER_BYTES = 100
_LOCK_BYTE = 0x40000000  # its page is never used
_INTERIOR_INDEX, _INTERIOR_TABLE, _LEAF_INDEX, _LEAF_TABLE = 2, 5, 10, 13
_REPORT_PAGES = 1024  # between two reports after all pages were read
_LEAST_USABLE_BYTES = 480  # of a page
# With more, the memory for their numbers exceeds 20 MB, and all rows are compared as fast.
MOST_ROWS = 200_000


@dataclass(frozen=True, slots=True)
class PageChanges:
    """The differences between two copies.

    Attributes:
        pages: The number of pages of the later copy.
        changed: Pages of it that the earlier copy does not have with the same bytes.
        rows: By table, the rowids that may differ, in order; None if any row may.
        digest: SHA-256 of the earlier copy, in hexadecimal digits.
    """

    pages: int
    changed: int
    rows: Mapping[str, list[int] | None]
    digest: str


def find_page_changes(
    before: Path,
    after: Path,
    tables: Iterable[str],
    *,
    comparison: PageComparison,
    most_rows: int | None = None,
    progress: Progress | None = None,
) -> PageChanges:
    """Compare two copies that have no sidecars and that no process writes to.

    Args:
        before: The earlier copy.
        after: The later copy, with the same tables.
        tables: Those whose rows are of interest. Of one that is WITHOUT ROWID, any row may differ.
        comparison: Of the two, finished.
        most_rows: Of a table with more rows that may differ, any may; None for `MOST_ROWS`.
        progress: Called with `differences` and pages; an exception that it raises ends it.

    Raises:
        DamagedError: One is not a database, or damaged.
    """
    report = progress or no_progress
    names = list(tables)
    digest = comparison.digest
    if not (before.stat().st_size and after.stat().st_size):  # SQLite has databases without pages
        return PageChanges(0, 0, dict.fromkeys(names), digest)
    with _open_pages(before) as old, _open_pages(after) as new:
        if old.page_size != new.page_size or old.usable != new.usable:
            return PageChanges(new.count, new.count, dict.fromkeys(names), digest)
        changed = comparison.changed[: new.count + 1]
        changed.extend(bytes(max(old.count, new.count) + 1 - len(changed)))
        search = _Search(old, new, changed, MOST_ROWS if most_rows is None else most_rows, report)
        search.add_trees(names)
        search.compare_leaves()
        search.find_overflow()
        rows = {name: search.rows_of(name) for name in names}
        return PageChanges(new.count, sum(changed), rows, digest)


class _Cell(NamedTuple):  # created for every row of every page that differs: a class takes longer
    """A row in a leaf: the bytes that are stored there, and where the others are."""

    content: bytes
    size: int
    local: int
    overflow: int


class _Pages:
    """The pages of a database file; use `_open_pages`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        header = os.pread(descriptor, _HEADER_BYTES, 0)
        size = os.fstat(descriptor).st_size
        if len(header) < _HEADER_BYTES or not header.startswith(MAGIC):
            raise self.damaged(1, "not a database")
        (stored,) = struct.unpack_from(">H", header, 16)
        self.page_size = 65536 if stored == 1 else stored
        if self.page_size < 512 or self.page_size & (self.page_size - 1):
            raise self.damaged(1, f"page size {self.page_size}")
        self.usable = self.page_size - header[20]
        if self.usable < _LEAST_USABLE_BYTES or size % self.page_size:
            raise self.damaged(1, f"{size} bytes in pages of {self.page_size}")
        self.count = size // self.page_size
        (self.freelist,) = struct.unpack_from(">I", header, 32)
        (self.vacuum_root,) = struct.unpack_from(">I", header, 52)
        self._most_local = self.usable - 35
        self._least_local = (self.usable - 12) * 32 // 255 - 23

    def damaged(self, number: int, state: str) -> DamagedError:
        """Return the error about a page."""
        return DamagedError(
            f"database {self.path}: page {number}: {state}", hint="sagewai-ops db check"
        )

    def page(self, number: int) -> bytes:
        """Return a page."""
        if not 1 <= number <= self.count:
            raise self.damaged(number, f"not in the file, which has {self.count}")
        content = os.pread(self._descriptor, self.page_size, (number - 1) * self.page_size)
        if len(content) != self.page_size:
            raise self.damaged(number, "truncated")
        return content

    def number_at(self, number: int) -> int:
        """Return the big-endian number of the first four bytes of a page."""
        if not 1 <= number <= self.count:
            raise self.damaged(number, f"not in the file, which has {self.count}")
        content = os.pread(self._descriptor, 4, (number - 1) * self.page_size)
        return int.from_bytes(content, "big")

    def children(self, number: int) -> list[int] | None:
        """Return the children of an interior page, from left to right; None for a leaf."""
        page = self.page(number)
        start = _HEADER_BYTES if number == 1 else 0
        kind = page[start]
        if kind in (_LEAF_INDEX, _LEAF_TABLE):
            return None
        if kind not in (_INTERIOR_INDEX, _INTERIOR_TABLE):
            raise self.damaged(number, f"kind {kind} in a b-tree")
        offsets = self._offsets(page, number, start, start + 12)
        pointers = [struct.unpack_from(">I", page, offset)[0] for offset in offsets]
        return [*pointers, struct.unpack_from(">I", page, start + 8)[0]]

    def is_table(self, number: int) -> bool:
        """Return whether a root page is that of rows with rowids."""
        return self.page(number)[0] in (_INTERIOR_TABLE, _LEAF_TABLE)

    def cells(self, number: int) -> dict[int, _Cell]:
        """Return the rows of a leaf, by rowid."""
        page = self.page(number)
        cells = {}
        for offset in self._leaf_offsets(page, number):
            size, place = page[offset], offset + 1
            if size >= 0x80:
                size, place = _varint(page, offset)
            rowid, place = _varint(page, place)
            local = size if size <= self._most_local else self._local(size)
            end = place + local + (4 if local < size else 0)
            if end > self.usable or size > self.count * self.page_size:
                raise self.damaged(number, "a row beyond its end")
            overflow = struct.unpack_from(">I", page, end - 4)[0] if local < size else 0
            if rowid >= 1 << 63:
                rowid -= 1 << 64
            cells[rowid] = _Cell(page[offset:end], size, local, overflow)
        return cells

    def has_overflow(self, number: int) -> bool:
        """Return whether a leaf may have a row with overflow pages, in a fraction of the time."""
        page = self.page(number)
        for offset in self._leaf_offsets(page, number):
            # A size of one byte is less than 128, which always fits.
            if page[offset] >= 0x80 and _varint(page, offset)[0] > self._most_local:
                return True
        return False

    def chain(self, cell: _Cell) -> Iterator[int]:
        """Yield the overflow pages of a row."""
        number, missing = cell.overflow, cell.size - cell.local
        while missing > 0:
            following = self.number_at(number)
            yield number
            number, missing = following, missing - (self.usable - 4)

    def free_pages(self) -> Iterator[int]:
        """Yield the pages of the freelist, until its end or one more than the file has."""
        trunk, most = self.freelist, self.count
        while trunk and most:
            page = self.page(trunk)
            yield trunk
            most -= 1
            trunk, count = struct.unpack_from(">II", page)
            if count > self.usable // 4 - 2:
                raise self.damaged(trunk, f"{count} entries in the freelist")
            yield from struct.unpack_from(f">{count}I", page, 8)

    def map_pages(self) -> Iterator[int]:
        """Yield the pages that map other pages to their users, in a database with auto-vacuum."""
        if not self.vacuum_root:
            return
        locked = _LOCK_BYTE // self.page_size + 1
        for number in range(2, self.count + 1, self.usable // 5 + 1):
            yield number + 1 if number == locked else number

    def _local(self, size: int) -> int:
        """Return how many bytes of a row with overflow pages are stored in its leaf."""
        fitting = self._least_local + (size - self._least_local) % (self.usable - 4)
        return fitting if fitting <= self._most_local else self._least_local

    def _leaf_offsets(self, page: bytes, number: int) -> tuple[int, ...]:
        start = _HEADER_BYTES if number == 1 else 0
        if page[start] != _LEAF_TABLE:
            raise self.damaged(number, f"kind {page[start]}, not a leaf of a table")
        return self._offsets(page, number, start, start + 8)

    def _offsets(self, page: bytes, number: int, start: int, first: int) -> tuple[int, ...]:
        """Return where the cells of a page begin."""
        (count,) = struct.unpack_from(">H", page, start + 3)
        if first + 2 * count > self.usable:
            raise self.damaged(number, f"{count} cells")
        offsets = struct.unpack_from(f">{count}H", page, first)
        if offsets and not (first <= min(offsets) and max(offsets) <= self.usable - 4):
            raise self.damaged(number, "a cell outside of it")
        return offsets


@contextmanager
def _open_pages(path: Path) -> Iterator[_Pages]:
    with translate_os_errors(path):
        descriptor = open_regular(path)
    with open(descriptor, "rb", 0):
        yield _Pages(path, descriptor)


def _varint(page: bytes, place: int) -> tuple[int, int]:
    """Return a number of up to nine bytes, and the place after it; beyond the page it is 0."""
    content = page[place : place + 2]
    if len(content) == 2 and content[0] >= 0x80 > content[1]:
        return (content[0] & 0x7F) << 7 | content[1], place + 2
    value = 0
    for count, byte in enumerate(page[place : place + 9], 1):
        if count == 9:
            return value << 8 | byte, place + 9
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, place + count
    return 0, len(page) + 1


@dataclass(slots=True)
class _Search:
    """The search for rows; its parts are called in their order.

    Attributes:
        changed: Which pages differ, by number.
        most_rows: Of a table; beyond, any row may differ.
        report: May end the search with an exception.
        old_owners, new_owners: The table whose leaf each page is: its place in `names`, plus 1.
        uses: Which pages of the later copy have a known use that is not overflow of an unknown row.
    """

    old: _Pages
    new: _Pages
    changed: bytearray
    most_rows: int
    report: Progress
    names: list[str] = field(default_factory=list)
    rows: list[set[int] | None] = field(default_factory=list)
    old_owners: array[int] = field(default_factory=lambda: array("I"))
    new_owners: array[int] = field(default_factory=lambda: array("I"))
    uses: bytearray = field(default_factory=bytearray)

    def add_trees(self, names: list[str]) -> None:
        """Walk the b-trees: of the tables in both copies, of all else in the later one."""
        most = len(self.changed)
        self.names = names
        self.rows = [set() for _ in names]
        self.old_owners, self.new_owners = (array("I", bytes(4 * most)) for _ in range(2))
        self.uses = bytearray(most)
        old_uses = bytearray(most)
        old_roots, new_roots = _roots(self.old.path), _roots(self.new.path)
        for place, name in enumerate(names):
            old_root, new_root = old_roots.get(name), new_roots.pop(name, None)
            roots = [(self.old, old_root), (self.new, new_root)]
            if not all(root and pages.is_table(root) for pages, root in roots):
                self.rows[place] = None
            if old_root:
                self._walk(self.old, old_root, self.old_owners, place + 1, old_uses)
            if new_root:
                self._walk(self.new, new_root, self.new_owners, place + 1, self.uses)
        ignored = array("I", bytes(4 * most))
        for root in (1, *new_roots.values()):
            self._walk(self.new, root, ignored, 1, self.uses)
        for number in (*self.new.map_pages(), *self.new.free_pages()):
            self._use(number)

    def compare_leaves(self) -> None:
        """Decode the leaves that differ, or that are not those of the same table in both copies."""
        for number in self._differing_pages():
            old, new = self.old_owners[number], self.new_owners[number]
            if old == new and not (old and self.changed[number]):
                continue
            before = self.old.cells(number) if old and self.rows[old - 1] is not None else {}
            after = self.new.cells(number) if new and self.rows[new - 1] is not None else {}
            for cell in after.values():
                for page in self.new.chain(cell) if cell.overflow else ():
                    self._use(page)
            if old != new:
                self._add(old, before)
                self._add(new, after)
                continue
            differing = [
                rowid
                for rowid, cell in after.items()
                if rowid not in before
                or before[rowid].content != cell.content
                or (cell.overflow and any(self.changed[page] for page in self.new.chain(cell)))
            ]
            self._add(new, differing)
            self._add(new, before.keys() - after.keys())

    def _differing_pages(self) -> Iterator[int]:
        """Yield the pages that differ, and perhaps others."""
        for first in range(0, len(self.changed), _REPORT_PAGES):
            self._report(first)
            end = min(first + _REPORT_PAGES, len(self.changed))
            if self.old_owners[first:end] != self.new_owners[first:end]:
                yield from range(first, end)
                continue
            number = self.changed.find(1, first, end)
            while number >= 0:
                yield number
                number = self.changed.find(1, number + 1, end)

    def find_overflow(self) -> None:
        """Find the rows of which only overflow pages differ, in leaves that do not."""
        if all(self.uses[page] for page in range(1, self.new.count + 1) if self.changed[page]):
            return
        for number in range(1, self.new.count + 1):
            self._report(number)
            owner = self.new_owners[number]
            if not owner or self.changed[number] or self.rows[owner - 1] is None:
                continue
            if self.old_owners[number] == owner and self.new.has_overflow(number):
                differing = [
                    rowid
                    for rowid, cell in self.new.cells(number).items()
                    if cell.overflow and any(self.changed[page] for page in self.new.chain(cell))
                ]
                self._add(owner, differing)

    def rows_of(self, name: str) -> list[int] | None:
        """Return the rowids that may differ, None for any."""
        rows = self.rows[self.names.index(name)]
        return None if rows is None else sorted(rows)

    def _report(self, number: int) -> None:
        if number % _REPORT_PAGES == 0:
            self.report(STAGE, self.new.count, self.new.count)

    def _add(self, owner: int, rowids: Iterable[int]) -> None:
        rows = self.rows[owner - 1] if owner else None
        if rows is not None:
            rows.update(rowids)
            if len(rows) > self.most_rows:
                self.rows[owner - 1] = None

    def _use(self, number: int) -> None:
        if not 1 <= number <= self.new.count or self.uses[number]:
            raise self.new.damaged(number, "used twice, or not in the file")
        self.uses[number] = 1

    def _walk(
        self, pages: _Pages, root: int, owners: array[int], owner: int, uses: bytearray
    ) -> None:
        """Record the pages of a b-tree, and whose leaves they are.

        All leaves have the same depth, so of the children of a page only the first is read.
        """
        waiting = [(root, pages.children(root))]
        while waiting:
            number, children = waiting.pop()
            if not 1 <= number <= pages.count or uses[number]:
                raise pages.damaged(number, "used twice, or not in the file")
            uses[number] = 1
            if children is None:
                owners[number] = owner
                continue
            if pages.children(children[0]) is not None:
                waiting.extend((child, pages.children(child)) for child in children)
                continue
            for child in children:
                if not 1 <= child <= pages.count or uses[child]:
                    raise pages.damaged(child, "used twice, or not in the file")
                uses[child] = 1
                owners[child] = owner


def _roots(path: Path) -> dict[str, int]:
    """Return the root pages of tables and indexes, by name."""
    with open_frozen(path) as connection:
        found = connection.execute(
            "SELECT name, rootpage FROM sqlite_master WHERE rootpage > 0"
        ).fetchall()
    return dict(found)
