"""A kill at each run of the engine, and faults of a repository: damage, a lock, a full disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine_repositories import PASSWORD, Repository, repository
from home_writer import start
from program import COMMAND, PATIENCE_SECONDS, call, run
from small_homes import rows_of

__all__ = ["repository"]
_SMALL_DISK_BYTES = 24 * 1024 * 1024
_LARGE_BYTES = 64 * 1024 * 1024


def _ids(home: Path, repository: Repository) -> list[str]:
    answer = call("--home", home, "snapshots", "list", "--json", *repository.words)
    assert answer.code == 0, answer
    return [item["id"] for item in answer.result["snapshots"]]


@pytest.mark.parametrize(
    ("repository", "moment"),
    [("restic", "before"), ("restic", "after"), ("borg", "after")],
    indirect=["repository"],
)
def test_after_a_kill_at_any_run_of_the_engine_the_list_has_only_whole_snapshots(
    home: Path,
    repository: Repository,
    moment: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Before or after each run of the engine; the next backup succeeds, and so does a restore."""
    assert call("--home", home, "backup", *repository.words, "--init-repository").code == 0
    repository.weaken()
    runs, kills = 2, 0  # the first one asks for the version
    found = _ids(home, repository)
    while True:
        before = found
        with monkeypatch.context() as patch:
            repository.kill_parent(tmp_path / f"bin{runs}", patch, runs, moment)
            answer = run("--home", home, "backup", *repository.words)
        found = _ids(home, repository)
        assert found[: len(before)] == before
        if answer.code != -9:
            break
        kills += 1
        for new in found[len(before) :]:
            words = ("snapshots", "verify", new, *repository.words)
            assert call("--home", home, *words).code == 0
        runs += 1

    assert answer.code == 0, answer
    assert kills >= 4  # list, tree, comparison, card
    target = ("--to", tmp_path / "new", "--install-key", home / "secrets/master.key")
    restored = call("--home", home, "restore", "latest", *repository.words, *target)
    assert restored.code == 0, restored
    assert rows_of(tmp_path / "new/db/sagewai.db") == rows_of(home / "db/sagewai.db")
    leftovers = [path.name for path in tmp_path.iterdir() if path.name.startswith(".sagewai")]
    assert leftovers == []


def test_a_kill_while_the_engine_stores_ends_it_and_its_lock_is_named(
    home: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """SIGKILL: the engine ends too, and the next run works or names the command that unlocks."""
    assert call("--home", home, "backup", *repository.words, "--init-repository").code == 0
    repository.weaken()
    before = _ids(home, repository)
    (home / "data/large.bin").write_bytes(os.urandom(_LARGE_BYTES))
    started = tmp_path / "started"
    slowly = ("--limit-upload", "200") if repository.engine == "restic" else ()
    with monkeypatch.context() as patch:
        repository.note(tmp_path / "bin", patch, "tree", started)
        words = [*COMMAND, "--home", home, "backup", *repository.words, *slowly]
        with subprocess.Popen([*map(str, words)], stderr=subprocess.DEVNULL) as process:
            _wait_for(lambda: process.poll() is not None or repository.is_locked_by(started))
            assert process.poll() is None
            process.kill()
    engine = int(started.read_text())
    _wait_for(lambda: not _runs(engine))

    assert _ids(home, repository) == before
    answers = []
    for command in (("backup",), ("snapshots", "prune", "--keep-last", "1")) * 2:
        answer = call("--home", home, *command, *repository.words)
        if answer.code == 11:
            assert repository.unlock_command in answer.err, answer
            repository.unlock()
            answer = call("--home", home, *command, *repository.words)
        answers.append(answer)
    assert [answer.code for answer in answers] == [0, 0, 0, 0], answers
    verified = call("--home", home, "snapshots", "verify", "latest", *repository.words)
    assert verified.code == 0, verified


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _runs(process: int) -> bool:
    """Return whether a process has not ended; one without a parent may stay in the list."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_damage_in_each_kind_of_file_is_found(
    home: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A flipped byte in data, index or snapshots of restic, in segments of borg: 16, no home."""
    monkeypatch.setenv("RESTIC_CACHE_DIR", str(tmp_path / "cache"))
    assert call("--home", home, "backup", *repository.words, "--init-repository").code == 0
    repository.weaken()
    kinds = {"restic": ("data", "index", "snapshots"), "borg": ("data",)}[repository.engine]

    for kind in kinds:
        shutil.copytree(repository.path, tmp_path / "whole")
        for path in (repository.path / kind).rglob("*"):
            if path.is_file() and path.stat().st_size > 200:
                path.chmod(0o600)
                content = bytearray(path.read_bytes())
                content[len(content) // 2] ^= 1
                path.write_bytes(content)
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        target = ("--to", tmp_path / kind, "--install-key", home / "secrets/master.key")
        answer = call("--home", home, "restore", "latest", *repository.words, *target)
        assert answer.code == 16, (kind, answer)
        assert len(answer.err.splitlines()) == 2, (kind, answer)
        assert not (tmp_path / kind).exists()
        shutil.rmtree(repository.path)
        (tmp_path / "whole").rename(repository.path)


def test_a_locked_repository_is_exit_11_with_the_command_that_unlocks_it(
    home: Path, repository: Repository
) -> None:
    """A lock of a run that has ended elsewhere; the engine's own command removes it."""
    assert call("--home", home, "backup", *repository.words, "--init-repository").code == 0
    repository.weaken()
    with repository.locked():
        locked = call("--home", home, "backup", *repository.words)
        assert locked.code == 11, locked
        assert repository.unlock_command in locked.err

    assert call("--home", home, "backup", *repository.words).code == 0


def test_a_full_disk_is_exit_13_and_the_next_run_continues(
    home: Path, repository: Repository, small_disk: Path
) -> None:
    """The repository is on a file system with no space for the snapshot."""
    full = Repository(repository.engine, small_disk / "repository")
    assert call("--home", home, "backup", *full.words, "--init-repository").code == 0
    full.weaken()
    before = _ids(home, full)
    (home / "data/large.bin").write_bytes(os.urandom(2 * _SMALL_DISK_BYTES))

    answer = call("--home", home, "backup", *full.words)

    assert answer.code == 13, answer
    (home / "data/large.bin").unlink()
    # borg needs some 550 MB to remove what it could not complete.
    more = "remount,size=1g"
    subprocess.run(["mount", "-o", more, str(small_disk)], check=True)
    assert _ids(home, full) == before
    assert call("--home", home, "backup", *full.words, "--accept-change").code == 0


def test_a_writer_of_200_commits_a_second_does_not_disturb_a_backup(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nights while Sagewai writes; what is restored is intact."""
    if shutil.which("restic") is None:
        pytest.skip("restic is not installed")
    monkeypatch.setenv("RESTIC_PASSWORD", PASSWORD)
    words = ("--engine", "restic", "--repository", tmp_path / "repository")
    with start(home, rate=200):
        answers = [call("--home", home, "backup", *words, "--init-repository") for _ in range(2)]

    assert [answer.code for answer in answers] == [0, 0], answers
    drill = call("--home", home, "drill", "latest", *words)
    assert drill.code == 0, drill


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB; only root can mount one."""
    directory = tmp_path / "disk"
    directory.mkdir()
    options = f"size={_SMALL_DISK_BYTES}"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        pytest.skip("only root can mount a file system")
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)
