"""Put a restored directory in the place of a home, so that a crash leaves one or the other.

Two ways. *Whole*: the directory was built beside the home and the two names are exchanged in one
step; where the system has no such step, by two renames. *Entries*: the home is a mount point, or
its parent is not ours, or only parts are replaced; entries are exchanged one by one, inside the
home. Both go by a journal of moves; `moves` says what holds between two of its steps.

What holds here:

1. The *staging* is filled under a mark inside it; names change only once everything in it is
   durable, and the journal too. The mark goes before the first name changes.
2. So a staging with its mark is garbage, and one without a mark or a journal may be a home: it is
   never removed. What is to be removed is first renamed to a name that says so.
3. A journal whose moves are all undone or all done is cleaned by the next run; one in between is
   `unfinished`, and everything else refuses until `recover`.
4. Staging and journal are locked while their run lives: nobody takes them for a dead one's.
5. What was there is kept, beside the home as `<home>.before-restore-<UTC>` or inside it, and only
   a person removes it.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sagewai_ops.archive.manifest import is_safe_path
from sagewai_ops.errors import LockedError, OpsError, TargetBusyError
from sagewai_ops.fs import atomic, locks
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.home.paths import OWN_PREFIX
from sagewai_ops.keys import rotation_journal
from sagewai_ops.process.signals import too_late
from sagewai_ops.swap import journal as swap_journal
from sagewai_ops.swap.journal import Move, State
from sagewai_ops.swap.mounts import can_swap_whole, refuse_mounts
from sagewai_ops.swap.staging import (
    beside,
    carry_out,
    conclude,
    inside,
    journals,
    kept_before,
    next_moment,
    own_directory,
)
from sagewai_ops.swap.staging import sweep as sweep_restores
from sagewai_ops.text import shell_word

__all__ = [
    "Staged",
    "can_swap_whole",
    "entries_of",
    "kept_before",
    "recover",
    "refuse_mounts",
    "require_settled",
    "staged",
    "swap",
    "sweep",
    "undo",
    "unfinished",
]

_LIST = f"{OWN_PREFIX}paths"  # in what is kept in a home: which parts were exchanged
_KEPT = f"{OWN_PREFIX}kept"  # in a staging: becomes what is kept
_SPENT = f"{OWN_PREFIX}spent"  # in a staging: was what is kept


@dataclass(frozen=True, slots=True)
class Staged:
    """A directory of this run, to be filled and then put in place.

    Attributes:
        content: What is to be filled.
        target: The home it is for, no link.
        before: Where what is there goes; None if there is nothing.
        paths: Relative paths to exchange, in entries mode; None exchanges the whole.
    """

    content: Path
    target: Path
    before: Path | None
    paths: tuple[str, ...] | None


@contextlib.contextmanager
def staged(target: Path, paths: Sequence[str] | None, *, keeps: bool = True) -> Iterator[Staged]:
    """Make a private directory on the target's file system, removed in any case.

    Args:
        target: The home to be replaced; need not exist.
        paths: Only these parts of it; None for all.
        keeps: Whether what is there is kept; else the places must be free.

    Raises:
        TargetBusyError: All of it is asked for, and it cannot be exchanged by its name.
        OpsError: The system refused.
    """
    target = Path(os.path.realpath(target))
    if paths is None and target.is_dir() and not can_swap_whole(target):
        raise TargetBusyError(f"{target}: cannot be exchanged as a whole any more")
    in_entries = target.is_dir() and paths is not None
    room = inside(target) if in_entries else beside(target)
    moment = next_moment(target)
    # A part that was not there is something to come back to as well.
    is_kept = keeps and (in_entries or (target.is_dir() and bool(os.listdir(target))))
    content = room.staging(moment)
    with _parents(target.parent), own_directory(content):
        yield Staged(
            content=content,
            target=target,
            before=room.before(moment) if is_kept else None,
            paths=tuple(paths or ()) if in_entries else None,
        )


def swap(stage: Staged) -> None:
    """Put what was staged in place.

    Raises:
        TargetBusyError: A part of the home is a file system of its own and cannot be moved.
        OpsError: The system refused; the home is as it was.
    """
    base = stage.content.parent
    with translate_os_errors(stage.target):
        atomic.sync_tree(stage.content)
        if stage.paths is None:
            if stage.before is None and stage.target.is_dir() and os.listdir(stage.target):
                raise TargetBusyError(
                    f"{stage.target}: something was put there meanwhile",
                    hint=f"look: ls -la {shell_word(stage.target)}\nthen run it again",
                )
            planned = [_planned(base, stage.target, stage.content, stage.before)]
            opening = None
        else:
            refuse_mounts(stage.target, stage.paths)
            before = stage.before
            planned = [
                _planned(base, stage.target / path, stage.content / path, before and before / path)
                for path in stage.paths
            ]
            opening = _prepare_kept(stage.content, before, stage.paths) if before else None
        carry_out(stage.content, tuple(filter(None, planned)), opening=opening)


def entries_of(target: Path) -> set[str]:
    """List the names in a home that a restore of all of it exchanges."""
    return {
        name
        for name in os.listdir(target)
        if not name.startswith(OWN_PREFIX) and name != "lost+found"
    }


def unfinished(target: Path) -> Path | None:
    """Find the journal of a restore that died between old and new; None if there is none."""
    for path in journals(target):
        if not locks.is_abandoned(path):
            continue
        try:
            state = swap_journal.state_of(swap_journal.read(path))
        except OpsError:
            state = State.UNKNOWN
        if state in (State.BEGUN, State.UNKNOWN):
            return path
    return None


def require_settled(target: Path) -> None:
    """Refuse to go on with a home that an interrupted run left between old and new.

    Raises:
        LockedError: There is such a restore, or a rotation of the key, and its run is dead.
    """
    rotation_journal.require_settled(target)
    if unfinished(target) is not None:
        raise LockedError(
            f"home {target}: a restore was interrupted before it ended",
            hint=f"sagewai-ops --home {shell_word(target)} restore --recover",
        )


def sweep(target: Path) -> list[str]:
    """Remove what runs left that died before or after they changed the home; give the names.

    What cannot be removed is left for another time: nothing of it is in the way.
    """
    removed = sweep_restores(target)
    with contextlib.suppress(OSError):
        if rotation_journal.sweep(target):
            removed.append(rotation_journal.NAME)
    return removed


def recover(target: Path) -> str:
    """Finish a restore that was interrupted, and remove what dead runs left.

    Returns:
        `finished`, `rolled back` or `nothing to do`.

    Raises:
        OpsError: The system refused, or somebody else moved things; run it again once that is
            mended.
    """
    answer = "nothing to do"
    found = unfinished(target)
    if found is not None:
        journal = swap_journal.read(found)
        too_late()  # one way or the other, but not between; it takes moments
        with translate_os_errors(target):
            try:
                swap_journal.forward(journal)
                answer = "finished"
            except OSError:
                swap_journal.back(journal)
                answer = "rolled back"
        conclude(journal)
    sweep(target)
    return answer


def undo(target: Path, last: Path) -> tuple[Path, Path | None]:
    """Exchange the home and what an earlier restore put aside.

    Args:
        last: One of `kept_before`.

    Returns:
        (what was brought back, where what was there went).

    Raises:
        OpsError: The system refused, or what is kept is not what was put there; nothing changed.
    """
    moment = next_moment(target)
    in_entries = last.parent == target
    room = inside(target) if in_entries else beside(target)
    away = room.before(moment)
    staging = room.staging(moment)
    with translate_os_errors(last), own_directory(staging), locks.exclusive(last):
        if not in_entries:
            move = _planned(room.directory, target, last, away)
            carry_out(staging, (move,) if move else ())
            return last, away if move and move.kept is not None else None
        paths = _paths_kept(last)
        refuse_mounts(target, paths)
        planned = [_planned(target, target / path, last / path, away / path) for path in paths]
        carry_out(
            staging,
            tuple(filter(None, planned)),
            opening=_prepare_kept(staging, away, paths),
            closing=(last.name, f"{staging.name}/{_SPENT}"),
        )
    return last, away


def _planned(base: Path, place: Path, fresh: Path, kept: Path | None) -> Move | None:
    place_name, fresh_name, kept_name = (
        path.relative_to(base).as_posix() if path is not None else None
        for path in (place, fresh, kept)
    )
    assert place_name is not None
    return swap_journal.planned(base, place_name, fresh_name, kept_name)


def _prepare_kept(staging: Path, before: Path, paths: Sequence[str]) -> tuple[str, str]:
    """Make the directory for what is kept, which says what it is of, ready to get its name."""
    directory = staging / _KEPT
    atomic.make_directory(directory)
    atomic.replace(directory / _LIST, json.dumps(list(paths)).encode())
    return f"{staging.name}/{_KEPT}", before.name


def _paths_kept(last: Path) -> list[str]:
    """Read which parts an earlier restore exchanged.

    Raises:
        OpsError: It is not known, or something else was put into what is kept.
    """
    try:
        paths = json.loads((last / _LIST).read_bytes())
        if not isinstance(paths, list) or not all(is_safe_path(path) for path in paths):
            raise ValueError("not a list of paths")  # noqa: TRY301 - told below, with the rest
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise OpsError(
            f"{last}: its list of parts cannot be read",
            hint=f"ls -la {shell_word(last)}  # and move it by hand",
        ) from error
    for directory, names, files in os.walk(last):
        above = Path(directory).relative_to(last)
        names[:] = [name for name in names if (above / name).as_posix() not in paths]
        for name in files:
            path = (above / name).as_posix()
            if path not in paths and path != _LIST:
                raise OpsError(
                    f"{last / path}: was put there by somebody else", hint="move it away first"
                )
    return paths


@contextlib.contextmanager
def _parents(directory: Path) -> Iterator[None]:
    """Make the directories above a home that is not there; they go again if it does not come."""
    missing = [one for one in (directory, *directory.parents) if not one.exists()]
    atomic.make_directory(directory, mode=0o755)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for one in missing:
                os.rmdir(one)
        raise
