"""The revision of a home's SQLite database, determined from its tables and columns.

A home's database stores no revision: Sagewai adds missing columns when it starts. The level is the
newest revision all of whose tables and columns exist. Revisions that change only PostgreSQL (the
merge, a dropped NOT NULL) count as reached with the one before. No SQLAlchemy is loaded, because
backup, restore and status use this.
"""

from __future__ import annotations

import functools
import re
import sqlite3
from collections.abc import Iterator
from typing import Literal

from sagewai_ops.home import companions
from sagewai_ops.records import dataclass
from sagewai_ops.schema import postgres_head, sqlite_head
from sagewai_ops.schema.revision_graph import parents, revisions

State = Literal["current", "behind", "ahead", "unknown", "empty"]

# The shadow tables of a virtual table, by the suffix of their name: of sqlite-vec 0.1 (vec0) and
# SQLite's own modules. Of other modules, every table whose name begins with the virtual table's.
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


@dataclass(frozen=True, slots=True)
class Level:
    """The level of a database.

    Attributes:
        revision: The newest complete revision; empty if not even the first is complete.
        state: `behind` misses something that an upgrade adds; `ahead` has columns of a later
            Sagewai; `unknown` misses some columns and has others, or misses a key; `empty` has no
            table of Sagewai's.
        missing: `table` or `table.column`, in the order of the revisions.
        extra_columns: `table.column`, unknown columns of Sagewai's tables.
        unknown_tables: The user's own tables.
        companion_tables: Those of litestream.
        virtual_tables: Such as `vec_learnings`, without their shadow tables.
    """

    revision: str
    state: State
    missing: tuple[str, ...] = ()
    extra_columns: tuple[str, ...] = ()
    unknown_tables: tuple[str, ...] = ()
    virtual_tables: tuple[str, ...] = ()
    companion_tables: tuple[str, ...] = ()


@functools.cache
def _additions() -> tuple[tuple[str, dict[str, list[str]]], ...]:
    """Return the columns by table that each revision added, oldest first."""
    additions: dict[str, dict[str, list[str]]] = {revision: {} for revision in revisions()}
    for table in sqlite_head.tables().values():
        for column in table.columns.values():
            additions[column.revision].setdefault(table.name, []).append(column.name)
    return tuple(additions.items())


def read_level(connection: sqlite3.Connection) -> Level:
    """Determine the level of a database, which is only read.

    Raises:
        sqlite3.Error: The file is not a database, is damaged, or is locked.
    """
    tables, virtual = _tables(connection)
    known = sqlite_head.tables()
    present = {table: _columns(connection, table) for table in tables if table in known}
    unknown = tuple(
        sorted(table for table in tables if table not in known and table not in companions.TABLES)
    )
    of_companion = tuple(sorted(companions.TABLES.intersection(tables)))
    if not present:
        return Level(
            "",
            "empty",
            unknown_tables=unknown,
            virtual_tables=virtual,
            companion_tables=of_companion,
        )
    missing = _missing(present)
    extra = tuple(_extra(present))
    has_no_key = any(
        column not in columns for table, columns in present.items() for column in known[table].key
    )
    return Level(
        _newest(missing),
        _state(missing, extra, has_no_key=has_no_key),
        missing,
        extra,
        unknown,
        virtual,
        of_companion,
    )


def _state(missing: tuple[str, ...], extra: tuple[str, ...], *, has_no_key: bool) -> State:
    if has_no_key or (missing and extra):
        return "unknown"
    if missing:
        return "behind"
    return "ahead" if extra else "current"


def _missing(present: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    missing: dict[str, None] = {}
    for _revision, additions in _additions():
        for table, columns in additions.items():
            if table not in present:
                missing[table] = None
                continue
            for column in columns:
                if column not in present[table]:
                    missing[f"{table}.{column}"] = None
    return tuple(missing)


def _extra(present: dict[str, tuple[str, ...]]) -> Iterator[str]:
    """Yield the columns that neither a home nor PostgreSQL has at the head."""
    for table, columns in sorted(present.items()):
        for column in columns:
            if (
                column not in sqlite_head.tables()[table].columns
                and column not in postgres_head.head()["tables"][table]["columns"]
            ):
                yield f"{table}.{column}"


def _newest(missing: tuple[str, ...]) -> str:
    """Return the newest revision that is complete and whose ancestors all are."""
    absent = set(missing)
    complete: set[str] = set()
    newest = ""
    for revision, additions in _additions():
        if not complete.issuperset(parents()[revision]):
            continue
        if any(
            table in absent or f"{table}.{column}" in absent
            for table, columns in additions.items()
            for column in columns
        ):
            continue
        complete.add(revision)
        newest = revision
    return newest


def _tables(connection: sqlite3.Connection) -> tuple[list[str], tuple[str, ...]]:
    """Return the ordinary and the virtual tables, without SQLite's own and shadow tables."""
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
