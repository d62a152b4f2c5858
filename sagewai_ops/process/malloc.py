"""Settings of the C library's memory allocator.

`keep_large_blocks`: by default, glibc returns blocks of the size of a zstd frame to the system
again and again, and each of their pages faults again: a tenth of the processor time of a restore.
One arena for all threads reduces the peak by some MB.

`zeroed_allocations`: with a `-wal` from a crash, SQLite builds the `-shm` in memory that it does
not clear (seen with 3.40.1), and so writes previous content of the memory, perhaps a key, into a
file. Source: mallopt(3).
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
    """Keep freed blocks in the process; other C libraries do not need it."""
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_ARENA_MAX, 1)
        mallopt(_MMAP_THRESHOLD, _MOST_BYTES)
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)


def return_free_blocks() -> None:
    """Return the freed blocks to the system, before a part of the work that needs other sizes."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def zeroed_allocations() -> Iterator[None]:
    """Zero new allocations during the block, where the C library can."""
    _perturb(_TO_ZEROS)
    try:
        yield
    finally:
        _perturb(0)


def _perturb(value: int) -> None:
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_PERTURB, value)
