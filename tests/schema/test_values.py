"""What PostgreSQL makes of SQLite's values, tried on a server, and the filter that clears most."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sqlite3
from unittest import mock

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from postgres_server import Server
from sagewai_ops.schema import ddl, prefilter, scan
from sagewai_ops.schema.findings import Tally
from sagewai_ops.schema.json_values import judge_json, judge_list
from sagewai_ops.schema.scan import plan_scan, reading_bytes, scan_table
from sagewai_ops.schema.tables import metadata
from sagewai_ops.schema.values import Stored, Target, Text, judge, target_of

TEXT = Target("text", required=True)
STAMP = Target("timestamp with time zone")
UUID = "3f2a8c1e-0b5d-4a6f-9c7e-1d2b3a4c5e6f"


def _verdict(target: Target, value: object) -> str:
    """Judge a value given as Python's, and spell the verdict's kind."""
    stored: Stored = Text(value.encode()) if isinstance(value, str) else value  # type: ignore[assignment]
    verdict = judge(target, stored)
    return verdict.kind if verdict else ""


@pytest.mark.parametrize(
    ("target", "value", "kind"),
    [
        (TEXT, "any ünïcode 日本", ""),
        (TEXT, None, "refused"),
        (Target("text"), None, ""),
        (TEXT, b"blob", "refused"),
        (TEXT, 5, "refused"),
        (TEXT, "a\0b", "refused"),
        (TEXT, Text(b"\xff"), "refused"),
        (TEXT, Text(b"\xed\xa0\x80"), "refused"),  # half a surrogate pair, spelled out
        (Target("text", any_number=True), 5, ""),
        (Target("text", indexed=True), "x" * 2600, ""),
        (Target("text", indexed=True), "x" * 2601, "refused"),
        (Target("character varying", 4), "äöüß", ""),
        (Target("character varying", 4), "12345", "refused"),
        (Target("character varying", 4), "1234  ", "changed"),
        (Target("integer"), 2**31 - 1, ""),
        (Target("integer"), 2**31, "refused"),
        (Target("integer"), -(2**31) - 1, "refused"),
        (Target("integer"), 1.5, "refused"),
        (Target("integer"), 2.0, ""),
        (Target("integer"), 1e10, "refused"),
        (Target("integer"), float("inf"), "refused"),
        (Target("bigint"), 2.0**62, ""),
        (Target("bigint"), 2.0**63, "refused"),
        (Target("integer"), "many", "refused"),
        (Target("bigint"), 2**63 - 1, ""),
        (Target("bigint"), b"1", "refused"),
        (Target("double precision"), float("inf"), ""),
        (Target("double precision"), 3, ""),
        (Target("double precision"), "much", "refused"),
        (Target("boolean"), 0, ""),
        (Target("boolean"), 1, ""),
        (Target("boolean"), 2, "refused"),
        (Target("boolean"), 1.0, ""),
        (Target("boolean"), 0.5, "refused"),
        (Target("boolean"), "false", "changed"),
        (Target("boolean"), "TRUE", "changed"),
        (Target("boolean"), "maybe", "refused"),
        (Target("boolean"), b"1", "refused"),
        (STAMP, "2026-02-28 23:59:59.999999", ""),
        (STAMP, "2026-02-28 23:59:59", ""),
        (STAMP, "2026-02-28T23:59", ""),
        (STAMP, "2026-02-28", ""),
        (STAMP, "2026-02-28 23:59:59Z", ""),
        (STAMP, "2026-02-28 23:59:59+00:00", ""),
        (STAMP, "2026-02-28 23:59:59.1234560", ""),
        (STAMP, "2026-02-28 23:59:59.1234567", "changed"),
        (STAMP, "2026-02-28 23:59:59+02:00", "changed"),
        (STAMP, "2026-02-28 23:59:59-0530", "changed"),
        (STAMP, "2026-02-28 24:00:00", "changed"),
        (STAMP, "2026-02-28 23:59:60", "changed"),
        (STAMP, "2026-02-28 24:00:01", "refused"),
        (STAMP, "2026-02-29 00:00:00", "refused"),
        (STAMP, "2026-13-01 00:00:00", "refused"),
        (STAMP, "0000-01-01 00:00:00", "refused"),
        (STAMP, "2026-02-28 00:00:00+99:00", "refused"),
        (STAMP, "2026-02-28 00:00:00 and more", "refused"),
        (STAMP, "٢٠٢٦-02-28 00:00:00", "refused"),
        (STAMP, "yesterday", "refused"),
        (STAMP, 1772353800, "refused"),
        (Target("uuid"), UUID, ""),
        (Target("uuid"), UUID.upper(), "changed"),
        (Target("uuid"), UUID.replace("-", ""), "changed"),
        (Target("uuid"), "0d4268756d86", "refused"),
        (Target("uuid"), 7, "refused"),
        (Target("uuid"), b"0123456789abcdef", "refused"),
        (Target("json"), '{"a": 1e22, "b": "\\u0000\\ud800"}', ""),
        (Target("json"), "NaN", "refused"),
        (Target("json"), float("inf"), "refused"),
        (Target("json"), b"{}", "refused"),
        (Target("json"), "", "refused"),
        (Target("jsonb"), 0, ""),
        (Target("jsonb"), 1.5, ""),
        (Target("jsonb"), 1e22, "changed"),
        (Target("jsonb"), '{"a": "\\u0000"}', "refused"),
        (Target("jsonb"), b"{}", "refused"),
        (Target("text[]"), '["a", "\\u00fc"]', ""),
        (Target("text[]"), "[]", ""),
        (Target("text[]"), "null", "changed"),
        (Target("text[]"), '["a", 1]', "refused"),
        (Target("text[]"), '["a", null]', "refused"),
        (Target("text[]"), '["a\\u0000"]', "refused"),
        (Target("text[]"), '{"a": "b"}', "refused"),
        (Target("text[]"), 5, "refused"),
        (Target("text[]"), b"[]", "refused"),
        (Target("text[]"), "[", "refused"),
    ],
)
def test_value_gets_its_verdict(target: Target, value: object, kind: str) -> None:
    """Each storage class under each type: taken, changed or refused."""
    assert _verdict(target, value) == kind


# Every kind of number, string and structure that a JSON text can hold and jsonb treats in its way.
DOCUMENTS = [
    *("0", "-0", "-0.0", "-0e0", "0.0", "0e5", "1", "1.0", "1.5", "1e0", "1e5", "1.5e1", "1.5e2"),
    *("1e-7", "1e22", "1E+22", "1e16", "1.50e1", "1e-5", "0.1e1", "-1.5e+300", "12e-1", "120e-1"),
    *("1e131071", "1e131072", "-1e131072", "1e-16383", "1e-16384", "0e131072", "1.0e-16383"),
    *("123456789012345678901234567890", "01", "+1", ".5", "1.", "1e", "--1", "0x1", "NaN", "-NaN"),
    *("Infinity", "-Infinity", "null", "true", "false", "TRUE", "nil", '""', '"a"', "'a'", '"a'),
    *('"\\u0000"', '"\\ud800"', '"\\udc00"', '"\\ud83d\\ude00"', '"\\ude00\\ud83d"', '"\\\\ud800"'),
    *('"\\x"', '"\\u12"', '"tab\t"', '"line\n"', '"\\n"', "[]", "[1,]", "[1 2]", "{}", '{"a"}'),
    *('{"a":1,"a":2}', '{"\\u0000":1}', "{a:1}", '{"a":1,}', " [ 1 , 2 ] ", "", " ", "[" * 400),
    *("[" * 400 + "]" * 400, "\ufeff{}", '"é日本"', '{"a": -0.0}', '{"a": [1, {"b": 2e3}]}', "1 1"),
    *(
        '"\\/"',
        '"\\b\\f\\r\\t"',
        "1e+05",
        "1E-05",
        "-1e-400",
        "-0e-5",
        "-0.00e-1",
        "-0.01",
        "2e308",
        "[1e5, NaN]",
        '"\x7f"',
    ),
]


async def _answers(server: Server, kind: str, documents: list[str]) -> dict[str, str | None]:
    """Ask a server what each JSON text becomes; None where it is refused."""
    connection = await server.connect("postgres")
    answers: dict[str, str | None] = {}
    try:
        for document in documents:
            try:
                answers[document] = await connection.fetchval(
                    f"SELECT $1::text::{kind}::text", document
                )
            except asyncpg.PostgresError:
                answers[document] = None
    finally:
        await connection.close()
    return answers


def _meaning(document: str) -> object:
    """Read a JSON text so that 1 and 1.0, and 0.0 and -0.0, differ."""
    return repr(json.loads(document, parse_int=lambda digits: ("int", digits.lstrip("-0") or "0")))


@pytest.mark.parametrize("kind", ["json", "jsonb"])
def test_json_verdicts_are_the_servers(every_postgres: Server, kind: str) -> None:
    """What the server refuses is refused, what it changes is changed, the rest is taken."""
    answers = asyncio.run(_answers(every_postgres, kind, DOCUMENTS))

    wrong = {}
    for document, answer in answers.items():
        verdict = judge_json(document.encode(), binary=kind == "jsonb")
        found = verdict.kind if verdict else ""
        expected = (
            "refused"
            if answer is None
            else "changed"
            if len(document) < 400 and _meaning(answer) != _meaning(document)
            else ""
        )
        if found != expected:
            wrong[document[:40]] = (found, expected, answer and answer[:40])
    assert wrong == {}


numbers = st.from_regex(
    r"-?(0|[1-9][0-9]{0,4})(\.[0-9]{1,4})?([eE][+-]?[0-9]{1,3})?", fullmatch=True
)
strings = st.text(st.characters(exclude_categories=[]), max_size=6).map(json.dumps)
documents = st.recursive(
    numbers | strings | st.sampled_from(["null", "true", "NaN", "-0.0", '"\\ud83d\\ude00"']),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")
        | st.lists(st.tuples(strings, inner), max_size=3).map(
            lambda pairs: "{" + ",".join(f"{key}:{value}" for key, value in pairs) + "}"
        )
    ),
    max_leaves=6,
)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(documents, min_size=20, max_size=20))
def test_no_document_is_cleared_that_the_server_refuses(postgres: Server, many: list[str]) -> None:
    """Of documents that nobody thought of, those judged to be taken are taken as they are."""
    cleared = [text for text in many if _utf8(text) and not judge_json(text.encode(), binary=True)]

    answers = asyncio.run(_answers(postgres, "jsonb", cleared))

    assert [text for text, answer in answers.items() if answer is None] == []
    without_twins = {
        text: answer for text, answer in answers.items() if answer and not _has_twin_keys(text)
    }
    assert [t for t, a in without_twins.items() if _sorted(a) != _sorted(t)] == []


def _utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _sorted(document: str | None) -> str:
    tree = json.loads(document or "", parse_int=lambda digits: f"int {int(digits)}")
    return json.dumps(tree, sort_keys=True)


def _has_twin_keys(document: str) -> bool:
    twins = []
    json.loads(
        document, object_pairs_hook=lambda pairs: twins.append(len(pairs) - len(dict(pairs)))
    )
    return any(twins)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("timestamptz", ["2026-02-28 23:59:59.999999", "2026-02-28T23:59", "2026-02-28",
                         "2026-02-28 23:59:59Z", "0001-01-01 00:00:00", "9999-12-31 23:59:59.5",
                         "2024-02-29 12:00:00+00"]),
        ("uuid", [UUID]),
        ("varchar(4)", ["äöüß", "", "日本語字"]),
    ],
)  # fmt: skip
def test_what_is_cleared_is_taken(postgres: Server, kind: str, values: list[str]) -> None:
    """The server takes, unchanged in meaning, every text that gets no verdict."""
    target = {
        "timestamptz": STAMP,
        "uuid": Target("uuid"),
        "varchar(4)": Target("character varying", 4),
    }[kind]

    for value in values:
        assert _verdict(target, value) == ""
        taken = postgres.rows("postgres", f"SELECT $1::text::{kind} IS NOT NULL", value)
        assert taken == [(True,)]


def test_long_indexed_text_is_refused_by_the_server_too(postgres: Server, database: str) -> None:
    """The limit is below PostgreSQL's for what does not compress, and not far below."""
    noise = "".join(chr(0x4E00 + (n * 7919) % 20000) for n in range(2000))
    postgres.run(database, "CREATE TABLE t (x text PRIMARY KEY)")

    async def insert(text: str) -> None:
        connection = await postgres.connect(database)
        try:
            await connection.execute("INSERT INTO t VALUES ($1)", text)
        finally:
            await connection.close()

    asyncio.run(insert(noise[:866]))  # 2598 bytes
    with pytest.raises(asyncpg.ProgramLimitExceededError):
        asyncio.run(insert(noise[:920]))


TEXTS = """
false|pending|null|[]|["a", "b"]|["ü"]|["a",1]|["a" ]|[1e5]|{"a": 1e-5}|{"a": -0.0}|{"h": "a3e5"}
["\\u65e5\\u672c"]|"\\ud83d"|"\\ud83d\\ude00"|1e-99999|{"a": NaN}|2026-02-28 23:59:59
2026-02-30 10:00:00.000000|2026-02-28 24:00:00|2026-12-31 23:59:59.999999|2026-01-00 00:00:00
0000-01-01 00:00:00|2026-02-28 23:59:60|2026-02-28T00:00:00|2026-02-28 00:00:00.1
"""
STAMPED = "2026-02-28 23:59:59"
cells = st.one_of(
    st.none(),
    st.sampled_from([0, 1, 2, -1, 2**31, -(2**63), 2**63 - 1, 1.5, -0.0, 1e22, float("inf")]),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.binary(max_size=5),
    st.sampled_from(re.split(r"[|\n]", TEXTS.strip())),
    st.sampled_from(["", UUID, UUID.replace("-", ""), '["a"\n]', "x" * 300, "x" * 3000]),
    # What a filter that joins texts by lines, or reads up to a NUL, would take for something else.
    st.sampled_from(["\n", '["a"]\n["b"]', f"{STAMPED}\n{STAMPED}", f"{UUID}\0", "{}\0", "[]\0"]),
    documents,
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8).map(lambda text: f'["{text}"]'),
)
TABLES = ["fleet_tasks", "workflow_runs", "workspaces", "notification_channels", "enrollment_keys"]


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(TABLES), st.data())
def test_scan_finds_what_judging_every_value_finds(table: str, data: st.DataObject) -> None:
    """The filter clears nothing that the judge would not: the law that makes the scan exact."""
    columns = list(metadata.tables[table].columns)
    rows = data.draw(
        st.lists(st.tuples(*(cells for _ in columns)), min_size=1, max_size=6), label="rows"
    )
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        kinds = ", ".join(
            f'"{column.name}" {ddl.column_clause(column).split()[1]}' for column in columns
        )
        connection.execute(f"CREATE TABLE {table} ({kinds})")
        marks = ", ".join("?" for _ in columns)
        connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)
        # Bytes that are not UTF-8 come into a TEXT only by a cast.
        connection.execute(
            f'UPDATE {table} SET "{columns[0].name}" = CAST(? AS TEXT) WHERE _rowid_ = 1',
            (data.draw(st.binary(max_size=3), label="bytes"),),
        )
        reading_bytes(connection)
        found = Tally()
        plan = plan_scan(
            metadata.tables[table],
            [c.name for c in columns],
            cut_at_nul=data.draw(st.booleans(), label="cut at NUL"),
        )
        with (  # so few that several ranges follow each other
            mock.patch.object(scan, "_ROWS", data.draw(st.integers(1, 3), label="rows at once")),
            mock.patch.object(scan, "_JUDGED_RANGES", 1),
        ):
            scan_table(connection, plan, found)
        expected: dict[tuple[str, str], int] = {}
        for row in connection.execute(f"SELECT * FROM {table}"):
            for column, value in zip(columns, row, strict=True):
                verdict = judge(target_of(column), value)
                if verdict:
                    which = (column.name, verdict.reason)
                    expected[which] = expected.get(which, 0) + 1

    assert {(f.column, f.reason): f.count for f in found.findings()} == expected


def test_targets_are_read_off_the_metadata() -> None:
    """Types, lengths, keys and what may be NULL."""
    runs = metadata.tables["workflow_runs"].columns

    assert target_of(runs["id"]) == Target("text", required=True, indexed=True)
    assert target_of(runs["idempotency_key"]) == Target("character varying", 255, indexed=True)
    assert target_of(runs["estimated_cost_usd"]) == Target("double precision")
    assert target_of(runs["effective_env_keys"]).type == "text[]"
    assert target_of(metadata.tables["notification_channels"].columns["config"]) == Target(
        "text", required=True, any_number=True
    )


def test_list_verdict_is_about_the_first_fault() -> None:
    """A list may hold strings and nothing else."""
    assert judge_list(b'["a", "b"]') is None
    assert judge_list(b"[[]]") is not None


@pytest.mark.parametrize("before", ["", '{"h": "a3e5\\u65e5"}\n'])
def test_filter_on_bytes_clears_no_document_with_a_verdict(before: str) -> None:
    """Alone or among others, each valid document that jsonb changes or refuses is suspected."""
    missed = [
        document
        for document in DOCUMENTS
        if judge_json(document.encode(), binary=False) is None
        and judge_json(document.encode(), binary=True) is not None
        and prefilter.clears_documents((before + document).encode())
    ]

    assert missed == []


@pytest.mark.parametrize(
    "document",
    [
        '{"when": "2026-03-01T10:00:00-05:00", "id": "3f2a8c1e-0b5d-4a6f-9c7e-1d2b3a4c5e6f"}',
        '{"sha": "9e107d9d372bb6826bd81d3542a419d6", "cost": 1.5e-05, "delta": -0.25}',
        '{"text": "\\u65e5\\u672c \\ud83d\\ude00 na\\u00efve"}',
    ],
)
def test_filter_on_bytes_clears_what_is_common(document: str) -> None:
    """Hashes, UUIDs, dates, small numbers and escaped emoji do not cost a second look."""
    assert prefilter.clears_documents(document.encode())
