"""Whole columns at a time: the same fields as `values` gives, at the speed of C.

A batch is a list of columns, each a tuple of stored values. An encoder looks at its column as a
whole (the set of types, one search for NUL in everything joined, one run of the JSON scanner) and
gives the fields as iterables that are zipped and joined; no Python code runs for a clean value.
Whatever it does not expect, it does not judge: it raises `IrregularError`, and the column is
encoded value by value, where `values` decides. tests/test_transfer_encoders.py holds both to one
result.

Where the server judges anyway, while it stores, an encoder can *trust*: it looks at no character of
a text and parses no document, which is half of the work. What the server would take and change
(blanks behind a varchar's limit) is looked at even then.

Source: PostgreSQL's manual, COPY, Binary Format.
"""

import functools
import json
import secrets
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Context, Inexact, InvalidOperation, Overflow, Rounded, Subnormal
from itertools import chain, repeat
from typing import TypeAlias

from sagewai_ops.export.convert import value as convert_value
from sagewai_ops.export.convert.value import RefusedError, Stored
from sagewai_ops.schema.json_values import NUMERIC_DIGITS

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
_MOMENT_LENGTHS = frozenset((19, 26))  # without and with microseconds
_CACHED_BYTES = 200  # of a list that is worth remembering

# Far narrower than a numeric: what does not fit is looked at closely. Decimals are made exactly.
_NARROW = Context(
    prec=400,
    Emax=400,
    Emin=-400,
    traps=[Inexact, Rounded, Overflow, Subnormal, InvalidOperation],
)
# Between two documents of a batch; unknown to who wrote them, so they cannot pretend to be two.
_GLUE = secrets.token_hex(8)
_IRREGULARITIES = (ArithmeticError, KeyError, RecursionError, TypeError, ValueError, struct.error)


class IrregularError(ValueError):
    """A column holds something that needs a closer look."""


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
    """A value of a batch that its type cannot hold: which row and column, and why."""

    row: int
    column: int
    kind: str
    detail: str


@dataclass(frozen=True, slots=True)
class Target:
    """A column to encode for.

    Attributes:
        trusting: Leave to the server what it refuses by itself.
    """

    type: Type
    nullable: bool
    trusting: bool = False


def encode(targets: Sequence[Target], columns: Sequence[Column]) -> tuple[bytes, list[Refusal]]:
    """Encode a batch of rows as tuples of PostgreSQL's binary COPY format.

    Args:
        targets: One for each column.
        columns: At least one row, all of the same length.

    Returns:
        The tuples, without signature and trailer, and what was refused; with any refusal, the
        tuples are incomplete and must not be sent.
    """
    header = struct.pack(">h", len(targets))
    iterables: list[Iterable[bytes | bytearray]] = [repeat(header, len(columns[0]))]
    refusals: list[Refusal] = []
    for number, (target, column) in enumerate(zip(targets, columns, strict=True)):
        try:
            iterables += encoder(target)(column)
        except _IRREGULARITIES:
            iterables.append(_one_by_one(target, column, number, refusals))
    return b"".join(chain.from_iterable(zip(*iterables, strict=False))), refusals


def field(target: Target, value: Stored | None) -> bytes:
    """Encode one value, its length before it, by the function in `values`.

    Raises:
        RefusedError: The type cannot hold it.
    """
    encoded = None if value is None else _encoded(target, value)
    if encoded is None:
        if not target.nullable:
            raise RefusedError("null", "is NULL where a value must be")
        return NULL
    return _pack_length(len(encoded)) + encoded


@functools.cache
def encoder(target: Target) -> Encoder:
    """Give the encoder for whole columns of a type."""
    encoders: dict[str, Callable[[Target, Column], Parts]] = {
        "text": _texts,
        "json": _documents,
        "jsonb": _documents,
        "text[]": _arrays,
        "uuid": _identifiers,
        "timestamptz": _moments,
        "boolean": _booleans,
        "integer": _integers,
        "double": _doubles,
    }
    return functools.partial(encoders[target.type.name], target)


def _one_by_one(
    target: Target, column: Column, number: int, refusals: list[Refusal]
) -> list[bytes]:
    fields = []
    for row, value in enumerate(column):
        try:
            fields.append(field(target, value))
        except RefusedError as error:
            refusals.append(Refusal(row, number, error.kind, error.detail))
            fields.append(NULL)
    return fields


def _encoded(target: Target, value: Stored) -> bytes | None:
    kind, size = target.type.name, target.type.size
    if kind == "text":
        return convert_value.text(value, size or None)
    if kind == "integer":
        return convert_value.integer(value, size)
    if kind == "text[]":
        return convert_value.text_array(value, nullable=target.nullable)
    return {
        "json": convert_value.json_text,
        "jsonb": convert_value.jsonb,
        "uuid": convert_value.uuid_bytes,
        "timestamptz": convert_value.timestamp,
        "boolean": convert_value.boolean,
        "double": convert_value.double,
    }[kind](value)


def _present(target: Target, column: Column, expected: type) -> tuple[Column, bool]:
    """Give the values that are not NULL, and whether there are NULLs; all of one type."""
    kinds = set(map(type, column))
    if kinds == {expected}:
        return column, False
    if not target.nullable or not kinds <= {expected, type(None)}:
        raise IrregularError
    return [value for value in column if value is not None], True


def _texts(target: Target, column: Column) -> Parts:
    present, has_nulls = _present(target, column, bytearray)
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
    present, has_nulls = _present(target, column, bytearray)
    if not present:
        return (repeat(NULL),)
    binary = target.type.name == "jsonb"
    if not target.trusting:
        _scan_documents(present, binary=binary)
    heads = _JSONB_HEADS if binary else _LENGTHS
    return _with_lengths(column, has_nulls=has_nulls, heads=heads, more=int(binary))


def _scan_documents(present: Column, *, binary: bool) -> None:
    """Parse documents all at once, as one list, and look for what jsonb refuses."""
    joined = f',"{_GLUE}",'.encode().join(present)  # type: ignore[arg-type]
    scan = _SCAN_NUMBERS if binary else _SCAN
    listed = scan.decode(f"[{joined.decode()}]")
    if len(listed) != 2 * len(present) - 1 or listed[1::2] != [_GLUE] * (len(present) - 1):
        raise IrregularError
    if not binary:
        return
    if max(map(len, present)) > NUMERIC_DIGITS:  # type: ignore[arg-type]
        raise IrregularError  # only so long a document has room for an integer that is too long
    if b"\\u0000" in joined or b"\\ud" in joined or b"\\uD" in joined:
        for document in present:
            convert_value.check_escapes(document.decode())  # type: ignore[union-attr]
    if len(joined) > convert_value.LARGEST_JSONB_TEXT:
        raise IrregularError


def _with_lengths(column: Column, *, has_nulls: bool, heads: list[bytes], more: int) -> Parts:
    """Give lengths and contents as two iterables, so that contents are copied once, at the end."""
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
    present, has_nulls = _present(target, column, bytearray)
    fields = [
        _array_field(bytes(value), nullable=target.nullable)  # type: ignore[arg-type]
        if len(value) < _CACHED_BYTES  # type: ignore[arg-type]
        else field(target, value)
        for value in present
    ]
    return (_spread(column, fields) if has_nulls else fields,)


@functools.lru_cache(maxsize=256)
def _array_field(document: bytes, *, nullable: bool) -> bytes:
    """Remember short lists: the same few come in every row."""
    return field(Target(Type("text[]"), nullable), bytearray(document))


def _moments(target: Target, column: Column) -> Parts:
    present, has_nulls = _present(target, column, bytearray)
    if not present:
        return (repeat(NULL),)
    joined = b"\n".join(present)  # type: ignore[arg-type]
    shape = joined.translate(None, _DIGITS + b".")
    if shape != b"\n".join((b"-- ::",) * len(present)):
        raise IrregularError
    if not _MOMENT_LENGTHS.issuperset(map(len, present)):  # type: ignore[arg-type]
        raise IrregularError
    moments = map(datetime.fromisoformat, joined.decode().split("\n"))
    counted = [(moment - _EPOCH) // _MICROSECOND for moment in moments]
    fields = list(map(_pack_long, repeat(8), counted))
    return (_spread(column, fields) if has_nulls else fields,)


def _booleans(target: Target, column: Column) -> Parts:
    kinds = set(map(type, column))
    if not kinds <= {int, bytearray, type(None)} or (type(None) in kinds and not target.nullable):
        raise IrregularError
    if bytearray in kinds:
        column = [bytes(value) if type(value) is bytearray else value for value in column]
    return (list(map(_TRUTHS.__getitem__, column)),)


def _integers(target: Target, column: Column) -> Parts:
    present, has_nulls = _present(target, column, int)
    size = target.type.size
    fields = list(map(_INTEGERS[size], repeat(size), present))
    return (_spread(column, fields) if has_nulls else fields,)


def _doubles(target: Target, column: Column) -> Parts:
    present, has_nulls = _present(target, column, float)
    fields = list(map(_pack_double, repeat(8), present))
    return (_spread(column, fields) if has_nulls else fields,)


def _identifiers(target: Target, column: Column) -> Parts:
    present, has_nulls = _present(target, column, bytearray)
    head = _pack_length(16)
    fields = [head + convert_value.uuid_bytes(value) for value in present]  # type: ignore[arg-type]
    return (_spread(column, fields) if has_nulls else fields,)


def _spread(column: Column, fields: list[bytes]) -> list[bytes]:
    """Put NULLs back where they were."""
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
