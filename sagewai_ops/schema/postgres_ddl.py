"""The SQL of a snapshot: `schema.sql`, `constraints.sql` and, for psql, `restore.sql`.

The first two name no schema and have no command of psql: what they create is in the first schema of
the session's path. So the same text creates a copy of the tables elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from sagewai_ops.database.sqlite.read_transaction import quoted
from sagewai_ops.schema.postgres_catalog import ServerCatalog, ServerSequence, ServerTable
from sagewai_ops.text import printable

DIRECTORY = "postgres"
SCHEMA, CONSTRAINTS, RESTORE = (
    f"{DIRECTORY}/{name}.sql" for name in ("schema", "constraints", "restore")
)
_RESTORE_HEAD = """\
-- Restores the database of this snapshot into an empty one, or leaves that as it was:
--   createdb --encoding UTF8 --template template0 NAME
--   zstd -dc FILE | tar -x && psql -v ON_ERROR_STOP=1 -d NAME -f postgres/restore.sql
-- Run it in the directory that contains postgres/.
\\set ON_ERROR_STOP on
BEGIN;
SET LOCAL client_encoding = 'UTF8';
SET LOCAL standard_conforming_strings = on;
SET LOCAL check_function_bodies = off;
SET LOCAL row_security = off;
SET LOCAL statement_timeout = 0;
SET LOCAL lock_timeout = 0;
SET LOCAL idle_in_transaction_session_timeout = 0;
SET LOCAL client_min_messages = warning;
SET LOCAL timezone = 'UTC';
SET LOCAL datestyle = 'ISO, MDY';
SET LOCAL intervalstyle = 'postgres';
"""


def schema_sql(catalog: ServerCatalog) -> str:
    """Return the statements that create types, functions, sequences and tables."""
    lines = [
        # Rows of a table: a newline in one would end the comment, and psql would run the rest.
        f"-- Tables, without keys and indexes, at {printable(', '.join(catalog.revisions))}.",
        *catalog.enums,
        *catalog.functions,
    ]
    own = [sequence for sequence in catalog.sequences if not sequence.is_identity]
    lines += [f"CREATE SEQUENCE {quoted(item.name)} {item.options};" for item in own]
    lines += map(_create_table, catalog.tables)
    lines += [
        f"ALTER SEQUENCE {quoted(item.name)} OWNED BY {quoted(item.table)}.{quoted(item.column)};"
        for item in own
        if item.table
    ]
    return "\n".join(lines) + "\n"


def constraints_sql(catalog: ServerCatalog) -> str:
    """Return the statements that follow the rows: keys, indexes, references, sequences' values."""
    lines = ["-- Keys, checks, indexes, foreign keys and the values of sequences."]
    lines += [text for table in catalog.tables for text in table.constraints]
    lines += [text for table in catalog.tables for text in table.references]
    lines += map(_set_value, catalog.sequences)
    return "\n".join(lines) + "\n"


def restore_sql(
    catalog: ServerCatalog, members: Mapping[str, Sequence[Sequence[str]]], encoding: str
) -> str:
    """Return the script that rebuilds the database with psql alone.

    Args:
        members: Table -> its members, in groups that each end with a row.
        encoding: Of the members.
    """
    lines = [
        *(
            f"CREATE SCHEMA IF NOT EXISTS {quoted(schema)};"
            for schema in sorted({catalog.schema, *catalog.required.values()})
        ),
        *(
            f"CREATE EXTENSION IF NOT EXISTS {quoted(name)} WITH SCHEMA {quoted(schema)};"
            for name, schema in catalog.required.items()
        ),
        f"SET LOCAL search_path = {quoted(catalog.schema)}, pg_temp;",
        "\\ir schema.sql",
        *(
            _copy(table, group, encoding)
            for table in catalog.tables
            for group in members.get(table.name, ())
        ),
        "\\o /dev/null",
        "\\ir constraints.sql",
        "\\o",
        "COMMIT;",
    ]
    return _RESTORE_HEAD + "\n".join(lines) + "\n"


def stored_columns(table: ServerTable) -> list[str]:
    """Return the columns that the rows of a table have, in their order."""
    return [column.name for column in table.columns if not column.is_computed]


def _create_table(table: ServerTable) -> str:
    unlogged = "UNLOGGED " if table.is_unlogged else ""
    columns = ",\n".join(f"  {quoted(column.name)} {column.definition}" for column in table.columns)
    return f"CREATE {unlogged}TABLE {quoted(table.name)} (\n{columns}\n);"


def _set_value(sequence: ServerSequence) -> str:
    name = quoted(sequence.name).replace("'", "''")
    called = str(sequence.is_called).lower()
    return f"SELECT pg_catalog.setval('{name}'::regclass, {sequence.last_value}, {called});"


def _copy(table: ServerTable, group: Sequence[str], encoding: str) -> str:
    """Return the line that loads members: of psql, because the files are the client's."""
    columns = ", ".join(map(quoted, stored_columns(table)))
    listed = f" ({columns})" if columns else ""
    source = f"'{group[0]}'" if len(group) == 1 else f"program '{' '.join(('cat', *group))}'"
    return (
        f"\\copy {quoted(table.name)}{listed} from {source}"
        f" with (format text, encoding '{encoding}')"
    )


def member_names(table: ServerTable) -> Iterator[str]:
    """Yield the names of a table's members, without end."""
    stem = f"{DIRECTORY}/{member_stem(table.schema, table.name)}.copy"
    number = 0
    while True:
        number += 1
        yield f"{stem}.{number:04}"


def member_stem(schema: str, table: str) -> str:
    """Return `<schema>.<table>` for file names, everything but ASCII letters, digits, _, - escaped.

    A name of more than 180 characters is cut, and ends with a hash of the whole.
    """
    import hashlib

    stem = ".".join(map(_escape, (schema, table)))
    if len(stem) <= _STEM_CHARACTERS:
        return stem
    digest = hashlib.sha256(stem.encode()).hexdigest()[:_HASH_DIGITS]
    return f"{stem[: _STEM_CHARACTERS - _HASH_DIGITS - 1]}~{digest}"


_STEM_CHARACTERS = 180  # a file name has at most 255 bytes
_HASH_DIGITS = 16
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


def _escape(name: str) -> str:
    return "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in name.encode("utf-8"))
