"""The schema of PostgreSQL at the head, as facts; neither Alembic nor SQLAlchemy is loaded."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import TypedDict

# `PRIMARY KEY (a, b)`, `UNIQUE (a)`, or `CREATE INDEX i ON t USING btree (a, b DESC) WHERE ...`.
_ENTRY = re.compile(r"(?:PRIMARY KEY|UNIQUE|.* USING \w+) \(([^)]*)\)")


class Table(TypedDict):
    """A table: what PostgreSQL prints of each column, constraint and index, by name."""

    columns: dict[str, str]
    constraints: dict[str, str]
    indexes: dict[str, str]


class Head(TypedDict):
    """What `postgres.json` holds: the schema at HEAD."""

    functions: dict[str, list[str]]  # signature -> names of the parameters
    tables: dict[str, Table]


@functools.cache
def head() -> Head:
    """Read the facts: the schema that the last revision leaves."""
    content = resources.files("sagewai_ops.schema").joinpath("postgres.json").read_text("utf-8")
    facts: Head = json.loads(content)
    return facts


@functools.cache
def index_entries() -> Mapping[str, tuple[tuple[str, ...], ...]]:
    """List the columns of each index of a table, those of keys among them, by table."""
    return {
        name: tuple(sorted({tuple(_names(match[1])) for match in _entries(table)}))
        for name, table in head()["tables"].items()
    }


def _entries(table: Table) -> Iterator[re.Match[str]]:
    for definition in (*table["constraints"].values(), *table["indexes"].values()):
        match = _ENTRY.match(definition)
        if match:
            yield match


def _names(listed: str) -> list[str]:
    return [part.split()[0].strip('"') for part in listed.split(", ")]
