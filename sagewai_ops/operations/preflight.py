"""Preflight: every check before an upgrade, as one table with one exit code.

A failed check names the command that fixes it. Only a snapshot is created, restored in a scratch
directory, where the upgrade is rehearsed too.
"""

import os
import shlex
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field, replace
from enum import Enum
from pathlib import Path

from sagewai_ops.archive.age import Decryption
from sagewai_ops.backup.create import create_snapshot
from sagewai_ops.backup.report import BackupOptions, BackupReport
from sagewai_ops.database.postgres.sessions import describe_sessions, home_sessions
from sagewai_ops.database.sqlite.in_use import find_users, stop_command
from sagewai_ops.database.sqlite.moment import open_moment
from sagewai_ops.database.url import PostgresUrl, SqliteUrl
from sagewai_ops.errors import (
    EXIT_DONE,
    EXIT_FINDINGS,
    EXIT_INCOMPLETE,
    DamagedError,
    KeyMissingError,
    NotFoundError,
    OpsError,
    error_class,
)
from sagewai_ops.fs import locks
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.fs.tempdirs import Keep
from sagewai_ops.home.paths import Home, layout_of, require_files
from sagewai_ops.home.server_record import resolve_database
from sagewai_ops.keys.candidates import ENVIRONMENT, Candidate, refused_variable
from sagewai_ops.operations.check_keys import check_keys
from sagewai_ops.operations.drill import DrillOptions, drill
from sagewai_ops.operations.drill_report import PROVED, DrillReport
from sagewai_ops.operations.migrate_layout import migrate_layout
from sagewai_ops.operations.preflight_space import compare_space
from sagewai_ops.permissions.rules import Severity
from sagewai_ops.permissions.verify import verify
from sagewai_ops.process.procfs import describe
from sagewai_ops.process.signals import incomplete_step, run_interruptibly
from sagewai_ops.progress import Progress
from sagewai_ops.records import dataclass
from sagewai_ops.remote.path import is_remote
from sagewai_ops.schema import rehearse_postgres
from sagewai_ops.schema.check_postgres import check_postgres
from sagewai_ops.schema.check_sqlite import check_database
from sagewai_ops.schema.drift import find_drift
from sagewai_ops.schema.findings import Finding
from sagewai_ops.schema.upgrade_sqlite import Upgrade, rehearse_upgrade
from sagewai_ops.snapshots import catalog
from sagewai_ops.snapshots.scratch import scratch_directory, work_parent
from sagewai_ops.swap.pending import LAYOUT_MIGRATION, pending_operations
from sagewai_ops.text import shell_word, size

_PRIORITY = (1, 16, 12, 18, 20, 13, 14, 11, 15, 19, 17, 10, 2, EXIT_FINDINGS, EXIT_INCOMPLETE)
_RESTORE_DATABASE = "restore latest --only db --replace"
# The command to run after an error without a hint.
_NEXT_COMMANDS = {
    "use": "status",
    "layout": "migrate-layout --dry-run",
    "permissions": "verify-perms",
    "keys": "keys check",
    "database": "db check",
    "space": "status",
    "snapshot": "backup",
    "drill": "drill latest",
    "upgrade": "db upgrade --rehearse",
}
# The findings of `db check` that matter for an upgrade; others concern a move to PostgreSQL.
_BROKEN = ("integrity", "foreign-key", "sequence", "index")


class Verdict(str, Enum):
    """The result of a check."""

    OK = "ok"
    WARNING = "warning"  # changes the exit code only with --strict
    FINDING = "finding"  # wrong, and can be fixed
    FAILED = "failed"  # not completed; the exit code is that of its error
    UNPROVED = "unproved"  # requested, but not possible here
    SKIPPED = "skipped"  # not requested, or pointless after an earlier failure


_CODES = {Verdict.FINDING: EXIT_FINDINGS, Verdict.UNPROVED: EXIT_INCOMPLETE}


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the table.

    Attributes:
        check: `use`, `layout`, `permissions`, `keys`, `database`, `space`, `snapshot`, `drill` or
            `upgrade`.
        details: One line each; `mend` has the commands that fix it, one a line too.
        exit_code: Of this line alone.
    """

    check: str
    verdict: Verdict
    summary: str
    details: tuple[str, ...] = ()
    mend: tuple[str, ...] = ()
    exit_code: int = EXIT_DONE
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class PreflightOptions:
    """The options of a preflight.

    Attributes:
        environment: For keys, overrides and the URL of a database.
        snapshots: The snapshot directory; created with the snapshot if missing.
        backup: Options of the snapshot; None for no snapshot.
        decryption: Opens the snapshot if `backup` encrypts it; None if that is not possible here.
        key_file: An additional master key.
        scratch: Where the scratch directory is created; None for the snapshot directory.
        keep, require_authentic, scratch_server: As for `DrillOptions`.
        is_strict: Warnings count as findings.
        dry_run: Run the checks that only read.
        wait_seconds: For another run, and for a process that has the database locked.
    """

    environment: Mapping[str, str] = field(repr=False)
    snapshots: Path
    backup: BackupOptions | None = None
    decryption: Decryption | None = None
    key_file: Path | None = None
    scratch: Path | None = None
    keep: Keep | None = None
    require_authentic: bool = False
    scratch_server: PostgresUrl | None = None
    is_strict: bool = False
    dry_run: bool = False
    wait_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class PreflightReport:
    """The table, the snapshot and its drill; None without one."""

    home: Path
    checks: tuple[Check, ...]
    snapshot: BackupReport | None
    drill: DrillReport | None
    is_strict: bool

    @property
    def exit_code(self) -> int:
        """The first of the lines' codes in the order of priority; 0 if nothing failed."""
        codes = {check.exit_code for check in self.checks}
        if self.is_strict and any(check.verdict is Verdict.WARNING for check in self.checks):
            codes.add(EXIT_FINDINGS)
        return next((code for code in _PRIORITY if code in codes), max(codes))

    @property
    def error(self) -> OpsError | None:
        """The error that decided the exit code; None without one."""
        code = self.exit_code
        for check in self.checks:
            if code not in (0, EXIT_INCOMPLETE, EXIT_FINDINGS) and check.exit_code == code:
                name = f"{check.check}: "
                message = name + check.summary.removeprefix(name)
                return error_class(code)(message, hint="\n".join(check.mend))
        return None


@dataclass(frozen=True, slots=True)
class PreflightResult:
    """The table, the snapshot that was created and the time of its proof.

    Attributes:
        go_back: The commands that restore the snapshot, if the upgrade has to be undone.
    """

    home: Path
    ready: bool
    strict: bool
    checks: tuple[Check, ...]
    snapshot: str | None
    archive: Path | None
    proved_restorable_at: str | None
    go_back: tuple[str, ...]


def run_preflight(
    home: Home, options: PreflightOptions, *, progress: Progress | None = None
) -> PreflightReport:
    """Run all checks on a home.

    Args:
        progress: Reports the stages of every check.

    Raises:
        NotFoundError: No such home.
        UsageError: The URL of the database cannot be parsed, or is not known.
        InterruptedRunError: A signal arrived; only a completed snapshot remains.
    """
    require_files(home)
    run = _Run(home, resolve_database(home, options.environment), options, progress)
    run.check()
    run.rehearse()
    return PreflightReport(
        home.root, tuple(run.checks), run.snapshot, run.drill_report, options.is_strict
    )


@dataclass(slots=True)
class _Run:
    """A preflight in progress."""

    home: Home
    database: SqliteUrl | PostgresUrl
    options: PreflightOptions
    progress: Progress | None
    checks: list[Check] = field(default_factory=list)
    snapshot: BackupReport | None = None
    drill_report: DrillReport | None = None

    def check(self) -> None:
        """Run the checks that only read."""
        home, options = self.home, self.options
        is_next_to_snapshots = options.backup and not is_remote(options.snapshots)
        scratch = (options.scratch or options.snapshots) if is_next_to_snapshots else self._parent()
        self._add("use", lambda: check_use(home, options.environment))
        self._add("layout", lambda: check_layout(home, options.environment))
        self._add("permissions", lambda: check_permissions(home, options, self.progress))
        self._add("keys", lambda: check_all_keys(home, options.environment, options.key_file))
        self._add("database", lambda: check_tables(home, self.database, options, self.progress))
        self._add("space", lambda: check_space(home, options, scratch))

    def rehearse(self) -> None:
        """Create a snapshot, drill it, rehearse the upgrade."""
        if self.options.backup is None or self.options.dry_run:
            self.checks.append(Check("snapshot", Verdict.SKIPPED, "not requested"))
        elif self.checks[-1].verdict is Verdict.FAILED:
            self.checks.append(Check("snapshot", Verdict.SKIPPED, "no space"))
        else:
            self._add("snapshot", self._create_snapshot)
        if self.snapshot is None:
            self.checks.append(Check("drill", Verdict.SKIPPED, "no snapshot"))
        else:
            self._add("drill", self._drill)
        if not self.options.dry_run:
            self._add("upgrade", self._rehearse_upgrade)

    def _add(self, name: str, check: Callable[[], Check]) -> None:
        """Run a check; an error becomes its line."""
        started = time.monotonic()
        try:
            with translate_os_errors(self.home.root):
                done = check()
        except OpsError as error:
            done = self._failure(name, error)
        code = done.exit_code or _CODES.get(done.verdict, EXIT_DONE)
        seconds = round(time.monotonic() - started, 3)
        self.checks.append(replace(done, exit_code=code, seconds=seconds))

    def _failure(self, name: str, error: OpsError) -> Check:
        """Return the line of an error; it always names a command."""
        remedies = tuple(error.hint.splitlines())
        if isinstance(error, KeyMissingError) and self.snapshot and name == "drill":
            words = f"drill {self.snapshot.id} --install-key FILE"
            remedies = (home_command(self.home, words) + "  # with the right key",)
        elif isinstance(error, DamagedError) and not remedies:
            remedies = (home_command(self.home, _RESTORE_DATABASE),)
        remedies = remedies or (home_command(self.home, _NEXT_COMMANDS[name]) + "  # for details",)
        return Check(name, Verdict.FAILED, error.message, (), remedies, error.exit_code)

    def _create_snapshot(self) -> Check:
        assert self.options.backup is not None
        report = create_snapshot(
            self.home, self.options.snapshots, self.options.backup, progress=self.progress
        )
        self.snapshot = report
        warnings = tuple(report.warnings())
        summary = f"{report.id}, created and verified"
        if report.key_fingerprint and report.custody != "sealed":
            summary += f", without its key {report.key_fingerprint}"
        if report.quality.is_good:
            return Check("snapshot", Verdict.OK, summary, (*warnings, *report.notes))
        remedy = home_command(self.home, f"snapshots show {report.id}") + "  # shows the reasons"
        verdict = Verdict.FINDING if report.is_complete else Verdict.UNPROVED
        return Check("snapshot", verdict, summary + ", not good", warnings, (remedy,))

    def _drill(self) -> Check:
        snapshot, options = self.snapshot, self.options
        assert snapshot is not None
        assert snapshot.path is not None
        if snapshot.is_encrypted and options.decryption is None:
            words = f"drill {shell_word(snapshot.path)} --identity FILE"
            remedy = home_command(self.home, words) + "  # where the identity is"
            return Check("drill", Verdict.UNPROVED, "no identity to decrypt it", (), (remedy,))
        drill_options = DrillOptions(
            decryption=options.decryption,
            key_file=options.key_file,
            key_home=self.home,
            key_environment=options.environment,
            scratch=options.scratch,
            keep=options.keep,
            require_authentic=options.require_authentic,
            scratch_server=options.scratch_server,
        )
        with incomplete_step():
            report = drill(snapshot.path, drill_options, progress=self.progress)
        self.drill_report = report
        details = tuple(f"{finding.check}: {finding.text}" for finding in report.findings)
        summary = f"restored in {report.seconds:.1f} s, {len(report.checked)} checks passed"
        summary += f", on PostgreSQL {report.server.version}" if report.server else ""
        if report.outcome != PROVED or report.not_recorded:
            details = (*details, *filter(None, [report.not_recorded]))
            remedy = home_command(self.home, f"drill {report.snapshot_id}")
            return Check("drill", Verdict.UNPROVED, summary, details, (remedy,))
        remedies = tuple(home_command(self.home, name) for name in ("db check", "keys check"))
        verdict = Verdict.FINDING if details else Verdict.OK
        return Check("drill", verdict, summary, details, remedies if details else ())

    def _rehearse_upgrade(self) -> Check:
        """Upgrade a copy of the database, unless the drill did."""
        if isinstance(self.database, PostgresUrl):
            migrated = run_interruptibly(
                rehearse_postgres.rehearse,
                self.database,
                wait_seconds=self.options.wait_seconds,
                progress=self.progress,
            )
            after = " and ".join(migrated.after)
            summary = f"{len(migrated.ran)} revisions to {after}, {migrated.seconds:.1f} s"
            return Check("upgrade", Verdict.OK, summary if migrated.ran else f"already at {after}")
        if not os.path.lexists(self.database.path):
            return Check("upgrade", Verdict.SKIPPED, "no database")
        done = (self.drill_report and self.drill_report.upgrade) or self._upgrade_copy(
            self.database.path
        )
        details = tuple(f"{name}: would not be added, {why}" for name, why in done.failed.items())
        revision = done.after.revision or "no revision"
        summary = f"already at {revision}"
        if done.added:
            summary = (
                f"{len(done.added)} additions to {revision}, no row changes, {done.seconds:.1f} s"
            )
        if details:
            remedy = home_command(self.home, "db check")
            return Check("upgrade", Verdict.FINDING, summary, details, (remedy,))
        return Check("upgrade", Verdict.OK, summary, done.added)

    def _parent(self) -> Path:
        """Return the directory for a scratch directory: writable, without a snapshot."""
        return work_parent(self.home.root, self.options.scratch, snapshots=self.options.snapshots)

    def _upgrade_copy(self, database: Path) -> Upgrade:
        directory, keep = self._parent(), self.options.keep
        with locks.sweep_guard(directory):
            catalog.sweep(directory)
        with scratch_directory(directory, self.options.snapshots, keep=keep) as scratch:
            return rehearse_upgrade(
                database,
                scratch,
                wait_seconds=self.options.wait_seconds,
                keep=(lambda _inner: None) if keep else None,
                progress=self.progress,
            )


def home_command(home: Home, words: str) -> str:
    """Return a command of this program for a home."""
    return f"sagewai-ops --home {shell_word(home.root)} {words}"


def check_use(home: Home, environment: Mapping[str, str]) -> Check:
    """Check that no process or session uses the home; call it before opening the database here."""
    users, sessions = find_users(*home.databases, root=home.root), home_sessions(home, environment)
    names = (*map(describe, users), *describe_sessions(sessions))
    if not names:
        return Check("use", Verdict.OK, "not in use")
    summary = f"in use by {len(users) + len(sessions)} processes, stop them before an upgrade"
    commands = stop_command(users, home.database).splitlines()
    return Check("use", Verdict.WARNING, summary, names, tuple(commands))


def check_layout(home: Home, environment: Mapping[str, str]) -> Check:
    """Check for files of the older layout and for interrupted runs.

    Raises:
        LockedError: A restore was interrupted.
    """
    report = migrate_layout(home, environment, dry_run=True)
    remedy = home_command(home, "migrate-layout")
    layout = layout_of(home.root)
    if pending_operations(home.root, [LAYOUT_MIGRATION]):
        remedy = home_command(home, "recover")
        summary = "interrupted layout migration"
        return Check("layout", Verdict.FINDING, summary, report.warnings, (remedy,))
    if not report.steps and not report.left:
        return Check(
            "layout", Verdict.WARNING if report.notes else Verdict.OK, layout, report.notes
        )
    return Check(
        "layout",
        Verdict.FINDING,
        f"{layout}, {len(report.items) or len(report.left)} files of the older layout",
        tuple(
            dict.fromkeys(
                (
                    *(
                        f"{item.name}: {item.action.value} {item.detail}".rstrip()
                        for item in report.items
                    ),
                    *(f"{path}: {reason}" for path, reason in report.left.items()),
                    *report.notes,
                )
            )
        ),
        (
            *([remedy] if report.steps else []),
            *(f"ls -l {shell_word(home.root / path)}  # and move it away" for path in report.left),
        ),
    )


def check_permissions(home: Home, options: PreflightOptions, progress: Progress | None) -> Check:
    """Check permissions by the rules of `verify-perms`."""
    refused_key = refused_variable(options.environment)
    report = verify(home, options.snapshots, refused_key=refused_key, progress=progress)
    findings = report.inspection.findings
    errors, warnings = (report.inspection.count(severity) for severity in Severity)
    summary = f"{errors} errors, {warnings} warnings in {report.inspection.entries} entries"
    if not findings:
        return Check("permissions", Verdict.OK, summary)
    remedies = [home_command(home, "verify-perms --fix")] if report.changes else []
    for finding in findings:
        if finding.rule.id == "P012":
            remedies.append(home_command(home, "migrate-layout"))
        elif finding.repaired is None:
            advice = finding.rule.advice or "outside the home: use chmod, chown or setfacl -b"
            remedies.append(f"ls -ld {shell_word(finding.path)}  # {advice}")
    return Check(
        "permissions",
        Verdict.FINDING if errors else Verdict.WARNING,
        summary,
        tuple(
            f"{finding.rule.id} {finding.rule.severity.value} {finding.path}: {finding.message}"
            for finding in findings
        ),
        tuple(dict.fromkeys(remedies)),
    )


def check_all_keys(home: Home, environment: Mapping[str, str], key_file: Path | None) -> Check:
    """Open every encrypted value, and look for plaintext secrets.

    Raises:
        KeyMissingError: No encrypted value opens.
    """
    found = check_keys(home, environment, key_file=key_file)
    report = found.report
    check_command = home_command(home, "keys check --extra-key FILE")
    if report.total and not found.opened:
        rejected = found.rejected
        remedy = _key_remedy(home, rejected) if rejected else _install_key(home.master_key)
        raise KeyMissingError(
            f"none of {report.total} encrypted values opens", hint=f"{check_command}\n{remedy}"
        )
    key_option = f" --extra-key {shell_word(key_file)}" if key_file else ""
    summary = f"{report.opened} of {report.total} encrypted values open"
    if found.key:
        summary += f", Sagewai's key is {found.key.fingerprint} from {found.key.source}"
    details: list[str] = []
    remedies: list[str] = []
    if found.rejected:
        details.append(
            f"{found.rejected.source}: {found.rejected.problem}; Sagewai would replace "
            f"{home.master_key} with a new key"
        )
        remedies.append(_key_remedy(home, found.rejected))
    if report.unopened:
        details += [
            f"unopened: {item.place} {item.where}, {item.reason}" for item in report.unopened
        ]
        remedies.append(f"{check_command}  # with the key that opens it")
    if found.key and found.lost_to_sagewai:
        details.append(f"{len(found.lost_to_sagewai)} values open only with another key")
        rotate = home_command(home, f"keys rotate --recipient age1...{key_option}")
        remedies.append(f"{rotate}  # or --passphrase-file FILE; re-encrypts all with one key")
    elif found.lost_to_sagewai and not found.rejected:
        details.append(f"{home.master_key}: not found, Sagewai would create a new key")
        remedies.append(_install_key(home.master_key, key_file))
    plaintext = [item for item in found.plaintext if item.finding]
    if plaintext:
        details += [
            f"plaintext: {item.place} {item.where}, {item.habit.value}" for item in plaintext
        ]
        remedies.append(home_command(home, "keys check") + "  # then save each in Sagewai again")
    for name, reason in found.unread.items():
        details.append(f"{name}: {reason}")
        path = home.overrides.get(name.rpartition("/")[2], home.root / name)
        is_server = name == home.server_url_variable
        remedy = home_command(home, "db check") if is_server else f"ls -l {shell_word(path)}"
        remedies.append(remedy)
    verdict = Verdict.FINDING if details else Verdict.OK
    return Check("keys", verdict, summary, tuple(details), tuple(remedies))


def _key_remedy(home: Home, key: Candidate) -> str:
    """Return the command after which Sagewai accepts a key."""
    if key.source == ENVIRONMENT:
        return f"unset {ENVIRONMENT}  # in Sagewai's service, or set the right key"
    if key.path is None:
        return "keyring del sagewai-master-key sealed  # or set the right key there"
    if not key.value:
        return _install_key(key.path)
    if key.path.is_symlink():
        return f"chmod 600 {shell_word(os.path.realpath(key.path))}"
    return home_command(home, "verify-perms --fix")


def _install_key(path: Path, source: Path | None = None) -> str:
    words = shlex.join(["install", "-m", "0600", os.fspath(source or "FILE"), os.fspath(path)])
    return words if source else f"{words}  # with the right key in FILE"


def check_tables(
    home: Home,
    database: SqliteUrl | PostgresUrl,
    options: PreflightOptions,
    progress: Progress | None,
) -> Check:
    """Check for damage, broken references, and drift that no upgrade repairs.

    Raises:
        DamagedError: SQLite's integrity check failed.
        OpsError: The database cannot be read.
    """
    findings: Iterable[Finding]
    wait_seconds = options.wait_seconds
    if isinstance(database, PostgresUrl):
        server = run_interruptibly(check_postgres, database, wait_seconds=wait_seconds)
        findings, rows = server.findings, server.rows
        state = f"{server.database.position.state}, {size(server.size_bytes)}"
        drift = [finding.shown for finding in findings if finding.kind == "drift"]
    else:
        if not os.path.lexists(database.path):
            hint = home_command(home, "init")
            raise NotFoundError(f"database {database.path}: not found", hint=hint)
        checked = check_database(database.path, wait_seconds=wait_seconds, progress=progress)
        findings, rows, state = checked.findings, checked.rows, checked.level.state
        with open_moment(database.path, wait_seconds=wait_seconds) as transaction:
            differences = find_drift(transaction.connection)
        drift = [item.shown for item in differences if not item.is_addable]
    broken = [finding for finding in findings if finding.kind in _BROKEN]
    for finding in broken:
        if finding.kind == "integrity":
            hint = home_command(home, _RESTORE_DATABASE)
            raise DamagedError(f"database {database.display}: {finding.shown}", hint=hint)
    summary = f"{sum(rows.values())} rows in {len(rows)} tables, schema {state}"
    details = (
        *(f"{finding.kind}: {finding.shown}" for finding in broken),
        *(f"drift: {difference}" for difference in drift),
    )
    if not details:
        return Check("database", Verdict.OK, summary + ", undamaged")
    verdict = Verdict.FINDING if broken else Verdict.WARNING
    return Check("database", verdict, summary, details, (home_command(home, "db check"),))


def check_space(home: Home, options: PreflightOptions, scratch: Path) -> Check:
    """Compare free space with what a snapshot, its drill and a restore need.

    Raises:
        NoSpaceError: Less is free than they need at least.
    """
    space = compare_space(home, options.snapshots, scratch, has_snapshot=bool(options.backup))
    if not space.is_short:
        return Check("space", Verdict.OK, f"enough for {space.content_bytes} bytes of content")
    summary = "may not be enough for a snapshot, its drill and a restore"
    return Check("space", Verdict.WARNING, summary, space.details, space.remedies)
