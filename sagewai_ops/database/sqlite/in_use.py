"""Name the processes that have a database open.

Three witnesses, because each is blind to something: the open files of every process
(`/proc/PID/fd`; not those of other users, unless we are root), the kernel's list of locks
(`/proc/locks`; not those of another container), and the kernel's answer to who is in the way of a
lock (`F_GETLK`; one process at a time, and a process of another container without its number). An
idle Sagewai holds SQLite's locks for as long as it lives, and a process that dies loses them.

Nothing here opens the database in this process: closing a descriptor would drop the locks of every
SQLite connection that this process has on it. The question to the kernel is asked by a short-lived
child. What runs on another machine, over a network file system, is not seen.
"""

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from sagewai_ops.database.sqlite.read_transaction import (
    PENDING_BYTE,
    SHARED_FIRST,
    SHARED_SIZE,
    sidecar,
)
from sagewai_ops.errors import TargetBusyError
from sagewai_ops.process.procfs import Process, bare_environment, describe, look_up
from sagewai_ops.text import shell_word

_PROC = Path("/proc")
_PROBE_SECONDS = 10.0  # an interpreter that starts takes 0.02; a network file system may hang
# The locks of a WAL database's shared memory file: eight at 120, and at 128 the one that every
# connection holds shared for its life (os_unix.c calls it the dead man's switch).
_SHARED_MEMORY_FIRST = 120
_SHARED_MEMORY_SIZE = 9
# `struct flock` as 64-bit Linux and macOS lay it out. Told the files and ranges by its arguments,
# the child prints the number of each process that would be in the way of a write lock.
_PROBE = """
import fcntl, os, struct, sys
apple = sys.platform == "darwin"
layout = "qqihh" if apple else "hhqqi"
for path, first, size in zip(sys.argv[1::3], sys.argv[2::3], sys.argv[3::3]):
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        continue
    place = (int(first), int(size), 0)
    kind = (fcntl.F_WRLCK, os.SEEK_SET)
    question = struct.pack(layout, *place, *kind) if apple else struct.pack(layout, *kind, *place)
    answer = struct.unpack(layout, fcntl.fcntl(descriptor, fcntl.F_GETLK, question))
    if answer[3 if apple else 0] != fcntl.F_UNLCK:
        print(answer[2 if apple else 4])
"""


def find_users(*databases: Path, include_self: bool = False) -> tuple[Process, ...]:
    """Return the processes that have one of the databases open, by number.

    Args:
        databases: The main files; need not exist.
        include_self: Include this process, if it is one of them.
    """
    pids: set[int] = set()
    for database in dict.fromkeys(Path(os.path.realpath(database)) for database in databases):
        files = [database, *(sidecar(database, suffix) for suffix in ("-wal", "-shm"))]
        identities = {(status.st_dev, status.st_ino): path for path, status in _existing(files)}
        if identities:
            pids |= {*_lock_owners(set(identities)), *_openers(identities), *_blockers(database)}
    if not include_self:
        pids.discard(os.getpid())
    return tuple(look_up(pid) for pid in sorted(pids))


def require_unused(root: Path, *databases: Path, sessions: Iterable[str] = ()) -> None:
    """Check that no process has a database of a home open.

    Args:
        root: The home, for the message.
        databases: The main files; need not exist.
        sessions: What a server reports of its own: others that are connected to the database.

    Raises:
        TargetBusyError: Some process has; the message names each.
    """
    users = find_users(*databases)
    names = [*map(describe, users), *sessions]
    if names:
        raise TargetBusyError(
            f"home {root}: in use by {', '.join(names)}",
            hint=stop_command(users) or f"sagewai-ops --home {shell_word(root)} status",
        )


def stop_command(users: Iterable[Process]) -> str:
    """Return the command that stops processes; "" if none has a number that is visible here."""
    pids = [str(user.pid) for user in users if user.pid]
    return f"kill {' '.join(pids)}  # or stop its service" if pids else ""


def _existing(files: list[Path]) -> Iterator[tuple[Path, os.stat_result]]:
    for path in files:
        with suppress(OSError):
            yield path, path.stat()


def _openers(identities: dict[tuple[int, int], Path]) -> Iterator[int]:
    """Look through the open files of every process that we may inspect."""
    names = {os.fsencode(path.name) for path in identities.values()}
    for directory in _PROC.glob("[0-9]*/fd"):
        with suppress(OSError):  # it ended, or it belongs to somebody else
            if any(
                _is_one(f"{directory}/{name}", names, identities) for name in os.listdir(directory)
            ):
                yield int(directory.parent.name)


def _is_one(link: str, names: set[bytes], identities: dict[tuple[int, int], Path]) -> bool:
    try:
        # By name first: asking for the status of just any file can hang on a dead file server.
        if os.path.basename(os.readlink(os.fsencode(link))) not in names:
            return False
        status = os.stat(link)
    except OSError:
        return False
    return (status.st_dev, status.st_ino) in identities


def _lock_owners(identities: set[tuple[int, int]]) -> Iterator[int]:
    """Read the kernel's list: `1: POSIX ADVISORY READ <pid> <major>:<minor>:<inode> <range>`."""
    try:
        lines = (_PROC / "locks").read_text("ascii").splitlines()
    except OSError:
        return
    for line in lines:
        words = [word for word in line.split() if word != "->"]  # one that waits
        with suppress(ValueError, IndexError):
            major, minor, inode = words[5].split(":")
            pid = int(words[4])
            device = os.makedev(int(major, 16), int(minor, 16))
            if (device, int(inode)) in identities and pid > 0:
                yield pid


def _blockers(resolved: Path) -> Iterator[int]:
    """Ask the kernel, from a child that has nothing of the database open."""
    if not sys.executable:
        return
    ranges = [
        (sidecar(resolved, "-shm"), _SHARED_MEMORY_FIRST, _SHARED_MEMORY_SIZE),
        (resolved, PENDING_BYTE, SHARED_FIRST - PENDING_BYTE + SHARED_SIZE),
    ]
    arguments = [word for path, *place in ranges for word in (os.fspath(path), *map(str, place))]
    try:
        answer = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _PROBE, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PROBE_SECONDS,
            check=True,
            env=bare_environment(),
        )
    except (OSError, subprocess.SubprocessError):
        return
    yield from (int(line) for line in answer.stdout.split())
