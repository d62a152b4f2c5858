"""Carry out a plan of `layout` so that a kill at any moment leaves something to finish or undo.

Copies and directories are made first: they change nothing that Sagewai sees. Then the journal says
`moving`, and every step from there can be done again and can be taken back. What is removed at the
end was only moved to a name of our own until then. A run that finds the journal of a dead one goes
on with it, or takes it back where the home was changed meanwhile.
"""

import contextlib
import errno
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sagewai_ops.errors import OpsError
from sagewai_ops.fs import atomic
from sagewai_ops.fs.os_errors import from_os_error, translate_os_errors
from sagewai_ops.fs.ownership import set_owner
from sagewai_ops.fs.removal import sweep_leftovers
from sagewai_ops.home.paths import OWN_PREFIX
from sagewai_ops.layout.steps import PREFIX, Step, StepKind
from sagewai_ops.permissions.rules import PRIVATE_DIRECTORY, PRIVATE_FILE
from sagewai_ops.process.signals import uninterrupted
from sagewai_ops.text import shell_word

JOURNAL = f"{OWN_PREFIX}layout.json"
_PREPARING, _MOVING, _DONE = "preparing", "moving", "done"
_CHUNK_BYTES = 1 << 20


class OtherFileSystemError(OpsError):
    """A move led to another mount; everything is as it was, and copies would do."""


class _ChangedError(Exception):
    """The home is not what the journal says: somebody worked in it since."""


def is_pending(root: Path) -> bool:
    """Tell whether a migration of this home was interrupted."""
    return os.path.lexists(root / JOURNAL)


def carry_out(root: Path, steps: Sequence[Step]) -> None:
    """Do the steps of a plan; the caller holds the home.

    Raises:
        OtherFileSystemError: A plan without moves between directories is needed.
        NoSpaceError, PermissionDeniedError, OpsError: The system refused, or somebody changed the
            home meanwhile; everything is as it was.
    """
    with translate_os_errors(root):
        try:
            _write(root, _PREPARING, steps)
        except BaseException:
            # It may have its name already; nothing that it speaks of was begun.
            with contextlib.suppress(OSError, OpsError):
                _forget(root)
            raise
        try:
            prepared = _prepare(root, steps)
            _write(root, _MOVING, prepared)
        except BaseException:
            _take_back_preparations(root, steps)
            raise
        try:
            _move_forward(root, prepared)
            _write(root, _DONE, prepared)
        except BaseException as error:
            if _read(root)[0] == _DONE:  # it has its name: only to be synced
                _clear(root, prepared)
                raise
            _move_back(root, prepared)
            if isinstance(error, _ChangedError):
                raise OpsError(
                    f"{root / str(error)}: changed while it was moved, everything is as it was",
                    hint="stop what writes to the home, then run it again",
                ) from error
            if isinstance(error, OSError) and error.errno == errno.EXDEV:
                raise OtherFileSystemError(f"{root}: a part of it is another mount") from error
            raise
        _clear(root, prepared)


def recover(root: Path) -> str:
    """Go on with what a dead run began; the caller holds the home.

    Returns:
        `finished`, `rolled back` or `nothing to do`.

    Raises:
        OpsError: The journal cannot be read, or the system refused.
    """
    sweep_leftovers(root, atomic.partial_names(re.escape(JOURNAL)))
    if not is_pending(root):
        return "nothing to do"
    state, steps = _read(root)
    with translate_os_errors(root):
        if state == _PREPARING:
            _take_back_preparations(root, steps)
            return "rolled back"
        if state == _MOVING:
            try:
                _move_forward(root, steps)
            except (OSError, _ChangedError):
                _move_back(root, steps)
                return "rolled back"
        _finish(root, steps)
    return "finished"


def _prepare(root: Path, steps: Sequence[Step]) -> list[Step]:
    """Make directories and copies, and note the inodes that the moves will meet."""
    inodes: dict[str, int] = {}
    owner = root.stat()
    for step in steps:
        if step.kind is StepKind.DIRECTORY:
            os.mkdir(root / step.target, PRIVATE_DIRECTORY)
            os.chmod(root / step.target, PRIVATE_DIRECTORY)
            set_owner(root / step.target, owner.st_uid, owner.st_gid)
        elif step.kind is StepKind.COPY:
            inodes[step.target] = _copy(root / step.source, root / step.target)
    _sync(root, steps)
    return [
        replace(step, inode=inodes.get(step.source, step.inode))
        if step.kind is StepKind.MOVE
        else step
        for step in steps
    ]


def _copy(source: Path, target: Path) -> int:
    """Copy a file, with its time and, as root, its owner; give the inode of the copy."""
    before = source.stat()
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE_FILE)
    with open(descriptor, "wb") as copy, source.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            copy.write(chunk)
        copy.flush()
        os.fchmod(descriptor, PRIVATE_FILE)
        os.utime(descriptor, ns=(before.st_atime_ns, before.st_mtime_ns))
        set_owner(target, before.st_uid, before.st_gid)
        os.fsync(descriptor)
        after = source.stat()
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise OpsError(f"{source}: changed while it was copied, everything is as it was")
        return os.fstat(descriptor).st_ino


def _move_forward(root: Path, steps: Sequence[Step]) -> None:
    """Do every step that is not done; twice is as once."""
    for step in steps:
        if step.kind is StepKind.MODE:
            # The file may have been moved already by a run that died.
            path = _where_is(root, step, steps)
            os.chmod(path, step.mode)
        elif step.kind is StepKind.MOVE:
            _move(root, step.source, step.target, step.inode)
    _sync(root, steps)


@uninterrupted()
def _move_back(root: Path, steps: Sequence[Step]) -> None:
    """Take back what was done, in the other direction; what somebody changed since is left."""
    for step in reversed(steps):
        with contextlib.suppress(_ChangedError, FileNotFoundError):
            if step.kind is StepKind.MOVE:
                _move(root, step.target, step.source, step.inode)
            elif step.kind is StepKind.MODE:
                os.chmod(_where_is(root, step, steps), step.before)
    _take_back_preparations(root, steps)


def _move(root: Path, source: str, target: str, inode: int) -> None:
    """Rename one entry, if it is there and nothing is in the way."""
    at_source, at_target = _inode(root / source), _inode(root / target)
    if at_target == inode and at_source != inode:
        return
    if at_source != inode or at_target is not None:
        raise _ChangedError(source if at_source != inode else target)
    os.rename(root / source, root / target)


def _where_is(root: Path, step: Step, steps: Sequence[Step]) -> Path:
    """Find the file whose mode a step sets, before or after its move."""
    moved = [one.target for one in steps if one.kind is StepKind.MOVE and one.source == step.source]
    for path in (step.source, *moved):
        if _inode(root / path) == step.inode and not (root / path).is_symlink():
            return root / path
    raise _ChangedError(step.source)


def _inode(path: Path) -> int | None:
    try:
        return os.lstat(path).st_ino
    except (FileNotFoundError, NotADirectoryError):
        return None


def _finish(root: Path, steps: Sequence[Step]) -> None:
    """Say that all is moved, and clean up."""
    _write(root, _DONE, steps)
    _clear(root, steps)


@uninterrupted()
def _clear(root: Path, steps: Sequence[Step]) -> None:
    """Remove what was put away, then the journal; twice is as once."""
    for step in steps:
        if step.removes and _inode(root / step.target) == step.inode:
            os.unlink(root / step.target)
    _sync(root, steps)
    _forget(root)


@uninterrupted()
def _take_back_preparations(root: Path, steps: Sequence[Step]) -> None:
    """Remove copies and the directories that were made, where nothing is in them."""
    for step in steps:
        if step.kind is StepKind.COPY:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.unlink(root / step.target)
    for step in steps:
        if step.kind is StepKind.DIRECTORY:
            with contextlib.suppress(OSError):  # somebody put something there
                os.rmdir(root / step.target)
    _sync(root, steps)
    _forget(root)


def _sync(root: Path, steps: Sequence[Step]) -> None:
    """Make the names in every directory durable that a step touches."""
    directories = {root}
    for step in steps:
        if step.kind in (StepKind.COPY, StepKind.MOVE):
            directories.add((root / step.target).parent)
        if step.kind is StepKind.MOVE:
            directories.add((root / step.source).parent)
    for directory in sorted(directories):
        if directory.is_dir():
            atomic.sync_directory(directory)


def _write(root: Path, state: str, steps: Sequence[Step]) -> None:
    content = {"state": state, "steps": [asdict(step) for step in steps]}
    atomic.replace(root / JOURNAL, json.dumps(content).encode("ascii"))


def _forget(root: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(root / JOURNAL)
    atomic.sync_directory(root)


def _read(root: Path) -> tuple[str, list[Step]]:
    path = root / JOURNAL
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(descriptor, "rb") as stream:
            # Whoever writes the journal decides what is moved.
            status = os.fstat(descriptor)
            is_ours = status.st_uid in (0, os.geteuid()) and not status.st_mode & 0o022
            content = json.loads(stream.read()) if is_ours else {}
        state = str(content["state"])
        steps = [_step(entry) for entry in content["steps"]]
    except OSError as error:
        raise from_os_error(error, path) from error
    except (ValueError, KeyError, TypeError) as error:
        raise OpsError(
            f"journal {path}: cannot be used",
            hint=f"cat {shell_word(path)}  # and finish it by hand",
        ) from error
    return state, steps


def _step(entry: dict[str, Any]) -> Step:
    step = Step(**{**entry, "kind": StepKind(entry["kind"])})
    inside = [step.target] if step.kind is StepKind.COPY else [step.source, step.target]
    for path in inside:
        if path.startswith("/") or ".." in path.split("/"):
            raise ValueError(path)
    if step.removes and not step.target.rpartition("/")[2].startswith(PREFIX):
        raise ValueError(step.target)
    return step
