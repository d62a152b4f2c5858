"""Signals while asyncio runs: they end the work at its next pause, and then the program.

Under asyncio an exception that a signal handler raises may land inside a callback of the event
loop, which logs it and goes on. So for as long as the loop runs, a signal cancels the task, whose
clean-up then takes its ordinary way; afterwards the signal is what the caller hears of.
"""

import asyncio
import contextlib
import signal
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from sagewai_ops.errors import InterruptedRunError

Answer = TypeVar("Answer")

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_interruptibly(work: Coroutine[Any, Any, Answer]) -> Answer:
    """Run a coroutine to its end, in a loop of its own.

    Raises:
        InterruptedRunError: A signal came; the coroutine was cancelled and has cleaned up.
    """
    if threading.current_thread() is not threading.main_thread():
        return asyncio.run(work)  # only the main thread is told of signals
    came: list[int] = []

    async def cancellable() -> Answer:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(work)

        def stop(number: int) -> None:
            came.append(number)
            task.cancel()

        for number in before:
            loop.add_signal_handler(number, stop, number)
        try:
            return await task
        finally:
            for number in before:
                loop.remove_signal_handler(number)

    # A run under nohup ignores SIGHUP on purpose.
    before = {
        number: handler
        for number in _SIGNALS
        if (handler := signal.getsignal(number)) is not signal.SIG_IGN
    }
    try:
        return asyncio.run(cancellable())
    except asyncio.CancelledError:
        if not came:
            raise
        raise InterruptedRunError(came[0]) from None
    finally:
        for number, handler in before.items():
            with contextlib.suppress(TypeError):  # a handler that is not Python's stays lost
                signal.signal(number, handler)
