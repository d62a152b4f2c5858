"""Convert the fields of PostgreSQL's COPY, text format, to values of SQLite: `value` in reverse.

A column at a time, by the same types. A value gets the form in which Sagewai itself writes it to
SQLite; one that has none there is refused, and nothing is rounded, cut or guessed.

Source: PostgreSQL's manual, COPY, Text Format; the output functions of the types, with the time
zone UTC, DateStyle ISO and extra_float_digits 1.
"""

import contextlib
import functools
import json
import re
from collections.abc import Callable, Sequence
from datetime import date
from decimal import Decimal
from typing import TypeAlias

from sagewai_ops.export.convert.batch import Type
from sagewai_ops.export.convert.value import RefusedError
from sagewai_ops.records import dataclass

Value: TypeAlias = str | int | float | None

NULL = b"\\N"
SHORT_ID = "00000000-0000-0000-0000-"  # before the twelve digits of harness rows

_LARGEST_INTEGER = 2**63 - 1
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)
_PLAIN = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d [0-2]\d:[0-5]\d:[0-5]\d(?:\.\d{1,6})?\+00", re.ASCII)
_MOMENTS = re.compile(rf"{_MOMENT.pattern}(?:\n{_MOMENT.pattern})*", re.ASCII)
_WHOLE_MOMENT = 29  # characters of one with six digits of a second
_SURE_DIGITS = 18  # that fit into 64 bits
_INTEGER = re.compile(r"-?(?:0|[1-9]\d{0,19})", re.ASCII)  # also of a text of digits: 007 is not 7
_PLAIN_INTEGERS = re.compile(r"(?:0|[1-9]\d*)(?:\n(?:0|[1-9]\d*))*", re.ASCII)
_DOUBLE = re.compile(r"-?(?:Infinity|\d+(?:\.\d+)?(?:e[+-]\d+)?)", re.ASCII)
_EXACT_CHARACTERS = 15  # a number of as many digits is another's text in no double
_PLAIN_DOUBLES = re.compile(r"\d+(?:\.\d+)?(?:\n\d+(?:\.\d+)?)*", re.ASCII)
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_UUIDS = re.compile(rf"{_UUID.pattern}(?:\n{_UUID.pattern})*", re.ASCII)
_ELEMENT = re.compile(r'(?:"((?:[^"\\]|\\.)*)"|([^{},"\\]+))(?:,(?!$)|$)', re.DOTALL)
_BOOLEANS = {"t": 1, "f": 0}
# What SQLite takes for a number in a column whose type is not one that it knows; sqlite3AtoF.
_NUMBER = re.compile(
    r"[ \t\n\v\f\r]*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)[ \t\n\v\f\r]*", re.ASCII
)
_NUMBER_BEGINS = frozenset("0123456789+-. \t\n\v\f\r")
_JSON_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?", re.ASCII)
_CACHED_CHARACTERS = 200  # of the longest list that is cached


@dataclass(frozen=True, slots=True)
class Unconvertible:
    """A field that SQLite cannot store unchanged: which row, and why."""

    row: int
    kind: str
    detail: str


def convert_column(
    kind: Type, fields: Sequence[bytes], *, is_numeric: bool = False, null: Value = None
) -> tuple[list[Value], list[Unconvertible]]:
    """Convert a column.

    Args:
        kind: The type that the column has on the server.
        fields: As COPY sends them.
        is_numeric: SQLite's column has numeric affinity: it stores the text of a number, such as
            a JSON document may be, as that number.
        null: What NULL becomes.

    Returns:
        One value for each field, None for one that is refused; and the refusals.
    """
    texts, refusals = _texts(fields)
    convert = _CONVERTERS.get(kind.name)
    if is_numeric and kind.name in _DOCUMENTS and _have_numbers(texts):
        convert = functools.partial(_numeric, kind.name)
    if convert is None:
        return [*texts], refusals
    if kind.name in _COLUMNS and not refusals:
        present = [text for text in texts if text is not None]
        with contextlib.suppress(KeyError, ValueError):  # something unusual: value by value
            converted = _COLUMNS[kind.name](present)
            if len(present) == len(texts):
                return converted, []
            each = iter(converted)
            return [null if text is None else next(each) for text in texts], []
    values: list[Value] = []
    for row, text in enumerate(texts):
        try:
            values.append(null if text is None else convert(text))
        except RefusedError as error:
            refusals.append(Unconvertible(row, error.kind, error.detail))
            values.append(None)
    return values, refusals


def _texts(fields: Sequence[bytes]) -> tuple[list[str | None], list[Unconvertible]]:
    """Undo the escapes of COPY."""
    joined = b"\n".join(fields)  # a newline in a field is escaped
    nulls = fields.count(NULL)
    with contextlib.suppress(UnicodeDecodeError):
        if joined.count(b"\\") == nulls:  # no other escape
            texts: list[str | None] = [*joined.decode().split("\n")]
            return [None if text == "\\N" else text for text in texts] if nulls else texts, []
    values: list[str | None] = []
    refusals = []
    for row, field in enumerate(fields):
        try:
            values.append(None if field == NULL else _unescaped(field).decode())
        except UnicodeDecodeError:
            refusals.append(Unconvertible(row, "invalid-utf8", "not UTF-8"))
            values.append(None)
    return values, refusals


def _unescaped(field: bytes) -> bytes:
    count = field.count(b"\\")
    if not count:
        return field
    if 2 * field.count(b"\\\\") == count:  # every run is even: only backslashes are escaped
        return field.replace(b"\\\\", b"\\")
    return _ESCAPED.sub(lambda match: _PLAIN.get(match[1], match[1]), field)


def _have_numbers(texts: Sequence[str | None]) -> bool:
    """Return whether one of the texts begins as a number may; most columns have documents."""
    return not {text[:1] for text in texts if text}.isdisjoint(_NUMBER_BEGINS)


def _numeric(kind: str, text: str) -> Value:
    """Return what SQLite makes of a text in a column of numeric affinity."""
    match = _NUMBER.fullmatch(text) if text[:1] not in '{["' else None
    if match is None:
        return text
    number = match[1]
    whole = int(number) if _INTEGER.fullmatch(number) else None
    if whole is not None and -_LARGEST_INTEGER <= whole <= _LARGEST_INTEGER:
        if str(whole) == text:
            return whole
    else:
        real = float(number)
        is_same = Decimal(repr(real)) == Decimal(number)
        if kind == "jsonb" and is_same and _JSON_NUMBER.fullmatch(text):
            return real
        if repr(real) == text and not real.is_integer():
            return real
    raise RefusedError("json-number", "a number that SQLite would store as another")


def _timestamp(text: str) -> str:
    """Convert a timestamp to the form of SQLAlchemy, which always has six digits."""
    if not _MOMENT.fullmatch(text) or not _is_day(text[:10]):
        raise RefusedError("not-a-timestamp", "not a time of the years 1 to 9999")
    return f"{text[:19]}.{text[20:-3]:0<6}"


@functools.lru_cache(maxsize=1024)
def _is_day(text: str) -> bool:
    """Return whether the calendar has a day."""
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def _boolean(text: str) -> int:
    if text not in _BOOLEANS:
        raise RefusedError("not-a-boolean", "neither true nor false")
    return _BOOLEANS[text]


def _integer(text: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise RefusedError("storage-class", "not an integer")
    value = int(text)
    if not -_LARGEST_INTEGER - 1 <= value <= _LARGEST_INTEGER:
        raise RefusedError("out-of-range", "does not fit into 64 bits")
    return value


def _double(text: str) -> float:
    if text == "NaN":
        raise RefusedError("nan", "NaN, which SQLite would store as NULL")
    if text == "-0":
        raise RefusedError("negative-zero", "-0, which SQLite would store as 0")
    if not _DOUBLE.fullmatch(text):
        raise RefusedError("storage-class", "not a number")
    value = float(text)
    # The digits are the shortest that name the double, or all that it has.
    if len(text) > _EXACT_CHARACTERS and Decimal(text) not in (
        Decimal(repr(value)),
        Decimal(value),
    ):
        raise RefusedError("storage-class", "more digits than SQLite's numbers have")
    return value


def _uuid(text: str) -> str:
    if not _UUID.fullmatch(text):
        raise RefusedError("storage-class", "not a UUID")
    return text.removeprefix(SHORT_ID)


def _list(text: str) -> str:
    return _cached_list(text) if len(text) < _CACHED_CHARACTERS else _convert_list(text)


def _convert_list(text: str) -> str:
    """Convert an array to a JSON list of strings."""
    if text[:1] != "{" or text[-1:] != "}":
        raise RefusedError("not-a-list", "an array whose indexes do not begin at 1")
    elements: list[str] = []
    place, end = 1, len(text) - 1
    while place < end:
        match = _ELEMENT.match(text, place, end)
        if match is None:
            raise RefusedError("not-a-list", "an array of several dimensions")
        if match[2] == "NULL":
            raise RefusedError("list-element", "an element is NULL")
        elements.append(
            re.sub(r"\\(.)", r"\1", match[1], flags=re.DOTALL) if match[1] is not None else match[2]
        )
        place = match.end()
    return json.dumps(elements)


# Whole columns without NULL, of the usual form. KeyError, ValueError: one value has another.


def _lines(texts: Sequence[str]) -> str:
    joined = "\n".join(texts)
    if joined.count("\n") != len(texts) - 1:
        raise ValueError("a text of several lines")
    return joined


def _timestamps(texts: Sequence[str]) -> list[Value]:
    if not _MOMENTS.fullmatch(_lines(texts)) or not all(map(_is_day, {t[:10] for t in texts})):
        raise ValueError("not timestamps")
    return [
        text[:26] if len(text) == _WHOLE_MOMENT else f"{text[:19]}.{text[20:-3]:0<6}"
        for text in texts
    ]


def _integers(texts: Sequence[str]) -> list[Value]:
    if max(map(len, texts), default=0) > _SURE_DIGITS:
        raise ValueError("not plain integers")
    if not _PLAIN_INTEGERS.fullmatch(_lines(texts)):
        raise ValueError("not plain integers")
    return list(map(int, texts))


def _doubles(texts: Sequence[str]) -> list[Value]:
    if not _PLAIN_DOUBLES.fullmatch(_lines(texts)):
        raise ValueError("not plain numbers")
    values: list[Value] = [*map(float, texts)]
    longest = max(map(len, texts), default=0)
    if longest > _EXACT_CHARACTERS and [*map(repr, values)] != [*texts]:
        for text, value in zip(texts, values, strict=True):
            if len(text) > _EXACT_CHARACTERS and repr(value) != text:
                raise ValueError("perhaps more digits than a number has")
    return values


def _booleans(texts: Sequence[str]) -> list[Value]:
    return [_BOOLEANS[text] for text in texts]


def _uuids(texts: Sequence[str]) -> list[Value]:
    if not _UUIDS.fullmatch(_lines(texts)):
        raise ValueError("not UUIDs")
    return [text.removeprefix(SHORT_ID) for text in texts]


_cached_list = functools.lru_cache(maxsize=256)(_convert_list)  # the same few occur in every row
_DOCUMENTS = ("text", "json", "jsonb")
_CONVERTERS: dict[str, Callable[[str], Value]] = {
    "text[]": _list,
    "uuid": _uuid,
    "timestamptz": _timestamp,
    "boolean": _boolean,
    "integer": _integer,
    "double": _double,
}
_COLUMNS: dict[str, Callable[[Sequence[str]], list[Value]]] = {
    "uuid": _uuids,
    "timestamptz": _timestamps,
    "boolean": _booleans,
    "integer": _integers,
    "double": _doubles,
}
