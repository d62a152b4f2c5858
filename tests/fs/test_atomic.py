"""Atomic writes, with their mode from the beginning."""

import ctypes
import errno
import fcntl
import os
import stat
from pathlib import Path

import pytest

from sagewai_ops.errors import NoSpaceError, OpsError, PermissionDeniedError
from sagewai_ops.fs import atomic, beneath
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.fs.removal import remove_tree
from unprivileged import NO_USER, reachable_directory, unprivileged


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o777])
def test_mode_is_independent_of_the_umask(tmp_path: Path, mask: int) -> None:
    """The umask neither adds nor removes bits."""
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


def test_partial_file_is_private(tmp_path: Path) -> None:
    """No other user can open it before its mode is set."""
    with atomic.write_stream(tmp_path / "file") as stream:
        stream.write(b"half")
        (partial,) = tmp_path.iterdir()
        assert _mode(partial) == 0o600
        assert partial.name.startswith(".file.")


def test_failed_write_leaves_the_old_file_and_no_partial_one(tmp_path: Path) -> None:
    """After an error the file is unchanged, and alone."""
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail_midway() -> None:
        with atomic.write_stream(path) as stream:
            stream.write(b"half of the new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_midway()

    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_replaced_file_is_another_file(tmp_path: Path) -> None:
    """An open descriptor and a hard link keep the old content."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    (tmp_path / "link").hardlink_to(path)

    with path.open("rb") as reader:
        atomic.replace(path, b"new")
        assert reader.read() == b"old"

    assert path.read_bytes() == b"new"
    assert (tmp_path / "link").read_bytes() == b"old"


@pytest.mark.skipif(os.geteuid() != 0, reason="changes owners")
def test_replaced_file_keeps_its_owner_or_is_not_replaced() -> None:
    """A group that the owner has left is not kept; another user's file is not replaced."""
    with reachable_directory() as directory:
        for name, owner in (("own", NO_USER), ("roots", 0)):
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
            assert (status.st_uid, status.st_gid) == (NO_USER, 0)
        assert ((directory / "own").stat().st_uid, (directory / "own").read_bytes()) == (
            NO_USER,
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
    sync, rename = os.fsync, beneath.rename

    def fsync(descriptor: int) -> None:
        steps.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        sync(descriptor)

    def renamed(source: str, target: str, **directories: int) -> None:
        steps.append("name")
        rename(source, target, **directories)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(beneath, "rename", renamed)
    atomic.replace(tmp_path / "file", b"x")

    assert steps == ["file", "name", "directory"]


def test_partial_file_is_locked_against_sweeps(tmp_path: Path) -> None:
    """Until it is renamed."""
    with atomic.write_stream(tmp_path / "file"):
        (partial,) = tmp_path.iterdir()
        with partial.open("rb") as other, pytest.raises(BlockingIOError):
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
def test_system_error_has_its_file_and_exit_code(
    tmp_path: Path, number: int, error: type[OpsError]
) -> None:
    """The file of the error, or else that of the block."""
    with pytest.raises(error) as named, translate_os_errors(tmp_path):
        raise OSError(number, os.strerror(number), "/the/file")
    with pytest.raises(error) as nameless, translate_os_errors(tmp_path):
        raise OSError(number, os.strerror(number))

    assert type(named.value) is error
    assert named.value.message == f"/the/file: {os.strerror(number).lower()}"
    assert nameless.value.message == f"{tmp_path}: {os.strerror(number).lower()}"


def test_existing_directory_is_not_changed(tmp_path: Path) -> None:
    """Its mode stays."""
    (tmp_path / "directory").mkdir(mode=0o755)
    (tmp_path / "directory").chmod(0o755)

    atomic.make_directory(tmp_path / "directory")

    assert _mode(tmp_path / "directory") == 0o755


def test_two_names_are_exchanged_in_one_step(tmp_path: Path) -> None:
    """Both exist before and after; a missing one is an error and changes nothing."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").write_text("file")

    done = beneath.exchange(tmp_path / "a", tmp_path / "b")

    assert (tmp_path / "a").is_file() is done
    assert (tmp_path / "b").is_dir() is done
    if done:
        with pytest.raises(FileNotFoundError):
            beneath.exchange(tmp_path / "a", tmp_path / "missing")


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

    assert not beneath.exchange(tmp_path / "a", tmp_path / "b")


def test_a_tree_is_removed_without_following_its_links(tmp_path: Path) -> None:
    """The target of a link stays; a missing tree is no error."""
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
    """One call for many files; a missing path is an error."""
    (tmp_path / "file").touch()

    atomic.sync_tree(tmp_path)

    with pytest.raises(FileNotFoundError):
        atomic.sync_tree(tmp_path / "missing")


def test_writeback_changes_no_file_and_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the system refuses it, as for a pipe, or has no such call."""
    path = tmp_path / "file"
    reader, writer = os.pipe()
    with open(path, "wb", 0) as stream:
        stream.write(b"content")
        atomic.begin_writeback(stream.fileno(), 3)
        atomic.begin_writeback(writer, 0)
        monkeypatch.setattr(atomic, "_sync_file_range", lambda: None)
        atomic.begin_writeback(stream.fileno(), 3)
    os.close(reader)
    os.close(writer)

    assert path.read_bytes() == b"content"


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
