"""Bring a home of the older, flat layout into the present one.

A pending migration is completed or rolled back first. Nothing is changed while a process has the
database open, or if a directory is not writable. A second run changes nothing.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from sagewai_ops.database.postgres.sessions import (
    describe_sessions,
    home_sessions,
    require_home_unused,
)
from sagewai_ops.database.sqlite.in_use import find_users
from sagewai_ops.database.sqlite.moment import open_moment
from sagewai_ops.database.sqlite.read_transaction import quoted
from sagewai_ops.errors import OpsError
from sagewai_ops.fs import atomic, beneath, locks
from sagewai_ops.home.fleet import fleet_organisation
from sagewai_ops.home.paths import ADMIN_STATE, Home, require
from sagewai_ops.layout import journal
from sagewai_ops.layout.plan import Action, Item, Plan, plan_layout
from sagewai_ops.layout.steps import Step, StepKind
from sagewai_ops.process.procfs import describe
from sagewai_ops.records import dataclass
from sagewai_ops.swap import pending

_STATE_NAME = "admin-state.json"
Recovered = Literal["finished", "rolled back", "nothing to do"]
_RECOVERED: Mapping[str, Recovered] = {
    "completed": "finished",
    "rolled back": "rolled back",
    "nothing to do": "nothing to do",
}
_FLEET_TABLES = ("workers", "enrollment_keys", "fleet_tasks")


@dataclass(frozen=True, slots=True)
class StepResult:
    """A step of the plan; paths are relative to the home, except those of files outside.

    Attributes:
        mode: The new mode, in octal digits.
    """

    step: StepKind
    source: str | None
    target: str | None
    mode: str | None


@dataclass(frozen=True, slots=True)
class LayoutReport:
    """The result of a migration, or the plan of a dry run.

    Attributes:
        recovered: The outcome for a pending migration.
        left: Path -> reason, for files that stay at the root and should not.
        fleet_rows: Table -> rows that Sagewai no longer finds once the state has its new path.
        complete: Whether no file of the older layout remains at the root.
        notes: Peculiarities of the plan, one line each; `warnings` contains them.
    """

    home: Path
    recovered: Recovered
    items: tuple[Item, ...]
    steps: tuple[StepResult, ...]
    left: Mapping[str, str]
    fleet_rows: Mapping[str, int]
    complete: bool
    dry_run: bool
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def migrate_layout(
    home: Home, environment: Mapping[str, str], *, dry_run: bool = False, wait_seconds: float = 0.0
) -> LayoutReport:
    """Move the legacy files of a home to their directories.

    Args:
        environment: Variables can name another path for a document.
        dry_run: Return the plan and change nothing.

    Raises:
        NotFoundError: There is no such home.
        LockedError: Another run has locked it, or another operation is pending.
        TargetBusyError: A process has it open, or a session is connected to its server.
        PermissionDeniedError: A directory that has to be changed is not writable.
        UsageError: `config` or `secrets` is not a directory.
        OpsError: The system refused; the home is unchanged.
    """
    require(home)
    pending.require_settled(home.root, but=pending.LAYOUT_MIGRATION)
    moment = datetime.now(timezone.utc)
    if dry_run:
        plan = plan_layout(home, environment, moment)
        users = _users(home, environment) if plan.steps else ()
        warnings = [f"in use by {user}: stop it first" for user in users]
        if pending.pending_operations(home.root, [pending.LAYOUT_MIGRATION]):
            warnings.append("a pending migration would be completed or rolled back first")
        return _report(home, plan, "nothing to do", warnings, dry_run=True)
    with locks.exclusive(home.root, wait_seconds=wait_seconds):
        recovered = pending.LAYOUT_MIGRATION.recover(home, environment, wait_seconds).outcome
        plan = plan_layout(home, environment, moment)
        report = _report(home, plan, recovered, [])
        if plan.steps:
            require_home_unused(home, environment)
            atomic.require_writable(_directories(home.root, plan))
            try:
                journal.execute(home.root, plan.steps)
            except journal.OtherFileSystemError:
                plan = plan_layout(home, environment, moment, is_split=True)
                report = replace(report, items=plan.items, steps=_steps(plan.steps), left=plan.left)
                journal.execute(home.root, plan.steps)
    return report


def _users(home: Home, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the processes and the sessions that would prevent a run."""
    sessions = home_sessions(home, environment)
    users = find_users(*home.databases, root=home.root)
    return (*map(describe, users), *describe_sessions(sessions))


def _report(
    home: Home, plan: Plan, recovered: str, warnings: list[str], *, dry_run: bool = False
) -> LayoutReport:
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
            warnings.append(f"fleet rows not counted, {error.message}")
    if rows:
        counts = ", ".join(f"{count} in {table}" for table, count in rows.items())
        warnings.append(
            f"fleet rows bound to {home.root / _STATE_NAME} become invisible: {counts}; "
            "workers must enrol again, or bind the rows to the new path: sagewai-ops backup, then "
            "sagewai-ops restore latest --replace --rebind-fleet"
        )
    return LayoutReport(
        home=home.root,
        recovered=_RECOVERED[recovered],
        items=plan.items,
        steps=_steps(plan.steps),
        left=plan.left,
        fleet_rows=rows,
        complete=not plan.left,
        dry_run=dry_run,
        notes=plan.notes,
        warnings=tuple(warnings),
    )


def _steps(steps: Sequence[Step]) -> tuple[StepResult, ...]:
    return tuple(
        StepResult(
            step=step.kind,
            source=step.source or None,
            target=step.target or None,
            mode=f"{step.mode:04o}" if step.mode else None,
        )
        for step in steps
    )


def _fleet_rows(home: Home) -> dict[str, int]:
    """Return the number of rows that belong to the legacy path of the state, by table."""
    administrator = ""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        with open(beneath.open_file(home.root / _STATE_NAME), "rb") as stream:
            state = json.load(stream)
        administrator = str((state.get("admin") or {}).get("id") or "")
    organisations = {
        fleet_organisation(home.root / _STATE_NAME, name) for name in (administrator, "")
    } - {fleet_organisation(home.root / ADMIN_STATE, administrator)}
    if home.server_url_variable or not home.database.exists():
        return {}
    counts = {}
    with open_moment(home.database) as source:
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
    """Return the existing directories that the steps change."""
    names = {""}
    for step in plan.steps:
        for path in (step.source if step.kind is StepKind.MOVE else "", step.target):
            names.add(path.rpartition("/")[0])
    return [root / name for name in sorted(names) if (root / name).is_dir()]
