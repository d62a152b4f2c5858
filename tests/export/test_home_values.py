"""Values of a home: the same verdict from `db check`, from a plan and from PostgreSQL itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from postgres_server import Server
from sagewai_ops.export.compare import audit_chain
from sagewai_ops.export.convert import value as convert_value
from sagewai_ops.export.convert.batch import Target, Type, encode_value
from sagewai_ops.export.convert.value import RefusedError, Stored
from sagewai_ops.export.mapping.target_catalog import read_head_columns, read_tables
from sagewai_ops.export.validate import home_values, prefilter
from sagewai_ops.export.validate.home_values import check_values
from sagewai_ops.home.paths import Home
from sagewai_ops.operations.check_database import check_database
from sagewai_ops.schema import sqlite_head
from targets import at_head, copy_of, exported, home_with

UUID = "3f2a8c1e-0b5d-4a6f-9c7e-1d2b3a4c5e6f"
LONG = "x" * 9000

# Table, column, what is stored as an expression of SQLite, the kind of the finding of both commands
# or "" for none, the kind of the note of `db check`, and for an accepted value what PostgreSQL has:
# an expression of the server, so that its own input functions decide.
STORED = [
    ("org", "name", "'any ünïcode 日本'", "", "", "'any ünïcode 日本'::text"),
    ("org", "name", "'a' || char(0)", "nul", "", ""),
    ("org", "name", "CAST(x'ff' AS TEXT)", "invalid-utf8", "", ""),
    ("org", "name", "x'616263'", "storage-class", "", ""),
    ("budget_limits", "action", "'a word that is too long'", "too-long", "", ""),
    ("budget_limits", "action", "'warn' || printf('%40s', ' ')", "too-long", "", ""),
    ("budget_limits", "max_daily_usd", "'much'", "storage-class", "", ""),
    ("budget_limits", "max_daily_usd", "9e999", "", "", "'Infinity'::float8"),
    ("workflow_runs", "steps_completed", "3000000000", "out-of-range", "", ""),
    ("workflow_runs", "steps_completed", "1.5", "storage-class", "", ""),
    ("workflow_runs", "steps_completed", "'many'", "storage-class", "", ""),
    ("workflow_runs", "input_encrypted", "'false'", "", "boolean-word", "'false'::boolean"),
    ("workflow_runs", "input_encrypted", "'yes'", "", "boolean-word", "'yes'::boolean"),
    ("workflow_runs", "input_encrypted", "' Off '", "", "boolean-word", "' Off '::boolean"),
    ("workflow_runs", "input_encrypted", "'tru'", "", "boolean-word", "'tru'::boolean"),
    ("workflow_runs", "input_encrypted", "'maybe'", "not-a-boolean", "", ""),
    ("workflow_runs", "input_encrypted", "2", "not-a-boolean", "", ""),
    ("workflow_runs", "created_at", "'2026-02-28 23:59:59'", "", "",
     "'2026-02-28 23:59:59+00'::timestamptz"),
    ("workflow_runs", "created_at", "'2026-02-28T23:59'", "", "",
     "'2026-02-28T23:59+00'::timestamptz"),
    ("workflow_runs", "created_at", "'2026-02-28 24:00:00'", "", "rolled-timestamp",
     "'2026-02-28 24:00:00+00'::timestamptz"),
    ("workflow_runs", "created_at", "'2026-02-28 23:59:60'", "", "rolled-timestamp",
     "'2026-02-28 23:59:60+00'::timestamptz"),
    ("workflow_runs", "created_at", "'2026-02-28 08:30:60.5'", "", "rolled-timestamp",
     "'2026-02-28 08:30:60.5+00'::timestamptz"),
    ("workflow_runs", "created_at", "'2026-02-28 23:59:59-0530'", "", "utc-offset",
     "'2026-02-28 23:59:59-0530'::timestamptz"),
    ("workflow_runs", "created_at", "'2026-02-28 24:00:01'", "not-a-timestamp", "", ""),
    ("workflow_runs", "created_at", "'2026-02-29 00:00:00'", "not-a-timestamp", "", ""),
    ("workflow_runs", "created_at", "'2026-02-28 23:59:59.1234567'", "timestamp-precision", "", ""),
    ("workflow_runs", "created_at", "1772353800", "storage-class", "", ""),
    ("harness_audit", "id", f"'{UUID}'", "", "", f"'{UUID}'::uuid"),
    ("harness_audit", "id", f"'{{{UUID}}}'", "", "uuid-form", f"'{{{UUID}}}'::uuid"),
    ("harness_audit", "id", f"'{UUID.upper()}'", "", "uuid-form", f"'{UUID.upper()}'::uuid"),
    ("harness_audit", "id", f"'{UUID.replace('-', '')}'", "", "uuid-form",
     f"'{UUID.replace('-', '')}'::uuid"),
    ("harness_audit", "id", "'3f2a-8c1e0b5d4a6f-9c7e1d2b-3a4c-5e6f'", "", "uuid-form",
     "'3f2a-8c1e0b5d4a6f-9c7e1d2b-3a4c-5e6f'::uuid"),
    ("harness_audit", "id", "'0d4268756d86'", "", "derived-uuid",
     "'00000000-0000-0000-0000-0d4268756d86'::uuid"),
    ("harness_audit", "id", f"x'{UUID.replace('-', '')}'", "storage-class", "", ""),
    ("harness_audit", "id", "CAST(x'ff' AS TEXT)", "invalid-utf8", "", ""),
    ("sessions", "messages", "'{\"a\": 1.50, \"b\": 1e22}'", "", "",
     "'{\"a\": 1.50, \"b\": 1e22}'::jsonb"),
    ("sessions", "messages", "5", "", "", "'5'::jsonb"),
    ("sessions", "messages", "'[NaN]'", "json-nan", "", ""),
    ("sessions", "messages", "9e999", "not-json", "", ""),
    ("sessions", "messages", "'[1e400000]'", "json-number", "", ""),
    ("sessions", "messages", r"""'["\u0000"]'""", "json-nul", "", ""),
    ("sessions", "messages", r"""'["\ud800"]'""", "json-surrogate", "", ""),
    ("sessions", "messages", "''", "not-json", "", ""),
    ("sessions", "messages", "x'7b7d'", "storage-class", "", ""),
    ("context_documents", "tags", "'[\"a\", \"ü\"]'", "", "", "'{a,ü}'::text[]"),
    ("context_documents", "tags", "'null'", "", "null-list", "'{}'::text[]"),
    ("context_documents", "tags", "'[1]'", "list-element", "", ""),
    ("context_documents", "tags", "'{\"a\": 1}'", "not-a-list", "", ""),
    ("agent_runs", "agent_name", f"'{LONG}'", "", "index-row", f"'{LONG}'::text"),
    ("agent_runs", "agent_name", "NOISE", "index-row", "", ""),
    ("audit_event", "metadata", "'{\"n\": 1.5}'", "", "", "'{\"n\": 1.5}'::jsonb"),
]  # fmt: skip


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home without notes, with two rows in each table."""
    home = home_with(tmp_path_factory.mktemp("clean") / "home", rows=2)
    with contextlib.closing(sqlite3.connect(home.database)) as connection:
        for table, content in sqlite_head.tables().items():
            for column in content.columns:
                kind = read_head_columns(table)[column].type
                if kind == Type("boolean"):
                    connection.execute(f'UPDATE {table} SET "{column}" = 1')
                elif kind == Type("uuid"):
                    connection.execute(
                        f'UPDATE {table} SET "{column}" = ? || "{column}"'
                        f' WHERE length("{column}") = 12',
                        ("00000000-0000-0000-0000-",),
                    )
                elif kind == Type("text[]"):
                    connection.execute(
                        f"UPDATE {table} SET \"{column}\" = '[]' WHERE \"{column}\" = 'null'"
                    )
        connection.commit()
    return home


@pytest.mark.parametrize(
    ("table", "column", "expression", "kind", "note", "expected"),
    STORED,
    ids=[f"{number}-{row[1]}-{row[3] or row[4]}" for number, row in enumerate(STORED)],
)
def test_check_and_plan_agree_and_accepted_values_are_what_postgres_reads(
    tmp_path: Path,
    clean: Home,
    postgres: Server,
    table: str,
    column: str,
    expression: str,
    kind: str,
    note: str,
    expected: str,
) -> None:
    """One stored value: the same finding from both, or none, and then it arrives."""
    home = copy_of(clean, tmp_path / "home")
    noise = "".join(chr(0x4E00 + (n * 7919 + n // 7) % 20000) for n in range(4000))
    expression = expression.replace("NOISE", f"'{noise}'")
    with contextlib.closing(sqlite3.connect(home.database)) as connection:
        connection.execute(f"UPDATE {table} SET {column} = {expression} WHERE rowid = 1")
        connection.commit()
    database = at_head(postgres)

    checked = check_database(home.database)
    planned = exported(home, postgres, database, purpose="plan")

    assert [finding.kind for finding in checked.findings] == ([kind] if kind else [])
    assert [finding.kind for finding in checked.notes] == ([note] if note else [])
    assert [finding.kind for finding in planned.findings] == ([kind] if kind else [])
    if kind:
        return
    assert exported(home, postgres, database).committed
    value = f"(SELECT {column} FROM {table} LIMIT 1)"
    if column in ("id", "agent_name"):
        found = f"EXISTS (SELECT 1 FROM {table} WHERE {column} = {expected})"
    else:
        found = (
            f"EXISTS (SELECT 1 FROM {table} WHERE {column} IS NOT DISTINCT FROM {expected})"
            f" AND pg_typeof({value}) = pg_typeof({expected})"
        )
    assert postgres.rows(database, f"SELECT {found}") == [(True,)]


def test_null_with_a_default_is_a_note_and_else_a_finding(tmp_path: Path) -> None:
    """The export writes the default; without one it refuses the row."""
    found: list[tuple[str, str, bool]] = []
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute("CREATE TABLE users (id TEXT, email TEXT, display_name TEXT)")
        connection.execute("INSERT INTO users VALUES ('u', NULL, NULL)")

        check_values(
            connection,
            "users",
            ["id", "email", "display_name"],
            lambda kind, column, _reason, _rows, *, is_note: found.append((kind, column, is_note)),
        )

    assert found == [("null", "email", False), ("null", "display_name", True)]


# Every kind of number, string and structure that a JSON text can contain.
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
    *('"\\/"', '"\\b\\f\\r\\t"', "1e+05", "1E-05", "-1e-400", "-0e-5", "-0.00e-1", "-0.01"),
    *("2e308", "[1e5, NaN]", '"\x7f"', "1e5000", "0e99999", "1e-00005"),
]


async def _answers(server: Server, kind: str, documents: list[str]) -> dict[str, str | None]:
    """Cast each JSON text on a server; None where it is refused."""
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


def _is_accepted(kind: str, value: Stored) -> bool:
    try:
        encode_value(Target(Type(kind), nullable=False), value)
    except RefusedError:
        return False
    return True


@pytest.mark.parametrize("kind", ["json", "jsonb"])
def test_documents_are_refused_that_the_server_refuses(every_postgres: Server, kind: str) -> None:
    """On every version, and no others."""
    answers = asyncio.run(_answers(every_postgres, kind, DOCUMENTS))

    wrong = {
        document[:40]: answer and answer[:40]
        for document, answer in answers.items()
        if _is_accepted(kind, bytearray(document.encode())) != (answer is not None)
    }
    assert wrong == {}


def test_numbers_that_jsonb_changes_are_known(every_postgres: Server) -> None:
    """An audit event's hash survives exactly the documents that Python reads alike afterwards."""
    answers = asyncio.run(_answers(every_postgres, "jsonb", DOCUMENTS))

    wrong = {}
    for document, answer in answers.items():
        if answer is None or len(document) >= 400:
            continue
        try:
            expected = json.dumps(json.loads(answer), sort_keys=True) == json.dumps(
                json.loads(document), sort_keys=True
            )
        except ValueError:
            expected = False  # more digits than Python reads
        if audit_chain.is_unchanged_by_jsonb(document) is not expected:
            wrong[document] = answer[:40]
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
def test_no_document_is_accepted_that_the_server_refuses(postgres: Server, many: list[str]) -> None:
    """Generated documents that the exporter accepts are accepted by the server, unchanged."""
    accepted = [text for text in many if _is_accepted("jsonb", bytearray(text.encode()))]

    answers = asyncio.run(_answers(postgres, "jsonb", accepted))

    assert [text for text, answer in answers.items() if answer is None] == []
    assert [t for t, a in answers.items() if _exact(a or "") != _exact(t)] == []


def _exact(document: str) -> str:
    """Parse a document, the last of equal keys, numbers by value."""
    tree = json.loads(document, parse_int=float)
    return json.dumps(tree, sort_keys=True).replace("-0.0", "0.0")


TEXTS = """
false|pending|null|[]|["a", "b"]|["ü"]|["a",1]|["a" ]|[1e5]|{"a": 1e-5}|{"a": -0.0}|{"h": "a3e5"}
["\\u65e5\\u672c"]|"\\ud83d"|"\\ud83d\\ude00"|1e-99999|{"a": NaN}|2026-02-28 23:59:59
2026-02-30 10:00:00.000000|2026-02-28 24:00:00|2026-12-31 23:59:59.999999|2026-01-00 00:00:00
0000-01-01 00:00:00|2026-02-28 23:59:60|2026-02-28T00:00:00|2026-02-28 00:00:00.1|yes|tr|1e131072
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
Counts = dict[tuple[str, str, bool], int]


def _convert(connection: sqlite3.Connection, table: str) -> Counts:
    """Convert every value of a table, and count refusals and notes by column and kind."""
    connection.text_factory = bytearray
    found: Counts = {}
    columns = read_head_columns(table)
    for row in connection.execute(f"SELECT * FROM {table}"):
        for name, value in zip(sqlite_head.tables()[table].columns, row, strict=True):
            column = columns[name]
            assert column.type is not None
            result: tuple[str, str, bool] | None = None
            if value is None and column.not_null and column.default and not column.numbered:
                result = (name, "null", True)
            else:
                try:
                    encode_value(Target(column.type, nullable=not column.not_null), value)
                except RefusedError as error:
                    result = (name, error.kind, False)
                else:
                    described = value is not None and convert_value.describe_conversion(
                        column.type.name, value
                    )
                    result = (name, described[0], True) if described else None
            if result:
                found[result] = found.get(result, 0) + 1
    return found


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(TABLES), st.data())
def test_the_filter_accepts_nothing_that_the_conversions_do_not(
    table: str, data: st.DataObject
) -> None:
    """The law that makes a scan exact: it finds what converting every value finds."""
    columns = list(sqlite_head.tables()[table].columns.values())
    rows = data.draw(
        st.lists(st.tuples(*(cells for _ in columns)), min_size=1, max_size=6), label="rows"
    )
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        kinds = ", ".join(f'"{column.name}" {column.type}' for column in columns)
        connection.execute(f"CREATE TABLE {table} ({kinds})")
        marks = ", ".join("?" for _ in columns)
        connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)
        # Bytes that are not UTF-8 come into a TEXT only by a cast.
        connection.execute(
            f'UPDATE {table} SET "{columns[0].name}" = CAST(? AS TEXT) WHERE _rowid_ = 1',
            (data.draw(st.binary(max_size=3), label="bytes"),),
        )
        found: Counts = {}

        def report(
            kind: str, column: str, reason: str, rows: Sequence[int], *, is_note: bool
        ) -> None:
            assert reason
            if kind not in ("index-row", "last-number"):
                group = (column, kind, is_note)
                found[group] = found.get(group, 0) + len(rows)

        cut = data.draw(st.booleans(), label="cut at NUL")
        with (  # so few that several ranges follow each other
            mock.patch.object(
                home_values, "_ROWS", data.draw(st.integers(1, 3), label="rows at once")
            ),
            mock.patch.object(home_values, "_UNFILTERED_RANGES", 1),
            mock.patch.object(home_values, "_cuts_at_nul", return_value=cut),
        ):
            check_values(connection, table, [column.name for column in columns], report)
        expected = _convert(connection, table)

    assert found == expected


@pytest.mark.parametrize("before", ["", '{"h": "a3e5\\u65e5"}\n'])
def test_the_filter_on_bytes_accepts_no_document_that_jsonb_refuses(before: str) -> None:
    """Alone or among others."""
    missed = [
        document
        for document in DOCUMENTS
        if _is_accepted("json", bytearray(document.encode()))
        and not _is_accepted("jsonb", bytearray(document.encode()))
        and prefilter.accepts_documents((before + document).encode())
    ]

    assert missed == []


@pytest.mark.parametrize(
    "document",
    [
        '{"when": "2026-03-01T10:00:00-05:00", "id": "3f2a8c1e-0b5d-4a6f-9c7e-1d2b3a4c5e6f"}',
        '{"sha": "9e107d9d372bb6826bd81d3542a419d6", "cost": 1.5e-05, "delta": -0.25}',
        '{"sha": "9e1079990372bb6826bd81d354e1000019d6", "large": 1e22, "zero": -0.0}',
        '{"text": "\\u65e5\\u672c \\ud83d\\ude00 na\\u00efve"}',
    ],
)
def test_the_filter_on_bytes_accepts_common_documents(document: str) -> None:
    """Hashes, UUIDs, dates, small numbers and escaped emoji are not parsed."""
    assert prefilter.accepts_documents(document.encode())


def test_the_columns_of_the_head_are_those_of_a_migrated_database(postgres: Server) -> None:
    """The types, NULLs and defaults that `db check` uses are those that an export reads."""
    database = at_head(postgres)

    async def read() -> dict[str, dict[str, tuple[object, ...]]]:
        connection = await postgres.connect(database)
        try:
            tables = await read_tables(connection)
        finally:
            await connection.close()
        return {
            name: {
                column.name: (column.type, column.not_null, column.default, column.numbered)
                for column in table.columns.values()
            }
            for name, table in tables.items()
        }

    for name, columns in asyncio.run(read()).items():
        assert columns == {
            column.name: (column.type, column.not_null, column.default, column.numbered)
            for column in read_head_columns(name).values()
        }
