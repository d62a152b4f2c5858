"""List the objects of a schema that run code of another user, or are not what their name promises.

`open_connection` lets none of them run; here they are found from the text of the schema alone, so
that a check can report them. A name of the schema is the same in upper and lower case.
"""

import re
import sqlite3
from collections.abc import Iterable

from sagewai_ops.database.sqlite.read_transaction import text_of
from sagewai_ops.records import dataclass
from sagewai_ops.text import printable

# What a row of the schema creates is decided by its text, not by its type.
_KIND = re.compile(r"\s*CREATE\s+(?:TEMP\s+|TEMPORARY\s+|VIRTUAL\s+)?(\w+)", re.IGNORECASE)
_IS_VIRTUAL = re.compile(r"\s*CREATE\s+VIRTUAL\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class SchemaObject:
    """A trigger, or a view or virtual table in the place of an ordinary table.

    Attributes:
        kind: `trigger`, `view` or `virtual table`.
        table: The table in whose place it is, or that a trigger is on.
    """

    kind: str
    name: str
    table: str

    @property
    def reason(self) -> str:
        """What is wrong with the table."""
        if self.kind == "trigger":
            return f"has the trigger {printable(self.name)}, Sagewai has none; not run"
        return f"a {self.kind} is in its place, not read"

    def __str__(self) -> str:
        """Return the object for people."""
        return f"table {printable(self.table)}: {self.reason}"


def find_unexpected(
    connection: sqlite3.Connection, tables: Iterable[str]
) -> tuple[SchemaObject, ...]:
    """Return all triggers, and the views and virtual tables with the name of one of the tables."""
    names = {name.lower(): name for name in tables}
    found = []
    for name, table, definition in _schema(connection):
        kind = _kind_of(definition)
        if kind == "trigger":
            found.append(SchemaObject(kind, name, table))
        elif kind in ("view", "virtual table") and name.lower() in names:
            found.append(SchemaObject(kind, name, names[name.lower()]))
    return tuple(found)


def stored_columns(connection: sqlite3.Connection, table: str) -> frozenset[str]:
    """Return the columns of an ordinary table, without generated ones; none for anything else."""
    kinds = [
        _kind_of(definition)
        for name, _table, definition in _schema(connection)
        if name.lower() == table.lower()
    ]
    if kinds != ["table"]:
        return frozenset()
    rows = connection.execute("SELECT name FROM pragma_table_info(?)", (table,))
    return frozenset(str(text_of(name)) for (name,) in rows)


def _schema(connection: sqlite3.Connection) -> Iterable[tuple[str, str, str]]:
    for row in connection.execute(
        "SELECT name, tbl_name, sql FROM sqlite_master WHERE type <> 'index' ORDER BY name"
    ).fetchall():
        name, table, definition = (text_of(value) or "" for value in row)
        yield name, table, definition


def _kind_of(definition: str) -> str:
    if _IS_VIRTUAL.match(definition):
        return "virtual table"
    match = _KIND.match(definition)
    return match[1].lower() if match else ""
