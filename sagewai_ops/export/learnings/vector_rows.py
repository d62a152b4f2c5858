"""The rows of a table of vectors: those to copy, those refused, and their comparison."""

from __future__ import annotations

import hashlib
import sqlite3
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sagewai_ops.database.sqlite.vectors import VectorRow, VectorTable, read_vectors
from sagewai_ops.errors import DifferenceError
from sagewai_ops.export.mapping.findings import Tally
from sagewai_ops.records import dataclass

if TYPE_CHECKING:
    import asyncpg

COMPARED_AT_ONCE = 200

# Also in the schemas of the search_path after the pinned one; views too.
_FIND = """
SELECT pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname)
FROM pg_catalog.unnest(pg_catalog.current_setting('sagewai_ops.schemas')::name[])
  WITH ORDINALITY AS path(name, place)
JOIN pg_catalog.pg_namespace n ON n.nspname = path.name
JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid
WHERE c.relname = $1 ORDER BY path.place LIMIT 1
"""


@dataclass(slots=True)
class VectorCopy:
    """The result for one table of vectors.

    Attributes:
        to: The table in the target, "" if only the home has it.
        rows: In the home.
        sent: In the target.
        neighbours: Always 0; earlier versions compared nearest neighbours too.
        seconds: In total; the other times are parts of it.
    """

    table: str
    dimensions: int
    rows: int
    to: str = ""
    sent: int = 0
    neighbours: int = 0
    seconds: float = 0.0
    copy_seconds: float = 0.0
    compare_seconds: float = 0.0
    index_seconds: float = 0.0


class Rows:
    """The rows of one table that can be copied; the others are counted once.

    Args:
        tally: Counts the rows omitted.
        has_extension: sqlite-vec is loaded into the source's connection.
    """

    def __init__(
        self, source: sqlite3.Connection, table: VectorTable, tally: Tally, *, has_extension: bool
    ) -> None:
        self.source = source
        self.table = table
        self.has_extension = has_extension
        self._tally = tally
        self._refused: set[str | int] = set()

    def refuse(self, key: str | int, kind: str, column: str, detail: str) -> None:
        """Omit a row."""
        if key not in self._refused:
            self._tally.add(self.table.name, column, kind, detail, str(key))
            self._refused.add(key)

    def refuse_texts(self, row: VectorRow, columns: set[str] | None = None) -> bool:
        """Omit a row whose texts the target cannot store; return whether it was omitted.

        Args:
            columns: The columns to check; None for all, and the key.
        """
        for name, text in self._texts(row):
            if columns is not None and name not in columns:
                continue
            if "\0" in text:
                self.refuse(row.key, "nul", name, "holds a NUL character")
                return True
            if not text.isascii() and _is_broken(text):
                self.refuse(row.key, "invalid-utf8", name, "is not UTF-8")
                return True
        return False

    def every_row(self) -> Iterator[VectorRow]:
        """Yield all rows of the table."""
        return read_vectors(self.source, self.table, extension=self.has_extension)

    def copied(self) -> Iterator[VectorRow]:
        """Yield the rows that were not omitted, in the same order every time."""
        return (row for row in self.every_row() if row.key not in self._refused)

    def _texts(self, row: VectorRow) -> Iterator[tuple[str, str]]:
        if isinstance(row.key, str):
            yield self.table.key, row.key
        for column, value in zip(self.table.columns, row.values, strict=True):
            if isinstance(value, str):
                yield column.name, value


async def find_table(server: asyncpg.Connection[asyncpg.Record], name: str) -> str | None:
    """Return a table of the session's path, qualified and quoted; None without one."""
    found: str | None = await server.fetchval(_FIND, name)
    return found


async def compare(
    server: asyncpg.Connection[asyncpg.Record],
    query: str,
    arguments: list[object],
    expected: Iterator[tuple[object, ...]],
    result: VectorCopy,
) -> None:
    """Compare rows with the result of a query, in order.

    Raises:
        DifferenceError: They differ.
    """
    met = 0
    async for record in server.cursor(query, *arguments, prefetch=COMPARED_AT_ONCE):
        if tuple(record) != next(expected, None):
            raise DifferenceError(f"learnings {result.table}: row {met} of the target differs")
        met += 1
    if met != result.sent or next(expected, None) is not None:
        raise DifferenceError(f"learnings {result.table}: {result.sent} rows sent, {met} stored")


async def compare_any_order(
    server: asyncpg.Connection[asyncpg.Record],
    query: str,
    expected: Iterator[tuple[object, ...]],
    name: str,
) -> None:
    """Compare rows with the result of a query, in any order.

    Both are kept as digests: the table may have been rewritten since, and a Python that loads
    sqlite-vec reads the home in another order than one that does not.

    Args:
        name: The table's, in the target.

    Raises:
        DifferenceError: They differ, or the table is not there.
    """
    if not await find_table(server, name):
        raise DifferenceError(f"table {name}: is not there")
    balance = Counter(map(_digest, expected))
    async for record in server.cursor(query, prefetch=COMPARED_AT_ONCE):
        balance[_digest(tuple(record))] -= 1
    missing = sum(count for count in balance.values() if count > 0)
    extra = -sum(count for count in balance.values() if count < 0)
    if missing or extra:
        raise DifferenceError(
            f"learnings in {name}: {missing} rows of the home are not there,"
            f" {extra} are there that the home does not have"
        )


def _digest(row: tuple[object, ...]) -> bytes:
    return hashlib.blake2b(repr(row).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _is_broken(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
