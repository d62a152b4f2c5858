"""The working directories and journals of a restore: their names, their recovery.

A *staging* is filled under a mark inside it, and is garbage as long as it bears that. A staging
without a mark may be a home, and only its journal knows: without one it is never removed. What is
to be removed is first renamed to a name that says so. Staging and journal are locked while their
run lives, so nobody takes them for a dead one's.
"""

import contextlib
import os
import re
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from sagewai_ops.errors import OpsError
from sagewai_ops.fs import atomic, locks
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.home.paths import OWN_PREFIX
from sagewai_ops.process.signals import too_late, uninterrupted
from sagewai_ops.swap import journal as swap_journal
from sagewai_ops.swap.journal import Journal, Move, State

_MARK = f"{OWN_PREFIX}staging"
_JOURNAL = f"{OWN_PREFIX}journal"  # in a staging: becomes the journal beside it
_BEFORE = "before-restore-"
_STAGING, _DISCARD = "restore-", "discard-"
_MOMENT = "%Y%m%dT%H%M%S%fZ"
_TAIL = r"(\d{8}T\d{12}Z)"


@dataclass(frozen=True, slots=True)
class Room:
    """Where a target's stagings, journals and kept directories stand, and how they are called.

    Attributes:
        hidden: Begins the names of stagings and journals.
        kept: Begins the names of what is kept.
    """

    directory: Path
    hidden: str
    kept: str

    def staging(self, moment: str) -> Path:
        """Name a staging."""
        return self.directory / f"{self.hidden}{_STAGING}{moment}"

    def before(self, moment: str) -> Path:
        """Name what is kept from before a restore."""
        return self.directory / f"{self.kept}{_BEFORE}{moment}"

    def named(self, begin: str, end: str = "") -> Iterator[Path]:
        """Find the paths whose names are a moment between these two, the oldest first."""
        pattern = re.compile(re.escape(begin) + _TAIL + re.escape(end))
        with contextlib.suppress(OSError):
            for name in sorted(os.listdir(self.directory)):
                if pattern.fullmatch(name):
                    yield self.directory / name


def beside(target: Path) -> Room:
    """Give the room for a home that is exchanged as a whole."""
    return Room(target.parent, f".{target.name}.", f"{target.name}.")


def inside(target: Path) -> Room:
    """Give the room for a home whose entries are exchanged."""
    return Room(target, OWN_PREFIX, OWN_PREFIX)


def next_moment(target: Path) -> str:
    """Give the present, or a little more than what is kept already if the clock went back."""
    now = f"{datetime.now(timezone.utc):{_MOMENT}}"
    newest = max(map(_moment_of, kept_before(target)), default="")
    if now > newest:
        return now
    with contextlib.suppress(ValueError, OverflowError):
        moment = datetime.strptime(newest, _MOMENT).replace(tzinfo=timezone.utc)
        return f"{moment + timedelta(microseconds=1):{_MOMENT}}"
    return now


def journals(target: Path) -> list[Path]:
    """List the journals of restores of a home, dead or alive."""
    return [
        path
        for room in (beside(target), inside(target))
        for path in room.named(room.hidden + _STAGING, ".json")
    ]


def kept_before(target: Path) -> list[Path]:
    """List what earlier restores put aside, oldest first."""
    found = [
        path
        for room in (beside(target), inside(target))
        for path in room.named(f"{room.kept}{_BEFORE}")
        if _is_directory(path)
    ]
    return sorted(found, key=_moment_of)


@contextlib.contextmanager
def own_directory(staging: Path) -> Iterator[None]:
    """Make a staging, marked and locked; removed at the end unless it became a home."""
    try:
        atomic.make_directory(staging)
        with locks.exclusive(staging):
            with translate_os_errors(staging):
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                os.close(os.open(staging / _MARK, flags, 0o600))
            yield
    finally:
        # What refuses to go is left to `sweep`: the reason why we are here matters more.
        with contextlib.suppress(OSError, OpsError):
            if _journal_of(staging).exists():
                _settle(_journal_of(staging))
            elif _is_garbage(staging):
                _discard(staging)


def carry_out(
    staging: Path,
    planned: tuple[Move, ...],
    *,
    opening: tuple[str, str] | None = None,
    closing: tuple[str, str] | None = None,
) -> None:
    """Write the journal, take the mark away, move, and clean up; or take all of it back."""
    journal = Journal(_journal_of(staging), planned, opening, closing)
    times = os.stat(staging)
    hidden = staging / _JOURNAL
    atomic.replace(hidden, swap_journal.encode(journal))
    with contextlib.ExitStack() as stack:
        descriptor = os.open(hidden, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, descriptor)
        locks.mark_alive(descriptor)
        os.rename(hidden, journal.path)
        atomic.sync_directory(journal.base)
        os.unlink(staging / _MARK)
        os.utime(staging, ns=(times.st_atime_ns, times.st_mtime_ns))
        atomic.sync_directory(staging)
        try:
            swap_journal.forward(journal)
            too_late()
        except BaseException as error:
            _take_back(journal, error)
            raise
        conclude(journal)


@uninterrupted()
def conclude(journal: Journal) -> bool:
    """Remove what a settled journal leaves, itself included; what refuses is left to `sweep`."""
    staging = journal.path.with_suffix("")
    with contextlib.suppress(OSError):
        if swap_journal.state_of(journal) not in (State.UNTOUCHED, State.DONE):
            return False
        # Renamed while the journal is there: without one, an unmarked staging may be a home.
        doomed = _doomed(staging) if os.path.lexists(staging) else None
        os.unlink(journal.path)
        if doomed:
            _remove(doomed)
        return True
    return False


def sweep(target: Path) -> list[str]:
    """Remove what restores left that died before or after their moves; give the names.

    What cannot be removed is left for another time: nothing of it is in the way.
    """
    removed: list[str] = []
    for path in journals(target):
        with contextlib.suppress(OSError, OpsError):
            if locks.is_abandoned(path) and _settle(path):
                removed.append(path.name)
    for room in (beside(target), inside(target)):
        for path in [*room.named(room.hidden + _STAGING), *room.named(room.hidden + _DISCARD)]:
            with contextlib.suppress(OSError):
                if locks.is_abandoned(path) and _is_garbage(path):
                    _discard(path)
                    removed.append(path.name)
    return removed


def _take_back(journal: Journal, reason: BaseException) -> None:
    try:
        swap_journal.back(journal)
    except (OSError, OpsError) as error:
        raise OpsError(
            f"{journal.base}: could not be put back as it was, {error}",
            hint="mend that, then: sagewai-ops restore --recover",
        ) from reason
    conclude(journal)


def _moment_of(path: Path) -> str:
    return path.name[path.name.rindex(_BEFORE) + len(_BEFORE) :]


def _journal_of(staging: Path) -> Path:
    return staging.with_name(staging.name + ".json")


@uninterrupted()
def _settle(path: Path) -> bool:
    """Clean up after a journal whose moves are all undone or all done; else leave it."""
    journal = swap_journal.read(path)
    state = swap_journal.state_of(journal)
    if state is State.UNTOUCHED:
        swap_journal.back(journal)
    elif state is State.DONE:
        swap_journal.forward(journal)
    else:
        return False
    return conclude(journal)


def _is_garbage(path: Path) -> bool:
    """Tell whether a directory with the name of a staging is one, without a journal."""
    if _journal_of(path).exists() or not _is_directory(path):
        return False
    return _DISCARD in path.name or (path / _MARK).exists() or not os.listdir(path)


@uninterrupted()
def _discard(path: Path) -> None:
    _remove(path if _DISCARD in path.name else _doomed(path))


def _doomed(staging: Path) -> Path:
    """Rename a staging, so that a kill while it is removed leaves a name that says what it is."""
    head, _, moment = staging.name.rpartition(_STAGING)
    doomed = staging.with_name(f"{head}{_DISCARD}{moment}")
    os.rename(staging, doomed)
    return doomed


def _remove(directory: Path) -> None:
    """Remove a directory of ours with all in it, directories that forbid it included."""
    if os.geteuid() != 0:
        os.chmod(directory, 0o700)
        for above, names, _files in os.walk(directory):
            for name in names:
                if _is_directory(Path(above, name)):
                    os.chmod(os.path.join(above, name), 0o700)
    shutil.rmtree(directory)


def _is_directory(path: Path) -> bool:
    """Tell whether a path is a directory itself, not a link to one."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False
