"""Learnings as facts: rows of the table that Sagewai's PostgreSQL memory reads."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sagewai_ops.database.postgres.connection import first_line, open_savepoint
from sagewai_ops.database.sqlite.vectors import VectorRow, VectorTable
from sagewai_ops.errors import TargetBusyError
from sagewai_ops.export.learnings.vector_rows import (
    COMPARED_AT_ONCE,
    Rows,
    VectorCopy,
    compare,
    compare_any_order,
    find_table,
)
from sagewai_ops.export.pipeline.sender import wait_for_copy
from sagewai_ops.progress import Progress

if TYPE_CHECKING:
    import asyncpg

FACTS_TABLE = "global_memory_facts"
# Sagewai's names for the columns that make a fact.
SCOPE, CONTENT = "project_id", "content"
SUSPICIOUS_CHARACTERS = 200_000  # of a text whose tsvector may exceed its limit of 1,048,575 bytes

_FACTS = (
    (
        f"CREATE TABLE {FACTS_TABLE} (id bigserial PRIMARY KEY, scope text NOT NULL,"
        " content text NOT NULL, metadata jsonb DEFAULT '{}',"
        " created_at timestamptz DEFAULT pg_catalog.now(),"
        " content_tsv tsvector GENERATED ALWAYS AS "
        "(pg_catalog.to_tsvector('english', content)) STORED)"
    ),
    f"CREATE INDEX idx_gm_scope ON {FACTS_TABLE} (scope)",
    f"CREATE INDEX idx_gm_content_tsv ON {FACTS_TABLE} USING gin (content_tsv)",
)


def makes_facts(table: VectorTable) -> bool:
    """Return whether a table has the columns of a fact."""
    texts = {column.name for column in table.columns if column.kind == "text"}
    return not table.obstacle and {SCOPE, CONTENT} <= texts


async def make_table(server: asyncpg.Connection[asyncpg.Record]) -> None:
    """Create the table as Sagewai does, unless it exists and is empty.

    Raises:
        TargetBusyError: It has rows.
    """
    existing = await find_table(server, FACTS_TABLE)
    if not existing:
        for statement in _FACTS:
            await server.execute(statement)
    elif await server.fetchval(f"SELECT EXISTS (SELECT 1 FROM {existing})"):
        raise TargetBusyError(f"table {FACTS_TABLE}: has rows", hint="export with --learnings keep")


async def copy_facts(
    server: asyncpg.Connection[asyncpg.Record],
    rows: Rows,
    result: VectorCopy,
    progress: Progress | None,
) -> None:
    """Copy a table's rows as facts and compare them.

    Args:
        progress: Called with `learnings <table>`, in rows.

    Raises:
        DifferenceError: The rows stored differ from those sent.
    """
    await check_rows(server, rows)

    def counted() -> Iterator[tuple[str, str]]:
        for number, fact in enumerate(_facts(rows), 1):
            yield fact
            result.sent = number
            if progress and number % COMPARED_AT_ONCE == 0:
                progress(f"learnings {result.table}", number, result.rows)

    before = await server.fetchval(f"SELECT coalesce(pg_catalog.max(id), 0) FROM {FACTS_TABLE}")
    started = time.monotonic()
    names = ["scope", "content"]
    copying = server.copy_records_to_table(FACTS_TABLE, records=counted(), columns=names)
    await wait_for_copy(server, copying)
    result.copy_seconds = time.monotonic() - started
    started = time.monotonic()
    query = f"SELECT scope, content FROM {FACTS_TABLE} WHERE id > $1 ORDER BY id"
    await compare(server, query, [before], _facts(rows), result)
    result.compare_seconds = time.monotonic() - started
    result.to = FACTS_TABLE


async def verify(
    server: asyncpg.Connection[asyncpg.Record], tables: list[tuple[Rows, VectorCopy]]
) -> None:
    """Compare the facts of all tables again, and check that there are no others.

    Raises:
        DifferenceError: They differ.
    """

    def every_fact() -> Iterator[tuple[str, str]]:
        for rows, result in tables:
            for fact in _facts(rows):
                result.sent += 1
                yield fact

    for rows, result in tables:
        await check_rows(server, rows)
        result.to = FACTS_TABLE
    query = f"SELECT scope, content FROM {FACTS_TABLE}"
    await compare_any_order(server, query, every_fact(), FACTS_TABLE)


def _facts(rows: Rows) -> Iterator[tuple[str, str]]:
    names = [column.name for column in rows.table.columns]
    scope, content = names.index(SCOPE), names.index(CONTENT)
    return ((str(row.values[scope]), str(row.values[content])) for row in rows.copied())


async def check_rows(server: asyncpg.Connection[asyncpg.Record], rows: Rows) -> None:
    """Refuse the rows that cannot become facts."""
    names = [column.name for column in rows.table.columns]
    for row in rows.every_row():
        values = dict(zip(names, row.values, strict=True))
        lacking = next((name for name in (SCOPE, CONTENT) if values[name] is None), None)
        if lacking:
            rows.refuse(row.key, "null", lacking, "is NULL where a fact needs a text")
        elif not rows.refuse_texts(row, {SCOPE, CONTENT}):
            await _refuse_large(server, rows, row, str(values[CONTENT]))


async def _refuse_large(
    server: asyncpg.Connection[asyncpg.Record], rows: Rows, row: VectorRow, content: str
) -> None:
    """Ask the server whether it can index a long text."""
    import asyncpg

    if len(content) < SUSPICIOUS_CHARACTERS:
        return
    query = "SELECT pg_catalog.to_tsvector('english', $1::text) IS NULL"
    try:
        async with open_savepoint(server, is_trial=True):
            await server.fetchval(query, content)
    except asyncpg.PostgresError as error:
        rows.refuse(row.key, "too-large", CONTENT, first_line(error))
