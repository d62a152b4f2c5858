"""Operations that follow no symlink."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sagewai_ops.fs import beneath


def _operations(entry: Path) -> dict[str, Callable[[], Any]]:
    return {
        "open_directory": lambda: beneath.open_directory(entry),
        "open_file": lambda: beneath.open_file(entry),
        "create_file": lambda: beneath.create_file(entry, 0o600),
        "make_directory": lambda: beneath.make_directory(entry, 0o700),
        "make_link": lambda: beneath.make_link(entry, "x"),
        "read_link": lambda: beneath.read_link(entry),
        "make_hard_link": lambda: beneath.make_hard_link(entry, entry),
        "rename": lambda: beneath.rename(entry, entry.with_name("other")),
        "exchange": lambda: beneath.exchange(entry, entry.with_name("other")),
        "unlink": lambda: beneath.unlink(entry),
        "remove_directory": lambda: beneath.remove_directory(entry),
        "remove_tree": lambda: beneath.remove_tree(entry),
        "list_directory": lambda: beneath.list_directory(entry),
        "status": lambda: beneath.status(entry),
        "set_mode": lambda: beneath.set_mode(entry, 0o600),
        "set_owner": lambda: beneath.set_owner(entry, -1, -1),
        "set_times": lambda: beneath.set_times(entry, 0),
        "sync_directory": lambda: beneath.sync_directory(entry),
    }


@pytest.fixture(params=["openat2", "step by step"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test with and without openat2."""
    if request.param == "step by step":
        monkeypatch.setattr(beneath, "_IS_LINUX", False)


@pytest.mark.parametrize("name", _operations(Path("/x")))
@pytest.mark.usefixtures("kernel")
def test_no_operation_follows_a_link_to_the_directory(tmp_path: Path, name: str) -> None:
    """A symlink above the entry ends the operation, which names the path."""
    real = tmp_path / "real" / "inner"
    real.mkdir(parents=True)
    (real / "entry").write_bytes(b"content")
    (tmp_path / "link").symlink_to("real")
    before = sorted(os.listdir(real))

    with pytest.raises(OSError, match="link") as caught:
        _operations(tmp_path / "link" / "inner" / "entry")[name]()

    assert caught.value.errno in (errno.ELOOP, errno.ENOTDIR)
    assert caught.value.filename == str(tmp_path / "link" / "inner" / "entry")
    assert sorted(os.listdir(real)) == before


@pytest.mark.parametrize(
    "name", ["open_directory", "open_file", "list_directory", "sync_directory", "set_mode"]
)
@pytest.mark.usefixtures("kernel")
def test_no_operation_follows_a_link_at_the_end(tmp_path: Path, name: str) -> None:
    """A symlink as the entry is not opened."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")

    with pytest.raises(OSError, match="link"):
        _operations(tmp_path / "link")[name]()


@pytest.mark.usefixtures("kernel")
def test_entries_are_created_renamed_and_removed(tmp_path: Path) -> None:
    """The operations do what those of `os` do, with modes that ignore the umask."""
    before = os.umask(0o777)
    try:
        beneath.make_directory(tmp_path / "d", 0o750)
        os.close(beneath.create_file(tmp_path / "d" / "f", 0o640))
    finally:
        os.umask(before)
    beneath.make_link(tmp_path / "d" / "l", "f")
    beneath.make_hard_link(tmp_path / "d" / "h", tmp_path / "d" / "f")
    beneath.rename(tmp_path / "d" / "h", tmp_path / "d" / "g")
    beneath.set_times(tmp_path / "d" / "l", 5)

    assert stat.S_IMODE(os.stat(tmp_path / "d").st_mode) == 0o750
    assert stat.S_IMODE(os.stat(tmp_path / "d" / "f").st_mode) == 0o640
    assert beneath.read_link(tmp_path / "d" / "l") == "f"
    assert beneath.status(tmp_path / "d" / "l").st_mtime_ns == 5
    assert sorted(beneath.list_directory(tmp_path / "d")) == ["f", "g", "l"]
    beneath.unlink(tmp_path / "d" / "g")
    assert not beneath.exists(tmp_path / "d" / "g")
    beneath.remove_tree(tmp_path / "d")
    assert not beneath.exists(tmp_path / "d")
    assert not beneath.exists(tmp_path / "d" / "f")


def test_two_names_are_exchanged(tmp_path: Path) -> None:
    """Both entries stay, each under the name of the other."""
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").mkdir()

    if not beneath.exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("the file system cannot exchange")

    assert (tmp_path / "a").is_dir()
    assert (tmp_path / "b").read_bytes() == b"a"


@pytest.mark.parametrize("kind", ["hard link", "pipe", "symlink"])
def test_the_mode_of_such_an_entry_is_not_changed(tmp_path: Path, kind: str) -> None:
    """A file with a second name, a pipe or a symlink may lead to another user's file."""
    entry, other = tmp_path / "entry", tmp_path / "other"
    other.write_bytes(b"")
    other.chmod(0o600)
    if kind == "hard link":
        entry.hardlink_to(other)
    elif kind == "pipe":
        os.mkfifo(entry, 0o600)
    else:
        entry.symlink_to(other)

    with pytest.raises(OSError, match="entry"):
        beneath.set_mode(entry, 0o644)

    assert stat.S_IMODE(os.stat(entry).st_mode) == 0o600


def test_a_file_with_two_names_keeps_its_owner(tmp_path: Path) -> None:
    """Neither a path nor a descriptor of such a file changes its owner."""
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    descriptor = beneath.open_file(tmp_path / "a")

    for entry in (tmp_path / "a", descriptor):
        with pytest.raises(OSError, match="hard links"):
            beneath.set_owner(entry, os.getuid(), os.getgid())
    os.close(descriptor)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes owners")
def test_root_changes_owners_of_files_directories_and_links(tmp_path: Path) -> None:
    """A link itself gets the owner, not its target."""
    (tmp_path / "f").write_bytes(b"")
    (tmp_path / "l").symlink_to("f")
    (tmp_path / "d").mkdir(mode=0)

    beneath.set_owner(tmp_path / "l", 40001, 40002)
    beneath.set_owner(tmp_path / "d", 40001, -1)

    assert os.lstat(tmp_path / "l")[4:6] == (40001, 40002)
    assert os.stat(tmp_path / "f").st_uid == 0
    assert os.stat(tmp_path / "d")[4:6] == (40001, os.getegid())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes owners")
@pytest.mark.parametrize("number", [2**32, 2**32 - 1, 2**40, -2])
def test_an_impossible_owner_is_refused(tmp_path: Path, number: int) -> None:
    """Cut to 32 bits it would be root."""
    (tmp_path / "f").write_bytes(b"")
    os.chown(tmp_path / "f", 40001, 40001)

    for ids in ((number, -1), (-1, number)):
        with pytest.raises(OverflowError):
            beneath.set_owner(tmp_path / "f", *ids)

    assert os.stat(tmp_path / "f")[4:6] == (40001, 40001)


def test_a_pipe_is_not_a_file_and_does_not_block(tmp_path: Path) -> None:
    """Opening a pipe as a file ends at once."""
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(OSError, match="not a regular file"):
        beneath.open_file(tmp_path / "pipe")


def test_a_deep_tree_is_removed_with_few_descriptors(tmp_path: Path) -> None:
    """Depth costs neither recursion nor descriptors, and paths may exceed PATH_MAX."""
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d" * 20, dir_fd=here)
        below = os.open("d" * 20, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("f", os.O_CREAT, dir_fd=here))
    os.close(here)

    beneath.remove_tree(tmp_path / ("d" * 20))

    assert os.listdir(tmp_path) == []


def test_links_in_a_tree_are_removed_not_followed(tmp_path: Path) -> None:
    """The target of a link in a removed tree stays."""
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "f").write_bytes(b"")
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "tree" / "sub" / "l").symlink_to(tmp_path / "victim")

    beneath.remove_tree(tmp_path / "tree")

    assert os.listdir(tmp_path) == ["victim"]
    assert os.listdir(tmp_path / "victim") == ["f"]


def test_a_directory_that_moves_during_its_removal_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way up leads nowhere but to where the walk came from."""
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "f").write_bytes(b"")
    remove_files = beneath._remove_files

    def move_then_remove(descriptor: int) -> list[str]:
        if beneath.exists(tmp_path / "tree" / "sub"):
            left = remove_files(descriptor)
            if left:
                return left
            os.rename(tmp_path / "tree" / "sub", tmp_path / "other" / "sub")
            return left
        return remove_files(descriptor)

    monkeypatch.setattr(beneath, "_remove_files", move_then_remove)

    with pytest.raises(OSError, match="moved by another process"):
        beneath.remove_tree(tmp_path / "tree")

    assert (tmp_path / "other" / "f").exists()


@pytest.mark.parametrize("mode", [0o000, 0o500])
def test_a_tree_without_permissions_of_its_owner_is_removed(tmp_path: Path, mode: int) -> None:
    """A directory that its owner may not read or write is made so."""
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "tree" / "sub" / "f").write_bytes(b"")
    (tmp_path / "tree" / "sub").chmod(mode)
    (tmp_path / "tree").chmod(mode)

    beneath.remove_tree(tmp_path / "tree")

    assert os.listdir(tmp_path) == []


def test_a_relative_path_is_refused() -> None:
    """A path means the same in every process."""
    with pytest.raises(OSError, match="not an absolute path"):
        beneath.status("entry")


def test_operations_below_a_routed_directory_run_elsewhere(tmp_path: Path) -> None:
    """The name of the function and its arguments are passed; other paths are not."""
    calls: list[tuple[Any, ...]] = []
    (tmp_path / "routed-not").mkdir()
    beneath.route(tmp_path / "routed", lambda *args: calls.append(args))
    try:
        beneath.rename(tmp_path / "routed" / "a", tmp_path / "routed" / "b")
        assert beneath.list_directory(tmp_path / "routed-not") == []
    finally:
        beneath._routes.clear()

    assert calls == [("rename", tmp_path / "routed" / "a", tmp_path / "routed" / "b")]
