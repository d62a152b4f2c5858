"""Every command, listed once: what it begins with, its words, what may be.

A command added here goes through every fault of `crash`, and nothing else has to be written; one
that takes no step on files or servers is listed as idle, and that is looked at.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import litestream
from engine_repositories import ENGINES
from proof import beginnings
from proof.beginnings import Bench, Words, opened, recipient, server_url
from proof.worlds import World
from sagewai_ops.database.sqlite.online_copy import DatabaseCopy, copy_database
from sagewai_ops.errors import (
    EXIT_DONE,
    EXIT_FINDINGS,
    EXIT_INCOMPLETE,
    DifferenceError,
    RemoteError,
)
from sagewai_ops.export import export, live_first
from sagewai_ops.export.delta import Delta, apply_delta
from sagewai_ops.swap import mounts

OCCUPIED = 15  # a second run's answer where the first has completed
RECOVER: Words = ("recover",)


@dataclass(frozen=True, slots=True)
class Case:
    """One command in one situation.

    Attributes:
        prepare: Makes what it begins with, in an empty world.
        begin: Done before each run, where a copy of what was prepared is not the same.
        words: Its command line.
        code: The exit code of an undisturbed run.
        variables: Added to its environment.
        within: The circumstances of its runs.
        again: The command line of the run after a fault; the same if None.
        codes_done: What that run may answer where the disturbed one had done all; None if it is
            not to be given again then, because it would do another thing.
        has_failure: A failure is among its circumstances: one more, of a step that undoes what
            that one left half done, may leave the rest to the next run.
        is_idle: It takes no step, so nothing can go wrong at one.
        is_roots: Root runs it with its own rights, because it works on no home.
        owners_only: Root's run on the home of another user is refused.
        in_parts: Its promise is for each file alone: some may be old and some new.
        siblings: Files that are each old or new on their own; one that could not be written is a
            warning.
        may_go_back: What it is to finish may also be undone, and that is well too.
        recover: What is to be run where it was interrupted between old and new.
        on_server: It needs a database on a server.
        drops: In the names of what it may remove in any case, because it can be made again.
        records: In the names of what a run may add that follows a failed one.
        takes_snapshot: A snapshot more may be there after each run.
        has_verdicts: It reports what fails in its table, and its exit code comes from there.
        moves_snapshots: Snapshots may leave the list; then they remain in the trash.
        streams: It writes an archive to stdout.
        by_the_second: It writes moments that are cut to seconds, which two runs may share.
        probe: A question whose answer is the same before, after and whatever happened.
    """

    name: str
    prepare: Callable[[World, Bench], None]
    words: Callable[[World], Words]
    begin: Callable[[World, Bench], None] = beginnings.nothing
    code: int = EXIT_DONE
    variables: Callable[[World], Mapping[str, str]] = field(default=lambda _world: {})
    within: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
    again: Callable[[World], Words] | None = None
    codes_done: tuple[int, ...] | None = (EXIT_DONE,)
    has_failure: bool = False
    is_idle: bool = False
    is_roots: bool = False
    owners_only: bool = False
    in_parts: bool = False
    siblings: tuple[str, ...] = ()
    may_go_back: bool = False
    recover: Words = ()
    drops: str = ""
    records: str = ""
    on_server: bool = False
    takes_snapshot: bool = False
    has_verdicts: bool = False
    moves_snapshots: bool = False
    streams: bool = False
    by_the_second: bool = False
    probe: Callable[[World, Bench], object] = field(default=lambda _world, _bench: None)


def _always(*words: object) -> Callable[[World], Words]:
    return lambda _world: words


def _with_litestream(
    name: str, *words: object, code: int = EXIT_DONE, recover: Words = ()
) -> list[Case]:
    """Return a case of a home that litestream replicates, if that is installed."""

    def line(world: World) -> Words:
        place = ("--work-dir", world.out) if words[0] == "drill" else ()
        return (*words, *place, "--litestream-config", world.out / "litestream.yml")

    case = Case(
        name,
        beginnings.with_replica,
        line,
        code=code,
        variables=beginnings.litestream_on_path,
        recover=recover,
        by_the_second=True,
    )
    return [case] if litestream.PROGRAM.exists() else []


def _in_repositories(name: str, *words: object) -> list[Case]:
    """Return a case for each engine that is installed."""

    def case(engine: str) -> Case:
        place = beginnings.repository_words(engine)
        return Case(
            f"{name} {engine}",
            beginnings.in_repository(engine),
            lambda world: (*words, *place(world)),
            variables=beginnings.engine_variables,
            owners_only=True,  # its password would be root's
            probe=beginnings.repository_verdict(engine),
        )

    return [case(engine) for engine in ENGINES if shutil.which(engine)]


def _on_server(
    name: str,
    prepare: Callable[[World, Bench], None],
    words: Callable[[World], Words],
    **options: Any,
) -> Case:
    """Return a case of a home that has its database on a server."""
    return Case(name, prepare, words, variables=server_url, on_server=True, **options)


def _idle(*words: object, code: int = EXIT_DONE) -> Case:
    """Return a case that only reads a home with a snapshot."""
    name = " ".join(map(str, words))
    return Case(name, beginnings.with_snapshot, _always(*words), code=code, is_idle=True)


def _split() -> contextlib.AbstractContextManager[object]:
    """Refuse renames from one directory to another, as between two file systems."""
    rename = os.rename

    def directory_of(path: os.PathLike[str], descriptor: int | None) -> str:
        above = "" if descriptor is None else os.readlink(f"/proc/self/fd/{descriptor}")
        return os.path.join(above, os.path.dirname(path))

    def refuse(
        source: os.PathLike[str],
        target: os.PathLike[str],
        *,
        src_dir_fd: int | None = None,
        dst_dir_fd: int | None = None,
    ) -> None:
        if directory_of(source, src_dir_fd) != directory_of(target, dst_dir_fd):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), source, None, target)
        rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    return mock.patch.object(os, "rename", refuse)


def _mounted() -> contextlib.AbstractContextManager[object]:
    """Make the home a mount point, whose name cannot change."""
    return mock.patch.object(mounts, "is_mount", lambda path: path.name == "home")


@contextlib.contextmanager
def _written_between_copies() -> Iterator[None]:
    """Make the first frozen copy one of an earlier state of the home, so that rows differ."""

    def copy_earlier(*arguments: Any, **options: Any) -> DatabaseCopy:
        made = copy_database(*arguments, **options)
        with contextlib.closing(sqlite3.connect(made.path)) as connection:
            connection.execute("UPDATE agent_runs SET output_text = 'earlier'")
            connection.execute("DELETE FROM cost_records")
            connection.execute(
                "INSERT INTO cost_records (id, project_id, agent_name, model, cost_usd, tokens)"
                " VALUES (9001, 'p', 'a', 'm', 1, 1)"
            )
            connection.commit()
        return made

    async def apply(*arguments: Any, **options: Any) -> Delta:
        delta = await apply_delta(*arguments, **options)
        if not delta.deleted == delta.sent == {"agent_runs": 1, "cost_records": 1}:
            # An attacker may have moved the copy away; any other run does not end so.
            raise DifferenceError(f"copies: {delta.deleted} and {delta.sent} differ", hint="true")
        return delta

    with (
        mock.patch.object(export, "copy_database", copy_earlier),
        mock.patch.object(live_first, "apply_delta", apply),
    ):
        yield


CASES = (
    Case("init", beginnings.nothing, _always("init"), in_parts=True),
    Case("init, completing", beginnings.partial, _always("init"), in_parts=True),
    Case("migrate-layout", beginnings.flat, _always("migrate-layout"), recover=RECOVER),
    Case(
        "migrate-layout, over file systems",
        beginnings.flat,
        _always("migrate-layout"),
        within=_split,
        has_failure=True,
        recover=RECOVER,
    ),
    _idle("migrate-layout", "--dry-run"),
    _idle("verify-perms", code=EXIT_FINDINGS),
    Case(
        "verify-perms --fix",
        beginnings.open_to_all,
        _always("verify-perms", "--fix"),
        in_parts=True,
    ),
    Case(
        "verify-perms --undo",
        beginnings.open_to_all,
        beginnings.undo_words,
        begin=beginnings.repair,
        in_parts=True,
        codes_done=(EXIT_DONE, EXIT_FINDINGS),
    ),
    Case("db current", beginnings.small, _always("db", "current")),
    _idle("db", "history"),
    Case("db check", beginnings.small, _always("db", "check")),
    Case("db upgrade, SQLite", beginnings.old, _always("db", "upgrade"), takes_snapshot=True),
    Case("db upgrade --rehearse", beginnings.old, _always("db", "upgrade", "--rehearse")),
    _on_server(
        "db upgrade, PostgreSQL",
        beginnings.at(beginnings.OLD),
        _always("db", "upgrade", "--no-snapshot"),
    ),
    _on_server(
        "db downgrade, PostgreSQL",
        beginnings.at("020_fleet_task_lease"),
        _always("db", "downgrade", beginnings.OLD, "--yes"),
    ),
    Case("backup", beginnings.small, _always("backup"), takes_snapshot=True),
    Case("backup --compact", beginnings.small, _always("backup", "--compact"), takes_snapshot=True),
    Case(
        "backup, encrypted",
        beginnings.small,
        lambda _world: ("backup", "--key", "sealed", "--recipient", recipient()),
        takes_snapshot=True,
    ),
    Case(
        "backup, watched, with retention",
        beginnings.watched,
        lambda world: (
            *("backup", "--keep-last", "2", "--log-file", world.out / "run.log"),
            *("--metrics-file", world.out / "run.prom"),
        ),
        takes_snapshot=True,
        moves_snapshots=True,
        siblings=("out/run.log", "out/run.prom"),
        probe=beginnings.watched_verdict,
    ),
    Case(
        "backup --format directory",
        beginnings.with_tree,
        _always("backup", "--format", "directory", "--accept-change"),
        probe=beginnings.tree_verdict,
    ),
    *_in_repositories("backup --engine", "backup"),
    _on_server(
        "backup, PostgreSQL",
        beginnings.exported,
        _always("backup"),
        takes_snapshot=True,
    ),
    Case("backup --output", beginnings.small, _always("backup", "--output", "-"), streams=True),
    Case(
        "restore to a new place",
        beginnings.with_snapshot,
        lambda world: ("restore", "latest", "--to", world.out / "copy"),
        codes_done=(OCCUPIED,),
    ),
    Case(
        "restore of a lost home",
        beginnings.without_key,
        lambda world: ("restore", "latest", "--key-file", world.out / "key", "--rebind-fleet"),
        codes_done=(OCCUPIED,),
    ),
    Case(
        "restore --if-empty",
        beginnings.without_key,
        lambda world: ("restore", "latest", "--if-empty", "--key-file", world.out / "key"),
        recover=RECOVER,
    ),
    Case(
        "restore --replace",
        beginnings.with_snapshot,
        _always("restore", "latest", "--replace", "--revoke-sessions"),
        by_the_second=True,
        recover=RECOVER,
    ),
    Case(
        "restore --replace, of a mount point",
        beginnings.with_snapshot,
        _always("restore", "latest", "--replace"),
        within=_mounted,
        recover=RECOVER,
    ),
    Case(
        "restore --only",
        beginnings.with_snapshot,
        _always("restore", "latest", "--only", "config,db,data"),
        recover=RECOVER,
    ),
    _on_server(
        "restore --to-sqlite",
        beginnings.moved_with_snapshot,
        _always("restore", "latest", "--replace", "--to-sqlite"),
        recover=RECOVER,
    ),
    Case(
        "restore --undo",
        beginnings.restored,
        _always("restore", "--undo"),
        codes_done=None,
        recover=RECOVER,
    ),
    Case(
        "restore --only, next to litestream",
        beginnings.replicated,
        _always("restore", "latest", "--only", "db/sagewai.db"),
        recover=RECOVER,
    ),
    Case(
        "restore --undo, next to litestream",
        beginnings.replicated_and_restored,
        _always("restore", "--undo"),
        codes_done=None,
        recover=RECOVER,
    ),
    *_with_litestream(
        "restore --database-from litestream",
        *("restore", "latest", "--replace", "--database-from", "litestream", "--accept-change"),
        recover=RECOVER,
    ),
    _on_server(
        "restore to an empty server",
        beginnings.lost_with_server,
        lambda world: ("restore", "latest", "--install-key", world.out / "key"),
        codes_done=(OCCUPIED,),
        recover=RECOVER,
    ),
    _on_server(
        "restore --replace, PostgreSQL",
        beginnings.changed_on_server,
        _always("restore", "latest", "--replace"),
        recover=RECOVER,
    ),
    _on_server(
        "restore --undo, PostgreSQL",
        beginnings.restored_on_server,
        _always("restore", "--undo"),
        codes_done=None,
        recover=RECOVER,
    ),
    Case(
        "restore --recover",
        beginnings.with_snapshot,
        _always("restore", "--recover"),
        begin=beginnings.interrupt,
        may_go_back=True,
        recover=RECOVER,
    ),
    Case(
        "recover",
        beginnings.with_snapshot,
        _always("recover", "--yes"),
        begin=beginnings.interrupt,
        may_go_back=True,
        recover=RECOVER,
    ),
    Case(
        "recover, of a layout migration",
        beginnings.flat,
        _always("recover"),
        begin=beginnings.interrupt_migration,
        may_go_back=True,
        recover=RECOVER,
    ),
    _idle("recover", "--dry-run"),
    _idle("restore", "latest", "--replace", "--dry-run"),
    Case("keys check", beginnings.small, _always("keys", "check"), code=EXIT_FINDINGS),
    _idle("keys", "fingerprint"),
    Case(
        "keys escrow",
        beginnings.small,
        lambda world: (
            *("keys", "escrow", "--recipient", recipient()),
            *("--to", world.out / "key.age", "--sheet", world.out / "sheet.txt"),
        ),
        again=lambda world: (
            *("keys", "escrow", "--recipient", recipient(), "--force"),
            *("--to", world.out / "key.age", "--sheet", world.out / "sheet.txt"),
        ),
        in_parts=True,
    ),
    Case(
        "keys rotate",
        beginnings.small,
        lambda _world: ("keys", "rotate", "--recipient", recipient()),
        codes_done=None,
        recover=RECOVER,
        takes_snapshot=True,
        probe=opened,
    ),
    Case(
        "keys rotate, next to litestream",
        beginnings.replicated,
        _always("keys", "rotate", "--no-snapshot", "--yes"),
        codes_done=None,
        recover=RECOVER,
        drops="litestream",
        probe=opened,
    ),
    _on_server(
        "keys rotate, PostgreSQL",
        beginnings.exported,
        _always("keys", "rotate", "--no-snapshot", "--yes"),
        codes_done=None,
        recover=RECOVER,
        probe=beginnings.opened_on_server,
    ),
    Case("keys rotate --dry-run", beginnings.small, _always("keys", "rotate", "--dry-run")),
    Case("drill", beginnings.with_snapshot, _always("drill")),
    # Rows without their parents, which `with_snapshot` makes, are a finding.
    *_with_litestream(
        "drill --from litestream", "drill", "--from", "litestream", code=EXIT_FINDINGS
    ),
    Case(
        "drill, PostgreSQL",
        beginnings.exported_with_snapshot,
        lambda world: ("drill", "--work-dir", world.out),
        on_server=True,
    ),
    Case(
        "drill --scratch-url",
        beginnings.exported_with_snapshot,
        lambda world: ("drill", "--work-dir", world.out, "--scratch-url", world.url),
        on_server=True,
    ),
    Case(
        "preflight",
        beginnings.small,
        lambda world: (
            *("preflight", "--work-dir", world.out, "--write-plan", world.out / "go-back.sh"),
        ),
        code=EXIT_FINDINGS,
        siblings=("out/go-back.sh",),
        takes_snapshot=True,
        has_verdicts=True,
    ),
    Case("status", beginnings.with_snapshot, _always("status")),
    _idle("config", "show"),
    _idle("remote", "init", "sftp://127.0.0.1:1/srv", code=RemoteError.exit_code),
    _idle("remote", "check", "sftp://127.0.0.1:1/srv", code=RemoteError.exit_code),
    Case(
        "schedule litestream --into",
        beginnings.with_litestream,
        lambda world: (
            *("schedule", "litestream", world.out / "replica", "--into", world.out),
            *("--program", world.out / "litestream"),
        ),
        is_roots=True,
        in_parts=True,
    ),
    *(_idle("schedule", kind) for kind in ("cron", "compose", "kubernetes", "systemd")),
    _idle("notify", "test", "--dry-run", "--notify", "https://h.example/secret"),
    _idle("schedule", "run", "--dry-run", "--", "backup"),
    Case(
        "schedule systemd --into",
        beginnings.small,
        lambda world: ("schedule", "systemd", "--into", world.out),
        is_roots=True,
        in_parts=True,
    ),
    _idle("snapshots", "list"),
    _idle("snapshots", "show", "latest", "--files"),
    _idle("snapshots", "verify", "latest"),
    _idle("snapshots", "diff", "latest", "latest"),
    Case(
        "snapshots extract",
        beginnings.with_snapshot,
        lambda world: ("snapshots", "extract", "latest", "--to", world.out / "taken"),
        codes_done=(OCCUPIED,),
    ),
    Case("snapshots list --rebuild", beginnings.several, _always("snapshots", "list", "--rebuild")),
    Case(
        "snapshots prune",
        beginnings.several,
        _always("snapshots", "prune", "--keep-last", "1"),
        moves_snapshots=True,
    ),
    Case(
        "snapshots undelete",
        beginnings.pruned,
        _always("snapshots", "undelete", "--all"),
        moves_snapshots=True,
    ),
    Case(
        "snapshots copy",
        beginnings.several,
        lambda world: ("snapshots", "copy", world.snapshots, world.out / "copy", "--all"),
    ),
    Case(
        "backup --also",
        beginnings.small,
        lambda world: ("backup", "--also", world.out / "copy"),
        records="out/copy/.removed-",
        takes_snapshot=True,
    ),
    _on_server(
        "export-to-postgres",
        beginnings.at(""),
        lambda world: ("export-to-postgres", world.url),
        codes_done=(OCCUPIED,),
        recover=RECOVER,
    ),
    _on_server(
        "export-to-postgres, with a report",
        beginnings.refused,
        lambda world: (
            *("export-to-postgres", world.url, "--report", world.out / "report.json"),
            *("--on-invalid", "quarantine", "--learnings", "facts"),
        ),
        code=EXIT_INCOMPLETE,
        codes_done=(OCCUPIED,),
        siblings=("out/report.json", "out/report.refused.jsonl"),
        recover=RECOVER,
    ),
    _on_server(
        "export-to-postgres --live-first",
        beginnings.at(""),
        lambda world: ("export-to-postgres", world.url, "--live-first", "--stop-command", "true"),
        within=_written_between_copies,
        codes_done=(OCCUPIED,),
        recover=RECOVER,
    ),
    _on_server(
        "export-to-postgres --resumable",
        beginnings.at(""),
        lambda world: ("export-to-postgres", world.url, "--resumable"),
        codes_done=(OCCUPIED,),
        recover=RECOVER,
    ),
    _on_server(
        "export-to-postgres --resumable, continued",
        beginnings.unfinished,
        lambda world: (
            *("export-to-postgres", world.url, "--resumable", "--work-dir", world.out),
            *("--on-invalid", "quarantine", "--report", world.out / "report.json"),
        ),
        code=EXIT_INCOMPLETE,
        codes_done=(OCCUPIED,),
        siblings=("out/report.json", "out/report.refused.jsonl"),
        recover=RECOVER,
    ),
    Case(
        "export-to-postgres --abandon",
        beginnings.unfinished,
        lambda world: (
            *("export-to-postgres", world.url, "--abandon", "--work-dir", world.out, "--yes"),
        ),
        codes_done=(0,),
        drops="incoming",
        on_server=True,
    ),
    Case(
        "export-to-postgres --plan",
        beginnings.at(""),
        lambda world: ("export-to-postgres", world.url, "--plan"),
        on_server=True,
    ),
    Case(
        "export-to-postgres --verify-only",
        beginnings.exported,
        lambda world: ("export-to-postgres", world.url, "--verify-only"),
        on_server=True,
    ),
    Case(
        "import-from-postgres",
        beginnings.emptied,
        lambda world: ("import-from-postgres", world.url),
        codes_done=(OCCUPIED,),
        recover=RECOVER,
        on_server=True,
    ),
    Case(
        "import-from-postgres to a new place, with a report",
        beginnings.with_own_table,
        lambda world: (
            *("import-from-postgres", world.url, "--to", world.out / "back"),
            *("--report", world.out / "report.json", "--on-invalid", "quarantine"),
        ),
        code=EXIT_INCOMPLETE,
        codes_done=(OCCUPIED,),
        siblings=("out/report.json", "out/report.refused.jsonl"),
        on_server=True,
    ),
    Case(
        "import-from-postgres --plan",
        beginnings.exported,
        lambda world: ("import-from-postgres", world.url, "--to", world.out / "back", "--plan"),
        on_server=True,
    ),
)
