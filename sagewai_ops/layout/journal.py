"""Execute a plan of `layout.plan` so that a run killed at any step can be completed or rolled back.

Copies and directories are made first: they change nothing that Sagewai reads. Then the journal
enters the state `moving`, and each step from there can be repeated and can be undone. A file to be
removed is renamed to a name of our own until the end. A later run completes the migration of a dead
one, or rolls it back where the home was changed since.
"""

import contextlib
import errno
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sagewai_ops.database.postgres.sessions import require_home_unused
from sagewai_ops.errors import OpsError
from sagewai_ops.fs import atomic, beneath
from sagewai_ops.fs import journal as fs_journal
from sagewai_ops.fs.journal import Operation, Recovery, inode_of
from sagewai_ops.fs.os_errors import from_os_error, translate_os_errors
from sagewai_ops.fs.ownership import set_owner
from sagewai_ops.fs.removal import remove_abandoned, sweep_leftovers
from sagewai_ops.home.paths import OWN_PREFIX, Home
from sagewai_ops.layout.steps import PREFIX, Step, StepKind
from sagewai_ops.permissions.rules import PRIVATE_DIRECTORY, PRIVATE_FILE
from sagewai_ops.process.signals import uninterrupted

JOURNAL = f"{OWN_PREFIX}layout.json"
NAME: Operation = "layout migration"
_PREPARING, _MOVING, _DONE = "preparing", "moving", "done"
_CHUNK_BYTES = 1 << 20

_Write = Callable[[Mapping[str, Any]], None]


class OtherFileSystemError(OpsError):
    """A move crossed a mount; everything is unchanged, and a copy would succeed."""


class _ChangedError(Exception):
    """The home is not what the journal describes: another program changed it."""


def execute(root: Path, steps: Sequence[Step]) -> None:
    """Execute the steps of a plan; the caller has locked the home.

    Raises:
        OtherFileSystemError: A plan without moves between directories is needed.
        NoSpaceError, PermissionDeniedError, OpsError: The system refused, or another program
            changed the home; everything is unchanged.
    """
    with (
        translate_os_errors(root),
        fs_journal.recording(root / JOURNAL, NAME, draft=_draft(root)) as write,
    ):
        try:
            _write(write, _PREPARING, steps)
        except BaseException:
            # It may have its name already; none of its steps has begun.
            with contextlib.suppress(OSError, OpsError):
                fs_journal.remove(root / JOURNAL)
            raise
        try:
            prepared = _prepare(root, steps)
            _write(write, _MOVING, prepared)
        except BaseException:
            _undo_preparations(root, steps)
            raise
        try:
            _complete(root, prepared)
            _write(write, _DONE, prepared)
        except BaseException as error:
            with uninterrupted():  # a signal that came before the error is raised after this
                is_done = _read(root)[0] == _DONE  # renamed, but not synced
                (_clear if is_done else _roll_back)(root, prepared)
            if is_done:
                raise
            if isinstance(error, _ChangedError):
                raise OpsError(
                    f"{root / str(error)}: changed during its move, everything is unchanged",
                    hint="sagewai-ops status  # stop what writes to the home, then run it again",
                ) from error
            if isinstance(error, OSError) and error.errno == errno.EXDEV:
                raise OtherFileSystemError(f"{root}: a part of it is another mount") from error
            raise
        _clear(root, prepared)


def recover(root: Path) -> Recovery:
    """Complete the migration of a dead run, or roll it back; the caller has locked the home.

    Raises:
        OpsError: The journal cannot be read, or the system refused.
    """
    sweep(root)
    if not journals(root):
        return Recovery()
    state, steps = _read(root)
    with translate_os_errors(root):
        if state == _PREPARING:
            _undo_preparations(root, steps)
            return Recovery(NAME, "rolled back", "interrupted before its first move")
        if state == _MOVING:
            try:
                _complete(root, steps)
            except (OSError, _ChangedError) as error:
                _roll_back(root, steps)
                return Recovery(NAME, "rolled back", _reason(root, error))
            with fs_journal.recording(root / JOURNAL, NAME, draft=_draft(root)) as write:
                _write(write, _DONE, steps)
        _clear(root, steps)
    return Recovery(NAME, "completed")


def journals(root: Path) -> list[Path]:
    """Return the journal of a home's layout migration, if there is one."""
    return fs_journal.trusted([root / JOURNAL])


def is_pending(path: Path) -> bool:
    """Return whether a journal is that of a dead run, whatever steps are done."""
    return not fs_journal.is_live(path)


def sweep(root: Path) -> list[str]:
    """Remove the partial files of dead runs; return their names."""
    draft = _draft(root)
    removed = [
        name
        for path in (root / JOURNAL, draft)
        for name in sweep_leftovers(root, atomic.partial_names(re.escape(path.name)))
    ]
    return [*removed, *([draft.name] if remove_abandoned(draft) else [])]


def recover_home(home: Home, environment: Mapping[str, str], _wait_seconds: float) -> Recovery:
    """Complete or roll back the migration of a dead run; the caller has locked the home.

    Raises:
        TargetBusyError: The home is in use.
        OpsError: As `recover`.
    """
    if not journals(home.root):
        return Recovery()
    require_home_unused(home, environment)
    atomic.require_writable([home.root])
    return recover(home.root)


def _draft(root: Path) -> Path:
    return root / f"{JOURNAL}.partial"


def _reason(root: Path, error: Exception) -> str:
    if isinstance(error, OSError):
        return from_os_error(error, root).message
    return f"{root / str(error)}: changed since"


def _prepare(root: Path, steps: Sequence[Step]) -> list[Step]:
    """Make directories and copies, and return the steps with the inodes of the copies."""
    inodes: dict[str, int] = {}
    owner = root.stat()
    for step in steps:
        if step.kind is StepKind.DIRECTORY:
            beneath.make_directory(root / step.target, PRIVATE_DIRECTORY)
            set_owner(root / step.target, owner.st_uid, owner.st_gid)
        elif step.kind is StepKind.COPY:
            inodes[step.target] = _copy(root / step.source, root / step.target, owner.st_uid)
    _sync(root, steps)
    return [
        replace(step, inode=inodes.get(step.source, step.inode))
        if step.kind is StepKind.MOVE
        else step
        for step in steps
    ]


def _copy(source: Path, target: Path, owner: int) -> int:
    """Copy a file, with its time and, as root, its owner; return the inode of the copy.

    Args:
        owner: Of the home; a file of another user, by a link, is not copied.
    """
    with (
        open(beneath.open_file(source), "rb") as stream,
        open(beneath.create_file(target, PRIVATE_FILE), "wb") as copy,
    ):
        descriptor = copy.fileno()
        before = os.fstat(stream.fileno())
        if before.st_uid != owner:
            raise OpsError(f"{source}: owned by uid {before.st_uid}, everything is unchanged")
        while chunk := stream.read(_CHUNK_BYTES):
            copy.write(chunk)
        copy.flush()
        set_owner(descriptor, before.st_uid, before.st_gid)
        beneath.keep_mode(descriptor, PRIVATE_FILE, target)
        beneath.set_times(descriptor, before.st_mtime_ns, before.st_atime_ns)
        beneath.sync(descriptor)
        after = os.fstat(stream.fileno())
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise OpsError(f"{source}: changed during its copy, everything is unchanged")
        return os.fstat(descriptor).st_ino


def _complete(root: Path, steps: Sequence[Step]) -> None:
    """Execute each step that is not done; it can be repeated."""
    for step in steps:
        if step.kind is StepKind.MODE:
            # A dead run may have moved the file already.
            path = _locate(root, step, steps)
            beneath.set_mode(path, step.mode)
        elif step.kind is StepKind.MOVE:
            _move(root, step.source, step.target, step.inode)
    _sync(root, steps)


@uninterrupted()
def _roll_back(root: Path, steps: Sequence[Step]) -> None:
    """Undo the steps that are done, the last first, except where the home was changed since."""
    for step in reversed(steps):
        with contextlib.suppress(_ChangedError, FileNotFoundError):
            if step.kind is StepKind.MOVE:
                _move(root, step.target, step.source, step.inode)
            elif step.kind is StepKind.MODE:
                beneath.set_mode(_locate(root, step, steps), step.before)
    _undo_preparations(root, steps)


def _move(root: Path, source: str, target: str, inode: int) -> None:
    """Rename one entry if it has its inode and the target is free."""
    at_source, at_target = inode_of(root / source), inode_of(root / target)
    if at_target == inode and at_source != inode:
        return
    if at_source != inode or at_target is not None:
        raise _ChangedError(source if at_source != inode else target)
    beneath.rename(root / source, root / target)


def _locate(root: Path, step: Step, steps: Sequence[Step]) -> Path:
    """Return the file whose mode a step sets, before or after its move."""
    moved = [
        move.target for move in steps if move.kind is StepKind.MOVE and move.source == step.source
    ]
    for path in (step.source, *moved):
        if inode_of(root / path) == step.inode and not (root / path).is_symlink():
            return root / path
    raise _ChangedError(step.source)


@uninterrupted()
def _clear(root: Path, steps: Sequence[Step]) -> None:
    """Remove what was renamed for that, then the journal; it can be repeated."""
    for step in steps:
        if step.removes and inode_of(root / step.target) == step.inode:
            beneath.unlink(root / step.target)
    _sync(root, steps)
    fs_journal.remove(root / JOURNAL)


@uninterrupted()
def _undo_preparations(root: Path, steps: Sequence[Step]) -> None:
    """Remove the copies, and the new directories that are empty."""
    for step in steps:
        if step.kind is StepKind.COPY:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                beneath.unlink(root / step.target)
    for step in steps:
        if step.kind is StepKind.DIRECTORY:
            with contextlib.suppress(OSError):  # not empty any more
                beneath.remove_directory(root / step.target)
    _sync(root, steps)
    fs_journal.remove(root / JOURNAL)


def _sync(root: Path, steps: Sequence[Step]) -> None:
    """Make the names in each directory that a step changes durable."""
    directories = {root}
    for step in steps:
        if step.kind in (StepKind.COPY, StepKind.MOVE):
            directories.add((root / step.target).parent)
        if step.kind is StepKind.MOVE:
            directories.add((root / step.source).parent)
    for directory in sorted(directories):
        if directory.is_dir():
            beneath.sync_directory(directory)


def _write(write: _Write, state: str, steps: Sequence[Step]) -> None:
    write({"state": state, "steps": [asdict(step) for step in steps]})


def _read(root: Path) -> tuple[str, list[Step]]:
    path = root / JOURNAL
    content = fs_journal.read(path, NAME)
    try:
        return str(content["state"]), [_parse_step(entry) for entry in content["steps"]]
    except (ValueError, KeyError, TypeError) as error:
        raise fs_journal.unusable(path, NAME, error) from error


def _parse_step(entry: dict[str, Any]) -> Step:
    step = Step(**{**entry, "kind": StepKind(entry["kind"])})
    inside = [step.target] if step.kind is StepKind.COPY else [step.source, step.target]
    for path in inside:
        fs_journal.require_inside(path)
    if step.removes and not step.target.rpartition("/")[2].startswith(PREFIX):
        raise ValueError("it removes a file that is not its own")
    return step
