"""The PostgreSQL schema at the head, without loading Alembic or SQLAlchemy."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypedDict

# `PRIMARY KEY (a, b)`, `UNIQUE (a)`, or `CREATE INDEX i ON t USING btree (a, b DESC) WHERE ...`.
_ENTRY = re.compile(r"(?:PRIMARY KEY|UNIQUE|.* USING \w+) \(([^)]*)\)")

_ANY = re.compile(r"= ANY \(ARRAY\[(.*?)\]\)")


class Table(TypedDict):
    """A table: the definition that PostgreSQL prints for each column, constraint and index."""

    columns: dict[str, str]
    constraints: dict[str, str]
    indexes: dict[str, str]


class Head(TypedDict):
    """The schema at the head: `postgres_head.json`, which fixtures/postgres_head.py writes."""

    functions: dict[str, list[str]]  # signature -> names of the parameters
    tables: dict[str, Table]


@functools.cache
def head() -> Head:
    """Return the schema after the last revision."""
    content = Path(__file__).with_name("postgres_head.json").read_text("utf-8")
    facts: Head = json.loads(content)
    return facts


@functools.cache
def index_entries() -> Mapping[str, tuple[tuple[str, ...], ...]]:
    """Return the columns of every index of each table, including those of keys."""
    return {
        name: tuple(sorted({tuple(_names(match[1])) for match in _entries(table)}))
        for name, table in head()["tables"].items()
    }


def unique_constraints(table: str) -> Iterator[tuple[str, ...]]:
    """Yield the columns of the UNIQUE constraints of a table."""
    for definition in head()["tables"][table]["constraints"].values():
        match = _ENTRY.match(definition)
        if match and definition.startswith("UNIQUE"):
            yield tuple(_names(match[1]))


def checks(table: str) -> Iterator[tuple[str, str]]:
    """Yield the names and conditions of the CHECKs of a table, in SQL that SQLite evaluates."""
    for name, definition in sorted(head()["tables"][table]["constraints"].items()):
        if definition.startswith("CHECK "):
            condition = _ANY.sub(r"IN (\1)", definition.removeprefix("CHECK "))
            yield name, condition.replace("::text", "")


def _entries(table: Table) -> Iterator[re.Match[str]]:
    for definition in (*table["constraints"].values(), *table["indexes"].values()):
        match = _ENTRY.match(definition)
        if match:
            yield match


def _names(listed: str) -> list[str]:
    return [part.split()[0].strip('"') for part in listed.split(", ")]
