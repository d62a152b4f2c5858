"""A folder in memory, where making things durable costs nothing."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

_SHARED_MEMORY = Path("/dev/shm")


@contextlib.contextmanager
def memory_folder() -> Iterator[Path]:
    """Make one for the length of the block; an ordinary one where there is no such place."""
    place = _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(
        dir=place, prefix="sagewai-ops-test-", ignore_cleanup_errors=True
    ) as name:
        yield Path(os.path.realpath(name))
