"""A directory in memory, where a sync is free."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


def in_memory() -> str | None:
    """Return the parent of such directories; None, the default, if the system has no such place."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@contextlib.contextmanager
def memory_directory() -> Iterator[Path]:
    """Create one for the block; an ordinary one if the system has no such place."""
    with tempfile.TemporaryDirectory(
        dir=in_memory(), prefix="sagewai-ops-test-", ignore_cleanup_errors=True
    ) as name:
        yield Path(os.path.realpath(name))
