"""Threads that a signal cannot leave half started.

An exception that a signal raises while `threading` starts a thread removes the thread from its
tables, and the thread then ends with a traceback on standard error.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from sagewai_ops.process.signals import uninterrupted

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


_JOIN_SECONDS = 0.02  # between two looks whether the threads of a pool have ended
_ending = threading.Event()


def is_ending() -> bool:
    """Return whether this is a thread of a pool whose block has failed or was interrupted.

    What can take long, such as the run of another program, ends itself then.
    """
    return _ending.is_set() and threading.current_thread() is not threading.main_thread()


class Thread(threading.Thread):
    """A thread whose start defers signals."""

    def start(self) -> None:
        """Start the thread.

        Raises:
            InterruptedRunError: After the start, if a signal came.
        """
        with uninterrupted():
            super().start()


class ThreadPool(ThreadPoolExecutor):
    """A pool whose threads, which start at a submission, defer signals until they have started."""

    def submit(
        self,
        function: Callable[Arguments, Result],
        /,
        *arguments: Arguments.args,
        **options: Arguments.kwargs,
    ) -> Future[Result]:
        """Run a function in a thread of the pool.

        Raises:
            InterruptedRunError: After the submission, if a signal came.
        """
        with uninterrupted():
            return super().submit(function, *arguments, **options)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for the threads; after an error, nothing that waits is begun.

        Only the main thread gets signals, and what it waits for here must end at one.
        """
        if kind is not None:
            self.shutdown(wait=False, cancel_futures=True)
            _ending.set()
            try:
                while any(thread.is_alive() for thread in self._threads):
                    time.sleep(_JOIN_SECONDS)
            finally:
                _ending.clear()
        super().__exit__(kind, error, trace)
