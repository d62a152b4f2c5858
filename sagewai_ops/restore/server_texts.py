"""The rows of a home as the text that COPY would send, built by SQLite: `sqlite_value` in reverse.

Of a whole block of rows at once, by code that shares nothing with the conversion. Equal texts are
equal values; where they differ, the values are compared one by one, and may still be equal.

Source: PostgreSQL's manual, COPY, Text Format; the output functions of the types, with the time
zone UTC, DateStyle ISO and extra_float_digits 1.
"""

from __future__ import annotations

import secrets
import sqlite3

from sagewai_ops.database.sqlite.read_transaction import quoted
from sagewai_ops.export.compare.normalise import array_text, escaped, unescaped
from sagewai_ops.export.convert.sqlite_value import NULL, SHORT_ID
from sagewai_ops.process.signals import is_callback
from sagewai_ops.restore.conversion import ConvertedColumn, ConvertedTable
from sagewai_ops.restore.server_rows import Block

_MOST_BYTES = 1024 * 1024  # of a block: SQLite has several copies of a long row
_FIELD_END, _ROW_END = b"\x1f", b"\x1e"  # in a text they are not unique: they are counted
_UNKNOWN = "?"  # no server writes this for a number, a truth value or a list
_DOCUMENTS = ("text", "json", "jsonb")

# Parameters of the query: the limits of the rowid, then what NULL is.
_NULL = "?3"
_FIELD, _ROW = "char(31)", "char(30)"
_BOOLEAN = (
    f"CASE WHEN {{0}} IS NULL THEN {_NULL} WHEN {{0}} = 1 THEN 't' WHEN {{0}} = 0 THEN 'f'"
    f" ELSE '{_UNKNOWN}' END"
)
_MOMENT = (
    "CASE WHEN substr({0}, 20) = '.000000' THEN substr({0}, 1, 19) || '+00'"
    " WHEN length({0}) = 26 AND substr({0}, 20, 1) = '.' THEN rtrim({0}, '0') || '+00'"
    f" ELSE ifnull({{0}}, {_NULL}) END"
)
_EXPRESSIONS = {
    "boolean": _BOOLEAN,
    "timestamptz": _MOMENT,
    "uuid": (
        f"CASE length({{0}}) WHEN 12 THEN '{SHORT_ID}' || {{0}} ELSE ifnull({{0}}, {_NULL}) END"
    ),
    "double": f"CASE WHEN {{0}} IS NULL THEN {_NULL} ELSE double_text({{0}}) END",
    "text[]": f"CASE {{0}} WHEN '[]' THEN '{{{{}}}}' ELSE ifnull(array_text({{0}}), {_NULL}) END",
}
_PLAIN = f"ifnull({{0}}, {_NULL})"
# SQLite would write a number with 15 digits.
_NUMERIC = f"CASE typeof({{0}}) WHEN 'real' THEN '{_UNKNOWN}' ELSE {_PLAIN} END"


class ServerTexts:
    """Reads rows of a database as text of COPY.

    Args:
        connection: Its texts are bytes.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._null = f"\x1d{secrets.token_hex(8)}"  # so that no value is the same
        self._queries: dict[str, str] = {}
        connection.create_function("double_text", 1, _double_text, deterministic=True)
        connection.create_function("array_text", 1, _array_text, deterministic=True)

    def are_equal(self, table: ConvertedTable, block: Block) -> bool:
        """Return whether COPY would send the rows of the database as these; False if unknown."""
        content, width = block.content, len(table.stored.columns)
        limits = (block.first + 1, block.first + block.count)
        if table.number is not None:
            limits = block.ends(table.number) or (1, 0)
        if not 0 < len(content) <= _MOST_BYTES or not width:
            return False
        query = self._queries.setdefault(table.stored.name, _query(table))
        try:
            (text,) = self._connection.execute(query, (*limits, self._null)).fetchone()
        except (sqlite3.DataError, OverflowError, MemoryError):
            return False
        if not text or text.count(_FIELD_END) != block.count * (width - 1):
            return False  # a text has that character, or there are other rows
        if text.count(_ROW_END) != block.count - 1:
            return False
        lines = escaped(text).replace(_FIELD_END, b"\t").replace(_ROW_END, b"\n")
        return lines.replace(self._null.encode(), NULL) + b"\n" == content


def _query(table: ConvertedTable) -> str:
    """Return the SQL that joins the fields of the rows between two numbers."""
    fields = [""] * len(table.stored.columns)
    for column in table.columns:
        fields[column.place] = _expression(column)
    for lost in table.lost:
        text = unescaped(lost.default).decode().replace("'", "''")
        fields[lost.place] = _NULL if lost.default == NULL else f"'{text}'"
    name = quoted(table.stored.name)
    return (
        f"SELECT group_concat(line, {_ROW}) FROM (SELECT {_concatenated(fields)} AS line"  # noqa: S608
        f" FROM {name} WHERE rowid BETWEEN ?1 AND ?2 ORDER BY rowid)"
    )


def _expression(column: ConvertedColumn) -> str:
    kind = column.type.name
    pattern = _EXPRESSIONS.get(kind, _PLAIN)
    if column.is_numeric and kind in _DOCUMENTS:
        pattern = _NUMERIC
    return pattern.format(column.expression)


def _concatenated(fields: list[str]) -> str:
    """Return the SQL of a row; halved, so that SQLite copies the values fewer times."""
    if len(fields) == 1:
        return fields[0]
    middle = len(fields) // 2
    return f"({_concatenated(fields[:middle])}) || {_FIELD} || ({_concatenated(fields[middle:])})"


@is_callback
def _double_text(value: object) -> str:
    """Return a number as float8out writes most; others are compared as numbers."""
    return repr(value).removesuffix(".0").replace("inf", "Infinity")


@is_callback
def _array_text(document: object) -> str | None:
    """Return a list as array_out writes it; None for NULL, and for the JSON null."""
    if document is None:
        return None
    try:
        text = array_text(str(document).encode())
    except (ValueError, TypeError, AttributeError, RecursionError):
        return _UNKNOWN
    return None if text == NULL else unescaped(text).decode()
