"""Learnings: vectors with their texts, which Sagewai 1.0.1 reads only from the home's SQLite.

They always stay there. `facts` also fills `global_memory_facts`, the table of Sagewai's
PostgreSQL memory where that is configured; `pgvector` also creates a table for each table of
vectors, for other programs. Both are compared before the commit.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING

from sagewai_ops.database.sqlite.vectors import count_vectors, load_extension, vector_tables
from sagewai_ops.export.learnings import memory_facts, pgvector
from sagewai_ops.export.learnings.vector_rows import Rows, VectorCopy
from sagewai_ops.export.mapping.findings import Finding, Tally
from sagewai_ops.export.mapping.source_rows import open_copy
from sagewai_ops.progress import Progress
from sagewai_ops.records import dataclass

if TYPE_CHECKING:
    import asyncpg

KEEP, FACTS, PGVECTOR = "keep", "facts", "pgvector"
CHOICES = (KEEP, FACTS, PGVECTOR)


@dataclass(slots=True)
class Learnings:
    """The result for all tables; the rows of findings are not in the target."""

    choice: str
    tables: list[VectorCopy] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def list_learnings(copy: Path) -> list[VectorCopy]:
    """List the tables of vectors in a frozen copy."""
    with open_copy(copy) as source:
        return [
            VectorCopy(table.name, table.dimensions, count_vectors(source, table))
            for table in vector_tables(source)
        ]


async def copy_learnings(
    copy: Path,
    choice: str,
    server: asyncpg.Connection[asyncpg.Record],
    *,
    progress: Progress | None = None,
) -> Learnings:
    """Copy the learnings to the target as chosen, inside the open transaction.

    Args:
        choice: One of `CHOICES`.
        progress: Called with `learnings <table>`, in rows.

    Raises:
        TargetBusyError: The target's table has rows.
        UsageError: The server lacks pgvector.
        DifferenceError: The rows stored differ from those sent.
    """
    copy_rows = memory_facts.copy_facts if choice == FACTS else pgvector.copy_vectors

    async def copy_table(rows: Rows, result: VectorCopy) -> None:
        started = time.monotonic()
        await copy_rows(server, rows, result, progress)
        result.seconds = time.monotonic() - started

    return await _for_each_table(copy, choice, server, copy_table)


async def check(copy: Path, choice: str, server: asyncpg.Connection[asyncpg.Record]) -> Learnings:
    """Find the rows that `copy_learnings` would omit, in a transaction that the caller rolls back.

    Raises:
        TargetBusyError, UsageError: As in `copy_learnings`.
    """
    check_rows = memory_facts.check_rows if choice == FACTS else pgvector.check_rows
    return await _for_each_table(
        copy, choice, server, lambda rows, _result: check_rows(server, rows)
    )


async def _for_each_table(
    copy: Path,
    choice: str,
    server: asyncpg.Connection[asyncpg.Record],
    action: Callable[[Rows, VectorCopy], Awaitable[None]],
) -> Learnings:
    """Prepare the target, and run the action for each table that it can store."""
    done = Learnings(choice, list_learnings(copy))
    if choice == KEEP or not done.tables:
        return done
    with open_copy(copy) as source:
        has_extension = load_extension(source)
        if choice == PGVECTOR:
            await pgvector.ensure_extension(server)
        elif any(memory_facts.makes_facts(table) for table in vector_tables(source)):
            await memory_facts.make_table(server)
        tally = Tally()
        for rows, result in _fitting(source, done, tally, has_extension=has_extension):
            await action(rows, result)
        done.findings = tally.findings()
    return done


async def verify(copy: Path, choice: str, server: asyncpg.Connection[asyncpg.Record]) -> Learnings:
    """Compare the exported learnings again, in any order of rows.

    Raises:
        DifferenceError: They differ, or are missing.
    """
    done = Learnings(choice, list_learnings(copy))
    if choice == KEEP:
        return done
    with open_copy(copy) as source:
        has_extension = load_extension(source)
        tally = Tally()
        fitting = list(_fitting(source, done, tally, has_extension=has_extension))
        if choice == PGVECTOR:
            for rows, result in fitting:
                await pgvector.verify(server, rows, result)
        elif fitting:
            await memory_facts.verify(server, fitting)
        done.findings = tally.findings()
    return done


def _fitting(
    source: sqlite3.Connection, done: Learnings, tally: Tally, *, has_extension: bool
) -> Iterator[tuple[Rows, VectorCopy]]:
    """Yield the tables that the chosen target can store; count the others as findings."""
    for table, result in zip(vector_tables(source), done.tables, strict=True):
        if table.obstacle:
            tally.add(table.name, "", "unreadable-vectors", table.obstacle, "")
        elif done.choice == FACTS and not memory_facts.makes_facts(table):
            detail = (
                f"has no texts {memory_facts.SCOPE} and {memory_facts.CONTENT} to make facts of"
            )
            tally.add(table.name, "", "no-facts", detail, "")
        else:
            yield Rows(source, table, tally, has_extension=has_extension), result
