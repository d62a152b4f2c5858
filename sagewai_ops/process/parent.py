"""Parent and child: a signal when the parent ends, and the end of a child that is stopped."""

import _thread
import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PAUSE_SECONDS = 2.0  # between two looks at a child
_STOPPED_TURNS = 5


def parent_death_signal(number: int) -> Callable[[], None]:
    """Return a function that requests a signal for this process when its parent ends.

    A change of the process's user cancels the request. The function imports nothing, so it can be
    called between fork and exec. On systems other than Linux it does nothing.
    """
    library, number = ctypes.CDLL(None), int(number)
    if not hasattr(library, "prctl"):
        return lambda: None

    def request() -> None:
        library.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)

    return request


def end_if_stopped(child: int) -> None:
    """End a child that stays stopped: its user may stop it, and root's process waits for it.

    At a terminal, the two are stopped and continued together.

    Args:
        child: The number of the process.
    """
    _thread.start_new_thread(_end_stopped, (child,))


def _end_stopped(child: int) -> None:
    turns = 0
    with contextlib.suppress(ChildProcessError, ProcessLookupError, AttributeError):
        while turns < _STOPPED_TURNS:
            time.sleep(_PAUSE_SECONDS)
            found = os.waitid(os.P_PID, child, os.WSTOPPED | os.WNOHANG | os.WNOWAIT)
            turns = turns + 1 if found else 0
        os.kill(child, signal.SIGKILL)
