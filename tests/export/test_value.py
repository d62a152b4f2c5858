"""One value at a time: the laws of each conversion."""

from __future__ import annotations

import json
import math
import struct
import uuid
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sagewai_ops.export.convert import value as convert_value
from sagewai_ops.export.convert.value import RefusedError

EPOCH = datetime(2000, 1, 1, tzinfo=timezone.utc)
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=4),
        inner, max_size=3,
    ),
    max_leaves=8,
)  # fmt: skip


def stored(text: str) -> bytearray:
    """Return a text as the exporter's connections return it."""
    return bytearray(text.encode())


def kind_of(conversion: object, *arguments: object, **options: object) -> str:
    """Return the word with which a conversion refuses."""
    with pytest.raises(RefusedError) as refused:
        conversion(*arguments, **options)  # type: ignore[operator]
    return refused.value.kind


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_text_comes_out_as_it_went_in(text: str) -> None:
    """Every text without NUL is unchanged."""
    assert convert_value.text(stored(text)).decode() == text


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_varchar_counts_characters_and_cuts_nothing(text: str) -> None:
    """A text that fits is unchanged, any other is refused."""
    limit = 5

    if len(text) <= limit:
        assert convert_value.text(stored(text), limit).decode() == text
    else:
        assert kind_of(convert_value.text, stored(text), limit) == "too-long"


def test_numbers_in_text_columns_become_their_shortest_spelling() -> None:
    """JSON columns have numeric affinity: the document 1.5 is stored as a number."""
    assert convert_value.text(0) == b"0"
    assert convert_value.text(1.5) == b"1.5"
    assert convert_value.json_text(1e22) == b"1e+22"
    assert convert_value.jsonb(-3) == b"\x01-3"


def test_blobs_and_broken_texts_are_refused_by_their_kind() -> None:
    """Nothing is decoded by guessing."""
    assert kind_of(convert_value.text, b"blob") == "storage-class"
    assert kind_of(convert_value.jsonb, b"{}") == "storage-class"
    assert kind_of(convert_value.uuid_bytes, b"blob") == "storage-class"
    assert kind_of(convert_value.text, bytearray(b"\xed\xa0\x80")) == "invalid-utf8"
    assert kind_of(convert_value.text, bytearray(b"a\0b")) == "nul"


@given(DOCUMENTS)
def test_documents_are_unchanged(document: object) -> None:
    """Json keeps the text; jsonb has its version byte before it."""
    text = json.dumps(document)
    assume(all(abs(number) < 1e300 for number in _numbers(document)))

    assert convert_value.json_text(stored(text)).decode() == text
    assert convert_value.jsonb(stored(text)) == b"\x01" + text.encode()


@pytest.mark.parametrize(
    ("document", "kind"),
    [
        ("", "not-json"),
        ("{", "not-json"),
        ("[1,]", "not-json"),
        ("01", "not-json"),
        ("'a'", "not-json"),
        ('"a\tb"', "not-json"),
        ("\ufeff1", "not-json"),
        ("NaN", "json-nan"),
        ('{"a": [1, -Infinity]}', "json-nan"),
        ("Infinity", "json-nan"),
        ("[" * 100_000, "json-depth"),
    ],
)
def test_other_texts_than_json_are_refused_for_both_types(document: str, kind: str) -> None:
    """Python writes NaN and Infinity, PostgreSQL reads neither."""
    assert kind_of(convert_value.json_text, stored(document)) == kind
    assert kind_of(convert_value.jsonb, stored(document)) == kind


@pytest.mark.parametrize(
    ("document", "kind"),
    [
        (r'"\u0000"', "json-nul"),
        (r'"\\\u0000"', "json-nul"),
        (r'"\ud800"', "json-surrogate"),
        (r'"\ud800x\udc00"', "json-surrogate"),
        (r'"\udc00"', "json-surrogate"),
        (r'"\ud800\ud800"', "json-surrogate"),
        (r'{"\udc00": 1}', "json-surrogate"),
        ("1e131072", "json-number"),
        ("-1E+400000", "json-number"),
        ("1e-16384", "json-number"),
        ("1" + "0" * 131_072, "json-number"),
        ("1e99999999999999999999", "json-number"),
    ],
)
def test_json_accepts_what_only_jsonb_refuses(document: str, kind: str) -> None:
    """A column of type json stores the text unchanged."""
    assert kind_of(convert_value.jsonb, stored(document)) == kind
    assert convert_value.json_text(stored(document)).decode() == document


@pytest.mark.parametrize(
    "document",
    [
        r'"\ud83d\ude00"',
        r'"\\u0000"',
        r'"\\ud800"',
        "1e131071",
        "1e-16383",
        "0e999999",
        "-0.0",
        "1" + "0" * 131_071,
        ' {"a":1,"a":2} ',
    ],
)
def test_pairs_escaped_backslashes_and_numbers_at_the_limit_are_accepted(document: str) -> None:
    """They are unchanged in jsonb."""
    assert convert_value.jsonb(stored(document)) == b"\x01" + document.encode()


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))))
def test_lists_come_out_as_arrays_of_the_same_elements(elements: list[str]) -> None:
    """Read back by PostgreSQL's own layout."""
    field = convert_value.text_array(stored(json.dumps(elements)))

    assert field is not None
    assert _read_array(field) == elements


def test_a_null_list_is_null_or_empty() -> None:
    """SQL NULL where the column allows it, else no elements."""
    assert convert_value.text_array(stored("null"), nullable=True) is None
    assert _read_array(convert_value.text_array(stored(" null "))) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("document", "kind"),
    [
        ('{"a": 1}', "not-a-list"),
        ('"a"', "not-a-list"),
        ("[1]", "list-element"),
        ("[null]", "list-element"),
        ('[["a"]]', "list-element"),
        (r'["\u0000"]', "nul"),
        (r'["\ud800"]', "json-surrogate"),
        ("nothing", "not-json"),
    ],
)
def test_other_documents_than_lists_are_refused(document: str, kind: str) -> None:
    """Elements are texts; nothing is turned into one."""
    assert kind_of(convert_value.text_array, stored(document)) == kind


@given(st.uuids())
def test_uuids_are_themselves_in_any_case(identifier: uuid.UUID) -> None:
    """A UUID's text is that UUID."""
    assert convert_value.uuid_bytes(stored(str(identifier))) == identifier.bytes
    for form in (f"{{{identifier}}}", str(identifier).upper(), identifier.hex):
        assert convert_value.uuid_bytes(stored(form)) == identifier.bytes


@given(st.lists(st.text(max_size=14), unique=True), st.from_regex(r"[0-9a-f]{12}", fullmatch=True))
def test_other_ids_are_mapped_to_distinct_uuids(identifiers: list[str], short: str) -> None:
    """The same id always maps to the same UUID, another id to another."""
    texts = [text for text in identifiers if text.isascii()]

    mapped = [convert_value.uuid_of(text) for text in texts]

    assert len(set(mapped)) == len(texts)
    assert mapped == [convert_value.uuid_of(text) for text in texts]
    assert str(convert_value.uuid_of(short)) == f"00000000-0000-0000-0000-{short}"


@given(st.datetimes(), st.sampled_from([" ", "T"]))
def test_timestamps_without_an_offset_are_utc(moment: datetime, separator: str) -> None:
    """Both of Sagewai's spellings and ISO's, to the microsecond."""
    for text in {moment.isoformat(separator), moment.isoformat(separator, "microseconds")}:
        field = convert_value.timestamp(stored(text))

        since = moment.replace(tzinfo=timezone.utc) - EPOCH
        assert struct.unpack(">q", field)[0] == since // timedelta(microseconds=1)


@given(
    st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1)),  # noqa: DTZ001
    st.integers(-23 * 60, 23 * 60),
)
def test_timestamps_with_an_offset_are_that_instant(moment: datetime, minutes: int) -> None:
    """As Python's own arithmetic has it, in every form of an offset."""
    aware = moment.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    expected = (aware - EPOCH) // timedelta(microseconds=1)
    sign = "-" if minutes < 0 else "+"
    hours, rest = divmod(abs(minutes), 60)
    spellings = [f"{sign}{hours:02}:{rest:02}", f"{sign}{hours:02}{rest:02}"]
    if not rest:
        spellings.append(f"{sign}{hours:02}")

    for spelling in spellings:
        assert convert_value.microseconds(moment.isoformat(" ") + spelling) == expected


def test_dates_alone_and_the_letter_z_are_read() -> None:
    """What others write, and Sagewai reads."""
    day = convert_value.microseconds("2026-03-01")

    assert day == convert_value.microseconds("2026-03-01T00:00Z")
    assert day == convert_value.microseconds("2026-03-01 00:00:00.000000000 z")
    assert day == convert_value.microseconds("2026-03-01 00:00:00,000")


def test_24_00_and_second_60_roll_over_as_in_postgres() -> None:
    """They are the first moment of the next day and minute."""
    assert convert_value.microseconds("2026-02-28 24:00:00") == convert_value.microseconds(
        "2026-03-01 00:00:00"
    )
    assert convert_value.microseconds("2026-01-01 08:30:60.5") == convert_value.microseconds(
        "2026-01-01 08:31:00.5"
    )


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("yesterday", "not-a-timestamp"),
        ("", "not-a-timestamp"),
        ("2026-02-30", "not-a-timestamp"),
        ("2026-13-01 00:00:00", "not-a-timestamp"),
        ("2026-01-01 24:00:01", "not-a-timestamp"),
        ("2026-01-01 23:59:60.5", "not-a-timestamp"),
        ("2026-01-01 08:30:61", "not-a-timestamp"),
        ("2026-01-01 08:60:00", "not-a-timestamp"),
        ("9999-12-31 24:00:00", "not-a-timestamp"),
        ("0001-01-01 00:00:00+05", "not-a-timestamp"),
        ("9999-12-31 23:59:59-01", "not-a-timestamp"),
        ("2026-01-01 08:30:00+99", "not-a-timestamp"),
        ("2026-01-01 08:30:00.1234567", "timestamp-precision"),
    ],
)
def test_other_texts_than_timestamps_are_refused(text: str, kind: str) -> None:
    """Nothing is rounded, and no day is invented."""
    assert kind_of(convert_value.timestamp, stored(text)) == kind


def test_numbers_are_not_timestamps() -> None:
    """They may be seconds of several epochs."""
    assert kind_of(convert_value.timestamp, 1_700_000_000) == "storage-class"


@pytest.mark.parametrize("truth", [1, "true", "TRUE", "t", "1", "yes", " On\n", "y"])
def test_truths(truth: int | str) -> None:
    """Column defaults leave the word, everything else the number."""
    assert convert_value.boolean(truth if isinstance(truth, int) else stored(truth)) == b"\x01"


@pytest.mark.parametrize("falsehood", [0, "false", "False", "f", "0", "no", "off", "of"])
def test_falsehoods(falsehood: int | str) -> None:
    """The text false is false, though Python holds it for true."""
    assert (
        convert_value.boolean(falsehood if isinstance(falsehood, int) else stored(falsehood))
        == b"\0"
    )


@pytest.mark.parametrize("neither", [2, -1, 0.0, 1.0, bytearray(b"o"), bytearray(b""), b"1"])
def test_other_values_than_booleans_are_refused(neither: convert_value.Stored) -> None:
    """Nothing is guessed from a number or a word."""
    assert kind_of(convert_value.boolean, neither) == "not-a-boolean"


@given(st.integers(-(2**63), 2**63 - 1), st.sampled_from([2, 4, 8]))
def test_integers_keep_their_value_or_are_refused(number: int, size: int) -> None:
    """PostgreSQL's integer has 32 bits, SQLite's 64."""
    if -(2 ** (size * 8 - 1)) <= number < 2 ** (size * 8 - 1):
        assert int.from_bytes(convert_value.integer(number, size), "big", signed=True) == number
    else:
        assert kind_of(convert_value.integer, number, size) == "out-of-range"


@pytest.mark.parametrize("other", [1.0, bytearray(b"1"), b"\1"])
def test_integers_of_another_class_are_refused(other: convert_value.Stored) -> None:
    """SQLite stores any class in any column."""
    assert kind_of(convert_value.integer, other, 4) == "storage-class"


@given(st.floats(allow_nan=False))
def test_doubles_keep_every_bit(number: float) -> None:
    """Infinities and both zeros too."""
    (back,) = struct.unpack(">d", convert_value.double(number))

    assert back == number
    assert math.copysign(1, back) == math.copysign(1, number)


@given(st.integers(-(2**63), 2**63 - 1))
def test_integers_become_doubles_only_when_nothing_is_lost(number: int) -> None:
    """Beyond 53 bits a double rounds."""
    if int(float(number)) == number:
        assert struct.unpack(">d", convert_value.double(number))[0] == number
    else:
        assert kind_of(convert_value.double, number) == "out-of-range"


def test_texts_are_not_numbers() -> None:
    """A number as text in a real column is of another class."""
    assert kind_of(convert_value.double, bytearray(b"1.5")) == "storage-class"


def _numbers(document: object) -> list[float]:
    if isinstance(document, dict):
        return [number for value in document.values() for number in _numbers(value)]
    if isinstance(document, list):
        return [number for value in document for number in _numbers(value)]
    return [document] if isinstance(document, (int, float)) else []


def _read_array(field: bytes) -> list[str]:
    dimensions, has_nulls, oid = struct.unpack_from(">iii", field)
    assert (has_nulls, oid) == (0, 25)
    if dimensions == 0:
        assert len(field) == 12
        return []
    count, first = struct.unpack_from(">ii", field, 12)
    assert (dimensions, first) == (1, 1)
    found, place = [], 20
    for _ in range(count):
        (length,) = struct.unpack_from(">i", field, place)
        found.append(field[place + 4 : place + 4 + length].decode())
        place += 4 + length
    assert place == len(field)
    return found
