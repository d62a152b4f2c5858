"""The order of the source: rows are put into it, and none is lost, whatever the server returns."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagewai_ops.export.compare import source_order
from sagewai_ops.export.compare.normalise import escaped
from sagewai_ops.export.compare.source_order import SourceOrder
from sagewai_ops.export.convert.batch import Target, Type
from sagewai_ops.export.convert.value import uuid_of
from sagewai_ops.export.mapping.plan import PlannedColumn, PlannedTable
from sagewai_ops.export.mapping.source_rows import open_copy

ROWS = 300
KEYS = [("id",), ("place",), ("number", "id"), ("uuid",)]
# A backslash is escaped by COPY, and so is a line break.
IDS = [f"{number}{('', chr(92), chr(10), 'ü')[number % 4]}" for number in range(ROWS)]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with one table, whose rowids have gaps."""
    path = tmp_path_factory.mktemp("copy") / "copy.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE t (id TEXT, number INTEGER, place TEXT, uuid TEXT)")
        connection.executemany(
            "INSERT INTO t (rowid, id, number, place, uuid) VALUES (?, ?, ?, ?, ?)",
            [(3 * n, key, n % 7, f"{n:x}", f"run-{n}") for n, key in enumerate(IDS)],
        )
        connection.commit()
    return path


@contextlib.contextmanager
def order_of(copy: Path, key: tuple[str, ...]) -> Iterator[SourceOrder]:
    """Yield the order of the table by a key."""
    kinds = {"id": "text", "number": "integer", "place": "text", "uuid": "uuid"}
    columns = tuple(
        PlannedColumn(name, f'"{name}"', Target(Type(kind), nullable=True))
        for name, kind in kinds.items()
    )
    with open_copy(copy) as source:
        yield SourceOrder(source, PlannedTable("t", columns, key, ROWS))


def line(number: int) -> bytes:
    """Return a row as the server sends it."""
    fields = (IDS[number], str(number % 7), f"{number:x}", str(uuid_of(f"run-{number}")))
    return b"\t".join(escaped(field.encode()) for field in fields) + b"\n"


def sorted_by(order: SourceOrder, lines: list[bytes], block: int) -> list[bytes]:
    """Feed lines in blocks, and return all that come back."""
    blocks = (lines[start : start + block] for start in range(0, len(lines), block))
    returned = b"".join([order.sort(b"".join(each)) for each in blocks])
    return (returned + order.flush()).splitlines(keepends=True)


LINES = [line(number) for number in range(ROWS)]


@pytest.mark.parametrize("key", KEYS)
def test_rows_that_come_early_or_late_are_put_in_their_place(
    copy: Path, key: tuple[str, ...]
) -> None:
    """As a server returns them that filled the gaps of pages, and one whose row was updated."""
    early = [*LINES[:40], *LINES[250:253], *LINES[40:100], LINES[120], *LINES[100:120]]
    early += [*LINES[121:250], *LINES[253:]]
    late = [*LINES[:90], *LINES[91:], LINES[90]]
    for lines in (LINES, LINES[::-1], early, late):
        for block in (1, 7, 100, ROWS):
            with order_of(copy, key) as order:
                assert sorted_by(order, lines, block) == LINES


@given(
    numbers=st.lists(st.integers(0, ROWS - 1), max_size=2 * ROWS),
    key=st.sampled_from(KEYS),
    block=st.integers(1, ROWS),
)
def test_no_row_is_lost_or_added(
    copy: Path, numbers: list[int], key: tuple[str, ...], block: int
) -> None:
    """Rows that are missing, twice, or of no source come back as often as they came."""
    lines = [LINES[number] if number % 10 else b"x" + LINES[number] for number in numbers]
    with order_of(copy, key) as order:
        assert sorted(sorted_by(order, lines, block)) == sorted(lines)


def test_what_needs_too_much_memory_stays_as_it_comes(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then all rows come back at once, and the next ones unchanged."""
    monkeypatch.setattr(source_order, "ASIDE_BYTES", 1000)
    lines = [*LINES[:50], *LINES[51:], LINES[50]]
    with order_of(copy, ("id",)) as order:
        returned = [order.sort(each) for each in lines]
    assert b"".join(returned) == b"".join(lines)
    assert returned[-100:] == lines[-100:]
    assert max(map(len, returned)) < 1200
