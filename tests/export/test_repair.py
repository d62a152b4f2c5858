"""Repairs of values by --on-invalid repair, and the values without one."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagewai_ops.export.convert.batch import Target, Type, encode_value
from sagewai_ops.export.convert.repair import repair_value
from sagewai_ops.export.convert.value import RefusedError, Stored
from stored_values import TYPES, anything

REPAIRED = [
    (Type("text"), b"a\0b", "a\ufffdb"),
    (Type("text"), b"a\xffb", "a\ufffdb"),
    (Type("text", 3), b"abcdef", "abc"),
    (Type("jsonb"), b'{"a": NaN, "b": [-Infinity, 1]}', '{"a": null, "b": [null, 1]}'),
    (Type("jsonb"), b'{"NaN": "Infinity"}', '{"NaN": "Infinity"}'),
    (Type("jsonb"), rb'["\u0000", "\\u0000", "\ud800"]', r'["\ufffd", "\\u0000", "\ufffd"]'),
    (Type("jsonb"), rb'"\ud83d\ude00\ude00"', r'"\ud83d\ude00\ufffd"'),
    (Type("jsonb"), b"[1e999999, 1.5]", '["1e999999", 1.5]'),
    (Type("json"), b"[1e999999, NaN]", "[1e999999, null]"),
    (Type("jsonb"), b"not json at all", '"not json at all"'),
    (Type("jsonb"), b"", '""'),
    (Type("text[]"), b'["a", 1, null, {"b": 2}]', '["a", "1", "null", "{\\"b\\": 2}"]'),
    (Type("text[]"), rb'["\u0000"]', '["\\ufffd"]'),
    (Type("timestamptz"), b"2026-03-01 08:30:00.1234567", "2026-03-01 08:30:00.123456"),
    (Type("boolean"), b"", 0),
    (Type("boolean"), b"  ", 0),
    (Type("boolean"), 7, 1),
    (Type("integer", 4), 3_000_000_000, 2_147_483_647),
    (Type("integer", 4), -3_000_000_000, -2_147_483_648),
    (Type("integer", 4), b" 42 ", 42),
    (Type("integer", 4), 3.0, 3),
    (Type("double"), b"1.5", 1.5),
]
HOPELESS = [
    (Type("json"), b"[" * 100_000),
    (Type("text[]"), b'{"a": 1}'),
    (Type("timestamptz"), b"yesterday"),
    (Type("boolean"), b"perhaps"),
    (Type("integer", 4), b"many"),
    (Type("integer", 4), 3.5),
    (Type("double"), b"much"),
]


def stored(value: object) -> Stored:
    """Return a value as the exporter's connections return it."""
    return bytearray(value) if isinstance(value, bytes) else value  # type: ignore[return-value]


@pytest.mark.parametrize(("kind", "before", "after"), REPAIRED)
def test_the_documented_repairs(kind: Type, before: object, after: object) -> None:
    """As docs/export.md promises them."""
    repaired = repair_value(Target(kind, nullable=False), stored(before), bound=False)

    assert (repaired.decode() if isinstance(repaired, bytearray) else repaired) == after


@pytest.mark.parametrize(("kind", "value"), HOPELESS)
def test_without_a_documented_repair_the_value_is_refused(kind: Type, value: object) -> None:
    """The finding stays open."""
    with pytest.raises(RefusedError):
        repair_value(Target(kind, nullable=True), stored(value), bound=False)


@pytest.mark.parametrize(
    ("kind", "value"), [(Type("text", 3), b"abcdef"), (Type("integer", 4), 3_000_000_000)]
)
def test_keys_are_neither_cut_nor_changed(kind: Type, value: object) -> None:
    """What refers to them would be lost."""
    with pytest.raises(RefusedError, match="part of a key"):
        repair_value(Target(kind, nullable=False), stored(value), bound=True)


@pytest.mark.parametrize("value", [b"\x89PNG\xff", b"text in a blob"])
def test_blobs_are_repaired_where_they_hold_text(value: bytes) -> None:
    """Others are not text."""
    target = Target(Type("text"), nullable=False)

    if value.isascii():
        assert repair_value(target, value, bound=False) == bytearray(value)
    else:
        with pytest.raises(RefusedError, match="not text"):
            repair_value(target, value, bound=False)


def test_seconds_since_1970_become_a_moment() -> None:
    """Numbers in a column of moments are read as Unix time."""
    repaired = repair_value(Target(Type("timestamptz"), nullable=False), 1_700_000_000, bound=False)

    assert repaired == bytearray(b"2023-11-14 22:13:20.000000")


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(TYPES), anything())
def test_whatever_is_repaired_is_taken(kind: Type, value: Stored | None) -> None:
    """The target accepts every repaired value."""
    target = Target(kind, nullable=False)
    if value is None:
        return

    try:
        repaired = repair_value(target, value, bound=False)
    except RefusedError:
        return

    encode_value(target, repaired)


@given(st.dictionaries(st.text(max_size=3), st.floats() | st.text(max_size=4), max_size=4))
def test_all_that_python_writes_as_json_has_a_repair(document: dict[str, float | str]) -> None:
    """NaN, halves of pairs and NUL included; what is good in a document stays as it is."""
    text = json.dumps(document)

    repaired = repair_value(
        Target(Type("jsonb"), nullable=False), bytearray(text.encode()), bound=False
    )

    assert isinstance(repaired, bytearray)
    again = json.loads(repaired)
    for key, value in document.items():
        if (
            isinstance(value, float)
            and value == value
            and abs(value) < 1e300
            and key.isascii()
            and "\0" not in key
        ):
            assert again[key] == value
