"""The tables of a home's SQLite database at the head, parsed from `sqlite_head.sql`.

No SQLAlchemy is loaded: backup, restore and status read a database's revision with this.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from sagewai_ops.records import dataclass

# The form of the file is fixed: a column on a line, lower case; a constraint begins in upper case.
_TABLE = re.compile(r'CREATE TABLE "?(\w+)"? \( -- (\w+)\n(.*?)\n\);\n', re.DOTALL)
_COLUMN = re.compile(r'^  ("?([a-z]\w*)"? ([A-Z]+(?:\(\d+\))?).*?),?(?: -- (\w+))?$', re.MULTILINE)
_KEY = re.compile(r"^  PRIMARY KEY \((.*)\)", re.MULTILINE)
_INDEX = re.compile(r"CREATE (?:UNIQUE )?INDEX (\w+)\s+ON (\w+) .*")
_WORD = re.compile(r"\w+")
_COMMENT = re.compile(r" -- \w+$", re.MULTILINE)


class Column(NamedTuple):
    """One column; `clause` defines it in CREATE TABLE and ADD COLUMN, name included."""

    name: str
    type: str
    clause: str
    revision: str


@dataclass(frozen=True, slots=True)
class Table:
    """One table; `indexes` maps each name to the statement that creates it."""

    name: str
    definition: str
    columns: Mapping[str, Column]
    key: tuple[str, ...]
    indexes: Mapping[str, str]

    @property
    def statement(self) -> str:
        """The CREATE TABLE, without the comments of the file."""
        return _COMMENT.sub("", self.definition)


@functools.cache
def tables() -> Mapping[str, Table]:
    """Return the tables in the order in which Sagewai creates them."""
    script = Path(__file__).with_name("sqlite_head.sql").read_text("utf-8")
    indexes: dict[str, dict[str, str]] = {}
    for match in _INDEX.finditer(script):
        indexes.setdefault(match[2], {})[match[1]] = match[0].removesuffix(";")
    found = {}
    for match in _TABLE.finditer(script):
        name, revision, body = match.groups()
        columns = {
            column: Column(column, kind, clause, later or revision)
            for clause, column, kind, later in _COLUMN.findall(body)
        }
        key = _KEY.search(body)
        found[name] = Table(
            name,
            match[0].removesuffix(";\n"),
            columns,
            tuple(part.strip('"') for part in key[1].split(", ")) if key else (),
            indexes.get(name, {}),
        )
    return found


def tables_at(revisions: Collection[str]) -> Mapping[str, Table]:
    """Return the tables with the columns and indexes that some revisions added.

    Args:
        revisions: Complete, from `revision_graph.applied`.
    """
    found = {}
    for table in tables().values():
        missing = {
            name for name, column in table.columns.items() if column.revision not in revisions
        }
        columns = {name: column for name, column in table.columns.items() if name not in missing}
        if not columns:
            continue
        lines = [line for line in table.definition.split("\n") if not _defines(line, missing)]
        indexes = {
            name: statement
            for name, statement in table.indexes.items()
            if missing.isdisjoint(_WORD.findall(statement))
        }
        found[table.name] = Table(table.name, "\n".join(lines), columns, table.key, indexes)
    return found


def _defines(line: str, names: Collection[str]) -> bool:
    """Return whether a line defines one of these columns."""
    match = _COLUMN.match(line)
    return match is not None and match[2] in names


def statements() -> tuple[str, ...]:
    """Return the statements that create a fresh home's tables and indexes in an empty database."""
    return tuple(
        statement
        for table in tables().values()
        for statement in (table.statement, *table.indexes.values())
    )
