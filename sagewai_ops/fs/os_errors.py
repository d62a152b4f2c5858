"""Errors of the operating system, as this program's errors with their exit codes."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from sagewai_ops.errors import (
    NoSpaceError,
    NotFoundError,
    OpsError,
    PermissionDeniedError,
    UsageError,
)
from sagewai_ops.text import shell_word

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_BAD_PATH = (errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)


@contextlib.contextmanager
def translate_os_errors(path: Path) -> Iterator[None]:
    """Translate each `OSError` that the block raises into an `OpsError` that names the file.

    Args:
        path: Named where the error itself names no file.
    """
    try:
        yield
    except OSError as error:
        raise from_os_error(error, path) from error


def from_os_error(error: OSError, path: Path | str) -> OpsError:
    """Return the `OpsError` with the right exit code for an `OSError`."""
    # For a call on a descriptor, `filename` is that number or None.
    has_name = isinstance(error.filename, (str, bytes))
    name = os.fsdecode(error.filename) if has_name else str(path)
    message = f"{name}: {(error.strerror or 'input/output error').lower()}"
    directory = os.path.dirname(name) or name
    if error.errno in _NO_SPACE:
        return NoSpaceError(message, hint=f"df -h {shell_word(directory)}")
    if error.errno in _DENIED:
        return PermissionDeniedError(message, hint=f"ls -ld {shell_word(name)}")
    if error.errno in _BAD_PATH:
        return UsageError(message, hint=f"ls -ld {shell_word(directory)}")
    if error.errno == errno.ENOENT:
        return NotFoundError(message)
    return OpsError(message)
