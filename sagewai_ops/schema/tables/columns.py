"""The words in which the tables are written: one metadata, the column types, four kinds of column.

A type here says both sides: what SQLite's DDL reads and what the same column is on PostgreSQL. A
column that is NOT NULL in a home but not on PostgreSQL is `lax`; the reverse does not exist.
"""

from __future__ import annotations

from typing import TypeVar

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, UUID
from sqlalchemy.types import TypeEngine

Value = TypeVar("Value")
Limit = TypeVar("Limit", CheckConstraint, UniqueConstraint)

LAX = "lax_on_postgres"  # key of `Column.info`

metadata = MetaData()

TEXT = Text()
INTEGER = Integer()
BIGINT = BigInteger()
LONG = BigInteger().with_variant(Integer(), "sqlite")  # INTEGER in a home, bigint on PostgreSQL
FLOAT: Float[float] = Float()
DOUBLE: Double[float] = Double()
BOOLEAN = Boolean()
INSTANT = DateTime(timezone=True)  # text without offset in a home, meaning UTC
JSON_TEXT = JSON()  # `json`: PostgreSQL keeps the text as written
JSON_BINARY = JSON().with_variant(JSONB(), "postgresql")
JSON_AS_TEXT = JSON().with_variant(Text(), "postgresql")
TEXT_AS_JSON = Text().with_variant(JSONB(), "postgresql")
STRINGS = JSON().with_variant(ARRAY(Text()), "postgresql")  # a JSON list of strings in a home
TEXT_AS_UUID = Text().with_variant(UUID(as_uuid=False), "postgresql")


def varchar(length: int) -> String:
    """Name a text type whose length, in characters, only PostgreSQL enforces."""
    return String(length)


def key(name: str, kind: TypeEngine[Value]) -> Column[Value]:
    """Name a column of the primary key."""
    return Column(name, kind, primary_key=True, nullable=False)


def required(
    name: str, kind: TypeEngine[Value], default: str | None = None, *, lax: bool = False
) -> Column[Value]:
    """Name a column that is NOT NULL in a home.

    Args:
        name: The column.
        kind: One of the types above.
        default: The default's value, quoted in the DDL whatever its type, as Sagewai's is.
        lax: PostgreSQL allows NULL in it.
    """
    info = {LAX: True} if lax else {}
    return Column(name, kind, nullable=False, server_default=default, info=info)


def optional(name: str, kind: TypeEngine[Value], default: str | None = None) -> Column[Value]:
    """Name a column that may hold NULL on both engines."""
    return Column(name, kind, nullable=True, server_default=default)


def stamp(name: str, *, lax: bool = False) -> Column[object]:
    """Name a moment that is NOT NULL in a home and defaults to the time of the insert."""
    info = {LAX: True} if lax else {}
    return Column(name, INSTANT, nullable=False, server_default=func.now(), info=info)


def one_of(column: str, *words: str) -> str:
    """Spell the condition that a column holds one of these words, as a home's DDL spells it."""
    return f"{column} IN ({','.join(repr(word) for word in words)})"


def postgres_only(constraint: Limit) -> Limit:
    """Mark a constraint that PostgreSQL has and a home lacks: good rows may break it."""
    return constraint.ddl_if(dialect="postgresql")


def partial(name: str, *columns: str, where: str, unique: bool = False) -> Index:
    """Name an index over the rows for which `where`, an SQL condition, holds."""
    condition = text(where)
    return Index(name, *columns, unique=unique, sqlite_where=condition, postgresql_where=condition)
