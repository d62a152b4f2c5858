"""Fields of COPY as values of SQLite: nothing that SQLite stores differs from the field."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import uuid
from datetime import datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagewai_ops.export.compare.normalise import differing, differing_lists, escaped
from sagewai_ops.export.convert.batch import Type
from sagewai_ops.export.convert.sqlite_value import NULL, convert_column
from sagewai_ops.export.convert.value import uuid_of

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
_NUMBER = r"[ \n]?[+-]?[0-9]{0,20}\.?[0-9]{0,6}([eE][+-]?[0-9]{1,3})?[ ]?"
NUMBERS = st.from_regex(_NUMBER, fullmatch=True)


def field(text: str) -> bytes:
    """Return a text as COPY sends it."""
    return escaped(text.encode())


def stored(value: object) -> object:
    """Return what SQLite returns of a value from a column that is declared as JSON."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.text_factory = bytearray
        connection.execute("CREATE TABLE t (v JSON)")
        connection.execute("INSERT INTO t VALUES (?)", (value,))
        return connection.execute("SELECT v FROM t").fetchone()[0]


def refusal(kind: str, text: str, *, is_numeric: bool = False) -> str:
    """Return the kind of the only refusal of a column with one field."""
    values, refusals = convert_column(Type(kind), [field(text)], is_numeric=is_numeric)
    assert values == [None]
    (found,) = refusals
    return found.kind


@given(st.lists(TEXTS | st.none(), max_size=4))
def test_texts_are_unchanged(texts: list[str | None]) -> None:
    """Every escape is undone, and NULL is not the text of two characters."""
    fields = [NULL if text is None else field(text) for text in texts]

    if fields:
        assert convert_column(Type("text"), fields) == (texts, [])


@given(TEXTS | NUMBERS, st.sampled_from(["text", "json", "jsonb"]))
def test_column_of_numeric_affinity_changes_no_value(text: str, kind: str) -> None:
    """SQLite stores the text of a number as one: what is accepted means the same then."""
    values, refusals = convert_column(Type(kind), [field(text)], is_numeric=True)

    if not refusals:
        value = stored(values[0])
        compared = "text" if isinstance(value, bytearray) else kind
        assert differing(Type(compared), [value], [field(text)]) == []  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("kind", "text", "refused"),
    [
        ("uuid", str(uuid.NAMESPACE_URL), "storage-class"),
        ("timestamptz", "2026-01-02 03:04:05+00", "not-a-timestamp"),
        ("double", "1.5", "storage-class"),
    ],
)
def test_two_values_in_one_text_are_refused(kind: str, text: str, refused: str) -> None:
    """A whole column is checked at once, but each value for itself."""
    assert refusal(kind, f"{text}\n{text}") == refused


@pytest.mark.parametrize(
    ("text", "expected"),
    [("5", 5), ("-1.5", -1.5), ("null", "null"), ("[1.50]", "[1.50]"), ("9" * 19, None)],
)
def test_documents_that_are_numbers(text: str, expected: object) -> None:
    """A number that SQLite keeps is stored; one that it would round is refused."""
    values, refusals = convert_column(Type("jsonb"), [field(text)], is_numeric=True)

    assert values == [expected]
    assert bool(refusals) == (expected is None)


@given(st.lists(TEXTS, max_size=5))
def test_arrays_become_lists(elements: list[str]) -> None:
    """Quotes, braces, commas, empty texts, and the text NULL."""
    quoted = ",".join(
        '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' for text in elements
    )

    (value,), refusals = convert_column(Type("text[]"), [field(f"{{{quoted}}}")])

    assert (json.loads(str(value)), refusals) == (elements, [])


def test_lists_are_compared_as_the_server_writes_them() -> None:
    """Only what needs quotes has them, so another notation differs."""
    same = [rb'{a,"b c","",null}', rb'{"NULL","nUlL","q\\"q","b\\\\"}', rb"{}", NULL, NULL]
    lists = ['["a", "b c", "", "null"]', '["NULL", "nUlL", "q\\"q", "b\\\\"]', "[]", "null"]
    same[0] = rb'{a,"b c","","null"}'
    sources = [*(bytearray(text.encode()) for text in lists), None]

    assert differing_lists(sources, same) == []
    assert differing_lists(sources[:1], [rb'{"a","b c","","null"}']) == [0]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("{a,NULL}", "list-element"),
        ("{{a},{b}}", "not-a-list"),
        ("[0:0]={a}", "not-a-list"),
        ("{a,}", "not-a-list"),
        ("", "not-a-list"),
    ],
)
def test_arrays_without_a_list(text: str, kind: str) -> None:
    """NULL elements, several dimensions, other indexes."""
    assert refusal("text[]", text) == kind


@given(st.datetimes())
def test_times_have_six_digits(moment: datetime) -> None:
    """As SQLAlchemy writes them, whatever the server leaves off."""
    text = moment.isoformat(" ")
    shortened = text.rstrip("0").rstrip(".") if "." in text else text

    values, refusals = convert_column(Type("timestamptz"), [f"{shortened}+00".encode()])

    assert (values, refusals) == ([moment.isoformat(" ", "microseconds")], [])


@pytest.mark.parametrize(
    "text",
    [
        *("infinity", "-infinity", "0044-03-15 00:00:00+00 BC", "10000-01-01 00:00:00+00"),
        *("2026-02-30 00:00:00+00", "2026-01-01 00:00:00", "2026-01-01 00:00:00+01", ""),
    ],
)
def test_times_that_a_home_cannot_have(text: str) -> None:
    """Without a year of four digits, or not UTC."""
    assert refusal("timestamptz", text) == "not-a-timestamp"


@given(st.floats(allow_nan=False).filter(lambda number: str(number) != "-0.0"))
def test_numbers_are_the_same_bits(number: float) -> None:
    """In PostgreSQL's notation, infinities too, and as a `numeric` with all of its digits."""
    text = repr(number).replace("inf", "Infinity").removesuffix(".0")
    exact = text if "Inf" in text else f"{Decimal(number):f}"

    for digits in {text, exact} - {"-0"}:
        values, refusals = convert_column(Type("double"), [digits.encode()])

        assert (values, refusals) == ([number], [])


@pytest.mark.parametrize(
    ("kind", "text", "found"),
    [
        ("double", "NaN", "nan"),
        ("double", "-0", "negative-zero"),
        ("double", "1_0", "storage-class"),
        ("double", "12345678901234567890.123456789", "storage-class"),
        ("double", "0.12345678901234568901", "storage-class"),
        ("double", "1" + 400 * "0", "storage-class"),
        ("integer", "007", "storage-class"),
        ("integer", "1.5", "storage-class"),
        ("integer", "9223372036854775808", "out-of-range"),
        ("boolean", "true", "not-a-boolean"),
        ("uuid", "x", "storage-class"),
    ],
)
def test_fields_of_another_type(kind: str, text: str, found: str) -> None:
    """As of a column whose type was changed on the server."""
    assert refusal(kind, text) == found


def test_text_that_is_not_utf_8() -> None:
    """Of a database in SQL_ASCII; the other rows are converted."""
    values, refusals = convert_column(Type("text"), [b"a", b"\xff", b"b"])

    assert values == ["a", None, "b"]
    assert [(each.row, each.kind) for each in refusals] == [(1, "invalid-utf8")]


@given(st.uuids() | st.integers(0, 16**12 - 1).map(lambda number: uuid.UUID(int=number)))
def test_ids_are_mapped_to_the_same_uuid(identifier: uuid.UUID) -> None:
    """Twelve digits of a harness row, or the UUID itself."""
    values, _refusals = convert_column(Type("uuid"), [str(identifier).encode()])

    assert uuid_of(str(values[0])) == identifier
    assert len(str(values[0])) == (12 if identifier.int < 16**12 else 36)


@given(
    st.lists(
        st.one_of(
            st.text("\\\\\tn1e.+-:", max_size=8),
            st.from_regex(r"[0-9]{1,12}(\.[0-9]{1,12})?", fullmatch=True),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_columns_and_their_values_convert_alike(texts: list[str]) -> None:
    """What is done to a whole column at once is what is done to each of its values."""
    fields = [field(text) for text in texts]
    for kind in ("text", "jsonb", "timestamptz", "double", "integer"):
        for is_numeric in (False, True):
            values, refusals = convert_column(Type(kind), fields, is_numeric=is_numeric)
            single = [convert_column(Type(kind), [each], is_numeric=is_numeric) for each in fields]
            assert values == [value for (value,), _refusals in single]
            assert [each.row for each in refusals] == [
                row for row, (_values, refused) in enumerate(single) if refused
            ]


MOMENTS = [b"2026-01-02 03:04:05+00", b"2026-01-02 03:04:05.06+00", b"0001-01-01 00:00:00+00"]


@pytest.mark.parametrize("other", [b"infinity", b"2026-02-30 00:00:00+00", b"0001-01-01 BC", NULL])
def test_one_value_among_many_is_refused_alone(other: bytes) -> None:
    """The others of its column are converted."""
    values, refusals = convert_column(Type("timestamptz"), [*MOMENTS, other])

    assert values == [
        *("2026-01-02 03:04:05.000000", "2026-01-02 03:04:05.060000"),
        *("0001-01-01 00:00:00.000000", None),
    ]
    assert [each.row for each in refusals] == ([] if other == NULL else [3])
