"""Find the processes that have a database, or another file of a home, open.

Three sources, none of them complete: the open files of every process (`/proc/PID/fd`; not those of
other users, unless we are root), the kernel's list of locks (`/proc/locks`; not those of another
container), and the owner of a conflicting lock (`F_GETLK`; one process at a time, and a process of
another container without its number). An idle Sagewai has SQLite's locks as long as it runs, and a
process that dies loses them.

Nothing here opens the database in this process: closing a descriptor would drop the locks of every
SQLite connection that this process has on it. `F_GETLK` runs in a short-lived child. Processes on
another machine, over a network file system, are not found.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from sagewai_ops.database.sqlite.read_transaction import (
    PENDING_BYTE,
    SHARED_FIRST,
    SHARED_SIZE,
    sidecar,
)
from sagewai_ops.errors import TargetBusyError
from sagewai_ops.home.companions import NAME, SOCKET, STOP, is_companion_process
from sagewai_ops.home.paths import (
    ADMIN_STATE,
    CONNECTIONS,
    LEGACY_PLACES,
    MASTER_KEY,
    OWN_PREFIX,
    PROFILES,
)
from sagewai_ops.process.interpreter import find_interpreter
from sagewai_ops.process.open_files import find_openers, identities
from sagewai_ops.process.procfs import (
    Process,
    describe,
    open_descriptors,
    read_locks,
    read_process,
)
from sagewai_ops.text import shell_word

# Found by their identity: a container has other paths. Sagewai has the lock for milliseconds.
_DOCUMENTS = (
    *(ADMIN_STATE, f"{ADMIN_STATE}.lock", CONNECTIONS, PROFILES, MASTER_KEY),
    *LEGACY_PLACES,
)
_OWN_RUN = re.compile(r"(?:\S*python\S* )?(?:\S*/)?sagewai-ops(?: |$)")
_PROBE_SECONDS = 10.0  # an interpreter that starts takes 0.02; a network file system may hang
# The locks of a WAL database's shared memory file: eight at 120, and at 128 the one that every
# connection has shared as long as it is open (the dead man's switch of os_unix.c).
_SHARED_MEMORY_FIRST = 120
_SHARED_MEMORY_SIZE = 9
# `struct flock` of 64-bit Linux and macOS. The arguments are files and ranges; the child prints the
# number of each process that has a lock which conflicts with a write lock.
_PROBE = """
import fcntl, os, struct, sys
apple = sys.platform == "darwin"
layout = "qqihh" if apple else "hhqqi"
for path, first, size in zip(sys.argv[1::3], sys.argv[2::3], sys.argv[3::3]):
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        continue
    place = (int(first), int(size), 0)
    kind = (fcntl.F_WRLCK, os.SEEK_SET)
    question = struct.pack(layout, *place, *kind) if apple else struct.pack(layout, *kind, *place)
    answer = struct.unpack(layout, fcntl.fcntl(descriptor, fcntl.F_GETLK, question))
    if answer[3 if apple else 0] != fcntl.F_UNLCK:
        print(answer[2 if apple else 4])
"""


def find_users(
    *databases: Path, root: Path | None = None, include_self: bool = False
) -> tuple[Process, ...]:
    """Return the processes that have one of the databases open, by number.

    Args:
        databases: The main files; need not exist.
        root: A home, any file of which counts.
        include_self: Include this process, if it is one of them.
    """
    pids: set[int] = set()
    for database in dict.fromkeys(Path(os.path.realpath(database)) for database in databases):
        files = [database, *(sidecar(database, suffix) for suffix in ("-wal", "-shm"))]
        if known := identities(files):
            pids |= {*_lock_owners(known), *_openers(known), *_blockers(database)}
    if root is not None:
        documents = [root / name for name in _DOCUMENTS]
        pids |= find_openers(Path(os.path.realpath(root)), documents, ignored=OWN_PREFIX)
    if not include_self:
        pids.discard(os.getpid())
    return tuple(read_process(pid) for pid in sorted(pids))


def require_unused(root: Path, *databases: Path, sessions: Iterable[str] = ()) -> None:
    """Check that no process has a database or another file of a home open.

    Args:
        root: The home, for the message.
        databases: The main files; need not exist.
        sessions: Other sessions on the server of the home's database.

    Raises:
        TargetBusyError: It is in use; the message names each process.
    """
    users = find_users(*databases, root=root)
    names = [*map(describe, users), *sessions]
    if names:
        raise TargetBusyError(
            f"home {root}: in use by {', '.join(names)}",
            hint=stop_command(users, databases[0])
            or f"sagewai-ops --home {shell_word(root)} status",
        )


def stop_command(users: Iterable[Process], database: Path) -> str:
    """Return the commands that stop the processes, one a line.

    Args:
        database: That they use.

    Returns:
        "" if none has a number that is visible here.
    """
    ours: list[str] = []
    others: list[str] = []
    has_companion = False
    for user in users:
        if not user.pid:
            continue
        if is_companion_process(user.command):
            has_companion = True
        elif _OWN_RUN.match(user.command):
            ours.append(str(user.pid))
        else:
            others.append(str(user.pid))
    lines = [f"# wait until sagewai-ops ends: pid {', '.join(ours)}"] if ours else []
    lines += [f"kill {' '.join(others)}  # or stop its service"] if others else []
    if has_companion:
        lines += [STOP, f"{NAME} stop -socket {SOCKET} {shell_word(database)}"]
    return "\n".join(lines)


def _openers(known: Mapping[tuple[int, int], Path]) -> Iterator[int]:
    """Search the open files of every process that we may inspect."""
    names = {os.fsencode(path.name) for path in known.values()}
    for pid, links in open_descriptors():
        if any(_is_database(link, names, known) for link in links):
            yield pid


def _is_database(link: str, names: set[bytes], known: Mapping[tuple[int, int], Path]) -> bool:
    try:
        # By name first: the status of a file on a dead file server can hang.
        if os.path.basename(os.readlink(os.fsencode(link))) not in names:
            return False
        status = os.stat(link)
    except OSError:
        return False
    return (status.st_dev, status.st_ino) in known


def _lock_owners(known: Mapping[tuple[int, int], Path]) -> Iterator[int]:
    """Search the kernel's list of locks."""
    for _kind, pid, file in read_locks(waiting=True):
        if file in known and pid > 0:
            yield pid


def _blockers(resolved: Path) -> Iterator[int]:
    """Query the owners of conflicting locks, from a child that has no file of the database open."""
    if not sys.executable:
        return
    ranges = [
        (sidecar(resolved, "-shm"), _SHARED_MEMORY_FIRST, _SHARED_MEMORY_SIZE),
        (resolved, PENDING_BYTE, SHARED_FIRST - PENDING_BYTE + SHARED_SIZE),
    ]
    interpreter = find_interpreter()
    arguments = [word for path, *place in ranges for word in (os.fspath(path), *map(str, place))]
    try:
        answer = subprocess.run(
            [*interpreter.command(_PROBE), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PROBE_SECONDS,
            check=True,
            env=interpreter.variables,
            pass_fds=interpreter.descriptors,
        )
    except (OSError, subprocess.SubprocessError):
        return
    yield from (int(line) for line in answer.stdout.split())
