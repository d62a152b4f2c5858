"""Nearest neighbours: asked of both sides for a sample, before the target has an index.

An HNSW index answers approximately, so the comparison is made with the exact search that the
server does without one. The source is asked through sqlite-vec where it loads, else the distances
are computed here, for as many of the sample as that takes a few seconds for.
"""

from __future__ import annotations

import heapq
import math
import sqlite3
from array import array
from collections.abc import Callable, Iterator
from operator import mul, sub
from typing import TYPE_CHECKING

from sagewai_ops.database.sqlite.read_transaction import quoted
from sagewai_ops.database.sqlite.vectors import VectorRow, VectorTable
from sagewai_ops.errors import DifferenceError

if TYPE_CHECKING:
    import asyncpg

SAMPLE = 20  # searches
NEAREST = 10  # neighbours of each
TOLERANCE = 1e-4  # relative: both sides sum 32-bit floats, in different orders
COMPUTED = 200_000_000  # multiplications where they are done in Python, some 5 seconds

_DISTANCES = {"l2": "<->", "cosine": "<=>", "l1": "<+>"}

Answer = list[tuple[str, float]]  # keys and distances, nearest first


async def compare(
    server: asyncpg.Connection[asyncpg.Record],
    source: sqlite3.Connection,
    table: VectorTable,
    rows: Callable[[], Iterator[VectorRow]],
    *,
    has_extension: bool,
) -> int:
    """Compare the neighbours of some stored vectors.

    Args:
        rows: Yields the rows that were carried.
        has_extension: sqlite-vec is loaded into the source's connection.

    Returns:
        How many searches were compared; 0 for a table without rows or of another metric.

    Raises:
        DifferenceError: The two sides do not agree.
    """
    operator = _DISTANCES.get(table.metric)
    queries = _sample(rows, table, has_extension=has_extension)
    if operator is None or not queries:
        return 0
    if has_extension:
        answers = [_ask(source, table, query) for query in queries]
    else:
        answers = _compute(rows, table, queries)
    key, vector = quoted(table.key), quoted(table.vector)
    for query, expected in zip(queries, answers, strict=True):
        spelled = "[" + ",".join(map(repr, array("f", query))) + "]"
        records = await server.fetch(
            f"SELECT {key}::text AS key, {vector} {operator} $1::text::vector AS distance"
            f" FROM {quoted(table.name)} ORDER BY distance LIMIT {len(expected)}",
            spelled,
        )
        met = [(record["key"], record["distance"]) for record in records]
        if not agree(expected, met):
            raise DifferenceError(
                f"learnings {table.name}: the nearest neighbours of {expected[0][0]} differ"
            )
    return len(queries)


def agree(expected: Answer, met: Answer) -> bool:
    """Tell whether two answers name the same neighbours, where distances tell them apart."""
    if len(expected) != len(met):
        return False
    if not all(
        math.isclose(left, right, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
        for (_, left), (_, right) in zip(expected, met, strict=True)
    ):
        return False
    farthest = expected[-1][1] if expected else 0.0
    there, here = dict(expected), dict(met)
    # At the edge of the answer equally distant ones may stand for each other.
    return all(
        math.isclose({**here, **there}[key], farthest, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
        for key in there.keys() ^ here.keys()
    )


def _sample(
    rows: Callable[[], Iterator[VectorRow]], table: VectorTable, *, has_extension: bool
) -> list[bytes]:
    """Choose vectors spread over the table."""
    count = sum(1 for _ in rows())
    wanted = min(SAMPLE, count)
    if not has_extension and count:
        wanted = max(1, min(wanted, COMPUTED // (count * table.dimensions)))
    step = max(1, count // wanted) if wanted else 1
    chosen = [row.vector for number, row in enumerate(rows()) if number % step == 0]
    return chosen[:wanted]


def _ask(source: sqlite3.Connection, table: VectorTable, query: bytes) -> Answer:
    # "k = ?" and not LIMIT: SQLite before 3.41 does not tell a module of a LIMIT.
    found = source.execute(
        f"SELECT {table.key}, distance FROM {quoted(table.name)}"
        f" WHERE {table.vector} MATCH ? AND k = ? ORDER BY distance",
        (query, NEAREST),
    )
    return [
        (key.decode() if isinstance(key, (bytes, bytearray)) else str(key), distance)
        for key, distance in found
    ]


def _compute(
    rows: Callable[[], Iterator[VectorRow]], table: VectorTable, queries: list[bytes]
) -> list[Answer]:
    floats = [array("f", query) for query in queries]
    nearest: list[list[tuple[float, str]]] = [[] for _ in queries]
    for row in rows():
        vector = array("f", row.vector)
        for query, best in zip(floats, nearest, strict=True):
            item = (-_distance(table.metric, query, vector), str(row.key))
            if len(best) < NEAREST:
                heapq.heappush(best, item)
            else:
                heapq.heappushpop(best, item)
    return [
        sorted(((key, -far) for far, key in best), key=lambda pair: pair[1]) for best in nearest
    ]


def _distance(metric: str, left: array[float], right: array[float]) -> float:
    if metric == "l1":
        return float(sum(map(abs, map(sub, left, right))))
    if metric == "cosine":
        norms = math.sqrt(sum(map(mul, left, left)) * sum(map(mul, right, right)))
        return float(1 - sum(map(mul, left, right)) / norms) if norms else math.nan
    return float(math.dist(left, right))
