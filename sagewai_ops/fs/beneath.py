"""Operations below directories that other users may write.

No function follows a symlink in any part of a path: the directory of an entry is opened without
following one, and the operation names the entry by that descriptor. So a path means the same entry
for the whole of an operation, or the operation fails with ELOOP or ENOTDIR. Owners and modes are
changed on open descriptors, of directories and of files with a single name: a user can add a
name to a file of another user.

Paths are absolute. Roots, such as the home, are resolved with `os.path.realpath` at the start of a
run, and everything below them is reached by these functions. Errors are `OSError` with the path as
`filename`.
"""

import contextlib
import ctypes
import errno
import functools
import os
import stat
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ParamSpec, TypeAlias, TypeVar

from sagewai_ops.fs import volumes

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH  # of a mode: others can change it

AnyPath: TypeAlias = str | Path
_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")

_IS_LINUX = sys.platform == "linux"
# Needs no permission to read the entry; without it (macOS) the entry must be readable.
_PATH_ONLY: int = getattr(os, "O_PATH", 0) if _IS_LINUX else 0
_DIRECTORY = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ENTRY = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC  # a pipe must not block
_OWNER_ALL = 0o700

_OPENAT2 = 437  # the number of the system call on all architectures of Linux but Alpha
_RESOLVE_NO_SYMLINKS = 4  # linux/openat2.h; includes the links of /proc
_HOW_BYTES = 24
_MOST_ID = 2**32 - 2  # of users and groups; one more means no change
_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000  # linux/fcntl.h
_RENAME_EXCHANGE = 2  # linux/fs.h

_routes: dict[str, Callable[..., Any]] = {}


def route(directory: AnyPath, remote: Callable[..., Any]) -> None:
    """Send the operations on a directory and everything below it, or on a file, elsewhere.

    Args:
        remote: Called with the name of a function of this module and its arguments.
    """
    _routes[os.fspath(directory)] = remote


def unroute(directory: AnyPath) -> None:
    """End what `route` began."""
    _routes.pop(os.fspath(directory), None)


def is_routed(path: AnyPath) -> bool:
    """Return whether the operations on a path are performed elsewhere."""
    return _remote_for(path) is not None


def _routed(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Make a function subject to `route`, by its first argument."""

    @functools.wraps(function)
    def call(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        if _routes and (remote := _remote_for(args[0])):
            result: _Result = remote(function.__name__, *args, **kwargs)
            return result
        return function(*args, **kwargs)

    return call


def _remote_for(path: object) -> Callable[..., Any] | None:
    if not isinstance(path, (str, Path)):  # a descriptor is used where it is
        return None
    text = os.fspath(path)
    for directory, remote in _routes.items():
        if text == directory or text.startswith(directory.rstrip("/") + "/"):
            return remote
    return None


@contextlib.contextmanager
def closing(descriptor: int) -> Iterator[int]:
    """Close a descriptor at the end of the block."""
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@_routed
def open_directory(path: AnyPath) -> int:
    """Open a directory to read it."""
    return _open(path, os.O_RDONLY | _DIRECTORY)


@_routed
def open_file(path: AnyPath, flags: int = os.O_RDONLY) -> int:
    """Open a regular file that exists; nothing else is opened, a pipe does not block."""
    descriptor = _open(path, flags | _ENTRY)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    return descriptor


@_routed
def create_file(path: AnyPath, mode: int) -> int:
    """Create a file with this mode, whatever the umask, and open it to read and write."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with _entry(path) as (directory, name):
        descriptor = os.open(name, flags, mode, dir_fd=directory)
        try:
            keep_mode(descriptor, mode, path)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor


@_routed
def make_directory(path: AnyPath, mode: int) -> None:
    """Create a directory with this mode, whatever the umask."""
    with _entry(path) as (directory, name):
        os.mkdir(name, mode, dir_fd=directory)
        with closing(_open_child(directory, name)) as descriptor:
            keep_mode(descriptor, mode, path)


@_routed
def make_link(path: AnyPath, target: str) -> None:
    """Create a symlink to `target`, which is not examined."""
    with _entry(path) as (directory, name):
        os.symlink(target, name, dir_fd=directory)


@_routed
def read_link(path: AnyPath) -> str:
    """Return the target of a symlink."""
    with _entry(path) as (directory, name):
        return os.readlink(name, dir_fd=directory)


@_routed
def make_hard_link(path: AnyPath, target: AnyPath) -> None:
    """Create a second name, `path`, of the existing entry `target`."""
    with _entry(target) as (source, old), _entry(path) as (directory, name):
        os.link(old, name, src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False)


@_routed
def rename(source: AnyPath, target: AnyPath) -> None:
    """Rename an entry; a file or an empty directory with the new name is replaced."""
    with _entry(source) as (old_directory, old), _entry(target) as (directory, name):
        os.rename(old, name, src_dir_fd=old_directory, dst_dir_fd=directory)


@_routed
def exchange(first: AnyPath, second: AnyPath) -> bool:
    """Exchange two names of one file system in a single step, if the system can.

    Returns:
        False where it cannot, and nothing was changed: the caller renames in two steps.

    Raises:
        OSError: It can, and refused.

    Source: renameat2(2), RENAME_EXCHANGE.
    """
    renameat2 = getattr(_libc(), "renameat2", None)
    if renameat2 is None:
        return False
    with _entry(first) as (old_directory, old), _entry(second) as (directory, name):
        names = (old_directory, os.fsencode(old), directory, os.fsencode(name))
        if renameat2(*names, _RENAME_EXCHANGE) == 0:
            return True
        number = ctypes.get_errno()
        # Older containers answer EPERM to a system call that they do not know. Where the
        # permission is really missing, the caller's rename fails with it too. So does a directory
        # of an overlay's lower layer, with EXDEV.
        if number in volumes.UNSUPPORTED or number in (errno.EPERM, errno.EXDEV):
            return False
        raise OSError(number, os.strerror(number), os.fspath(first), None, os.fspath(second))


@_routed
def unlink(path: AnyPath) -> None:
    """Remove a file or a symlink."""
    with _entry(path) as (directory, name):
        os.unlink(name, dir_fd=directory)


@_routed
def remove_directory(path: AnyPath) -> None:
    """Remove an empty directory."""
    with _entry(path) as (directory, name):
        os.rmdir(name, dir_fd=directory)


@_routed
def remove_tree(path: AnyPath) -> None:
    """Remove a file, a symlink, or a directory with everything in it, of any depth.

    Directories of ours that are not writable are made so.
    """
    with _entry(path) as (directory, name):
        if stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
            _remove_content(directory, name)
            os.rmdir(name, dir_fd=directory)
        else:
            os.unlink(name, dir_fd=directory)


@_routed
def list_directory(path: AnyPath) -> list[str]:
    """Return the names in a directory, in no order."""
    with closing(_open(path, os.O_RDONLY | _DIRECTORY)) as descriptor:
        return os.listdir(descriptor)


@_routed
def status(path: AnyPath) -> os.stat_result:
    """Return the status of an entry itself, of a symlink too."""
    with _entry(path) as (directory, name):
        return os.stat(name, dir_fd=directory, follow_symlinks=False)


def exists(path: AnyPath) -> bool:
    """Return whether an entry exists; a symlink exists even if its target does not."""
    try:
        status(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def is_directory(path: AnyPath) -> bool:
    """Return whether an entry exists and is a directory, not a symlink to one."""
    return stat.S_ISDIR(_mode(path))


def is_file(path: AnyPath) -> bool:
    """Return whether an entry exists and is a regular file, not a symlink to one."""
    return stat.S_ISREG(_mode(path))


def is_link(path: AnyPath) -> bool:
    """Return whether an entry exists and is a symlink."""
    return stat.S_ISLNK(_mode(path))


def _mode(path: AnyPath) -> int:
    try:
        return status(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0


@_routed
def set_mode(entry: AnyPath | int, mode: int) -> None:
    """Set the mode of a directory, or of a regular file with a single name.

    Args:
        entry: A path or a descriptor.

    Raises:
        OSError: It is something else; nothing was changed.
    """
    with _changeable(entry) as (descriptor, name):
        try:
            _change_mode(entry, name, mode)
        except OSError as error:
            found = os.fstat(descriptor)
            if not volumes.accepts_mode(error, found.st_mode, mode):
                raise
            volumes.note_mode(found, mode, str(entry))


def _change_mode(entry: AnyPath | int, name: str | int, mode: int) -> None:
    try:
        os.chmod(name, mode)
    except FileNotFoundError:  # /proc is not mounted
        if isinstance(entry, int):
            os.fchmod(entry, mode)
            return
        with closing(_open(entry, os.O_RDONLY | _ENTRY)) as descriptor:
            _require_changeable(os.fstat(descriptor), os.fspath(entry), links=False)
            os.fchmod(descriptor, mode)


def keep_mode(descriptor: int, mode: int, path: AnyPath) -> None:
    """Set the mode of an entry that this run has created, where the file system has modes.

    The umask can have removed bits.

    Args:
        path: Of the entry, for a note.
    """
    try:
        os.fchmod(descriptor, mode)
    except OSError as error:
        if not volumes.lacks(error) and error.errno != errno.EPERM:
            raise
    volumes.note_mode(os.fstat(descriptor), mode, os.fspath(path))


@_routed
def set_owner(entry: AnyPath | int, uid: int, gid: int) -> None:
    """Set the user and the group of a directory, a symlink or a regular file with a single name.

    Args:
        entry: A path or a descriptor.
        uid, gid: -1 for no change.

    Raises:
        OSError: It is something else; nothing was changed.
    """
    with _changeable(entry, links=True) as (descriptor, _name):
        _change_owner(descriptor, uid, gid)


def set_link_owner(name: str, uid: int, gid: int, *, dir_fd: int) -> None:
    """Set the user and the group of a symlink in an open directory, as `set_owner`."""
    with closing(
        os.open(name, (_PATH_ONLY or _ENTRY) | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    ) as descriptor:
        _require_changeable(os.fstat(descriptor), name, links=True)
        _change_owner(descriptor, uid, gid)


@_routed
def set_times(
    entry: AnyPath | int, mtime_ns: int, atime_ns: int | None = None, *, dir_fd: int | None = None
) -> None:
    """Set the modification time of an entry itself, and its access time (default: the same).

    Args:
        entry: A path or a descriptor; with `dir_fd`, a name in that open directory.
    """
    times = (mtime_ns if atime_ns is None else atime_ns, mtime_ns)
    try:
        if dir_fd is not None:
            os.utime(entry, ns=times, dir_fd=dir_fd, follow_symlinks=False)
        elif isinstance(entry, int):
            os.utime(entry, ns=times)
        else:
            with _entry(entry) as (directory, name):
                os.utime(name, ns=times, dir_fd=directory, follow_symlinks=False)
    except OSError as error:
        if not volumes.lacks(error):  # it keeps no times
            raise


@_routed
def sync_directory(path: AnyPath) -> None:
    """Sync the names in a directory."""
    with closing(_open(path, os.O_RDONLY | _DIRECTORY)) as descriptor:
        sync(descriptor)


def sync(descriptor: int) -> None:
    """Sync an open file or directory, where the file system can."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a directory; their renames are synchronous.
        if not volumes.lacks(error):
            raise


@contextlib.contextmanager
def _entry(path: AnyPath) -> Iterator[tuple[int, str]]:
    """Open the directory of an entry for the block; yield it and the entry's name in it."""
    text = os.fspath(path)
    above, _, name = text.rstrip("/").rpartition("/")
    _require_absolute(text)
    try:
        descriptor = _open(above or "/", (_PATH_ONLY or os.O_RDONLY) | _DIRECTORY)
        try:
            yield descriptor, name or "."
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.filename2 is not None or error.filename == text:
            raise
        raise OSError(error.errno, error.strerror, text) from error


@contextlib.contextmanager
def _changeable(entry: AnyPath | int, *, links: bool = False) -> Iterator[tuple[int, str | int]]:
    """Open an entry whose owner and mode may be changed.

    Yields:
        (a descriptor, which may be without access; what `chmod` accepts for it).
    """
    if isinstance(entry, int):
        text, descriptor = str(entry), entry
    else:
        text = os.fspath(entry)
        descriptor = _open(entry, (_PATH_ONLY or _ENTRY) | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _require_changeable(os.fstat(descriptor), text, links=links)
        yield descriptor, f"/proc/self/fd/{descriptor}" if _PATH_ONLY else descriptor
    except OSError as error:
        if error.filename == text:
            raise
        raise OSError(error.errno, error.strerror, text) from error
    finally:
        if not isinstance(entry, int):
            os.close(descriptor)


def _require_changeable(found: os.stat_result, path: str, *, links: bool) -> None:
    is_file = stat.S_ISREG(found.st_mode) or (links and stat.S_ISLNK(found.st_mode))
    if not stat.S_ISDIR(found.st_mode) and not is_file:
        raise OSError(errno.EINVAL, "not a regular file or a directory", path)
    if is_file and found.st_nlink > 1:
        raise OSError(errno.EMLINK, f"has {found.st_nlink} names (hard links)", path)


def _change_owner(descriptor: int, uid: int, gid: int) -> None:
    """Change the owner through a descriptor, which may be without access; of a symlink too.

    Where the file system keeps no owners, it shows its own: that one may be right already.
    """
    try:
        _set_ids(descriptor, uid, gid)
    except OSError as error:
        found = os.fstat(descriptor)
        is_right = uid in (-1, found.st_uid) and gid in (-1, found.st_gid)
        if not is_right or not (volumes.lacks(error) or error.errno == errno.EPERM):
            raise


def _set_ids(descriptor: int, uid: int, gid: int) -> None:
    if not _PATH_ONLY:
        os.fchown(descriptor, uid, gid)
        return
    if not all(-1 <= number <= _MOST_ID for number in (uid, gid)):
        raise OverflowError("uid or gid out of range")  # ctypes would cut it, to 0 for example
    numbers = (ctypes.c_uint(uid), ctypes.c_uint(gid))
    if _libc().fchownat(descriptor, b"", *numbers, _AT_EMPTY_PATH):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _require_absolute(path: str) -> None:
    if not path.startswith("/"):
        raise OSError(errno.EINVAL, "not an absolute path", path)


def _open(path: AnyPath, flags: int) -> int:
    """Open an existing entry, following no symlink in any part of its path."""
    text = os.fspath(path)
    _require_absolute(text)
    if _IS_LINUX:
        openat2, how, name = _openat2(), _how(flags), os.fsencode(text)
        while True:
            descriptor: int = openat2(_OPENAT2, _AT_FDCWD, name, how, _HOW_BYTES)
            if descriptor >= 0:
                return descriptor
            number = ctypes.get_errno()
            if number in (errno.ENOSYS, errno.EPERM):  # an old kernel or container
                break
            if number != errno.EINTR:
                raise OSError(number, os.strerror(number), text)
    return _open_step_by_step(text, flags)


def _open_step_by_step(path: str, flags: int) -> int:
    *above, name = [step for step in path.split("/") if step] or ["."]
    descriptor = os.open("/", (_PATH_ONLY or os.O_RDONLY) | _DIRECTORY)
    try:
        for step in above:
            below = os.open(step, (_PATH_ONLY or os.O_RDONLY) | _DIRECTORY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        return os.open(name, flags | os.O_NOFOLLOW, dir_fd=descriptor)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
    finally:
        os.close(descriptor)


def _remove_content(directory: int, name: str) -> None:
    """Remove everything in a directory, with one open descriptor at any depth.

    The way up is `..`, accepted only if it leads to the directory that the walk came from: another
    process can move a directory of the tree elsewhere.
    """
    descriptor = _open_child(directory, name)
    # Of each directory above the present one: its identity, its own name, the subdirectories left.
    above: list[tuple[tuple[int, int], str, list[str]]] = []
    try:
        left = _remove_files(descriptor)
        while True:
            if left:
                name = left.pop()
                below = _open_child(descriptor, name)
                above.append((_identity(descriptor), name, left))
                os.close(descriptor)
                descriptor = below
                left = _remove_files(descriptor)
            elif above:
                identity, name, left = above.pop()
                parent = os.open("..", os.O_RDONLY | _DIRECTORY, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = parent
                if _identity(descriptor) != identity:
                    raise OSError(errno.EBUSY, "moved by another process during its removal")
                _remove_name(descriptor, name, os.rmdir)
            else:
                return
    finally:
        os.close(descriptor)


def _remove_files(descriptor: int) -> list[str]:
    """Remove what is not a directory from an open one; return the names of the directories."""
    directories = []
    with os.scandir(descriptor) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in found:
        if is_directory:
            directories.append(name)
        else:
            _remove_name(descriptor, name, os.unlink)
    return directories


def _remove_name(directory: int, name: str, remove: Callable[..., None]) -> None:
    """Remove an entry of an open directory, which is made writable if it is ours."""
    try:
        remove(name, dir_fd=directory)
    except PermissionError:
        os.fchmod(directory, _OWNER_ALL)
        remove(name, dir_fd=directory)


def _open_child(directory: int, name: str) -> int:
    """Open a directory in an open one to read it; one of ours is made readable."""
    try:
        return os.open(name, os.O_RDONLY | _DIRECTORY, dir_fd=directory)
    except PermissionError:
        if not _PATH_ONLY:
            raise
        with closing(os.open(name, _PATH_ONLY | _DIRECTORY, dir_fd=directory)) as descriptor:
            os.chmod(f"/proc/self/fd/{descriptor}", _OWNER_ALL)
        return os.open(name, os.O_RDONLY | _DIRECTORY, dir_fd=directory)


def _identity(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


@functools.cache
def _openat2() -> Callable[..., int]:
    function = ctypes.CDLL(None, use_errno=True).syscall
    # With its types, a call costs half: a backup opens every file with it.
    types = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t)
    function.argtypes, function.restype = types, ctypes.c_long
    return function


@functools.cache
def _how(flags: int) -> bytes:
    """Return the structure open_how."""
    return struct.pack("=QQQ", flags, 0, _RESOLVE_NO_SYMLINKS)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
