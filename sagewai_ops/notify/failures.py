"""Which commands failed the last time, so that a recovery can be reported.

An empty file for each, in the user's state directory: it survives the home, and a container that
keeps it on a volume (XDG_STATE_HOME).
"""

import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path

from sagewai_ops.fs import atomic
from sagewai_ops.home.user_state import state_directory

_DIRECTORY = "failed"


def record_failure(environment: Mapping[str, str], command: str, home: str) -> None:
    """Record that a command failed.

    Raises:
        OpsError, OSError: The state directory cannot be written.
    """
    if path := _path(environment, command, home):
        atomic.make_directory(path.parent)
        atomic.replace(path, b"")


def take_failure(environment: Mapping[str, str], command: str, home: str) -> bool:
    """Return whether a command failed the last time, and forget it.

    Raises:
        OSError: The state directory cannot be written.
    """
    path = _path(environment, command, home)
    if path is None:
        return False
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        path.unlink()
        return True
    return False


def _path(environment: Mapping[str, str], command: str, home: str) -> Path | None:
    directory = state_directory(environment)
    name = hashlib.sha256(f"{command}\0{home}".encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return directory / _DIRECTORY / name if directory else None
