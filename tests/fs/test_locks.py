"""Locks: they end with their process, name it in errors and leave no file."""

import errno
import fcntl
import os
import stat
import threading
from pathlib import Path

import pytest

from other_process import running
from sagewai_ops.errors import LockedError
from sagewai_ops.fs import locks
from sagewai_ops.fs.trust import take_reports

_HOLD = """
import pathlib
sys.path.remove("")  # the checkout, where the installed package is meant
from sagewai_ops.fs import locks
from sagewai_ops.fs.trust import take_reports
with locks.exclusive(pathlib.Path(sys.argv[1])):
    pause()
"""


def test_locked_directory_is_refused_with_its_process(tmp_path: Path) -> None:
    """Machine, process, command and start are in the message, the option to wait in the hint."""
    with running(_HOLD, str(tmp_path)) as other:
        with pytest.raises(LockedError) as raised, locks.exclusive(tmp_path):
            pytest.fail("two runs at once")

        assert f": locked by pid {other.pid} " in raised.value.message
        assert "python" in raised.value.message
        assert ", since 20" in raised.value.message
        assert raised.value.message.endswith(f", on {os.uname().nodename}")
        assert "--wait" in raised.value.hint
        assert raised.value.exit_code == 11


def test_lock_ends_with_its_process_and_leaves_nothing(tmp_path: Path) -> None:
    """SIGKILL releases it at once; there is no file to remove."""
    with running(_HOLD, str(tmp_path)) as other:
        other.kill()

    with locks.exclusive(tmp_path):
        assert list(tmp_path.iterdir()) == []


def test_waiting_run_gets_the_lock_when_the_other_ends(tmp_path: Path) -> None:
    """The wait ends before its timeout."""
    with running(_HOLD, str(tmp_path)) as other:
        ending = threading.Timer(0.2, other.kill)
        ending.start()

        with locks.exclusive(tmp_path, wait_seconds=30):
            pass

        ending.join()


def test_readers_share_and_writers_do_not(tmp_path: Path) -> None:
    """Any number of readers, or one writer."""
    with (
        locks.shared(tmp_path),
        locks.shared(tmp_path),
        pytest.raises(LockedError),
        locks.exclusive(tmp_path),
    ):
        pytest.fail("a writer among readers")
    with locks.exclusive(tmp_path), pytest.raises(LockedError), locks.shared(tmp_path):
        pytest.fail("a reader during a write")


def test_directory_that_was_replaced_during_the_wait_is_locked(tmp_path: Path) -> None:
    """After a wait for a home that a restore exchanged, the new one is locked."""
    directory = tmp_path / "home"
    directory.mkdir()
    holding = locks.exclusive(directory)
    holding.__enter__()

    def swap() -> None:
        directory.rename(tmp_path / "before")
        directory.mkdir()
        holding.__exit__(None, None, None)

    swapping = threading.Timer(0.2, swap)
    swapping.start()
    with locks.exclusive(directory, wait_seconds=30):
        swapping.join()
        with pytest.raises(LockedError), locks.exclusive(directory):
            pytest.fail("the new directory is not locked")
        with locks.exclusive(tmp_path / "before"):
            pass


def test_a_file_of_a_live_run_is_not_abandoned(tmp_path: Path) -> None:
    """While it is open it is locked; then it can be removed."""
    path = tmp_path / "partial"
    with path.open("wb") as stream:
        locks.mark_alive(stream.fileno())
        assert not locks.is_abandoned(path)

    assert locks.is_abandoned(path)


@pytest.mark.parametrize("kind", ["missing", "link", "pipe"])
def test_other_entries_do_not_block(tmp_path: Path, kind: str) -> None:
    """A link is not followed, a pipe does not block, and neither is a leftover."""
    path = tmp_path / "name"
    if kind == "link":
        path.symlink_to("/etc/hostname")
    elif kind == "pipe":
        os.mkfifo(path)

    assert not locks.is_abandoned(path)


def test_sweep_guard_waits_only_briefly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that is locked for another reason does not stop a backup into it."""
    monkeypatch.setattr(locks, "_GUARD_SECONDS", 0.1)

    with locks.exclusive(tmp_path), locks.sweep_guard(tmp_path):
        pass


def test_file_system_without_locks_is_used_and_noted_and_nothing_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home on such a file system is backed up, with a note that no other run is excluded."""

    def refuse(_descriptor: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)

    with locks.sweep_guard(tmp_path):
        pass
    assert not locks.is_abandoned(tmp_path)
    take_reports()
    with locks.exclusive(tmp_path), locks.shared(tmp_path):
        pass

    (note,) = take_reports()
    assert note.startswith(f"{tmp_path}: this file system has no locks")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_lock_of_another_user_excludes_no_run(tmp_path: Path) -> None:
    """A user who can read a directory can lock it; runs still exclude each other."""
    tmp_path.chmod(0o755)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    ready, lasting = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        other = os.dup(os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY))
        os.setresuid(40001, 40001, 40001)
        fcntl.flock(other, fcntl.LOCK_EX)
        os.write(ready[1], b"x")
        os.read(lasting[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    try:
        with locks.exclusive(tmp_path), pytest.raises(LockedError), locks.exclusive(tmp_path):
            pass
        assert [f"{tmp_path}: locked by uid 40001" in line for line in take_reports()] == [True]
    finally:
        os.write(lasting[1], b"x")
        os.waitpid(child, 0)
    with locks.exclusive(tmp_path), pytest.raises(LockedError), locks.exclusive(tmp_path):
        pass
    assert stat.S_IMODE((tmp_path / ".sagewai-ops-lock").stat().st_mode) == 0o600
