"""Drill a snapshot: restore it to a scratch directory, use the result, record the outcome.

It runs the complete `restore`, then checks the permissions of the result and upgrades its database
to the head. The outcome and its time are recorded in the snapshot's metadata file. The scratch
directory is private and locked; it is removed at the end, or by the next run after a kill.
"""

import contextlib
import dataclasses
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sagewai_ops import __version__
from sagewai_ops.archive.age import Decryption
from sagewai_ops.archive.authentication import AuthenticationKey
from sagewai_ops.archive.open import open_archive, size_of
from sagewai_ops.archive.reader import ArchiveReader
from sagewai_ops.database.postgres.private_server import CLUSTER_BYTES, find_installations
from sagewai_ops.database.sqlite.integrity import check_integrity
from sagewai_ops.database.sqlite.read_transaction import open_frozen
from sagewai_ops.database.sqlite.schema_objects import find_unexpected
from sagewai_ops.database.url import PostgresUrl
from sagewai_ops.errors import (
    DamagedError,
    KeyMissingError,
    LockedError,
    NoSpaceError,
    NotAuthenticError,
    NotFoundError,
    OpsError,
    PermissionDeniedError,
    RemoteError,
    TargetBusyError,
    UsageError,
)
from sagewai_ops.fs import beneath, locks
from sagewai_ops.fs.capabilities import is_of_place, stores_modes
from sagewai_ops.fs.tempdirs import Keep
from sagewai_ops.home.paths import Home, locate
from sagewai_ops.home.state_files import document_damage, document_name, in_use, read_documents
from sagewai_ops.operations.drill_database import (
    DrillServer,
    ServerDrillResult,
    check_sequences,
    describe_server_drill,
    hide_private_url,
    open_drill_server,
    upgrade_server,
)
from sagewai_ops.operations.drill_report import PROVED, UNPROVED, DrillFinding, DrillReport
from sagewai_ops.permissions.entry_kinds import EntryKind
from sagewai_ops.permissions.findings import Inspection
from sagewai_ops.permissions.rules import Severity
from sagewai_ops.permissions.scan import inspect
from sagewai_ops.process.signals import incomplete_step, mark_completed, uninterrupted
from sagewai_ops.progress import Progress
from sagewai_ops.records import dataclass
from sagewai_ops.remote.path import is_remote
from sagewai_ops.restore.plan import RestoreOptions, plan_restore
from sagewai_ops.restore.restore import RestoreReport, restore
from sagewai_ops.schema import sqlite_head
from sagewai_ops.schema.revision_graph import HEAD
from sagewai_ops.schema.upgrade_sqlite import Upgrade, upgrade_database
from sagewai_ops.snapshots import cards, catalog
from sagewai_ops.snapshots.piped_archive import STANDARD_INPUT
from sagewai_ops.snapshots.quality import engine_of
from sagewai_ops.snapshots.rebuild_cards import read_card_facts
from sagewai_ops.snapshots.scratch import memory_parent, scratch_directory, work_parent
from sagewai_ops.snapshots.server_database import POSTGRESQL, ServerFacts, read_server
from sagewai_ops.snapshots.trust import keys_of
from sagewai_ops.text import shell_word, size

FAILED = "failed"
_OTHER_PLACE = "drill on another file system: --work-dir DIR"
_NOT_DRILLED = "on a server, not drilled: its rows were verified, but not restored"
_NO_DRILL = "not drilled"  # of the database, in the metadata file
_HOME = "home"  # in the scratch directory
# Errors of the environment; any other error is a failure of the snapshot, and recorded.
_NOT_RECORDED = (
    LockedError,
    NoSpaceError,
    NotAuthenticError,
    NotFoundError,
    PermissionDeniedError,
    RemoteError,
    TargetBusyError,
    UsageError,
)


@dataclass(frozen=True, slots=True)
class DrillOptions:
    """The options of a drill.

    Attributes:
        key_file: A master key to use.
        without_key: Continue if encrypted values open with no key; the outcome is then unproved.
        key_home: A home whose keys may be used; need not exist.
        scratch: Where the scratch directory is created; None for memory, or next to the home.
        keep: Keeps the scratch directory, as in `tempdirs.kept`.
        require_authentic: Refuse a snapshot that is not authentic.
        scratch_server: Where the database of a server is restored, into a database of its own; None
            for a private server.
        is_latest, allow_rollback: As for `restore`.
    """

    decryption: Decryption | None = None
    key_file: Path | None = None
    without_key: bool = False
    key_home: Home | None = None
    key_environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    scratch: Path | None = None
    keep: Keep | None = None
    require_authentic: bool = False
    scratch_server: PostgresUrl | None = None
    is_latest: bool = False
    allow_rollback: bool = False


def drill(archive: Path, options: DrillOptions, *, progress: Progress | None = None) -> DrillReport:
    """Prove that a snapshot can be restored and used.

    Args:
        archive: A snapshot file.
        progress: Reports `restore` in bytes, then `additions` in statements.

    Raises:
        NotFoundError: No such archive, or no such directory for the scratch directory.
        UsageError: The scratch directory would be inside the home.
        NoSpaceError, PermissionDeniedError, LockedError: It could not run; nothing is recorded.
        OpsError: The file system of the scratch directory cannot do what a home needs (links,
            locks, modes, names); nothing is recorded.
        RemoteError: The server of `scratch_server` failed; nothing is recorded.
        DamagedError, KeyMissingError, SchemaAheadError, DifferenceError, OpsError: The drill
            failed, which is recorded.
    """
    archive = _find_archive(archive)
    run = _DrillRun(archive)
    home = options.key_home
    keys = keys_of(home, options.key_environment) if home else ()
    directory = _scratch_parent(archive, options)
    swept: tuple[str, ...] = ()
    links = None if archive == STANDARD_INPUT or is_remote(archive) else archive.parent
    for parent in dict.fromkeys(filter(None, (links, directory))):
        with locks.sweep_guard(parent):
            swept += tuple(catalog.sweep(parent))
    try:
        with (
            run.open_server(options, directory, links) as server,
            _hide_scratch_paths(directory, archive),
            scratch_directory(directory, links, keep=options.keep) as scratch,
        ):
            report = run.execute(scratch / _HOME, options, server, swept, progress)
        report = dataclasses.replace(report, findings=tuple(run.findings))
    except _NOT_RECORDED:
        raise
    except OpsError as error:
        if is_of_place(error):
            raise OpsError(
                f"{error.message}; not recorded, {directory} may be the cause", hint=_OTHER_PLACE
            ) from error
        is_encrypted = archive.name.endswith(".age")
        if isinstance(error, KeyMissingError) and is_encrypted and options.decryption is None:
            raise  # no identity was named: not a failure of the snapshot
        try:
            _record(archive, run.failure(error), {}, keys)
        except OpsError as other:
            raise type(error)(
                f"{error.message}; outcome not recorded: {other.message}", hint=error.hint
            ) from error
        raise
    if report.is_of_place:
        return report
    if not catalog.is_archive_name(archive.name):
        return report  # it has no metadata file
    try:
        rebuilt = _card_of(archive, options.decryption, keys)
        recorded = _record(archive, run.success(report), rebuilt, keys)
    except OpsError as error:
        return dataclasses.replace(report, not_recorded=error.message)
    return dataclasses.replace(report, recorded=recorded)


def plan_drill(archive: Path, options: DrillOptions) -> tuple[str, ...]:
    """List the steps of a drill, one line each, from the manifest; nothing is written.

    Raises:
        As `drill`, for everything that can be found without extracting the archive.
    """
    archive = _find_archive(archive)
    directory = _scratch_parent(archive, options)
    scratch = catalog.scratch_path(directory, datetime.now(timezone.utc))
    with _hide_scratch_paths(directory, archive):
        plan = plan_restore(archive, locate(scratch / _HOME, {}), _restore_options(options))
    what = f"snapshot {plan.snapshot_id}, {plan.files} files, {size(plan.size_bytes)}"
    steps = [f"restore {what}, into a scratch directory in {directory}"]
    if plan.has_database:
        steps.append("check the database: damage, references, rows as in the manifest")
    if plan.is_on_server:
        steps.append(_server_step(options))
    if plan.sealed:
        key = f"the key in {options.key_file}" if options.key_file else "the available keys"
        otherwise = "; continue without a key, unproved" if options.without_key else ""
        steps.append(f"open {plan.sealed} encrypted values with {key}{otherwise}")
    steps.append("check the permissions by the rules of verify-perms")
    if plan.has_database:
        steps.append(f"upgrade the database from {plan.schema_level or 'no revision'} to {HEAD}")
    steps.append(f"{'keep' if options.keep else 'remove'} the scratch directory")
    if catalog.is_archive_name(archive.name):
        steps.append(f"record the outcome in the metadata file of {archive}")
    return tuple(steps)


@dataclass(slots=True)
class _DrillRun:
    """A drill in progress."""

    archive: Path
    at: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    started: float = field(default_factory=time.monotonic)
    checked: list[str] = field(default_factory=list)
    stage: str = "restore"
    findings: list[DrillFinding] = field(default_factory=list)
    reader: ArchiveReader | None = None  # opened already, if the database is that of a server

    @contextlib.contextmanager
    def open_server(
        self, options: DrillOptions, directory: Path, links: Path | None
    ) -> Iterator[DrillServer]:
        """Open the server for the database of the snapshot, if that was on one."""
        with contextlib.ExitStack() as stack:
            with _hide_scratch_paths(directory, self.archive):
                facts = self.read_server(stack, options.decryption)
            if facts is None:
                yield DrillServer()
                return
            server = open_drill_server(
                facts,
                options.scratch_server,
                directory,
                links,
                lambda reason: self.add_finding("database", reason),
            )
            yield stack.enter_context(server)

    def read_server(
        self, stack: contextlib.ExitStack, decryption: Decryption | None
    ) -> ServerFacts | None:
        """Return the database of a server in the snapshot, which stays open; None without one."""
        card = cards.read_card(self.archive)
        if card and engine_of(card) != POSTGRESQL:
            return None  # if it is wrong, the drill proves nothing
        opened = open_archive(self.archive, decryption)
        self.reader = opened.__enter__()
        # Without the errors of the block, which need not be about the archive.
        stack.callback(opened.__exit__, None, None, None)
        return read_server(self.reader.manifest)

    def restore(
        self, home: Home, options: DrillOptions, server: DrillServer, progress: Progress | None
    ) -> tuple[RestoreReport, DrillServer]:
        """Restore to a new directory and the server, or without a server that cannot do it."""
        chosen = _restore_options(options)
        with incomplete_step():
            if server.url:
                try:
                    both = dataclasses.replace(chosen, server=server.url)
                    return self.restore_to(home, both, progress), server
                except OpsError as error:
                    if not server.is_cause(error):
                        raise
                    server = DrillServer(reason=hide_private_url(error.message), is_failed=True)
            return self.restore_to(home, chosen, progress), server

    def restore_to(
        self, home: Home, options: RestoreOptions, progress: Progress | None
    ) -> RestoreReport:
        """Restore to a new directory, from the archive as it was opened."""
        return restore(self.archive, home, options, reader=self.reader, progress=progress)

    def execute(
        self,
        root: Path,
        options: DrillOptions,
        server: DrillServer,
        swept: tuple[str, ...],
        progress: Progress | None,
    ) -> DrillReport:
        """Restore to a new directory, and use the result."""
        home = locate(root, {})
        restored, server = self.restore(home, options, server, progress)
        self.check_documents(home, restored)
        self.next_stage("database")
        self.check_database(home, restored)
        version, facts = "", restored.plan.server
        if server.url and facts:
            version = check_sequences(server.url, facts)
        is_drilled = bool(version) or not restored.plan.is_on_server
        if not is_drilled:
            self.add_finding("database", "; ".join(filter(None, (_NOT_DRILLED, server.reason))))
        self.next_stage("keys", has_passed=is_drilled)
        for value in restored.keys.unopened:
            self.add_finding("keys", f"{value.place} {value.where}: {value.reason}")
        is_open = not (options.without_key and restored.keys.unopened)
        # Before the upgrade, which creates sidecars of the database with the umask's mode.
        self.next_stage("permissions", has_passed=is_open)
        inspection = self.check_permissions(home)
        self.next_stage("upgrade")
        upgraded = self.upgrade(home, restored, progress)
        on_server: ServerDrillResult | None = None
        if server.url and facts:
            migration, broken = upgrade_server(server.url, progress)
            on_server = describe_server_drill(
                facts, version, migration, is_private=server.is_private
            )
            for text in broken:
                self.add_finding("upgrade", hide_private_url(text))
        self.next_stage("")
        return DrillReport(
            snapshot_id=restored.plan.snapshot_id,
            archive=self.archive,
            at=self.at,
            seconds=self.seconds,
            outcome=PROVED if is_open and is_drilled else UNPROVED,
            checked=tuple(self.checked),
            restored=restored,
            upgrade=upgraded,
            server=on_server,
            inspection=inspection,
            findings=tuple(self.findings),
            swept=swept,
            is_of_place=server.is_failed,
        )

    def next_stage(self, stage: str, *, has_passed: bool = True) -> None:
        """Record that the current stage has passed, and begin the next."""
        if has_passed:
            self.checked.append(self.stage)
        self.stage = stage

    def add_finding(self, check: str, text: str) -> None:
        """Add a finding to the report."""
        self.findings.append(DrillFinding(check, text))

    def check_documents(self, home: Home, restored: RestoreReport) -> None:
        """Check that the documents are whole."""
        documents = read_documents(home)
        for path in in_use(documents):
            if damage := document_damage(document_name(path), documents[path]):
                raise DamagedError(
                    f"snapshot {restored.plan.snapshot_id}: {path} damaged before the snapshot was "
                    f"created, {damage}",
                    hint="use another snapshot: sagewai-ops snapshots list",
                )

    def check_database(self, home: Home, restored: RestoreReport) -> None:
        """Check the database for damage; the restore compared its rows with the manifest."""
        report = restored.database
        if report is None:
            return
        if report.integrity:
            raise DamagedError(
                f"snapshot {restored.plan.snapshot_id}: database damaged before the snapshot was "
                f"created, {report.integrity[0]:.200}",
                hint="use another snapshot: sagewai-ops snapshots list",
            )
        if not report.tables:
            self.add_finding("database", "empty, it has no tables")
        with open_frozen(home.database) as connection:
            for item in find_unexpected(connection, sqlite_head.tables()):
                self.add_finding("database", str(item))
        if report.foreign_key_violations:
            self.add_finding(
                "database",
                f"{report.foreign_key_violations} rows of {', '.join(report.foreign_key_tables)} "
                "have broken references",
            )

    def upgrade(
        self, home: Home, restored: RestoreReport, progress: Progress | None
    ) -> Upgrade | None:
        """Upgrade the database to the head, and check it again if that changed it."""
        if restored.database is None:
            return None
        done = upgrade_database(home.database, progress=progress)
        upgraded = dataclasses.replace(done, rehearsed=True)  # the result is discarded
        if upgraded.added:
            health = check_integrity(home.database)
            if not health.sound:
                raise DamagedError(
                    f"snapshot {restored.plan.snapshot_id}: database damaged by the upgrade, "
                    f"{health.integrity[0]:.200}"
                )
        for name, reason in upgraded.failed.items():
            self.add_finding("upgrade", f"{name}: not added, {reason}")
        return upgraded

    def check_permissions(self, home: Home) -> Inspection:
        """Check permissions by the rules, except those of the directories above the home."""
        inspection = inspect(home)
        own = tuple(item for item in inspection.findings if item.facts.kind is not EntryKind.PARENT)
        if not stores_modes(home.root.parent):
            own = ()  # all that were found are of this file system
        for finding in own:
            if finding.rule.severity is Severity.ERROR:
                path = os.path.relpath(finding.path, home.root)
                self.add_finding("permissions", f"{finding.rule.id} {path}: {finding.message}")
        return dataclasses.replace(inspection, findings=own)

    @property
    def seconds(self) -> float:
        """The time since the start."""
        return time.monotonic() - self.started

    def success(self, report: DrillReport) -> dict[str, Any]:
        """Return what the metadata file records of a completed drill."""
        facts: dict[str, Any] = {"drill": self._facts(report.outcome)}
        if report.server:
            facts["drill"]["database"] = f"PostgreSQL {report.server.version}"
        elif report.restored.plan.is_on_server:
            facts["drill"]["database"] = _NO_DRILL
        if report.outcome == PROVED:
            facts["proved_restorable_at"] = facts["drill"]["at"]
        return facts

    def failure(self, error: OpsError) -> dict[str, Any]:
        """Return what the metadata file records of a failed drill: no content of the archive."""
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


def _server_step(options: DrillOptions) -> str:
    if options.scratch_server:
        where = f"a database of its own on the server of {options.scratch_server.display}"
    elif find_installations():
        where = "a private PostgreSQL server"
    else:
        return f"the database is {_NOT_DRILLED}"
    return f"restore the database of the server to {where}, compare it, and upgrade it to {HEAD}"


def _find_archive(archive: Path) -> Path:
    """Return the real path of an archive, which must be a file."""
    if archive == STANDARD_INPUT or is_remote(archive):
        return archive
    archive = Path(os.path.realpath(archive))
    if beneath.is_directory(archive):
        raise UsageError(
            f"snapshot {archive}: a directory, which has no metadata file for the outcome",
            hint=f"sagewai-ops restore {shell_word(archive)} --to NEW_DIRECTORY"
            "  # checks every byte of it",
        )
    if not beneath.is_file(archive):
        raise NotFoundError(f"snapshot {archive}: not found", hint="sagewai-ops snapshots list")
    return archive


def _restore_options(options: DrillOptions) -> RestoreOptions:
    return RestoreOptions(
        decryption=options.decryption,
        key_file=options.key_file,
        without_key=options.without_key,
        key_home=options.key_home,
        key_environment=options.key_environment,
        require_authentic=options.require_authentic,
        is_latest=options.is_latest,
        allow_rollback=options.allow_rollback,
        check="full",
    )


def _scratch_parent(archive: Path, options: DrillOptions) -> Path:
    """Return the directory in which the scratch directory is created."""
    if options.scratch is None and (memory := memory_parent(_needed_bytes(archive))):
        return memory
    return storage_directory(archive, options)


def storage_directory(archive: Path, options: DrillOptions) -> Path:
    """Return the directory for what a drill has to write, if that does not fit into memory.

    Raises:
        NotFoundError, UsageError: As `work_parent`.
    """
    home = options.key_home
    root = home.root if home and home.root.is_dir() else None
    snapshots = home.snapshots if home and archive == STANDARD_INPUT else archive.parent
    return work_parent(root, options.scratch, snapshots=snapshots)


def _needed_bytes(archive: Path) -> int:
    """Estimate what a drill stores: the content, the upgraded database, a downloaded archive."""
    card = cards.read_card(archive)
    recorded, size_bytes = card.get("content_bytes"), size_of(archive)
    content = max(recorded if isinstance(recorded, int) else 10 * size_bytes, size_bytes)
    download = size_bytes if is_remote(archive) else 0
    return 2 * content + download + (CLUSTER_BYTES if engine_of(card) == POSTGRESQL else 0)


@contextlib.contextmanager
def _hide_scratch_paths(directory: Path, archive: Path) -> Iterator[None]:
    """Remove the scratch directory from errors; it no longer exists when they are read."""
    try:
        yield
    except OpsError as error:
        message = hide_private_url(error.message)
        is_of_disk = not message.startswith("postgresql://")  # of a server that was named
        if isinstance(error, (NoSpaceError, PermissionDeniedError)) and is_of_disk:
            raise type(error)(f"drill: {message}", hint=_OTHER_PLACE) from error
        hidden = re.compile(re.escape(os.fspath(directory)) + r"/\.sagewai-[^/]+\.drill(/home)?/?")
        hint = error.hint
        if hidden.search(hint):
            is_named = archive != STANDARD_INPUT
            hint = f"sagewai-ops snapshots verify {shell_word(archive)}" if is_named else ""
        if is_of_place(error):
            hint = _OTHER_PLACE
        raise type(error)(f"drill: {hidden.sub('', message)}", hint=hint) from error


def _record(
    archive: Path,
    changes: Mapping[str, Any],
    rebuilt: Mapping[str, Any],
    keys: Sequence[AuthenticationKey],
) -> bool:
    """Write the outcome to the metadata file; an archive with another name has none."""
    if not catalog.is_archive_name(archive.name):
        return False
    with uninterrupted():
        cards.update_card(archive, changes, rebuilt, keys)
        mark_completed()
    return True


def _card_of(
    archive: Path, decryption: Decryption | None, keys: Sequence[AuthenticationKey]
) -> dict[str, Any]:
    """Return the facts for the metadata file from the archive, which was just verified.

    {} if it exists and is authenticated, or no key is available to authenticate it.
    """
    card = cards.read_card(archive)
    if card and (not keys or cards.is_authentic(card, keys)):
        return {}
    with open_archive(archive, decryption) as reader:
        moment = f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}"
        return {**read_card_facts(reader, archive), "verified_at": moment}
