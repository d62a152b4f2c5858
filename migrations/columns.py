"""The words in which the migrations are written: column types and four kinds of column.

Part of the migrations, so frozen with them: a change here would change revisions that are applied
already. A default is given as its text; PostgreSQL reads it as the column's type.
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
UUID = postgresql.UUID(as_uuid=False)
STRINGS = postgresql.ARRAY(sa.Text())


def varchar(length: int) -> sa.String:
    """Name a text type with a limit in characters."""
    return sa.String(length)


def required(name: str, kind: TypeEngine[Value], default: str | None = None) -> sa.Column[Value]:
    """Name a NOT NULL column."""
    return sa.Column(name, kind, nullable=False, server_default=default)


def optional(name: str, kind: TypeEngine[Value], default: str | None = None) -> sa.Column[Value]:
    """Name a column that may hold NULL."""
    return sa.Column(name, kind, nullable=True, server_default=default)


def stamp(name: str, *, null: bool = False, sql: bool = False) -> sa.Column[object]:
    """Name a moment that defaults to the start of the inserting transaction.

    Args:
        name: The column.
        null: It may hold NULL.
        sql: The default is spelled CURRENT_TIMESTAMP, as in some of Sagewai's revisions, not now().
    """
    default = sa.func.current_timestamp() if sql else sa.func.now()
    return sa.Column(name, INSTANT, nullable=null, server_default=default)


def serial(name: str, kind: TypeEngine[Value]) -> sa.Column[Value]:
    """Name an integer key that a sequence of its own counts up."""
    return sa.Column(name, kind, primary_key=True, autoincrement=True)


def key(*columns: str) -> sa.PrimaryKeyConstraint:
    """Name the primary key."""
    return sa.PrimaryKeyConstraint(*columns)


def unique(*columns: str, name: str | None = None) -> sa.UniqueConstraint:
    """Name a unique constraint; without a name, PostgreSQL gives it one from the columns."""
    return sa.UniqueConstraint(*columns, name=name)


def reference(
    columns: list[str], table: str, targets: list[str], *, on_delete: str | None = None
) -> sa.ForeignKeyConstraint:
    """Name a foreign key; PostgreSQL gives it its name from the columns."""
    return sa.ForeignKeyConstraint(
        columns, [f"{table}.{target}" for target in targets], ondelete=on_delete
    )


def one_of(column: str, *words: str) -> str:
    """Spell the condition that a column holds one of these words."""
    return f"{column} IN ({', '.join(repr(word) for word in words)})"


def index(
    name: str,
    table: str,
    *columns: str,
    unique: bool = False,
    where: str = "",
    using: str = "btree",
) -> None:
    """Create an index.

    Args:
        name: The index.
        table: Its table.
        columns: Names; ` DESC` may follow one.
        unique: No two rows may agree in the columns.
        where: The rows that it covers; all without it.
        using: PostgreSQL's access method.
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
        postgresql_using=using,
    )
