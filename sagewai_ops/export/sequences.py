"""Set the sequences after the highest number that was copied, and test each with an insert.

With `ALTER SEQUENCE ... RESTART` and not `setval`, which a rollback does not undo: a failed export
must leave the target unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sagewai_ops.database.postgres.connection import open_savepoint
from sagewai_ops.database.sqlite.read_transaction import quoted
from sagewai_ops.errors import DifferenceError
from sagewai_ops.export.mapping.plan import Plan
from sagewai_ops.export.mapping.target_catalog import TargetColumn, TargetTable
from sagewai_ops.records import dataclass

if TYPE_CHECKING:
    import asyncpg


@dataclass(frozen=True, slots=True)
class SetSequence:
    """A sequence and its next number."""

    table: str
    column: str
    next: int


async def set_sequences(
    server: asyncpg.Connection[asyncpg.Record], plan: Plan, targets: Mapping[str, TargetTable]
) -> list[SetSequence]:
    """Set the sequences of the tables that have rows.

    Raises:
        DifferenceError: An insert would still get a number that exists.
    """
    done = []
    for planned in plan.tables:
        target = targets[planned.name]
        for column in target.columns.values():
            if column.sequence and planned.has_columns((column.name,)):
                following = await _set_sequence(server, target, column)
                if following:
                    done.append(SetSequence(target.name, column.name, following))
    return done


async def _set_sequence(
    server: asyncpg.Connection[asyncpg.Record], target: TargetTable, column: TargetColumn
) -> int:
    highest = await server.fetchval(
        f"SELECT pg_catalog.max({quoted(column.name)}) FROM {quoted(target.name)}"
    )
    if highest is None or highest < 1:
        return 0  # no sequence of Sagewai's begins before 1
    await _restart(server, target, column, highest + 1)
    async with open_savepoint(server, is_trial=True):
        number = await _insert(server, target, column)
    if number <= highest:
        raise DifferenceError(
            f"table {target.name}: an insert would get {column.name} {number}, which exists"
        )
    # The insert is rolled back, the sequence is not.
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
        # The catalog's name is qualified and quoted.
        await server.execute(f"ALTER SEQUENCE {column.sequence} RESTART WITH {following}")
    except asyncpg.PostgresError as error:
        raise DifferenceError(
            f"table {target.name}: no number left in its sequence after {column.name}"
            f" {following - 1}"
        ) from error


async def _insert(
    server: asyncpg.Connection[asyncpg.Record], target: TargetTable, column: TargetColumn
) -> int:
    """Insert a copy of the last row and return the number that it got from the sequence.

    If a unique index refuses the copy, the number is drawn anyway.
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
    number = await server.fetchval("SELECT pg_catalog.currval($1)", column.sequence)
    return int(number)
