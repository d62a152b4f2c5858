"""The preflight: everything that stands in the way, found before anything is sent, and dealt with.

`survey` looks, `settle` looks and acts by the policy: repairs go into the overlay of the frozen
copy, rows that cannot be carried are refused there. Neither writes to the target; the server is
asked what its CHECKs, its index limits and its jsonb make of suspicious values, in a transaction
that the caller rolls back or goes on with.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from sagewai_ops.database.sqlite.read_transaction import quoted
from sagewai_ops.export.compare import audit_chain
from sagewai_ops.export.convert.batch import Refusal, encode
from sagewai_ops.export.convert.repair import mend
from sagewai_ops.export.convert.value import RefusedError
from sagewai_ops.export.mapping.findings import Finding, Tally
from sagewai_ops.export.mapping.plan import Plan, PlannedTable
from sagewai_ops.export.mapping.source_rows import SizeOf, batches, key_text
from sagewai_ops.export.mapping.target_catalog import TargetTable
from sagewai_ops.export.validate import repair_overlay, server_probes
from sagewai_ops.export.validate.constraints import (
    Trouble,
    last_numbers,
    orphans,
    refused_by_checks,
)
from sagewai_ops.export.validate.duplicates import duplicates
from sagewai_ops.progress import Progress

if TYPE_CHECKING:
    import asyncpg

REPAIR = "repair"
QUARANTINE = "quarantine"
FAIL = "fail"
POLICIES = (FAIL, REPAIR, QUARANTINE)

Look: TypeAlias = Callable[[Plan, PlannedTable], Awaitable[list[Trouble]]]


@dataclass(frozen=True, slots=True)
class Settled:
    """What a preflight ends with.

    Attributes:
        plan: Reads what is carried: repaired, without the refused rows.
        findings: All that was found.
        open: Those that neither were repaired nor had their rows refused: with any, nothing is
            sent.
    """

    plan: Plan
    findings: tuple[Finding, ...]
    open: tuple[Finding, ...]


class Preflight:
    """One look through a frozen copy, for one target.

    Args:
        copy: From `opened_copy`, writable where the policy acts.
        plan: What is to be carried.
        targets: The target's catalog.
        server: To ask.
        progress: Told `check <table>`, in rows.
    """

    def __init__(
        self,
        copy: sqlite3.Connection,
        plan: Plan,
        targets: Mapping[str, TargetTable],
        server: asyncpg.Connection[asyncpg.Record],
        *,
        progress: Progress | None = None,
    ) -> None:
        self._copy = copy
        self._plan = plan
        self._targets = targets
        self._server = server
        self._progress = progress

    async def relations(self) -> list[Finding]:
        """Look at constraints and audit hashes, which takes little, and at no single value."""
        found = await self._audit_events()
        for table in self._plan.tables:
            for look in self._looks():
                found += [trouble.finding for trouble in await look(self._plan, table)]
        return found

    async def survey(self) -> list[Finding]:
        """Look at every value and every row, and give all that stands in the way."""
        values = Tally()
        wide: dict[str, list[int]] = {}
        for table in self._plan.tables:
            for row, refusal in self._refusals(table, wide):
                _count(values, self._copy, table, row, refusal)
        found = [*self._plan.findings, *values.findings()]
        found += [trouble.finding for _, trouble in await self._wide_rows(self._plan, wide)]
        return found + await self.relations()

    async def settle(self, policy: str) -> Settled:
        """Look at everything, repair or refuse as the policy says, and give the plan for the rest.

        Args:
            policy: `repair` or `quarantine`.
        """
        repair_overlay.prepare(self._copy)
        found: list[Finding] = []
        left: list[Finding] = []
        wide: dict[str, list[int]] = {}
        for finding in self._plan.findings:
            found.append(finding)
            # What the target does not know goes into the file of refused rows, whole.
            if policy != QUARANTINE or finding.kind not in ("unknown-table", "unknown-column"):
                left.append(finding)
        self._settle_values(policy, wide, found, left)
        plan = repair_overlay.applied(self._copy, self._plan)
        for table, trouble in await self._wide_rows(plan, wide):
            self._settle_trouble(policy, table, trouble, found, left)
        await self._settle_relations(policy, found, left)
        found += await self._audit_events(repaired=True)  # carried, and named
        return Settled(repair_overlay.applied(self._copy, self._plan), tuple(found), tuple(left))

    def _settle_values(
        self, policy: str, wide: dict[str, list[int]], found: list[Finding], left: list[Finding]
    ) -> None:
        all_of_them, unmended = Tally(), Tally()
        for table in self._plan.tables:
            target = self._targets[table.name]
            bound = {name for unique in target.uniques for name in unique.columns}
            bound |= {name for key in target.foreign_keys for name in key.columns}
            for row, refusal in self._refusals(table, wide):
                column = table.columns[refusal.column]
                _count(all_of_them, self._copy, table, row, refusal)
                if policy == QUARANTINE:
                    rows = f"SELECT {row} AS row"
                    repair_overlay.refuse_rows(
                        self._copy, table.name, rows, refusal.kind, column.name, refusal.detail
                    )
                    continue
                if not self._mend(table, row, refusal, bound):
                    _count(unmended, self._copy, table, row, refusal)
        found += all_of_them.findings()
        left += unmended.findings()

    def _mend(self, table: PlannedTable, row: int, refusal: Refusal, bound: set[str]) -> bool:
        """Repair a value, if there is a repair."""
        column = table.columns[refusal.column]
        read = f"SELECT {column.expression} FROM {quoted(table.name)} WHERE rowid = ?"
        (value,) = self._copy.execute(read, (row,)).fetchone()
        if value is None:
            return False
        try:
            mended = mend(column.target, value, bound=column.name in bound)
        except RefusedError:
            return False
        repair_overlay.mend_value(self._copy, table.name, column.name, row, refusal.kind, mended)
        return True

    def _settle_trouble(
        self,
        policy: str,
        table: PlannedTable,
        trouble: Trouble,
        found: list[Finding],
        left: list[Finding],
    ) -> None:
        finding = trouble.finding
        found.append(finding)
        if policy == QUARANTINE:
            repair_overlay.refuse_rows(
                self._copy,
                table.name,
                trouble.rows,
                finding.kind,
                finding.column,
                finding.detail,
            )
        elif trouble.repair:
            repair_overlay.mend_rows(
                self._copy, table.name, trouble.column, finding.kind, trouble.repair
            )
        else:
            left.append(finding)

    async def _settle_relations(
        self, policy: str, found: list[Finding], left: list[Finding]
    ) -> None:
        """Go on until nothing is found any more: a refused parent leaves its children alone.

        A repair is tried once; what comes back after it has none.
        """
        tried: set[tuple[str, str, str]] = set()
        while True:
            before = len(found)
            again: list[Finding] = []
            for name in [table.name for table in self._plan.tables]:
                for look in self._looks():
                    plan = repair_overlay.applied(self._copy, self._plan)
                    if not any(table.name == name for table in plan.tables):
                        continue
                    table = plan.table(name)
                    for trouble in await look(plan, table):
                        mark = (name, trouble.finding.column, trouble.finding.kind)
                        if policy == REPAIR and mark in tried:
                            again.append(trouble.finding)
                            continue
                        tried.add(mark)
                        self._settle_trouble(policy, table, trouble, found, left)
            if len(found) == before:
                known = {(each.table, each.column, each.kind) for each in left}
                left += [
                    each for each in again if (each.table, each.column, each.kind) not in known
                ]
                return

    def _looks(self) -> tuple[Look, ...]:
        """Give the ways to look at a table's rows, in the order in which they are settled."""

        async def checks(_plan: Plan, table: PlannedTable) -> list[Trouble]:
            target = self._targets[table.name]
            return await refused_by_checks(self._copy, table, target, self._server)

        async def doubles(_plan: Plan, table: PlannedTable) -> list[Trouble]:
            return list(duplicates(self._copy, table, self._targets[table.name]))

        async def last(_plan: Plan, table: PlannedTable) -> list[Trouble]:
            return list(last_numbers(self._copy, table, self._targets[table.name]))

        async def lost(plan: Plan, table: PlannedTable) -> list[Trouble]:
            return list(orphans(self._copy, plan, table, self._targets[table.name]))

        return checks, last, doubles, lost

    def _refusals(
        self, table: PlannedTable, wide: dict[str, list[int]]
    ) -> Iterator[tuple[int, Refusal]]:
        """Encode a table for nobody; note the rows that an index might not take."""
        targets = [column.target for column in table.columns]
        indexed = [
            number
            for number, column in enumerate(table.columns)
            if column.name in self._targets[table.name].searched
            and column.target.type.name in ("text", "text[]")
        ]
        sizes = SizeOf()
        done = 0
        for columns in batches(self._copy, table.select(), sizes):
            encoded, refusals = encode(targets, columns[:-1])
            sizes.last = len(encoded)
            rowids: list[int] = [int(row) for row in columns[-1]]  # type: ignore[arg-type]
            yield from ((rowids[refusal.row], refusal) for refusal in refusals)
            for number in indexed:
                wide.setdefault(table.name, []).extend(
                    row
                    for row, value in zip(rowids, columns[number], strict=True)
                    if isinstance(value, bytearray) and len(value) > server_probes.SUSPICIOUS_BYTES
                )
            done += len(rowids)
            if self._progress:
                self._progress(f"check {table.name}", done, table.rows)

    async def _wide_rows(
        self, plan: Plan, wide: dict[str, list[int]]
    ) -> list[tuple[PlannedTable, Trouble]]:
        found = []
        for table in plan.tables:
            if wide.get(table.name):
                rows = sorted(set(wide[table.name]))
                troubles = await server_probes.refused_by_indexes(
                    self._copy, table, rows, self._server
                )
                found += [(table, trouble) for trouble in troubles]
        return found

    async def _audit_events(self, *, repaired: bool = False) -> list[Finding]:
        """Name the events that verify in the home and will not in the target.

        Args:
            repaired: Look also at those that a repair changed.
        """
        try:
            table = self._plan.table(audit_chain.AUDIT_TABLE)
        except StopIteration:
            return []
        tally = Tally()
        for key, metadata, spelled in await server_probes.as_jsonb(
            self._server, audit_chain.suspicious_events(self._copy)
        ):
            if not audit_chain.reads_alike(metadata, spelled):
                detail = "jsonb spells a number of it in another way, and its hash covers it"
                tally.add(table.name, "metadata", "audit-hash", detail, key)
        for row, column in repair_overlay.mended_values(self._copy, table.name) if repaired else ():
            if column in audit_chain.READ and audit_chain.verified_before(self._copy, "rowid", row):
                detail = "its repair changes what its hash covers"
                key = key_text(self._copy, table, row)
                tally.add(table.name, column, "audit-hash", detail, key)
        return tally.findings()


def _count(
    tally: Tally, copy: sqlite3.Connection, table: PlannedTable, row: int, refusal: Refusal
) -> None:
    name = table.columns[refusal.column].name
    tally.add(table.name, name, refusal.kind, refusal.detail, key_text(copy, table, row))
