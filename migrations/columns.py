"""Column types and helpers of the revisions after the first.

Frozen with the revisions: a change here would change revisions that databases have applied. A
default is the text of a literal, which PostgreSQL converts to the column's type.
"""

from __future__ import annotations

from typing import TypeVar

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeEngine

Value = TypeVar("Value")

TEXT = sa.Text()
INTEGER = sa.Integer()
BIGINT = sa.BigInteger()
DOUBLE: sa.Double[float] = sa.Double()
BOOLEAN = sa.Boolean()
INSTANT = sa.DateTime(timezone=True)
JSON = postgresql.JSON()
JSONB = postgresql.JSONB()
STRINGS = postgresql.ARRAY(sa.Text())


def required(name: str, kind: TypeEngine[Value], default: str | None = None) -> sa.Column[Value]:
    """Return a NOT NULL column."""
    return sa.Column(name, kind, nullable=False, server_default=default)


def optional(name: str, kind: TypeEngine[Value], default: str | None = None) -> sa.Column[Value]:
    """Return a column that allows NULL."""
    return sa.Column(name, kind, nullable=True, server_default=default)


def stamp(name: str, *, null: bool = False, sql: bool = False) -> sa.Column[object]:
    """Return a timestamp that defaults to the start of the inserting transaction.

    Args:
        name: The column.
        null: Allow NULL.
        sql: The default is CURRENT_TIMESTAMP, as in some of Sagewai's revisions, not now().
    """
    default = sa.func.current_timestamp() if sql else sa.func.now()
    return sa.Column(name, INSTANT, nullable=null, server_default=default)


def serial(name: str, kind: TypeEngine[Value]) -> sa.Column[Value]:
    """Return an integer primary key with its own sequence."""
    return sa.Column(name, kind, primary_key=True, autoincrement=True)


def key(*columns: str) -> sa.PrimaryKeyConstraint:
    """Return a primary key."""
    return sa.PrimaryKeyConstraint(*columns)


def unique(*columns: str, name: str | None = None) -> sa.UniqueConstraint:
    """Return a unique constraint; PostgreSQL derives a missing name from the columns."""
    return sa.UniqueConstraint(*columns, name=name)


def reference(
    columns: list[str], table: str, targets: list[str], *, on_delete: str | None = None
) -> sa.ForeignKeyConstraint:
    """Return a foreign key; PostgreSQL derives its name from the columns."""
    return sa.ForeignKeyConstraint(
        columns, [f"{table}.{target}" for target in targets], ondelete=on_delete
    )


def in_list(column: str, *values: str) -> str:
    """Return the condition that a column has one of these values."""
    return f"{column} IN ({', '.join(repr(value) for value in values)})"


def index(
    name: str,
    table: str,
    *columns: str,
    unique: bool = False,
    where: str = "",
) -> None:
    """Create an index.

    Args:
        name: The index.
        table: Its table.
        columns: Names, each with an optional ` DESC`.
        unique: A unique index.
        where: The condition of a partial index.
    """
    op.create_index(
        name,
        table,
        [
            sa.desc(sa.column(column[: -len(" DESC")])) if column.endswith(" DESC") else column
            for column in columns
        ],
        unique=unique,
        postgresql_where=sa.text(where) if where else None,
    )
