"""Threads that a signal cannot leave half started.

An exception that a signal raises while `threading` starts a thread removes the thread from its
tables, and the thread then ends with a traceback on standard error.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from sagewai_ops.process.signals import uninterrupted

if TYPE_CHECKING:
    from collections.abc import Callable

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


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
