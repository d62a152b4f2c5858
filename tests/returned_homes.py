"""The values of homes that go to a server and come back, whatever form they are stored in."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from datetime import datetime, timezone
from decimal import Context, Decimal
from pathlib import Path
from typing import Any

import pytest

import postgres_server
from json_schemas import problems
from postgres_server import Server
from program import Answer, call
from real_homes import unpack
from sagewai_ops.database.sqlite.vectors import VectorRow, read_vectors, vector_tables
from sagewai_ops.home.paths import Home, locate
from sagewai_ops.schema import sqlite_head
from server_homes import ServerHome, make_server_home
from targets import at_head, exported

JSON_TEXTS = {("workspaces", "settings")}  # a document in a column of text
# Of a server, and how SQLite stores them.
ODD_ROWS = (
    """INSERT INTO sessions (session_id, agent_name, messages, memory_keys, summary, created_at)
       VALUES ('texts', E'a\\\\b\\t\\n\\r\\f\\x0b\\b "x" \\\\N', '{"a": "\\u00e9\\\\n", "n": 1e22}',
               '[1.50, -0.0, true, null]', '\\N', '2026-01-02 03:04:05.06+02')""",
    """INSERT INTO sessions (session_id, agent_name, messages, memory_keys, created_at, updated_at)
       VALUES ('numbers', '', '12345', '1.50', '0001-01-01 00:00:00+00',
               '9999-12-31 23:59:59.999999+00'),
              ('null', '\u00e9\U0001f600', 'null', '"x"', '2026-01-02', '2026-01-02')""",
    """INSERT INTO agent_runs (run_id, agent_name, cost_usd, started_at, completed_at, total_tokens)
       VALUES ('doubles', 'a', 'Infinity', 1e-300, 0.1, 2147483647),
              ('more', 'a', '-Infinity', 5e-324, 1.7976931348623157e308, -1)""",
    """INSERT INTO workers (worker_id, models_supported, models_canonical)
       VALUES ('lists', ARRAY['', 'null', 'NULL', 'a b', 'a,b', '{x}', 'q"q', E'b\\\\b', E't\\tt',
               E'n\\nn', '\u00e9'], '{}')""",
    """INSERT INTO harness_keys (id, key_hash, key_suffix, user_id, enabled) VALUES
       ('00000000-0000-0000-0000-0123456789ab', 'h', 's', 'u', false),
       ('7d444840-9dc0-11d1-b245-5ffdce74fad2', 'i', 's', 'u', true)""",
    """INSERT INTO agent_access_tokens (token_id, token_hash, agent_name, grantor_id, scopes,
       expires_at) VALUES ('t', 'h', 'a', 'g', NULL, '2026-01-01')""",
    """INSERT INTO notification_channels (id, channel_type, config) VALUES (7, 'a', '5'),
       (3, 'b', 'no json')""",
    """INSERT INTO workflow_runs (id, project_id, workflow_name, run_id, output)
       VALUES ('w:r', 'p', 'w', 'r', '10000000000000000000000')""",
)
STORED = (
    ("sessions", "agent_name", "session_id = 'texts'", 'a\\b\t\n\r\f\v\b "x" \\N'),
    ("sessions", "summary", "session_id = 'texts'", "\\N"),
    ("sessions", "created_at", "session_id = 'texts'", "2026-01-02 01:04:05.060000"),
    ("sessions", "messages", "session_id = 'numbers'", 12345),
    ("sessions", "memory_keys", "session_id = 'numbers'", 1.5),
    ("sessions", "created_at", "session_id = 'numbers'", "0001-01-01 00:00:00.000000"),
    ("sessions", "updated_at", "session_id = 'numbers'", "9999-12-31 23:59:59.999999"),
    ("sessions", "messages", "session_id = 'null'", "null"),
    ("sessions", "memory_keys", "session_id = 'null'", '"x"'),
    ("sessions", "agent_name", "session_id = 'null'", "\u00e9\U0001f600"),
    ("agent_runs", "cost_usd", "run_id = 'doubles'", float("inf")),
    ("agent_runs", "started_at", "run_id = 'doubles'", 1e-300),
    ("agent_runs", "cost_usd", "run_id = 'more'", float("-inf")),
    ("agent_runs", "started_at", "run_id = 'more'", 5e-324),
    ("agent_runs", "total_tokens", "run_id = 'more'", -1),
    ("workers", "models_canonical", "worker_id = 'lists'", "[]"),
    ("harness_keys", "id", "key_hash = 'h'", "0123456789ab"),
    ("harness_keys", "id", "key_hash = 'i'", "7d444840-9dc0-11d1-b245-5ffdce74fad2"),
    ("harness_keys", "enabled", "key_hash = 'h'", 0),
    ("agent_access_tokens", "scopes", "token_id = 't'", "null"),
    ("notification_channels", "config", "id = 7", 5),
    ("notification_channels", "config", "id = 3", "no json"),
    ("workflow_runs", "id", "run_id = 'r'", "p:w:r"),
    ("workflow_runs", "output", "run_id = 'r'", 1e22),
)
# Values that SQLite cannot have.
BAD_ROWS = {
    ("sessions", "created_at", "not-a-timestamp"): (
        "INSERT INTO sessions (session_id, agent_name, created_at) VALUES ('i', '', 'infinity'),"
        " ('b', '', '0001-01-01 BC'), ('y', '', '19999-01-01')"
    ),
    ("sessions", "memory_keys", "json-number"): (
        "INSERT INTO sessions (session_id, agent_name, memory_keys)"
        " VALUES ('n', '', '1234567890123456789012345')"
    ),
    ("sessions", "updated_at", "null"): (
        "INSERT INTO sessions (session_id, agent_name, updated_at) VALUES ('u', '', NULL)"
    ),
    ("admin_resources", "data", "json-number"): (
        "INSERT INTO admin_resources (kind, resource_id, data) VALUES ('k', 'r', '1.50')"
    ),
    ("agent_runs", "cost_usd", "nan"): (
        "INSERT INTO agent_runs (run_id, agent_name, cost_usd) VALUES ('nan', 'a', 'NaN')"
    ),
    ("agent_runs", "started_at", "negative-zero"): (
        "INSERT INTO agent_runs (run_id, agent_name, started_at) VALUES ('zero', 'a', '-0')"
    ),
    ("prompt_logs", "", "orphan"): (
        "INSERT INTO prompt_logs (log_id, run_id, agent_name) VALUES ('l', 'nan', 'a')"
    ),
    ("workers", "models_supported", "list-element"): (
        "INSERT INTO workers (worker_id, models_supported) VALUES ('e', ARRAY['a', NULL])"
    ),
    ("workers", "models_canonical", "not-a-list"): (
        "INSERT INTO workers (worker_id, models_canonical) VALUES"
        " ('d', ARRAY[ARRAY['a'], ARRAY['b']]), ('s', '[0:1]={a,b}')"
    ),
    ("workflow_runs", "id", "joined-key"): (
        "INSERT INTO workflow_runs (id, workflow_name, run_id) VALUES ('other', 'w', 'r')"
    ),
    ("eval_datasets", "name", "duplicate"): (
        "INSERT INTO eval_datasets (id, project_id, name, cases) VALUES (1, 'default', 'n', 'c'),"
        " (2, 'p', 'n', 'c')"
    ),
    ("eval_datasets", "project_id", "unknown-column"): "SELECT 1",
    ("users", "own", "unknown-column"): (
        "ALTER TABLE users ADD COLUMN own bytea; INSERT INTO users (id, email, display_name,"
        " is_active, own) VALUES ('a', 'a@b', 'a', true, '\\x00'), ('b', 'b@b', 'b', true, NULL)"
    ),
    ("own", "", "unknown-table"): (
        "CREATE TABLE own (n numeric, b bytea); INSERT INTO own VALUES (1.5, '\\x00')"
    ),
    ("workflow_events", "", "unknown-table"): "SELECT 1",
}


def bring_back(home: ServerHome, target: Path, *words: object) -> Answer:
    """Import the database of a home to a directory."""
    url = home.server.url(home.database)
    return call("import-from-postgres", url, "--to", target, *words)


def valid(answer: Answer) -> dict[str, Any]:
    """Return the JSON result of an import, after its schema was checked, and the report's."""
    assert problems("envelope", answer.document) == []
    assert problems("import-from-postgres", answer.result) == []
    files = answer.result["files"]
    if "report" in files:
        assert json.loads(Path(files["report"]).read_text()) == answer.result
    return answer.result


@contextlib.contextmanager
def small_on_server(directory: Path) -> Iterator[ServerHome]:
    """Create a small home on a server, without rows that a home cannot have."""
    made = make_server_home(directory / "home", _default_server())
    made.run("DELETE FROM workflow_events")
    yield made
    made.server.drop(made.database)


@contextlib.contextmanager
def real_on_server(
    directory: Path, name: str = "real-small"
) -> Iterator[tuple[ServerHome, dict[str, list[Any]]]]:
    """Move a home of the real Sagewai to a server; yield it, and its values before."""
    server = _default_server()
    home = locate(unpack(name, directory), {})
    before = values_of(home.root)
    made = moved(home, server)
    yield made, before
    server.drop(made.database)


def _default_server() -> Server:
    """Return the running server of the first installation; skip the test without one."""
    if not postgres_server.installations():
        pytest.skip("no PostgreSQL here")
    return postgres_server.running(postgres_server.installations()[0])


def moved(home: Home, server: Server, **options: Any) -> ServerHome:
    """Export a home to a server, and return it as one whose database is there."""
    database = at_head(server)
    exported(home, server, database, **options)
    return ServerHome(home.root, server, database)


def values_of(root: Path) -> dict[str, list[Any]]:
    """Return the rows of Sagewai's tables as values, whatever form they are stored in."""
    found: dict[str, list[Any]] = {}
    with contextlib.closing(sqlite3.connect(root / "db/sagewai.db")) as connection:
        for table in sqlite_head.tables().values():
            cursor = connection.execute(f"SELECT * FROM {table.name}")
            names = [column[0] for column in cursor.description]
            rows = [
                tuple(
                    _value(table.name, table.columns[name], value)
                    for name, value in sorted(zip(names, row, strict=True))
                )
                for row in cursor
            ]
            found[table.name] = sorted(rows, key=repr)
    return found


def _value(table: str, column: sqlite_head.Column, value: Any) -> Any:
    if value is None:
        return None
    if column.type == "JSON" or (table, column.name) in JSON_TEXTS:
        text = value if isinstance(value, str) else json.dumps(value)
        document = json.loads(text, parse_int=_number, parse_float=_number)
        return json.dumps(document, sort_keys=True)
    if column.type == "DATETIME":
        moment = datetime.fromisoformat(value)
        return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    if table.startswith("harness_") and column.name in ("id", "key_id"):
        return value.removeprefix("00000000-0000-0000-0000-")  # the same uuid on a server
    if column.type == "BOOLEAN":
        return {"true": 1, "false": 0}.get(value, value)
    return value


def _number(text: str) -> str:
    """Return the exact value of a number, however it is written."""
    digits = f"{Decimal(text).normalize(Context(prec=500)):f}"
    return "#0" if digits == "-0" else f"#{digits}"


def value_of(root: Path, query: str) -> object:
    """Return the only value of a query in a home's database."""
    with contextlib.closing(sqlite3.connect(root / "db/sagewai.db")) as connection:
        return connection.execute(query).fetchone()[0]


def learnings_of(root: Path) -> dict[str, list[VectorRow]]:
    """Return the learnings of a home, by table."""
    with contextlib.closing(sqlite3.connect(root / "db/sagewai.db")) as connection:
        return {
            table.name: sorted(read_vectors(connection, table), key=lambda row: str(row.key))
            for table in vector_tables(connection)
        }
