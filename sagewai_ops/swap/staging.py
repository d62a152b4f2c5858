"""The working directories and journals of a restore: their names and their removal.

A *staging* is filled under a mark inside it, and is garbage while it has the mark. A staging
without a mark may be a home, and only its journal knows: without one it is never removed. What is
to be removed is first renamed to a name that marks it as garbage. Staging and journal are locked
while their run lives, so no other run removes them.
"""

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Protocol

from sagewai_ops.errors import OpsError, RemoteError
from sagewai_ops.fs import atomic, beneath, locks
from sagewai_ops.fs import journal as fs_journal
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.fs.trust import is_trusted
from sagewai_ops.home.paths import OWN_PREFIX
from sagewai_ops.process.signals import mark_completed, uninterrupted
from sagewai_ops.records import dataclass
from sagewai_ops.schema.postgres_replaced import ServerStep
from sagewai_ops.swap import journal as swap_journal
from sagewai_ops.swap.journal import Journal, Move, State
from sagewai_ops.text import shell_word

_MARK = f"{OWN_PREFIX}staging"
_DRAFT = f"{OWN_PREFIX}journal"  # in a staging: becomes the journal next to it
_BEFORE = "before-restore-"
_STAGING, _DISCARD = "restore-", "discard-"
_MOMENT = "%Y%m%dT%H%M%S%fZ"
_TAIL = r"(\d{8}T\d{12}Z)"


class ServerChange(Protocol):
    """An open transaction on a server that belongs to the moves of a journal."""

    step: ServerStep

    def commit(self) -> None:
        """Commit; a ConnectionError means that the outcome is unknown."""

    def find_outcome(self) -> bool:
        """Return, after a ConnectionError, whether the server has committed."""


@dataclass(frozen=True, slots=True)
class Naming:
    """The directory and the names of a target's stagings, journals and kept directories.

    Attributes:
        hidden: Begins the names of stagings and journals.
        kept: Begins the names of kept directories.
    """

    directory: Path
    hidden: str
    kept: str

    def staging(self, moment: str) -> Path:
        """Return the path of a staging."""
        return self.directory / f"{self.hidden}{_STAGING}{moment}"

    def before(self, moment: str) -> Path:
        """Return the path where the previous entries of a restore are kept."""
        return self.directory / f"{self.kept}{_BEFORE}{moment}"

    def list(self, begin: str, end: str = "") -> Iterator[Path]:
        """Yield the paths whose names have a moment between these two, the oldest first."""
        pattern = re.compile(re.escape(begin) + _TAIL + re.escape(end))
        with contextlib.suppress(OSError):
            for name in sorted(beneath.list_directory(self.directory)):
                if pattern.fullmatch(name):
                    yield self.directory / name


def next_to(target: Path) -> Naming:
    """Return the names for a home that is exchanged as a whole."""
    return Naming(target.parent, f".{target.name}.", f"{target.name}.")


def inside(target: Path) -> Naming:
    """Return the names for a home whose entries are exchanged."""
    return Naming(target, OWN_PREFIX, OWN_PREFIX)


def next_moment(target: Path) -> str:
    """Return the present, or a moment after the newest kept directory if the clock went back."""
    now = f"{datetime.now(timezone.utc):{_MOMENT}}"
    newest = max(map(moment_of, kept_before(target)), default="")
    if now > newest:
        return now
    with contextlib.suppress(ValueError, OverflowError):
        moment = datetime.strptime(newest, _MOMENT).replace(tzinfo=timezone.utc)
        return f"{moment + timedelta(microseconds=1):{_MOMENT}}"
    return now


def journals(target: Path) -> list[Path]:
    """Return the journals of restores of a home, of live and of dead runs."""
    return fs_journal.trusted(
        path
        for naming in (next_to(target), inside(target))
        for path in naming.list(naming.hidden + _STAGING, ".json")
    )


def is_pending(path: Path) -> bool:
    """Return whether a journal is that of a dead run, with some moves done and others not."""
    if fs_journal.is_live(path):
        return False
    journal = swap_journal.read(path)
    state = swap_journal.state_of(journal)
    # Before the first move, only the server knows whether its part was committed.
    undecided = journal.server is not None and state is State.UNTOUCHED
    return undecided or state in (State.BEGUN, State.UNKNOWN)


def kept_before(target: Path) -> list[Path]:
    """Return the previous homes, or parts of them, that restores kept, oldest first."""
    found = [
        path
        for naming in (next_to(target), inside(target))
        for path in naming.list(f"{naming.kept}{_BEFORE}")
        if _is_directory(path) and is_trusted(path, itself=False)
    ]
    return sorted(found, key=moment_of)


@contextlib.contextmanager
def own_directory(staging: Path) -> Iterator[None]:
    """Make a staging, marked and locked; removed at the end unless it became a home."""
    try:
        atomic.make_directory(staging)
        with locks.exclusive(staging):
            with translate_os_errors(staging):
                os.close(beneath.create_file(staging / _MARK, 0o600))
            yield
    finally:
        # What cannot be removed is left to `sweep`: the original error matters more.
        with uninterrupted(), contextlib.suppress(OSError, OpsError):
            if beneath.exists(_journal_of(staging)):
                _settle(_journal_of(staging))
            elif _is_garbage(staging):
                _discard(staging)


def exchange(
    staging: Path,
    moves: tuple[Move, ...],
    *,
    opening: tuple[str, str] | None = None,
    closing: tuple[str, str] | None = None,
    server: ServerChange | None = None,
) -> None:
    """Write the journal, remove the mark, move, and clean up; or undo all of it.

    Args:
        server: Committed before the first move. Afterwards nothing is undone: only `recover`
            completes what the system refuses.
    """
    step = server.step if server else None
    journal = Journal(_journal_of(staging), moves, opening, closing, step)
    times = beneath.status(staging)
    draft = staging / _DRAFT
    with fs_journal.recording(journal.path, swap_journal.NAME, draft=draft) as write:
        try:
            write(swap_journal.content_of(journal))
            beneath.unlink(staging / _MARK)
            beneath.set_times(staging, times.st_mtime_ns, times.st_atime_ns)
            beneath.sync_directory(staging)
        except BaseException as error:
            # Here it is known that the server committed nothing; who finds the journal has to ask.
            if server and beneath.exists(journal.path):
                _undo(journal, error)
            raise
        if server:
            _commit(journal, server)
        try:
            swap_journal.complete(journal)
            mark_completed()
        except BaseException as error:
            if not server:
                _undo(journal, error)
                raise
            _complete_again(journal, error)
        conclude(journal)


@uninterrupted()
def _complete_again(journal: Journal, reason: BaseException) -> None:
    """Try once more what the system refused: after the commit on a server there is no way back."""
    try:
        swap_journal.complete(journal)
    except (OSError, OpsError) as error:
        raise _incomplete(journal, error) from reason


def _commit(journal: Journal, server: ServerChange) -> None:
    """Commit what changes on a server, or undo the journal."""
    with uninterrupted():
        try:
            server.commit()
            mark_completed()
        except ConnectionError as error:
            _find_outcome(journal, server, error)
        except OpsError as error:
            _undo(journal, error)
            raise


def _find_outcome(journal: Journal, server: ServerChange, lost: ConnectionError) -> None:
    """Ask the server what became of the commit, and undo the journal if it was rolled back."""
    try:
        is_committed = server.find_outcome()
    except OpsError as error:
        mark_completed()  # or not: `recover` finds out, and a signal is not the reason
        raise _incomplete(journal, f"{lost}, {error.message}", RemoteError) from error
    mark_completed()
    if not is_committed:
        _undo(journal, lost)
        raise RemoteError(f"{server.step.database}: {lost}; home and database are unchanged")


def _incomplete(journal: Journal, reason: object, kind: type[OpsError] = OpsError) -> OpsError:
    home = home_of(journal.path)
    return kind(
        f"home {home}: restore not completed, {reason}",
        hint=f"sagewai-ops --home {shell_word(home)} recover",
    )


@uninterrupted()
def conclude(journal: Journal) -> bool:
    """Remove the leftovers of a journal that is completed or undone, and the journal itself.

    What cannot be removed is left to `sweep`.
    """
    staging = journal.path.with_suffix("")
    with contextlib.suppress(OSError):
        if swap_journal.state_of(journal) not in (State.UNTOUCHED, State.DONE):
            return False
        # Renamed while the journal exists: without one, an unmarked staging may be a home.
        doomed = _doomed(staging) if beneath.exists(staging) else None
        beneath.unlink(journal.path)
        if doomed:
            beneath.remove_tree(doomed)
        return True
    return False


def sweep(target: Path) -> list[str]:
    """Remove what restores left that died before or after their moves; return the names.

    What cannot be removed is left for the next run.
    """
    removed: list[str] = []
    for path in journals(target):
        with contextlib.suppress(OSError, OpsError):
            if locks.is_abandoned(path) and _settle(path):
                removed.append(path.name)
    for naming in (next_to(target), inside(target)):
        for path in [
            *naming.list(naming.hidden + _STAGING),
            *naming.list(naming.hidden + _DISCARD),
        ]:
            with contextlib.suppress(OSError):
                if is_trusted(path) and locks.is_abandoned(path) and _is_garbage(path):
                    _discard(path)
                    removed.append(path.name)
    return removed


@uninterrupted()
def _undo(journal: Journal, reason: BaseException) -> None:
    try:
        swap_journal.roll_back(journal)
    except (OSError, OpsError) as error:
        raise OpsError(
            f"{journal.base}: neither completed nor rolled back, {error}",
            hint=f"sagewai-ops --home {shell_word(home_of(journal.path))} recover",
        ) from reason
    conclude(journal)


def home_of(path: Path) -> Path:
    """Return the home that a journal, by its name, is about."""
    hidden, _, _moment = path.name.rpartition(_STAGING)
    return path.parent if hidden == OWN_PREFIX else path.with_name(hidden[1:-1])


def moment_of(path: Path) -> str:
    """Return the moment in the name of a staging or a kept directory."""
    return path.name.rpartition(_STAGING)[2]


def _journal_of(staging: Path) -> Path:
    return staging.with_name(staging.name + ".json")


@uninterrupted()
def _settle(path: Path) -> bool:
    """Clean up after a journal whose moves are all undone or all done; else leave it."""
    journal = swap_journal.read(path)
    state = swap_journal.state_of(journal)
    if state is State.UNTOUCHED:
        if journal.server:
            return False
        swap_journal.roll_back(journal)
    elif state is State.DONE:
        swap_journal.complete(journal)
    else:
        return False
    return conclude(journal)


def _is_garbage(path: Path) -> bool:
    """Return whether a directory with the name of a staging is one, and has no journal."""
    if beneath.exists(_journal_of(path)) or not _is_directory(path):
        return False
    names = beneath.list_directory(path)
    return _DISCARD in path.name or _MARK in names or not names


@uninterrupted()
def _discard(path: Path) -> None:
    beneath.remove_tree(path if _DISCARD in path.name else _doomed(path))


def _doomed(staging: Path) -> Path:
    """Rename a staging, so that a killed removal leaves a name that marks it as garbage."""
    head, _, moment = staging.name.rpartition(_STAGING)
    doomed = staging.with_name(f"{head}{_DISCARD}{moment}")
    beneath.rename(staging, doomed)
    return doomed


def _is_directory(path: Path) -> bool:
    """Return whether a path is a directory itself, not a link to one."""
    try:
        return stat.S_ISDIR(beneath.status(path).st_mode)
    except OSError:
        return False
