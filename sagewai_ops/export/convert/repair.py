"""Repairs of single values, as docs/export.md promises them: what `--on-invalid repair` does.

Each takes a value that `values` refused and gives one that it takes, of the class that SQLite would
store; or it refuses as well, where any repair would be an invention. Every repair is logged with
the value before and after by whoever calls.
"""

import json
import re
from collections.abc import Callable
from datetime import datetime, timedelta

from sagewai_ops.export.convert import value as convert_value
from sagewai_ops.export.convert.batch import Target, field
from sagewai_ops.export.convert.value import RefusedError, Stored

REPLACEMENT = "\ufffd"  # what takes the place of a character that cannot be carried

_TOKEN = re.compile(
    r'"(?:[^"\\]|\\.)*"|-?Infinity|NaN|-?\d[\d.eE+-]*',
    re.DOTALL,
)
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 (UTC, as everything in a home)
_BOOLEANS = {"yes": 1, "y": 1, "on": 1, "no": 0, "n": 0, "off": 0, "": 0}


def mend(target: Target, value: Stored, *, bound: bool) -> Stored:
    """Repair a value that a target refuses.

    Args:
        target: What it shall become.
        value: As stored.
        bound: It is part of a key or a reference, so that cutting it would break more.

    Returns:
        A value that the target takes.

    Raises:
        RefusedError: There is no honest repair.
    """
    kind = target.type.name
    if kind == "text":
        mended = _text(target, value, bound=bound)
    elif kind == "integer":
        mended = _integer(target, value, bound=bound)
    else:
        mended = _REPAIRS[kind](target, value)
    field(target, mended)  # a repair that is none must not pass as one
    return mended


def _text(target: Target, value: Stored, *, bound: bool) -> Stored:
    decoded = _decoded(value).replace("\0", REPLACEMENT)
    limit = target.type.size
    if limit and len(decoded) > limit:
        if bound:
            raise RefusedError("too-long", "is part of a key, and cannot be cut")
        decoded = decoded[:limit]
    return _stored(decoded)


def _document(target: Target, value: Stored) -> Stored:
    text = _decoded(value).replace("\0", REPLACEMENT)
    binary = target.type.name == "jsonb"
    mended = _TOKEN.sub(lambda token: _token(token[0], binary=binary), text)
    try:
        convert_value.parse(mended, numbers=binary)
    except RefusedError as error:
        if error.kind != "not-json":
            raise
        # Not a document at all: its text is kept whole, as a JSON string.
        mended = json.dumps(text)
    return _stored(mended)


def _token(token: str, *, binary: bool) -> str:
    if token in ("NaN", "Infinity", "-Infinity"):
        return "null"
    if not binary:
        return token
    if token.startswith('"'):
        return _string(token)
    return token if convert_value.is_numeric(token) else f'"{token}"'


def _string(token: str) -> str:
    """Replace the escapes that jsonb refuses: U+0000 and halves of surrogate pairs."""
    escapes = list(_ESCAPE.finditer(token))
    codes = [int(escape[1], 16) if escape[1] else -1 for escape in escapes]
    parts, end = [], 0
    for number, (escape, code) in enumerate(zip(escapes, codes, strict=True)):
        parts.append(token[end : escape.start()])
        end = escape.end()
        pair = 0xD800 <= code < 0xDC00 and _follows(escapes, codes, number)
        low = 0xDC00 <= code < 0xE000 and _follows(escapes, codes, number - 1)
        good = code != 0 and (pair or low or not 0xD800 <= code < 0xE000)
        parts.append(escape[0] if good else "\\ufffd")
    return "".join([*parts, token[end:]])


def _follows(escapes: list[re.Match[str]], codes: list[int], number: int) -> bool:
    """Tell whether a high half at a place is followed at once by a low half."""
    return (
        0 <= number < len(codes) - 1
        and 0xD800 <= codes[number] < 0xDC00
        and 0xDC00 <= codes[number + 1] < 0xE000
        and escapes[number].end() == escapes[number + 1].start()
    )


def _list(_target: Target, value: Stored) -> Stored:
    text = _TOKEN.sub(lambda token: _token(token[0], binary=True), _decoded(value))
    try:
        listed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RefusedError("not-a-list", "is no JSON list") from error
    if not isinstance(listed, list):
        raise RefusedError("not-a-list", "is no JSON list")
    words = [each if isinstance(each, str) else json.dumps(each) for each in listed]
    return _stored(json.dumps([word.replace("\0", REPLACEMENT) for word in words]))


def _moment(_target: Target, value: Stored) -> Stored:
    if isinstance(value, (int, float)):
        try:
            moment = _EPOCH + timedelta(seconds=value)
        except (OverflowError, ValueError) as error:
            raise RefusedError("not-a-timestamp", "is no moment, read as Unix seconds") from error
        return _stored(moment.isoformat(sep=" ", timespec="microseconds"))
    # Finer than a microsecond: what PostgreSQL cannot hold is left off.
    return _stored(re.sub(r"([.,]\d{6})\d+", r"\1", _decoded(value).strip()))


def _truth(_target: Target, value: Stored) -> Stored:
    if isinstance(value, (int, float)):
        return int(bool(value))  # as SQLite's own conditions read it
    word = _decoded(value).strip().lower()
    if word not in _BOOLEANS:
        raise RefusedError("not-a-boolean", "is neither true nor false")
    return _BOOLEANS[word]


def _integer(target: Target, value: Stored, *, bound: bool) -> Stored:
    if isinstance(value, (bytes, bytearray)):
        text = _decoded(value).strip()
        if not re.fullmatch(r"[+-]?\d{1,40}", text, re.ASCII):
            raise RefusedError("storage-class", "is no integer")
        value = int(text)
    elif isinstance(value, float):
        if not value.is_integer():
            raise RefusedError("storage-class", "is no integer")
        value = int(value)
    limit = 1 << (target.type.size * 8 - 1)
    within = max(-limit, min(limit - 1, value))
    if within != value and bound:
        raise RefusedError("out-of-range", "is part of a key, and cannot be changed")
    return within


def _double(_target: Target, value: Stored) -> Stored:
    try:
        return float(_decoded(value) if isinstance(value, (bytes, bytearray)) else value)
    except ValueError as error:
        raise RefusedError("storage-class", "is no number") from error


def _identifier(_target: Target, value: Stored) -> Stored:
    return _stored(_decoded(value))


def _decoded(value: Stored) -> str:
    """Read text, a blob that is text, or a number's spelling; broken bytes are replaced."""
    if isinstance(value, bytearray):
        return value.decode("utf-8", "replace")
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise RefusedError("storage-class", "is a blob that holds no text") from error
    return repr(value)


def _stored(text: str) -> bytearray:
    return bytearray(text.encode())


_REPAIRS: dict[str, Callable[[Target, Stored], Stored]] = {
    "json": _document,
    "jsonb": _document,
    "text[]": _list,
    "uuid": _identifier,
    "timestamptz": _moment,
    "boolean": _truth,
    "double": _double,
}
