"""The comparison's own eyes: what is the same value, and what only looks like it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagewai_ops.export.compare.normalise import differing, escaped, unescaped
from sagewai_ops.export.convert.batch import Type

DIFFERENT = [
    (Type("text"), b"a", b"b"),
    (Type("text"), b"a", b"A"),
    (Type("text"), b"", b"\\N"),
    (Type("text"), b"\\N", b"\\N"),
    (Type("text"), b"a\\b", b"a\\b"),
    (Type("json"), b'{"a": 1}', b'{"a":1}'),
    (Type("jsonb"), b"1", b"true"),
    (Type("jsonb"), b'"\\\\n"', b'"\\\\n"'),  # a backslash and n; COPY's is a line's end
    (Type("jsonb"), b'{"a": 1}', b'{"a": true}'),
    (Type("jsonb"), b'{"a": 0}', b'{"a": false}'),
    (Type("jsonb"), b'["1"]', b"[1]"),
    (Type("jsonb"), b"[1, 2]", b"[2, 1]"),
    (Type("jsonb"), b"null", b"\\N"),
    (Type("jsonb"), b'["\\u00fc"]', '["ö"]'.encode()),
    (Type("jsonb"), b'["a\\u0022,\\u0022b"]', b'["a","b"]'),
    (Type("jsonb"), b'["\\\\u00fc"]', '["ü"]'.encode()),  # a backslash and u00fc
    (Type("jsonb"), '["\\u00fcü"]'.encode(), '["üÃ¼"]'.encode()),  # not Latin-1
    (Type("jsonb"), b"0.1", b"0.10000000000000001"),
    (Type("jsonb"), b"1e400", b"2" + b"0" * 400),
    (Type("jsonb"), b"1e0", b"true"),
    (Type("jsonb"), b'{"a":' * 600 + b"1e16" + b"}" * 600, b'{"a": ' * 600 + b"1e17" + b"}" * 600),
    (Type("text[]"), b'["a"]', b'["a","b"]'),
    (Type("text[]"), b'["a"]', b"\\N"),
    (Type("text[]"), b"[]", b"\\N"),
    (Type("uuid"), b"0123456789ab", b"00000000-0000-0000-0000-0123456789ac"),
    (Type("timestamptz"), b"2026-03-01 08:30:00", b"2026-03-01 09:30:00+00"),
    (Type("timestamptz"), b"2026-03-01 08:30:00.100000", b"2026-03-01 08:30:00+00"),
    (Type("timestamptz"), b"2026-03-01T08:30:00+01", b"2026-03-01 08:30:00+00"),
    (Type("boolean"), b"false", b"t"),
    (Type("boolean"), 1, b"f"),
    (Type("integer", 8), 9_007_199_254_740_993, b"9007199254740992"),
    (Type("integer", 4), 7, b"\\N"),
    (Type("double"), 0.1, b"0.10000000000000002"),
    (Type("double"), 0.0, b"-0"),
    (Type("double"), float("inf"), b"-Infinity"),
]
SAME = [
    (Type("text"), b"a\\b\n", b"a\\\\b\\n"),
    (Type("text"), b"a\tb", b"a\\tb"),
    (Type("json"), 1.5, b"1.5"),
    (Type("jsonb"), b'{"b": 1, "aa": 2}', b'{"b": 1, "aa": 2}'),
    (Type("jsonb"), b'{"aa": 1e2, "b": [true, null]}', b'{"b": [true, null], "aa": 100}'),
    (Type("jsonb"), b"1e22", b"10000000000000000000000"),
    (Type("jsonb"), b"-0.0", b"0.0"),
    (Type("jsonb"), b'{"a":' * 600 + b"1e2" + b"}" * 600, b'{"a": ' * 600 + b"100" + b"}" * 600),
    (Type("jsonb"), b'"\\u00fc\\ud83d\\ude00\\n"', '"ü😀\\\\n"'.encode()),
    (Type("jsonb"), b'["\\u00fc\\n", 1]', '["ü\\\\n", 1]'.encode()),
    (Type("jsonb"), b'["\\\\u00fc\\u00fc"]', '["\\\\\\\\u00fcü"]'.encode()),
    (Type("jsonb"), b'["\\u0041\\u00fc"]', '["Aü"]'.encode()),
    (Type("jsonb"), '["ü\\u00fc"]'.encode(), '["üü"]'.encode()),
    (Type("jsonb"), b'{"a":1,"a":2}', b'{"a": 2}'),
    (Type("text[]"), b'["a", "\\u00fc"]', '["a","ü"]'.encode()),
    (Type("text[]"), b"null", b"[]"),
    (Type("text[]"), b"null", b"\\N"),
    (Type("uuid"), b"0123456789ab", b"00000000-0000-0000-0000-0123456789ab"),
    (Type("timestamptz"), b"2026-03-01 08:30:00.120000", b"2026-03-01 08:30:00.12+00"),
    (Type("timestamptz"), b"2026-03-01 08:30:00.000000", b"2026-03-01 08:30:00+00"),
    (Type("timestamptz"), b"2026-03-01T10:00:00,5+01:30", b"2026-03-01 08:30:00.5+00"),
    (Type("boolean"), b"FALSE", b"f"),
    (Type("integer", 8), -7, b"-7"),
    (Type("double"), 1e300, b"1e+300"),
    (Type("double"), float("-inf"), b"-Infinity"),
]  # fmt: skip


def stored(value: object) -> bytearray | int | float:
    """Return a value as the exporter's connections return it."""
    return bytearray(value) if isinstance(value, bytes) else value  # type: ignore[return-value]


@pytest.mark.parametrize(("kind", "source", "target"), DIFFERENT)
def test_another_value_is_noticed(kind: Type, source: object, target: bytes) -> None:
    """Alone, and between others that are equal."""
    column = [stored(source), stored(source), None]

    assert differing(kind, [stored(source)], [target]) == [0]
    assert differing(kind, column, [target, target, b"\\N"]) == [0, 1]


@pytest.mark.parametrize(("kind", "source", "target"), SAME)
def test_the_same_value_in_another_spelling_is_the_same(
    kind: Type, source: object, target: bytes
) -> None:
    """What a type makes of a value is not a difference."""
    assert differing(kind, [stored(source)], [target]) == []
    assert differing(kind, [None, stored(source)], [b"\\N", target]) == []


@pytest.mark.parametrize("kind", [Type("text"), Type("jsonb"), Type("boolean"), Type("text[]")])
def test_a_null_on_one_side_alone_is_a_difference(kind: Type) -> None:
    """SQL NULL is no value, on either side."""
    assert differing(kind, [None, None], [b"\\N", b""]) == [1]


def test_a_document_that_differs_is_noticed_among_many() -> None:
    """Documents that are written in another way are read some at a time."""
    sources = [bytearray(b'{"b": %d, "aa": [1]}' % number) for number in range(60)]
    targets = [b'{"aa": [1], "b": %d}' % number for number in range(60)]
    assert differing(Type("jsonb"), sources, targets) == []
    targets[57] = b'{"aa": [1], "b": 58}'

    assert differing(Type("jsonb"), sources, targets) == [57]


@given(st.binary())
def test_escapes_are_undone(value: bytes) -> None:
    """Text that COPY escaped comes back as it was."""
    assert unescaped(escaped(value)) == value
    assert b"\n" not in escaped(value)
    assert b"\t" not in escaped(value)


@given(st.lists(st.text(max_size=5), min_size=1, max_size=30), st.data())
def test_exactly_the_changed_rows_are_named(texts: list[str], data: st.DataObject) -> None:
    """Places are those of the batch, NULLs counted."""
    column = [bytearray(text.encode()) if text else None for text in texts]
    targets = [b"\\N" if value is None else escaped(value) for value in column]
    changed = sorted(data.draw(st.sets(st.integers(0, len(texts) - 1))))
    for place in changed:
        targets[place] = b"another text" if targets[place] != b"another text" else b"x"

    assert differing(Type("text"), column, targets) == changed
