"""Processes as the system shows them: who holds a lock on a file, what it runs, since when.

Linux tells through `/proc`; elsewhere the answers are empty, never wrong.
"""

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

_COMMAND_CHARACTERS = 120  # enough to recognise a command line in one terminal row


@dataclass(frozen=True, slots=True)
class Process:
    """A process of this machine.

    Attributes:
        pid: 0 where it lives in another container and its number cannot be seen from here.
        command: Its command line, shortened; "" where it cannot be read.
        started_at: UTC; None where it cannot be read.
    """

    pid: int
    command: str = ""
    started_at: datetime | None = None


def look_up(pid: int) -> Process:
    """Read what can be read of a process; one that has ended gives its number alone."""
    if pid <= 0:
        return Process(0)
    return Process(pid, _command_of(pid), _started_at(pid))


def describe(process: Process) -> str:
    """Name a process in one phrase for an error message."""
    if process.pid == 0:
        return "a process in another container"
    phrase = f"pid {process.pid}"
    if process.command:
        phrase += f" ({process.command})"
    if process.started_at:
        phrase += f", since {process.started_at:%Y-%m-%d %H:%M:%S}Z"
    return phrase


def lock_holders(path: Path, kind: str = "FLOCK") -> tuple[Process, ...]:
    """Name the processes that hold a lock of a kind (FLOCK, POSIX, OFDLCK) on a file or folder."""
    try:
        status = os.stat(path)
    except OSError:
        return ()
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    wanted = f"{device}:{status.st_ino}"
    pids = {pid for held, pid, place in _locks() if held == kind and place == wanted}
    return tuple(look_up(pid) for pid in sorted(pids))


def _locks() -> Iterator[tuple[str, int, str]]:
    """Yield (kind, pid, device:inode) for every held lock; proc(5), `/proc/locks`."""
    try:
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return
    for line in lines:
        fields = line.split()
        # A line with -> is a waiter, not a holder.
        if len(fields) >= 6 and fields[1] != "->":
            yield fields[1], max(int(fields[4]), 0), fields[5]


def _command_of(pid: int) -> str:
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    words = [os.fsdecode(word) for word in raw.split(b"\0") if word]
    text = shlex.join(words)
    return text if len(text) <= _COMMAND_CHARACTERS else text[: _COMMAND_CHARACTERS - 1] + "…"


def _started_at(pid: int) -> datetime | None:
    try:
        # Field 22, counted after the command name, which may itself hold spaces and brackets.
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        boot = next(
            int(line.split()[1])
            for line in Path("/proc/stat").read_text().splitlines()
            if line.startswith("btime ")
        )
    except (OSError, ValueError, IndexError, StopIteration):
        return None
    return datetime.fromtimestamp(boot + ticks / os.sysconf("SC_CLK_TCK"), timezone.utc)
