"""File systems that lack operations: chosen calls fail below a directory, with a chosen errno.

`refusals.c` is loaded into the program's process. What a real file system lacks is in `LACKING`.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

LACKING: Mapping[str, Mapping[str, int]] = {
    "modes and links, as vfat": {
        "chmod": errno.EPERM,
        "chown": errno.EPERM,
        "link": errno.EPERM,
        "exchange": errno.EINVAL,
    },
    "locks and syncs, as NFS without lockd": {
        "flock": errno.ENOLCK,
        "fcntl": errno.ENOLCK,
        "fsync-directory": errno.EINVAL,
        "syncfs": errno.ENOSYS,
    },
    "nearly everything": {
        "chmod": errno.EOPNOTSUPP,
        "chown": errno.ENOSYS,
        "flock": errno.EOPNOTSUPP,
        "fcntl": errno.EOPNOTSUPP,
        "fsync": errno.EINVAL,
        "syncfs": errno.EINVAL,
        "link": errno.ENOSYS,
        "exchange": errno.ENOSYS,
        "utime": errno.ENOSYS,
    },
}
_SOURCE = Path(__file__).with_name("refusals.c")


def build_library(directory: Path) -> Path:
    """Compile the library that refuses; skip where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler or os.uname().sysname != "Linux":
        pytest.skip("needs a C compiler on Linux")
    library = directory / "refusals.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", library, _SOURCE, "-ldl"], check=True
    )
    return library


def refusing(library: Path, directory: Path, refused: Mapping[str, int]) -> dict[str, str]:
    """Return the variables of a process in which these calls fail below a directory."""
    return {
        "LD_PRELOAD": os.fspath(library),
        "REFUSED": ",".join(f"{name}={number}" for name, number in refused.items()),
        "REFUSED_BELOW": os.fspath(directory),
    }
