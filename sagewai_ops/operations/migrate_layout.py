"""Bring a home of the older, flat layout into that of today.

What a run that died left is finished or taken back first. Nothing is touched while a process has
the database open, or where something could not be written. Done twice, the second changes nothing.
"""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from sagewai_ops.database.sqlite.in_use import find_users, require_unused
from sagewai_ops.database.sqlite.read_transaction import open_read_transaction, quoted
from sagewai_ops.errors import OpsError
from sagewai_ops.fs import atomic, locks
from sagewai_ops.home.fleet import fleet_organisation
from sagewai_ops.home.paths import ADMIN_STATE, Home, require
from sagewai_ops.layout import journal
from sagewai_ops.layout.plan import Action, Plan, plan_layout
from sagewai_ops.layout.steps import StepKind
from sagewai_ops.process.procfs import describe
from sagewai_ops.swap.swap import require_settled

_STATE_NAME = "admin-state.json"
_FLEET_TABLES = ("workers", "enrollment_keys", "fleet_tasks")


@dataclass(frozen=True, slots=True)
class LayoutReport:
    """What was done, or would be.

    Attributes:
        recovered: What became of an interrupted run: `finished`, `rolled back`, `nothing to do`.
        fleet_rows: Table -> rows that Sagewai no longer finds once the state has its new path.
        warnings: One line each.
    """

    home: Path
    plan: Plan
    recovered: str
    fleet_rows: Mapping[str, int]
    warnings: tuple[str, ...]

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left at the root that should not be there."""
        return not self.plan.left


def migrate_layout(
    home: Home,
    environment: Mapping[str, str],
    *,
    dry_run: bool = False,
    wait_seconds: float = 0.0,
) -> LayoutReport:
    """Move the legacy files of a home to their places.

    Args:
        environment: Where variables say that a document is elsewhere.
        dry_run: Say what would be done, and change nothing.

    Raises:
        NotFoundError: There is no such home.
        LockedError: Another run holds it, or a restore of it was interrupted.
        TargetBusyError: A process has its database open.
        PermissionDeniedError: A directory that has to be changed may not be written.
        UsageError: `config` or `secrets` is no directory.
        OpsError: The system refused; the home is as it was.
    """
    require(home)
    require_settled(home.root)
    moment = datetime.now(timezone.utc)
    if dry_run:
        plan = plan_layout(home, environment, moment)
        users = find_users(*home.databases) if plan.steps else ()
        warnings = [f"in use by {describe(user)}: stop it first" for user in users]
        if journal.is_pending(home.root):
            warnings.append("an interrupted run would be finished or taken back first")
        return _report(home, plan, "nothing to do", warnings)
    with locks.exclusive(home.root, wait_seconds=wait_seconds):
        if journal.is_pending(home.root):
            require_unused(home.root, *home.databases)
            atomic.require_writable([home.root])
        recovered = journal.recover(home.root)
        plan = plan_layout(home, environment, moment)
        report = _report(home, plan, recovered, [])
        if plan.steps:
            require_unused(home.root, *home.databases)
            atomic.require_writable(_directories(home.root, plan))
            try:
                journal.carry_out(home.root, plan.steps)
            except journal.OtherFileSystemError:
                plan = plan_layout(home, environment, moment, is_split=True)
                report = replace(report, plan=plan)
                journal.carry_out(home.root, plan.steps)
    return report


def _report(home: Home, plan: Plan, recovered: str, warnings: list[str]) -> LayoutReport:
    warnings += plan.notes
    warnings += [f"{home.root / path}: {reason}" for path, reason in plan.left.items()]
    warnings += [
        f"{home.root / item.kept}: kept, {item.name} and {item.place} were different"
        for item in plan.items
        if item.kept
    ]
    rows: Mapping[str, int] = {}
    if any(
        item.name == _STATE_NAME and item.action in (Action.MOVE, Action.REPLACE)
        for item in plan.items
    ):
        try:
            rows = _fleet_rows(home)
        except OpsError as error:
            warnings.append(f"fleet rows are not counted, {error.message}")
    if rows:
        counts = ", ".join(f"{count} in {table}" for table, count in rows.items())
        warnings.append(
            f"fleet rows bound to {home.root / _STATE_NAME} become invisible: {counts}; "
            "workers must enrol again, or take them along: sagewai-ops backup, then "
            "sagewai-ops restore latest --replace --rebind-fleet"
        )
    return LayoutReport(home.root, plan, recovered, rows, tuple(warnings))


def _fleet_rows(home: Home) -> dict[str, int]:
    """Count the rows that belong to the legacy path of the state."""
    administrator = ""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        state = json.loads((home.root / _STATE_NAME).read_bytes())
        administrator = str((state.get("admin") or {}).get("id") or "")
    organisations = {
        fleet_organisation(home.root / _STATE_NAME, one) for one in (administrator, "")
    } - {fleet_organisation(home.root / ADMIN_STATE, administrator)}
    if home.server_url_variable or not home.database.exists():
        return {}
    counts = {}
    with open_read_transaction(home.database) as source:
        tables = {
            str(name)
            for (name,) in source.connection.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table'"
            )
        }
        for table in tables.intersection(_FLEET_TABLES):
            total = sum(
                int(
                    source.connection.execute(
                        f"SELECT count(*) FROM {quoted(table)} WHERE org_id = ?",  # noqa: S608
                        (organisation,),
                    ).fetchone()[0]
                )
                for organisation in organisations
            )
            if total:
                counts[table] = total
    return dict(sorted(counts.items()))


def _directories(root: Path, plan: Plan) -> list[Path]:
    """List the directories that exist and that the steps change."""
    names = {""}
    for step in plan.steps:
        for path in (step.source if step.kind is StepKind.MOVE else "", step.target):
            names.add(path.rpartition("/")[0])
    return [root / name for name in sorted(names) if (root / name).is_dir()]
