"""At which revision a home's database stands, read from its tables alone.

SQLite homes carry no version: Sagewai adds what it misses at its start and writes nothing down, so
the level is the newest revision whose tables and columns are all there. Revisions that change only
PostgreSQL (the merge, a NOT NULL dropped) are taken as reached with the one before. This module
loads no SQLAlchemy: backup, restore and status ask it.
"""

from __future__ import annotations

import functools
import json
import re
import sqlite3
from dataclasses import dataclass
from importlib import resources
from typing import Literal, TypedDict

State = Literal["current", "behind", "ahead", "unknown", "empty"]

# Tables that a virtual table keeps its content in, by the part of their name that follows its own.
# sqlite-vec 0.1 (vec0) and SQLite's own modules; of any other module, every name that it starts.
_SHADOWS = {
    "vec0": r"info|chunks|rowids|auxiliary|(vector_|metadata|rescore_|ivf_|diskann_)\w+\d\d",
    "fts3": r"content|segments|segdir|docsize|stat",
    "fts4": r"content|segments|segdir|docsize|stat",
    "fts5": r"data|idx|content|docsize|config",
    "rtree": r"node|parent|rowid",
    "rtree_i32": r"node|parent|rowid",
    "geopoly": r"node|parent|rowid",
}
_MODULE = re.compile(
    r"\s*CREATE\s+VIRTUAL\s+TABLE\b.*?\bUSING\s+[\"'`\[]?(\w+)", re.IGNORECASE | re.DOTALL
)


class Step(TypedDict):
    """One revision: its parents, and the columns by table that a home has from there on."""

    id: str
    after: list[str]
    adds: dict[str, list[str]]


class Levels(TypedDict):
    """What `levels.json` holds."""

    revisions: list[Step]
    keys: dict[str, list[str]]
    postgres_only: dict[str, list[str]]


@dataclass(frozen=True, slots=True)
class Level:
    """Where a database stands.

    Attributes:
        revision: The newest revision that is there whole; empty when not even the first is.
        state: `behind` lacks something that an upgrade adds; `ahead` has columns of a later
            Sagewai; `unknown` lacks some and has others, or lacks a key; `empty` has none of our
            tables.
        missing: `table` or `table.column`, in the order in which the revisions brought them.
        extra_columns: `table.column` of tables that are ours and columns that are not.
        unknown_tables: The user's own.
        virtual_tables: Such as `vec_learnings`; what they keep their content in is not listed.
    """

    revision: str
    state: State
    missing: tuple[str, ...] = ()
    extra_columns: tuple[str, ...] = ()
    unknown_tables: tuple[str, ...] = ()
    virtual_tables: tuple[str, ...] = ()


@functools.cache
def levels() -> Levels:
    """Read the facts: which revision brought which columns, which columns are keys."""
    content = resources.files("sagewai_ops.schema").joinpath("levels.json").read_text("utf-8")
    facts: Levels = json.loads(content)
    return facts


@functools.cache
def expected() -> dict[str, tuple[str, ...]]:
    """List the columns of every table of a home at HEAD, in the order in which they came."""
    columns: dict[str, tuple[str, ...]] = {}
    for step in levels()["revisions"]:
        for table, names in step["adds"].items():
            columns[table] = columns.get(table, ()) + tuple(names)
    return columns


def read_level(connection: sqlite3.Connection) -> Level:
    """Find where a database stands; it is only read.

    Raises:
        sqlite3.Error: The file is not a database, is damaged, or is locked.
    """
    tables, virtual = _tables(connection)
    known = expected()
    present = {table: _columns(connection, table) for table in tables if table in known}
    unknown = tuple(sorted(table for table in tables if table not in known))
    if not present:
        return Level("", "empty", unknown_tables=unknown, virtual_tables=virtual)
    missing = _missing(present)
    elsewhere = levels()["postgres_only"]
    extra = tuple(
        f"{table}.{column}"
        for table in sorted(present)
        for column in present[table]
        if column not in known[table] and column not in elsewhere.get(table, ())
    )
    keyless = any(
        column not in present[table] for table in present for column in levels()["keys"][table]
    )
    return Level(
        _reached(missing),
        _state(missing, extra, keyless=keyless),
        missing,
        extra,
        unknown,
        virtual,
    )


def _state(missing: tuple[str, ...], extra: tuple[str, ...], *, keyless: bool) -> State:
    if keyless or (missing and extra):
        return "unknown"
    if missing:
        return "behind"
    return "ahead" if extra else "current"


def _missing(present: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    missing: dict[str, None] = {}
    for step in levels()["revisions"]:
        for table, columns in step["adds"].items():
            if table not in present:
                missing[table] = None
                continue
            for column in columns:
                if column not in present[table]:
                    missing[f"{table}.{column}"] = None
    return tuple(missing)


def _reached(missing: tuple[str, ...]) -> str:
    """Find the last revision that is whole and all of whose ancestors are."""
    lacking = set(missing)
    whole: set[str] = set()
    reached = ""
    for step in levels()["revisions"]:
        if not whole.issuperset(step["after"]):
            continue
        if any(
            table in lacking or f"{table}.{column}" in lacking
            for table, columns in step["adds"].items()
            for column in columns
        ):
            continue
        whole.add(step["id"])
        reached = step["id"]
    return reached


def _tables(connection: sqlite3.Connection) -> tuple[list[str], tuple[str, ...]]:
    """List the plain tables and the virtual ones, without SQLite's own and the shadows."""
    plain: list[str] = []
    modules: dict[str, str] = {}
    for name, definition in connection.execute(
        "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%'"
        " ESCAPE '\\' ORDER BY name"
    ):
        module = _MODULE.match(definition or "")
        if module:
            modules[name] = module[1].lower()
        else:
            plain.append(name)
    shadows = re.compile(
        "|".join(
            f"{re.escape(name)}_({_SHADOWS.get(module, '.+')})" for name, module in modules.items()
        )
        or r"(?!)"
    )
    return [name for name in plain if not shadows.fullmatch(name)], tuple(modules)


def _columns(connection: sqlite3.Connection, table: str) -> tuple[str, ...]:
    rows = connection.execute("SELECT name FROM pragma_table_xinfo(?)", (table,))
    return tuple(name for (name,) in rows)
