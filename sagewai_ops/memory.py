"""Tell the C library to keep the blocks of a frame's size that it is given back.

Left alone, glibc returns them to the system again and again, and every page is faulted in anew: a
tenth of the processor time of a restore. One arena for all threads keeps the peak some MB lower.
"""

import contextlib
import ctypes
import functools

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # malloc.h of glibc
_KEPT_BYTES = 256 * 1024 * 1024
_MOST_BYTES = 32 * 1024 * 1024  # of one block; glibc refuses more


@functools.cache
def keep_large_blocks() -> None:
    """Do so once; other C libraries have no such setting and need none."""
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_ARENA_MAX, 1)
        mallopt(_MMAP_THRESHOLD, _MOST_BYTES)
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
