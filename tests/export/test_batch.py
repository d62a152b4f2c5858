"""Whole columns: the same fields as value by value, and what PostgreSQL makes of them."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from postgres_server import Server
from sagewai_ops.export.compare.normalise import differing
from sagewai_ops.export.convert import batch
from sagewai_ops.export.convert.batch import (
    SIGNATURE,
    TRAILER,
    Target,
    Type,
    encode_batch,
    encode_value,
)
from sagewai_ops.export.convert.value import RefusedError, Stored
from stored_values import NAMES, TYPES, anything, good

Rows = list[tuple[Stored | None, ...]]


def encode_single_values(
    targets: list[Target], rows: Rows
) -> tuple[bytes, list[tuple[int, int, str]]]:
    """Encode rows value by value, and list the refusals."""
    parts, refused = [], []
    for number, row in enumerate(rows):
        parts.append(struct.pack(">h", len(row)))
        for place, (target, value) in enumerate(zip(targets, row, strict=True)):
            try:
                parts.append(encode_value(target, value))
            except RefusedError as error:
                refused.append((number, place, error.kind))
    return b"".join(parts), refused


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_columns_are_encoded_as_their_values_are(data: st.DataObject) -> None:
    """Whatever is stored, nullable or not: the same bytes, or the same refusals."""
    targets = data.draw(st.lists(st.sampled_from(TYPES), min_size=1, max_size=3)).copy()
    wanted = [Target(kind, nullable=data.draw(st.booleans())) for kind in targets]
    values = [
        data.draw(st.sampled_from([good(target.type), st.none() | good(target.type), anything()]))
        for target in wanted
    ]
    rows: Rows = data.draw(st.lists(st.tuples(*values), min_size=1, max_size=6))

    encoded, refusals = encode_batch(wanted, list(zip(*rows, strict=True)))

    expected, refused = encode_single_values(wanted, rows)
    assert sorted((each.row, each.column, each.kind) for each in refusals) == sorted(refused)
    if not refused:
        assert encoded == expected


@pytest.mark.parametrize("length", [0, 1, 4095, 4096, 70_000])
@pytest.mark.parametrize("kind", [Type("text"), Type("jsonb"), Type("json")])
def test_lengths_beyond_the_table_of_lengths_are_right(length: int, kind: Type) -> None:
    """The heads of short values are looked up, those of long ones computed."""
    text = bytearray(b'"' + b"x" * length + b'"')
    targets = [Target(kind, nullable=True)]

    for column in ([text, text], [text, None, text]):
        encoded, refusals = encode_batch(targets, [column])

        assert not refusals
        assert encoded == encode_single_values(targets, [(value,) for value in column])[0]


def test_documents_cannot_pretend_to_be_several() -> None:
    """Two broken documents whose texts join to whole ones are both refused."""
    targets = [Target(Type("json"), nullable=False)]
    column = [bytearray(b"1, 2"), bytearray(b"[3"), bytearray(b"4]")]

    _, refusals = encode_batch(targets, [column])

    assert [refusal.kind for refusal in refusals] == ["not-json"] * 3


def test_long_lists_are_not_remembered() -> None:
    """Short ones come in every row; long ones would fill the memory."""
    before = batch._array_field.cache_info().currsize
    column = [bytearray(b'["' + b"x" * 1000 + b"%d" % number + b'"]') for number in range(9)]

    encode_batch([Target(Type("text[]"), nullable=False)], [column])

    assert batch._array_field.cache_info().currsize == before


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(*(st.none() | good(kind) for kind in TYPES)), min_size=1, max_size=8))
def test_what_is_sent_comes_back_the_same(in_database: InDatabase, rows: Rows) -> None:
    """Every storage class into every type: PostgreSQL stores it, and returns the same value."""
    targets = [Target(kind, nullable=True) for kind in TYPES]
    columns = list(zip(*rows, strict=True))
    encoded, refusals = encode_batch(targets, columns)
    assert not refusals

    lines = in_database(lambda connection: there_and_back(connection, encoded))

    met = [line.split(b"\t") for line in lines]
    assert len(met) == len(rows)
    for kind, column, back in zip(TYPES, columns, zip(*met, strict=True), strict=True):
        assert differing(kind, column, back) == [], kind


async def there_and_back(
    connection: asyncpg.Connection[asyncpg.Record], tuples: bytes
) -> list[bytes]:
    """Copy tuples into a table with a column of each type, and read them as text."""

    async def once() -> AsyncIterator[bytes]:
        yield SIGNATURE + tuples + TRAILER

    parts: list[bytes] = []

    async def collect(content: bytes) -> None:
        parts.append(content)

    columns = ", ".join(f"c{number} {name}" for number, name in enumerate(NAMES))
    wanted = ", ".join(
        f"array_to_json(c{number})" if name == "text[]" else f"c{number}"
        for number, name in enumerate(NAMES)
    )
    await connection.execute(
        f"DROP TABLE IF EXISTS every_type; CREATE TABLE every_type ({columns})"
    )
    await connection.copy_to_table("every_type", source=once(), format="binary")
    await connection.execute("SET timezone = 'UTC'")
    await connection.copy_from_query(f"SELECT {wanted} FROM every_type", output=collect)
    return b"".join(parts).split(b"\n")[:-1]


InDatabase = Callable[
    [Callable[["asyncpg.Connection[asyncpg.Record]"], Coroutine[Any, Any, list[bytes]]]],
    list[bytes],
]


@pytest.fixture
def in_database(postgres: Server, database: str) -> InDatabase:
    """Run something on a connection to a fresh database."""

    def run(
        work: Callable[[asyncpg.Connection[asyncpg.Record]], Coroutine[Any, Any, list[bytes]]],
    ) -> list[bytes]:
        async def connected() -> list[bytes]:
            connection = await postgres.connect(database)
            try:
                return await work(connection)
            finally:
                await connection.close()

        return asyncio.run(connected())

    return run
