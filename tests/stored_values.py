"""What SQLite can store in a column, valid for a type of the target and not: for Hypothesis."""

from __future__ import annotations

import json
from datetime import datetime

from hypothesis import strategies as st

from sagewai_ops.export.convert.batch import Type
from sagewai_ops.export.convert.value import Stored

TYPES = (
    Type("text"),
    Type("text", 5),
    Type("json"),
    Type("jsonb"),
    Type("text[]"),
    Type("uuid"),
    Type("timestamptz"),
    Type("boolean"),
    Type("integer", 2),
    Type("integer", 4),
    Type("integer", 8),
    Type("double"),
)
# The same types as PostgreSQL names them.
NAMES = (
    "text",
    "varchar(5)",
    "json",
    "jsonb",
    "text[]",
    "uuid",
    "timestamptz",
    "boolean",
    "smallint",
    "integer",
    "bigint",
    "double precision",
)

_CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
_TEXTS = st.text(_CHARACTERS, max_size=12) | st.sampled_from(
    ["\\N", "a\\b", "a\tb\nc\rd\be\ff\vg", "", "{}", "日本語", "\x7f\u2028"]
)
_DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
_WRITTEN_DOCUMENTS = (
    _DOCUMENTS.map(json.dumps)
    | _DOCUMENTS.map(lambda document: json.dumps(document, ensure_ascii=False, indent=1))
    | st.sampled_from(
        ["1e22", "-0.0", "1E5", "1.50", '{"a": 1, "a": 2}', ' {"bb":1,"a":-0}', '"\\ud83d\\ude00"']
    )
)
_MOMENTS = (
    st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)).map(  # noqa: DTZ001
        lambda moment: moment.isoformat(" ", "microseconds")
    )
    | st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)).map(  # noqa: DTZ001
        lambda moment: moment.isoformat(" ", "seconds")
    )
    | st.sampled_from(
        [
            "2026-03-01T08:30:00.5Z",
            "2026-03-01 08:30:00.120000+05:30",
            "2026-03-01",
            "2026-03-01T08:30-02",
        ]
    )
)
_BY_NAME: dict[str, st.SearchStrategy[object]] = {
    "json": _WRITTEN_DOCUMENTS | st.integers(-(2**63), 2**63 - 1) | st.just(1.5),
    "jsonb": _WRITTEN_DOCUMENTS | st.integers(-(2**63), 2**63 - 1) | st.just(1.5),
    "text[]": st.lists(_TEXTS, max_size=3).map(json.dumps) | st.just("null"),
    "uuid": st.uuids().map(str) | st.from_regex(r"[0-9a-f]{12}", fullmatch=True) | _TEXTS,
    "timestamptz": _MOMENTS,
    "boolean": st.sampled_from([0, 1, "true", "false", "T", "0"]),
    "double": st.floats(allow_nan=False) | st.integers(-(2**53), 2**53),
}


def stored(value: object) -> Stored | None:
    """Return a value as the exporter's connections return it: text as bytearray."""
    return bytearray(value.encode()) if isinstance(value, str) else value  # type: ignore[return-value]


def good(kind: Type) -> st.SearchStrategy[Stored | None]:
    """Draw values that a type of the target can hold."""
    if kind.name == "text":
        texts = st.text(_CHARACTERS, max_size=kind.size) if kind.size else _TEXTS
        return texts.map(stored)
    if kind.name == "integer":
        limit = 2 ** (kind.size * 8 - 1)
        return st.integers(-limit, limit - 1).map(stored)
    return _BY_NAME[kind.name].map(stored)


def anything() -> st.SearchStrategy[Stored | None]:
    """Draw whatever SQLite can store."""
    return (
        st.none()
        | st.integers(-(2**63), 2**63 - 1)
        | st.floats(allow_nan=False)
        | st.binary(max_size=6)
        | st.binary(max_size=6).map(bytearray)
        | st.one_of(*(good(kind) for kind in TYPES))
        | st.sampled_from(
            [
                bytearray(text)
                for text in (b"NaN", b'["\\ud800"]', b'"\\u0000"', b"1e999999", b"a\0b", b"[1")
            ]
        )
    )
