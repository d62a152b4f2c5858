"""Errors of the operating system, as this program's errors with their exit codes."""

import contextlib
import errno
import os
import re
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
_BAD_PATH = (errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EMLINK)
# What this program calls its partial files and the directories that it fills before a rename.
_PARTIAL = re.compile(r"\.(.+?)(?:(?:\.[0-9a-f]{8})?\.partial|\.restore-\d{8}T\d{12}Z)")
_WORKING = re.compile(
    r"\.sagewai-(?:ops-(?:restore|probe|read|partial)\b.*|\w+-\w+\.(?:staging|drill))"
)


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


def output_error(error: OSError) -> OpsError:
    """Return the error for standard output that cannot be written."""
    failure = from_os_error(OSError(error.errno, error.strerror), "standard output")
    return type(failure)(failure.message, hint="df -h  # for the file that the output goes to")


def from_os_error(error: OSError, path: Path | str, what: str = "") -> OpsError:
    """Return the `OpsError` with the right exit code for an `OSError`.

    Args:
        path: Named where the error itself names no file.
        what: What the file is, for the message.
    """
    # For a call on a descriptor, `filename` is that number or None; below an open directory, it is
    # a bare name.
    named = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else ""
    name = asked_for(named if named.startswith("/") or named == str(path) else str(path))
    if error.errno == errno.ENOENT and not named and is_directory_gone():
        return NotFoundError("working directory: removed", hint="cd")
    message = f"{name}: {(error.strerror or 'input/output error').lower()}"
    message = f"{what} {message}" if what else message
    directory = os.path.dirname(name) or name
    if error.errno in _NO_SPACE:
        return NoSpaceError(message, hint=f"df -h {shell_word(directory)}")
    if error.errno in _DENIED:
        return PermissionDeniedError(message, hint=f"ls -ld {shell_word(name)}")
    if error.errno in _BAD_PATH or (error.errno == errno.EINVAL and named):
        return UsageError(message, hint=f"ls -ld {shell_word(directory)}")
    if error.errno == errno.ENOENT:
        return NotFoundError(message, hint=f"ls -ld {shell_word(directory)}")
    return OpsError(message)


def asked_for(path: str) -> str:
    """Return the path that a run was asked to write, for one of its partial or working files."""
    steps: list[str] = []
    for step in path.split("/"):
        if steps and _WORKING.fullmatch(step):
            break
        partial = _PARTIAL.fullmatch(step)
        steps.append(partial[1] if partial else step)
    return "/".join(steps) or "/"


def is_directory_gone() -> bool:
    """Return whether the working directory was removed: relative paths mean nothing then."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False
