"""Learnings: vectors with their texts, which Sagewai 1.0.1 reads from the home's SQLite alone.

They stay there whatever the choice. `facts` also fills `global_memory_facts`, the table that
Sagewai's PostgreSQL memory uses where somebody configures it; `pgvector` also makes a table of
vectors for other programs, in the shape that each had. Both are compared before the commit.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sagewai_ops.database.sqlite.vectors import count_vectors, load_extension, vector_tables
from sagewai_ops.export.learnings import memory_facts, pgvector
from sagewai_ops.export.learnings.vector_rows import Carried, Rows
from sagewai_ops.export.mapping.findings import Finding, Tally
from sagewai_ops.export.mapping.source_rows import open_copy
from sagewai_ops.progress import Progress

if TYPE_CHECKING:
    import asyncpg

KEEP, FACTS, PGVECTOR = "keep", "facts", "pgvector"
CHOICES = (KEEP, FACTS, PGVECTOR)


@dataclass(slots=True)
class Learnings:
    """What became of all of them; the rows of findings are not in the target."""

    choice: str
    tables: list[Carried] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def look(copy: Path) -> list[Carried]:
    """List the tables of vectors in a frozen copy."""
    with open_copy(copy) as source:
        return [
            Carried(table.name, table.dimensions, count_vectors(source, table))
            for table in vector_tables(source)
        ]


async def carry(
    copy: Path,
    choice: str,
    server: asyncpg.Connection[asyncpg.Record],
    *,
    progress: Progress | None = None,
) -> Learnings:
    """Bring the learnings into the target as chosen, inside the open transaction.

    Args:
        choice: One of `CHOICES`.
        progress: Told `learnings <table>`, in rows.

    Raises:
        TargetBusyError: A table of that name has something in it.
        UsageError: The server has no pgvector.
        DifferenceError: What arrived is not what was sent.
    """
    done = Learnings(choice, look(copy))
    if choice == KEEP or not done.tables:
        return done
    with open_copy(copy) as source:
        has_extension = load_extension(source)
        await _prepare_target(source, choice, server)
        tally = Tally()
        for rows, carried in _fitting(source, done, tally, has_extension=has_extension):
            how = memory_facts.carry if choice == FACTS else pgvector.carry
            started = time.monotonic()
            await how(server, rows, carried, progress)
            carried.seconds = time.monotonic() - started
        done.findings = tally.findings()
    return done


async def check(copy: Path, choice: str, server: asyncpg.Connection[asyncpg.Record]) -> Learnings:
    """Find the rows that `carry` would omit, in a transaction that the caller rolls back.

    Raises:
        TargetBusyError, UsageError: As `carry` does.
    """
    done = Learnings(choice, look(copy))
    if choice == KEEP or not done.tables:
        return done
    with open_copy(copy) as source:
        has_extension = load_extension(source)
        await _prepare_target(source, choice, server)
        tally = Tally()
        check_rows = memory_facts.check_rows if choice == FACTS else pgvector.check_rows
        for rows, _ in _fitting(source, done, tally, has_extension=has_extension):
            await check_rows(server, rows)
        done.findings = tally.findings()
    return done


async def _prepare_target(
    source: sqlite3.Connection, choice: str, server: asyncpg.Connection[asyncpg.Record]
) -> None:
    if choice == PGVECTOR:
        await pgvector.make_extension(server)
    elif any(memory_facts.makes_facts(table) for table in vector_tables(source)):
        await memory_facts.make_table(server)


async def verify(copy: Path, choice: str, server: asyncpg.Connection[asyncpg.Record]) -> Learnings:
    """Compare again what `carry` brought there, in whatever order the rows lie by now.

    Raises:
        DifferenceError: It is not the same, or not there.
    """
    done = Learnings(choice, look(copy))
    if choice == KEEP:
        return done
    with open_copy(copy) as source:
        has_extension = load_extension(source)
        tally = Tally()
        fitting = list(_fitting(source, done, tally, has_extension=has_extension))
        if choice == PGVECTOR:
            for rows, carried in fitting:
                await pgvector.verify(server, rows, carried)
        elif fitting:
            await memory_facts.verify(server, fitting)
        done.findings = tally.findings()
    return done


def _fitting(
    source: sqlite3.Connection, done: Learnings, tally: Tally, *, has_extension: bool
) -> Iterator[tuple[Rows, Carried]]:
    """Yield the tables whose rows can go where they were chosen to; count the others."""
    for table, carried in zip(vector_tables(source), done.tables, strict=True):
        if table.obstacle:
            tally.add(table.name, "", "unreadable-vectors", table.obstacle, "")
        elif done.choice == FACTS and not memory_facts.makes_facts(table):
            detail = (
                f"has no texts {memory_facts.SCOPE} and {memory_facts.CONTENT} to make facts of"
            )
            tally.add(table.name, "", "no-facts", detail, "")
        else:
            yield Rows(source, table, tally, has_extension=has_extension), carried
