"""A database of any size in the shape that a busy Sagewai leaves behind, for the benchmarks.

The mix is that of a home which served agents for a year: runs, their prompt logs, sessions,
workflow runs, costs, an audit chain, chunks of documents and learnings. Everything is derived from
a seed, so that two runs of a benchmark measure the same rows.
"""

import hashlib
import json
import random
import sqlite3
import struct
from array import array
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

_MEDIA_BYTES = 8 * 1024 * 1024  # of a file
DIMENSIONS = 384  # of Sagewai's default embedder
START = datetime(2026, 3, 1, 8, 30, tzinfo=timezone.utc)
WORDS = [
    "agent",
    "answer",
    "budget",
    "chunk",
    "connect",
    "context",
    "document",
    "error",
    "fleet",
    "guardrail",
    "invoice",
    "latency",
    "memory",
    "model",
    "night",
    "order",
    "plan",
    "policy",
    "prompt",
    "query",
    "report",
    "retry",
    "session",
    "step",
    "summary",
    "token",
    "tool",
    "über",
    "vector",
    "workflow",
    "日本語",
    "naïve",
]

# Rows for each row asked for, in the order in which foreign keys need them.
SHARES = {
    "org": 0.00005,
    "project": 0.0002,
    "agent_runs": 0.2,
    "prompt_logs": 0.2,
    "sessions": 0.05,
    "workflow_runs": 0.1,
    "cost_records": 0.12,
    "harness_spend": 0.08,
    "guardrail_events": 0.05,
    "notification_history": 0.04,
    "audit_event": 0.08,
    "context_documents": 0.005,
    "context_chunks": 0.05,
    "directive_evaluations": 0.025,
}


def fill(database: Path, rows: int, vectors: int = 0, *, seed: int = 1) -> int:
    """Add about `rows` rows, and `vectors` learnings, to a database at the current schema.

    Args:
        database: A file with Sagewai's tables.
        rows: How many rows to add to the ordinary tables, all together.
        vectors: How many learnings; needs sqlite-vec, unless 0.
        seed: Another seed, other values.

    Returns:
        The number of rows added, learnings not counted.
    """
    chance = random.Random(seed)
    connection = sqlite3.connect(database)
    try:
        connection.execute("PRAGMA synchronous=OFF")
        # KiB; indexes grow in random order. `create_database` limits the process to 256 MiB.
        connection.execute("PRAGMA cache_size=-200000")
        counts = {table: max(1, round(rows * share)) for table, share in SHARES.items()}
        for table, count in counts.items():
            _insert(connection, table, _rows(table, counts, count, chance))
            connection.commit()  # else the -wal grows as large as the database
        if vectors:
            _insert_vectors(connection, vectors, chance)
        connection.commit()
    finally:
        connection.close()
    return sum(counts.values())


def add_media(directory: Path, size_bytes: int, *, seed: int = 1) -> int:
    """Write files that do not shrink; of three, two are media and one has vectors.

    Args:
        directory: Created.
        size_bytes: Of all files together.

    Returns:
        The number of files.
    """
    directory.mkdir(parents=True)
    chance = random.Random(seed)
    base = [chance.gauss(0, 0.05) for _ in range(_MEDIA_BYTES // 16)]
    left, number = size_bytes, 0
    while left:
        size = min(left, _MEDIA_BYTES)
        if number % 3 == 2:
            vectors = array("f")
            for part in range(4):
                vectors.extend([value * (1 + part + number / 7) for value in base])
            (directory / f"{number:05}.npy").write_bytes(vectors.tobytes()[:size])
        else:
            (directory / f"{number:05}.mp4").write_bytes(chance.randbytes(size))
        left -= size
        number += 1
    return number


def _insert(connection: sqlite3.Connection, table: str, rows: Iterator[dict[str, object]]) -> None:
    first = next(rows)
    names = ", ".join(first)
    marks = ", ".join("?" * len(first))
    statement = f"INSERT INTO {table} ({names}) VALUES ({marks})"
    connection.execute(statement, tuple(first.values()))
    connection.executemany(statement, (tuple(row.values()) for row in rows))


def _rows(
    table: str, counts: dict[str, int], count: int, chance: random.Random
) -> Iterator[dict[str, object]]:
    """Yield the rows of one table, one mapping for each, all with the same columns."""
    previous = ""
    for number in range(count):
        row = _row(table, number, counts, chance)
        if table == "audit_event":
            row["prev_hash"] = previous or None
            previous = _chain_hash(previous, row)
            row["hash"] = previous
        yield row


def _row(
    table: str, number: int, counts: dict[str, int], chance: random.Random
) -> dict[str, object]:
    moment = START + timedelta(seconds=37 * number, microseconds=chance.randrange(1_000_000))
    stamp = moment.strftime("%Y-%m-%d %H:%M:%S.%f")
    project = f"project-{number % 7}"
    run = hashlib.sha256(b"run %d" % (number % counts["agent_runs"])).hexdigest()[:12]
    if table == "org":
        return {
            "id": f"org-{number}",
            "name": "Acme",
            "slug": f"acme-{number}",
            "timezone": "UTC",
            "settings": "{}",
            "created_at": stamp,
        }
    if table == "project":
        return {
            "id": f"project-{number}",
            "org_id": "org-0",
            "slug": f"project-{number}",
            "name": _text(chance, 3),
            "environment": "production",
            "status": "active",
            "settings": '{"region": "eu"}',
            "created_at": stamp,
            "updated_at": stamp,
        }
    if table == "agent_runs":
        return {
            "run_id": run,
            "project_id": project,
            "agent_name": f"helper-{number % 23}",
            "status": chance.choice(("completed", "failed")),
            "input_text": _text(chance, 30),
            "output_text": _text(chance, 40),
            "total_tokens": number,
            "input_tokens": 11,
            "output_tokens": 22,
            "cost_usd": round(chance.random(), 6),
            "model": "gpt-4o",
            "duration_ms": chance.randrange(90_000),
            "tool_calls": json.dumps([{"name": "search", "args": {"q": _text(chance, 4)}}]),
            "metadata": json.dumps({"k": number, "note": _text(chance, 3)}),
            "started_at": moment.timestamp(),
            "completed_at": moment.timestamp() + 1.5,
            "error": None,
            "run_type": "standalone",
            "created_at": stamp[:19],
        }
    if table == "prompt_logs":
        return {
            "log_id": f"log-{number:012x}",
            "project_id": project,
            "run_id": run,
            "agent_name": f"helper-{number % 23}",
            "step_index": number % 5,
            "model": "gpt-4o",
            "prompt_messages": _messages(chance, 2),
            "response_message": _message(chance),
            "input_tokens": 300,
            "output_tokens": 50,
            "cost_usd": 0.00042,
            "duration_ms": 88,
            "strategy": "react",
            "metadata": '{"a": null}',
            "is_example": number % 2,
            "tags": "[]",
            "source": "playground",
            "input_text": _text(chance, 20),
            "output_text": _text(chance, 20),
            "created_at": stamp,
        }
    if table == "sessions":
        return {
            "session_id": f"session-{number:08x}",
            "project_id": project,
            "agent_name": f"helper-{number % 23}",
            "messages": _messages(chance, 8),
            "summary": _text(chance, 12),
            "memory_keys": '["mk0"]',
            "created_at": stamp,
            "updated_at": stamp,
        }
    if table == "workflow_runs":
        return {
            "id": f"{project}:nightly:run-{number:08d}",
            "project_id": project,
            "workflow_name": "nightly",
            "run_id": f"run-{number:08d}",
            "status": "completed",
            "data": _workflow(chance, number),
            "input": "{}",
            "output": '{"ok": true}',
            "created_at": stamp[:19],
            "updated_at": stamp,
            "input_encrypted": 0,
            "output_encrypted": "false",
            "effective_env_keys": '["REGION"]',
            "effective_secret_keys": '["API_KEY", "DB_PASSWORD"]',
            "directive_chain": "[]",
            "artifact_destination": "null",
            "estimated_cost_usd": 0.0125,
        }
    if table == "cost_records":
        return {
            "project_id": project,
            "agent_name": f"helper-{number % 23}",
            "model": "gpt-4o",
            "cost_usd": chance.random(),
            "tokens": number,
            "created_at": stamp,
        }
    if table == "harness_spend":
        return {
            "id": hashlib.sha256(f"spend {number}".encode()).hexdigest()[:12],
            "timestamp": stamp,
            "user_id": f"u{number % 40}",
            "org_id": "acme",
            "model_requested": "gpt-4o",
            "model_used": "gpt-4o",
            "input_tokens": 5,
            "output_tokens": 7,
            "cost_usd": chance.random(),
            "latency_ms": 12.75,
        }
    if table == "guardrail_events":
        return {
            "project_id": project,
            "agent_name": f"helper-{number % 23}",
            "event_type": "blocked",
            "entity_type": "email",
            "action": "redact",
            "detail": _text(chance, 12),
            "created_at": stamp,
        }
    if table == "notification_history":
        return {
            "project_id": project,
            "trigger": "budget",
            "title": _text(chance, 5),
            "body": _text(chance, 30),
            "severity": "info",
            "channel_type": "slack",
            "delivered": 1,
            "created_at": stamp,
        }
    if table == "audit_event":
        return {
            "org_id": "org-0",
            "project_id": "project-0",
            "actor_user_id": "u1",
            "action": "provider.update",
            "target_type": "provider",
            "target_id": f"p{number % 9}",
            "metadata": json.dumps({"ip": "10.0.0.9", "note": _text(chance, 4)}),
            "seq": number + 1,
            "created_at": stamp,
        }
    if table == "context_documents":
        return {
            "id": f"document-{number:08x}",
            "scope": "project",
            "scope_id": project,
            "project_id": project,
            "title": _text(chance, 6),
            "source": "upload",
            "file_size_bytes": 90_000,
            "chunk_count": 10,
            "status": "ready",
            "confidence": 0.5,
            "metadata": "{}",
            "tags": '["handbook", "ü"]',
            "created_at": stamp,
            "updated_at": stamp,
        }
    if table == "context_chunks":
        return {
            "id": f"chunk-{number:08x}",
            "document_id": f"document-{number % counts['context_documents']:08x}",
            "scope": "project",
            "scope_id": project,
            "project_id": project,
            "content": _text(chance, 110),
            "chunk_index": number % 10,
            "token_count": 200,
            "content_hash": hashlib.sha256(str(number).encode()).hexdigest(),
            "importance": 0.5,
            "access_count": 0,
            "metadata": "{}",
            "created_at": stamp,
        }
    return {
        "event_type": "evaluated",
        "run_id": run,
        "project_id": project,
        "workflow_name": "nightly",
        "details": json.dumps({"why": _text(chance, 9)}),
        "created_at": stamp,
    }


def _text(chance: random.Random, words: int) -> str:
    return " ".join(chance.choices(WORDS, k=words))


def _message(chance: random.Random) -> str:
    return json.dumps({"role": "assistant", "content": _text(chance, 20), "cost": 0.25})


def _messages(chance: random.Random, count: int) -> str:
    turns = (("user", "assistant")[turn % 2] for turn in range(count))
    return json.dumps(
        [
            {"role": turn, "content": _text(chance, 28) + '\n"quoted"', "tool_calls": None}
            for turn in turns
        ]
    )


def _workflow(chance: random.Random, number: int) -> str:
    step = {
        "status": "completed",
        "result": {"r": [1, 2.5, None], "text": _text(chance, 6)},
        "error": None,
        "attempts": 1,
        "started_at": 1.0,
        "completed_at": 2.0,
    }
    return json.dumps(
        {
            "workflow_name": "nightly",
            "run_id": f"run-{number:08d}",
            "status": "completed",
            "input_data": {"i": number, "none": None, "f": 0.5},
            "output_data": {"ok": True},
            "started_at": 1772353800.123456,
            "completed_at": None,
            "code_hash": "c0ffee",
            "steps": {"a": step, "b": step, "c": step},
        }
    )


def _chain_hash(previous: str, row: dict[str, object]) -> str:
    """Chain one audit event to its predecessor, by the formula in docs/export.md."""
    named = ("org_id", "project_id", "actor_user_id", "action", "target_type", "target_id", "seq")
    body = {name: row[name] for name in named}
    body["metadata"] = json.loads(str(row["metadata"]))
    body["created_at"] = str(row["created_at"]).replace(" ", "T") + "+00:00"
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256((previous + text).encode()).hexdigest()


def _insert_vectors(connection: sqlite3.Connection, count: int, chance: random.Random) -> None:
    import sqlite_vec

    connection.enable_load_extension(True)
    sqlite_vec.load(connection)
    connection.execute(
        "CREATE VIRTUAL TABLE IF NOT EXISTS vec_learnings USING vec0("
        f"id TEXT PRIMARY KEY, embedding FLOAT[{DIMENSIONS}], project_id TEXT, content TEXT)"
    )
    connection.executemany(
        "INSERT INTO vec_learnings (id, embedding, project_id, content) VALUES (?, ?, ?, ?)",
        (
            (
                f"{number:08x}-0000-4000-8000-000000000000",
                struct.pack(f"<{DIMENSIONS}f", *(chance.uniform(-1, 1) for _ in range(DIMENSIONS))),
                f"project-{number % 7}",
                _text(chance, 25),
            )
            for number in range(count)
        ),
    )
