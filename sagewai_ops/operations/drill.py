"""Drill a snapshot: restore it into a scratch directory, use the result, record the outcome.

It is the restore of `restore`, swap and all, then what nobody does to a home in use: its database
is upgraded to the head, and its permissions are judged. What was proved, and when, goes into the
snapshot's card. The scratch directory is private and locked; it is removed at the end, and after a
kill by the next run.
"""

import contextlib
import dataclasses
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sagewai_ops import __version__
from sagewai_ops.archive.age import Decryption
from sagewai_ops.archive.open import open_archive
from sagewai_ops.database.sqlite.integrity import check_integrity
from sagewai_ops.errors import (
    DamagedError,
    InterruptedRunError,
    KeyMissingError,
    LockedError,
    NoSpaceError,
    NotFoundError,
    OpsError,
    PermissionDeniedError,
    TargetBusyError,
    UsageError,
)
from sagewai_ops.fs import locks
from sagewai_ops.home.paths import Home, locate
from sagewai_ops.permissions.entry_kinds import EntryKind
from sagewai_ops.permissions.findings import Inspection
from sagewai_ops.permissions.rules import Severity
from sagewai_ops.permissions.scan import inspect
from sagewai_ops.process.signals import only_a_part
from sagewai_ops.progress import Progress
from sagewai_ops.restore.plan import RestoreOptions
from sagewai_ops.restore.restore import RestoreReport, restore
from sagewai_ops.schema.upgrade_sqlite import Upgrade, upgrade_database
from sagewai_ops.snapshots import cards, catalog
from sagewai_ops.snapshots.rebuild_cards import read_card_facts
from sagewai_ops.snapshots.scratch import scratch_directory
from sagewai_ops.text import shell_word

PROVED, UNPROVED, FAILED = "proved", "unproved", "failed"
_HOME = "home"  # in the scratch directory
# What these say is about this moment, not about the snapshot; any other failure is its own.
_NO_VERDICT = (
    InterruptedRunError,
    LockedError,
    NoSpaceError,
    NotFoundError,
    PermissionDeniedError,
    TargetBusyError,
    UsageError,
)


@dataclass(frozen=True, slots=True)
class DrillOptions:
    """What a drill is told.

    Attributes:
        key_file: A master key to use.
        without_key: Go on if sealed values open with no key; it is not proved then.
        key_home: A home whose keys may be used; need not exist.
        scratch: The directory that the scratch directory is made in; None for the snapshot's own.
    """

    decryption: Decryption | None = None
    key_file: Path | None = None
    without_key: bool = False
    key_home: Home | None = None
    key_environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    scratch: Path | None = None


@dataclass(frozen=True, slots=True)
class DrillFinding:
    """Something that does not hinder a restore and should be known.

    Attributes:
        check: `database`, `keys`, `upgrade` or `permissions`.
    """

    check: str
    text: str


@dataclass(frozen=True, slots=True)
class DrillReport:
    """A drill that came to its end.

    Attributes:
        outcome: `proved`, or `unproved` where sealed values stayed closed, which was asked for.
        checked: What held, in order.
        upgrade: None where there is no database.
        inspection: Without the directories above the scratch directory.
        recorded: Whether the snapshot's card has it.
        not_recorded: Why it has not; "" if it has, or if it is no snapshot's name.
    """

    snapshot_id: str
    archive: Path
    at: datetime
    seconds: float
    outcome: str
    checked: tuple[str, ...]
    restored: RestoreReport
    upgrade: Upgrade | None
    inspection: Inspection
    findings: tuple[DrillFinding, ...]
    swept: tuple[str, ...]
    recorded: bool = False
    not_recorded: str = ""

    @property
    def key_in_snapshot(self) -> bool:
        """Whether the key came out of the archive itself."""
        return self.restored.plan.key_custody == "sealed" and not self.restored.key_installed


def drill(archive: Path, options: DrillOptions, *, progress: Progress | None = None) -> DrillReport:
    """Prove that a snapshot can be restored and used.

    Args:
        archive: A snapshot file.
        progress: Told `restore` in bytes, then `additions` in statements.

    Raises:
        NotFoundError: There is no such archive, or scratch directory.
        UsageError: The scratch directory would stand in the home.
        NoSpaceError, PermissionDeniedError, LockedError: The system refused; the card says what it
            said before.
        DamagedError, KeyMissingError, SchemaAheadError, DifferenceError, OpsError: It failed, and
            its card says so.
    """
    archive = Path(os.path.realpath(archive))
    if archive.is_dir():
        raise UsageError(
            f"snapshot {archive}: is a tree, which has no card for what a drill proves",
            hint=f"sagewai-ops restore {shell_word(archive)} --to NEW_DIRECTORY"
            "  # checks every byte of it",
        )
    if not archive.is_file():
        raise NotFoundError(
            f"snapshot {archive}: does not exist", hint="sagewai-ops snapshots list"
        )
    trial = _Trial(archive)
    directory = _room(archive, options)
    swept: tuple[str, ...] = ()
    for place in dict.fromkeys((directory, archive.parent)):
        with locks.sweep_guard(place):
            swept += tuple(catalog.sweep(place))
    try:
        with _worded(directory, archive), scratch_directory(directory, archive.parent) as scratch:
            report = trial.run(scratch / _HOME, options, swept, progress)
    except _NO_VERDICT:
        raise
    except OpsError as error:
        if isinstance(error, KeyMissingError) and _is_closed(archive, options):
            raise  # nobody tried to open it
        try:
            _record(archive, trial.failure(error), {})
        except InterruptedRunError:
            raise
        except OpsError as other:
            raise type(error)(
                error.message, hint=f"its card could not be marked: {other.message}\n{error.hint}"
            ) from error
        raise
    try:
        rebuilt = _card_of(archive, options.decryption)
        recorded = _record(archive, trial.success(report), rebuilt)
    except InterruptedRunError:
        raise
    except OpsError as error:
        return dataclasses.replace(report, not_recorded=error.message)
    return dataclasses.replace(report, recorded=recorded)


@dataclass(slots=True)
class _Trial:
    """What holds so far of the snapshot that is tried."""

    archive: Path
    at: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    started: float = field(default_factory=time.monotonic)
    checked: list[str] = field(default_factory=list)
    stage: str = "restore"
    findings: list[DrillFinding] = field(default_factory=list)

    def run(
        self, root: Path, options: DrillOptions, swept: tuple[str, ...], progress: Progress | None
    ) -> DrillReport:
        """Restore to a directory that is not there yet, and use what came."""
        with only_a_part():
            restored = restore(
                self.archive,
                locate(root, {}),
                RestoreOptions(
                    decryption=options.decryption,
                    key_file=options.key_file,
                    without_key=options.without_key,
                    key_home=options.key_home,
                    key_environment=options.key_environment,
                ),
                progress=progress,
            )
        home = locate(root, {})
        self.held("database")
        self.database(restored)
        self.held("keys")
        for value in restored.keys.unopened:
            self.found("keys", f"{value.place} {value.where}: {value.reason}")
        is_open = not (options.without_key and restored.keys.unopened)
        # Before the upgrade, which leaves the database's own sidecars with the umask's mode.
        self.held("permissions", keep=is_open)
        inspection = self.permissions(home)
        self.held("upgrade")
        upgraded = self.upgrade(home, restored, progress)
        self.held("")
        return DrillReport(
            snapshot_id=restored.plan.snapshot_id,
            archive=self.archive,
            at=self.at,
            seconds=self.seconds,
            outcome=PROVED if is_open else UNPROVED,
            checked=tuple(self.checked),
            restored=restored,
            upgrade=upgraded,
            inspection=inspection,
            findings=tuple(self.findings),
            swept=swept,
        )

    def held(self, following: str, *, keep: bool = True) -> None:
        """Note that the stage at hand held, and go on to the next."""
        if keep:
            self.checked.append(self.stage)
        self.stage = following

    def found(self, check: str, text: str) -> None:
        """Note something that should be known."""
        self.findings.append(DrillFinding(check, text))

    def database(self, restored: RestoreReport) -> None:
        """Judge the database; that its rows are those of the manifest was seen by the restore."""
        proof = restored.database
        if proof is None:
            return
        if proof.integrity:
            raise DamagedError(
                f"snapshot {restored.plan.snapshot_id}: its database was damaged when it was "
                f"taken, {proof.integrity[0]:.200}",
                hint="use another snapshot: sagewai-ops snapshots list",
            )
        if proof.foreign_key_violations:
            self.found(
                "database",
                f"{proof.foreign_key_violations} rows of {', '.join(proof.foreign_key_tables)} "
                "refer to rows that are not there",
            )

    def upgrade(
        self, home: Home, restored: RestoreReport, progress: Progress | None
    ) -> Upgrade | None:
        """Bring the database to the head, and look at it again if that changed anything."""
        if restored.database is None:
            return None
        done = upgrade_database(home.database, progress=progress)
        upgraded = dataclasses.replace(done, rehearsed=True)  # nobody keeps it
        if upgraded.added:
            health = check_integrity(home.database)
            if not health.sound:
                raise DamagedError(
                    f"snapshot {restored.plan.snapshot_id}: its database is damaged by an upgrade, "
                    f"{health.integrity[0]:.200}"
                )
        for name, reason in upgraded.failed.items():
            self.found("upgrade", f"{name}: not added, {reason}")
        return upgraded

    def permissions(self, home: Home) -> Inspection:
        """Judge the home by the rules; the directories above it are not its own."""
        seen = inspect(home)
        own = tuple(one for one in seen.findings if one.facts.kind is not EntryKind.PARENT)
        for one in own:
            if one.rule.severity is Severity.ERROR:
                path = os.path.relpath(one.path, home.root)
                self.found("permissions", f"{one.rule.id} {path}: {one.message}")
        return dataclasses.replace(seen, findings=own)

    @property
    def seconds(self) -> float:
        """How long it took so far."""
        return time.monotonic() - self.started

    def success(self, report: DrillReport) -> dict[str, Any]:
        """Give what the card says of a drill that came to its end."""
        facts: dict[str, Any] = {"drill": self._facts(report.outcome)}
        if report.outcome == PROVED:
            facts["proved_restorable_at"] = facts["drill"]["at"]
        return facts

    def failure(self, error: OpsError) -> dict[str, Any]:
        """Give what the card says of one that failed; nothing of what is in the archive."""
        stage = "keys" if isinstance(error, KeyMissingError) else self.stage
        return {
            "drill": {**self._facts(FAILED), "failed": stage, "code": error.code},
            "proved_restorable_at": None,
        }

    def _facts(self, outcome: str) -> dict[str, Any]:
        return {
            "at": f"{self.at:%Y-%m-%dT%H:%M:%SZ}",
            "outcome": outcome,
            "checked": list(self.checked),
            "failed": None,
            "code": None,
            "findings": len(self.findings),
            "seconds": round(self.seconds, 3),
            "tool_version": __version__,
        }


def _room(archive: Path, options: DrillOptions) -> Path:
    """Choose where the scratch directory is made."""
    directory = options.scratch or archive.parent
    if not directory.is_dir():
        raise NotFoundError(
            f"scratch {directory}: is no directory", hint=f"mkdir -m 700 {shell_word(directory)}"
        )
    directory = Path(os.path.realpath(directory))
    if options.key_home and directory.is_relative_to(os.path.realpath(options.key_home.root)):
        raise UsageError(
            f"scratch {directory}: is inside the home {options.key_home.root}",
            hint="choose another: drill --work-dir DIR",
        )
    return directory


@contextlib.contextmanager
def _worded(directory: Path, archive: Path) -> Iterator[None]:
    """Reword errors that name the scratch directory, which no longer exists when they are read."""
    try:
        yield
    except InterruptedRunError:
        raise
    except OpsError as error:
        if isinstance(error, (NoSpaceError, PermissionDeniedError)):
            hint = "drill on another file system: --work-dir DIR"
            raise type(error)(f"drill: {error.message}", hint=hint) from error
        hidden = re.compile(re.escape(os.fspath(directory)) + r"/\.sagewai-[^/]+\.drill(/home)?/?")
        hint = error.hint
        if hidden.search(hint):
            hint = f"sagewai-ops snapshots verify {shell_word(archive)}"
        raise type(error)(f"drill: {hidden.sub('', error.message)}", hint=hint) from error


def _is_closed(archive: Path, options: DrillOptions) -> bool:
    return options.decryption is None and archive.name.endswith(".age")


def _record(archive: Path, changes: Mapping[str, Any], rebuilt: Mapping[str, Any]) -> bool:
    """Put what was found into the card; a file with another name than a snapshot's has none."""
    if not catalog.is_archive_name(archive.name):
        return False
    cards.update_card(archive, changes, rebuilt)
    return True


def _card_of(archive: Path, decryption: Decryption | None) -> dict[str, Any]:
    """Read the facts of a card that is missing from the archive itself, which was just proved."""
    if cards.read_card(archive):
        return {}
    with open_archive(archive, decryption) as reader:
        moment = f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}"
        return {**read_card_facts(reader, archive), "verified_at": moment}
