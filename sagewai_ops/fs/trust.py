"""Which entries that runs left behind this program believes.

Journals, stagings, partial files, trash and undo records decide what a later run moves and removes.
Another user who can write to a directory can put any of these there, in a sticky directory too. So
they count only where no other user could have: see `is_trusted`. Anything else is left alone and
reported.
"""

import errno
import os
import stat
from pathlib import Path

from sagewai_ops.errors import PermissionDeniedError
from sagewai_ops.fs import beneath, volumes
from sagewai_ops.fs.os_errors import from_os_error
from sagewai_ops.text import shell_word

_reports: dict[str, None] = {}


def is_trusted(path: Path, *, itself: bool = True) -> bool:
    """Return whether an entry is a file or directory that only this user or root can have made.

    It is a regular file or a directory, owned by this user, not writable by others, in a directory
    of which the same is true, or which is root's.

    Args:
        itself: Also check the entry; else only its directory. What is not trusted is noted for
            `take_reports`.
    """
    problem = _problem(path, itself=itself)
    if problem:
        report(f"{path}: {problem}, left alone")
    return not problem


def require_trusted_directory(directory: Path) -> None:
    """Check that no other user than its owner can put an entry in a directory.

    Root may be working for its owner.

    Raises:
        PermissionDeniedError: Another user can.
    """
    try:
        owner = beneath.status(directory).st_uid
        problem = _directory_problem(directory, owner if os.geteuid() == 0 else 0)
    except OSError as error:
        raise from_os_error(error, directory) from error
    if problem:
        raise PermissionDeniedError(
            f"{directory}: {problem}, nothing was changed", hint=f"ls -ld {shell_word(directory)}"
        )


def is_trusted_directory(directory: Path) -> bool:
    """Return whether no other user can put an entry in a directory."""
    try:
        return not _directory_problem(directory)
    except OSError:
        return False


def owned_target(path: Path, owner: int | None = None) -> tuple[Path | None, str]:
    """Return the path to which an entry of a home leads, unless a user's link leads to others.

    A user's link must not make root read the file of another; root's own links lead anywhere. The
    path returned is opened without following links, so it cannot be redirected afterwards.

    Args:
        owner: The uid to which link and target must belong (default: the target to that of the
            link).

    Returns:
        (the path without links, or None; why it is None).

    Raises:
        OSError: The system refused.
    """
    try:
        link = beneath.status(path)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR):
            raise
        above, reason = owned_target(path.parent, owner)
        if above is None or above == path.parent:
            return None, reason or "not in a directory"
        return owned_target(above / path.name, owner)
    if not stat.S_ISLNK(link.st_mode):
        return path, ""
    real = Path(os.path.realpath(path))
    target = beneath.status(real).st_uid
    is_owned = link.st_uid in (0, target) if owner is None else link.st_uid == target == owner
    if not is_owned:
        return None, f"a link of uid {link.st_uid} to {real}, which is owned by uid {target}"
    return real, ""


def report(line: str) -> None:
    """Note a line about files that others can change, to be shown once with the result."""
    _reports[line] = None


def take_reports() -> list[str]:
    """Return the lines since the last call."""
    reports = [*_reports, *volumes.take_notes()]
    _reports.clear()
    return reports


def _problem(path: Path, *, itself: bool) -> str:
    try:
        found = beneath.status(path)
        if not itself:
            return _directory_problem(path.parent)
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
            return "not a file or directory of this program"
        own = 0 if beneath.is_routed(path) else os.geteuid()
        return _owner_problem(found, own) or _directory_problem(path.parent)
    except OSError as error:
        return (error.strerror or "input/output error").lower()


def _directory_problem(directory: Path, owner: int = 0) -> str:
    found = beneath.status(directory)
    if not stat.S_ISDIR(found.st_mode):
        return f"{directory} is not a directory"
    problem = _owner_problem(found, 0, os.geteuid(), owner)
    return f"in a directory that is {problem}" if problem else ""


def _owner_problem(found: os.stat_result, *owners: int) -> str:
    if found.st_uid not in owners:
        return f"owned by uid {found.st_uid}"
    return "writable by other users" if found.st_mode & beneath.OTHERS_WRITE else ""
