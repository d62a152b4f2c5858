"""What PostgreSQL makes of a value that SQLite holds, by the type of the column there.

SQLite puts any value into any column. `judge` gives the verdict on one value, exactly; None means
that it arrives as it is. The scan of a whole home asks it only about values that a cheap filter in
SQL does not clear (`prefilter`), and the filter may never clear what `judge` would not.
"""

from __future__ import annotations

import functools
import re
import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from sagewai_ops.schema.json_values import (
    NOT_UTF8,
    NUL,
    Verdict,
    judge_json,
    judge_list,
    parse,
)
from sagewai_ops.schema.postgres_head import index_entries

if TYPE_CHECKING:
    from sqlalchemy import Column

# A btree entry of PostgreSQL holds at most 2704 bytes (a third of a page), its header among them;
# a larger text goes in only if it happens to compress to that.
INDEX_BYTES = 2600
INTEGER_MIN, INTEGER_MAX = -(2**31), 2**31 - 1

BOOLEAN_WORDS = frozenset(("true", "false", "t", "f", "1", "0", "yes", "no", "y", "n", "on", "off"))
_STAMP = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)"
    r"(?:[ T](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,12}))?)?(Z|[+-]\d\d(?::?\d\d)?)?)?",
    re.ASCII,
)
_UTC = ("", "Z", "+00", "+0000", "+00:00", "-00:00")

BLOB = Verdict("refused", "is a blob, not text")
A_NUMBER = Verdict("refused", "is a number, not text")
NOT_A_NUMBER = Verdict("refused", "is no number")
NOT_WHOLE = Verdict("refused", "is no whole number")
TOO_LARGE = Verdict("refused", "is beyond 32 bits")
NOT_BOOLEAN = Verdict("refused", "is neither true nor false")
TEXT_BOOLEAN = Verdict("changed", "is a text and not 0 or 1; Sagewai reads 'false' as true")
NOT_A_STAMP = Verdict("refused", "is no timestamp")
OFFSET_STAMP = Verdict("changed", "is a timestamp with an offset, which becomes UTC")
ROLLED_STAMP = Verdict("changed", "is a timestamp at 24:00 or :60, which becomes the next moment")
FINE_STAMP = Verdict("changed", "is a timestamp finer than microseconds")
NOT_A_UUID = Verdict("refused", "is no UUID")
OTHER_UUID = Verdict("changed", "is a UUID in another spelling")
INDEXED_LONG = Verdict("refused", f"is indexed and longer than {INDEX_BYTES} bytes")
SPACES_CUT = Verdict("changed", "ends in spaces beyond the length, which are cut off")


class Text(bytes):
    """A TEXT as SQLite holds it, UTF-8 or not; a BLOB comes as plain bytes."""

    __slots__ = ()


Stored = None | int | float | bytes | Text


@dataclass(frozen=True, slots=True)
class Target:
    """A column as PostgreSQL has it.

    Attributes:
        type: In PostgreSQL's words, without a length.
        length: Of a `character varying`, in characters; 0 without a limit.
        required: NULL is no value for it, there or in a fresh home.
        indexed: It stands in an index there; of a list, each element does.
        any_number: SQLite's affinity may have made a number of the text; that is no fault.
    """

    type: str
    length: int = 0
    required: bool = False
    indexed: bool = False
    any_number: bool = False


def target_of(column: Column[object]) -> Target:
    """Read off the metadata what a column is on PostgreSQL."""
    from sqlalchemy import JSON
    from sqlalchemy.dialects import postgresql

    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    spelled = column.type.compile(dialect=dialect).lower()
    match = re.fullmatch(r"varchar\((\d+)\)", spelled)
    indexed = any(column.name in entry for entry in index_entries()[column.table.name])
    return Target(
        "character varying" if match else spelled.replace("float", "double precision"),
        int(match[1]) if match else 0,
        not column.nullable,
        indexed,
        isinstance(column.type, JSON),
    )


def judge(target: Target, value: Stored) -> Verdict | None:
    """Say why a value does not arrive on PostgreSQL as it is; None if it does."""
    if value is None:
        return Verdict("refused", "is NULL where none is allowed") if target.required else None
    return _JUDGES[target.type](target, value)


def _text(target: Target, value: Stored) -> Verdict | None:
    if not isinstance(value, Text):
        if isinstance(value, bytes):
            return BLOB
        return None if target.any_number else A_NUMBER
    try:
        characters = len(value.decode("utf-8"))
    except UnicodeDecodeError:
        return NOT_UTF8
    if value.count(0):
        return NUL
    if target.length and characters > target.length:
        if len(value.decode("utf-8").rstrip(" ")) <= target.length:
            return SPACES_CUT
        return _longer(target.length)
    return INDEXED_LONG if target.indexed and len(value) > INDEX_BYTES else None


@functools.cache
def _longer(length: int) -> Verdict:
    return Verdict("refused", f"is longer than {length} characters")


def _integer(_target: Target, value: Stored) -> Verdict | None:
    if isinstance(value, float) and not value.is_integer():
        return NOT_WHOLE
    if not isinstance(value, (int, float)):
        return NOT_A_NUMBER
    return None if INTEGER_MIN <= value <= INTEGER_MAX else TOO_LARGE


def _bigint(_target: Target, value: Stored) -> Verdict | None:
    if isinstance(value, float):
        # 2.0**63 is the first float beyond.
        return None if value.is_integer() and -(2.0**63) <= value < 2.0**63 else NOT_WHOLE
    return None if isinstance(value, int) else NOT_A_NUMBER


def _double(_target: Target, value: Stored) -> Verdict | None:
    return None if isinstance(value, (int, float)) else NOT_A_NUMBER


def _boolean(_target: Target, value: Stored) -> Verdict | None:
    if isinstance(value, Text):
        word = value.decode("utf-8", "replace").strip().lower()
        return TEXT_BOOLEAN if word in BOOLEAN_WORDS else NOT_BOOLEAN
    return None if isinstance(value, (int, float)) and value in (0, 1) else NOT_BOOLEAN


def _stamp(_target: Target, value: Stored) -> Verdict | None:
    if not isinstance(value, Text):
        return NOT_A_STAMP
    match = _STAMP.fullmatch(value.decode("utf-8", "replace"))
    if match is None:
        return NOT_A_STAMP
    year, month, day, hour, minute, second = (int(part or 0) for part in match.groups()[:6])
    rolled = (hour, minute, second) == (24, 0, 0) or second == 60
    try:
        datetime(year, month, day, 0 if hour == 24 and rolled else hour, minute, second % 60)  # noqa: DTZ001 - only whether it exists
    except ValueError:
        return NOT_A_STAMP
    if rolled:
        return ROLLED_STAMP if not (match[7] or "").strip("0") else NOT_A_STAMP
    offset = match[8] or ""
    if offset not in _UTC:
        hours, minutes = int(offset[1:3]), int(offset[3:].lstrip(":") or "0")
        return OFFSET_STAMP if hours <= 14 and minutes < 60 else NOT_A_STAMP
    return FINE_STAMP if (match[7] or "")[6:].strip("0") else None


def _uuid(_target: Target, value: Stored) -> Verdict | None:
    if not isinstance(value, Text):
        return BLOB if isinstance(value, bytes) else NOT_A_UUID
    spelled = value.decode("utf-8", "replace")
    try:
        canonical = str(uuid.UUID(spelled))
    except ValueError:
        return NOT_A_UUID
    return None if canonical == spelled else OTHER_UUID


def _json(_target: Target, value: Stored) -> Verdict | None:
    return judge_json(_as_text(value), binary=False) if _is_json(value) else BLOB


def _jsonb(_target: Target, value: Stored) -> Verdict | None:
    return judge_json(_as_text(value), binary=True) if _is_json(value) else BLOB


def _list(target: Target, value: Stored) -> Verdict | None:
    if not _is_json(value):
        return BLOB
    verdict = judge_list(_as_text(value))
    if verdict is None and target.indexed and len(_as_text(value)) > INDEX_BYTES:
        elements = parse(_as_text(value))
        if isinstance(elements, list) and any(
            len(str(element).encode()) > INDEX_BYTES for element in elements
        ):
            return INDEXED_LONG
    return verdict


def _is_json(value: Stored) -> bool:
    return isinstance(value, (Text, int, float))


def _as_text(value: Stored) -> bytes:
    """Give a number that SQLite made of a JSON text its text again; infinity becomes no JSON."""
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return b"Infinity"
    return value if isinstance(value, bytes) else repr(value).encode("ascii")


_JUDGES = {
    "text": _text,
    "character varying": _text,
    "integer": _integer,
    "bigint": _bigint,
    "double precision": _double,
    "boolean": _boolean,
    "timestamp with time zone": _stamp,
    "uuid": _uuid,
    "json": _json,
    "jsonb": _jsonb,
    "text[]": _list,
}
