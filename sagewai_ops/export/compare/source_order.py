"""Put the target's rows into the order of the source, with few of them in memory.

Unless a table is new or truncated in the same transaction, the server stores some rows of a COPY in
gaps of earlier pages, from which they come back earlier than they were sent. They are set aside
until it is their turn. Nothing but the order is decided here: the comparison in order that follows
compares every value, and finds a row that is missing, is there twice or is in a wrong place.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Iterable
from itertools import islice
from operator import itemgetter
from typing import Any, TypeAlias

from sagewai_ops.export.compare.normalise import NULL, escaped
from sagewai_ops.export.compare.rows import key_expressions
from sagewai_ops.export.mapping.plan import PlannedTable

ASIDE_BYTES = 8 * 1024 * 1024  # the most that is set aside; beyond, rows stay as they come
_KEYS_AT_ONCE = 500

Key: TypeAlias = bytes | tuple[bytes, ...]  # of one column, or of several


class SourceOrder:
    """Sorts a table's rows while they arrive; has a cursor on the source.

    Args:
        source: The frozen copy, from `open_copy`.
        table: As it was sent; has a key.
    """

    def __init__(self, source: sqlite3.Connection, table: PlannedTable) -> None:
        names = [column.name for column in table.columns]
        self._places = [names.index(name) for name in table.key]
        self._is_single = len(self._places) == 1
        self._is_first = self._places == [0] and len(names) > 1
        self._cursor = source.execute(
            f"SELECT {', '.join(key_expressions(table))} FROM {table.source()} ORDER BY rowid"
        )
        self._following: deque[Key] = deque()  # the keys of the source's next rows
        self._aside: dict[Key, bytes] = {}  # by key
        self._aside_bytes = 0
        self._is_sorting = True

    def sort(self, content: bytes) -> bytes:
        """Add whole lines of the server's output, and return those whose turn it is."""
        if not self._is_sorting:
            return content
        keys = self._keys(content)
        if not self._aside and self._are_next(keys):
            return content
        return _join(self._sort(keys, content[:-1].split(b"\n")))

    def flush(self) -> bytes:
        """Return the lines that are left after the last one: they are not as in the source."""
        rest = _join(self._aside.values())
        self._aside.clear()
        return rest

    def _are_next(self, keys: list[Key]) -> bool:
        """Return whether the source's next rows have these keys, and then proceed behind them."""
        following = self._following
        missing = len(keys) - len(following)
        rows = self._cursor.fetchmany(missing) if missing > 0 else []
        # The usual case at little cost: without escapes, since few keys have any.
        if not following and keys == ([row[0] for row in rows] if self._is_single else rows):
            return True
        self._add_following(rows)
        if keys != list(islice(following, len(keys))):
            return False
        for _ in keys:
            following.popleft()
        return True

    def _sort(self, keys: list[Key], lines: list[bytes]) -> list[bytes]:
        """Return the lines whose turn it is; all of them if this would need too much memory."""
        ready: list[bytes] = []
        aside, following = self._aside, self._following
        for place, (key, line) in enumerate(zip(keys, lines, strict=True)):
            if key in aside or self._aside_bytes > ASIDE_BYTES:
                self._is_sorting = False
                ready += [*aside.values(), *lines[place:]]
                aside.clear()
                break
            aside[key] = line
            self._aside_bytes += len(line)
            while aside and (following or self._read_following()) and following[0] in aside:
                ready.append(aside.pop(following.popleft()))
                self._aside_bytes -= len(ready[-1])
        return ready

    def _read_following(self) -> bool:
        self._add_following(self._cursor.fetchmany(_KEYS_AT_ONCE))
        return bool(self._following)

    def _add_following(self, rows: list[tuple[Any, ...]]) -> None:
        for row in rows:
            key = tuple([NULL if value is None else escaped(value) for value in row])
            self._following.append(key[0] if self._is_single else key)

    def _keys(self, content: bytes) -> list[Key]:
        """Return the keys of lines, as the server wrote them."""
        if self._is_first:
            return _first_fields(content)
        limit = max(self._places) + 1
        take = itemgetter(*self._places)  # of one place: no tuple
        return [take(line.split(b"\t", limit)) for line in content[:-1].split(b"\n")]


def _first_fields(content: bytes) -> list[Key]:
    """Return the first field of each line, without a copy of the lines."""
    fields: list[Key] = []
    find, start = content.find, 0
    while start < len(content):
        fields.append(content[start : find(b"\t", start)])
        start = find(b"\n", start) + 1
    return fields


def _join(lines: Iterable[bytes]) -> bytes:
    return b"".join([line + b"\n" for line in lines])
