"""The text that COPY would send for rows of a home: equal only if every value is."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagewai_ops.errors import OpsError
from sagewai_ops.export.compare.normalise import escaped
from sagewai_ops.export.convert.batch import Type
from sagewai_ops.export.convert.sqlite_value import NULL, Value, convert_column
from sagewai_ops.restore.conversion import ConvertedColumn, ConvertedTable, LostColumn
from sagewai_ops.restore.server_rows import Block
from sagewai_ops.restore.server_texts import ServerTexts
from sagewai_ops.snapshots.server_database import StoredTable

# Name, type on the server, type of SQLite, and a usual text of the server.
COLUMNS = (
    ("a", "text", "TEXT", "x"),
    ("b", "jsonb", "JSON", '{"a": 1}'),
    ("c", "boolean", "BOOLEAN", "t"),
    ("d", "timestamptz", "DATETIME", "2026-01-02 03:04:35.5+00"),
    ("e", "uuid", "TEXT", "00000000-0000-0000-0000-0123456789ab"),
    ("f", "double", "FLOAT", "0.1"),
    ("g", "text[]", "JSON", '{a,"b c"}'),
    ("h", "integer", "INTEGER", "-5"),
)
USUAL = tuple(text for *_, text in COLUMNS)
NAMES = tuple(name for name, *_ in COLUMNS)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
ODD = st.sampled_from(["\\N", "\x1d", "\x1f", "\x1e", "\x1c", "\t", "\n", "\\", "", "N"])
FIELDS = st.tuples(
    st.none() | TEXTS | ODD,
    st.none() | st.sampled_from(["5", "1.5", "0.1", "null", '"x"', '"\\n"', "[]", "1e22"]),
    st.none() | st.sampled_from(["t", "f"]),
    st.none()
    | st.sampled_from(
        ["2026-01-02 03:04:35+00", "2026-01-02 03:04:30+00", "2026-01-02 03:04:30.05+00"]
    ),
    st.none() | st.uuids().map(str) | st.just(USUAL[4]),
    st.none() | st.sampled_from(["0", "1", "1e+15", "1e-05", "Infinity", "0.30000000000000004"]),
    st.none() | st.sampled_from(["{}", "{a}", '{"NULL"}', '{"a\\"b"}', "{a,b}"]),
    st.none() | st.integers(-(2**63), 2**63 - 1).map(str),
)


def damage(table: StoredTable, reason: str) -> OpsError:
    """Return the error about a block."""
    return OpsError(f"{table.name}: {reason}")


def field_of(text: str | None) -> bytes:
    """Return a field as a server sends it."""
    return NULL if text is None else escaped(text.encode())


def block_of(*rows: tuple[str | None, ...], names: tuple[str, ...] = NAMES) -> Block:
    """Return rows as a server sends them."""
    lines = [b"\t".join(map(field_of, row)) + b"\n" for row in rows]
    content = b"".join(lines)
    return Block(StoredTable("public", "t", names, len(rows), 0, "", "", 0), 0, content, damage)


def table_of(names: tuple[str, ...] = NAMES) -> ConvertedTable:
    """Return the plan of the table."""
    columns = tuple(
        ConvertedColumn(
            name, place, Type(kind), is_numeric=declared == "JSON", null=None, joined=None
        )
        for place, (name, kind, declared, _usual) in enumerate(COLUMNS)
    )
    stored = StoredTable("public", "t", names, 0, 0, "", "", 0)
    lost = tuple(LostColumn(name, names.index(name), b"d\\tf") for name in names[len(NAMES) :])
    return ConvertedTable(stored, columns, lost, (0,), None)


@contextlib.contextmanager
def stored(*rows: tuple[str | None, ...]) -> Iterator[sqlite3.Connection]:
    """Yield a database with the rows of a server, converted."""
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        declared = ", ".join(f"{name} {kind}" for name, _, kind, _ in COLUMNS)
        connection.execute(f"CREATE TABLE t ({declared})")
        for row in rows:
            values: list[Value] = []
            for text, (_, kind, affinity, _) in zip(row, COLUMNS, strict=True):
                converted, _ = convert_column(
                    Type(kind), [field_of(text)], is_numeric=affinity == "JSON"
                )
                values += converted
            connection.execute(f"INSERT INTO t VALUES ({', '.join('?' * len(values))})", values)
        connection.text_factory = bytearray
        yield connection


def test_usual_rows_are_equal() -> None:
    """Of every type, with NULLs, escapes, and a column that a home does not have."""
    rows = (USUAL, (None,) * len(NAMES), ("a\\b\t\n\r\f\v\b\\N", *USUAL[1:]), ("\\N", *USUAL[1:]))
    names = (*NAMES, "lost")

    with stored(*rows) as connection:
        texts = ServerTexts(connection)

        assert texts.are_equal(table_of(), block_of(*rows))
        more = [(*row, "d\tf") for row in rows]
        assert ServerTexts(connection).are_equal(table_of(names), block_of(*more, names=names))
        assert not texts.are_equal(table_of(), block_of(*rows[:3], rows[0]))
        assert not texts.are_equal(table_of(), block_of(*rows, rows[0]))


@given(st.lists(FIELDS, min_size=1, max_size=3), st.data())
def test_other_rows_are_not_equal(rows: list[tuple[str | None, ...]], data: st.DataObject) -> None:
    """Whatever one field is instead."""
    row = data.draw(st.integers(0, len(rows) - 1))
    place = data.draw(st.integers(0, len(NAMES) - 1))
    others = [list(each) for each in rows]
    others[row][place] = data.draw(FIELDS)[place]
    sent, other = block_of(*rows), block_of(*map(tuple, others))

    with stored(*rows) as connection:
        texts = ServerTexts(connection)

        assert texts.are_equal(table_of(), other) <= (sent.content == other.content)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("a", "x\0y"),
        ("a", None),
        ("a", "x\x1f"),
        ("a", "\\N"),
        ("b", 0.1),
        ("c", 0),
        ("c", "x"),
        ("d", "2026-01-02 03:04:35.500001"),
        ("d", "2026-01-02 03:04:355000000"),
        ("d", "2026-01-02 03:04:35"),
        ("e", "0123456789ac"),
        ("f", 0.1000000000000001),
        ("g", '["a"]'),
        ("g", "no list"),
        ("h", -6),
    ],
)
def test_other_values_are_not_equal(column: str, value: object) -> None:
    """In the database: a conversion that is wrong."""
    with stored(USUAL, USUAL) as connection:
        assert ServerTexts(connection).are_equal(table_of(), block_of(USUAL, USUAL))
        connection.execute(f"UPDATE t SET {column} = ? WHERE rowid = 2", (value,))

        assert not ServerTexts(connection).are_equal(table_of(), block_of(USUAL, USUAL))


def test_wrong_nulls_are_not_equal() -> None:
    """Neither a text of two characters, nor an empty one, is NULL."""
    nothing = (None,) * len(NAMES)
    for value in ("", "\\N", "\x1d\x1d", "\x1d"):
        with stored(nothing) as connection:
            connection.execute("UPDATE t SET a = ?", (value,))

            assert not ServerTexts(connection).are_equal(table_of(), block_of(nothing))
