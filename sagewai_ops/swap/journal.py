"""Exchange names under a journal, so that a run killed at any step can be completed or rolled back.

A *move* puts a fresh entry in a place and the previous entry where it is kept. Between any two
system calls:

1. The journal is durable before the first name changes and is removed after the last change is.
2. It has the inode of everything that moves. From these each move is untouched, begun or done; an
   inode in an unexpected place needs a person, and nothing is changed.
3. Each step is one exchange, or one rename to a free name: nothing is overwritten, and nothing is
   removed except an empty directory that a home replaces.
4. `complete` and `roll_back` continue from any state: both can be killed and run again, and a step
   that fails can be undone.

A journal is next to the staging of its run, in its *base* directory; its paths are relative to it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Any

from sagewai_ops.archive.manifest import is_safe_path
from sagewai_ops.errors import OpsError, TargetBusyError
from sagewai_ops.fs import atomic, beneath
from sagewai_ops.fs import journal as fs_journal
from sagewai_ops.fs.journal import Operation, inode_of
from sagewai_ops.records import dataclass
from sagewai_ops.schema.postgres_replaced import ServerStep
from sagewai_ops.text import shell_word

NAME: Operation = "restore"


class State(Enum):
    """The progress of a move, or of all moves of a journal."""

    UNTOUCHED = "untouched"
    BEGUN = "begun"
    DONE = "done"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Move:
    """One name that changes; each path is relative to the base.

    Attributes:
        fresh: Moved to `place`; None to leave it free.
        kept: Where the previous entry goes; None without one, or for an empty directory.
        fresh_inode: Of the fresh entry.
        old_inode: Of the previous entry; None without one.
    """

    place: str
    fresh: str | None
    kept: str | None
    fresh_inode: int | None
    old_inode: int | None


@dataclass(frozen=True, slots=True)
class Journal:
    """The moves of one run.

    Attributes:
        path: Of the journal's file.
        opening: (from, to) of the directory for previous entries, renamed before the moves.
        closing: (from, to) of the emptied directory of an undo, renamed after the moves.
        server: What changes on a server, before the moves; None for files alone.
    """

    path: Path
    moves: tuple[Move, ...]
    opening: tuple[str, str] | None = None
    closing: tuple[str, str] | None = None
    server: ServerStep | None = None

    @property
    def base(self) -> Path:
        """The directory that all paths are relative to."""
        return self.path.parent


def plan_move(base: Path, place: str, fresh: str | None, kept: str | None) -> Move | None:
    """Return the move for the present entries; None if neither exists."""
    fresh_inode = inode_of(base / fresh) if fresh is not None else None
    old_inode = inode_of(base / place)
    if fresh_inode is None and old_inode is None:
        return None
    return Move(
        place=place,
        fresh=fresh if fresh_inode is not None else None,
        kept=kept if old_inode is not None else None,
        fresh_inode=fresh_inode,
        old_inode=old_inode,
    )


def content_of(journal: Journal) -> Mapping[str, Any]:
    """Return what is written of a journal."""
    return {
        "opening": journal.opening,
        "closing": journal.closing,
        "server": asdict(journal.server) if journal.server else None,
        "moves": [asdict(move) for move in journal.moves],
    }


def read(path: Path) -> Journal:
    """Read a journal.

    Raises:
        OpsError: It cannot be read or used.
    """
    content = fs_journal.read(path, NAME)
    try:
        moves = tuple(_parse_move(item) for item in content["moves"])
        opening, closing = (_parse_pair(content[name]) for name in ("opening", "closing"))
        server = ServerStep(**content["server"]) if content.get("server") else None
    except (ValueError, TypeError, KeyError) as error:
        raise fs_journal.unusable(path, NAME, error) from error
    return Journal(path, moves, opening, closing, server)


def state_of(journal: Journal) -> State:
    """Return the progress of a journal, from the names on the disk alone."""
    states = {_state(journal.base, move) for move in journal.moves} or {State.DONE}
    if State.UNKNOWN in states:
        return State.UNKNOWN
    return states.pop() if len(states) == 1 else State.BEGUN


def complete(journal: Journal) -> None:
    """Do every move that is not done, and make it durable.

    Raises:
        OSError: The system refused a step; `roll_back` undoes the others.
        TargetBusyError: An entry of another program is in a place.
        OpsError: An inode of the journal is missing.
    """
    base = journal.base
    _rename_carrier(base, journal.opening)
    for move in journal.moves:
        _advance(base, move)
    _rename_carrier(base, journal.closing)
    atomic.sync_tree(base)


def roll_back(journal: Journal) -> None:
    """Undo every move, the last first, and make that durable.

    Raises:
        OSError: The system refused a step; both directions can be tried again.
        OpsError: An inode of the journal is missing.
    """
    base = journal.base
    _rename_carrier(base, journal.closing and (journal.closing[1], journal.closing[0]))
    for move in reversed(journal.moves):
        _retreat(base, move)
    _rename_carrier(base, journal.opening and (journal.opening[1], journal.opening[0]))
    atomic.sync_tree(base)


def _state(base: Path, move: Move) -> State:
    place, fresh, kept = (
        inode_of(base / name) if name is not None else None
        for name in (move.place, move.fresh, move.kept)
    )
    old = move.old_inode
    if move.fresh is None:
        return State.UNTOUCHED if place == old else State.DONE
    if place == move.fresh_inode:
        if fresh is None:
            return State.DONE
        return State.BEGUN if fresh == old else State.UNKNOWN
    if old is not None and kept == old:
        return State.BEGUN if place is None else State.UNKNOWN
    if fresh in (move.fresh_inode, None):
        return State.UNTOUCHED
    return State.UNKNOWN


def _begin(base: Path, move: Move, goal: State) -> tuple[Path, Path, Path | None] | None:
    """Return the paths `place`, `fresh` and `kept`; None if nothing is left to do."""
    place, kept = base / move.place, base / move.kept if move.kept is not None else None
    state = _state(base, move)
    if state is goal:
        return None
    if state is State.UNKNOWN:
        raise _unknown(base, move)
    if move.fresh is None:
        assert kept is not None
        _put(*((place, kept) if goal is State.DONE else (kept, place)))
        return None
    return place, base / move.fresh, kept


def _advance(base: Path, move: Move) -> None:
    paths = _begin(base, move, State.DONE)
    if paths is None:
        return
    place, fresh, kept = paths
    present = inode_of(place)
    if present == move.fresh_inode:  # exchanged
        _set_aside(fresh, kept)
    elif present is None:
        _put(fresh, place)
    elif present != move.old_inode:
        raise _occupied(place)
    elif beneath.exchange(fresh, place):
        _set_aside(fresh, kept)
    elif kept is not None:
        _put(place, kept)
        _put(fresh, place)
    elif place.is_dir() and not place.is_symlink():
        beneath.rename(fresh, place)  # over an empty directory, and the system refuses any other
    else:
        raise _occupied(place)


def _retreat(base: Path, move: Move) -> None:
    paths = _begin(base, move, State.UNTOUCHED)
    if paths is None:
        return
    place, fresh, kept = paths
    if inode_of(place) == move.fresh_inode:
        if inode_of(fresh) == move.old_inode is not None:
            if not beneath.exchange(fresh, place):
                raise _unknown(base, move)
            return
        if kept is not None and move.old_inode is not None and beneath.exchange(kept, place):
            _put(kept, fresh)
            return
        _put(place, fresh)
        if kept is None and move.old_inode is not None:
            beneath.make_directory(place, 0o700)  # the empty directory that was overwritten
            return
    if kept is not None and move.old_inode is not None:
        _put(kept, place)


def _set_aside(old: Path, kept: Path | None) -> None:
    if kept is None:
        beneath.remove_directory(old)  # was empty; the system refuses if it is not any more
    else:
        _put(old, kept)


def _put(source: Path, target: Path) -> None:
    """Rename to a free name; an entry of another program is never overwritten."""
    if beneath.exists(target):
        raise _occupied(target)
    if not beneath.exists(target.parent):
        atomic.make_directory(target.parent)
    beneath.rename(source, target)


def _rename_carrier(base: Path, names: tuple[str, str] | None) -> None:
    if names is not None and beneath.exists(base / names[0]):
        _put(base / names[0], base / names[1])


def _occupied(place: Path) -> TargetBusyError:
    return TargetBusyError(
        f"{place}: created by another program during the swap, not overwritten",
        hint=f"ls -la {shell_word(place)}  # move it away, then run it again",
    )


def _unknown(base: Path, move: Move) -> OpsError:
    names = [name for name in (move.place, move.fresh, move.kept) if name is not None]
    return OpsError(
        f"{base / move.place}: neither the previous nor the restored entry",
        hint="ls -lad "
        + " ".join(shell_word(base / name) for name in names)
        + "  # nothing was removed",
    )


def _parse_move(item: dict[str, Any]) -> Move:
    names = [item[name] for name in ("place", "fresh", "kept")]
    inodes = [item[name] for name in ("fresh_inode", "old_inode")]
    # Others may write to the base, for example /tmp: no path may leave it.
    if not all(name is None or is_safe_path(name) for name in names) or names[0] is None:
        raise ValueError("a path leaves its directory")
    if not all(inode is None or isinstance(inode, int) for inode in inodes):
        raise ValueError("an inode is not a number")
    return Move(*names, *inodes)


def _parse_pair(names: Sequence[str] | None) -> tuple[str, str] | None:
    if names is None:
        return None
    first, second = names
    if not (is_safe_path(first) and is_safe_path(second)):
        raise ValueError("a path leaves its directory")
    return first, second
