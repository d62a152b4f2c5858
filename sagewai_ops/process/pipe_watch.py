"""Notice a thread of this process that waits for the other end of a pipe.

Who owns a directory can put a pipe in the place of a file at any moment. This program opens files
without waiting, but SQLite and other libraries do not. On Linux the kernel shows what each thread
waits for; elsewhere nothing is noticed.
"""

import _thread
import ctypes
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

_TASKS = "/proc/self/task"
_WAITS = ("wait_for_partner", "fifo_open")  # fs/pipe.c
_PAUSE_SECONDS = 2.0
_TURNS = 5  # that a thread waits before it counts: no process of ours opens a pipe by its name
_OPEN = {"2": 0, "257": 1, "56": 1}  # open, openat on x86-64 and on ARM: the argument with the path


def watch_pipes(report: Callable[[str], None]) -> None:
    """Call a function, from another thread, when a thread has waited at a pipe for ten seconds.

    Args:
        report: Called once, with the path of the pipe, "" if that is not known.
    """
    # Not `threading.Thread`: a signal during its `start` leaves a message on stderr.
    _thread.start_new_thread(_watch, (report,))


def _watch(report: Callable[[str], None]) -> None:
    turns: dict[str, int] = {}
    while True:
        time.sleep(_PAUSE_SECONDS)
        turns = {task: turns.get(task, 0) + 1 for task in _waiting()}
        for task, number in turns.items():
            if number >= _TURNS:
                report(_path(task))
                return


def _waiting() -> Iterator[str]:
    with suppress(OSError):
        for task in os.listdir(_TASKS):
            if _read(f"{_TASKS}/{task}/wchan") in _WAITS:
                yield task


def _path(task: str) -> str:
    """Return the path that a waiting thread opens; its memory is this process's."""
    with suppress(LookupError, ValueError):
        number, *words = _read(f"{_TASKS}/{task}/syscall").split()
        return os.fsdecode(ctypes.string_at(int(words[_OPEN[number]], 16)))
    return ""


def _read(path: str) -> str:
    with suppress(OSError), open(path, encoding="ascii") as stream:
        return stream.read().strip("\0\n ")
    return ""
