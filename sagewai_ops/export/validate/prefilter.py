"""A fast filter that accepts nearly all values of a home, so that few are converted one by one.

It has two parts. SQL checks storage class, range, length and the validity of JSON. The rest, which
SQL cannot see or checks slowly, is checked on the joined bytes of many rows at once: invalid UTF-8,
NUL, timestamps that do not exist, and what `jsonb` refuses. Every value that both parts accept,
`convert.value` accepts too, unchanged; tests/export/test_home_values.py verifies that.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from datetime import datetime

from sagewai_ops.export.convert.batch import Target

# A btree entry of PostgreSQL has at most 2704 bytes (a third of a page), its header included; a
# larger text fits only if it compresses to that.
INDEX_BYTES = 2600

# Timestamps with every digit as 0: the two forms that Sagewai writes.
_TIMESTAMPS = {b"0000-00-00 00:00:00", b"0000-00-00 00:00:00.000000"}
_TIMESTAMP_BYTES = 26  # two of them in one text would be longer
_DIGITS_TO_0 = bytes.maketrans(b"123456789", b"000000000")
_LATE_MINUTE = re.compile(rb":[6-9]")

# Digits become 0, a character that can precede a number a colon, a capital E a small one: then one
# search finds every number with an exponent. A search by `re` is faster here than one by `in`.
_SHAPES = bytes.maketrans(b"123456789. \t\r\n,[E", b"0000000000::::::e")
# With an exponent of four digits, a number of fewer digits than these is within numeric's range.
_EXPONENT = re.compile(rb"0e[-+]?00000")
_DIGITS = b"0" * 6_000
_ESCAPE = re.compile(  # of NUL, or of an unpaired surrogate
    rb"\\u(?:0000|[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2}\\u)[dD][c-fC-F])"
)
_LISTS = re.compile(  # of plain strings, one list on each line
    rb"(?:\[(?:\"[^\"\\\x00-\x1f]*\"(?:, ?\"[^\"\\\x00-\x1f]*\")*)?\]\n)*"
)
_EXACT_IN_DOUBLE = 2**53  # an integer up to here is exact in double precision


def sql_condition(column: str, target: Target) -> str:
    """Return the SQL condition that accepts a value.

    Args:
        column: Quoted.
        target: The column in PostgreSQL.
    """
    condition = _condition(column, target)
    return f"({column} IS NULL OR {condition})" if target.nullable else condition


def bytes_filter(target: Target) -> Callable[[bytes], bool] | None:
    """Return the function that checks the joined texts of a column; None if SQL checks all."""
    return _BY_TYPE.get(target.type.name)


def is_limited(target: Target) -> bool:
    """Return whether `sql_condition` limits the bytes of a text."""
    return bool(target.type.size) or target.type.name == "timestamptz"


def fits_indexes(columns: Sequence[str]) -> str:
    """Return the SQL condition that an index entry of any of these columns is small enough."""
    # They are bytes of the database's encoding: two of UTF-16 are up to three of UTF-8.
    size = " + ".join(f"ifnull({_bytes(column)}, 0)" for column in columns)
    return f"{size} <= {INDEX_BYTES // 2}"


def accepts_texts(joined: bytes) -> bool:
    """Return whether many texts are UTF-8 and without NUL."""
    if b"\0" in joined:
        return False
    if joined.isascii():
        return True
    try:
        joined.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def accepts_documents(joined: bytes) -> bool:
    """Return whether `jsonb` can store everything in many valid JSON texts."""
    return accepts_texts(joined) and not _ESCAPE.search(joined) and not _has_extreme_number(joined)


def accepts_lists(joined: bytes) -> bool:
    """Return whether all texts, each on a line, are lists of strings without escapes."""
    return _LISTS.fullmatch(joined + b"\n") is not None and accepts_texts(joined)


def accepts_timestamps(joined: bytes) -> bool:
    """Return whether all texts, each on a line, are existing timestamps in Sagewai's forms."""
    if not _TIMESTAMPS.issuperset(joined.translate(_DIGITS_TO_0).split(b"\n")):
        return False
    if _LATE_MINUTE.search(joined):
        return False
    # A year has 8760 hours: few differ.
    return all(map(_is_hour, {line[:13] for line in joined.split(b"\n")}))


@functools.lru_cache(maxsize=100_000)
def _is_hour(text: bytes) -> bool:
    """Return whether `YYYY-MM-DD HH` exists."""
    try:
        datetime(int(text[:4]), int(text[5:7]), int(text[8:10]), int(text[11:]))  # noqa: DTZ001 - only whether it exists
    except ValueError:
        return False
    return True


def _has_extreme_number(joined: bytes) -> bool:
    """Return whether a number may be outside the range of numeric."""
    shapes = joined.translate(_SHAPES)
    if _DIGITS in shapes:
        return True
    for match in _EXPONENT.finditer(shapes):
        # Within the digits of a hash, a letter precedes.
        start = match.start()
        while start >= 0 and shapes[start] in b"0-":
            start -= 1
        if start < 0 or shapes[start] == ord(":"):
            return True
    return False


def _condition(column: str, target: Target) -> str:
    # SQLite sorts numbers before texts and those before blobs: comparing with an empty text or blob
    # tests the storage class at a fraction of the cost of `typeof`.
    name, size = target.type.name, target.type.size
    is_text, is_integer = f"{column} >= '' AND {column} < x''", f"typeof({column}) = 'integer'"
    if name == "integer":
        limit = 1 << (size * 8 - 1)
        between = f"{column} BETWEEN {-limit} AND {limit - 1} AND " if size < 8 else ""
        return f"({between}{is_integer})"
    return {
        "text": f"({is_text} AND {_bytes(column)} <= {size})" if size else f"({column} < x'')",
        "json": f"(({is_text} AND json_valid({column})) OR {is_integer})",
        "jsonb": f"(({is_text} AND json_valid({column})) OR {is_integer})",
        # Each is on a line of the joined texts, so none may contain two lines.
        "text[]": f"({is_text} AND instr({column}, char(10)) = 0)",
        "timestamptz": f"({is_text} AND {_bytes(column)} <= {_TIMESTAMP_BYTES})",
        "double": f"({column} BETWEEN {-_EXACT_IN_DOUBLE} AND {_EXACT_IN_DOUBLE}"
        f" OR typeof({column}) = 'real')",
        "boolean": f"({column} BETWEEN 0 AND 1 AND {is_integer})",
        # GLOB ignores what follows a NUL.
        "uuid": f"({is_text} AND {column} GLOB '{_UUID}' AND {_bytes(column)} = 36)",
    }[name]


def _bytes(column: str) -> str:
    """Return the SQL for the bytes of a text; `length` of a text counts, and only up to a NUL."""
    return f"length(CAST({column} AS BLOB))"


_HEX = "[0-9a-f]"
_UUID = "-".join(_HEX * digits for digits in (8, 4, 4, 4, 12))

_BY_TYPE: dict[str, Callable[[bytes], bool]] = {
    "text": accepts_texts,
    "json": accepts_texts,
    "jsonb": accepts_documents,
    "text[]": accepts_lists,
    "timestamptz": accepts_timestamps,
}
