"""The callback through which the library reports progress."""

from collections.abc import Callable
from typing import TypeAlias

# (stage, done, total): done and total in the unit that the reporting function's docstring names,
# total 0 where it is not known. Called often and from worker threads: keep it cheap.
Progress: TypeAlias = Callable[[str, int, int], None]


def no_progress(_stage: str, _done: int, _total: int) -> None:
    """Report nothing."""
