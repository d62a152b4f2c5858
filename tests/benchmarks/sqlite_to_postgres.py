"""The move as people write it themselves: CSV files and COPY, or INSERTs by executemany.

For the benchmarks only. It converts what it must to have the rows accepted (lists to arrays, short
ids to uuids) and checks nothing.

    python sqlite_to_postgres.py csv DATABASE DIRECTORY URL  # writes DIRECTORY/load.sql for psql
    too python sqlite_to_postgres.py insert DATABASE URL
"""

import asyncio
import csv
import json
import sqlite3
import sys
from collections.abc import Callable
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import asyncpg

BATCH_ROWS = 1000
_COLUMNS = """
SELECT column_name, CASE WHEN data_type = 'ARRAY' THEN 'text[]' ELSE data_type END AS type
FROM information_schema.columns WHERE table_schema = 'public' AND table_name = $1
"""
TABLES = """
SELECT name FROM sqlite_master
WHERE type = 'table' AND sql NOT LIKE 'CREATE VIRTUAL%' AND name <> 'alembic_version'
"""
_REFERENCES = """
SELECT conrelid::regclass::text AS child, confrelid::regclass::text AS parent
FROM pg_constraint WHERE contype = 'f' AND conrelid <> confrelid
"""


async def main() -> None:
    """Do what the command line asks for."""
    kind, database, *rest = sys.argv[1:]
    source = sqlite3.connect(database)
    target = await asyncpg.connect(rest[-1])
    try:
        if kind == "csv":
            await write_files(source, target, Path(rest[0]))
        else:
            await insert(source, target)
    finally:
        await target.close()
        source.close()


async def write_files(source: sqlite3.Connection, target: Any, directory: Path) -> None:
    """Write a file for each table with rows, and the script that loads them."""
    directory.mkdir(exist_ok=True)
    with (directory / "load.sql").open("w") as script:
        script.write("SET timezone = 'UTC';\n")
        for table, types in await tables(source, target):
            names = ", ".join(f'"{name}"' for name in types)
            path = directory / f"{table}.csv"
            with path.open("w", newline="") as file:
                csv.writer(file).writerows(rows(source, table, types))
            script.write(f"\\copy \"{table}\" ({names}) FROM '{path}' WITH (FORMAT csv)\n")


async def insert(source: sqlite3.Connection, target: Any) -> None:
    """Insert the rows of all tables, in batches, in one transaction."""
    async with target.transaction():
        await target.execute("SET LOCAL timezone = 'UTC'")
        for table, types in await tables(source, target):
            names = ", ".join(f'"{name}"' for name in types)
            marks = ", ".join(f"${n}::text::{kind}" for n, kind in enumerate(types.values(), 1))
            statement = f'INSERT INTO "{table}" ({names}) VALUES ({marks})'
            batch = []
            for row in rows(source, table, types):
                batch.append([None if value is None else str(value) for value in row])
                if len(batch) == BATCH_ROWS:
                    await target.executemany(statement, batch)
                    batch = []
            await target.executemany(statement, batch)


async def tables(source: sqlite3.Connection, target: Any) -> list[tuple[str, dict[str, str]]]:
    """List the tables with rows, parents first, with the target's types of their columns."""
    order: TopologicalSorter[str] = TopologicalSorter()
    for (name,) in source.execute(TABLES):
        order.add(name)
    for row in await target.fetch(_REFERENCES):
        order.add(row["child"], row["parent"])
    found = []
    for name in order.static_order():
        types = {row["column_name"]: row["type"] for row in await target.fetch(_COLUMNS, name)}
        own = {row[1] for row in source.execute(f"PRAGMA table_info('{name}')")}
        shared = {column: kind for column, kind in types.items() if column in own}
        if shared and source.execute(f'SELECT EXISTS (SELECT 1 FROM "{name}")').fetchone()[0]:
            found.append((name, shared))
    return found


def rows(source: sqlite3.Connection, table: str, types: dict[str, str]) -> Any:
    """Yield a table's rows as the target takes them."""
    listed = ", ".join(f'"{name}"' for name in types)
    found = source.execute(f'SELECT {listed} FROM "{table}"')
    converted = [
        (place, CONVERSIONS[kind])
        for place, kind in enumerate(types.values())
        if kind in CONVERSIONS
    ]
    if not converted:
        yield from found
        return
    for row in found:
        values = list(row)
        for place, convert in converted:
            if values[place] is not None:
                values[place] = convert(values[place])
        yield values


def _array(document: str) -> str:
    return (
        "{" + ",".join(json.dumps(each, ensure_ascii=False) for each in json.loads(document)) + "}"
    )


def _uuid(text: str) -> str:
    return text if len(text) > 12 else f"00000000-0000-0000-0000-{text}"


CONVERSIONS: dict[str, Callable[[Any], object]] = {"text[]": _array, "uuid": _uuid}

if __name__ == "__main__":
    asyncio.run(main())
