"""The state of a directory, to check whether anything in it changed."""

from __future__ import annotations

from pathlib import Path


def state_of(directory: Path) -> dict[str, tuple[int, int, bytes]]:
    """Map each file to its mode, modification time and content.

    Only the name of a `-shm` counts: SQLite may rewrite it at any access.
    """
    state = {}
    for path in sorted(directory.iterdir()):
        status = path.stat()
        scratch = path.name.endswith("-shm")
        state[path.name] = (
            status.st_mode,
            0 if scratch else status.st_mtime_ns,
            b"" if scratch else path.read_bytes(),
        )
    return state
