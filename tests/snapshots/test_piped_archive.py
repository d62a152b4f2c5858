"""An archive on standard input: what is stored, for how long, and what is refused at once."""

import errno
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sagewai_ops.errors import DamagedError, NoSpaceError, PermissionDeniedError
from sagewai_ops.fs import beneath
from sagewai_ops.snapshots.piped_archive import STANDARD_INPUT, stored_input

ZSTD = b"\x28\xb5\x2f\xfd"
AGE = b"age-encryption.org/v1\n"


class Pipe:
    """A pipe with a writer of its own."""

    def __init__(self, content: bytes) -> None:
        self.end, self._writer = os.pipe()
        self._thread = threading.Thread(target=self._write, args=(content,))
        self._thread.start()

    def _write(self, content: bytes) -> None:
        try:
            while content:
                content = content[os.write(self._writer, content[:3000]) :]
        except BrokenPipeError:
            pass
        finally:
            os.close(self._writer)

    def close(self) -> None:
        """Close the end that is read; the writer ends."""
        os.close(self.end)
        self._thread.join()


@pytest.fixture
def pipes() -> Iterator[list[Pipe]]:
    """Pipes to close."""
    opened: list[Pipe] = []
    yield opened
    for pipe in opened:
        pipe.close()


def _pipe(pipes: list[Pipe], content: bytes) -> int:
    pipes.append(Pipe(content))
    return pipes[-1].end


def _read() -> bytes:
    with open(beneath.open_file(STANDARD_INPUT), "rb") as stream:
        return stream.read()


@pytest.mark.parametrize("magic", [ZSTD, AGE])
def test_the_bytes_are_stored_as_they_are(tmp_path: Path, pipes: list[Pipe], magic: bytes) -> None:
    """They can be opened again and again, by the path of standard input, for the block."""
    content = magic + os.urandom(3_000_000)

    with stored_input(tmp_path, descriptor=_pipe(pipes, content)):
        assert (_read(), _read()) == (content, content)
        assert beneath.is_file(STANDARD_INPUT)
        assert beneath.status(STANDARD_INPUT).st_size == len(content)

    assert not beneath.is_routed(STANDARD_INPUT)


@pytest.mark.parametrize("has_unnamed", [True, False])
def test_the_file_has_no_name(
    tmp_path: Path, pipes: list[Pipe], monkeypatch: pytest.MonkeyPatch, *, has_unnamed: bool
) -> None:
    """Nothing is left of a killed run; also where the file system cannot create it so."""
    original = os.open

    def refuse(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "not supported")
        return original(path, flags, *arguments, **options)

    if not has_unnamed:
        monkeypatch.setattr(os, "open", refuse)

    with stored_input(tmp_path, descriptor=_pipe(pipes, ZSTD)):
        assert os.listdir(tmp_path) == []
        found = beneath.status(STANDARD_INPUT)
        assert (stat.S_IMODE(found.st_mode), found.st_nlink) == (0o600, 0)
        assert found.st_dev == tmp_path.stat().st_dev


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "standard input: empty"),
        (b"\x28\xb5", "standard input: neither zstd nor age, not an archive"),
        (b"age-encryption.org/v2\n", "standard input: neither zstd nor age, not an archive"),
        (b"-----BEGIN AGE ENCRYPTED FILE-----\n", "standard input: neither zstd nor age"),
        (b"\x1f\x8b\x08" + bytes(100), "standard input: neither zstd nor age"),
        (b"Permission denied (publickey).\n", "standard input: neither zstd nor age"),
    ],
)
def test_what_is_no_archive_is_refused(
    tmp_path: Path, pipes: list[Pipe], content: bytes, message: str
) -> None:
    """None of it is shown: it may be anything."""
    with (
        pytest.raises(DamagedError) as caught,
        stored_input(tmp_path, descriptor=_pipe(pipes, content)),
    ):
        pytest.fail("not refused")

    assert caught.value.message.startswith(message)
    assert "publickey" not in caught.value.message + caught.value.hint


def test_what_is_no_archive_is_refused_at_once(tmp_path: Path) -> None:
    """Although the writer continues: it need not be read for a hundred gigabytes."""
    end, writer = os.pipe()
    os.write(writer, b"x")

    with pytest.raises(DamagedError), stored_input(tmp_path, descriptor=end):
        pytest.fail("not refused")

    os.close(end)
    os.close(writer)


def test_a_full_disk_ends_it_before_it_is_full(
    tmp_path: Path, pipes: list[Pipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some space is left for other programs, and nothing is left of the file."""
    original = os.fstatvfs(os.open(tmp_path, os.O_RDONLY))
    spaces = iter((200 << 20, 100 << 20, 64 << 20))

    def shrinking(_descriptor: int) -> os.statvfs_result:
        blocks = next(spaces) // original.f_frsize
        values = list(original)
        values[4] = blocks  # f_bavail
        return os.statvfs_result(values)

    monkeypatch.setattr(os, "fstatvfs", shrinking)
    content = ZSTD + bytes(10_000_000)

    with (
        pytest.raises(NoSpaceError, match=rf"{tmp_path}: \d+ bytes free, with \d+ bytes"),
        stored_input(tmp_path, descriptor=_pipe(pipes, content)),
    ):
        pytest.fail("not refused")

    assert next(spaces, None) is None
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, NoSpaceError), (errno.EDQUOT, NoSpaceError)]
)
def test_a_refused_write_names_the_directory(
    tmp_path: Path,
    pipes: list[Pipe],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    kind: type[Exception],
) -> None:
    """A quota is not seen beforehand."""

    def refuse(_descriptor: int, _data: bytes) -> int:
        raise OSError(number, os.strerror(number))

    end = _pipe(pipes, ZSTD)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", refuse)
        with (
            pytest.raises(kind, match=str(tmp_path)),
            stored_input(tmp_path, descriptor=end),
        ):
            pytest.fail("not refused")


def test_only_reading_is_possible(tmp_path: Path, pipes: list[Pipe]) -> None:
    """No operation that changes a name reaches /dev."""
    with stored_input(tmp_path, descriptor=_pipe(pipes, ZSTD)):
        for operation in (beneath.unlink, beneath.remove_tree, beneath.list_directory):
            with pytest.raises(PermissionError):
                operation(STANDARD_INPUT)


def test_damage_points_at_the_pipe(tmp_path: Path, pipes: list[Pipe]) -> None:
    """Other errors, such as a missing permission, pass unchanged."""
    with (
        pytest.raises(DamagedError) as caught,
        stored_input(tmp_path, descriptor=_pipe(pipes, ZSTD)),
    ):
        raise DamagedError("archive: truncated", hint="sagewai-ops snapshots list")
    with (
        pytest.raises(PermissionDeniedError) as other,
        stored_input(tmp_path, descriptor=_pipe(pipes, ZSTD)),
    ):
        raise PermissionDeniedError("x", hint="y")

    assert "pipefail" in caught.value.hint
    assert other.value.hint == "y"
