"""Processes: their commands, their starts, and their locks on files.

Linux shows them in `/proc`; on other systems the results are empty, never wrong.
"""

import os
import re
import struct
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timezone
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from sagewai_ops.records import dataclass

_PROC = Path("/proc")
_COMMAND_CHARACTERS = 200
_ESTABLISHED = "01"  # TCP_ESTABLISHED of include/net/tcp_states.h
_NEEDED = ("PATH", "TMPDIR", "SQLITE_TMPDIR", "TZ", "LANG")
_NEEDED_BEGINNINGS = ("LC_", "LD_", "DYLD_", "PYTHON")  # language, and paths of libraries
_PS_SECONDS = 10.0
_URL_PASSWORD = re.compile(r"(://[^/\s:@]*:)[^@\s]*@")
_SECRET_OPTION = re.compile(
    r"^(--?[\w-]*(?:token|secret|password|passphrase|key)[\w-]*)=.*", re.IGNORECASE
)
_SECRET_NAME = re.compile(
    r"^--?[\w-]*(?:token|secret|password|passphrase|key)[\w-]*$", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Process:
    """A process of this machine.

    Attributes:
        pid: 0 for a process of another container, whose number is not visible.
        command: Its command line, shortened, without passwords; "" if it is not readable.
        started_at: UTC; None if it is not readable.
    """

    pid: int
    command: str = ""
    started_at: datetime | None = None


def read_process(pid: int) -> Process:
    """Read command and start of a process; of one that has ended only the number remains."""
    if pid <= 0:
        return Process(0)
    return Process(pid, _command(pid), _started_at(pid))


def describe(process: Process) -> str:
    """Return a process as a phrase for an error message."""
    if process.pid == 0:
        return "a process in another container"
    phrase = f"pid {process.pid}"
    if process.command:
        phrase += f" ({process.command})"
    if process.started_at:
        phrase += f", since {process.started_at:%Y-%m-%d %H:%M:%S}Z"
    return phrase


def lock_holders(path: Path) -> tuple[Process, ...]:
    """Return the processes with an flock(2) lock on a file or directory."""
    try:
        status = os.stat(path)
    except OSError:
        return ()
    wanted = ("FLOCK", (status.st_dev, status.st_ino))
    pids = {pid for kind, pid, file in read_locks() if (kind, file) == wanted}
    return tuple(read_process(pid) for pid in sorted(pids))


def tcp_client(address: str, port: int) -> Process | None:
    """Return the process of this machine with an end of an established connection.

    Source: the kernel's Documentation/networking/proc_net_tcp.rst.

    Args:
        address, port: Of this end.

    Returns:
        None if it is on another machine, or of another user (unless this one is root).
    """
    with suppress(ValueError, OSError):
        wanted = ip_address(address)
        for table in ("tcp", "tcp6"):
            for line in (_PROC / "net" / table).read_text("ascii").splitlines()[1:]:
                fields = line.split()
                place, _, number = fields[1].partition(":")
                if int(number, 16) == port and fields[3] == _ESTABLISHED:
                    found = _kernel_address(bytes.fromhex(place))
                    if wanted in (found, getattr(found, "ipv4_mapped", None)):
                        return _owner_of_socket(fields[9])
    return None


def _kernel_address(value: bytes) -> IPv4Address | IPv6Address:
    """Return an address of which the kernel printed words of 32 bits in its own byte order."""
    words = struct.unpack(f"={len(value) // 4}I", value)
    return ip_address(struct.pack(f">{len(words)}I", *words))


def open_descriptors() -> Iterator[tuple[int, list[str]]]:
    """Yield each process that we may inspect, with the links to its open files."""
    for directory in _PROC.glob("[0-9]*/fd"):
        with suppress(OSError):  # it ended, or it belongs to another user
            links = [f"{directory}/{name}" for name in os.listdir(directory)]
            yield int(directory.parent.name), links


def _owner_of_socket(inode: str) -> Process | None:
    for pid, links in open_descriptors():
        with suppress(OSError):  # one was closed since
            if any(os.readlink(link) == f"socket:[{inode}]" for link in links):
                return read_process(pid)
    return None


def user_of(process: Process) -> int | None:
    """Return the effective uid of a process; None if it is not readable."""
    with suppress(OSError, ValueError, IndexError):
        for line in (_PROC / str(process.pid) / "status").read_text("utf-8", "replace").split("\n"):
            if line.startswith("Uid:"):
                return int(line.split()[2])
    return None


def read_locks(*, waiting: bool = False) -> Iterator[tuple[str, int, tuple[int, int]]]:
    """Yield kind, process, and file (device and inode) of each lock; proc(5), `/proc/locks`.

    The number of a process of another container is 0.

    Args:
        waiting: Also of those who wait for it.
    """
    try:
        lines = (_PROC / "locks").read_text("ascii").splitlines()
    except OSError:
        return
    for line in lines:
        words = [word for word in line.split() if word != "->"]  # a waiting process
        with suppress(ValueError, IndexError):
            major, minor, inode = words[5].split(":")
            if waiting or "->" not in line:
                device = os.makedev(int(major, 16), int(minor, 16))
                yield words[1], max(int(words[4]), 0), (device, int(inode))


def stat_fields(pid: int) -> list[str]:
    """Return what follows the name of a process in proc(5), `/proc/PID/stat`, from field 3 on.

    Raises:
        OSError: It has ended, or there is no /proc.
    """
    text = (_PROC / str(pid) / "stat").read_text("utf-8", "replace")
    # The name of the program is in parentheses and can contain anything, a parenthesis too.
    return text.rpartition(")")[2].split()


def minimal_environment() -> dict[str, str]:
    """Return the environment for a child process, without variables that can contain secrets."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in _NEEDED or name.startswith(_NEEDED_BEGINNINGS)
    }


def _command(pid: int) -> str:
    if not pid:
        return ""
    try:
        words = os.fsdecode((_PROC / str(pid) / "cmdline").read_bytes()).split("\0")
    except OSError:
        return _command_of_ps(pid)
    return _presentable([word for word in words if word])


def _command_of_ps(pid: int) -> str:
    """Ask `ps`, where there is no /proc."""
    if _PROC.joinpath("self").exists():
        return ""
    with suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(
            ["/bin/ps", "-o", "command=", "-p", str(pid)],
            capture_output=True,
            timeout=_PS_SECONDS,
            check=True,
            env=minimal_environment(),
        )
        return _presentable(os.fsdecode(answer.stdout).split())
    return ""


def _presentable(words: list[str]) -> str:
    """Join a command line, with *** in place of secrets."""
    shown: list[str] = []
    hide = False
    for word in words:
        shown.append("***" if hide else _SECRET_OPTION.sub(r"\1=***", word))
        hide = bool(_SECRET_NAME.match(word))
    line = _URL_PASSWORD.sub(r"\1***@", " ".join(shown))
    printable = "".join(character if character.isprintable() else "?" for character in line)
    return printable[:_COMMAND_CHARACTERS]


def _started_at(pid: int) -> datetime | None:
    """Add the start, in clock ticks after boot, to the time of boot (proc(5), field 22 of stat)."""
    with suppress(OSError, ValueError, IndexError):
        ticks = int(stat_fields(pid)[19])
        for line in (_PROC / "stat").read_text("ascii").splitlines():
            if line.startswith("btime "):
                seconds = int(line.split()[1]) + ticks / os.sysconf("SC_CLK_TCK")
                return datetime.fromtimestamp(seconds, timezone.utc)
    return None
