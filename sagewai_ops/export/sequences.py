"""Sequences: set behind the highest number that came in, and proved by an insert.

`ALTER SEQUENCE ... RESTART` and not `setval`: the latter is not undone by a rollback, and a failed
export must leave the target as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sagewai_ops.database.sqlite.read_transaction import quoted
from sagewai_ops.errors import DifferenceError
from sagewai_ops.export.mapping.plan import Plan
from sagewai_ops.export.mapping.target_catalog import TargetColumn, TargetTable

if TYPE_CHECKING:
    import asyncpg


@dataclass(frozen=True, slots=True)
class SetSequence:
    """A sequence and the number that it gives next."""

    table: str
    column: str
    next: int


async def set_sequences(
    server: asyncpg.Connection[asyncpg.Record], plan: Plan, targets: Mapping[str, TargetTable]
) -> list[SetSequence]:
    """Set the sequences of the tables that got rows; those of empty tables stay as they are.

    Raises:
        DifferenceError: An insert after it would not get a number of its own.
    """
    done = []
    for planned in plan.tables:
        target = targets[planned.name]
        for column in target.columns.values():
            if column.sequence and planned.carries((column.name,)):
                following = await _set_one(server, target, column)
                if following:
                    done.append(SetSequence(target.name, column.name, following))
    return done


async def _set_one(
    server: asyncpg.Connection[asyncpg.Record], target: TargetTable, column: TargetColumn
) -> int:
    highest = await server.fetchval(f"SELECT max({quoted(column.name)}) FROM {quoted(target.name)}")
    if highest is None or highest < 1:
        return 0  # no sequence of Sagewai's begins before 1
    await _restart(server, target, column, highest + 1)
    trial = server.transaction()
    await trial.start()
    given = await _insert(server, target, column)
    await trial.rollback()
    if given <= highest:
        raise DifferenceError(
            f"table {target.name}: an insert would get {column.name} {given}, which is taken"
        )
    # The insert is undone, the number that it drew is not.
    await _restart(server, target, column, highest + 1)
    return int(highest) + 1


async def _restart(
    server: asyncpg.Connection[asyncpg.Record],
    target: TargetTable,
    column: TargetColumn,
    following: int,
) -> None:
    import asyncpg

    try:
        # Qualified and quoted by the server itself.
        await server.execute(f"ALTER SEQUENCE {column.sequence} RESTART WITH {following}")
    except asyncpg.PostgresError as error:
        raise DifferenceError(
            f"table {target.name}: its highest {column.name} is {following - 1},"
            " and its sequence ends there"
        ) from error


async def _insert(
    server: asyncpg.Connection[asyncpg.Record], target: TargetTable, column: TargetColumn
) -> int:
    """Insert a copy of the last row, its number left to the sequence; give that number.

    Where a unique index refuses the copy, the row is dropped after its number was drawn.
    """
    others = [
        quoted(other.name)
        for other in target.columns.values()
        if other.name != column.name and not other.computed
    ]
    listed = ", ".join(others)
    table = quoted(target.name)
    await server.execute(
        f"INSERT INTO {table} ({listed}) OVERRIDING SYSTEM VALUE SELECT {listed} FROM {table}"
        f" ORDER BY {quoted(column.name)} DESC LIMIT 1 ON CONFLICT DO NOTHING"
    )
    given = await server.fetchval("SELECT currval($1)", column.sequence)
    return int(given)
