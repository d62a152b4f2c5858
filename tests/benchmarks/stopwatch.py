"""What a command costs: wall time, processor time and the peak memory of all its processes.

Memory is the resident set summed over the processes that live at the same moment, looked up in
/proc every few milliseconds, and at least what the kernel states of the largest single process,
if that is more than the memory of the measuring process.
Where there is no /proc it is only the latter.
"""

import os
import platform
import resource
import statistics
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_PAUSE_SECONDS = 0.01  # between two looks at the memory; one look takes 0.1 ms
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_MAXRSS_BYTES = 1 if platform.system() == "Darwin" else 1024  # unit of ru_maxrss
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Cost:
    """What one run took.

    Attributes:
        wall_seconds: From the start to the end of the last process.
        cpu_seconds: User and system time of all processes.
        peak_bytes: Most memory at one moment.
    """

    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int


def measure(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> Cost:
    """Run a command and return what it took.

    What earlier runs left to be written is written first, so that no run pays for another.

    Args:
        environment: Added to ours.
        directory: To run in.

    Raises:
        RuntimeError: It ended with another code than 0; the message has its output.
    """
    os.sync()
    with subprocess.Popen(
        command,
        env={**os.environ, **(environment or {})},
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        begun = time.perf_counter()
        watch = _Watch(process.pid)
        watch.start()
        assert process.stderr is not None
        output = process.stderr.read()  # ends with the last process, as all inherit it
        _, status, usage = os.wait4(process.pid, 0)
        wall_seconds = time.perf_counter() - begun
        watch.ended.set()
        watch.join()
        process.returncode = os.waitstatus_to_exitcode(status)
    # The kernel counts the memory of this process too, whose copy each begins as.
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    largest = usage.ru_maxrss if usage.ru_maxrss > own or not watch.peak_bytes else 0
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit {process.returncode}, {output.decode()}")
    return Cost(
        wall_seconds=wall_seconds,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        peak_bytes=max(watch.peak_bytes, largest * _MAXRSS_BYTES),
    )


def best(costs: Sequence[Cost]) -> Cost:
    """Return the shortest of several runs, with the most memory that any of them took."""
    shortest = min(costs, key=lambda cost: cost.wall_seconds)
    return Cost(
        shortest.wall_seconds,
        min(cost.cpu_seconds for cost in costs),
        max(cost.peak_bytes for cost in costs),
    )


def median(costs: Sequence[Cost]) -> Cost:
    """Return the medians of several runs, with the most memory that any of them took."""
    return Cost(
        statistics.median(cost.wall_seconds for cost in costs),
        statistics.median(cost.cpu_seconds for cost in costs),
        max(cost.peak_bytes for cost in costs),
    )


def tree_bytes(path: Path) -> int:
    """Sum the sizes of a file, or of all files below a directory."""
    if path.is_file():
        return path.stat().st_size
    return sum(item.lstat().st_size for item in path.rglob("*") if not item.is_dir())


def machine(repository: Path) -> str:
    """Describe where this runs, in one line: processor, memory, system, Python, commit."""
    commit = _answer(["git", "-C", os.fspath(repository), "describe", "--always", "--dirty"])
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return ", ".join((
        f"{_processor()}, {os.cpu_count()} cores",
        f"{memory:.0f} GB of memory",
        f"{platform.system()} {platform.release()}",
        f"{platform.python_implementation()} {platform.python_version()}",
        f"commit {commit or 'unknown'}",
    ))  # fmt: skip


def version(command: Sequence[str]) -> str:
    """Return the first line that a program prints about itself; "" if it is not there."""
    return _answer(command).split("\n", 1)[0]


class _Watch(threading.Thread):
    """Sample the memory of a process and its descendants until it is asked to end."""

    def __init__(self, pid: int) -> None:
        super().__init__(name="watch", daemon=True)
        self._pid = pid
        self.ended = threading.Event()
        self.peak_bytes = 0

    def run(self) -> None:
        while _PROC.is_dir() and not self.ended.wait(_PAUSE_SECONDS):
            self.peak_bytes = max(self.peak_bytes, _resident_bytes(self._pid))


def _resident_bytes(pid: int) -> int:
    """Sum the resident memory of a process and its descendants; who is gone counts nothing."""
    try:
        pages = int((_PROC / str(pid) / "statm").read_text().split()[1])
        children = [
            int(child)
            for task in (_PROC / str(pid) / "task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except (OSError, IndexError):
        return 0
    return pages * _PAGE_BYTES + sum(map(_resident_bytes, children))


def _processor() -> str:
    try:
        lines = (_PROC / "cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _answer(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
