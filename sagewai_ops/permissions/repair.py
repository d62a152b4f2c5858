"""Repair the findings of an inspection, and undo a repair.

Before the first change, a record with the states before and after every change is written durably:
a run that dies leaves a record that undoes the changes it made. An entry is opened through the
descriptors of its directories, no link is followed, and an entry is only changed while it is the
file that was inspected. Nothing outside the home and its snapshot directory is changed.
"""

import os
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from sagewai_ops.fs import beneath, locks
from sagewai_ops.fs.given_files import resolve_given_path
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.home.paths import Home
from sagewai_ops.permissions.attributes import (
    ACCESS_LIST,
    DEFAULT_LIST,
    entry_state,
    open_directory,
    read_access_lists,
)
from sagewai_ops.permissions.entry_kinds import EntryState
from sagewai_ops.permissions.findings import Finding, Inspection
from sagewai_ops.permissions.rules import PRIVATE_DIRECTORY, PRIVATE_FILE
from sagewai_ops.permissions.undo_record import Change, read_record, write_record
from sagewai_ops.records import dataclass

# A descriptor opened with O_PATH needs no permission to read the file; through Linux's /proc the
# calls that need a path accept it.
_PATH_ONLY: int = getattr(os, "O_PATH", 0) if sys.platform == "linux" else 0


@dataclass(frozen=True, slots=True)
class RepairReport:
    """The result of a repair, or of its undo.

    Attributes:
        done: In their order.
        left: The changes that were not made, with the reason.
        record: The file that undoes them; None if there is nothing to undo.
    """

    done: tuple[Change, ...]
    left: tuple[tuple[Change, str], ...]
    record: Path | None


def plan_repairs(inspection: Inspection) -> tuple[Change, ...]:
    """Merge the repairs of each entry into one change, in the order of the paths.

    Only root can change an owner, so for others no change of owner is planned.
    """
    changes: dict[tuple[str, str], Change] = {}
    for finding in inspection.findings:
        if finding.repaired is None:
            continue
        entry = (finding.root, finding.facts.path)
        before = finding.facts.state
        known = changes.get(entry) or Change(
            finding.root, finding.facts.path, (), before, before, finding.inode
        )
        after = _merge_states(known.after, finding)
        # An entry can violate a rule twice: by its mode, and because it cannot be read.
        rules = tuple(dict.fromkeys((*known.rules, finding.rule.id)))
        changes[entry] = replace(known, rules=rules, after=after)
    # Parents first: only after its repair is a directory accessible to its owner.
    ordered = sorted(changes.values(), key=_order)
    return tuple(change for change in ordered if change.before != change.after)


def apply_repairs(
    home: Home, inspection: Inspection, changes: Sequence[Change], *, wait_seconds: float = 0.0
) -> RepairReport:
    """Make the changes, after writing the record that undoes them.

    Args:
        changes: As `plan_repairs` ordered them.

    Raises:
        LockedError: Another run has locked the home.
        PermissionDeniedError, NoSpaceError: The record cannot be written; nothing was changed.
    """
    if not changes:
        return RepairReport((), (), None)
    roots = _roots(home, inspection.snapshots)
    with locks.exclusive(home.root, wait_seconds=wait_seconds):
        record = write_record(home.root, roots, datetime.now(timezone.utc), changes)
        done, left = _change_all(roots, changes)
    return RepairReport(done, left, record)


def undo_repairs(
    home: Home, record: Path, *, dry_run: bool = False, wait_seconds: float = 0.0
) -> RepairReport:
    """Undo the changes of a repair, except where the entry has changed since then.

    The record is removed if every change was undone.

    Args:
        dry_run: Return the changes without undoing them.

    Raises:
        NotFoundError: The record does not exist.
        UsageError: The file is not a record, or that of another home.
        PermissionDeniedError: Others can write the record.
    """
    with translate_os_errors(record):
        record = resolve_given_path(record, follow_last=False)
    roots, changes = read_record(home, record)
    if dry_run:
        return RepairReport(tuple(changes), (), record)
    with locks.exclusive(home.root, wait_seconds=wait_seconds):
        done, left = _change_all(roots, sorted(changes, key=_order, reverse=True), undo=True)
        if not left:
            with translate_os_errors(record):
                beneath.unlink(record)
                beneath.sync_directory(record.parent)
    return RepairReport(done, left, None if not left else record)


def _change_all(
    roots: Mapping[str, Path], changes: Sequence[Change], *, undo: bool = False
) -> tuple[tuple[Change, ...], tuple[tuple[Change, str], ...]]:
    """Make the changes, or undo them; return those that were made, and the others with reasons."""
    done, left = [], []
    for change in changes:
        states = (change.after, change.before) if undo else (change.before, change.after)
        if reason := _change(roots[change.root], change, *states):
            left.append((change, reason))
        else:
            done.append(change)
    return tuple(done), tuple(left)


def _order(change: Change) -> tuple[str, str]:
    return change.root, change.path


def _merge_states(after: EntryState, finding: Finding) -> EntryState:
    """Add the repair of a finding to those of earlier findings."""
    repaired, before = finding.repaired, finding.facts.state
    assert repaired is not None
    if (repaired.uid, repaired.gid) != (before.uid, before.gid) and os.geteuid() == 0:
        after = replace(after, uid=repaired.uid, gid=repaired.gid)
    if repaired.access_list is None:
        after = replace(after, access_list=None)
    if repaired.default_list is None:
        after = replace(after, default_list=None)
    if repaired.mode != before.mode:
        after = replace(after, mode=_merge_modes(before.mode, after.mode, repaired.mode))
    return after


def _merge_modes(before: int, after: int, repaired: int) -> int:
    """Merge two repaired modes: a private one is complete, others only clear bits."""
    private = (PRIVATE_FILE, PRIVATE_DIRECTORY)
    if after == before or repaired in private:
        return repaired
    return after if after in private else after & repaired


def _roots(home: Home, snapshots: Path | None) -> dict[str, Path]:
    roots = {"home": home.root}
    if snapshots is not None:
        roots["snapshots"] = Path(os.path.realpath(snapshots))
    return roots


def _change(root: Path, change: Change, expected: EntryState, state: EntryState) -> str:
    """Change an entry from one state to another.

    Returns:
        Why it was not changed; "" if it has the new state.
    """
    try:
        with _entry(root, change.path) as (directory, descriptor):
            status = os.fstat(descriptor)
            if status.st_ino != change.inode:
                return "replaced by another file"
            if not stat.S_ISDIR(status.st_mode) and status.st_nlink > 1:
                return f"has {status.st_nlink} names (hard links)"
            found = entry_state(status, *read_access_lists(*_reference(directory, change.path)))
            if found == state:
                return ""
            if not _is_between(found, expected, state):
                return "changed by another process"
            _write(descriptor, found, state)
    except FileNotFoundError:
        return "not found"
    except OSError as error:
        return (error.strerror or "input/output error").lower()
    return ""


def _is_between(found: EntryState, first: EntryState, last: EntryState) -> bool:
    """Return whether an entry is in a state that a killed change can leave."""
    # The kernel changes the mode together with a list, so the mode is unknown while lists differ.
    is_mode_known = found.mode in (first.mode, last.mode) or first.access_list != last.access_list
    return is_mode_known and all(
        getattr(found, name) in (getattr(first, name), getattr(last, name))
        for name in ("uid", "gid", "default_list")
    )


@contextmanager
def _entry(root: Path, path: str) -> Iterator[tuple[int, int]]:
    """Open an entry and its directory, following no link; yield (directory, entry)."""
    above, _, name = path.rpartition("/")
    flags = (_PATH_ONLY or os.O_RDONLY | os.O_NONBLOCK) | os.O_NOFOLLOW | os.O_CLOEXEC
    with open_directory(root, above) as directory:
        descriptor = os.open(name or ".", flags, dir_fd=directory)
        try:
            if stat.S_ISLNK(os.fstat(descriptor).st_mode):
                raise FileNotFoundError(path)
            yield directory, descriptor
        finally:
            os.close(descriptor)


def _reference(directory: int, path: str) -> tuple[int, str]:
    return directory, path.rpartition("/")[2]


def _write(descriptor: int, found: EntryState, state: EntryState) -> None:
    """Set owner, then lists, then mode, because each of the first two changes the mode."""
    name: int | str = f"/proc/self/fd/{descriptor}" if _PATH_ONLY else descriptor
    if (found.uid, found.gid) != (state.uid, state.gid):
        beneath.set_owner(descriptor, state.uid, state.gid)
    for attribute, old, new in (
        (ACCESS_LIST, found.access_list, state.access_list),
        (DEFAULT_LIST, found.default_list, state.default_list),
    ):
        if old != new and new is None:
            os.removexattr(name, attribute)
        elif old != new and new is not None:
            os.setxattr(name, attribute, new)
    beneath.set_mode(descriptor, state.mode)
