"""Repair what `inspection` found, and take a repair back.

Every change is written down with the state before and after it, durably, before the first one is
made: a run that dies leaves a record that undoes as much as was done. An entry is reached through
the descriptors of its directories, no link is followed, and it is only touched while it is the file
that was looked at. Nothing outside of the home and its snapshot directory is changed.
"""

import os
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from sagewai_ops.fs import atomic, locks
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.home.paths import Home
from sagewai_ops.permissions.attributes import (
    ACCESS_LIST,
    DEFAULT_LIST,
    access_lists,
    opened,
    state_of,
)
from sagewai_ops.permissions.entry_kinds import Wanted
from sagewai_ops.permissions.findings import Finding, Inspection
from sagewai_ops.permissions.rules import PRIVATE_DIRECTORY, PRIVATE_FILE
from sagewai_ops.permissions.undo_record import Change, read_record, write_record

# A descriptor that only refers to a file needs no permission to read it; through Linux's /proc it
# can be used like any other.
_ONLY_REFER: int = getattr(os, "O_PATH", 0) if sys.platform == "linux" else 0


@dataclass(frozen=True, slots=True)
class Repaired:
    """What a repair, or its undoing, did.

    Attributes:
        done: In their order.
        left: What was not changed, with the reason.
        record: The file that undoes it; None if nothing was to be done.
    """

    done: tuple[Change, ...]
    left: tuple[tuple[Change, str], ...]
    record: Path | None


def plan_repairs(inspection: Inspection) -> tuple[Change, ...]:
    """Join the wanted states of each entry into one change, in the order of their paths.

    A change of owner is planned for root alone: nobody else may give files away.
    """
    changes: dict[tuple[str, str], Change] = {}
    for finding in inspection.findings:
        if finding.wanted is None:
            continue
        place = (finding.root, finding.facts.path)
        before = finding.facts.state
        known = changes.get(place) or Change(
            finding.root, finding.facts.path, (), before, before, finding.inode
        )
        after = _joined(known.after, finding)
        # One rule can be violated twice, by a mode and by what could not be looked into.
        rules = tuple(dict.fromkeys((*known.rules, finding.rule.id)))
        changes[place] = replace(known, rules=rules, after=after)
    # From above: a repaired directory is open to its owner, who could not enter it before.
    ordered = sorted(changes.values(), key=lambda one: (one.root, one.path))
    return tuple(change for change in ordered if change.before != change.after)


def apply_repairs(
    home: Home, inspection: Inspection, changes: Sequence[Change], *, wait_seconds: float = 0.0
) -> Repaired:
    """Make the changes, after writing down how to take them back.

    Args:
        changes: As `plan_repairs` ordered them.

    Raises:
        LockedError: Another run holds the home.
        PermissionDeniedError, NoSpaceError: The record cannot be written; nothing was changed.
    """
    if not changes:
        return Repaired((), (), None)
    roots = _roots(home, inspection.snapshots)
    with locks.exclusive(home.root, wait_seconds=wait_seconds):
        record = write_record(home.root, roots, datetime.now(timezone.utc), changes)
        done, left = [], []
        for change in changes:
            if reason := _set(roots[change.root], change, change.before, change.after):
                left.append((change, reason))
            else:
                done.append(change)
    return Repaired(tuple(done), tuple(left), record)


def undo_repairs(
    home: Home, record: Path, *, dry_run: bool = False, wait_seconds: float = 0.0
) -> Repaired:
    """Put back what a repair changed; what was changed again since then is left and named.

    The record is removed if nothing had to be left.

    Raises:
        NotFoundError: There is no such record.
        UsageError: It is none, or that of another home.
        PermissionDeniedError: Others may have written it.
    """
    roots, changes = read_record(home, record)
    if dry_run:
        return Repaired(tuple(changes), (), record)
    done, left = [], []
    with locks.exclusive(home.root, wait_seconds=wait_seconds):
        for change in sorted(changes, key=lambda one: (one.root, one.path), reverse=True):
            if reason := _set(roots[change.root], change, change.after, change.before):
                left.append((change, reason))
            else:
                done.append(change)
        if not left:
            with translate_os_errors(record):
                os.unlink(record)
                atomic.sync_directory(record.parent)
    return Repaired(tuple(done), tuple(left), None if not left else record)


def _joined(after: Wanted, finding: Finding) -> Wanted:
    """Add what one finding wants to what earlier ones want."""
    wanted, before = finding.wanted, finding.facts.state
    assert wanted is not None
    if (wanted.uid, wanted.gid) != (before.uid, before.gid) and os.geteuid() == 0:
        after = replace(after, uid=wanted.uid, gid=wanted.gid)
    if wanted.access_list is None:
        after = replace(after, access_list=None)
    if wanted.default_list is None:
        after = replace(after, default_list=None)
    if wanted.mode != before.mode:
        after = replace(after, mode=_joined_mode(before.mode, after.mode, wanted.mode))
    return after


def _joined_mode(before: int, after: int, wanted: int) -> int:
    """Join two wanted modes: a private one is whole, others take bits away."""
    private = (PRIVATE_FILE, PRIVATE_DIRECTORY)
    if after == before or wanted in private:
        return wanted
    return after if after in private else after & wanted


def _roots(home: Home, snapshots: Path | None) -> dict[str, Path]:
    roots = {"home": home.root}
    if snapshots is not None:
        roots["snapshots"] = Path(os.path.realpath(snapshots))
    return roots


def _set(root: Path, change: Change, expected: Wanted, state: Wanted) -> str:
    """Bring an entry from one state to another.

    Returns:
        Why it was left alone; "" if it has the state at the end.
    """
    try:
        with _entry(root, change.path) as (directory, descriptor):
            status = os.fstat(descriptor)
            if status.st_ino != change.inode:
                return "is another file by now"
            found = state_of(status, *access_lists(*_reference(directory, change.path)))
            if found == state:
                return ""
            if not _is_between(found, expected, state):
                return "was changed meanwhile"
            _write(descriptor, found, state)
    except FileNotFoundError:
        return "is gone"
    except OSError as error:
        return (error.strerror or "refused").lower()
    return ""


def _is_between(found: Wanted, first: Wanted, last: Wanted) -> bool:
    """Tell whether an entry is on the way from one state to the other, as a kill leaves it."""
    # The kernel rewrites the mode together with a list, so it says nothing while lists differ.
    is_mode_known = found.mode in (first.mode, last.mode) or first.access_list != last.access_list
    return is_mode_known and all(
        getattr(found, name) in (getattr(first, name), getattr(last, name))
        for name in ("uid", "gid", "default_list")
    )


@contextmanager
def _entry(root: Path, path: str) -> Iterator[tuple[int, int]]:
    """Open an entry and its directory, following no link; (directory, entry)."""
    above, _, name = path.rpartition("/")
    flags = (_ONLY_REFER or os.O_RDONLY | os.O_NONBLOCK) | os.O_NOFOLLOW | os.O_CLOEXEC
    with opened(root, above) as directory:
        descriptor = os.open(name or ".", flags, dir_fd=directory)
        try:
            if stat.S_ISLNK(os.fstat(descriptor).st_mode):
                raise FileNotFoundError(path)
            yield directory, descriptor
        finally:
            os.close(descriptor)


def _reference(directory: int, path: str) -> tuple[int, str]:
    return directory, path.rpartition("/")[2]


def _write(descriptor: int, found: Wanted, state: Wanted) -> None:
    """Set owner, then lists, then mode: each of the first two changes the mode by itself."""
    name: int | str = f"/proc/self/fd/{descriptor}" if _ONLY_REFER else descriptor
    if (found.uid, found.gid) != (state.uid, state.gid):
        os.chown(name, state.uid, state.gid)
    for attribute, old, new in (
        (ACCESS_LIST, found.access_list, state.access_list),
        (DEFAULT_LIST, found.default_list, state.default_list),
    ):
        if old != new and new is None:
            os.removexattr(name, attribute)
        elif old != new and new is not None:
            os.setxattr(name, attribute, new)
    os.chmod(name, state.mode)
