"""Journals: what an operation writes down before its first change, so that a later run can go on.

An operation that changes several names or stores writes a journal, makes it durable, changes them
and removes it. A journal without a live run is *pending* if the home is between old and new, and
garbage otherwise. All kinds share one format, one owner check and one lock; what is in a journal,
and how it is completed or rolled back, belongs to its kind. `swap.pending` has the list of kinds.
"""

import contextlib
import fcntl
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from sagewai_ops.errors import OpsError
from sagewai_ops.fs import atomic, beneath, locks
from sagewai_ops.fs.os_errors import from_os_error, translate_os_errors
from sagewai_ops.fs.trust import is_trusted, require_trusted_directory
from sagewai_ops.records import dataclass
from sagewai_ops.text import shell_word

FORMAT = "sagewai-ops/journal"
VERSION = 2  # 1: each kind's content at the top level, without `format` and `kind`
Operation = Literal[
    "restore", "export", "key rotation", "layout migration"
]  # the names of the kinds


@dataclass(frozen=True, slots=True)
class LeftValue:
    """An encrypted value that no key opens."""

    place: str
    where: str
    reason: str


@dataclass(frozen=True, slots=True)
class Recovery:
    """The outcome of a recovery.

    Attributes:
        operation: The name of its kind; "" if nothing was pending.
        reason: Why it was rolled back; "" otherwise.
        key_fingerprint: Of the key that the home's values are under; "" if not a key rotation.
        left: Values that no key opens.
        steps: What remains to be done before Sagewai starts, one line each.
    """

    operation: Operation | Literal[""] = ""
    outcome: Literal["completed", "rolled back", "nothing to do"] = "nothing to do"
    reason: str = ""
    key_fingerprint: str = ""
    left: tuple[LeftValue, ...] = ()
    steps: tuple[str, ...] = ()


@contextlib.contextmanager
def recording(
    path: Path, kind: str, *, draft: Path
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Yield a function that writes, or replaces, a journal of this run and makes it durable.

    The journal is locked from before it has its name until the end of the block; it stays there.
    An OpsError of that function can leave the journal under its name.

    Args:
        draft: Where it is written first.

    Raises:
        PermissionDeniedError: Another user can put a journal there, so none there is believed.
    """
    require_trusted_directory(path.parent)
    with contextlib.ExitStack() as stack:

        def write(content: Mapping[str, Any]) -> None:
            document = {"format": FORMAT, "version": VERSION, "kind": kind, "content": content}
            with translate_os_errors(path):
                try:
                    atomic.replace(draft, json.dumps(document, indent=1).encode("ascii"))
                    descriptor = beneath.open_file(draft)
                    stack.callback(os.close, descriptor)
                    locks.mark_alive(descriptor)
                    beneath.rename(draft, path)
                except BaseException:
                    with contextlib.suppress(OSError):
                        beneath.unlink(draft)
                    raise
                beneath.sync_directory(path.parent)

        yield write


def trusted(paths: Iterable[Path]) -> list[Path]:
    """Return the journals among these paths in directories where no other user can put one.

    Their own owners and modes are checked when they are read.
    """
    return [path for path in paths if beneath.exists(path) and is_trusted(path, itself=False)]


def require_inside(path: str) -> None:
    """Check that a path of a journal does not leave the directory that it is relative to.

    That it does not lead through a symlink is checked where it is used.

    Raises:
        ValueError: It does.
    """
    _require(
        not path.startswith("/") and ".." not in path.split("/"), "a path leaves its directory"
    )


def pending(paths: Iterable[Path], is_between: Callable[[Path], bool]) -> list[Path]:
    """Return the journals of dead runs that left a home between old and new.

    Args:
        is_between: Of a journal's kind; a journal that it cannot read is pending.
    """
    found = []
    for path in paths:
        try:
            is_pending = is_between(path)
        except OpsError:
            is_pending = True
        if is_pending:
            found.append(path)
    return found


def read(path: Path, kind: str) -> dict[str, Any]:
    """Read the content of a journal, of this version or an older one.

    Raises:
        OpsError: It cannot be read or used, or another user may have written it.
    """
    try:
        descriptor = beneath.open_file(path)
        with open(descriptor, "rb") as stream:
            _require_own(os.fstat(descriptor))
            document = json.loads(stream.read())
        if "format" not in document:
            _require(document.pop("version", 1) == 1, "an unknown version")
            return dict(document)
        _require(document["format"] == FORMAT, "an unknown format")
        _require(document["version"] == VERSION, "an unknown version")
        _require(document["kind"] == kind, "of another kind")
        return dict(document["content"])
    except OSError as error:
        raise from_os_error(error, path) from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise unusable(path, kind, error) from error


def unusable(path: Path, kind: str, reason: object) -> OpsError:
    """Return the error for a journal whose content cannot be used."""
    return OpsError(
        f"journal {path}: unusable, {reason} ({kind})",
        hint=f"ls -la {shell_word(path.parent)}  # nothing in it was changed",
    )


def require_own_directory(path: Path) -> None:
    """Check that no other user can write to the directory of a journal.

    Raises:
        ValueError: Another user can.
        OSError: It cannot be read.
    """
    status = beneath.status(path)
    _require(stat.S_ISDIR(status.st_mode), "not in a directory")
    _require_written_by_us(status)


def is_live(path: Path) -> bool:
    """Return whether a live run holds a journal, or the directory that it is in."""
    # Or on a file system without locks.
    with contextlib.suppress(OSError), beneath.closing(locks.open_entry(path)) as descriptor:
        return not locks.wait_for_lock(descriptor, fcntl.LOCK_EX, 0)
    return False


def remove(path: Path) -> None:
    """Remove a journal and make that durable; a missing one is no error.

    Raises:
        OSError: The system refused.
    """
    with contextlib.suppress(FileNotFoundError):
        beneath.unlink(path)
    beneath.sync_directory(path.parent)


def inode_of(path: Path) -> int | None:
    """Return the inode of a path itself; None if it does not exist."""
    try:
        return beneath.status(path).st_ino
    except (FileNotFoundError, NotADirectoryError):
        return None


def _require_own(status: os.stat_result) -> None:
    _require(stat.S_ISREG(status.st_mode), "not a regular file")
    _require_written_by_us(status)


def _require_written_by_us(status: os.stat_result) -> None:
    # Its writer decides what is moved, and under which key values come.
    _require(status.st_uid in (0, os.geteuid()), f"owned by uid {status.st_uid}")
    _require(not status.st_mode & beneath.OTHERS_WRITE, "writable by other users")


def _require(is_met: object, reason: str) -> None:
    if not is_met:
        raise ValueError(reason)
