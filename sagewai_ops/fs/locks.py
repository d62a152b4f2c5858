"""Locks on directories and files, which end with the process that has them.

A lock is `flock` on the directory itself: nothing is written, so it works on a read-only home and
leaves nothing after a kill or a reboot. A lock of another user's process, where the system shows
whose it is, counts for nothing: then a private file in the directory is locked as well. The process
that has it is read from the system, where the system shows it; it is always a process of this
machine, because on a network file system such a lock excludes only processes of the same machine.

A command locks the home that it changes, or that must not change while it is read, and the snapshot
directory in which it changes names or metadata files of finished snapshots. To read a home or a
snapshot needs no lock: archives never change, and one that is moved or removed stays readable for
the process that has it open.
"""

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from sagewai_ops.errors import LockedError
from sagewai_ops.fs import beneath, volumes
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.fs.trust import is_trusted, report
from sagewai_ops.process.procfs import describe, lock_holders, user_of

_POLL_SECONDS = 0.02
_LOCK_FILE = ".sagewai-ops-lock"
_GUARD_SECONDS = 5.0  # a directory is guarded for milliseconds
_held: list[int] = []  # descriptors of the directories that this run has locked


def wait_for_lock(descriptor: int, operation: int, wait_seconds: float) -> bool:
    """Lock an open file or directory, waiting for other processes; return False at a timeout.

    Args:
        operation: `fcntl.LOCK_EX` or `fcntl.LOCK_SH`.

    Raises:
        OSError: The file system has no locks.
    """
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        else:
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)


def open_entry(path: Path) -> int:
    """Open a directory or a regular file to lock it."""
    try:
        return beneath.open_directory(path)
    except NotADirectoryError:
        return beneath.open_file(path)


@contextlib.contextmanager
def exclusive(path: Path, *, wait_seconds: float = 0.0) -> Iterator[None]:
    """Lock a directory for the block, against writers and readers.

    Args:
        path: A directory that exists.
        wait_seconds: For another process; 0 does not wait.

    Raises:
        LockedError: Another process has the lock; the message names it.
    """
    with _lock(path, fcntl.LOCK_EX, wait_seconds):
        yield


@contextlib.contextmanager
def shared(path: Path, *, wait_seconds: float = 0.0) -> Iterator[int]:
    """Lock a directory for the block against writers; other readers are admitted.

    Returns:
        A descriptor of the locked directory, valid also after its name is another's.

    Raises:
        LockedError: A writer has the lock; the message names it.
    """
    with _lock(path, fcntl.LOCK_SH, wait_seconds) as descriptor:
        yield descriptor


@contextlib.contextmanager
def optional_lock(
    path: Path, *, wait_seconds: float, operation: int = fcntl.LOCK_EX
) -> Iterator[None]:
    """Lock a file or directory for the block if that is possible, else run the block without.

    It is not where the file does not exist, the file system has no locks, or another process has
    the lock for all of the wait. A directory that this run has locked already needs no lock.
    """
    try:
        descriptor = open_entry(path)
    except OSError:
        yield
        return
    with beneath.closing(descriptor):
        is_held = any(os.path.sameopenfile(descriptor, other) for other in _held)
        with contextlib.suppress(OSError):
            wait_for_lock(descriptor, operation, 0 if is_held else wait_seconds)
        yield


@contextlib.contextmanager
def held(descriptor: int) -> Iterator[None]:
    """Record, for the block, that this run has locked an open directory."""
    _held.append(descriptor)
    try:
        yield
    finally:
        _held.remove(descriptor)


def sweep_guard(directory: Path) -> contextlib.AbstractContextManager[None]:
    """Exclude the sweeps of other runs while the block creates entries, and the reverse.

    Between its creation and its lock a file looks abandoned.
    """
    return optional_lock(directory, wait_seconds=_GUARD_SECONDS)


def mark_alive(descriptor: int) -> None:
    """Lock a file or directory of this run for as long as it is open, so that no sweep removes it.

    Where the file system has no locks, nothing is swept either.
    """
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_abandoned(path: Path, *, without_locks: bool = False) -> bool:
    """Return whether no live process has locked a file or directory, so that it can be removed.

    Args:
        without_locks: The answer for a file system without locks.
    """
    try:
        descriptor = open_entry(path)
    except OSError:
        return False
    try:
        return wait_for_lock(descriptor, fcntl.LOCK_EX, 0)
    except OSError as error:
        return without_locks and volumes.lacks(error)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _lock(path: Path, operation: int, wait_seconds: float) -> Iterator[int]:
    deadline = time.monotonic() + wait_seconds
    while True:
        with beneath.closing(beneath.open_directory(path)) as descriptor:
            with translate_os_errors(path):
                is_locked = _wait_or_note(path, descriptor, operation, deadline)
            is_foreign = not is_locked and _is_foreign(path, descriptor)
            if not is_locked and not is_foreign:
                raise _locked(path)
            if _has_name(path, descriptor):
                with _lock_file(path, operation, deadline, create=is_foreign), held(descriptor):
                    yield descriptor
                return
            # Another directory has been given the name during the wait: lock that one.


def _wait_or_note(path: Path, descriptor: int, operation: int, deadline: float) -> bool:
    """Wait for a lock; a file system without locks is noted, and runs exclude none there."""
    try:
        return wait_for_lock(descriptor, operation, deadline - time.monotonic())
    except OSError as error:
        if not volumes.lacks(error):
            raise
    volumes.note(
        os.fstat(descriptor).st_dev,
        "locks",
        f"{path}: this file system has no locks: no two runs at the same time",
    )
    return True


def _is_foreign(path: Path, descriptor: int) -> bool:
    """Return whether only processes of other users have locked a directory.

    A user who can read a directory can lock it, and would stop every backup.
    """
    users = {user_of(process) for process in lock_holders(path)}
    own = (None, 0, os.geteuid(), os.fstat(descriptor).st_uid)
    if not users or not users.isdisjoint(own):
        return False
    report(f"{path}: locked by uid {', '.join(map(str, users))}, ignored")
    return True


@contextlib.contextmanager
def _lock_file(path: Path, operation: int, deadline: float, *, create: bool) -> Iterator[None]:
    """Lock the file that excludes other runs where another user has locked the directory.

    It stays, and then every run locks it too: the other user can end its lock at any moment.
    """
    file = path / _LOCK_FILE
    if create:
        with translate_os_errors(file), contextlib.suppress(FileExistsError):
            os.close(beneath.create_file(file, 0o600))
    if not beneath.exists(file) or not (is_trusted(file) or create):
        yield
        return
    with translate_os_errors(file):
        descriptor = beneath.open_file(file)
    with beneath.closing(descriptor):
        with translate_os_errors(file):
            is_locked = wait_for_lock(descriptor, operation, deadline - time.monotonic())
        if not is_locked:
            raise _locked(file)
        yield


def _locked(path: Path) -> LockedError:
    names = ", ".join(describe(process) for process in lock_holders(path))
    return LockedError(
        f"{path}: locked by {names or 'a process that is not visible'}, on {socket.gethostname()}",
        hint="run it with --wait SECONDS",
    )


def _has_name(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(beneath.status(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
