"""Declarations of vec0 tables, found by their SQL in the schema and not by their names.

Only the declaration is read here, so this works without sqlite-vec. The grammar is that of
sqlite-vec 0.1: column names are plain words, the vector column has its dimension in brackets, the
others their type and role. A declaration that is not understood becomes an obstacle.
"""

import re
import sqlite3

from sagewai_ops.database.sqlite.read_transaction import text_of
from sagewai_ops.records import dataclass

_MODULE = re.compile(
    r"\s*CREATE\s+VIRTUAL\s+TABLE\b.*?\bUSING\s+[\"'`\[]?vec0[\"'`\]]?\s*\((?P<body>.*)\)\s*;?\s*",
    re.IGNORECASE | re.DOTALL,
)
_VECTOR = re.compile(r"(\w+)\s+(\w+)\s*\[\s*(\d+)\s*\]\s*(.*)", re.DOTALL)
_KEY = re.compile(r"(\w+)\s+(\w+)\s+primary\s+key", re.IGNORECASE)
_PARTITION = re.compile(r"(\w+)\s+(\w+)\s+partition\s+key", re.IGNORECASE)
_AUXILIARY = re.compile(r"\+\s*(\w+)\s+(\w+)")
_OPTION = re.compile(r"(\w+)\s*=.*", re.DOTALL)
_METADATA = re.compile(r"(\w+)\s+(\w+)")
_KINDS = {
    "text": "text",
    "int": "integer",
    "integer": "integer",
    "float": "float",
    "double": "float",
    "bool": "boolean",
    "boolean": "boolean",
}


@dataclass(frozen=True, slots=True)
class Column:
    """A column other than the vector and the key.

    Attributes:
        role: `metadata`, `auxiliary` or `partition`: in which shadow table it is stored.
        kind: `text`, `integer`, `float` or `boolean`; of an auxiliary column, as declared.
    """

    name: str
    role: str
    kind: str


@dataclass(frozen=True, slots=True)
class VectorTable:
    """The declaration of a vec0 table.

    Attributes:
        key: The primary key's column, `rowid` by default.
        key_is_text: Otherwise the key is an integer.
        vector: The column of the vectors.
        dimensions: Floats in one vector.
        columns: The others, in the order of their declaration.
        metric: `l2`, `l1` or `cosine`.
        obstacle: Why its rows cannot be read as vectors of 32-bit floats; "" if they can.
    """

    name: str
    key: str
    key_is_text: bool
    vector: str
    dimensions: int
    columns: tuple[Column, ...]
    metric: str = "l2"
    obstacle: str = ""


def vector_tables(connection: sqlite3.Connection) -> tuple[VectorTable, ...]:
    """Return the vec0 tables of a database, ordered by name."""
    definitions = connection.execute(
        "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND rootpage = 0 ORDER BY name"
    ).fetchall()
    tables = []
    for name, definition in definitions:
        match = _MODULE.fullmatch(text_of(definition) or "")
        if match:
            tables.append(_parse(text_of(name) or "", match["body"]))
    return tuple(tables)


def _parse(name: str, body: str) -> VectorTable:
    key, key_is_text, metric = "rowid", False, "l2"
    vectors: list[tuple[str, str, int, str]] = []
    columns: list[Column] = []
    obstacle = ""
    for argument in (part.strip() for part in body.split(",")):
        if match := _VECTOR.fullmatch(argument):
            vectors.append((match[1], match[2].lower(), int(match[3]), match[4].lower()))
        elif match := _KEY.fullmatch(argument):
            key, key_is_text = match[1], match[2].lower() == "text"
        elif match := _PARTITION.fullmatch(argument):
            columns.append(Column(match[1], "partition", _KINDS.get(match[2].lower(), "")))
        elif match := _AUXILIARY.fullmatch(argument):
            columns.append(Column(match[1], "auxiliary", match[2].lower()))
        elif not _OPTION.fullmatch(argument):
            match = _METADATA.fullmatch(argument)
            kind = _KINDS.get(match[2].lower(), "") if match else ""
            if match and kind:
                columns.append(Column(match[1], "metadata", kind))
            else:
                obstacle = f"column {argument!r} has no known type"
    vector, element, dimensions, options = vectors[0] if vectors else ("", "", 0, "")
    if match := re.search(r"distance_metric\s*=\s*(\w+)", options):
        metric = match[1]
        options = options.replace(match[0], "").strip()
    if len(vectors) != 1:
        obstacle = f"it has {len(vectors)} vector columns"
    elif element not in ("float", "f32"):
        obstacle = f"its vectors are of {element}"
    elif options:
        obstacle = f"its vector column has unknown options, {options!r}"
    return VectorTable(
        name, key, key_is_text, vector, dimensions, tuple(columns), metric, obstacle=obstacle
    )
