"""The catalog of an SQLite database: columns, constraints and indexes of its tables.

The same code reads a home's tables and a fresh home's, so a difference is never one of parsing. The
order of columns does not count, because an added column is last.
"""

from __future__ import annotations

import contextlib
import functools
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping

from sagewai_ops.database.sqlite.connect import open_connection
from sagewai_ops.records import dataclass
from sagewai_ops.schema import sqlite_head

# A token is a string, a quoted name, a comment, a word or a sign.
_TOKENS = re.compile(
    r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`(?:[^`]|``)*`|\[[^\]]*\]|--[^\n]*|/\*.*?\*/|\w+|[^\s\w]",
    re.DOTALL,
)
_HIDDEN = 1  # of table_xinfo: a column of a virtual table that SELECT * leaves out


@dataclass(frozen=True, slots=True)
class Column:
    """One column; `default` as in the DDL, `key` its position in the primary key or 0."""

    name: str
    type: str
    not_null: bool
    default: str | None
    key: int


@dataclass(frozen=True, slots=True)
class Index:
    """One CREATE INDEX; `where` is normalised, and empty without a condition."""

    name: str
    columns: tuple[str, ...]
    unique: bool
    where: str

    @property
    def shown(self) -> str:
        """The index in messages."""
        kind = "unique index" if self.unique else "index"
        where = f" where {self.where}" if self.where else ""
        return f"{kind} on {', '.join(self.columns)}{where}"


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """One reference."""

    columns: tuple[str, ...]
    table: str
    targets: tuple[str, ...]
    on_delete: str

    @property
    def shown(self) -> str:
        """The reference in messages."""
        action = "" if self.on_delete == "NO ACTION" else f" on delete {self.on_delete.lower()}"
        columns, targets = ", ".join(self.columns), ", ".join(self.targets)
        return f"{columns} references {self.table} ({targets}){action}"


@dataclass(frozen=True, slots=True)
class Table:
    """One table; CHECKs are normalised."""

    columns: Mapping[str, Column]
    checks: frozenset[str]
    uniques: frozenset[tuple[str, ...]]
    foreign_keys: frozenset[ForeignKey]
    indexes: Mapping[str, Index]


@functools.cache
def expected() -> Mapping[str, Table]:
    """Return the tables of a fresh home, read from a database in memory."""
    with contextlib.closing(open_connection(None)) as connection:
        for statement in sqlite_head.statements():
            connection.execute(statement)
        return read_tables(connection, sqlite_head.tables())


def read_tables(connection: sqlite3.Connection, names: Iterable[str]) -> dict[str, Table]:
    """Read those of the named tables that exist."""
    definitions = dict(
        connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'").fetchall()
    )
    return {
        name: _table(connection, name, definitions[name]) for name in names if name in definitions
    }


def normalised(expression: str) -> str:
    """Normalise an expression: single blanks, names without quotes, lower case except strings."""
    return " ".join(_plain(token) for token in _tokens(expression))


def _table(connection: sqlite3.Connection, name: str, definition: str) -> Table:
    columns = {
        row[0]: Column(row[0], row[1].upper(), bool(row[2]), row[3], row[4])
        for row in connection.execute(
            'SELECT name, type, "notnull", dflt_value, pk FROM pragma_table_xinfo(?)'
            " WHERE hidden <> ?",
            (name, _HIDDEN),
        )
    }
    uniques, indexes = [], {}
    for index, unique, origin in connection.execute(
        'SELECT name, "unique", origin FROM pragma_index_list(?)', (name,)
    ).fetchall():
        if origin == "c":
            indexes[index] = _index(connection, index, unique=bool(unique))
        elif origin == "u":
            uniques.append(_index_columns(connection, index))
    return Table(
        columns,
        _checks(definition),
        frozenset(uniques),
        frozenset(_foreign_keys(connection, name)),
        indexes,
    )


def _index(connection: sqlite3.Connection, name: str, *, unique: bool) -> Index:
    (definition,) = connection.execute(
        "SELECT sql FROM sqlite_master WHERE type = 'index' AND name = ?", (name,)
    ).fetchone()
    where: list[str] = []
    if "where" in definition.lower():
        tokens = list(_tokens(definition))
        words = [token.lower() for token in tokens]
        where = tokens[words.index("where") + 1 :] if "where" in words else []
    return Index(name, _index_columns(connection, name), unique, normalised(" ".join(where)))


def _index_columns(connection: sqlite3.Connection, name: str) -> tuple[str, ...]:
    rows = connection.execute(
        'SELECT name, "desc" FROM pragma_index_xinfo(?) WHERE "key" ORDER BY seqno', (name,)
    )
    # An expression has no name there.
    return tuple(f"{column or '(expression)'}{' DESC' if down else ''}" for column, down in rows)


def _foreign_keys(connection: sqlite3.Connection, name: str) -> Iterator[ForeignKey]:
    grouped: dict[int, list[tuple[str, str, str | None, str]]] = {}
    for number, table, column, target, action in connection.execute(
        'SELECT id, "table", "from", "to", on_delete FROM pragma_foreign_key_list(?)'
        " ORDER BY id, seq",
        (name,),
    ):
        grouped.setdefault(number, []).append((table, column, target, action))
    for parts in grouped.values():
        yield ForeignKey(
            tuple(column for _, column, _, _ in parts),
            parts[0][0],
            tuple(target or "" for _, _, target, _ in parts),  # "": the primary key
            parts[0][3],
        )


@functools.cache  # the tables of most homes are those of a fresh one
def _checks(definition: str) -> frozenset[str]:
    """Return the conditions of the CHECKs in a CREATE TABLE, without their parentheses."""
    found = set()
    tokens = list(_tokens(definition))
    for place, token in enumerate(tokens):
        if token.upper() != "CHECK" or tokens[place + 1 : place + 2] != ["("]:
            continue
        depth, end = 0, place + 1
        while end < len(tokens):
            depth += {"(": 1, ")": -1}.get(tokens[end], 0)
            if depth == 0:
                break
            end += 1
        found.add(normalised(" ".join(tokens[place + 2 : end])))
    return frozenset(found)


def _tokens(text: str) -> Iterator[str]:
    for token in _TOKENS.findall(text):
        if not token.startswith(("--", "/*")):
            yield token


def _plain(token: str) -> str:
    """Remove the quotes of a name that needs none, and lower a word."""
    if token[0] in '"`[':
        inner = token[1:-1]
        return inner.lower() if re.fullmatch(r"\w+", inner) else token
    return token if token.startswith("'") else token.lower()
