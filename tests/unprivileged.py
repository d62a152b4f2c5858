"""A stretch of a test that runs without root's powers, and directories that it can reach."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

NO_USER = 65534


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Run the block as user nobody, if the test runs as root."""
    if os.getuid():
        yield
        return
    if not hasattr(os, "setresuid"):
        pytest.skip("root cannot step down and up again here")
    os.setresgid(NO_USER, NO_USER, 0)
    os.setresuid(NO_USER, NO_USER, 0)  # the real one too: access(2) asks for that
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)


@contextlib.contextmanager
def reachable_directory() -> Iterator[Path]:
    """Make a directory that others may enter and write to; pytest's own are private to root."""
    directory = Path(tempfile.mkdtemp(prefix="sagewai-ops-test-"))
    directory.chmod(0o777)
    try:
        yield directory
    finally:
        for path, names, _ in os.walk(directory):
            for below in (Path(path, name) for name in names):
                if not below.is_symlink():
                    below.chmod(0o700)  # before the walk goes there
        shutil.rmtree(directory)
