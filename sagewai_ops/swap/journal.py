"""Exchange names under a journal, so that whatever step was the last, the next run can go on.

A *move* puts what is fresh in a place and what was in the place where it is kept. What holds
between any two system calls:

1. The journal is durable before the first name changes, and goes only after the last change is.
2. It holds the inode of everything that moves. By them each move is untouched, half done or done;
   an inode that is nowhere where it can be is a question for a person, and nothing is touched.
3. Every step is one exchange, or one rename to a name that is free: nothing is overwritten.
   Nothing is removed here but an empty directory that a home came to stand in.
4. `forward` and `back` go on from any state, so both can be killed and run again, and a step that
   fails can be taken back.

A journal stands beside the staging of its run, in its *base* directory, and all its paths are
relative to that.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from sagewai_ops.archive.manifest import is_safe_path
from sagewai_ops.errors import OpsError, TargetBusyError
from sagewai_ops.fs import atomic
from sagewai_ops.text import shell_word

_VERSION = 1


class State(Enum):
    """How far a move, or a journal of them, got."""

    UNTOUCHED = "untouched"
    BEGUN = "begun"
    DONE = "done"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Move:
    """One name that changes; each path is relative to the base.

    Attributes:
        fresh: What comes to `place`; None if nothing does.
        kept: Where what was at `place` goes; None if that is nothing, or an empty directory.
        fresh_inode: Of what is fresh.
        old_inode: Of what was at `place`; None if there was nothing.
    """

    place: str
    fresh: str | None
    kept: str | None
    fresh_inode: int | None
    old_inode: int | None


@dataclass(frozen=True, slots=True)
class Journal:
    """The moves of one run, and the directory that their `kept` lie in.

    Attributes:
        path: Of the journal's file.
        carriers: (from, to) of directories that change their name around the moves: the prepared
            one for what is kept before them, the spent one of an undo after them.
    """

    path: Path
    moves: tuple[Move, ...]
    opening: tuple[str, str] | None = None
    closing: tuple[str, str] | None = None

    @property
    def base(self) -> Path:
        """The directory that all paths are relative to."""
        return self.path.parent


def planned(base: Path, place: str, fresh: str | None, kept: str | None) -> Move | None:
    """Make a move of what is there now; None if there is nothing on either side."""
    fresh_inode = _inode(base / fresh) if fresh is not None else None
    old_inode = _inode(base / place)
    if fresh_inode is None and old_inode is None:
        return None
    return Move(
        place=place,
        fresh=fresh if fresh_inode is not None else None,
        kept=kept if old_inode is not None else None,
        fresh_inode=fresh_inode,
        old_inode=old_inode,
    )


def encode(journal: Journal) -> bytes:
    """Write a journal's content."""
    document = {
        "version": _VERSION,
        "opening": journal.opening,
        "closing": journal.closing,
        "moves": [asdict(move) for move in journal.moves],
    }
    return json.dumps(document, indent=1).encode()


def read(path: Path) -> Journal:
    """Read a journal.

    Raises:
        OpsError: It cannot be read, or it is none of this program's.
    """
    try:
        document = json.loads(path.read_bytes())
        if document["version"] != _VERSION:
            raise ValueError(f"version {document['version']!r:.20}")  # noqa: TRY301 - told below
        moves = tuple(_move(item) for item in document["moves"])
        carriers = [_pair(document[name]) for name in ("opening", "closing")]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise OpsError(
            f"{path}: the journal of a restore that was interrupted cannot be read, {error}",
            hint=f"ls -la {shell_word(path.parent)}  # nothing in it was removed",
        ) from error
    return Journal(path, moves, *carriers)


def state_of(journal: Journal) -> State:
    """Tell how far a journal got, from the names on the disk alone."""
    states = {_state(journal.base, move) for move in journal.moves} or {State.DONE}
    if State.UNKNOWN in states:
        return State.UNKNOWN
    return states.pop() if len(states) == 1 else State.BEGUN


def forward(journal: Journal) -> None:
    """Do every move that is not done, and make it durable.

    Raises:
        OSError: The system refused a step; `back` takes back what was done.
        TargetBusyError: Something that is none of ours is in a place.
        OpsError: The names are not what the journal knows.
    """
    base = journal.base
    _carry(base, journal.opening)
    for move in journal.moves:
        _advance(base, move)
    _carry(base, journal.closing)
    atomic.sync_tree(base)


def back(journal: Journal) -> None:
    """Take every move back, the last first, and make that durable.

    Raises:
        OSError: The system refused a step; both directions can be tried again.
        OpsError: The names are not what the journal knows.
    """
    base = journal.base
    _carry(base, journal.closing and (journal.closing[1], journal.closing[0]))
    for move in reversed(journal.moves):
        _retreat(base, move)
    _carry(base, journal.opening and (journal.opening[1], journal.opening[0]))
    atomic.sync_tree(base)


def _state(base: Path, move: Move) -> State:
    place, fresh, kept = (
        _inode(base / name) if name is not None else None
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


def _advance(base: Path, move: Move) -> None:
    place, kept = base / move.place, base / move.kept if move.kept is not None else None
    state = _state(base, move)
    if state is State.DONE:
        return
    if state is State.UNKNOWN:
        raise _unknown(base, move)
    if move.fresh is None:
        assert kept is not None
        _put(place, kept)
        return
    fresh = base / move.fresh
    is_there = _inode(place)
    if is_there == move.fresh_inode:  # exchanged
        _set_aside(fresh, kept)
    elif is_there is None:
        _put(fresh, place)
    elif is_there != move.old_inode:
        raise _taken(place)
    elif atomic.exchange(fresh, place):
        _set_aside(fresh, kept)
    elif kept is not None:
        _put(place, kept)
        _put(fresh, place)
    elif place.is_dir() and not place.is_symlink():
        os.rename(fresh, place)  # over an empty directory, and the system refuses any other
    else:
        raise _taken(place)


def _retreat(base: Path, move: Move) -> None:
    place, kept = base / move.place, base / move.kept if move.kept is not None else None
    state = _state(base, move)
    if state is State.UNTOUCHED:
        return
    if state is State.UNKNOWN:
        raise _unknown(base, move)
    if move.fresh is None:
        assert kept is not None
        _put(kept, place)
        return
    fresh = base / move.fresh
    if _inode(place) == move.fresh_inode:
        if _inode(fresh) == move.old_inode is not None:
            if not atomic.exchange(fresh, place):
                raise _unknown(base, move)
            return
        if kept is not None and move.old_inode is not None and atomic.exchange(kept, place):
            _put(kept, fresh)
            return
        _put(place, fresh)
        if kept is None and move.old_inode is not None:
            os.mkdir(place, 0o700)  # the empty directory that was overwritten
            return
    if kept is not None and move.old_inode is not None:
        _put(kept, place)


def _set_aside(old: Path, kept: Path | None) -> None:
    if kept is None:
        os.rmdir(old)  # was empty; the system refuses if it is not any more
    else:
        _put(old, kept)


def _put(source: Path, target: Path) -> None:
    """Give a name that is free; what another run put there is never overwritten."""
    if os.path.lexists(target):
        raise _taken(target)
    if not target.parent.is_dir():
        atomic.make_directory(target.parent)
    os.rename(source, target)


def _carry(base: Path, names: tuple[str, str] | None) -> None:
    if names is not None and os.path.lexists(base / names[0]):
        _put(base / names[0], base / names[1])


def _taken(place: Path) -> TargetBusyError:
    return TargetBusyError(
        f"{place}: something was put there meanwhile",
        hint=f"look: ls -la {shell_word(place)}\nthen run it again",
    )


def _unknown(base: Path, move: Move) -> OpsError:
    names = [name for name in (move.place, move.fresh, move.kept) if name is not None]
    return OpsError(
        f"{base / move.place}: neither what was there nor what was to come, moved meanwhile",
        hint="look, nothing was removed: ls -lad " + " ".join(str(base / name) for name in names),
    )


def _inode(path: Path) -> int | None:
    try:
        return os.lstat(path).st_ino
    except (FileNotFoundError, NotADirectoryError):
        return None


def _move(item: dict[str, Any]) -> Move:
    names = [item[name] for name in ("place", "fresh", "kept")]
    inodes = [item[name] for name in ("fresh_inode", "old_inode")]
    # The journal stands in a directory that others may write to: nothing leads out of the base.
    if not all(name is None or is_safe_path(name) for name in names) or names[0] is None:
        raise ValueError("a path leads out")
    if not all(inode is None or isinstance(inode, int) for inode in inodes):
        raise ValueError("an inode is no number")
    return Move(*names, *inodes)


def _pair(names: Sequence[str] | None) -> tuple[str, str] | None:
    if names is None:
        return None
    first, second = names
    if not (is_safe_path(first) and is_safe_path(second)):
        raise ValueError("a path leads out")
    return first, second
