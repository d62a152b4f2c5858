"""A signal ends the engines of all threads."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from engine_repositories import Repository, repository
from program import COMMAND, PATIENCE_SECONDS, call
from small_homes import small

__all__ = ["repository"]


@pytest.mark.parametrize("repository", ["restic"], indirect=True)
def test_signal_ends_a_run_whose_engine_hangs_while_cards_are_read(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of `snapshots list`: exit code 143, and neither it nor the engine still runs."""
    home = small(tmp_path / "home").root
    assert call("--home", home, "backup", *repository.words, "--init-repository").code == 0
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    started = tmp_path / "started"
    repository.hang(tmp_path / "bin", monkeypatch, "dump", started)
    words = [*COMMAND, "--home", home, "snapshots", "list", *repository.words]
    with subprocess.Popen(list(map(str, words)), stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not started.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(30)
        finally:
            process.kill()

    assert code == 128 + signal.SIGTERM
    assert time.monotonic() - began < 20
    engine = int(started.read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(engine, 0)
