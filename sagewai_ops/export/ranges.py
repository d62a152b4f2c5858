"""Send rows to `sagewai_incoming` in ranges, each with its record in the same transaction.

A range has rows of one or several tables. After a cut the rows that the server recorded are there,
and the next run sends the others: the position is the number of rows in the order of the rowids.
"""

from __future__ import annotations

import dataclasses
import sqlite3
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import field
from typing import TYPE_CHECKING

from sagewai_ops.database.sqlite.read_transaction import quoted
from sagewai_ops.database.url import PostgresUrl
from sagewai_ops.errors import DamagedError, DifferenceError, OpsError
from sagewai_ops.export import incoming
from sagewai_ops.export.convert.batch import SIGNATURE
from sagewai_ops.export.load import truncate
from sagewai_ops.export.mapping.findings import Finding
from sagewai_ops.export.mapping.plan import Plan, PlannedTable
from sagewai_ops.export.pipeline import worker
from sagewai_ops.export.pipeline.deferred_indexes import DEFERRED_ROWS
from sagewai_ops.export.pipeline.sender import Worker, wait_for_copy
from sagewai_ops.export.report import TableReport
from sagewai_ops.progress import Progress
from sagewai_ops.records import dataclass

if TYPE_CHECKING:
    import asyncpg

# A transaction ends when it has both, so a cut costs at most the larger. Long ones are cheaper: the
# rows of a table's first range are frozen, and those of a table with one range come back in order.
RANGE_BYTES = 16 * 1024 * 1024  # encoded
RANGE_SECONDS = 30.0
# The last commit of the move waits for the disk, and with it for all commits before it.
_SETTINGS = "SET LOCAL synchronous_commit = off"


@dataclass(slots=True)
class SentRanges:
    """What a run sent; with findings, rows are missing."""

    ranges: int = 0
    findings: list[Finding] = field(default_factory=list)


def rest_of(source: sqlite3.Connection, plan: Plan, there: Mapping[str, int]) -> Plan:
    """Return the plan for the rows that the server does not have.

    Args:
        source: The frozen copy.
        there: By table, the rows that it has.

    Raises:
        DamagedError: It has more than the source, or of tables that the source has not.
    """
    strange = there.keys() - {table.name for table in plan.tables}
    if strange:
        raise DamagedError(f"schema {incoming.SCHEMA}: rows of {min(strange)}, not of the plan")
    tables = []
    for table in plan.tables:
        done = there.get(table.name, 0)
        if not 0 <= done <= table.rows:
            raise DamagedError(
                f"schema {incoming.SCHEMA}: {done} of {table.rows} rows of {table.name}"
            )
        if done < table.rows:
            tables.append(_after(source, table, done) if done else table)
    return dataclasses.replace(plan, tables=tuple(tables))


def _after(source: sqlite3.Connection, table: PlannedTable, done: int) -> PlannedTable:
    (last,) = source.execute(
        f"SELECT rowid FROM {table.source()} ORDER BY rowid LIMIT 1 OFFSET ?", (done - 1,)
    ).fetchone()
    where = f"({table.where}) AND " if table.where else ""
    return dataclasses.replace(
        table,
        rows=table.rows - done,
        where=f"{where}{quoted(table.name)}.rowid > {int(last)}",
    )


class RangeSender:
    """Sends tables in ranges; use `send`.

    Args:
        connection: Without a transaction.
        reader: Encodes the tables of the plan.
        plan: The rows that are missing.
        there: By table, the rows that the server has.
        reports: Of all tables.
        progress: Called with `copy <table>`, in rows.
    """

    def __init__(
        self,
        url: PostgresUrl,
        connection: asyncpg.Connection[asyncpg.Record],
        reader: Worker,
        plan: Plan,
        there: Mapping[str, int],
        reports: Iterable[TableReport],
        progress: Progress | None,
    ) -> None:
        self._url = url
        self._connection = connection
        self._reader = reader
        self._plan = plan
        self._there = dict(there)
        self._reports = {report.name: report for report in reports}
        self._progress = progress
        self._table: PlannedTable | None = None  # whose rows the reader is sending
        self._is_refused = False
        self._is_read = False
        self._range_bytes = 0
        self._range_end = 0.0  # not before this time

    async def send(self) -> SentRanges:
        """Send all rows; after a value that cannot be sent, only look for others.

        Raises:
            DifferenceError: The server stored another number of rows than were read.
            OpsError: The connection was lost, or the server refused.
        """
        sent = SentRanges()
        while not self._is_read:
            async with incoming.transaction(self._url, self._connection, inside=True):
                await self._connection.execute(_SETTINGS)
                self._range_bytes = 0
                self._range_end = time.monotonic() + RANGE_SECONDS
                while not self._is_full() and not self._is_read:
                    if self._table is None:
                        await self._next_table(sent)
                    else:
                        await self._send_range(self._table)
                        sent.ranges += 1
        return sent

    def _is_full(self) -> bool:
        return self._range_bytes >= RANGE_BYTES and time.monotonic() >= self._range_end

    async def _next_table(self, sent: SentRanges) -> None:
        """Receive frames until a table begins or all are read."""
        while True:
            kind, content, _ = await self._reader.receive()
            if kind == worker.FINDINGS:
                sent.findings = worker.read_findings(content)
                self._is_read = True
                return
            if kind == worker.TABLE and not self._is_refused:
                self._table = self._plan.table(content.decode())
                return

    async def _send_range(self, table: PlannedTable) -> None:
        """Send rows of a table until the transaction has enough, or the reader has no more."""
        before = self._there.get(table.name, 0)
        # Frozen rows are stored in order and need no later vacuum; only the first can be frozen.
        is_large = table.rows >= DEFERRED_ROWS
        freeze = is_large and not before and await truncate(self._connection, [table.name])
        rows = await self._send_rows(table, freeze=freeze)
        await incoming.record_rows(self._connection, table.name, before, rows)
        self._there[table.name] = before + rows
        wanted = self._reports[table.name].rows
        if self._table is None and not self._is_refused and before + rows != wanted:
            raise DifferenceError(
                f"table {table.name}: {wanted} rows to copy, {before + rows} stored"
            )

    async def _send_rows(self, table: PlannedTable, *, freeze: bool) -> int:
        """Send rows of the current table; it is None afterwards if it is complete."""
        report = self._reports[table.name]
        started = time.monotonic()
        sent_rows = sent_bytes = 0
        failures: list[Exception] = []
        is_first = report.size_bytes == 0

        async def rows() -> AsyncIterator[bytes]:
            # Returns instead of raising: see `pipeline.sender`. Only the first range of a table
            # begins with the reader's signature; a range needs no trailer.
            nonlocal sent_rows, sent_bytes
            has_signature = is_first
            try:
                while not self._is_full():
                    kind, content, count = await self._reader.receive()
                    if kind == worker.END:
                        self._table = None
                        break
                    if not content:
                        self._is_refused, self._table = True, None
                        break
                    if not has_signature:
                        has_signature = True
                        yield SIGNATURE
                    sent_rows += count
                    sent_bytes += len(content)
                    self._range_bytes += len(content)
                    yield content
                    if self._progress:
                        done = self._there.get(table.name, 0) + sent_rows
                        self._progress(f"copy {table.name}", done, report.rows)
            except OpsError as error:
                failures.append(error)
            if not sent_bytes:
                yield SIGNATURE  # without it the server reports an error of its own

        status = await wait_for_copy(
            self._connection,
            self._connection.copy_to_table(
                table.name,
                source=rows(),
                columns=[column.name for column in table.columns],
                format="binary",
                freeze=freeze,
            ),
        )
        if failures:
            raise failures[0]
        report.seconds += time.monotonic() - started
        report.size_bytes += sent_bytes
        stored = int(status.rpartition(" ")[2])
        if stored != sent_rows:
            raise DifferenceError(f"table {table.name}: {sent_rows} rows sent, {stored} stored")
        return sent_rows
