"""What a directory holds, to see whether anything in it changed."""

from __future__ import annotations

from pathlib import Path


def state_of(directory: Path) -> dict[str, tuple[int, int, bytes]]:
    """Map each file to its mode, modification time and content.

    A `-shm` is named alone: it is scratch memory, which SQLite may rewrite at any look.
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
