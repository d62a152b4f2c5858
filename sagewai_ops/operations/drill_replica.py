"""Drill a replica of litestream: restore its database to a scratch directory, and use it.

A replica has no files and no manifest, so the database alone is checked: for damage, by its schema
and references, by the keys that open its encrypted values, and by its upgrade to the head. Nothing
is recorded. The scratch directory is private and locked; it is removed at the end, or by the next
run after a kill.
"""

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import field
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from sagewai_ops.database.sqlite.integrity import check_integrity
from sagewai_ops.database.sqlite.litestream import (
    Replica,
    ReplicaState,
    format_moment,
    read_state,
    restore_replica,
)
from sagewai_ops.database.sqlite.read_transaction import open_frozen
from sagewai_ops.database.sqlite.schema_objects import find_unexpected
from sagewai_ops.errors import DamagedError, KeyMissingError
from sagewai_ops.fs import locks
from sagewai_ops.fs.tempdirs import Keep
from sagewai_ops.home.paths import Home
from sagewai_ops.keys.candidates import Candidate, find_candidates, shown_source
from sagewai_ops.keys.trial_decryption import SealedReport, try_keys
from sagewai_ops.operations.drill_report import DrillFinding
from sagewai_ops.progress import Progress
from sagewai_ops.records import dataclass
from sagewai_ops.schema import sqlite_head
from sagewai_ops.schema.results import UpgradeResult, describe_upgrade
from sagewai_ops.schema.revision_graph import HEAD
from sagewai_ops.schema.upgrade_sqlite import upgrade_database
from sagewai_ops.snapshots import catalog
from sagewai_ops.snapshots.database_check import DatabaseFacts, examine_database
from sagewai_ops.snapshots.scratch import (
    MOST_MEMORY_BYTES,
    memory_parent,
    scratch_directory,
    work_parent,
)
from sagewai_ops.text import printable, size

_DATABASE = "sagewai.db"  # in the scratch directory
# A replica is compressed, pages that were written twice are in it twice; the upgrade needs a copy.
_GROWTH = 20


@dataclass(frozen=True, slots=True)
class ReplicaDrillOptions:
    """The options of a drill of a replica.

    Attributes:
        home: Whose keys may be used; need not exist.
        key_file: A master key to use.
        without_key: Continue if encrypted values open with no key; the outcome is then unproved.
        scratch, keep: As for a drill of a snapshot.
    """

    home: Home
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    key_file: Path | None = None
    without_key: bool = False
    scratch: Path | None = None
    keep: Keep | None = None


@dataclass(frozen=True, slots=True)
class ReplicaDrillResult:
    """The result of a drill of a replica as its JSON has it: docs/json.md.

    Attributes:
        replica: The database, as litestream's configuration names it.
        requested: The moment that was requested; None for the newest state.
        state_at: Of the last change in it.
        transaction: The number of that change, in litestream's hexadecimal digits.
        key_source: The source of the key that opens the encrypted values; "" without one.
    """

    replica: str
    requested: str | None
    state_at: str
    transaction: str
    outcome: Literal["proved", "unproved"]
    at: str
    seconds: float
    checked: tuple[str, ...]
    size_bytes: int
    database: DatabaseFacts
    upgrade: UpgradeResult
    keys: SealedReport
    key_source: str
    findings: tuple[DrillFinding, ...]
    swept: tuple[str, ...]


def plan_replica_drill(replica: Replica, options: ReplicaDrillOptions) -> tuple[str, ...]:
    """List the steps of a drill, one line each; nothing is written.

    Raises:
        As `drill_replica`, for everything that can be found without a restore.
    """
    state = read_state(replica)
    directory, _most_bytes = _scratch_parent(state, options)
    what = f"{replica.shown}, last change at {printable(state.at)}, {size(state.size_bytes)}"
    return (
        f"restore {what} compressed, into a scratch directory in {directory}",
        "check the database: damage, schema, references",
        "open its encrypted values with the available keys",
        f"upgrade the database to {HEAD}",
        f"{'keep' if options.keep else 'remove'} the scratch directory",
    )


def drill_replica(
    replica: Replica, options: ReplicaDrillOptions, *, progress: Progress | None = None
) -> ReplicaDrillResult:
    """Prove that a replica can be restored and used.

    Raises:
        NotFoundError: litestream, its configuration or a state of the replica does not exist.
        UsageError: litestream is too old; the scratch directory would be inside the home.
        RemoteError: The replica cannot be read.
        DamagedError: The database is damaged.
        KeyMissingError: No key opens some encrypted values.
        NoSpaceError, PermissionDeniedError, LockedError: It could not run.
    """
    at, started = datetime.now(timezone.utc), time.monotonic()
    directory, most_bytes = _scratch_parent(read_state(replica), options)
    with locks.sweep_guard(directory):
        swept = tuple(catalog.sweep(directory))
    with scratch_directory(directory, keep=options.keep) as scratch:
        path = scratch / _DATABASE
        state = restore_replica(replica, path, most_bytes=most_bytes, option="--work-dir DIR")
        size_bytes = path.stat().st_size
        report = examine_database(path)
        if report.integrity:
            raise DamagedError(
                f"{replica.shown}: database damaged, {report.integrity[0]:.200}",
                hint="sagewai-ops db check  # is that of the home damaged too?",
            )
        findings = _check_schema(path, report)
        if state.is_behind:
            text = f"its last change is at {printable(state.at)}: it may not reach to that moment"
            findings.append(DrillFinding("database", text))
        candidates = find_candidates(options.home, options.environment, key_file=options.key_file)
        keys = _check_keys(replica, path, candidates, options)
        findings += [
            DrillFinding("keys", f"{value.place} {value.where}: {value.reason}")
            for value in keys.unopened
        ]
        upgrade = dataclasses.replace(
            upgrade_database(path, progress=progress), rehearsed=True
        )  # the result is discarded
        if upgrade.added and (health := check_integrity(path)).integrity:
            raise DamagedError(
                f"{replica.shown}: database damaged by the upgrade, {health.integrity[0]:.200}"
            )
        findings += [
            DrillFinding("upgrade", f"{name}: not added, {reason}")
            for name, reason in upgrade.failed.items()
        ]
    best = keys.best(candidates)
    is_open = not keys.unopened
    return ReplicaDrillResult(
        replica=state.name,
        requested=format_moment(replica.moment) if replica.moment else None,
        state_at=state.at,
        transaction=state.transaction,
        outcome="proved" if is_open else "unproved",
        at=f"{at:%Y-%m-%dT%H:%M:%SZ}",
        seconds=round(time.monotonic() - started, 3),
        checked=("restore", "database", *(("keys",) if is_open else ()), "upgrade"),
        size_bytes=size_bytes,
        database=report.record,
        upgrade=describe_upgrade(upgrade),
        keys=keys,
        key_source=shown_source(best.source) if best else "",
        findings=tuple(findings),
        swept=swept,
    )


def _check_schema(path: Path, report: DatabaseFacts) -> list[DrillFinding]:
    """Return the findings about tables and references."""
    found = []
    if report.schema_state in ("ahead", "unknown", "empty"):
        found.append(f"its schema is {report.schema_state}")
    with open_frozen(path) as connection:
        found += [str(item) for item in find_unexpected(connection, sqlite_head.tables())]
    if report.foreign_key_violations:
        found.append(
            f"{report.foreign_key_violations} rows of {', '.join(report.foreign_key_tables)}"
            " have broken references"
        )
    return [DrillFinding("database", text) for text in found]


def _check_keys(
    replica: Replica, path: Path, candidates: tuple[Candidate, ...], options: ReplicaDrillOptions
) -> SealedReport:
    """Open the encrypted values of the database.

    Raises:
        KeyMissingError: No key opens some, and `without_key` is not set.
    """
    keys = try_keys({}, path, candidates)
    if keys.unopened and not options.without_key:
        tried = ", ".join(
            f"{shown_source(key.source)} ({key.fingerprint})" for key in candidates if key.value
        )
        first = keys.unopened[0]
        raise KeyMissingError(
            f"{replica.shown}: no available key opens {len(keys.unopened)} of {keys.total}"
            f" encrypted values, for example {first.place} {first.where}; tried {tried or 'none'}",
            hint="sagewai-ops drill --from litestream --install-key FILE  # or --without-key",
        )
    return keys


def _scratch_parent(state: ReplicaState, options: ReplicaDrillOptions) -> tuple[Path, int | None]:
    """Return the directory for the scratch directory, and the most bytes of a file; None for any.

    How far a replica grows is only an estimate, so a restore to memory is limited.
    """
    if options.scratch is None and (memory := memory_parent(_GROWTH * state.size_bytes)):
        return memory, MOST_MEMORY_BYTES
    home = options.home
    root = home.root if home.root.is_dir() else None
    return work_parent(root, options.scratch, snapshots=home.snapshots), None
