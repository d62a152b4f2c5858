"""Everything that an operator wants to know before touching a home: one table, one verdict.

Each check answers with a line, none stops the others, and what failed carries the command that
mends it. Nothing is changed but that a snapshot is taken; what is tried, is tried in a scratch
directory. `preflight_checks` has the checks that only look.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from sagewai_ops.archive.age import Decryption
from sagewai_ops.backup.create import create_snapshot
from sagewai_ops.backup.report import BackupOptions, BackupReport
from sagewai_ops.database.url import PostgresUrl, SqliteUrl, resolve
from sagewai_ops.errors import (
    EXIT_FINDINGS,
    EXIT_INCOMPLETE,
    DamagedError,
    InterruptedRunError,
    KeyMissingError,
    OpsError,
    kind_with,
)
from sagewai_ops.fs import atomic, locks
from sagewai_ops.fs.os_errors import from_os_error
from sagewai_ops.home.paths import Home, require
from sagewai_ops.operations.drill import PROVED, DrillOptions, DrillReport, drill
from sagewai_ops.operations.preflight_checks import (
    Check,
    Verdict,
    check_all_keys,
    check_layout,
    check_permissions,
    check_space,
    check_tables,
    check_use,
    home_command,
)
from sagewai_ops.process.signals import run_interruptibly
from sagewai_ops.progress import Progress
from sagewai_ops.schema import rehearse_postgres
from sagewai_ops.schema.upgrade_sqlite import Upgrade, rehearse_upgrade
from sagewai_ops.snapshots import catalog
from sagewai_ops.snapshots.scratch import scratch_directory
from sagewai_ops.text import shell_word

# Of several exit codes, the one that is told: damage and lost keys before what can be freed,
# granted or waited for, then findings, then what could not be proved (docs/preflight.md).
_HARDEST = (1, 16, 12, 18, 20, 13, 14, 11, 15, 19, 17, 10, 2, EXIT_FINDINGS, EXIT_INCOMPLETE)
_RESTORE_DATABASE = "restore latest --only db --replace"
# What to run for an error that names no remedy of its own.
_TELLS_MORE = {
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


@dataclass(frozen=True, slots=True)
class PreflightOptions:
    """What a preflight is told.

    Attributes:
        environment: Where keys, overrides and the URL of a database come from.
        snapshots: The directory for the snapshot; made with it if it is not there.
        backup: How the snapshot is taken; None takes none.
        decryption: Opens what `backup` encrypts; None where it does not, or nobody here can.
        key_file: One more master key.
        scratch: The directory that things are tried in; None for the snapshots' own.
        is_strict: Warnings count as findings.
        wait_seconds: For another run, and for a process that holds the database.
    """

    environment: Mapping[str, str] = field(repr=False)
    snapshots: Path
    backup: BackupOptions | None = None
    decryption: Decryption | None = None
    key_file: Path | None = None
    scratch: Path | None = None
    is_strict: bool = False
    wait_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class PreflightReport:
    """The table, and what was done for it.

    Attributes:
        checks: In the order in which they are told.
        snapshot: None where none was taken.
        drill: None where none came to its end.
    """

    home: Path
    checks: tuple[Check, ...]
    snapshot: BackupReport | None
    drill: DrillReport | None
    is_strict: bool

    @property
    def exit_code(self) -> int:
        """The hardest of what failed; 0 where nothing did."""
        codes = {check.exit_code for check in self.checks}
        if self.is_strict and any(check.verdict is Verdict.WARNING for check in self.checks):
            codes.add(EXIT_FINDINGS)
        return next((code for code in _HARDEST if code in codes), max(codes))

    @property
    def error(self) -> OpsError | None:
        """What decided the exit code; None where nothing failed or was only found."""
        code = self.exit_code
        for check in self.checks:
            if code not in (0, EXIT_INCOMPLETE, EXIT_FINDINGS) and check.exit_code == code:
                name = f"{check.name}: "
                message = name + check.summary.removeprefix(name)
                return kind_with(code)(message, hint="\n".join(check.mend))
        return None

    @property
    def is_ready(self) -> bool:
        """Whether an upgrade may begin."""
        return self.exit_code == 0


def run_preflight(
    home: Home, options: PreflightOptions, *, progress: Progress | None = None
) -> PreflightReport:
    """Check all of a home.

    Args:
        progress: Told the stages of every check.

    Raises:
        NotFoundError: There is no such home.
        UsageError: The URL of the database cannot be understood.
        InterruptedRunError: A signal came; nothing stays but a snapshot that was taken whole.
    """
    require(home)
    database = resolve(options.environment, home.database)
    flight = _Flight(home, database, options, progress)
    flight.look()
    flight.try_out()
    return PreflightReport(
        home.root, tuple(flight.checks), flight.snapshot, flight.drilled, options.is_strict
    )


@dataclass(slots=True)
class _Flight:
    """A preflight under way."""

    home: Home
    database: SqliteUrl | PostgresUrl
    options: PreflightOptions
    progress: Progress | None
    checks: list[Check] = field(default_factory=list)
    snapshot: BackupReport | None = None
    drilled: DrillReport | None = None

    def look(self) -> None:
        """Run the checks that only look."""
        home, options = self.home, self.options
        takes = options.backup is not None
        scratch = (options.scratch or options.snapshots) if takes else self.room()
        self.add("use", lambda: check_use(home))
        self.add("layout", lambda: check_layout(home, options.environment))
        self.add(
            "permissions",
            lambda: check_permissions(home, options.snapshots, options.environment, self.progress),
        )
        self.add("keys", lambda: check_all_keys(home, options.environment, options.key_file))
        self.add(
            "database",
            lambda: check_tables(home, self.database, options.wait_seconds, self.progress),
        )
        self.add(
            "space", lambda: check_space(home, options.snapshots, scratch, takes_snapshot=takes)
        )

    def try_out(self) -> None:
        """Take a snapshot, drill it, rehearse the upgrade."""
        if self.options.backup is None:
            self.skip("snapshot", "not asked for")
            self.skip("drill", "without a snapshot")
        elif self.checks[-1].verdict is Verdict.FAILED:
            self.skip("snapshot", "there is no space for it")
            self.skip("drill", "without a snapshot")
        else:
            self.add("snapshot", self.take)
            if self.snapshot is None:
                self.skip("drill", "without a snapshot")
            else:
                self.add("drill", self.drill)
        self.add("upgrade", self.rehearse)

    def add(self, name: str, check: Callable[[], Check]) -> None:
        """Run a check; what it raises becomes its line."""
        started = time.monotonic()
        try:
            done = check()
        except InterruptedRunError:
            raise
        except OpsError as error:
            done = self.failed(name, error)
        except OSError as error:
            done = self.failed(name, from_os_error(error, error.filename or "the system"))
        self.checks.append(replace(done, seconds=time.monotonic() - started))

    def failed(self, name: str, error: OpsError) -> Check:
        """Make a line of what a check raised; it names a command, whatever that was."""
        mend = tuple(error.hint.splitlines())
        if isinstance(error, KeyMissingError) and self.snapshot and name == "drill":
            words = f"drill {self.snapshot.id} --install-key FILE"
            mend = (home_command(self.home, words) + "  # with the key that is meant",)
        elif isinstance(error, DamagedError) and not mend:
            mend = (home_command(self.home, _RESTORE_DATABASE),)
        if not mend:
            mend = (home_command(self.home, _TELLS_MORE[name]) + "  # says more",)
        return Check(name, Verdict.FAILED, error.message, mend=mend, error_code=error.exit_code)

    def skip(self, name: str, reason: str) -> None:
        """Note that something was not done."""
        self.checks.append(Check(name, Verdict.SKIPPED, reason))

    def take(self) -> Check:
        """Take a snapshot with the usual options."""
        assert self.options.backup is not None
        report = create_snapshot(
            self.home, self.options.snapshots, self.options.backup, progress=self.progress
        )
        self.snapshot = report
        warnings = tuple(report.warnings())
        summary = f"{report.id}, taken and verified"
        if report.key_fingerprint and report.custody != "sealed":
            summary += f", without its key {report.key_fingerprint}"
        if report.is_complete and report.is_sound:
            return Check("snapshot", Verdict.OK, summary, (*warnings, *report.notes))
        mend = (
            home_command(self.home, f"snapshots show {report.id}")
            + "  # what is not in it, and why",
        )
        verdict = Verdict.FINDING if report.is_complete else Verdict.UNPROVED
        return Check("snapshot", verdict, summary + ", not whole", warnings, mend)

    def drill(self) -> Check:
        """Restore the snapshot for real."""
        assert self.snapshot is not None
        assert self.snapshot.path is not None
        options = self.options
        if self.snapshot.is_encrypted and options.decryption is None:
            words = f"drill {shell_word(self.snapshot.path)} --identity FILE"
            return Check(
                "drill",
                Verdict.UNPROVED,
                "nothing here opens the encrypted snapshot",
                mend=(home_command(self.home, words) + "  # where the identity is",),
            )
        report = drill(
            self.snapshot.path,
            DrillOptions(
                decryption=options.decryption,
                key_file=options.key_file,
                key_home=self.home,
                key_environment=options.environment,
                scratch=options.scratch,
            ),
            progress=self.progress,
        )
        self.drilled = report
        details = tuple(f"{one.check}: {one.text}" for one in report.findings)
        summary = f"restored in {report.seconds:.1f} s, {len(report.checked)} things hold"
        words = f"drill {report.snapshot_id}"
        if report.outcome != PROVED or report.not_recorded:
            details = (*details, *filter(None, [report.not_recorded]))
            return Check(
                "drill", Verdict.UNPROVED, summary, details, (home_command(self.home, words),)
            )
        if details:
            mend = (home_command(self.home, "db check"), home_command(self.home, "keys check"))
            return Check("drill", Verdict.FINDING, summary, details, mend)
        return Check("drill", Verdict.OK, summary)

    def rehearse(self) -> Check:
        """Upgrade a copy, unless the drill did."""
        if isinstance(self.database, PostgresUrl):
            work = rehearse_postgres.rehearse(
                self.database, wait_seconds=self.options.wait_seconds, progress=self.progress
            )
            moved = run_interruptibly(work)
            after = " and ".join(moved.after)
            text = f"{len(moved.ran)} revisions to {after}, {moved.seconds:.1f} s"
            return Check("upgrade", Verdict.OK, text if moved.ran else f"is at {after} already")
        if not os.path.lexists(self.database.path):
            return Check("upgrade", Verdict.SKIPPED, "there is no database")
        done = self.drilled.upgrade if self.drilled else None
        return self.judged(done or self.upgrade_copy(self.database.path))

    def room(self) -> Path:
        """Choose where a scratch directory can be made."""
        chosen = self.options.scratch or self.options.snapshots
        return chosen if os.access(chosen, os.W_OK) else atomic.temporary_directory()

    def upgrade_copy(self, database: Path) -> Upgrade:
        """Upgrade a copy in a scratch directory."""
        directory = self.room()
        with locks.sweep_guard(directory):
            catalog.sweep(directory)
        with scratch_directory(directory, self.options.snapshots) as scratch:
            return rehearse_upgrade(
                database,
                scratch,
                wait_seconds=self.options.wait_seconds,
                progress=self.progress,
            )

    def judged(self, done: Upgrade) -> Check:
        """Say what an upgrade would do."""
        details = tuple(f"{name}: would not be added, {why}" for name, why in done.failed.items())
        at = done.after.revision or "no revision"
        summary = f"is at {at} already"
        if done.added:
            summary = f"{len(done.added)} additions to {at}, no row changes, {done.seconds:.1f} s"
        if details:
            return Check(
                "upgrade", Verdict.FINDING, summary, details, (home_command(self.home, "db check"),)
            )
        return Check("upgrade", Verdict.OK, summary, done.added)
