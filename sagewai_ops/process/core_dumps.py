"""No core dumps: the memory of this process contains keys, passphrases and content of the home."""

import contextlib

_PR_SET_DUMPABLE = 4  # prctl(2)


def forbid() -> None:
    """Forbid core dumps, and other processes of this user to read the memory.

    The limit is inherited by programs that this one starts, but not applied by a kernel that pipes
    core dumps to a program; the other setting is applied, and ends with an `exec`.
    """
    import ctypes
    import resource

    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(AttributeError, OSError):  # Linux alone
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
