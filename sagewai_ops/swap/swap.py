"""Put a restored directory in the place of a home, so that a crash leaves one or the other.

Two ways. *Whole*: the directory was built next to the home and the two names are exchanged in one
step, or by two renames where the system has no such step. *Entries*: the home is a mount point, its
parent is not ours, or only parts are replaced; entries are exchanged one by one, inside the home.
Both follow a journal of moves; `journal` states what holds between two of its steps.

1. The *staging* is filled under a mark inside it; names change only after its content and the
   journal are durable. The mark is removed before the first name changes.
2. So a staging with its mark is garbage, and one without a mark or a journal may be a home: it is
   never removed. What is to be removed is first renamed to a name that marks it as garbage.
3. A journal whose moves are all undone or all done is cleaned up by the next run; one in between
   is pending: every other command refuses until `recover`.
4. Staging and journal are locked while their run lives: no other run removes them.
5. The previous home is kept, next to the home as `<home>.before-restore-<UTC>` or inside it, and
   this program never removes it.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sagewai_ops.archive.manifest import is_safe_path
from sagewai_ops.database.url import PostgresUrl
from sagewai_ops.errors import OpsError, TargetBusyError, UsageError
from sagewai_ops.fs import atomic, beneath, locks
from sagewai_ops.fs import journal as fs_journal
from sagewai_ops.fs.journal import Recovery
from sagewai_ops.fs.os_errors import from_os_error, translate_os_errors
from sagewai_ops.fs.volumes import names_in
from sagewai_ops.home.paths import COMPANION, DATABASE, OWN_PREFIX, Home
from sagewai_ops.home.server_record import resolve_database
from sagewai_ops.process.signals import mark_completed
from sagewai_ops.records import dataclass
from sagewai_ops.schema.postgres_replaced import ServerStep, has_schema
from sagewai_ops.swap import journal as swap_journal
from sagewai_ops.swap.journal import Move
from sagewai_ops.swap.mounts import can_swap_whole, refuse_mounts
from sagewai_ops.swap.overlay import movable_paths
from sagewai_ops.swap.staging import (
    ServerChange,
    conclude,
    exchange,
    inside,
    is_pending,
    journals,
    kept_before,
    moment_of,
    next_moment,
    next_to,
    own_directory,
)
from sagewai_ops.text import shell_word

__all__ = [
    "Staged",
    "can_swap_whole",
    "entries_of",
    "kept_before",
    "moment_of",
    "next_moment",
    "recover",
    "refuse_mounts",
    "staged",
    "swap",
    "undo",
]

_NOT_COMMITTED = "not committed on the server"
_LIST = f"{OWN_PREFIX}paths"  # in what is kept in a home: the parts that were exchanged
_KEPT = f"{OWN_PREFIX}kept"  # in a staging: becomes the kept directory
_SPENT = f"{OWN_PREFIX}spent"  # in a staging: the emptied kept directory of an undo


@dataclass(frozen=True, slots=True)
class Staged:
    """A directory of this run, to be filled and then put in place of a home.

    Attributes:
        content: The directory to fill.
        target: The home, not a link.
        before: Where the previous home, or its parts, are kept; None if there is nothing to keep.
        paths: Relative paths to exchange, in entries mode; None exchanges the whole.
    """

    content: Path
    target: Path
    before: Path | None
    paths: tuple[str, ...] | None

    @property
    def moment(self) -> str:
        """Return the name of what the restore keeps, on a server too."""
        return moment_of(self.content)


@contextlib.contextmanager
def staged(
    target: Path, paths: Sequence[str] | None, *, keeps: bool = True, is_free: bool = False
) -> Iterator[Staged]:
    """Make a private directory on the target's file system, removed at the end in any case.

    Args:
        target: The home to be replaced; need not exist.
        paths: Only these parts of it; None for all.
        keeps: Whether previous entries are kept; else the places must be free.
        is_free: The target was absent or empty. What another run puts there is not replaced: an
            absent target cannot be locked.

    Raises:
        TargetBusyError: The whole is requested and cannot be exchanged by its name.
        OpsError: The system refused.
    """
    target = Path(os.path.realpath(target))
    if paths is None and target.is_dir() and not can_swap_whole(target):
        raise TargetBusyError(f"{target}: no longer exchangeable as a whole")
    in_entries = paths is not None
    naming = inside(target) if in_entries else next_to(target)
    moment = next_moment(target)
    # An undo also needs to know the parts that did not exist.
    is_kept = keeps and target.is_dir()
    if not in_entries:
        is_kept = is_kept and not is_free and bool(names_in(target))
    content = naming.staging(moment)
    with _missing_directories(target, itself=in_entries), own_directory(content):
        yield Staged(
            content=content,
            target=target,
            before=naming.before(moment) if is_kept else None,
            paths=tuple(paths or ()) if in_entries else None,
        )


def swap(stage: Staged, server: ServerChange | None = None) -> None:
    """Put a staged directory in place of its target.

    Args:
        server: What changes with it on a server, under one journal.

    Raises:
        TargetBusyError: A part of the home is a mount point and cannot be moved.
        OpsError: The system refused; the home is unchanged.
    """
    base = stage.content.parent
    with translate_os_errors(stage.target):
        atomic.sync_tree(stage.content)
        if stage.paths is None:
            if stage.before is None and stage.target.is_dir() and names_in(stage.target):
                raise TargetBusyError(
                    f"{stage.target}: not empty any more",
                    hint=f"ls -la {shell_word(stage.target)}  # move it away, then run it again",
                )
            moves = [_plan_move(base, stage.target, stage.content, stage.before)]
            opening = None
        else:
            refuse_mounts(stage.target, stage.paths)
            before, paths = stage.before, movable_paths(stage.target, stage.content, stage.paths)
            moves = [
                _plan_move(
                    base, stage.target / path, stage.content / path, before and before / path
                )
                for path in paths
            ]
            opening = _prepare_kept(stage.content, before, paths) if before else None
        exchange(stage.content, tuple(filter(None, moves)), opening=opening, server=server)


def entries_of(target: Path) -> set[str]:
    """Return the names in a home that a restore of the whole exchanges."""
    return {name for name in names_in(target) if not name.startswith(OWN_PREFIX)}


def recover(home: Home, environment: Mapping[str, str], _wait_seconds: float) -> Recovery:
    """Complete a pending restore of a home, or roll it back where the system refuses.

    One that was committed on a server is only completed, one that was not only rolled back.

    Args:
        environment: Names the server, if the restore has a part there.

    Raises:
        UsageError: It does not name that server.
        OpsError: The system refused both, or another program moved an entry; it can be run again.
    """
    target = home.root
    found = fs_journal.pending(journals(target), is_pending)
    if not found:
        return Recovery()
    journal = swap_journal.read(found[0])
    committed = _is_committed(home, environment, journal.server) if journal.server else None
    mark_completed()  # a signal waits: completed or rolled back, it takes moments
    recovery = Recovery(swap_journal.NAME, "completed")
    with translate_os_errors(target):
        try:
            if committed is not False:
                swap_journal.complete(journal)
            else:
                swap_journal.roll_back(journal)
                recovery = Recovery(swap_journal.NAME, "rolled back", _NOT_COMMITTED)
        except OSError as error:
            if committed is not None:
                raise
            swap_journal.roll_back(journal)
            reason = from_os_error(error, target).message
            recovery = Recovery(swap_journal.NAME, "rolled back", reason)
    conclude(journal)
    return recovery


def _is_committed(home: Home, environment: Mapping[str, str], step: ServerStep) -> bool:
    url = resolve_database(home, environment)
    if not isinstance(url, PostgresUrl) or url.display != step.database:
        raise UsageError(
            f"home {home.root}: the pending restore is also of the database {step.database},"
            f" but {url.display} is given",
            hint="export SAGEWAI_DATABASE_URL=...  # as when it began; or --url-file FILE",
        )
    return has_schema(url, step.schema)


def undo(
    target: Path,
    last: Path,
    moment: str = "",
    server: ServerChange | None = None,
) -> tuple[Path, Path | None]:
    """Exchange the home and the previous one that a restore kept.

    Args:
        last: One of `kept_before`.
        moment: From `next_moment`, which is the default; names what is kept now.
        server: What changes with it on a server.

    Returns:
        (the previous home, where the replaced one is kept now).

    Raises:
        OpsError: The system refused, or the kept directory was changed; the home is unchanged.
    """
    moment = moment or next_moment(target)
    in_entries = last.parent == target
    naming = inside(target) if in_entries else next_to(target)
    away = naming.before(moment)
    staging = naming.staging(moment)
    with translate_os_errors(last), own_directory(staging), locks.exclusive(last):
        if not in_entries:
            move = _plan_move(naming.directory, target, last, away)
            exchange(staging, (move,) if move else (), server=server)
            return last, away if move and move.kept is not None else None
        paths = _paths_kept(last)
        refuse_mounts(target, paths)
        moves = [_plan_move(target, target / path, last / path, away / path) for path in paths]
        exchange(
            staging,
            tuple(filter(None, moves)),
            opening=_prepare_kept(staging, away, paths),
            closing=(last.name, f"{staging.name}/{_SPENT}"),
            server=server,
        )
    return last, away


def _plan_move(base: Path, place: Path, fresh: Path, kept: Path | None) -> Move | None:
    place_name, fresh_name, kept_name = (
        path.relative_to(base).as_posix() if path is not None else None
        for path in (place, fresh, kept)
    )
    assert place_name is not None
    return swap_journal.plan_move(base, place_name, fresh_name, kept_name)


def _prepare_kept(staging: Path, before: Path, paths: Sequence[str]) -> tuple[str, str]:
    """Make the directory for previous entries, with their list, ready to be renamed."""
    directory = staging / _KEPT
    atomic.make_directory(directory)
    atomic.replace(directory / _LIST, json.dumps(list(paths)).encode())
    return f"{staging.name}/{_KEPT}", before.name


def _paths_kept(last: Path) -> list[str]:
    """Return the parts that a restore exchanged.

    Raises:
        OpsError: The list cannot be read, or other files were added to the kept directory.
    """
    try:
        with open(beneath.open_file(last / _LIST), "rb") as stream:
            paths = json.loads(stream.read())
        if not isinstance(paths, list) or not all(is_safe_path(path) for path in paths):
            raise ValueError("not a list of paths")  # noqa: TRY301 - handled below
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise OpsError(
            f"{last}: list of parts not readable",
            hint=f"ls -la {shell_word(last)}  # then move its entries by hand",
        ) from error
    if DATABASE in paths:  # version 0.2.0 did not list it
        paths = list(dict.fromkeys((COMPANION, *paths)))
    for directory, names, files in os.walk(last):
        above = Path(directory).relative_to(last)
        names[:] = [name for name in names if (above / name).as_posix() not in paths]
        for name in files:
            path = (above / name).as_posix()
            if path not in paths and path != _LIST:
                raise OpsError(
                    f"{last / path}: added after the restore",
                    hint=f"mv {shell_word(last / path)} ELSEWHERE",
                )
    return paths


@contextlib.contextmanager
def _missing_directories(target: Path, *, itself: bool) -> Iterator[None]:
    """Make the missing directories above a home, and the home; removed again after a failure."""
    missing = [parent for parent in (target, *target.parents) if not parent.exists()]
    for directory in reversed(missing):
        if directory != target:
            atomic.make_directory(directory, mode=0o755)
        elif itself:
            atomic.make_directory(directory)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for directory in missing:
                if directory != target or itself:
                    beneath.remove_directory(directory)
        raise
