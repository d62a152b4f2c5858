"""Writes that leave the old or the new, with their mode from the first moment."""

import ctypes
import errno
import fcntl
import os
import stat
from pathlib import Path

import pytest

from sagewai_ops.errors import NoSpaceError, OpsError, PermissionDeniedError
from sagewai_ops.fs import atomic
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.fs.removal import remove_tree
from unprivileged import NOBODY, reachable_directory, unprivileged


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o777])
def test_a_file_has_its_mode_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    """The umask neither opens nor closes it."""
    before = os.umask(mask)
    try:
        atomic.replace(tmp_path / "private", b"x")
        atomic.replace(tmp_path / "public", b"x", mode=0o644)
        atomic.make_directory(tmp_path / "directory/below")
    finally:
        os.umask(before)

    assert _mode(tmp_path / "private") == 0o600
    assert _mode(tmp_path / "public") == 0o644
    assert _mode(tmp_path / "directory") == _mode(tmp_path / "directory/below") == 0o700


def test_a_file_is_private_while_it_is_written(tmp_path: Path) -> None:
    """Nobody can open it in the moment before its mode is set."""
    with atomic.write_stream(tmp_path / "file") as stream:
        stream.write(b"half")
        (beside,) = tmp_path.iterdir()
        assert _mode(beside) == 0o600
        assert beside.name.startswith(".file.")


def test_a_failed_write_leaves_the_old_and_no_litter(tmp_path: Path) -> None:
    """An error in the middle: the file is what it was, and alone."""
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail_half_way() -> None:
        with atomic.write_stream(path) as stream:
            stream.write(b"half of the new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()

    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_replaced_file_is_another_file(tmp_path: Path) -> None:
    """Whoever had it open keeps the old; a hard link keeps the old as well."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    (tmp_path / "link").hardlink_to(path)

    with path.open("rb") as reader:
        atomic.replace(path, b"new")
        assert reader.read() == b"old"

    assert path.read_bytes() == b"new"
    assert (tmp_path / "link").read_bytes() == b"old"


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
def test_a_file_keeps_its_owner_or_its_name_is_not_touched() -> None:
    """A group that the owner has left is given up; another's file is not made one's own."""
    with reachable_directory() as directory:
        for name, owner in (("own", NOBODY), ("roots", 0)):
            (directory / name).write_bytes(b"old")
            os.chown(directory / name, owner, 0)
        theirs = os.stat(directory / "own")

        atomic.replace(directory / "by root", b"new", owner=theirs)
        atomic.make_directory(directory / "made/below", owner=theirs)
        with unprivileged():
            atomic.replace(directory / "own", b"new", owner=theirs)
            with pytest.raises(PermissionDeniedError):
                atomic.replace(directory / "roots", b"new", owner=os.stat(directory / "roots"))

        for name in ("by root", "made", "made/below"):
            status = os.stat(directory / name)
            assert (status.st_uid, status.st_gid) == (NOBODY, 0)
        assert ((directory / "own").stat().st_uid, (directory / "own").read_bytes()) == (
            NOBODY,
            b"new",
        )
        assert ((directory / "roots").stat().st_uid, (directory / "roots").read_bytes()) == (
            0,
            b"old",
        )
        assert sorted(os.listdir(directory)) == ["by root", "made", "own", "roots"]


def test_content_is_on_the_disk_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is synced, then renamed, then its directory is synced."""
    steps: list[str] = []
    sync, rename = os.fsync, os.rename

    def fsync(descriptor: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        sync(descriptor)

    def renamed(source: Path, target: Path) -> None:
        steps.append("name")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", renamed)
    atomic.replace(tmp_path / "file", b"x")

    assert steps == ["file", "name", "folder"]


def test_what_is_being_written_is_held_so_that_no_sweep_takes_it(tmp_path: Path) -> None:
    """The file beside is locked until it has its name."""
    with atomic.write_stream(tmp_path / "file"):
        (beside,) = tmp_path.iterdir()
        with beside.open("rb") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.ENOSPC, NoSpaceError),
        (errno.EDQUOT, NoSpaceError),
        (errno.EFBIG, NoSpaceError),
        (errno.EACCES, PermissionDeniedError),
        (errno.EPERM, PermissionDeniedError),
        (errno.EROFS, PermissionDeniedError),
        (errno.EIO, OpsError),
    ],
)
def test_what_the_system_refuses_is_named_with_its_exit_code(
    tmp_path: Path, number: int, error: type[OpsError]
) -> None:
    """The file that the system named, or the one at hand where it named none."""
    with pytest.raises(error) as named, translate_os_errors(tmp_path):
        raise OSError(number, os.strerror(number), "/the/file")
    with pytest.raises(error) as nameless, translate_os_errors(tmp_path):
        raise OSError(number, os.strerror(number))

    assert type(named.value) is error
    assert named.value.message == f"/the/file: {os.strerror(number).lower()}"
    assert nameless.value.message == f"{tmp_path}: {os.strerror(number).lower()}"


def test_a_directory_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    """Its mode is its owner's decision."""
    (tmp_path / "folder").mkdir(mode=0o755)
    (tmp_path / "folder").chmod(0o755)

    atomic.make_directory(tmp_path / "folder")

    assert _mode(tmp_path / "folder") == 0o755


def test_two_names_are_exchanged_in_one_step(tmp_path: Path) -> None:
    """Both are there before and after; a missing one is an error and changes nothing."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").write_text("file")

    done = atomic.exchange(tmp_path / "a", tmp_path / "b")

    assert (tmp_path / "a").is_file() is done
    assert (tmp_path / "b").is_dir() is done
    if done:
        with pytest.raises(FileNotFoundError):
            atomic.exchange(tmp_path / "a", tmp_path / "missing")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM])
def test_system_without_the_exchange_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Older containers answer EPERM; the caller renames in two steps."""

    class Library:
        """A C library whose system call is refused."""

        @staticmethod
        def renameat2(*_arguments: object) -> int:
            return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda *_arguments, **_options: Library)
    monkeypatch.setattr(ctypes, "get_errno", lambda: number)

    assert not atomic.exchange(tmp_path / "a", tmp_path / "b")


def test_a_tree_is_removed_without_following_its_links(tmp_path: Path) -> None:
    """What a link leads to stays; what is gone already is no error."""
    keep = tmp_path / "keep"
    keep.mkdir()
    (keep / "file").touch()
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "inside").symlink_to(keep)
    link = tmp_path / "link"
    link.symlink_to(keep)

    for path in (tree, link, tmp_path / "missing"):
        remove_tree(path)

    assert [path.name for path in tmp_path.iterdir()] == ["keep"]
    assert (keep / "file").exists()


def test_a_whole_tree_is_made_durable(tmp_path: Path) -> None:
    """One call for many files; a path that is not there is an error."""
    (tmp_path / "file").touch()

    atomic.sync_tree(tmp_path)

    with pytest.raises(FileNotFoundError):
        atomic.sync_tree(tmp_path / "missing")


def test_a_tree_deeper_than_calls_is_removed(tmp_path: Path) -> None:
    """1500 levels, with files in some and a link at the bottom that is not followed."""
    keep = tmp_path / "keep"
    keep.mkdir()
    tree = tmp_path / "tree"
    for depth in range(1500):
        directory = tree / "/".join("d" * depth)
        directory.mkdir()
        if depth % 100 == 0:
            (directory / "file").touch()
    (directory / "link").symlink_to(keep)

    remove_tree(tree)

    assert [path.name for path in tmp_path.iterdir()] == ["keep"]
