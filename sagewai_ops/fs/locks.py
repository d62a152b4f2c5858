"""One run at a time on a directory: an OS lock that dies with its process.

The lock is `flock` on the directory itself: nothing is written, so it works on a read-only home and
leaves nothing behind after a kill or a reboot. Who holds it is read from the system, where the
system tells; it is always a process of this machine, for on a network file system such a lock
keeps those of one machine apart.

A home is held by whatever changes it or must see it at rest, a snapshot directory by whatever
changes the names and cards of finished snapshots. Who reads a home or a snapshot holds neither:
archives never change, and one that is moved or removed stays readable for who has it open.
"""

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from sagewai_ops.errors import LockedError, OpsError
from sagewai_ops.fs.os_errors import from_os_error
from sagewai_ops.process.procfs import Process, describe, lock_holders

_POLL_SECONDS = 0.1
_GUARD_SECONDS = 5.0


@contextlib.contextmanager
def exclusive(path: Path, *, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold a directory for the length of the block.

    Args:
        path: A directory that exists.
        wait_seconds: How long to wait for another holder; 0 refuses at once.

    Raises:
        LockedError: Somebody else holds it; the message names who.
    """
    with _hold(path, fcntl.LOCK_EX, wait_seconds):
        yield


@contextlib.contextmanager
def shared(path: Path, *, wait_seconds: float = 0.0) -> Iterator[int]:
    """Keep writers of a directory away for the length of the block; other readers may come in.

    Returns:
        A descriptor of the directory, which stays the one that is held if its name is given away.

    Raises:
        LockedError: A writer holds it; the message names who.
    """
    with _hold(path, fcntl.LOCK_SH, wait_seconds) as descriptor:
        yield descriptor


def hold_open(descriptor: int) -> None:
    """Lock a file or directory of this run's own for as long as it is open, so nobody sweeps it.

    Where the file system has no locks there is nothing to hold: nothing is swept there either.
    """
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def guarded(directory: Path) -> Iterator[None]:
    """Keep other runs from sweeping a directory while names are made in it, and the reverse.

    Between the making of a file and its lock it looks abandoned. The block lasts moments, so after
    `_GUARD_SECONDS` somebody else holds the directory for another reason and is not waited for.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _GUARD_SECONDS
        with contextlib.suppress(OpsError):
            _take(directory, descriptor, fcntl.LOCK_EX, deadline)
        yield
    finally:
        os.close(descriptor)


def is_abandoned(path: Path) -> bool:
    """Tell whether nobody alive holds the file or directory, so that its leftovers can go."""
    try:
        # Without O_NONBLOCK a pipe of that name would hold us for ever.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(path, flags)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


@contextlib.contextmanager
def _hold(path: Path, operation: int, wait_seconds: float) -> Iterator[int]:
    deadline = time.monotonic() + wait_seconds
    while True:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _take(path, descriptor, operation, deadline)
            if _is_still(path, descriptor):
                yield descriptor
                return
            # The directory was swapped for another while we waited: lock the one that is there.
        finally:
            os.close(descriptor)


def _take(path: Path, descriptor: int, operation: int, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise from_os_error(error, path) from error
        else:
            return
        if time.monotonic() >= deadline:
            raise LockedError(
                f"{path}: another run holds it, on {socket.gethostname()}: "
                + _names(lock_holders(path)),
                hint="wait for it to end, or let this run wait: --wait SECONDS",
            )
        time.sleep(_POLL_SECONDS)


def _names(holders: tuple[Process, ...]) -> str:
    return ", ".join(describe(holder) for holder in holders) or "a process that cannot be seen"


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
