"""Number the steps that a stretch of code takes on the file system, and let one be the last.

A step is a call that changes a name or makes something durable. `killed_at` runs code in a child
and kills it with SIGKILL before its nth step, so no handler and no `finally` runs; `failing`
makes the nth step, or every step from there on, fail as a broken or full disk would.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sagewai_ops.fs import atomic, beneath

_OF_OS = ("rename", "unlink", "rmdir", "mkdir", "symlink", "fsync", "chmod", "fchmod", "utime")
_SURVIVED = 77  # exit code of a child that came to its end


class Steps:
    """A counter of steps.

    Attributes:
        count: Steps taken so far.
    """

    def __init__(self, before: Callable[[int, str, object], None]) -> None:
        self.count = 0
        self._before = before

    def counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function that is a step whenever it is called."""

        def step(*arguments: Any, **options: Any) -> Any:
            self._take(name, _full_path(arguments[0] if arguments else None, options))
            return function(*arguments, **options)

        return step

    def counted_open(self, function: Callable[..., int]) -> Callable[..., int]:
        """Wrap `os.open`, which is a step where it makes a file."""

        def step(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
            if flags & os.O_CREAT:
                self._take("create", _full_path(path, options))
            return function(path, flags, *arguments, **options)

        return step

    def _take(self, name: str, path: object) -> None:
        self.count += 1
        self._before(self.count, name, path)


def _full_path(path: Any, options: dict[str, Any]) -> object:
    """Return a path, or a name with the path of its directory's descriptor."""
    descriptor = options.get("dir_fd", options.get("src_dir_fd"))
    if descriptor is None or not isinstance(path, str):
        return path
    return os.path.join(os.readlink(f"/proc/self/fd/{descriptor}"), path)


@contextlib.contextmanager
def counting(
    before: Callable[[int, str, object], None] = lambda _number, _name, _path: None,
) -> Iterator[Steps]:
    """Number the steps of the block.

    Args:
        before: Called before each step with its number, its name and what it is about.
    """
    steps = Steps(before)
    with pytest.MonkeyPatch.context() as patch:
        for name in _OF_OS:
            patch.setattr(os, name, steps.counted(name, getattr(os, name)))
        for module, name in ((beneath, "exchange"), (atomic, "sync_tree")):
            patch.setattr(module, name, steps.counted(name, getattr(module, name)))
        patch.setattr(os, "open", steps.counted_open(os.open))
        yield steps


@contextlib.contextmanager
def failing(number: int, code: int, *, for_ever: bool = False) -> Iterator[None]:
    """Make one step of the block fail.

    Args:
        number: Which one, from 1.
        code: The errno.
        for_ever: Let all that follow fail as well.
    """

    def fail(taken: int, name: str, path: object) -> None:
        if taken == number or (for_ever and taken > number):
            shown = path if isinstance(path, (str, bytes, os.PathLike)) else name
            raise OSError(code, os.strerror(code), os.fspath(shown))

    with counting(fail):
        yield


def killed_at(number: int, run: Callable[[], object]) -> bool:
    """Run code in a child that is killed before its nth step.

    Returns:
        False if the code came to its end before.
    """

    def kill(taken: int, _name: str, _path: object) -> None:
        if taken == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted() -> None:
        with counting(kill):
            run()

    return killed(counted)


def killed(run: Callable[[], object]) -> bool:
    """Run code in a child that may kill itself by SIGKILL.

    Returns:
        False if the code came to its end.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of a fork where threads may live
        child = os.fork()
    if child == 0:
        try:
            run()
            os._exit(_SURVIVED)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == _SURVIVED, "the child failed"
    return False


def until_done(attempt: Callable[[int], bool]) -> int:
    """Call with 1, 2, 3 and so on until the answer is False; return the number of steps."""
    for number in itertools.count(1):
        if not attempt(number):
            return number - 1
    raise AssertionError
