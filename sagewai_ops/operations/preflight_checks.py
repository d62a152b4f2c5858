"""The checks of a preflight that look at a home as it is, and change nothing.

Each gives one `Check`: a verdict, a sentence, what is behind it, and the commands that mend it.
"""

import os
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from sagewai_ops.database.sqlite.in_use import find_users, stop_command
from sagewai_ops.database.sqlite.read_transaction import open_read_transaction, size_of
from sagewai_ops.database.url import PostgresUrl, SqliteUrl
from sagewai_ops.errors import (
    EXIT_DONE,
    EXIT_FINDINGS,
    EXIT_INCOMPLETE,
    DamagedError,
    KeyMissingError,
    NotFoundError,
)
from sagewai_ops.fs.free_space import free_bytes, nearest_existing, require_free_bytes
from sagewai_ops.home.paths import SIDECAR_SUFFIXES, Home, layout_of
from sagewai_ops.keys.candidates import ENVIRONMENT, Candidate, refused_variable
from sagewai_ops.operations.check_keys import check_keys
from sagewai_ops.operations.migrate_layout import migrate_layout
from sagewai_ops.operations.status import walk_sizes
from sagewai_ops.permissions.rules import Severity
from sagewai_ops.permissions.verify import verify
from sagewai_ops.process.procfs import describe
from sagewai_ops.process.signals import run_interruptibly
from sagewai_ops.progress import Progress
from sagewai_ops.schema.check_postgres import check_postgres
from sagewai_ops.schema.check_sqlite import check_database
from sagewai_ops.schema.drift import find_drift
from sagewai_ops.schema.findings import Finding
from sagewai_ops.swap.pending import LAYOUT_MIGRATION, pending_operations
from sagewai_ops.text import shell_word

# What of `db check` bears on an upgrade; the rest is about values on their way to PostgreSQL.
_LEAST_ARCHIVE_SHARE = 0.2  # of the content; below that no archive of a home was ever seen
_BROKEN = ("integrity", "foreign-key", "sequence", "index")


class Verdict(str, Enum):
    """What a check comes to."""

    OK = "ok"
    WARNING = "warning"  # should be known; a failure with --strict alone
    FINDING = "finding"  # wrong, and can be mended
    FAILED = "failed"  # could not be done, with the exit code of its error
    UNPROVED = "unproved"  # asked for and not possible here
    SKIPPED = "skipped"  # not asked for, or without sense after what failed before


_CODES = {Verdict.FINDING: EXIT_FINDINGS, Verdict.UNPROVED: EXIT_INCOMPLETE}


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the table.

    Attributes:
        name: `use`, `layout`, `permissions`, `keys`, `database`, `space`, `snapshot`, `drill` or
            `upgrade`.
        summary: One sentence.
        details: What is behind it, one line each.
        mend: Commands, one a line.
        error_code: The exit code of what failed; 0 where nothing did.
    """

    name: str
    verdict: Verdict
    summary: str
    details: tuple[str, ...] = ()
    mend: tuple[str, ...] = ()
    error_code: int = 0
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """The exit code that this line alone would give."""
        return self.error_code or _CODES.get(self.verdict, EXIT_DONE)


def home_command(home: Home, words: str) -> str:
    """Spell a command of ours for this home."""
    return f"sagewai-ops --home {shell_word(home.root)} {words}"


def check_use(home: Home) -> Check:
    """Name the processes that have the database open; ask before it is opened here."""
    if home.server_url_variable:
        return Check("use", Verdict.OK, f"the tables are on a server, {home.server_url_variable}")
    users = find_users(home.database)
    if not users:
        return Check("use", Verdict.OK, "no process has the database open")
    return Check(
        "use",
        Verdict.WARNING,
        f"{len(users)} processes have the database open, stop them before an upgrade",
        tuple(describe(user) for user in users),
        tuple(filter(None, [stop_command(users)])),
    )


def check_layout(home: Home, environment: Mapping[str, str]) -> Check:
    """Look for files of the older layout and for runs that were interrupted.

    Raises:
        LockedError: A restore was interrupted.
    """
    report = migrate_layout(home, environment, dry_run=True)
    plan, mend = report.plan, home_command(home, "migrate-layout")
    layout = layout_of(home.root)
    if pending_operations(home.root, [LAYOUT_MIGRATION]):
        text = "layout migration pending, interrupted before its end"
        mend = home_command(home, "recover")
        return Check("layout", Verdict.FINDING, text, report.warnings, (mend,))
    if plan.steps or plan.left:
        details = [
            f"{item.name}: {item.action.value} {item.detail}".rstrip() for item in plan.items
        ]
        details += [f"{path}: {reason}" for path, reason in plan.left.items()]
        away = [f"ls -l {shell_word(home.root / path)}  # look, and move it away"
                for path in plan.left]  # fmt: skip
        return Check(
            "layout",
            Verdict.FINDING,
            f"{layout}, {len(plan.items) or len(plan.left)} files of the older layout",
            tuple(dict.fromkeys((*details, *plan.notes))),
            (*([mend] if plan.steps else []), *away),
        )
    if plan.notes:
        return Check("layout", Verdict.WARNING, layout, plan.notes)
    return Check("layout", Verdict.OK, layout)


def check_permissions(
    home: Home, directory: Path, environment: Mapping[str, str], progress: Progress | None
) -> Check:
    """Hold everything against the rules of `verify-perms`."""
    found = verify(home, directory, refused_key=refused_variable(environment), progress=progress)
    errors, warnings = (found.inspection.count(severity) for severity in Severity)
    summary = f"{errors} errors, {warnings} warnings in {found.inspection.entries} entries"
    if not found.inspection.findings:
        return Check("permissions", Verdict.OK, summary)
    mend = [home_command(home, "verify-perms --fix")] if found.changes else []
    for one in found.inspection.findings:
        if one.rule.id == "P012":
            mend.append(home_command(home, "migrate-layout"))
        elif one.wanted is None:
            advice = one.rule.advice or "outside of the home: chmod, chown or setfacl -b it by hand"
            mend.append(f"ls -ld {shell_word(one.path)}  # {advice}")
    return Check(
        "permissions",
        Verdict.FINDING if errors else Verdict.WARNING,
        summary,
        tuple(
            f"{one.rule.id} {one.rule.severity.value} {one.path}: {one.wrong}"
            for one in found.inspection.findings
        ),
        tuple(dict.fromkeys(mend)),
    )


def check_all_keys(home: Home, environment: Mapping[str, str], key_file: Path | None) -> Check:
    """Open every sealed value, and look for secrets in the clear.

    Raises:
        KeyMissingError: There are sealed values, and none opens.
    """
    found = check_keys(home, environment, key_file=key_file)
    report = found.report
    if report.total and not found.opened:
        mended = (
            _mended_key(home, found.replaced) if found.replaced else _right_key(home.master_key)
        )
        raise KeyMissingError(
            f"{report.total} sealed values and none opens",
            hint=home_command(home, "keys check --extra-key FILE") + f"\n{mended}",
        )
    key_option = f" --extra-key {shell_word(key_file)}" if key_file else ""
    summary = f"{report.opened} of {report.total} sealed values open"
    if found.key:
        summary += f", Sagewai's key is {found.key.fingerprint} from {found.key.source}"
    details: list[str] = []
    mend: list[str] = []
    if found.replaced:
        details.append(f"{found.replaced.source}: {found.replaced.problem}; Sagewai would write"
                       f" a new key over {home.master_key}")  # fmt: skip
        mend.append(_mended_key(home, found.replaced))
    if report.unopened:
        details += [f"closed: {one.place} {one.where}, {one.reason}" for one in report.unopened]
        mend.append(
            home_command(home, "keys check --extra-key FILE") + "  # with the key that opens it"
        )
    if found.key and found.lost_to_sagewai:
        details.append(f"{len(found.lost_to_sagewai)} values open with another key than Sagewai's")
        words = f"keys rotate --recipient age1...{key_option}"
        mend.append(
            home_command(home, words) + "  # or --passphrase-file FILE; brings all under one key"
        )
    elif found.lost_to_sagewai and not found.replaced:
        details.append(f"{home.master_key}: is not there, Sagewai would write a new key")
        mend.append(_right_key(home.master_key, key_file))
    clear = [one for one in found.plaintext if one.is_finding]
    if clear:
        details += [f"in clear: {one.place} {one.where}, {one.habit.value}" for one in clear]
        mend.append(home_command(home, "keys check") + "  # names them; save each again in Sagewai")
    details += [f"{path}: {why}" for path, why in found.unread.items()]
    for path in found.unread:
        is_server = path == home.server_url_variable
        place = home.overrides.get(path.rpartition("/")[2], home.root / path)
        mend.append(home_command(home, "db check") if is_server else f"ls -l {shell_word(place)}")
    if not details:
        return Check("keys", Verdict.OK, summary)
    return Check("keys", Verdict.FINDING, summary, tuple(details), tuple(mend))


def _mended_key(home: Home, key: Candidate) -> str:
    """Give the command that makes Sagewai take a key again."""
    if key.source == ENVIRONMENT:
        return f"unset {ENVIRONMENT}  # where Sagewai's service gets it from, or set the right key"
    if key.path is None:
        return "keyring del sagewai-master-key sealed  # or set the right key there"
    if not key.value:
        return _right_key(key.path)
    if key.path.is_symlink():
        return f"chmod 600 {shell_word(os.path.realpath(key.path))}"
    return home_command(home, "verify-perms --fix")


def _right_key(place: Path, file: Path | None = None) -> str:
    words = shlex.join(["install", "-m", "0600", os.fspath(file or "FILE"), os.fspath(place)])
    return words if file else f"{words}  # with the right key in FILE"


def check_tables(
    home: Home,
    database: SqliteUrl | PostgresUrl,
    wait_seconds: float,
    progress: Progress | None,
) -> Check:
    """Look for damage, broken references, and differences that no upgrade mends.

    Raises:
        DamagedError: SQLite's integrity check found something.
        OpsError: It cannot be read.
    """
    findings: Iterable[Finding]
    if isinstance(database, PostgresUrl):
        server = run_interruptibly(check_postgres(database, wait_seconds=wait_seconds))
        findings, rows = server.findings, server.rows
        drift = [one.shown for one in findings if one.kind == "drift"]
        state = server.database.position.state
    else:
        if not os.path.lexists(database.path):
            raise NotFoundError(
                f"database {database.path}: does not exist", hint=home_command(home, "init")
            )
        checked = check_database(database.path, wait_seconds=wait_seconds, progress=progress)
        findings, rows, state = checked.findings, checked.rows, checked.level.state
        with open_read_transaction(database.path, wait_seconds=wait_seconds) as pin:
            drift = [one.shown for one in find_drift(pin.connection) if not one.is_mended]
    broken = [one for one in findings if one.kind in _BROKEN]
    torn = [one.shown for one in broken if one.kind == "integrity"]
    if torn:
        raise DamagedError(
            f"database {database.display}: {torn[0]}",
            hint=home_command(home, "restore latest --only db --replace"),
        )
    summary = f"{sum(rows.values())} rows in {len(rows)} tables, schema {state}"
    details = (
        *(f"{one.kind}: {one.shown}" for one in broken),
        *(f"drift: {one}" for one in drift),
    )
    if not details:
        return Check("database", Verdict.OK, summary + ", undamaged")
    verdict = Verdict.FINDING if broken else Verdict.WARNING
    return Check("database", verdict, summary, details, (home_command(home, "db check"),))


def check_space(home: Home, directory: Path, scratch: Path, *, takes_snapshot: bool) -> Check:
    """Compare what is free with what a snapshot, its drill and a restore take.

    Raises:
        NoSpaceError: Not even the least that they were ever seen to take is free.
    """
    content = sum(size_bytes for _part, size_bytes in walk_sizes(home.root))
    database = sum(size_of(home.database.with_name(home.database.name + suffix))
                   for suffix in ("", *SIDECAR_SUFFIXES))  # fmt: skip
    if not home.database.is_relative_to(home.root):
        content += database
    least, most = _demands(directory, scratch, content, database, takes_snapshot=takes_snapshot)
    places = {"snapshots": directory, "scratch": scratch, "home": home.root}
    details = []
    is_short = False
    for name, path in places.items():
        there = nearest_existing(path)
        free = free_bytes(there)
        require_free_bytes(
            path, least.get(os.stat(there).st_dev, 0), option="--snapshots DIR, --work-dir DIR"
        )
        # Beside the home, a restore needs as much as it holds: the way back from a bad upgrade.
        wanted = most.get(os.stat(there).st_dev, 0) + (content if name == "home" else 0)
        is_short = is_short or free < wanted
        details.append(f"{name} {path}: {free} bytes free, up to {wanted} are needed")
    if is_short:
        summary = "little: it may not do for a snapshot, its drill and a restore"
        mend = tuple(f"df -h {shell_word(nearest_existing(path))}" for path in places.values())
        return Check("space", Verdict.WARNING, summary, tuple(details), tuple(dict.fromkeys(mend)))
    return Check("space", Verdict.OK, f"enough for {content} bytes of content", ())


def _demands(
    directory: Path, scratch: Path, content: int, database: int, *, takes_snapshot: bool
) -> tuple[dict[int, int], dict[int, int]]:
    """Give the least and the most bytes that are needed, by file system."""
    if not takes_snapshot:
        device = os.stat(nearest_existing(scratch)).st_dev
        return {device: database}, {device: database}
    store, room = (os.stat(nearest_existing(path)).st_dev for path in (directory, scratch))
    share = int(content * _LEAST_ARCHIVE_SHARE)
    # The copy of the database is gone when the drill begins.
    if store == room:
        return {store: share + max(database, content)}, {store: content + max(database, content)}
    return {store: share + database, room: content}, {store: content + database, room: content}
