"""Repair single values as docs/export.md documents: what `--on-invalid repair` does.

A repair returns a value that the target accepts, of the class in which SQLite would store it, or it
refuses, where any repair would invent data. Callers log every value before and after.
"""

import json
import re
from collections.abc import Callable
from datetime import datetime, timedelta

from sagewai_ops.export.convert import value as convert_value
from sagewai_ops.export.convert.batch import Target, encode_value
from sagewai_ops.export.convert.value import RefusedError, Stored

REPLACEMENT = "\ufffd"  # replaces a character that the target cannot store
# What a repair does, by the kind of a finding; kinds without a repair are not in it.
EFFECTS = {
    "nul": "replace by U+FFFD",
    "invalid-utf8": "replace by U+FFFD",
    "too-long": "cut to the limit",
    "storage-class": "convert to the expected type",
    "out-of-range": "use the nearest number",
    "not-a-timestamp": "remove blanks around it",
    "timestamp-precision": "cut to microseconds",
    "not-a-boolean": "convert to true or false",
    "not-json": "store its text as a JSON string",
    "json-nan": "replace by null",
    "json-nul": "replace by U+FFFD",
    "json-surrogate": "replace by U+FFFD",
    "json-number": "store its digits as a JSON string",
    "list-element": "store its JSON as a string",
    "orphan": "set the reference to NULL",
    "duplicate": "make the key unique",
}

_TOKEN = re.compile(
    r'"(?:[^"\\]|\\.)*"|-?Infinity|NaN|-?\d[\d.eE+-]*',
    re.DOTALL,
)
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 (UTC, as every timestamp of a home)


def repair_value(target: Target, value: Stored, *, bound: bool) -> Stored:
    """Repair a value that a target refuses.

    Args:
        target: The column.
        value: As stored.
        bound: It is part of a key or a reference, which a cut value would break.

    Returns:
        A value that the target accepts.

    Raises:
        RefusedError: There is no repair.
    """
    name = target.type.name
    if name == "text":
        repaired = _repair_text(target, value, bound=bound)
    elif name == "integer":
        repaired = _repair_integer(target, value, bound=bound)
    else:
        repaired = _REPAIRS[name](target, value)
    encode_value(target, repaired)  # raises where the target refuses it still
    return repaired


def _repair_text(target: Target, value: Stored, *, bound: bool) -> Stored:
    decoded = _decode(value).replace("\0", REPLACEMENT)
    limit = target.type.size
    if limit and len(decoded) > limit:
        if bound:
            raise RefusedError("too-long", "part of a key, which cannot be cut")
        decoded = decoded[:limit]
    return _to_stored(decoded)


def _repair_document(target: Target, value: Stored) -> Stored:
    text = _decode(value).replace("\0", REPLACEMENT)
    binary = target.type.name == "jsonb"
    repaired = _TOKEN.sub(lambda token: _repair_token(token[0], binary=binary), text)
    try:
        convert_value.parse_json(repaired, numbers=binary)
    except RefusedError as error:
        if error.kind != "not-json":
            raise
        repaired = json.dumps(text)
    return _to_stored(repaired)


def _repair_token(token: str, *, binary: bool) -> str:
    if token in ("NaN", "Infinity", "-Infinity"):
        return "null"
    if not binary:
        return token
    if token.startswith('"'):
        return _repair_string(token)
    return token if convert_value.is_numeric(token) else f'"{token}"'


def _repair_string(token: str) -> str:
    """Replace the escapes that jsonb refuses: U+0000 and unpaired surrogates."""
    escapes = list(_ESCAPE.finditer(token))
    codes = [int(escape[1], 16) if escape[1] else -1 for escape in escapes]
    parts, end = [], 0
    for number, (escape, code) in enumerate(zip(escapes, codes, strict=True)):
        parts.append(token[end : escape.start()])
        end = escape.end()
        is_surrogate = 0xD800 <= code < 0xE000
        is_paired = _is_pair(escapes, codes, number) or _is_pair(escapes, codes, number - 1)
        is_valid = code != 0 and (is_paired or not is_surrogate)
        parts.append(escape[0] if is_valid else "\\ufffd")
    return "".join([*parts, token[end:]])


def _is_pair(escapes: list[re.Match[str]], codes: list[int], number: int) -> bool:
    """Return whether an escape and the next one are a pair of surrogates."""
    return (
        0 <= number < len(codes) - 1
        and 0xD800 <= codes[number] < 0xDC00
        and 0xDC00 <= codes[number + 1] < 0xE000
        and escapes[number].end() == escapes[number + 1].start()
    )


def _repair_list(_target: Target, value: Stored) -> Stored:
    text = _TOKEN.sub(lambda token: _repair_token(token[0], binary=True), _decode(value))
    try:
        elements = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RefusedError("not-a-list", "not a JSON list") from error
    if not isinstance(elements, list):
        raise RefusedError("not-a-list", "not a JSON list")
    texts = [each if isinstance(each, str) else json.dumps(each) for each in elements]
    return _to_stored(json.dumps([each.replace("\0", REPLACEMENT) for each in texts]))


def _repair_timestamp(_target: Target, value: Stored) -> Stored:
    if isinstance(value, (int, float)):
        try:
            moment = _EPOCH + timedelta(seconds=value)
        except (OverflowError, ValueError) as error:
            raise RefusedError("not-a-timestamp", "not a timestamp in Unix seconds") from error
        return _to_stored(moment.isoformat(sep=" ", timespec="microseconds"))
    return _to_stored(re.sub(r"([.,]\d{6})\d+", r"\1", _decode(value).strip()))


def _repair_boolean(_target: Target, value: Stored) -> Stored:
    if isinstance(value, (int, float)):
        return int(bool(value))  # as SQLite's own conditions evaluate it
    text = _decode(value).strip()
    return _to_stored(text) if text else 0


def _repair_integer(target: Target, value: Stored, *, bound: bool) -> Stored:
    if isinstance(value, (bytes, bytearray)):
        text = _decode(value).strip()
        if not re.fullmatch(r"[+-]?\d{1,40}", text, re.ASCII):
            raise RefusedError("storage-class", "not an integer")
        value = int(text)
    elif isinstance(value, float):
        if not value.is_integer():
            raise RefusedError("storage-class", "not an integer")
        value = int(value)
    limit = 1 << (target.type.size * 8 - 1)
    nearest = max(-limit, min(limit - 1, value))
    if nearest != value and bound:
        raise RefusedError("out-of-range", "part of a key, which cannot be changed")
    return nearest


def _repair_double(_target: Target, value: Stored) -> Stored:
    try:
        return float(_decode(value) if isinstance(value, (bytes, bytearray)) else value)
    except ValueError as error:
        raise RefusedError("storage-class", "not a number") from error


def _repair_uuid(_target: Target, value: Stored) -> Stored:
    return _to_stored(_decode(value))


def _decode(value: Stored) -> str:
    """Return a text, a blob that is UTF-8, or a number as text; bytes not UTF-8 are replaced."""
    if isinstance(value, bytearray):
        return value.decode("utf-8", "replace")
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise RefusedError("storage-class", "a blob that is not text") from error
    return repr(value)


def _to_stored(text: str) -> bytearray:
    return bytearray(text.encode())


_REPAIRS: dict[str, Callable[[Target, Stored], Stored]] = {
    "json": _repair_document,
    "jsonb": _repair_document,
    "text[]": _repair_list,
    "uuid": _repair_uuid,
    "timestamptz": _repair_timestamp,
    "boolean": _repair_boolean,
    "double": _repair_double,
}
