"""The callback through which the library reports progress."""

from collections.abc import Callable
from typing import TypeAlias

# (stage, done, total): done and total in the unit that the reporting function's docstring names,
# total 0 if unknown. Called often and from worker threads: it must be fast.
Progress: TypeAlias = Callable[[str, int, int], None]


def no_progress(_stage: str, _done: int, _total: int) -> None:
    """Report nothing."""


def byte_counter(progress: Progress | None, stage: str, total: int) -> Callable[[int], None]:
    """Return a callback that adds up bytes and reports their sum, at most `total`."""
    done = 0

    def count(size_bytes: int) -> None:
        nonlocal done
        done += size_bytes
        if progress:
            progress(stage, min(done, total), total)

    return count
