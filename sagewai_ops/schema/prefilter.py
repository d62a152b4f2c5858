"""A cheap filter that clears nearly all values, so that few are judged one by one.

In two halves. In SQL: storage class, range, length, validity of JSON. On bytes, for what SQL
cannot see or is slow at: the texts of thousands of rows are joined and looked through at once for
invalid UTF-8, NUL, hours that do not exist, and what `jsonb` does not keep. Law: what both
halves clear, `values.judge` clears too; tests/test_schema_values.py holds them to it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from datetime import datetime

from sagewai_ops.schema.values import INDEX_BYTES, INTEGER_MAX, INTEGER_MIN, Target

# Timestamps with every digit as 0: the two forms that Sagewai writes.
_STAMPS = {b"0000-00-00 00:00:00", b"0000-00-00 00:00:00.000000"}
_STAMP_BYTES = 26  # two of them in one text would be longer
_DIGITS_TO_0 = bytes.maketrans(b"123456789", b"000000000")
_LATE_MINUTE = re.compile(rb":[6-9]")

# Digits become 0, what may stand before a number becomes a colon, a capital E a small one: then one
# search finds every number with an exponent. A search by `re` is faster here than one by `in`.
_SHAPES = bytes.maketrans(b"123456789. \t\r\n,[E", b"0000000000::::::e")
# An exponent that is not negative makes an integer of a float; one of five digits is out of range.
# `\\u65e5` is no number: a `u` stands up to four characters before the `e`.
_EXPONENT = re.compile(rb"0e(?<!u0e)(?<!u00e)(?<!u000e)(?:[0+]|-00000)")
# With an exponent of four digits, a shorter number stays within numeric's scale of 16,383.
_DIGITS = b"0" * 6_000
# `-0` alone is an integer, and no group of a UUID looks like these.
_NEGATIVE_ZERO = re.compile(rb"-0(?:\.0*(?![0-9.])|[eE]-)")
_ESCAPE = re.compile(  # of NUL, or of one half of a surrogate pair without the other
    rb"\\u(?:0000|[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2}\\u)[dD][c-fC-F])"
)
_LISTS = re.compile(  # of plain strings, one list on each line
    rb"(?:\[(?:\"[^\"\\\x00-\x1f]*\"(?:, ?\"[^\"\\\x00-\x1f]*\")*)?\]\n)*"
)


def clears(column: str, target: Target) -> str:
    """Spell the SQL condition that clears a value: true only if its storage and shape are right.

    Args:
        column: As it stands in SQL, quoted.
        target: What it is on PostgreSQL.
    """
    condition = _condition(column, target)
    return condition if target.required else f"({column} IS NULL OR {condition})"


def clears_joined(target: Target) -> Callable[[bytes], bool] | None:
    """Give what looks through the joined texts of a column; None if `clears` says it all."""
    return _BY_TYPE.get(target.type)


def weighs_little(columns: Sequence[str]) -> str:
    """Spell the SQL condition that an entry of an index holds these columns, or any of them."""
    weight = " + ".join(f"ifnull({_bytes(column)}, 0)" for column in columns)
    return f"{weight} <= {INDEX_BYTES // 2}"


def is_limited(target: Target) -> bool:
    """Tell whether `clears` limits the bytes of a text."""
    if target.type in ("text", "character varying"):
        return bool(target.length or target.indexed)
    return target.type == "timestamp with time zone"


def clears_text(joined: bytes) -> bool:
    """Clear many texts at once: all are UTF-8, none holds NUL."""
    if b"\0" in joined:
        return False
    if joined.isascii():
        return True
    try:
        joined.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def clears_documents(joined: bytes) -> bool:
    """Clear many JSON texts, valid ones, at once: `jsonb` keeps everything in them."""
    return (
        clears_text(joined)
        and not _ESCAPE.search(joined)
        and not _NEGATIVE_ZERO.search(joined)
        and not _has_exponent(joined)
    )


def clears_lists(joined: bytes) -> bool:
    """Clear many lists at once, each on its line: of strings alone, without escapes."""
    return _LISTS.fullmatch(joined + b"\n") is not None and clears_text(joined)


def clears_stamps(joined: bytes) -> bool:
    """Clear many timestamps at once, each on its line: in Sagewai's forms, of hours that exist."""
    if not _STAMPS.issuperset(joined.translate(_DIGITS_TO_0).split(b"\n")):
        return False
    if _LATE_MINUTE.search(joined):
        return False
    # A year has 8760 hours: few remain to be looked at.
    return all(map(_is_hour, {line[:13] for line in joined.split(b"\n")}))


@functools.lru_cache(maxsize=100_000)
def _is_hour(text: bytes) -> bool:
    """Tell whether `YYYY-MM-DD HH` exists."""
    try:
        datetime(int(text[:4]), int(text[5:7]), int(text[8:10]), int(text[11:]))  # noqa: DTZ001 - only whether it exists
    except ValueError:
        return False
    return True


def _has_exponent(joined: bytes) -> bool:
    """Find a number that may become an integer, or be out of range."""
    shapes = joined.translate(_SHAPES)
    if _DIGITS in shapes:
        return True
    for match in _EXPONENT.finditer(shapes):
        # Among the hex digits of a hash, something else than a separator stands before.
        place = match.start()
        while place >= 0 and shapes[place] in b"0-":
            place -= 1
        if place < 0 or shapes[place] == ord(":"):
            return True
    return False


def _condition(column: str, target: Target) -> str:
    # SQLite sorts NULL before numbers, those before texts and those before blobs: a comparison with
    # an empty text or blob tells the storage class at a fraction of what `typeof` costs.
    kind, is_number, is_text = target.type, f"{column} < ''", f"{column} >= '' AND {column} < x''"
    if kind in ("text", "character varying"):
        return f"({is_text}{_limit(column, target)}" + (
            f" OR {is_number})" if target.any_number else ")"
        )
    return {
        "json": f"(({is_text} AND json_valid({column})) OR typeof({column}) = 'integer')",
        "jsonb": f"(({is_text} AND json_valid({column})) OR typeof({column}) = 'integer')",
        # Each stands on its line of those joined, so none may hold two lines.
        "text[]": f"({is_text} AND instr({column}, char(10)) = 0{_limit(column, target)})",
        "timestamp with time zone": f"({is_text} AND {_bytes(column)} <= {_STAMP_BYTES})",
        "integer": f"({column} BETWEEN {INTEGER_MIN} AND {INTEGER_MAX}"
        f" AND {column} = CAST({column} AS INTEGER))",
        "bigint": f"({is_number} AND {column} = CAST({column} AS INTEGER))",
        "double precision": f"({is_number})",
        "boolean": f"({column} = 0 OR {column} = 1)",
        # GLOB sees nothing behind a NUL.
        "uuid": f"({is_text} AND {column} GLOB '{_UUID}' AND {_bytes(column)} = 36)",
    }[kind]


def _limit(column: str, target: Target) -> str:
    """Limit a text by its bytes, of which a character has at least one.

    They are bytes of the database's encoding: two in UTF-16 are up to three in UTF-8.
    """
    limits = [target.length] if target.length else []
    if target.indexed:
        limits.append(INDEX_BYTES // 2)
    return f" AND {_bytes(column)} <= {min(limits)}" if limits else ""


def _bytes(column: str) -> str:
    """Spell the length of a text; its characters would be counted, and only up to a NUL."""
    return f"length(CAST({column} AS BLOB))"


_HEX = "[0-9a-f]"
_UUID = "-".join(_HEX * digits for digits in (8, 4, 4, 4, 12))

_BY_TYPE: dict[str, Callable[[bytes], bool]] = {
    "text": clears_text,
    "character varying": clears_text,
    "json": clears_text,
    "jsonb": clears_documents,
    "text[]": clears_lists,
    "timestamp with time zone": clears_stamps,
}
