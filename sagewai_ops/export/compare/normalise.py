"""Comparison of stored values with the server's text output, a column at a time.

`differing` first compares whole columns with operations that run in C; only a column that is not
plainly equal is compared value by value.

Source: PostgreSQL's manual, COPY, Text Format; the output functions of the types, with the time
zone UTC, DateStyle ISO and extra_float_digits 1.
"""

import functools
import json
import re
import struct
import uuid
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

from sagewai_ops.export.convert.batch import Column, Type

NULL = b"\\N"
_DOCUMENTS_AT_ONCE = 25  # of those whose texts differ; more exceed the CPU cache
_CACHED_BYTES = 200  # the longest list that is cached
_SPECIAL = b"\\\b\f\n\r\t\v"
_ESCAPES = {
    b"\\": b"\\\\",
    b"\b": b"\\b",
    b"\f": b"\\f",
    b"\n": b"\\n",
    b"\r": b"\\r",
    b"\t": b"\\t",
    b"\v": b"\\v",
}
_PLAIN = {escape: character for character, escape in _ESCAPES.items()}
_ESCAPED = re.compile(rb"\\[\\bfnrtv]")
_QUOTED = re.compile(r'[{},"\\ \t\n\v\f\r]')  # array_needs_quote of arrayfuncs.c
_ZONE = re.compile(r"\s*(?:(Z)|([+-]\d\d):?(\d\d)?:?(\d\d)?)$", re.IGNORECASE)
_NO_UUIDS = uuid.uuid5(uuid.NAMESPACE_URL, "https://sagewai-ops.invalid/ids-that-are-no-uuids")
_UUID = re.compile(r"(\{)?([0-9a-f]{4}(?:-?[0-9a-f]{4}){7})(?(1)\})", re.IGNORECASE)


def _number(text: str) -> tuple[Decimal]:
    return (Decimal(text),)


# Numbers as bytes: nothing else in a document is bytes, so 1 does not equal true.
_literal = json.JSONDecoder(parse_int=str.encode, parse_float=str.encode).decode
# Numbers as tuples, for the same reason: 1e2 equals 100, and neither equals true.
_exact = json.JSONDecoder(parse_int=_number, parse_float=_number).decode


def differing(kind: Type, sources: Column, targets: Sequence[bytes]) -> list[int]:
    """Find the rows in which a column differs.

    Args:
        kind: The target's type.
        sources: As stored.
        targets: In the text format of COPY, NULL and escapes included.

    Returns:
        The indexes of the rows that differ, empty when the columns are equal.
    """
    kinds = set(map(type, sources))
    if type(None) not in kinds:
        return _differing(kind, sources, targets, None)
    if kinds == {type(None)} and targets.count(NULL) == len(targets):
        return []
    places = []
    found = []
    for place, (source, target) in enumerate(zip(sources, targets, strict=True)):
        if source is not None and target != NULL:
            places.append(place)
        elif source is not None or target != NULL:
            found.append(place)
    if places:
        present = [sources[place] for place in places]
        found += _differing(kind, present, [targets[place] for place in places], places)
    found = [place for place in found if not _is_no_list(kind, sources[place], targets[place])]
    return sorted(found)


def differing_lists(sources: Column, targets: Sequence[bytes]) -> list[int]:
    """Find the rows in which a column of lists differs from arrays, as COPY itself sends them."""
    return [
        place
        for place, (source, target) in enumerate(zip(sources, targets, strict=True))
        if (NULL if source is None else array_text(bytes(source))) != target  # type: ignore[arg-type]
    ]


def array_text(document: bytes) -> bytes:
    """Return a list of strings as array_out and COPY write it."""
    return _short_array(document) if len(document) < _CACHED_BYTES else _write_array(document)


def _write_array(document: bytes) -> bytes:
    elements = json.loads(document)
    if elements is None:
        return NULL  # where the home has no NULL
    return escaped(f"{{{','.join(map(_element, elements))}}}".encode())


_short_array = functools.lru_cache(maxsize=256)(_write_array)  # the same few occur in every row


def _element(text: str) -> str:
    if text and text.upper() != "NULL" and not _QUOTED.search(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def unescaped(value: bytes) -> bytes:
    """Undo the escapes of COPY."""
    count = value.count(b"\\")
    if not count:
        return value
    if 2 * value.count(b"\\\\") == count:  # every run is even: only backslashes are escaped
        return value.replace(b"\\\\", b"\\")
    return _ESCAPED.sub(lambda match: _PLAIN[match[0]], value)


def escaped(value: bytes | bytearray) -> bytes:
    """Escape a text as COPY does."""
    if len(value.translate(None, _SPECIAL)) == len(value):
        return bytes(value)
    for character, escape in _ESCAPES.items():
        value = value.replace(character, escape)
    return bytes(value)


def _differing(
    kind: Type, sources: Column, targets: Sequence[bytes], places: list[int] | None
) -> list[int]:
    try:
        if _COLUMNS[kind.name](sources, targets):
            return []
    except (KeyError, RecursionError, TypeError, ValueError, struct.error):
        pass  # something unusual: compare value by value
    same = _VALUES[kind.name]
    return [
        places[place] if places else place
        for place, (source, target) in enumerate(zip(sources, targets, strict=True))
        if not (_is_no_list(kind, source, target) if target == NULL else same(source, target))
    ]


def _is_no_list(kind: Type, source: object, target: bytes) -> bool:
    """Return whether a list is the JSON null, which is NULL in text[]."""
    is_null = isinstance(source, bytearray) and source.strip() == b"null"
    return kind.name == "text[]" and is_null and target == NULL


# Whole columns: True when they are plainly equal.


def _texts_equal(sources: Column, targets: Sequence[bytes]) -> bool:
    joined = b"\t".join(sources)  # type: ignore[arg-type]
    if len(joined.translate(None, _SPECIAL)) == len(joined) - (len(sources) - 1):
        return joined == b"\t".join(targets)  # no tab but those between
    return list(map(escaped, sources)) == list(targets)  # type: ignore[arg-type]


def _documents_equal(sources: Column, targets: Sequence[bytes]) -> bool:
    pairs = [
        (source, target)
        for source, target in zip(sources, targets, strict=True)
        if source != target or b"\\" in target  # a backslash is escaped with another
    ]
    for first in range(0, len(pairs), _DOCUMENTS_AT_ONCE):
        met, expected = zip(*pairs[first : first + _DOCUMENTS_AT_ONCE], strict=True)
        left = b",".join(met)
        right = b",".join(expected).replace(b"\\\\", b"\\")
        if left != right and _literal(f"[{left.decode()}]") != _literal(f"[{right.decode()}]"):
            return False
    return True


def _integers_equal(sources: Column, targets: Sequence[bytes]) -> bool:
    return list(map(int, targets)) == list(sources)


def _doubles_equal(sources: Column, targets: Sequence[bytes]) -> bool:
    # As bits: 0.0 is not -0.0 here.
    layout = f"<{len(sources)}d"
    return struct.pack(layout, *sources) == struct.pack(layout, *map(float, targets))


def _booleans_equal(sources: Column, targets: Sequence[bytes]) -> bool:
    texts = {0: b"f", 1: b"t", b"false": b"f", b"true": b"t"}
    return [
        texts[source if type(source) is int else bytes(source)]  # type: ignore[arg-type]
        for source in sources
    ] == list(targets)


def _moments_equal(sources: Column, targets: Sequence[bytes]) -> bool:
    joined = b"\n".join(sources).decode()  # type: ignore[arg-type]
    if not {len(source) for source in sources} <= {19, 26}:  # type: ignore[arg-type]
        return False
    texts = [
        (moment if len(moment) == 19 else moment.rstrip("0").rstrip(".")) + "+00"
        for moment in joined.split("\n")
    ]
    return texts == b"\n".join(targets).decode().split("\n")


def _uuids_equal(sources: Column, targets: Sequence[bytes]) -> bool:
    return all(map(_same_uuid, sources, targets))


# Single values, neither of them NULL.


def _same_text(source: Any, target: bytes) -> bool:
    if isinstance(source, (int, float)):
        return repr(source).encode() == unescaped(target)
    return isinstance(source, bytearray) and source == unescaped(target)


def _same_document(source: Any, target: bytes) -> bool:
    text = source.decode() if isinstance(source, bytearray) else repr(source)
    stored = unescaped(target).decode()
    try:
        return bool(_exact(text) == _exact(stored))
    except RecursionError:
        return bool(text == stored)  # nested too deep to parse: compare the texts


def _same_list(source: Any, target: bytes) -> bool:
    expected = json.loads(source.decode())
    return bool((expected or []) == json.loads(unescaped(target)))


def _same_uuid(source: Any, target: bytes) -> bool:
    name = source.decode()
    if len(name) == 12 and not name.strip("0123456789abcdef"):
        return f"00000000-0000-0000-0000-{name}".encode() == target
    if match := _UUID.fullmatch(name):
        return bool(match[2].replace("-", "").lower().encode() == target.replace(b"-", b""))
    return str(uuid.uuid5(_NO_UUIDS, name)).encode() == target


def _same_moment(source: Any, target: bytes) -> bool:
    return _moment(source.decode()) == _moment(target.decode())


def _moment(text: str) -> datetime:
    zone = "+00:00"
    if match := (_ZONE.search(text) if len(text) > 10 else None):
        text = text[: match.start()]
        if match[2]:
            zone = f"{match[2]}:{match[3] or '00'}:{match[4] or '00'}"
    text = text.upper().replace("T", " ").replace(",", ".")
    day, _, time = text.partition(" ")
    clock, _, fraction = (time or "00:00:00").partition(".")
    if clock.count(":") == 1:
        clock += ":00"
    # 24:00:00 and second 60 are the next day and minute.
    rollover = timedelta(days=clock.startswith("24:"), seconds=clock.endswith(":60"))
    clock = clock.replace("24:", "00:", rollover.days).replace(":60", ":59")
    moment = datetime.fromisoformat(f"{day}T{clock}.{fraction[:6].ljust(6, '0')}{zone}")
    return (moment + rollover).astimezone(timezone.utc)


def _same_truth(source: Any, target: bytes) -> bool:
    if isinstance(source, bytearray):
        word = bytes(source).strip().lower()
        source = word[:1] in b"ty1" or word == b"on"
    return target == (b"t" if source else b"f")


def _same_integer(source: Any, target: bytes) -> bool:
    return isinstance(source, int) and int(target) == source


def _same_double(source: Any, target: bytes) -> bool:
    return struct.pack("<d", source) == struct.pack("<d", float(target))


_COLUMNS: dict[str, Callable[[Column, Sequence[bytes]], bool]] = {
    "text": _texts_equal,
    "json": _texts_equal,
    "jsonb": _documents_equal,
    "text[]": _documents_equal,
    "uuid": _uuids_equal,
    "timestamptz": _moments_equal,
    "boolean": _booleans_equal,
    "integer": _integers_equal,
    "double": _doubles_equal,
}
_VALUES: dict[str, Callable[[Any, bytes], bool]] = {
    "text": _same_text,
    "json": _same_text,
    "jsonb": _same_document,
    "text[]": _same_list,
    "uuid": _same_uuid,
    "timestamptz": _same_moment,
    "boolean": _same_truth,
    "integer": _same_integer,
    "double": _same_double,
}
