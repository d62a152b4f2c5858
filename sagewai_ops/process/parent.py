"""The end of the parent: a signal that the kernel sends then."""

import ctypes
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


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
