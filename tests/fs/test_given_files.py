"""Files that the user names."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sagewai_ops.fs.given_files import open_given_file, read_given_file, resolve_given_path
from sagewai_ops.fs.trust import take_reports

_OTHER = 40001


@pytest.fixture(autouse=True)
def _no_reports() -> Iterator[None]:
    take_reports()
    yield
    take_reports()


def test_a_pipe_is_refused_without_blocking(tmp_path: Path) -> None:
    """No other user needs to write to it, or to read it."""
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(OSError, match="not a regular file"):
        read_given_file(tmp_path / "pipe")
    with pytest.raises(OSError, match="pipe") as caught:
        open_given_file(tmp_path / "pipe", os.O_WRONLY | os.O_APPEND, 0o600)
    assert caught.value.errno in (errno.ENXIO, errno.EINVAL)


def test_a_descriptor_of_the_shell_is_read() -> None:
    """`--passphrase-file <(command)` is a pipe that the shell names like a file."""
    reading, writing = os.pipe()
    os.write(writing, b"secret\n")
    os.close(writing)
    try:
        assert read_given_file(Path(f"/dev/fd/{reading}"), private="passphrase file") == b"secret\n"
    finally:
        os.close(reading)
    assert take_reports() == []


def test_a_file_is_created_with_its_mode_and_appended_to(tmp_path: Path) -> None:
    """The first line creates a log, the next is added."""
    for line in (b"one\n", b"two\n"):
        descriptor = open_given_file(tmp_path / "log", os.O_WRONLY | os.O_APPEND, 0o600)
        os.write(descriptor, line)
        os.close(descriptor)

    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


def test_links_of_the_user_are_followed(tmp_path: Path) -> None:
    """A link to a file, a link to its directory, and one relative to that."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_bytes(b"content")
    (tmp_path / "real" / "alias").symlink_to("../real/file")
    (tmp_path / "directory").symlink_to(tmp_path / "real")

    assert read_given_file(tmp_path / "directory" / "alias") == b"content"
    assert resolve_given_path(tmp_path / "directory" / "new") == tmp_path / "real" / "new"
    assert (
        resolve_given_path(tmp_path / "directory" / "alias", follow_last=False)
        == tmp_path / "real" / "alias"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
@pytest.mark.parametrize("whose", ["directory", "link"])
def test_link_that_another_user_made_is_not_followed(tmp_path: Path, whose: str) -> None:
    """Root's log line does not go where the owner of the directory wants it."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "target").write_bytes(b"")
    (tmp_path / "logs" / "log").symlink_to(tmp_path / "target")
    entry = tmp_path / "logs" if whose == "directory" else tmp_path / "logs" / "log"
    os.chown(entry, _OTHER, _OTHER, follow_symlinks=False)

    with pytest.raises(OSError, match=f"a link of uid {_OTHER}"):
        open_given_file(tmp_path / "logs" / "log", os.O_WRONLY | os.O_APPEND, 0o600)


def test_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    """As by the kernel."""
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")

    with pytest.raises(OSError, match="a") as caught:
        open_given_file(tmp_path / "a")
    assert caught.value.errno == errno.ELOOP


def test_a_long_file_is_refused(tmp_path: Path) -> None:
    """A file that is read whole has a limit."""
    (tmp_path / "file").write_bytes(b"x" * 11)

    with pytest.raises(OSError, match="longer than 10 bytes"):
        read_given_file(tmp_path / "file", 10)


@pytest.mark.parametrize(
    ("mode", "private", "report"),
    [
        (0o600, True, ""),
        (0o640, True, "others can read it"),
        (0o666, True, "others can read and write it"),
        (0o644, False, ""),
        (0o664, False, "others can write it"),
    ],
)
def test_others_with_access_are_reported(
    tmp_path: Path, mode: int, *, private: bool, report: str
) -> None:
    """A secret that others can read, recipients that others can replace."""
    path = tmp_path / "file"
    path.write_bytes(b"")
    path.chmod(mode)

    read_given_file(path, private="key file" if private else "", public="recipients file")

    reports = take_reports()
    assert len(reports) == bool(report)
    assert all(report in line for line in reports)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_root_opens_no_second_name_in_a_users_directory(tmp_path: Path) -> None:
    """Where links to files of others are permitted, it can be one of root's files."""
    (tmp_path / "file").write_text("of root's")
    (tmp_path / "his").mkdir()
    (tmp_path / "his/log").hardlink_to(tmp_path / "file")
    os.chown(tmp_path / "his", _OTHER, _OTHER)

    with pytest.raises(OSError, match="several names"):
        open_given_file(tmp_path / "his/log", os.O_WRONLY | os.O_APPEND, 0o600)
    os.close(open_given_file(tmp_path / "file"))
