"""A directory in memory, where making things durable costs nothing."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


def in_memory() -> str | None:
    """Name the place where such directories are made; None, the usual one, where there is none."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@contextlib.contextmanager
def memory_directory() -> Iterator[Path]:
    """Make one for the length of the block; an ordinary one where there is no such place."""
    with tempfile.TemporaryDirectory(
        dir=in_memory(), prefix="sagewai-ops-test-", ignore_cleanup_errors=True
    ) as name:
        yield Path(os.path.realpath(name))
