"""What the C library does with memory that it is given back.

`keep_large_blocks`: left alone, glibc returns blocks of a frame's size to the system again and
again, and every page is faulted in anew: a tenth of the processor time of a restore. One arena for
all threads keeps the peak some MB lower.

`blank_blocks`: a `-wal` that a crash left makes SQLite build the `-shm` in memory that it does not
clear (seen with 3.40.1), and so write what stood there before, a key perhaps, into a file.
Source: mallopt(3).
"""

import contextlib
import ctypes
import functools
from collections.abc import Iterator

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _PERTURB, _ARENA_MAX = -1, -3, -6, -8  # malloc.h of glibc
_TO_ZEROS = 0xFF  # new blocks are filled with its complement
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


@contextlib.contextmanager
def blank_blocks() -> Iterator[None]:
    """Have new blocks be zeros while the block runs, where the C library can."""
    _perturb(_TO_ZEROS)
    try:
        yield
    finally:
        _perturb(0)


def _perturb(value: int) -> None:
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_PERTURB, value)
