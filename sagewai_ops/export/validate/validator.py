"""Find everything that stops an export before anything is sent, and apply the policy to it.

`check_all` finds, `settle` finds and applies the policy: repairs are recorded in the overlay of the
frozen copy, and so are the rows that are quarantined. Neither writes to the target; the server
evaluates its CHECKs and its index limits for suspicious values, in a transaction that the caller
continues or rolls back.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from sagewai_ops.database.sqlite.read_transaction import quoted
from sagewai_ops.export.compare import audit_chain
from sagewai_ops.export.convert.batch import Refusal, encode_batch
from sagewai_ops.export.convert.repair import repair_value
from sagewai_ops.export.convert.value import RefusedError, Stored
from sagewai_ops.export.mapping.findings import Finding, Tally
from sagewai_ops.export.mapping.plan import Plan, PlannedTable
from sagewai_ops.export.mapping.source_rows import BatchSize, read_batches, read_key_text
from sagewai_ops.export.mapping.target_catalog import TargetTable
from sagewai_ops.export.validate import repair_overlay, server_probes
from sagewai_ops.export.validate.constraints import (
    Violation,
    find_check_violations,
    find_last_numbers,
    find_orphans,
)
from sagewai_ops.export.validate.duplicates import find_duplicates
from sagewai_ops.progress import Progress
from sagewai_ops.records import dataclass

if TYPE_CHECKING:
    import asyncpg

FAIL = "fail"
REPAIR = "repair"
QUARANTINE = "quarantine"
REPAIR_QUARANTINE = "repair,quarantine"
POLICIES = (FAIL, REPAIR, QUARANTINE, REPAIR_QUARANTINE)

ConstraintCheck: TypeAlias = Callable[[Plan, PlannedTable], Awaitable[list[Violation]]]


@dataclass(frozen=True, slots=True)
class Settlement:
    """The result of `settle`.

    Attributes:
        plan: Reads the rows to be exported: repaired, without those that are quarantined.
        findings: All that was found.
        open: Those that the policy does not resolve: with any, nothing is sent.
    """

    plan: Plan
    findings: tuple[Finding, ...]
    open: tuple[Finding, ...]


class Validator:
    """Validates a frozen copy for one target.

    Args:
        copy: From `open_copy`, writable for `settle`.
        plan: What is to be exported.
        targets: The target's catalog.
        server: Evaluates what only it can.
        progress: Called with `check <table>`, in rows.
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

    async def check_constraints(self) -> list[Finding]:
        """Find violated constraints and audit hashes, which is fast, and check no single value."""
        found = self._check_audit_events()
        for table in self._plan.tables:
            for check in self._constraint_checks():
                found += [violation.finding for violation in await check(self._plan, table)]
        return found

    async def check_all(self) -> list[Finding]:
        """Check every value and every row, and return all findings."""
        values = Tally()
        wide: dict[str, list[int]] = {}
        for table in self._plan.tables:
            for row, refusal in self._refusals(table, wide):
                repaired = self._repair(table, row, refusal)
                self._count(values, table, row, refusal, is_repairable=repaired is not None)
        found = [*self._plan.findings, *values.findings()]
        found += [violation.finding for _, violation in await self._check_wide_rows(wide)]
        return found + await self.check_constraints()

    async def settle(self, policy: str) -> Settlement:
        """Check everything, apply a policy, and return the plan for the remaining rows.

        Args:
            policy: `repair`, `quarantine`, or both: repair what has a repair, quarantine the rest.
        """
        repair_overlay.prepare(self._copy)
        run = _Run(repairs=REPAIR in policy, quarantines=QUARANTINE in policy)
        wide: dict[str, list[int]] = {}
        for finding in self._plan.findings:
            run.found.append(finding)
            # What the target does not know is written to the file of quarantined rows.
            if not run.quarantines or finding.kind not in ("unknown-table", "unknown-column"):
                run.open.append(finding)
        self._settle_values(run, wide)
        plan = repair_overlay.applied(self._copy, self._plan)
        for table, violation in await self._check_wide_rows(wide, plan):
            self._settle_violation(run, table, violation)
        await self._settle_constraints(run)
        repair_overlay.discard_repairs_of_refused_rows(self._copy)
        run.found += self._check_audit_events(repaired=True)  # copied, and reported
        plan = repair_overlay.applied(self._copy, self._plan)
        return Settlement(plan, tuple(run.found), tuple(run.open))

    def _settle_values(self, run: _Run, wide: dict[str, list[int]]) -> None:
        every, unresolved = Tally(), Tally()
        for table in self._plan.tables:
            for row, refusal in self._refusals(table, wide):
                column = table.columns[refusal.column]
                repaired = self._repair(table, row, refusal)
                is_repairable = repaired is not None
                self._count(every, table, row, refusal, is_repairable=is_repairable)
                if repaired is not None and run.repairs:
                    repair_overlay.record_repair(
                        self._copy, table.name, column.name, row, refusal.kind, repaired
                    )
                elif run.quarantines:
                    rows = f"SELECT {row} AS row"
                    repair_overlay.record_refusals(
                        self._copy, table.name, rows, refusal.kind, column.name, refusal.detail
                    )
                else:
                    self._count(unresolved, table, row, refusal, is_repairable=is_repairable)
        run.found += every.findings()
        run.open += unresolved.findings()

    def _repair(self, table: PlannedTable, row: int, refusal: Refusal) -> Stored | None:
        """Return the repaired value, None without a repair."""
        column = table.columns[refusal.column]
        read = f"SELECT {column.expression} FROM {quoted(table.name)} WHERE rowid = ?"
        (value,) = self._copy.execute(read, (row,)).fetchone()
        if value is None:
            return None
        target = self._targets[table.name]
        bound = {name for unique in target.uniques for name in unique.columns}
        bound |= {name for key in target.foreign_keys for name in key.columns}
        try:
            return repair_value(column.target, value, bound=column.name in bound)
        except RefusedError:
            return None

    def _settle_violation(
        self, run: _Run, table: PlannedTable, violation: Violation, *, is_tried: bool = False
    ) -> None:
        """Apply the policy to a violation.

        Args:
            is_tried: It was found before, and a repair did not resolve it.
        """
        finding = violation.finding
        if not is_tried:
            run.found.append(finding)
        if run.repairs and violation.repair and not is_tried:
            repair_overlay.record_repairs(
                self._copy, table.name, violation.column, finding.kind, violation.repair
            )
        elif run.quarantines:
            repair_overlay.record_refusals(
                self._copy,
                table.name,
                violation.rows,
                finding.kind,
                finding.column,
                finding.detail,
            )
            run.is_changed = True
        elif not any(_is_same(finding, each) for each in run.open):
            run.open.append(replace(finding, repairable=0) if is_tried else finding)

    async def _settle_constraints(self, run: _Run) -> None:
        """Settle violations until there are no others: a quarantined parent leaves orphans.

        A repair is tried once.
        """
        tried: set[tuple[str, str, str]] = set()
        while True:
            before = len(run.found)
            run.is_changed = False
            for name in [table.name for table in self._plan.tables]:
                for check in self._constraint_checks():
                    plan = repair_overlay.applied(self._copy, self._plan)
                    if not any(table.name == name for table in plan.tables):
                        continue
                    table = plan.table(name)
                    for violation in await check(plan, table):
                        finding = violation.finding
                        mark = (name, finding.column, finding.kind)
                        is_tried = run.repairs and mark in tried
                        # Without a repair, what is quarantined in each pass are other rows.
                        is_tried = is_tried and not (run.quarantines and not violation.repair)
                        # The repair of an orphan resolves it: these are others.
                        is_tried = is_tried and not (finding.kind == "orphan" and violation.repair)
                        tried.add(mark)
                        self._settle_violation(run, table, violation, is_tried=is_tried)
            if len(run.found) == before and not run.is_changed:
                return

    def _constraint_checks(self) -> tuple[ConstraintCheck, ...]:
        """Return the checks of a table's rows, in the order in which they are settled."""

        async def checks(_plan: Plan, table: PlannedTable) -> list[Violation]:
            target = self._targets[table.name]
            return await find_check_violations(self._copy, table, target, self._server)

        async def duplicates(_plan: Plan, table: PlannedTable) -> list[Violation]:
            return list(find_duplicates(self._copy, table, self._targets[table.name]))

        async def last_numbers(_plan: Plan, table: PlannedTable) -> list[Violation]:
            return list(find_last_numbers(self._copy, table, self._targets[table.name]))

        async def orphans(plan: Plan, table: PlannedTable) -> list[Violation]:
            return list(find_orphans(self._copy, plan, table, self._targets[table.name]))

        return checks, last_numbers, duplicates, orphans

    def _refusals(
        self, table: PlannedTable, wide: dict[str, list[int]]
    ) -> Iterator[tuple[int, Refusal]]:
        """Encode a table, yield the refusals, and collect the rows that an index may refuse."""
        targets = [column.target for column in table.columns]
        indexed = [
            number
            for number, column in enumerate(table.columns)
            if column.name in self._targets[table.name].searched
            and column.target.type.name in ("text", "text[]")
        ]
        size = BatchSize()
        done = 0
        for columns in read_batches(self._copy, table.select(), size):
            encoded, refusals = encode_batch(targets, columns[:-1])
            size.last = len(encoded)
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

    async def _check_wide_rows(
        self, wide: dict[str, list[int]], plan: Plan | None = None
    ) -> list[tuple[PlannedTable, Violation]]:
        found = []
        for table in (plan or self._plan).tables:
            if wide.get(table.name):
                rows = sorted(set(wide[table.name]))
                violations = await server_probes.find_large_index_rows(
                    self._copy, table, rows, self._server
                )
                found += [(table, violation) for violation in violations]
        return found

    def _check_audit_events(self, *, repaired: bool = False) -> list[Finding]:
        """Find the events that verify in the home and would not in the target.

        Args:
            repaired: Check also those that a repair changed.
        """
        try:
            table = self._plan.table(audit_chain.AUDIT_TABLE)
        except StopIteration:
            return []
        tally = Tally()

        def count_event(row: int, column: str, detail: str) -> None:
            tally.add(
                table.name, column, "audit-hash", detail, read_key_text(self._copy, table, row)
            )

        for row in audit_chain.changed_events(self._copy):
            count_event(row, "metadata", audit_chain.CHANGED)
        for row, column in (
            repair_overlay.repaired_values(self._copy, table.name) if repaired else ()
        ):
            if column in audit_chain.READ and audit_chain.verified_before(self._copy, "rowid", row):
                count_event(row, column, "a repair changes what its hash covers")
        return tally.findings()

    def _count(
        self, tally: Tally, table: PlannedTable, row: int, refusal: Refusal, *, is_repairable: bool
    ) -> None:
        tally.add(
            table.name,
            table.columns[refusal.column].name,
            refusal.kind,
            refusal.detail,
            read_key_text(self._copy, table, row),
            is_repairable=is_repairable,
        )


class _Run:
    """One run of `settle`.

    Attributes:
        is_changed: Rows were quarantined in this pass over the constraints.
    """

    def __init__(self, *, repairs: bool, quarantines: bool) -> None:
        self.repairs = repairs
        self.quarantines = quarantines
        self.found: list[Finding] = []
        self.open: list[Finding] = []
        self.is_changed = False


def _is_same(left: Finding, right: Finding) -> bool:
    return (left.table, left.column, left.kind) == (right.table, right.column, right.kind)
