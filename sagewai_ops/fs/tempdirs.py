"""Private temporary directories, which a later run removes after a crash."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from sagewai_ops.errors import OpsError
from sagewai_ops.fs import atomic, beneath, locks
from sagewai_ops.fs.given_files import resolve_given_path
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.fs.removal import remove_tree, sweep_leftovers
from sagewai_ops.process.signals import uninterrupted

Keep = Callable[[Path], None]


@contextlib.contextmanager
def locked_directory(path: Path, *, keep: bool = False) -> Iterator[int]:
    """Create a directory with mode 0700 that is locked while this run lives, and remove it.

    Args:
        path: Must not exist.
        keep: Remove it only after a failure.

    Returns:
        A descriptor of the directory, valid also after a rename.

    Raises:
        NoSpaceError, PermissionDeniedError, OpsError: The system refused.
    """
    with contextlib.ExitStack() as stack:
        descriptors = stack.enter_context(contextlib.ExitStack())  # closed after the removal
        removal = stack.enter_context(contextlib.ExitStack())
        with uninterrupted(), translate_os_errors(path), locks.sweep_guard(path.parent):
            beneath.make_directory(path, atomic.PRIVATE_DIRECTORY)
            removal.push(_remover(path))
            descriptor = beneath.open_directory(path)
            descriptors.callback(os.close, descriptor)
            locks.mark_alive(descriptor)
        with locks.held(descriptor):
            yield descriptor
        if keep:
            removal.pop_all()


def _remover(path: Path) -> Callable[..., None]:
    def remove(reason: type[BaseException] | None, *_more: object) -> None:
        try:
            with translate_os_errors(path):
                remove_tree(path)
        except OpsError:
            if reason is None:  # else the reason is more important, and the next run removes it
                raise

    return remove


@contextlib.contextmanager
def working_directory(parent: Path, prefix: str) -> Iterator[Path]:
    """Create such a directory for the block, after removing those of dead runs.

    Args:
        prefix: Of its name, and of those that are removed.

    Raises:
        NoSpaceError, PermissionDeniedError, OpsError: The system refused.
    """
    with translate_os_errors(parent):
        parent = resolve_given_path(parent)
    path = parent / f"{prefix}{os.urandom(4).hex()}"
    with locked_directory(path):
        sweep_directories(parent, prefix)
        yield path


def sweep_directories(parent: Path, prefix: str) -> None:
    """Remove the directories of dead runs.

    Raises:
        OpsError: The system refused.
    """
    with locks.sweep_guard(parent):
        sweep_leftovers(parent, re.compile(f"{re.escape(prefix)}.*"))


@contextlib.contextmanager
def kept(path: Path, keep: Keep | None) -> Iterator[Path]:
    """Yield a temporary directory; keep it after the block, under a name that no sweep removes.

    Args:
        keep: Called with the new path; None to keep nothing.
    """
    try:
        yield path
    finally:
        if keep:
            name = path.name.lstrip(".").removeprefix("sagewai-ops-")
            visible = path.with_name(f"sagewai-ops-{name}")
            with translate_os_errors(path):
                os.rename(path, visible)
            keep(visible)
