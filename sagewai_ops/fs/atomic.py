"""Write files and directories so that a crash leaves the old or the new, never a mixture.

Every write of this program goes through here: written beside the target under a name of its own,
flushed, fsynced, renamed, and the directory fsynced. Modes are given at creation; the umask can
only make them narrower, so they are set on the descriptor as well.
"""

import contextlib
import ctypes
import errno
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from sagewai_ops.errors import PermissionDeniedError, UsageError
from sagewai_ops.fs import locks
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.fs.ownership import keep_owner
from sagewai_ops.fs.removal import sweep_leftovers
from sagewai_ops.text import shell_word

PRIVATE_FILE = 0o600
PRIVATE_DIRECTORY = 0o700

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # linux/fs.h


def replace(
    path: Path,
    content: bytes,
    *,
    mode: int = PRIVATE_FILE,
    owner: os.stat_result | None = None,
    prove: Callable[[Path], None] | None = None,
) -> None:
    """Put `content` at `path`, whole or not at all, and make it durable.

    Args:
        owner: Whose the file is to be, as of what it replaces; None for who runs this.
        prove: Given the file before it has its name; what it raises leaves `path` unchanged.

    Raises:
        NoSpaceError, PermissionDeniedError, OpsError: The system refused; `path` is unchanged.
    """
    with write_stream(path, mode=mode, owner=owner, prove=prove) as stream:
        stream.write(content)


@contextlib.contextmanager
def write_stream(
    path: Path,
    *,
    mode: int = PRIVATE_FILE,
    owner: os.stat_result | None = None,
    prove: Callable[[Path], None] | None = None,
) -> Iterator[BinaryIO]:
    """Give a binary file that takes the name `path` when the block ends well.

    What runs that were killed left of the same file is removed.

    Args:
        owner, prove: As for `replace`.

    Raises:
        NoSpaceError, PermissionDeniedError, OpsError: The system refused; `path` is unchanged.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    with translate_os_errors(path):
        sweep_leftovers(path.parent, partial_names(re.escape(path.name)))
        try:
            # Inside the block: a signal may come before this gives the descriptor.
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            with open(descriptor, "wb") as stream:
                if owner:
                    keep_owner(descriptor, owner)
                os.fchmod(descriptor, mode)
                locks.mark_alive(descriptor)
                yield stream
                stream.flush()
                os.fsync(descriptor)
                if prove:
                    prove(beside)
            os.rename(beside, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(beside)
            raise
        sync_directory(path.parent)


def partial_names(names: str) -> re.Pattern[str]:
    """Return the pattern of the partial files that `write_stream` creates.

    Args:
        names: The pattern of the complete names.
    """
    return re.compile(rf"\.{names}\.[0-9a-f]{{8}}\.partial")


def temporary_directory() -> Path:
    """Give the directory for temporary files.

    `tempfile` writes into it to see whether it can; a kill leaves what it wrote.
    """
    for variable in ("TMPDIR", "TEMP", "TMP"):
        named = os.environ.get(variable)
        if named and os.path.isdir(named) and os.access(named, os.W_OK | os.X_OK):
            return Path(os.path.abspath(named))
    return Path("/tmp")  # noqa: S108 - what is made in it gets a private mode and a name of its own


def make_directory(
    path: Path, *, mode: int = PRIVATE_DIRECTORY, owner: os.stat_result | None = None
) -> None:
    """Make a directory, and the missing ones above it, with exactly this mode; one there is left.

    Args:
        owner: As for `replace`.

    Raises:
        UsageError: Something that is no directory stands there, or above.
        NoSpaceError, PermissionDeniedError, OpsError: The system refused.
    """
    if path.is_dir():
        return
    if os.path.lexists(path):
        raise UsageError(f"{path}: is not a directory", hint=f"ls -ld {shell_word(path)}")
    if not path.parent.is_dir():
        make_directory(path.parent, mode=mode, owner=owner)
    with translate_os_errors(path), contextlib.suppress(FileExistsError):
        os.mkdir(path, mode)
        if owner:
            keep_owner(path, owner)
        os.chmod(path, mode)
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a directory; their renames are synchronous.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """Make everything on the file system of `path` durable at once.

    One call for a tree of many files; without `syncfs`, all file systems are synced.
    """
    try:
        syncfs = ctypes.CDLL(None, use_errno=True).syncfs
    except (AttributeError, OSError):
        os.sync()
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), os.fspath(path))
    finally:
        os.close(descriptor)


def exchange(first: Path, second: Path) -> bool:
    """Exchange two names of one file system in a single step, if the system can.

    Returns:
        False where it cannot, and nothing was changed: the caller renames in two steps.

    Raises:
        OSError: It can, and refused.

    Source: renameat2(2), RENAME_EXCHANGE.
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    if (
        renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
        == 0
    ):
        return True
    number = ctypes.get_errno()
    # Older containers answer EPERM to a system call that they do not know. Where the permission is
    # really missing, the caller's rename fails with it too.
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM):
        return False
    raise OSError(number, os.strerror(number), os.fspath(first), None, os.fspath(second))


def may_write(directory: Path) -> bool:
    """Tell whether files of a directory can be replaced."""
    effective = os.access in os.supports_effective_ids
    return os.access(directory, os.W_OK | os.X_OK, effective_ids=effective)


def require_writable(directories: Iterable[Path]) -> None:
    """Make sure, before anything is touched, that files of these directories can be replaced.

    Raises:
        PermissionDeniedError: Those of one cannot.
    """
    for directory in directories:
        if not may_write(directory):
            raise PermissionDeniedError(
                f"{directory}: may not be written by uid {os.geteuid()}, nothing was changed",
                hint=f"ls -ld {shell_word(directory)}  # run as its owner, or mount it writable",
            )
