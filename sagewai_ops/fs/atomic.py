"""Write files and directories so that a crash leaves the old or the new, never a mixture.

Every write of this program uses this module: a partial file next to the target is written, flushed,
synced and renamed, and the directory synced. Modes are set at creation, and again on the
descriptor, because the umask can have removed bits.
"""

import contextlib
import ctypes
import functools
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from sagewai_ops.errors import PermissionDeniedError, UsageError
from sagewai_ops.fs import beneath, locks, volumes
from sagewai_ops.fs.os_errors import from_os_error, translate_os_errors
from sagewai_ops.fs.ownership import keep_owner
from sagewai_ops.fs.removal import sweep_leftovers
from sagewai_ops.text import shell_word

PRIVATE_FILE = 0o600
PRIVATE_DIRECTORY = 0o700
_SYNC_FILE_RANGE_WRITE = 2  # of Linux; without waiting


def replace(
    path: Path,
    content: bytes,
    *,
    mode: int = PRIVATE_FILE,
    owner: os.stat_result | None = None,
    verify: Callable[[Path], None] | None = None,
) -> None:
    """Write a file, completely or not at all, and durably.

    Args:
        owner: The status of the file that it replaces, whose owner it gets; None for no change.
        verify: Called with the partial file before the rename; if it raises, `path` is unchanged.

    Raises:
        NoSpaceError, PermissionDeniedError, OpsError: `path` is unchanged.
    """
    with write_stream(path, mode=mode, owner=owner, verify=verify) as stream:
        stream.write(content)


@contextlib.contextmanager
def write_stream(
    path: Path,
    *,
    mode: int = PRIVATE_FILE,
    owner: os.stat_result | None = None,
    verify: Callable[[Path], None] | None = None,
) -> Iterator[BinaryIO]:
    """Open a partial file that is renamed to `path` if the block succeeds.

    Partial files of dead runs are removed.

    Args:
        owner, verify: As for `replace`.

    Raises:
        NoSpaceError, PermissionDeniedError, OpsError: `path` is unchanged.
    """
    partial = path.with_name(f".{path.name}.{os.urandom(4).hex()}.partial")
    with translate_os_errors(path):
        sweep_leftovers(path.parent, partial_names(re.escape(path.name)))
        try:
            # Inside the block: a signal can arrive before this returns the descriptor.
            descriptor = beneath.create_file(partial, mode)
            with open(descriptor, "wb") as stream:
                if owner:
                    keep_owner(descriptor, owner)
                    beneath.keep_mode(descriptor, mode, path)
                locks.mark_alive(descriptor)
                yield stream
                stream.flush()
                beneath.sync(descriptor)
                if verify:
                    verify(partial)
            beneath.rename(partial, path)
        except BaseException:
            with contextlib.suppress(OSError):
                beneath.unlink(partial)
            raise
        beneath.sync_directory(path.parent)


def partial_names(names: str) -> re.Pattern[str]:
    """Return the pattern of the partial files that `write_stream` creates.

    Args:
        names: The pattern of the complete names.
    """
    return re.compile(rf"\.{names}\.[0-9a-f]{{8}}\.partial")


def temporary_directory() -> Path:
    """Return the directory for temporary files.

    `tempfile` writes a file to test it, which a kill leaves.
    """
    for variable in ("TMPDIR", "TEMP", "TMP"):
        named = os.environ.get(variable)
        if named and os.path.isdir(named) and os.access(named, os.W_OK | os.X_OK):
            return Path(os.path.realpath(named))
    return Path(os.path.realpath("/tmp"))  # noqa: S108 - its entries get private modes and random names


def make_directory(
    path: Path, *, mode: int = PRIVATE_DIRECTORY, owner: os.stat_result | None = None
) -> None:
    """Create a directory with this mode, and the missing ones above it, unless it exists.

    Args:
        owner: As for `replace`.

    Raises:
        UsageError: A file has the name of a directory.
        NoSpaceError, PermissionDeniedError, OpsError: The system refused.
    """
    try:
        found = beneath.status(path)
    except FileNotFoundError:
        make_directory(path.parent, mode=mode, owner=owner)
        with translate_os_errors(path), contextlib.suppress(FileExistsError):
            beneath.make_directory(path, mode)
            if owner:
                keep_owner(path, owner)
                beneath.set_mode(path, mode)
            beneath.sync_directory(path.parent)
        return
    except OSError as error:
        if isinstance(error, NotADirectoryError):
            make_directory(path.parent, mode=mode, owner=owner)  # names the file above
        raise from_os_error(error, path) from error
    if not stat.S_ISDIR(found.st_mode):
        raise UsageError(f"{path}: not a directory", hint=f"ls -ld {shell_word(path)}")


def sync_tree(path: Path) -> None:
    """Sync the file system of `path`, at once for a tree of many files.

    Without `syncfs`, all file systems are synced.
    """
    try:
        syncfs = ctypes.CDLL(None, use_errno=True).syncfs
    except (AttributeError, OSError):
        os.sync()
        return
    with beneath.closing(beneath.open_directory(path)) as descriptor:
        if syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            if number in volumes.UNSUPPORTED:
                os.sync()
                return
            raise OSError(number, os.strerror(number), os.fspath(path))


def begin_writeback(descriptor: int, offset: int) -> None:
    """Begin to write a file to its disk from an offset on, so that a sync waits less.

    Does not wait, and nothing is lost where this is not possible: errors are those of the sync.

    Source: sync_file_range(2).
    """
    call = _sync_file_range()
    if call:
        call(descriptor, offset, 0, _SYNC_FILE_RANGE_WRITE)  # 0: up to the end of the file


@functools.cache
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    try:
        call = ctypes.CDLL(None).sync_file_range
    except (AttributeError, OSError):
        return None
    call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return call


def is_writable(directory: Path) -> bool:
    """Return whether files of a directory can be replaced."""
    effective = os.access in os.supports_effective_ids
    return os.access(directory, os.W_OK | os.X_OK, effective_ids=effective)


def require_writable(directories: Iterable[Path]) -> None:
    """Check that files of these directories can be replaced.

    Raises:
        PermissionDeniedError: One directory is not writable.
    """
    for directory in directories:
        if not is_writable(directory):
            raise PermissionDeniedError(
                f"{directory}: not writable by uid {os.geteuid()}, nothing was changed",
                hint=f"ls -ld {shell_word(directory)}",
            )
