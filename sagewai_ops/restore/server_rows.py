"""Read the rows of a server's tables, from a snapshot or its COPY, as blocks of whole lines."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

from sagewai_ops.archive.reader import ArchiveReader
from sagewai_ops.errors import DamagedError, OpsError
from sagewai_ops.export.compare.normalise import unescaped
from sagewai_ops.export.convert.sqlite_value import NULL
from sagewai_ops.restore.row_writer import MOST_ROW_BYTES
from sagewai_ops.snapshots.server_database import StoredTable
from sagewai_ops.text import printable

BLOCK_BYTES = 256 * 1024  # a target; several hundred rows of most tables

# Returns the error about a table, from the reason.
Damage: TypeAlias = Callable[[StoredTable, str], OpsError]


class Block:
    """Some rows of a table.

    Attributes:
        first: Number of the table's rows before these.
        count: Rows.
        is_too_large: It is one row of more than `MOST_ROW_BYTES`, without its content.
    """

    __slots__ = ("_content", "_damage", "_fields", "count", "first", "is_too_large", "table")

    def __init__(
        self, table: StoredTable, first: int, content: bytes | None, damage: Damage
    ) -> None:
        self.table = table
        self._damage = damage
        self.first = first
        self.is_too_large = content is None
        self.count = content.count(b"\n") if content is not None else 1
        self._content = content or b""
        self._fields: list[bytes] = []

    @property
    def content(self) -> bytes:
        """The lines as COPY sends them; none of a row that is too large."""
        return self._content

    def column(self, place: int) -> Sequence[bytes]:
        """Return the fields of a column.

        Raises:
            OpsError: The rows have another number of columns.
        """
        width = len(self.table.columns)
        if not self._fields:
            self._fields = self._content[:-1].replace(b"\n", b"\t").split(b"\t")
            if len(self._fields) != self.count * width:
                raise self._damage(self.table, "a row with another number of columns")
        return self._fields[place::width]

    def ends(self, place: int) -> tuple[int, int] | None:
        """Return the numbers of a column in the first and the last row; None without one."""
        lines = self._content
        first = lines[: lines.find(b"\n")]
        last = lines[lines.rfind(b"\n", 0, -1) + 1 : -1]
        try:
            return int(first.split(b"\t")[place]), int(last.split(b"\t")[place])
        except (IndexError, ValueError):
            return None

    def key(self, places: Sequence[int], row: int) -> str:
        """Return the primary key of a row, for people.

        Args:
            places: Of its columns.
        """
        values = [unescaped(self.column(place)[row]) for place in places]
        return ", ".join(value.decode("utf-8", "backslashreplace") for value in values)

    def row(self, row: int) -> dict[str, str | None] | None:
        """Return a row as texts, as the server writes them; None if it is too large."""
        if self.is_too_large:
            return None
        names = self.table.columns
        return {name: text_of(self.column(place)[row]) for place, name in enumerate(names)}


def read_rows(
    reader: ArchiveReader,
    tables: Iterable[StoredTable],
    on_bytes: Callable[[int], None] | None = None,
) -> Iterator[Block]:
    """Yield the rows of some tables, in the order of the snapshot.

    Args:
        on_bytes: Called with the number of bytes read since the last call.

    Raises:
        DamagedError: They are not those that the manifest records.
    """
    by_path = {path: table for table in tables for path in table.paths}
    unread = {table.name: table for table in by_path.values()}
    current: _StoredRows | None = None
    for entry, content in reader.members(lambda entry: entry.path in by_path, on_bytes=on_bytes):
        table = by_path[entry.path]
        if current is None or current.stored is not table:
            if current:
                current.finish()
            if table.name not in unread:
                raise _damaged(table, "its members are apart")
            current = _StoredRows(unread.pop(table.name))
        for piece in content:
            yield from current.add(piece)
    if current:
        current.finish()
    for table in unread.values():
        raise _damaged(table, "its members are missing")


def text_of(value: bytes) -> str | None:
    """Return the text of a field of COPY; None for NULL."""
    return None if value == NULL else unescaped(value).decode("utf-8", "surrogateescape")


class TableReader:
    """A table that is being read: its pieces become blocks of whole lines.

    Attributes:
        rows: Read so far.
    """

    def __init__(self, stored: StoredTable, damage: Damage) -> None:
        self.stored = stored
        self.rows = 0
        self._damage = damage
        self._rest: list[bytes] = []
        self._rest_bytes = 0

    def add(self, piece: bytes | memoryview) -> Iterator[Block]:
        """Yield the rows that a piece completes."""
        for start in range(0, len(piece), BLOCK_BYTES):
            part = bytes(piece[start : start + BLOCK_BYTES])
            if self._rest_bytes:  # the end of a long row is a block of its own
                cut = part.find(b"\n") + 1
                yield from self._complete(part[:cut] if cut else part)
                part = part[cut:] if cut else b""
            cut = part.rfind(b"\n") + 1
            if cut:
                yield self._block(part[:cut])
            self._keep(part[cut:])

    def finish(self, rows: int) -> None:
        """Check that the table is complete.

        Args:
            rows: Their number.

        Raises:
            OpsError: It is not.
        """
        if self._rest_bytes:
            raise self._damage(self.stored, "its last row is not complete")
        if self.rows != rows:
            raise self._damage(self.stored, f"{self.rows} rows, not {rows}")

    def _complete(self, part: bytes) -> Iterator[Block]:
        self._keep(part)
        if part.endswith(b"\n"):
            is_too_large = self._rest_bytes > MOST_ROW_BYTES
            content = None if is_too_large else b"".join(self._rest)
            self._rest, self._rest_bytes = [], 0
            yield self._block(content)

    def _keep(self, part: bytes) -> None:
        self._rest_bytes += len(part)
        if self._rest_bytes > MOST_ROW_BYTES:
            self._rest = []
        elif part:
            self._rest.append(part)

    def _block(self, content: bytes | None) -> Block:
        block = Block(self.stored, self.rows, content, self._damage)
        self.rows += block.count
        return block


class _StoredRows(TableReader):
    """A table of a snapshot: everything is hashed."""

    def __init__(self, stored: StoredTable) -> None:
        super().__init__(stored, _damaged)
        self._digest = hashlib.sha256()

    def add(self, piece: bytes | memoryview) -> Iterator[Block]:
        self._digest.update(piece)
        return super().add(piece)

    def finish(self, rows: int | None = None) -> None:
        super().finish(self.stored.rows if rows is None else rows)
        if self._digest.hexdigest() != self.stored.sha256:
            raise _damaged(self.stored, "not the rows of the manifest")


def _damaged(table: StoredTable, reason: str) -> DamagedError:
    return DamagedError(
        f"snapshot: table {printable(table.name)}: {reason}",
        hint="use another snapshot: sagewai-ops snapshots list",
    )
