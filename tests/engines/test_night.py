"""The runs of an engine in a night: which are started, and one that waits before it stores."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine_repositories import Repository, repository
from program import PATIENCE_SECONDS, call
from sagewai_ops.engines.engine import Engine
from sagewai_ops.engines.repository import Connection, open_engine
from small_homes import small

__all__ = ["repository"]
_NAME = "a.tree.json"
_WAITING = """
import os, sys
from sagewai_ops.engines.repository import Connection, open_engine
engine = open_engine(Connection("restic", sys.argv[1], sys.argv[1], dict(os.environ)))
with engine.begun_file(b"card", "a.tree.json"):
    print("begun", flush=True)
    sys.stdin.read()
"""


def _engine(repository: Repository) -> Engine:
    named = (repository.engine, repository.place, str(repository.path))
    return open_engine(Connection(*named, dict(os.environ)))


def _runs(record: Path, word: str) -> int:
    lines = [line for line in record.read_text().splitlines() if line.startswith("ARGUMENTS")]
    return sum(word in line.split() for line in lines)


@pytest.mark.parametrize("is_error", [False, True])
def test_file_is_stored_only_if_the_block_completes_it(
    repository: Repository, *, is_error: bool
) -> None:
    """A block that ends without that, or fails, leaves neither the file nor a lock."""
    engine = _engine(repository)
    engine.initialise()
    repository.weaken()
    failing = pytest.raises(ValueError, match="no number") if is_error else contextlib.nullcontext()
    with failing, engine.begun_file(b"card", _NAME):
        time.sleep(0.5)
        if is_error:
            int("no number")
    assert repository.stored() == []
    repository.run("prune" if repository.engine == "restic" else "compact")  # not locked

    with engine.begun_file(b"card", _NAME) as complete:
        stored = complete()

    assert engine.read_file(stored) == b"card"
    assert [item.name for item in engine.list().objects] == [_NAME]


def test_run_that_failed_before_is_repeated(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As after a lock of another program that has ended."""
    _engine(repository).initialise()
    repository.weaken()
    messages = tmp_path / "messages"
    messages.touch()
    with monkeypatch.context() as patch:
        repository.fail(tmp_path / "bin", patch, "--exclude-file", messages)
        engine = _engine(repository)
        with engine.begun_file(b"card", _NAME) as complete:
            time.sleep(1)
            stored = complete()

    assert engine.read_file(stored) == b"card"


@pytest.mark.parametrize("repository", ["restic"], indirect=True)
@pytest.mark.parametrize("seconds", [0.0, 1.5])
def test_kill_while_a_run_waits_stores_nothing_and_leaves_no_lock(
    repository: Repository, seconds: float
) -> None:
    """Restic ends by itself, whether it has locked the repository or not."""
    _engine(repository).initialise()
    locks = repository.path / "locks"
    words = [sys.executable, "-c", _WAITING, str(repository.path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"begun\n"
        deadline = time.monotonic() + PATIENCE_SECONDS
        while seconds and not [*locks.iterdir()]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(seconds)  # restic looks for other locks before it notes its own
        engines: list[int] = []
        for path in Path(f"/proc/{process.pid}/task").glob("*/children"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended
                engines += map(int, path.read_text().split())
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while any(Path(f"/proc/{pid}").exists() for pid in engines):
        assert time.monotonic() < deadline
        time.sleep(0.02)

    assert len(engines) == 1 or not seconds
    assert [*locks.iterdir()] == []
    assert repository.stored() == []


def test_night_lists_once_and_asks_for_the_version_of_a_new_program(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Four runs: list, tree, comparison, metadata file."""
    home = small(tmp_path / "home").root
    assert call("--home", home, "backup", *repository.words, "--init-repository").code == 0
    repository.weaken()
    record = repository.wrap(tmp_path / "bin", monkeypatch)
    list_word = {"restic": "snapshots", "borg": "list"}[repository.engine]
    version = {"restic": "version", "borg": "--version"}[repository.engine]

    assert call("--home", home, "backup", *repository.words).code == 0
    first = record.read_text().count("ARGUMENTS")
    assert call("--home", home, "backup", *repository.words).code == 0

    assert _runs(record, list_word) == 2
    assert (first, record.read_text().count("ARGUMENTS")) == (5, 9)
    assert _runs(record, version) == 1
    program = tmp_path / "bin" / repository.engine
    program.write_text(f"{program.read_text()}\n")
    assert call("--home", home, "snapshots", "list", *repository.words).code == 0
    assert _runs(record, version) == 2


@pytest.mark.parametrize("repository", ["restic"], indirect=True)
def test_a_slow_clock_lists_again_at_the_end(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Others could take the new tree for a leftover: the success is confirmed by a list."""
    home = small(tmp_path / "home").root
    assert call("--home", home, "backup", *repository.words, "--init-repository").code == 0
    repository.weaken()
    tags = ("--tag", "sagewai-ops,name=z,bytes=3")
    (tmp_path / "z").write_text("new")
    repository.run("backup", "--time", "2099-01-01 00:00:00", *tags, tmp_path / "z")
    record = repository.wrap(tmp_path / "bin", monkeypatch)

    assert call("--home", home, "backup", *repository.words).code == 0

    assert _runs(record, "snapshots") == 2
