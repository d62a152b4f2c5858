"""An archive on standard input: `ssh host cat home.tar.zst | sagewai-ops restore -`.

The end of an archive is read first, which a pipe cannot do. So it is stored, encrypted if it is, in
a file without a name: no other process can open it, and it ends with this one, also after a kill.
Commands open it by the path of standard input, next to which there is no metadata file. An
encrypted archive of a remote place is kept in such a file too, so that it is downloaded once.
"""

import contextlib
import errno
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from sagewai_ops.archive.age import AGE_MAGIC
from sagewai_ops.archive.open import size_of
from sagewai_ops.archive.zstd_frames import ZSTD_MAGIC
from sagewai_ops.errors import DamagedError, NoSpaceError, UsageError
from sagewai_ops.fs import beneath, volumes
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.home.paths import OWN_PREFIX
from sagewai_ops.process.signals import uninterrupted
from sagewai_ops.progress import Progress
from sagewai_ops.remote.path import is_remote
from sagewai_ops.snapshots.cards import read_card
from sagewai_ops.text import shell_word

STANDARD_INPUT = Path("/dev/stdin")
NAMES = ("-", os.fspath(STANDARD_INPUT), "/dev/fd/0", "/proc/self/fd/0")  # of it, in options
_STAGE = "receive"
_PIECE_BYTES = 1024 * 1024
# Left free for other programs, because a stream need not end; of a small file system a twentieth.
_RESERVE_BYTES, _RESERVE_PART = 64 * 1024 * 1024, 20
_USUAL_RATIO = 4  # of a content to its archive, where none is recorded
# Where a file without a name is not known, its flags mean that a directory is opened to write.
_NO_UNNAMED = volumes.UNSUPPORTED | {errno.EISDIR, errno.ENOENT}


def require_input(descriptor: int = 0) -> None:
    """Check that standard input can be an archive.

    Raises:
        UsageError: It is a terminal.
    """
    if os.isatty(descriptor):
        raise UsageError(
            "-: standard input is a terminal, not an archive",
            hint="ssh HOST cat ARCHIVE | sagewai-ops restore - --to DIR",
        )


@contextlib.contextmanager
def stored_input(
    directory: Path, progress: Progress | None = None, *, descriptor: int = 0
) -> Iterator[None]:
    """Store the archive on standard input, which `STANDARD_INPUT` is for the block.

    Args:
        directory: On whose file system it is stored.
        progress: Reports `receive` in bytes; the total is unknown.

    Raises:
        DamagedError: It does not begin as an archive, which is found at once, or the block finds
            that it is damaged.
        NoSpaceError, PermissionDeniedError, OpsError: It cannot be stored.
    """
    begin = _read_beginning(descriptor)
    with contextlib.ExitStack() as stack:
        with translate_os_errors(directory):
            with uninterrupted():
                file = _create_unnamed(directory)
                stack.callback(os.close, file)
            _store(descriptor, begin, file, directory, progress)
        beneath.route(STANDARD_INPUT, functools.partial(_serve, file))
        stack.callback(beneath.unroute, STANDARD_INPUT)
        try:
            yield
        except DamagedError as error:
            if type(error) is not DamagedError:
                raise
            hint = "set -o pipefail  # in the shell: the program before the pipe may have failed"
            raise DamagedError(error.message, hint=hint) from error


@contextlib.contextmanager
def spool(archive: Path, directory: Path) -> Iterator[BinaryIO | None]:
    """Open an empty file without a name for an encrypted archive of a remote place.

    Args:
        directory: On whose file system it is.

    Returns:
        The file; None for any other archive, and where the disk does not have the space for the
        archive and its content.

    Raises:
        NotFoundError, RemoteError, PermissionDeniedError: The archive cannot be read.
        OpsError: The file cannot be created.
    """
    if not (is_remote(archive) and archive.name.endswith(".age")):
        yield None
        return
    size_bytes = size_of(archive)
    recorded = read_card(archive).get("content_bytes")
    content_bytes = recorded if isinstance(recorded, int) else _USUAL_RATIO * size_bytes
    with translate_os_errors(directory), uninterrupted():
        stream = open(_create_unnamed(directory), "r+b", buffering=0)  # noqa: SIM115 - closed below
    with stream:
        yield (
            stream
            if _usable_bytes(os.fstatvfs(stream.fileno())) >= size_bytes + content_bytes
            else None
        )


def _read_beginning(descriptor: int) -> bytes:
    """Read the first bytes, and check that they are those of an archive."""
    magics = (AGE_MAGIC, ZSTD_MAGIC)
    begin = b""
    while not any(map(begin.startswith, magics)):
        piece = b""
        if any(magic.startswith(begin) for magic in magics):
            with translate_os_errors(STANDARD_INPUT):
                piece = os.read(descriptor, len(AGE_MAGIC) - len(begin))
        if not piece:
            what = "neither zstd nor age, not an archive" if begin else "empty"
            raise DamagedError(
                f"standard input: {what}",
                hint="... | head -c 100  # what the program before the pipe writes",
            )
        begin += piece
    return begin


def _store(
    descriptor: int, begin: bytes, file: int, directory: Path, progress: Progress | None
) -> None:
    stored, piece = 0, begin
    while piece:
        system = os.fstatvfs(file)
        if _usable_bytes(system) < len(piece):
            free = system.f_bavail * system.f_frsize
            raise NoSpaceError(
                f"{directory}: {free} bytes free, with {stored} bytes of standard input stored",
                hint=f"df -h {shell_word(directory)}",
            )
        view = memoryview(piece)
        while view:
            view = view[os.write(file, view) :]
        stored += len(piece)
        if progress:
            progress(_STAGE, stored, 0)
        piece = os.read(descriptor, _PIECE_BYTES)


def _usable_bytes(system: os.statvfs_result) -> int:
    """Return the free space of a file system, without what is left for other programs."""
    reserve = min(_RESERVE_BYTES, system.f_blocks * system.f_frsize // _RESERVE_PART)
    return system.f_bavail * system.f_frsize - reserve


def _create_unnamed(directory: Path) -> int:
    """Create a file without a name, private and open to read and write."""
    if hasattr(os, "O_TMPFILE"):
        flags = os.O_TMPFILE | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
        parent = beneath.open_directory(directory)
        try:
            return os.open(".", flags, 0o600, dir_fd=parent)
        except OSError as error:
            if error.errno not in _NO_UNNAMED:
                raise
        finally:
            os.close(parent)
    # A kill between the two leaves an empty file.
    path = directory / f"{OWN_PREFIX}input-{os.urandom(4).hex()}"
    file = beneath.create_file(path, 0o600)
    try:
        beneath.unlink(path)
    except BaseException:
        os.close(file)
        raise
    return file


def _serve(file: int, name: str, *_arguments: Any) -> Any:
    """Perform an operation of `beneath` on the stored archive."""
    if name == "open_file":
        os.lseek(file, 0, os.SEEK_SET)  # one reader at a time: they share the position
        return os.dup(file)
    if name == "status":
        return os.fstat(file)
    raise OSError(errno.EPERM, os.strerror(errno.EPERM), os.fspath(STANDARD_INPUT))
