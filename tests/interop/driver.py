"""Runs inside the environment of the real Sagewai and uses its code on SAGEWAI_HOME.

`fill MARKER` writes rows into every table, `read` prints all that Sagewai finds, `write MARKER`
writes without end until SIGTERM and prints a number for every record that is committed, `schema`
prints the schema before and after Sagewai's own start-up upgraded it, `go-on MARKER` reads, fills
and counts again, `facts` asks Sagewai's PostgreSQL memory for every learning of the home. The last
line printed is the answer, one JSON value.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sqlite3
import sys
from pathlib import Path

# Appended, so that nothing here hides a module of Sagewai's.
sys.path.append(str(Path(__file__).resolve().parents[1]))


def main(arguments: list[str]) -> None:
    """Do what the arguments ask for and print the answer."""
    from interop import filling, reading

    match arguments:
        case ["fill", marker]:
            answer: object = asyncio.run(filling.fill(marker))
        case ["read"]:
            answer = asyncio.run(reading.read_home())
        case ["write", marker]:
            answer = asyncio.run(_write_until_terminated(marker))
        case ["go-on", marker]:
            answer = asyncio.run(_go_on(marker))
        case ["facts"]:
            answer = asyncio.run(reading.read_facts())
        case ["schema"]:
            answer = asyncio.run(_schema_before_and_after())
        case _:
            raise SystemExit(f"driver.py: unknown arguments {arguments}")
    print(json.dumps(answer), flush=True)


async def _go_on(marker: str) -> dict[str, object]:
    """Read what is there, write into every table, and count what is there then."""
    from interop import filling, reading

    found = await reading.read_home()
    return {"reading": found, "counts": await filling.fill(marker)}


async def _write_until_terminated(marker: str) -> int:
    """Commit a session, then a run, then a learning, all of one number, again and again.

    Returns:
        How many numbers were written in full.
    """
    from sagewai.core.session import SessionRecord
    from sagewai.core.state import WorkflowRun
    from sagewai.core.stores.session_store import PostgresSessionStore
    from sagewai.db import factory
    from sagewai.memory.global_memory_backends import SqliteVecBackend

    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    await factory.ensure_schema()
    sessions = PostgresSessionStore()
    runs = await factory.get_workflow_store()
    learnings = SqliteVecBackend()
    number = 0
    while not stopping.is_set():
        await sessions.save(
            SessionRecord(session_id=f"{marker}-{number}", agent_name=marker, project_id=marker)
        )
        await runs.save_run(
            WorkflowRun(workflow_name=marker, run_id=f"{marker}-{number}", project_id=marker)
        )
        await learnings.add(marker, f"{marker}-{number}")
        print(number, flush=True)
        number += 1
    await factory.dispose_engine()
    return number


async def _schema_before_and_after() -> list[list[list[str]]]:
    """List the schema, let Sagewai upgrade it as at its start, list it again."""
    from sagewai.db import factory

    before = _schema()
    await factory.ensure_schema()
    await factory.dispose_engine()
    return [before, _schema()]


def _schema() -> list[list[str]]:
    from sagewai import home

    with contextlib.closing(sqlite3.connect(home.db_dir() / "sagewai.db")) as connection:
        rows = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master").fetchall()
    return sorted([str(value) for value in row] for row in rows)


if __name__ == "__main__":
    main(sys.argv[1:])
