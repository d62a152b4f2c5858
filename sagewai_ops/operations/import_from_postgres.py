"""Import the tables of a server to the SQLite file of a home: `export-to-postgres` in reverse.

The rows of one snapshot of the server are written to a database next to the target, read a second
time and compared by value; the database is checked, and only then renamed into place. The server is
only read. Until the rename the target is unchanged, and what it replaces is kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from sagewai_ops import __version__
from sagewai_ops.database.postgres.sessions import describe_sessions, find_sessions
from sagewai_ops.database.sqlite.in_use import require_unused
from sagewai_ops.database.sqlite.online_copy import copy_database
from sagewai_ops.database.sqlite.raw_copy import FileStates, file_states
from sagewai_ops.database.sqlite.read_transaction import open_frozen, quoted
from sagewai_ops.database.sqlite.vectors import count_vectors, vector_tables
from sagewai_ops.database.url import PostgresUrl
from sagewai_ops.errors import (
    EXIT_DONE,
    EXIT_FINDINGS,
    EXIT_INCOMPLETE,
    DamagedError,
    NotFoundError,
    OpsError,
    TargetBusyError,
    UsageError,
)
from sagewai_ops.export.mapping.findings import Finding, count_rows
from sagewai_ops.export.workdir import export_directory
from sagewai_ops.fs import atomic, beneath, locks
from sagewai_ops.fs.free_space import require_free_bytes
from sagewai_ops.fs.given_files import resolve_given_path
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.fs.ownership import set_owner
from sagewai_ops.fs.volumes import names_in
from sagewai_ops.home.paths import DATABASE, PARTS, Home, is_home, locate
from sagewai_ops.home.server_record import PLACE, read_server_record, record_of
from sagewai_ops.home.state_files import read_documents
from sagewai_ops.keys.candidates import find_candidates
from sagewai_ops.keys.trial_decryption import try_keys
from sagewai_ops.operations.import_results import ImportedTable, ImportFiles, ImportResult
from sagewai_ops.operations.init import DATA_PARTS
from sagewai_ops.process.threads import ThreadPool
from sagewai_ops.progress import Progress
from sagewai_ops.records import dataclass
from sagewai_ops.restore.access import count_other_fleet
from sagewai_ops.restore.companions import companion_warnings
from sagewai_ops.restore.compare_sqlite import compare_database
from sagewai_ops.restore.conversion import ConversionPlan, plan_conversion
from sagewai_ops.restore.plan import replaced_database
from sagewai_ops.restore.server_stream import ServerStream
from sagewai_ops.restore.to_sqlite import Built, build_database
from sagewai_ops.schedule.installed import find_schedules
from sagewai_ops.schema import sqlite_head
from sagewai_ops.schema.revision_graph import HEAD
from sagewai_ops.snapshots.database_check import DatabaseFacts, examination_thread
from sagewai_ops.snapshots.server_database import ServerFacts
from sagewai_ops.swap import pending, swap
from sagewai_ops.text import listed, printable, shell_word

if TYPE_CHECKING:
    from sagewai_ops.database.postgres.snapshot_session import Server

MOVE: Literal["move"] = "move"
PLAN: Literal["plan"] = "plan"
FAIL: Literal["fail"] = "fail"
QUARANTINE: Literal["quarantine"] = "quarantine"

# The time of an import, as a multiple of the time that a plan takes; docs/export.md.
MOVE_PER_PLAN = 2.0
_WAIT_SECONDS = 30.0  # for a table that another session alters, at least


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """The options of an import.

    Attributes:
        purpose: `move`, or `plan`: convert everything, change nothing.
        policy: What happens to rows that SQLite cannot have.
        allow_live: Proceed although other sessions use the server's database: rows that are
            written afterwards are not imported. The home must not be in use in any case.
        report: Path of the report; None for the default path next to the home, and for no report
            of a plan.
        wait_seconds: For another run on the home, and for locked tables.
        environment: May contain a master key, and variables that name the server.
    """

    purpose: Literal["move", "plan"] = MOVE
    policy: Literal["fail", "quarantine"] = FAIL
    allow_live: bool = False
    report: Path | None = None
    wait_seconds: float = 0.0
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(slots=True)
class _Work:
    """The state of one run; its result is filled in as the run proceeds."""

    home: Home
    url: PostgresUrl
    options: ImportOptions
    progress: Progress | None
    path: Path | None
    started_at: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    facts: ServerFacts | None = None
    built: Built | None = None
    findings: tuple[Finding, ...] = ()
    is_imported: bool = False
    is_live: bool = False
    state: FileStates = ()
    refused: int = 0
    learnings: int = 0
    previous: Path | None = None
    notes: list[str] = field(default_factory=list)
    stages: dict[str, float] = field(default_factory=dict)
    files: ImportFiles = field(default_factory=lambda: ImportFiles())


class _UnchangedError(Exception):
    """A plan, or findings: the staging is removed, and nothing is changed."""


def import_from_postgres(
    url: PostgresUrl, home: Home, options: ImportOptions, *, progress: Progress | None = None
) -> ImportResult:
    """Import the tables of a server to a fresh home, or to one whose database has no rows.

    Args:
        url: Includes the password if one is needed.
        home: The target; need not exist.
        progress: Called with `convert` and `compare` in bytes, of an estimated total.

    Returns:
        The result. With open findings nothing was changed.

    Raises:
        NotFoundError: No such database, or one without tables of Sagewai.
        TargetBusyError: The home has rows, or it or the server's database is in use, or was
            changed during the import.
        SchemaAheadError, PermissionDeniedError, UsageError, LockedError: The server or the home
            does not meet the requirements; nothing was changed.
        DifferenceError: SQLite returns another value than the server; nothing was changed.
        RemoteError, NoSpaceError, DamagedError, OpsError: Nothing was changed.
    """
    path = _report_path(home, options)
    work = _Work(home, url, options, progress, path)
    with contextlib.ExitStack() as stack:
        if home.root.is_dir():
            stack.enter_context(locks.exclusive(home.root, wait_seconds=options.wait_seconds))
        pending.require_settled(home.root)
        pending.sweep(home.root)
        paths = _require_target(work)
        work.state = _database_state(work)  # before the database is copied
        with _open_server(work) as stream:
            plan = _plan(work, stream)
            require_free_bytes(home.root, plan.bytes, option="--to DIR")
            staged = swap.staged(home.root, paths, is_free=paths is None)
            with contextlib.suppress(_UnchangedError), staged as stage:
                try:
                    _import(work, stream, plan, stage)
                except BaseException:
                    _remove_refused(work)
                    raise
    return _finish(work)


def _require_target(work: _Work) -> tuple[str, ...] | None:
    """Check the target; return the paths to replace in it, None to create the whole home.

    Raises:
        TargetBusyError: It is in use, or no home.
        UsageError: Its record names another server, or a link leads to its database.
    """
    home, root = work.home, work.home.root
    if os.path.lexists(root) and not root.is_dir():
        raise TargetBusyError(f"{root}: not a directory", hint="import elsewhere: --to DIR")
    if not root.is_dir() or not names_in(root):
        if not root.is_dir() or swap.can_swap_whole(root):
            return None
        return tuple(sorted({path.partition("/")[0] for path in (*PARTS, *DATA_PARTS)}))
    if not is_home(home):
        raise TargetBusyError(
            f"{root}: not empty, and not a home", hint="import to another directory: --to DIR"
        )
    record = read_server_record(root)
    given = record_of(work.url, work.options.environment).display
    if record and record.display != given:
        raise UsageError(
            f"home {root}: its database is {record.display} since"
            f" {printable(record.recorded_at)}, not {given}",
            hint=f"rm {shell_word(root / PLACE)}  # if it is the same, or no longer used",
        )
    database = root / DATABASE
    if os.path.realpath(database) != os.fspath(database):
        raise UsageError(
            f"{database}: reached through a link, not replaced",
            hint="import to another directory: --to DIR",
        )
    _require_unused(work)
    paths = replaced_database(root)
    return (*paths, PLACE) if DATABASE in paths else tuple(paths)


def _require_unused(work: _Work) -> None:
    if work.options.purpose == MOVE:
        require_unused(work.home.root, work.home.root / DATABASE)


def _database_state(work: _Work) -> FileStates:
    database = work.home.root / DATABASE
    with translate_os_errors(database):
        return file_states(database)


def _require_unchanged(work: _Work, stream: ServerStream) -> None:
    """Check that neither side is in use, or was changed since it was read.

    Raises:
        TargetBusyError: One is, or was; of the server, unless the import is a rehearsal.
    """
    from sagewai_ops.database.postgres.snapshot_session import open_snapshot

    with open_snapshot(work.url, wait_seconds=_wait_seconds(work)) as session:
        if changed := stream.changed_tables(session):
            _note_use(work, f"changed during the import: {listed(changed)}")
        session.run(lambda server: _require_no_sessions(work, server))
    _require_unused(work)
    if _database_state(work) != work.state:
        root = work.home.root
        raise TargetBusyError(
            f"home {root}: its database was changed during the import",
            hint=f"sagewai-ops --home {shell_word(root)} status  # then run it again",
        )


@contextlib.contextmanager
def _open_server(work: _Work) -> Iterator[ServerStream]:
    """Open a snapshot of the server for the block, and check that nothing else uses it.

    Raises:
        TargetBusyError: Another session is on the database.
        OpsError: It is not reachable, or refuses.
    """
    from sagewai_ops.database.postgres.snapshot_session import open_snapshot
    from sagewai_ops.schema.postgres_catalog import read_catalog

    with open_snapshot(work.url, wait_seconds=_wait_seconds(work)) as session:
        session.run(lambda server: _require_no_sessions(work, server))
        catalog = session.run(lambda server: read_catalog(server, lambda *_table: True))
        yield ServerStream(session, catalog)


def _wait_seconds(work: _Work) -> float:
    return max(work.options.wait_seconds, _WAIT_SECONDS)


async def _require_no_sessions(work: _Work, server: Server) -> None:
    if work.options.purpose == PLAN:
        return
    await server.execute("SELECT pg_catalog.pg_stat_clear_snapshot()")
    if sessions := await find_sessions(server):
        _note_use(work, f"in use by {', '.join(describe_sessions(sessions))}")


def _note_use(work: _Work, state: str) -> None:
    """Refuse a server that is in use; in a rehearsal, note that later rows are missing.

    Raises:
        TargetBusyError: It is not a rehearsal.
    """
    if not work.options.allow_live:
        raise TargetBusyError(
            f"{work.url.display}: {state}",
            hint="stop Sagewai, or rehearse: sagewai-ops import-from-postgres --allow-live",
        )
    work.is_live = True


def _plan(work: _Work, stream: ServerStream) -> ConversionPlan:
    """Count the rows of the server, and plan their conversion."""
    with _timed(work, "count"):
        facts = work.facts = stream.facts()
    if not any(table.name in sqlite_head.tables() for table in facts.tables):
        raise NotFoundError(
            f"{work.url.display}: has no tables of Sagewai",
            hint="psql URL -c '\\dt'  # another database, or another schema",
        )
    plan = plan_conversion(
        facts, source=work.url.display, hint="install a newer sagewai-ops, then run it again"
    )
    for item in facts.unstored:
        if item.is_data:
            finding = Finding(item.name, "", "not-read", f"{item.kind}: {item.reason}")
            work.findings = (*work.findings, finding)
        else:
            work.notes.append(f"not in the home: {item.text}")
    for table, column in stream.computed_columns():
        if table in plan.schema and column in plan.schema[table].columns:
            detail = "the server computes it, so it is not read"
            work.findings = (*work.findings, Finding(table, printable(column), "not-read", detail))
        else:
            place = f"{printable(table)}.{printable(column)}"
            work.notes.append(f"not in the home: column {place}, which the server computes")
    if facts.level != HEAD:
        work.notes.append(
            f"the database is at revision {printable(facts.level)}, not at {HEAD}:"
            " sagewai-ops db upgrade"
        )
    return plan


def _import(work: _Work, stream: ServerStream, plan: ConversionPlan, stage: swap.Staged) -> None:
    """Build, compare and check the database, and put it in place.

    Raises:
        _UnchangedError: It is a plan, or there are findings that the policy does not accept.
    """
    options, staged = work.options, locate(stage.content, {})
    _prepare(work, staged, stage)
    with _timed(work, "convert"), _refusals(work) as refuse:
        built = work.built = build_database(
            stream.rows, plan, staged.database, refuse=refuse, progress=work.progress
        )
    work.findings = (*built.conversion.findings, *work.findings)
    work.notes += built.conversion.warnings
    if options.purpose == PLAN or (work.findings and options.policy == FAIL):
        raise _UnchangedError
    with (
        _timed(work, "compare"),
        ThreadPool(1, thread_name_prefix="sync") as pool,
        examination_thread() as examine,
    ):
        # What waits for the disk and what runs in SQLite go on while the rows are compared.
        synced = pool.submit(atomic.sync_tree, stage.content)
        examined = examine(staged.database, "full")
        compare_database(
            stream.rows,
            plan,
            staged.database,
            built.omitted,
            source="server",
            progress=work.progress,
        )
        with translate_os_errors(stage.content):
            synced.result()
    with _timed(work, "check"):
        _check(work, staged, examined.result())
    _require_unchanged(work, stream)
    work.notes += companion_warnings(work.home.root, stage.paths)
    if work.is_live:
        work.notes.append(
            f"{work.url.display}: in use, rows that were written during the import or later are"
            " not in the home"
        )
    swap.swap(stage)
    work.is_imported, work.previous = True, stage.before


def _prepare(work: _Work, staged: Home, stage: swap.Staged) -> None:
    """Create the directories of a new home, or copy the database of an existing one.

    Raises:
        TargetBusyError: It has rows.
    """
    root = work.home.root
    with translate_os_errors(root):
        owner = os.stat(root) if root.is_dir() else None
        is_new = stage.paths is None or "config" in stage.paths
        for part in (*PARTS, *DATA_PARTS) if is_new else (DATABASE.partition("/")[0],):
            atomic.make_directory(staged.root / part, owner=owner)
        if owner and stage.paths is None:
            set_owner(staged.root, owner.st_uid, owner.st_gid)
            beneath.set_mode(staged.root, owner.st_mode & 0o7777)
    if is_new or not os.path.lexists(root / DATABASE):
        return
    copy_database(root / DATABASE, staged.database)
    with open_frozen(staged.database) as connection:
        present = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        rows = 0
        for name in present & sqlite_head.tables().keys():
            query = f"SELECT count(*) FROM {quoted(name)}"  # noqa: S608 - a name of the schema
            (count,) = connection.execute(query).fetchone()
            rows += count
        work.learnings = sum(
            count_vectors(connection, table) for table in vector_tables(connection)
        )
    if rows:
        raise TargetBusyError(
            f"home {root}: its database has {rows} rows",
            hint="import to a new directory: --to DIR\n"
            "or keep these rows aside: sagewai-ops backup --url-file FILE, then"
            " sagewai-ops restore latest --replace --to-sqlite",
        )


def _check(work: _Work, staged: Home, report: DatabaseFacts) -> None:
    """Act on the check of the database that was built, and find what opens its encrypted values.

    Raises:
        DamagedError: SQLite found damage.
    """
    if report.integrity:
        raise DamagedError(
            f"database: {'; '.join(report.integrity[:3])}", hint="dmesg  # is the disk damaged?"
        )
    if report.foreign_key_violations:  # of the user's tables; others were omitted
        tables = ", ".join(map(printable, report.foreign_key_tables))
        work.notes.append(f"{report.foreign_key_violations} rows of {tables} refer to no row")
    home = work.home
    candidates = find_candidates(home, dict(work.options.environment))
    keys = try_keys({}, staged.database, candidates)
    if keys.unopened:
        work.notes.append(
            f"{len(keys.unopened)} encrypted values open with no key of this home: copy"
            f" secrets/master.key of the home that used the server to {home.master_key}, mode"
            " 0600, before Sagewai starts, or it creates a new one"
        )
    if fleet := count_other_fleet(read_documents(home), staged, home):
        work.notes.append(
            f"{fleet} fleet rows belong to an organisation id that is derived from the path of the"
            " home that used the server: Sagewai shows them at that path only"
        )


@contextlib.contextmanager
def _refusals(work: _Work) -> Iterator[Callable[[dict[str, Any]], None] | None]:
    """Yield what writes refused rows to a file, which is created for the first; None without."""
    if work.options.purpose == PLAN or work.options.policy == FAIL or work.path is None:
        yield None
        return
    path = work.path.with_suffix(".refused.jsonl")
    with contextlib.ExitStack() as stack:
        streams: list[BinaryIO] = []

        def write(line: dict[str, Any]) -> None:
            if not streams:
                atomic.make_directory(path.parent)
                streams.append(stack.enter_context(atomic.write_stream(path)))
            text = json.dumps(line, ensure_ascii=False)
            streams[0].write(text.encode("utf-8", "backslashreplace") + b"\n")
            work.refused += 1

        yield write
    if work.refused:
        work.files["refused"] = str(path)


def _remove_refused(work: _Work) -> None:
    """Remove the file of an import that failed later, and its directory if that is empty."""
    with contextlib.suppress(OSError):
        if "refused" in work.files:
            beneath.unlink(Path(work.files["refused"]))
        beneath.remove_directory(export_directory(work.home))


def _report_path(home: Home, options: ImportOptions) -> Path | None:
    if options.report is not None:
        with translate_os_errors(options.report):
            path = resolve_given_path(options.report, follow_last=False)
        atomic.require_writable([path.parent])
        return path
    if options.purpose == PLAN:
        return None
    now = datetime.now(timezone.utc)
    return export_directory(home) / f"import-{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}.json"


def _finish(work: _Work) -> ImportResult:
    """Describe the run, and write its report; after an import, a refusal is a note."""
    path = work.path
    if path is None:
        return _describe(work)
    work.files["report"] = str(path)
    try:
        atomic.make_directory(path.parent)
        content = json.dumps(dataclasses.asdict(_describe(work)), indent=1, ensure_ascii=False)
        atomic.replace(path, content.encode("utf-8", "backslashreplace") + b"\n")
    except OpsError as error:
        if not work.is_imported:
            raise
        del work.files["report"]
        work.notes.append(f"report not written: {error.message}")
    return _describe(work)


def _describe(work: _Work) -> ImportResult:
    assert work.facts
    assert work.built
    options, built = work.options, work.built
    omitted = built.omitted
    seconds = sum(work.stages.values())
    open_findings = 0 if work.is_imported else len(work.findings)
    return ImportResult(
        format="sagewai-ops import 1",
        program=f"sagewai-ops {__version__}",
        purpose=options.purpose,
        started_at=f"{work.started_at:%Y-%m-%dT%H:%M:%SZ}",
        source=work.url.display,
        target=str(work.home.root),
        server=work.facts.version,
        revision=work.facts.level,
        policy=options.policy,
        imported=work.is_imported,
        live=work.is_live,
        rows=built.conversion.rows,
        tables=tuple(
            ImportedTable(table.name, table.rows - omitted[table.name])
            for table in work.facts.tables
            if table.name in omitted and table.rows > omitted[table.name]
        ),
        findings=work.findings,
        findings_total=count_rows(work.findings),
        open_findings=open_findings,
        refused=work.refused,
        kept_ids=built.kept_ids,
        learnings=work.learnings,
        previous=str(work.previous) if work.previous else None,
        notes=tuple(work.notes),
        cut_over=_cut_over(work) if work.is_imported else (),
        stages={name: round(seconds, 3) for name, seconds in work.stages.items()},
        estimate_seconds=round(seconds * MOVE_PER_PLAN, 1) if options.purpose == PLAN else 0.0,
        files=work.files,
    )


def exit_code(result: ImportResult) -> int:
    """Return 0 for a complete import, 3 if rows are missing, 4 if findings prevented it."""
    if result.open_findings:
        return EXIT_FINDINGS
    return EXIT_INCOMPLETE if result.findings or result.live else EXIT_DONE


def _cut_over(work: _Work) -> tuple[str, ...]:
    """Return the next steps, each a command to paste or a comment."""
    home, environment = work.home, work.options.environment
    names = [name for name in ("SAGEWAI_DATABASE_URL", "DATABASE_URL") if environment.get(name)]
    here = f"  # here it is {' and '.join(names)}" if names else ""
    return (
        "# stop every Sagewai process that uses the server: server, workers, harness",
        f"unset SAGEWAI_DATABASE_URL DATABASE_URL{here}",
        "# remove both from service units, container files and profiles: they override the home",
        f"sagewai-ops --home {shell_word(home.root)} db check  # before the first start",
        f"SAGEWAI_HOME={shell_word(home.root)} sagewai admin serve",
        "# backups from now on, without --url-file",
        f"sagewai-ops --home {shell_word(home.root)} backup",
        *(
            f"# change the schedule {printable(str(path))}: remove --url-file FILE from backup"
            for path in find_schedules(environment)
        ),
        f"# {home.root} needs config/ and secrets/ of the home that used the server",
        f"# keep {work.url.display} until the next backup: it is unchanged",
    )


@contextlib.contextmanager
def _timed(work: _Work, stage: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    work.stages[stage] = work.stages.get(stage, 0.0) + time.perf_counter() - begin
