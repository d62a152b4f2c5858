"""What PostgreSQL makes of a JSON text that SQLite holds: takes it, refuses it, or changes it.

`json` keeps the text, so it refuses only what is no JSON; `jsonb` keeps the meaning in its own
form, and refuses the characters and numbers that it cannot hold. Found by trying each on servers 15
to 18; tests/test_schema_values.py tries them again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

# Of PostgreSQL's numeric, which jsonb keeps numbers as: digits before and after the point.
NUMERIC_DIGITS = 131_072
NUMERIC_SCALE = 16_383

_NUMBER = re.compile(r"(-?)(\d+)(?:\.(\d+))?(?:[eE]([+-]?\d+))?")


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a value does not arrive as it is."""

    kind: Literal["refused", "changed"]
    reason: str


@dataclass(frozen=True, slots=True)
class Number:
    """A number of a JSON text, as it is spelled."""

    spelled: str


@dataclass(frozen=True, slots=True)
class Members:
    """A JSON object; a key may stand in it twice, and PostgreSQL reads both."""

    pairs: list[tuple[str, Tree]]


Tree: TypeAlias = "bool | str | Number | list[Tree] | Members | None"

NOT_UTF8 = Verdict("refused", "is not UTF-8")
NUL = Verdict("refused", "holds a NUL character")
NOT_JSON = Verdict("refused", "is not JSON")
NOT_A_NUMBER = Verdict("refused", "holds NaN or Infinity, which is not JSON")
TOO_DEEP = Verdict("refused", "is nested too deeply to be read")
SURROGATE = Verdict("refused", "holds half of a surrogate pair, which jsonb refuses")
OUT_OF_RANGE = Verdict("refused", "holds a number beyond the range of numeric")
REWRITTEN = Verdict("changed", "holds a number that jsonb rewrites to another (1e22, -0.0)")
LIST_OF_OTHERS = Verdict("refused", "is a list with an element that is no string")
NO_LIST = Verdict("refused", "is not a list")
NULL_LIST = Verdict("changed", "is JSON null, which becomes an empty list")


class _NaNError(ValueError):
    """The text holds one of the three words that Python writes and JSON does not know."""


def judge_json(text: bytes, *, binary: bool) -> Verdict | None:
    """Judge a JSON text.

    Args:
        text: As SQLite holds it.
        binary: For `jsonb`, not `json`.
    """
    tree = parse(text)
    if isinstance(tree, Verdict):
        return tree
    if not binary:
        return None
    verdict = None
    for leaf in _leaves(tree):
        found = judge_string(leaf) if isinstance(leaf, str) else judge_number(leaf.spelled)
        if found is not None and (verdict is None or found.kind == "refused"):
            verdict = found
    return verdict


def judge_list(text: bytes) -> Verdict | None:
    """Judge the JSON text of a column that is `text[]` on PostgreSQL."""
    tree = parse(text)
    if isinstance(tree, Verdict):
        return tree
    if tree is None:
        return NULL_LIST
    if not isinstance(tree, list):
        return NO_LIST
    for element in tree:
        if not isinstance(element, str):
            return LIST_OF_OTHERS
        verdict = judge_string(element)
        if verdict:
            return verdict
    return None


def judge_string(text: str) -> Verdict | None:
    """Judge a string as `jsonb` or an element of `text[]` takes it."""
    if "\0" in text:
        return NUL
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return SURROGATE
    return None


def judge_number(spelled: str) -> Verdict | None:
    """Judge a number as `jsonb` keeps it, in decimal digits.

    It is changed when a program that reads it back gets another value: a float that comes back as
    an integer, or a zero without its sign.
    """
    match = _NUMBER.fullmatch(spelled)
    if match is None:
        return NOT_JSON
    sign, whole, fraction, exponent = match[1], match[2], match[3] or "", int(match[4] or "0")
    digits = (whole + fraction).lstrip("0")
    if digits and len(digits) - len(fraction) + exponent > NUMERIC_DIGITS:
        return OUT_OF_RANGE
    scale = max(0, len(fraction) - exponent)
    if scale > NUMERIC_SCALE:
        return OUT_OF_RANGE
    is_float = bool(fraction or match[4])
    if is_float and (scale == 0 or (sign and not digits)):
        return REWRITTEN
    return None


def parse(text: bytes) -> Tree | Verdict:
    """Read a JSON text, numbers as they are spelled; a verdict where it cannot be read."""
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError:
        return NOT_UTF8
    if "\0" in decoded:
        return NUL
    try:
        tree: Tree = json.loads(
            decoded,
            parse_float=Number,
            parse_int=Number,
            parse_constant=_refuse_constant,
            object_pairs_hook=Members,
        )
    except _NaNError:
        return NOT_A_NUMBER
    except RecursionError:
        return TOO_DEEP
    except ValueError:
        return NOT_JSON
    return tree


def _refuse_constant(word: str) -> None:
    raise _NaNError(word)


def _leaves(tree: Tree) -> Iterator[str | Number]:
    """Walk through all strings, keys among them, and numbers."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, Members):
            yield from (name for name, _ in node.pairs)
            waiting.extend(value for _, value in node.pairs)
        elif isinstance(node, list):
            waiting.extend(node)
        elif isinstance(node, (str, Number)):
            yield node
