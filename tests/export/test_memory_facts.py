"""What the exporter must know of both engines, fact by fact, each on a real server.

One home holds a value for every fact, one export contains them all, and each test looks at one.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sagewai_ops.export
from dirty_homes import faults
from json_schemas import DIRECTORY
from postgres_server import Server, installations, running
from sagewai_ops.export.export import Options, export
from sagewai_ops.export.report import Report
from sagewai_ops.schema.revision_graph import HEAD
from targets import at_head, counts_of, exported, home_with, url_of

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "export.md"

# Table, column, what SQLite is given, what PostgreSQL answers when it is asked for a text.
VALUES = {
    # JSON lists become text[]
    "list": ("context_documents", "tags", """'["a", "b,c", "{d}", "\\"e\\"", ""]'""",
             '{a,"b,c","{d}","\\"e\\"",""}'),
    "empty list": ("workers", "models_supported", "'[]'", "{}"),
    "no list, where one must be": ("enrollment_keys", "allowed_pools", "'null'", "{}"),
    "no list, where none may be": ("agent_access_tokens", "scopes", "'null'", None),
    # json keeps every character, jsonb every value
    "json as it is written": ("agent", "spec", r"""'{"b" : 1,  "a": 2, "a": 3}'""",
                              '{"b" : 1,  "a": 2, "a": 3}'),
    "json with escapes that jsonb refuses": ("connection", "tags", r"""'["\u0000", "\ud800"]'""",
                                             r'["\u0000", "\ud800"]'),
    "jsonb by value": ("sessions", "memory_keys", """'{"b" : 1, "a": 2, "a": 3}'""",
                       '{"a": 3, "b": 1}'),
    "jsonb's own form of numbers": ("workflow_runs", "input", "'[1e22, -0.0, 0.1, 1e-7]'",
                                        "[10000000000000000000000, 0.0, 0.1, 0.0000001]"),
    "a document that is an integer": ("workflow_runs", "data", "'0'", "0"),
    "a document that is a real number": ("sessions", "messages", "'1.5'", "1.5"),
    "json null in jsonb": ("workflow_runs", "directive_chain", "'null'", "null"),
    "json null in json": ("workflow_runs", "artifact_destination", "'null'", "null"),
    "sql null in json": ("connection", "last_error", "NULL", None),
    # other kinds on the two sides
    "a document for a text column": ("notification_channels", "config", """'{"b" : 1, "a":2}'""",
                                     '{"b" : 1, "a":2}'),
    "a number for a text column": ("notification_channels", "config", "'0'", "0"),
    "a text for a jsonb column": ("workspaces", "settings", """'{"a" : [1, null]}'""",
                                  '{"a": [1, null]}'),
    "no text for a jsonb column": ("workspaces", "settings", "NULL", None),
    "a document that is text on both sides": ("prompt_logs", "tags", """'[ "a" ]'""", '[ "a" ]'),
    # moments: UTC, by whomever they were written
    "sagewai's form": ("sessions", "created_at", "'2026-03-01 08:30:00.000001'",
                       "2026-03-01 08:30:00.000001+00"),
    "sqlite's form": ("sessions", "updated_at", "'2026-03-01 08:30:00'", "2026-03-01 08:30:00+00"),
    "a letter t": ("agent_runs", "created_at", "'2026-03-01T08:30:00.5'",
                   "2026-03-01 08:30:00.5+00"),
    "a letter z": ("project", "created_at", "'2026-03-01T08:30:00Z'", "2026-03-01 08:30:00+00"),
    "an offset": ("project", "updated_at", "'2026-03-01 08:30:00+05:45'", "2026-03-01 02:45:00+00"),
    "long ago": ("agent", "created_at", "'0001-01-01 00:00:00.000000'",
                 "0001-01-01 00:00:00+00"),
    "in a long time": ("agent", "updated_at", "'9999-12-31 23:59:59.999999'",
                       "9999-12-31 23:59:59.999999+00"),
    "a moment that is text": ("connection", "last_tested_at", "'2026-03-01T08:30:00+05:45'",
                              "2026-03-01T08:30:00+05:45"),
    "a moment that is a number": ("agent_runs", "started_at", "1772353800.123456",
                                  "1772353800.123456"),
    # truth
    "the text false": ("guardrail_configs", "enabled", "'false'", "false"),
    "the text true": ("notification_triggers", "enabled", "'true'", "true"),
    "zero": ("notification_channels", "enabled", "0", "false"),
    "no truth": ("connection", "last_test_ok", "NULL", None),
    # numbers
    "64 bits": ("rate_limits", "window_start", "9223372036854775807", "9223372036854775807"),
    "the largest of 32 bits": ("agent_runs", "total_tokens", "2147483647", "2147483647"),
    "infinity": ("agent_runs", "cost_usd", "-9e999", "-Infinity"),
    "the smallest of all": ("harness_spend", "cost_usd", "5e-324", "5e-324"),
    "an integer for float8": ("budget_limits", "max_daily_usd", "3", "3"),
    "a text that looks like a number": ("users", "oauth_id", "'007'", "007"),
    # texts
    "characters, not bytes": ("budget_limits", "agent_name", f"'{'日' * 255}'", "日" * 255),
    "what copy escapes": ("agent_runs", "output_text", r"'\N \. \x' || char(9, 10, 13, 8, 92)",
                          "\\N \\. \\x\t\n\r\b\\"),
    "an empty text is no null": ("agent_runs", "error", "''", ""),
    "long, and yet small enough for an index": ("agent_runs", "agent_name", f"'{'a' * 9000}'",
                                                "a" * 9000),
    # ids
    "twelve digits": ("harness_policies", "id", "'0123456789ab'",
                      "00000000-0000-0000-0000-0123456789ab"),
    "a uuid in capitals": ("enrollment_keys", "id", "'AB4468F0-7022-4BBA-A583-069CBA742D38'",
                           "ab4468f0-7022-4bba-a583-069cba742d38"),
    "a workflow run": ("workflow_runs", "id", "'my:project:w:1'", "nightly:run-0000"),
}  # fmt: skip


def _spoil(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA foreign_keys = OFF")
    used: dict[tuple[str, str], int] = {}
    for table, column, expression, _ in VALUES.values():
        row = used[table, column] = used.get((table, column), 0) + 1
        connection.execute(f"UPDATE {table} SET {column} = {expression} WHERE rowid = {row}")
    connection.execute("DELETE FROM guardrail_events")


def _row_of(name: str) -> int:
    """Return in which row of its table a value is."""
    place = VALUES[name][:2]
    earlier = list(VALUES)[: list(VALUES).index(name)]
    return 1 + sum(VALUES[other][:2] == place for other in earlier)


@pytest.fixture(scope="module")
def moved(
    tmp_path_factory: pytest.TempPathFactory, _postgres_session: None
) -> tuple[Server, str, Report]:
    """A server, a database on it with everything, and the report of how it got there."""
    if not installations():
        pytest.skip("no PostgreSQL here")
    server = running(installations()[0])
    home = home_with(tmp_path_factory.mktemp("facts") / "home", _spoil, rows=3)
    database = at_head(server)
    return server, database, export(home, url_of(server, database), Options())


@pytest.mark.parametrize("name", VALUES)
def test_a_value_arrives_as_the_fact_says(moved: tuple[Server, str, Report], name: str) -> None:
    """Rows come in the order of their rowids, so that each is where it was."""
    server, database, report = moved
    table, column, _, expected = VALUES[name]

    ((met,),) = server.rows(
        database,
        f"SELECT {_as_text(column)} FROM {table} ORDER BY ctid OFFSET {_row_of(name) - 1} LIMIT 1",
    )

    assert report.committed
    assert report.findings == ()
    assert met == expected


def _as_text(column: str) -> str:
    """Return a column as text, moments in UTC whatever the session's time zone is."""
    if column in ("created_at", "updated_at"):
        return f"({column} AT TIME ZONE 'UTC')::text || '+00'"
    return f"{column}::text"


def test_columns_that_only_the_target_has_get_their_defaults(
    moved: tuple[Server, str, Report],
) -> None:
    """They are named in the report, and tables that only the target has stay empty."""
    server, database, report = moved
    left = {table.name: table.left_to_default for table in report.tables if table.left_to_default}

    assert left == {
        "eval_datasets": ("project_id",),
        "eval_runs": ("project_id",),
        "users": ("totp_secret",),
    }
    assert server.rows(database, "SELECT DISTINCT project_id FROM eval_datasets") == [("default",)]
    assert server.rows(database, "SELECT DISTINCT totp_secret FROM users") == [(None,)]
    assert counts_of(server, database).keys() == {table.name for table in report.tables}
    assert server.rows(database, "SELECT version_num FROM alembic_version") == [(HEAD,)]


def test_the_sequence_of_an_empty_table_is_left_alone(moved: tuple[Server, str, Report]) -> None:
    """Its first row gets the number 1."""
    server, database, report = moved

    server.run(
        database,
        "INSERT INTO guardrail_events (project_id, agent_name, event_type) VALUES ('p', 'a', 'e')",
    )

    assert "guardrail_events" in report.empty
    assert server.rows(database, "SELECT id FROM guardrail_events") == [(1,)]
    assert "guardrail_events" not in {each.table for each in report.sequences}


def test_two_ids_that_would_become_one_uuid_are_found(tmp_path: Path, postgres: Server) -> None:
    """Twelve digits and the UUID that they become, side by side."""

    def change(connection: sqlite3.Connection) -> None:
        connection.execute("UPDATE harness_policies SET id = '0123456789ab' WHERE rowid = 1")
        connection.execute(
            "UPDATE harness_policies SET id = '00000000-0000-0000-0000-0123456789AB'"
            " WHERE rowid = 2"
        )

    home = home_with(tmp_path / "home", change)

    report = exported(home, postgres, at_head(postgres))

    (finding,) = report.open_findings
    assert (finding.table, finding.column, finding.kind) == ("harness_policies", "id", "duplicate")


def test_null_without_a_default_is_found_and_can_only_be_set_apart(
    tmp_path: Path, postgres: Server
) -> None:
    """Tables of an older Sagewai, or of anybody, may lack a NOT NULL; nothing is made up for it."""

    def loosen(connection: sqlite3.Connection) -> None:
        connection.execute("ALTER TABLE agent RENAME TO strict")
        connection.execute("CREATE TABLE agent AS SELECT * FROM strict")
        connection.execute("DROP TABLE strict")
        connection.execute("UPDATE agent SET name = NULL WHERE rowid = 1")

    home = home_with(tmp_path / "home", loosen)
    database = at_head(postgres)

    refused, repaired, apart = (
        exported(home, postgres, database, policy=policy)
        for policy in ("fail", "repair", "quarantine")
    )

    (finding,) = refused.open_findings
    assert (finding.column, finding.kind, finding.count) == ("name", "null", 1)
    assert repaired.open_findings == refused.open_findings
    assert apart.committed
    assert apart.refused == 1


@pytest.mark.parametrize(
    ("table", "last"), [("guardrail_events", 2**31 - 1), ("audit_event", 2**63 - 1)]
)
def test_a_row_with_the_last_number_of_a_sequence_is_found(
    tmp_path: Path, postgres: Server, table: str, last: int
) -> None:
    """No insert could follow it; set apart, the sequence goes on behind the others."""
    home = home_with(
        tmp_path / "home", lambda c: c.execute(f"UPDATE {table} SET id = {last} WHERE id = 1")
    )
    database = at_head(postgres)

    refused = exported(home, postgres, database)
    apart = exported(home, postgres, database, policy="quarantine")

    (finding,) = refused.open_findings
    assert (finding.table, finding.kind, finding.keys) == (table, "last-number", (str(last),))
    assert (apart.committed, apart.refused) == (True, 1)
    ((following,),) = [(each.next,) for each in apart.sequences if each.table == table]
    assert postgres.rows(database, f"SELECT max(id) + 1 FROM {table}") == [(following,)]


def test_a_list_whose_element_is_too_large_for_its_index_is_found(
    tmp_path: Path, postgres: Server
) -> None:
    """Also by a plan, though only the server can detect it; set apart, the rest arrives."""
    noise = "".join(hashlib.sha256(b"%d" % number).hexdigest() for number in range(150))

    def change(connection: sqlite3.Connection) -> None:
        tags = json.dumps(["short", noise])
        connection.execute("UPDATE context_documents SET tags = ? WHERE rowid = 1", (tags,))

    home = home_with(tmp_path / "home", change)
    database = at_head(postgres)

    planned = exported(home, postgres, database, purpose="plan")
    apart = exported(home, postgres, database, policy="quarantine")

    (finding,) = planned.open_findings
    assert (finding.table, finding.kind, finding.count) == ("context_documents", "index-row", 1)
    assert apart.committed
    assert apart.refused >= 1


# Where the kind is among the arguments of the calls that name one.
_KIND_AT = {"RefusedError": 0, "refuse": 1, "add": 2, "Finding": 2, "_omit": 2, "find_rows": 3}


def _kinds_in(path: Path) -> Iterator[str]:
    """Yield the kinds of findings that a module names."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        place = _KIND_AT.get(name)
        if place is not None and len(node.args) > max(place, 1):
            output = node.args[place]
            if isinstance(output, ast.Constant) and isinstance(output.value, str):
                yield output.value


def test_every_kind_of_finding_is_documented() -> None:
    """The words that scripts may rely on are in docs/export.md, and no others do."""
    export = Path(sagewai_ops.export.__path__[0])
    sources = [*export.rglob("*.py"), *export.with_name("restore").glob("*.py")]
    output = {kind for path in sources for kind in _kinds_in(path)}
    text = DOCUMENTATION.read_text(encoding="utf-8")
    tables = re.findall(r"^\| kind \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)

    cells = re.findall(r"^\| (`[^|]+`) \|", "".join(tables), re.MULTILINE)
    documented = {kind for cell in cells for kind in re.findall(r"`([a-z0-9-]+)`", cell)}

    assert len(tables) == 3  # of an export, of the learnings, of the way back to SQLite
    assert {fault.kind for fault in faults().values()} <= output
    assert output - {"extra", "missing", "differs"} == documented


def _fields_below(schema: dict[str, Any], kinds: dict[str, Any]) -> set[str]:
    """Return the fields of the objects in a part of a schema, and of the tables in these."""
    if "$ref" in schema:
        kind = kinds[schema["$ref"].rpartition("/")[2]]["properties"]
        return set(kind) | _fields_below(kind.get("tables", {}), kinds)
    parts = [schema["items"]] if "items" in schema else schema.get("anyOf", [])
    return set().union(*(_fields_below(part, kinds) for part in parts))


def test_every_field_of_the_report_is_documented() -> None:
    """A reader who checks a move by its report finds each field on the page, and a schema of it."""
    schema = json.loads((DIRECTORY / "export-to-postgres.json").read_text(encoding="utf-8"))
    text = DOCUMENTATION.read_text(encoding="utf-8")
    kinds = schema["$defs"]
    (tables,) = (kind for name, kind in kinds.items() if "findings_total" in kind["properties"])
    fields = set(tables["properties"])
    for name in ("tables", "learnings"):
        fields |= _fields_below(tables["properties"][name], kinds)

    assert {name for name in fields if f"`{name}`" not in text} == set()
