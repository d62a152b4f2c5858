"""Signals: how they end a run, where they must wait, and what they do while asyncio runs.

A signal ends the run by an exception, wherever the main thread is. What makes or removes something
that must not be left behind lets it wait for the moment that this takes. One that comes while the
program starts waits until there is a run that can say what became of it; one that comes when the
work is done is too late: who reads `interrupted` must be able to trust that nothing was changed.

Under asyncio an exception that a signal handler raises may land inside a callback of the event
loop, which logs it and goes on. So for as long as the loop runs, a signal cancels the task, whose
clean-up then takes its ordinary way; afterwards the signal is what the caller hears of.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from sagewai_ops.errors import InterruptedRunError

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Sequence

Answer = TypeVar("Answer")

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Waiting(threading.local):
    """Of each thread, for only the main one is told of signals."""

    depth = 0
    signal_number: int | None = None
    is_late = False
    is_part = False


_waiting = _Waiting()
_held: list[int] = []


def hold() -> None:
    """Let the first signal wait for a run to begin, or come to nothing if one has ended.

    A second one ends the program at once: there is nothing to take back, but output may block.
    """

    def wait(number: int, _frame: object) -> None:
        _held.append(number)
        _set(_SIGNALS, signal.SIG_DFL)

    _set(_SIGNALS, wait)


def ignore() -> None:
    """Let signals do nothing any more: the program is only leaving."""
    _set(_SIGNALS, signal.SIG_IGN)


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """Turn SIGINT, SIGTERM and SIGHUP into an exception, once, so that partials are removed.

    Raises:
        InterruptedRunError: One came, or had come before the block.
    """
    came: list[int] = []

    def interrupt(number: int, _frame: object) -> None:
        _set(_SIGNALS, signal.SIG_IGN)  # cleaning up is not interrupted again
        if not _waiting.is_late:
            came.append(number)
            arrived(number)

    _waiting.is_late = False
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        _set(_SIGNALS, interrupt)
        if _held:
            interrupt(_held.pop(), None)
        yield
    except KeyboardInterrupt:
        if came:  # what was raised got lost inside SQLite; `database.source.watched`
            raise InterruptedRunError(came[0]) from None
        raise
    finally:
        for number, handler in before.items():
            if handler is not None:  # of another language than Python's, which stays lost
                signal.signal(number, handler)


def too_late() -> None:
    """Let no signal end this run any more: what was asked for is done, and is to be told."""
    if not _waiting.is_part:
        _waiting.is_late = True
        _waiting.signal_number = None


@contextlib.contextmanager
def only_a_part() -> Iterator[None]:
    """Let it never be too late in the block: when it is done, what was asked for is not."""
    before, _waiting.is_part = _waiting.is_part, True
    try:
        yield
    finally:
        _waiting.is_part = before


def arrived(number: int) -> None:
    """Let a signal end what runs, now or when the block that makes it wait has ended.

    Raises:
        InterruptedRunError: Now.
    """
    if _waiting.depth:
        _waiting.signal_number = number
    else:
        raise InterruptedRunError(number)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Let signals wait until the block has ended, well or not.

    Raises:
        InterruptedRunError: One came meanwhile.
    """
    _waiting.depth += 1
    try:
        yield
    finally:
        _waiting.depth -= 1
        if not _waiting.depth and _waiting.signal_number is not None:
            number, _waiting.signal_number = _waiting.signal_number, None
            raise InterruptedRunError(number)


def run_interruptibly(work: Coroutine[Any, Any, Answer]) -> Answer:
    """Run a coroutine to its end, in a loop of its own.

    Raises:
        InterruptedRunError: A signal came; the coroutine was cancelled and has cleaned up.
    """
    import asyncio

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


def _set(numbers: Sequence[int], handler: Any) -> None:
    for number in numbers:
        # A run under nohup ignores SIGHUP on purpose.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)
