"""Private directories to work in, which a later run removes where a crash left them."""

import contextlib
import os
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

from sagewai_ops.errors import OpsError
from sagewai_ops.fs import atomic, locks
from sagewai_ops.fs.os_errors import translate_os_errors
from sagewai_ops.fs.removal import remove_tree, sweep_leftovers
from sagewai_ops.process.signals import uninterrupted


@contextlib.contextmanager
def locked_directory(path: Path, *, stays: bool = False) -> Iterator[int]:
    """Make a directory with mode 0700 that is locked while this run lives.

    Args:
        path: Must not exist.
        stays: It is only removed after a failure.

    Returns:
        A descriptor of the directory, which stays its own if its name is given away.

    Raises:
        NoSpaceError, PermissionDeniedError, OpsError: The system refused.
    """
    with contextlib.ExitStack() as stack:
        holding = stack.enter_context(contextlib.ExitStack())  # until after its removal
        removal = stack.enter_context(contextlib.ExitStack())
        with uninterrupted(), translate_os_errors(path), locks.sweep_guard(path.parent):
            os.mkdir(path, atomic.PRIVATE_DIRECTORY)
            removal.push(_remover(path))
            os.chmod(path, atomic.PRIVATE_DIRECTORY)  # the umask may have shut it even for us
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            holding.callback(os.close, descriptor)
            locks.mark_alive(descriptor)
        yield descriptor
        if stays:
            removal.pop_all()


def _remover(path: Path) -> Callable[..., None]:
    def remove(reason: type[BaseException] | None, *_more: object) -> None:
        try:
            with translate_os_errors(path):
                remove_tree(path)
        except OpsError:
            if reason is None:  # else the next run removes it: why we are here matters more
                raise

    return remove


@contextlib.contextmanager
def working_directory(parent: Path, prefix: str) -> Iterator[Path]:
    """Make such a directory for the block, after removing what dead runs left.

    Args:
        parent: Where; what nobody holds there under `prefix` is removed first.
        prefix: What its name begins with.

    Raises:
        NoSpaceError, PermissionDeniedError, OpsError: The system refused.
    """
    place = parent / f"{prefix}{secrets.token_hex(4)}"
    with locked_directory(place):
        with locks.sweep_guard(parent):
            sweep_leftovers(parent, re.compile(f"{re.escape(prefix)}.*"))
        yield place
