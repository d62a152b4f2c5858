"""Convert whole columns at a time: the same fields as `value` returns, at the speed of C.

A batch is a list of columns, each a tuple of stored values. An encoder checks its column as a whole
(the set of types, one search for NUL in the joined texts, one run of the JSON scanner) and returns
the fields as iterables that are zipped and joined; no Python code runs for a single clean value.
Where a column has anything that it does not expect, an encoder raises `IrregularError`, and the
column is encoded value by value: `value` decides. tests/export/test_batch.py compares the two.

Where the server checks a value while it stores it, an encoder can *trust*: it scans no text and
parses no document, which halves its time. What the server would accept and change (blanks beyond a
varchar's limit) is checked even then.

Source: PostgreSQL's manual, COPY, Binary Format.
"""

import functools
import json
import os
import struct
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from decimal import Context, Inexact, InvalidOperation, Overflow, Rounded, Subnormal
from itertools import chain, repeat
from typing import TypeAlias

from sagewai_ops.export.convert import value as convert_value
from sagewai_ops.export.convert.value import NUMERIC_DIGITS, RefusedError, Stored
from sagewai_ops.records import dataclass

SIGNATURE = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)
TRAILER = struct.pack(">h", -1)
NULL = struct.pack(">i", -1)

Column: TypeAlias = Sequence[Stored | None]
Parts: TypeAlias = tuple[Iterable[bytes | bytearray], ...]
Encoder: TypeAlias = Callable[[Column], Parts]

_LENGTHS = [struct.pack(">i", length) for length in range(4096)]
_JSONB_HEADS = [struct.pack(">ib", length + 1, 1) for length in range(4096)]
_pack_length = struct.Struct(">i").pack
_pack_double = struct.Struct(">id").pack
_pack_long = struct.Struct(">iq").pack
_INTEGERS = {2: struct.Struct(">ih").pack, 4: struct.Struct(">ii").pack, 8: _pack_long}
_TRUTHS: dict[object, bytes] = {
    None: NULL,
    0: struct.pack(">ib", 1, 0),
    1: struct.pack(">ib", 1, 1),
    b"false": struct.pack(">ib", 1, 0),
    b"true": struct.pack(">ib", 1, 1),
}
_EPOCH = datetime(2000, 1, 1)  # noqa: DTZ001 (both sides of the subtraction are UTC)
_MICROSECOND = timedelta(microseconds=1)
_DIGITS = b"0123456789"
_TIMESTAMP_LENGTHS = frozenset((19, 26))  # without and with microseconds
_CACHED_BYTES = 200  # the longest list that is cached

# Far narrower than a numeric: documents with other numbers are checked one by one.
_NARROW = Context(
    prec=400,
    Emax=400,
    Emin=-400,
    traps=[Inexact, Rounded, Overflow, Subnormal, InvalidOperation],
)
# Separates the documents of a batch; random, so that no document can contain it.
_GLUE = os.urandom(8).hex()
_IRREGULAR = (ArithmeticError, KeyError, RecursionError, TypeError, ValueError, struct.error)


class IrregularError(ValueError):
    """A column has values that must be encoded one by one."""


@dataclass(frozen=True, slots=True)
class Type:
    """A type of the target.

    Attributes:
        name: text, json, jsonb, text[], uuid, timestamptz, boolean, integer or double.
        size: Characters of a varchar, bytes of an integer; else 0.
    """

    name: str
    size: int = 0


@dataclass(frozen=True, slots=True)
class Refusal:
    """A value of a batch that its type cannot store: which row and column, and why."""

    row: int
    column: int
    kind: str
    detail: str


@dataclass(frozen=True, slots=True)
class Target:
    """A column of the target.

    Attributes:
        trusting: Do not check what the server refuses by itself.
    """

    type: Type
    nullable: bool
    trusting: bool = False


def encode_batch(
    targets: Sequence[Target], columns: Sequence[Column]
) -> tuple[bytes, list[Refusal]]:
    """Encode a batch of rows as tuples of PostgreSQL's binary COPY format.

    Args:
        targets: One for each column.
        columns: At least one row, all of the same length.

    Returns:
        The tuples, without signature and trailer, and the refusals; with any refusal, the tuples
        are incomplete and must not be sent.
    """
    header = struct.pack(">h", len(targets))
    iterables: list[Iterable[bytes | bytearray]] = [repeat(header, len(columns[0]))]
    refusals: list[Refusal] = []
    for number, (target, column) in enumerate(zip(targets, columns, strict=True)):
        try:
            iterables += column_encoder(target)(column)
        except _IRREGULAR:
            iterables.append(_encode_single_values(target, column, number, refusals))
    return b"".join(chain.from_iterable(zip(*iterables, strict=False))), refusals


def encode_value(target: Target, value: Stored | None) -> bytes:
    """Encode one value after its length.

    Raises:
        RefusedError: The column cannot store it.
    """
    encoded = None if value is None else _encoded(target, value)
    if encoded is None:
        if not target.nullable:
            raise RefusedError("null", "NULL in a column without NULLs")
        return NULL
    return _pack_length(len(encoded)) + encoded


@functools.cache
def column_encoder(target: Target) -> Encoder:
    """Return the encoder for whole columns of a type."""
    encoders: dict[str, Callable[[Target, Column], Parts]] = {
        "text": _texts,
        "json": _documents,
        "jsonb": _documents,
        "text[]": _arrays,
        "uuid": _uuids,
        "timestamptz": _timestamps,
        "boolean": _booleans,
        "integer": _integers,
        "double": _doubles,
    }
    return functools.partial(encoders[target.type.name], target)


def _encode_single_values(
    target: Target, column: Column, number: int, refusals: list[Refusal]
) -> list[bytes]:
    fields = []
    for row, value in enumerate(column):
        try:
            fields.append(encode_value(target, value))
        except RefusedError as error:
            refusals.append(Refusal(row, number, error.kind, error.detail))
            fields.append(NULL)
    return fields


def _encoded(target: Target, value: Stored) -> bytes | None:
    name, size = target.type.name, target.type.size
    if name == "text":
        return convert_value.text(value, size or None)
    if name == "integer":
        return convert_value.integer(value, size)
    if name == "text[]":
        return convert_value.text_array(value, nullable=target.nullable)
    return {
        "json": convert_value.json_text,
        "jsonb": convert_value.jsonb,
        "uuid": convert_value.uuid_bytes,
        "timestamptz": convert_value.timestamp,
        "boolean": convert_value.boolean,
        "double": convert_value.double,
    }[name](value)


def _without_nulls(target: Target, column: Column, expected: type) -> tuple[Column, bool]:
    """Return the values that are not NULL, all of one type, and whether there are NULLs."""
    kinds = set(map(type, column))
    if kinds == {expected}:
        return column, False
    if not target.nullable or not kinds <= {expected, type(None)}:
        raise IrregularError
    return [value for value in column if value is not None], True


def _texts(target: Target, column: Column) -> Parts:
    present, has_nulls = _without_nulls(target, column, bytearray)
    if not present:
        return (repeat(NULL),)
    if not target.trusting:
        joined = b"\n".join(present)  # type: ignore[arg-type]
        if b"\0" in joined:
            raise IrregularError
        joined.decode()
    if target.type.size and max(map(len, present)) > target.type.size:  # type: ignore[arg-type]
        raise IrregularError
    return _with_lengths(column, has_nulls=has_nulls, heads=_LENGTHS, more=0)


def _documents(target: Target, column: Column) -> Parts:
    present, has_nulls = _without_nulls(target, column, bytearray)
    if not present:
        return (repeat(NULL),)
    binary = target.type.name == "jsonb"
    if not target.trusting:
        _scan_documents(present, binary=binary)
    heads = _JSONB_HEADS if binary else _LENGTHS
    return _with_lengths(column, has_nulls=has_nulls, heads=heads, more=int(binary))


def _scan_documents(present: Column, *, binary: bool) -> None:
    """Parse documents all at once, as one list, and check for what jsonb refuses."""
    joined = f',"{_GLUE}",'.encode().join(present)  # type: ignore[arg-type]
    scan = _SCAN_NUMBERS if binary else _SCAN
    parsed = scan.decode(f"[{joined.decode()}]")
    if len(parsed) != 2 * len(present) - 1 or parsed[1::2] != [_GLUE] * (len(present) - 1):
        raise IrregularError
    if not binary:
        return
    if max(map(len, present)) > NUMERIC_DIGITS:  # type: ignore[arg-type]
        raise IrregularError  # a shorter document cannot contain an integer that is too long
    if b"\\u0000" in joined or b"\\ud" in joined or b"\\uD" in joined:
        for document in present:
            convert_value.check_escapes(document.decode())  # type: ignore[union-attr]
    if len(joined) > convert_value.LARGEST_JSONB_TEXT:
        raise IrregularError


def _with_lengths(column: Column, *, has_nulls: bool, heads: list[bytes], more: int) -> Parts:
    """Return lengths and contents as two iterables, so that contents are copied once."""
    if has_nulls:
        sizes = [-1 if value is None else len(value) for value in column]  # type: ignore[arg-type]
        contents = [b"" if value is None else value for value in column]
    else:
        sizes, contents = list(map(len, column)), column  # type: ignore[arg-type, assignment]
    longest = max(sizes)
    if longest < len(heads) and not has_nulls:
        return map(heads.__getitem__, sizes), contents  # type: ignore[return-value]
    suffix = b"\x01" * more
    return (
        [
            NULL
            if size < 0
            else heads[size]
            if size < len(heads)
            else _pack_length(size + more) + suffix
            for size in sizes
        ],
        contents,  # type: ignore[return-value]
    )


def _arrays(target: Target, column: Column) -> Parts:
    present, has_nulls = _without_nulls(target, column, bytearray)
    fields = [
        _array_field(bytes(value), nullable=target.nullable)  # type: ignore[arg-type]
        if len(value) < _CACHED_BYTES  # type: ignore[arg-type]
        else encode_value(target, value)
        for value in present
    ]
    return (_insert_nulls(column, fields) if has_nulls else fields,)


@functools.lru_cache(maxsize=256)
def _array_field(document: bytes, *, nullable: bool) -> bytes:
    """Encode a short list, from a cache: the same few occur in every row."""
    return encode_value(Target(Type("text[]"), nullable), bytearray(document))


def _timestamps(target: Target, column: Column) -> Parts:
    present, has_nulls = _without_nulls(target, column, bytearray)
    if not present:
        return (repeat(NULL),)
    joined = b"\n".join(present)  # type: ignore[arg-type]
    shape = joined.translate(None, _DIGITS + b".")
    if shape != b"\n".join((b"-- ::",) * len(present)):
        raise IrregularError
    if not _TIMESTAMP_LENGTHS.issuperset(map(len, present)):  # type: ignore[arg-type]
        raise IrregularError
    timestamps = map(datetime.fromisoformat, joined.decode().split("\n"))
    counts = [(timestamp - _EPOCH) // _MICROSECOND for timestamp in timestamps]
    fields = list(map(_pack_long, repeat(8), counts))
    return (_insert_nulls(column, fields) if has_nulls else fields,)


def _booleans(target: Target, column: Column) -> Parts:
    kinds = set(map(type, column))
    if not kinds <= {int, bytearray, type(None)} or (type(None) in kinds and not target.nullable):
        raise IrregularError
    if bytearray in kinds:
        column = [bytes(value) if type(value) is bytearray else value for value in column]
    return (list(map(_TRUTHS.__getitem__, column)),)


def _integers(target: Target, column: Column) -> Parts:
    present, has_nulls = _without_nulls(target, column, int)
    size = target.type.size
    fields = list(map(_INTEGERS[size], repeat(size), present))
    return (_insert_nulls(column, fields) if has_nulls else fields,)


def _doubles(target: Target, column: Column) -> Parts:
    present, has_nulls = _without_nulls(target, column, float)
    fields = list(map(_pack_double, repeat(8), present))
    return (_insert_nulls(column, fields) if has_nulls else fields,)


def _uuids(target: Target, column: Column) -> Parts:
    present, has_nulls = _without_nulls(target, column, bytearray)
    head = _pack_length(16)
    fields = [head + convert_value.uuid_bytes(value) for value in present]  # type: ignore[arg-type]
    return (_insert_nulls(column, fields) if has_nulls else fields,)


def _insert_nulls(column: Column, fields: list[bytes]) -> list[bytes]:
    """Insert the NULLs of a column between the fields of its other values."""
    following = iter(fields)
    return [NULL if value is None else next(following) for value in column]


def _refuse_constant(_name: str) -> object:
    raise IrregularError


_SCAN = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=len, parse_int=len)
_SCAN_NUMBERS = json.JSONDecoder(
    parse_constant=_refuse_constant,
    parse_float=_NARROW.create_decimal,
    parse_int=len,
)
