"""Signals: how they end a run, where they are deferred, and their handling under asyncio.

A signal ends the run by an exception in the main thread. Blocks that create or remove entries which
must not be left over defer it for a moment. A signal during the start of the program is deferred
until there is a run that can report it; one after the completion of the work is ignored, because
`interrupted` means that nothing was changed.

Under asyncio, an exception that a signal handler raises can be lost in a callback of the event
loop, which logs it and continues. So while the loop runs, a signal cancels the task, which cleans
up as usual; then the caller gets the interruption.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from sagewai_ops.errors import InterruptedRunError

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Sequence

Result = TypeVar("Result")

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _State(threading.local):
    """Per thread, because only the main thread gets signals."""

    depth = 0
    signal_number: int | None = None
    is_complete = False
    is_step = False


_state = _State()
_deferred: list[int] = []


def defer_signals() -> None:
    """Defer the first signal until a run begins; after the last run it has no effect.

    A second one ends the program at once: there is nothing to undo, but output can block.
    """

    def defer(number: int, _frame: object) -> None:
        _deferred.append(number)
        _set(_SIGNALS, signal.SIG_DFL)

    _set(_SIGNALS, defer)


def ignore_signals() -> None:
    """Ignore signals from here on: the program is exiting."""
    _set(_SIGNALS, signal.SIG_IGN)


@contextlib.contextmanager
def raise_on_signals() -> Iterator[None]:
    """Raise an exception at the first SIGINT, SIGTERM or SIGHUP, so that partial files are removed.

    Raises:
        InterruptedRunError: At a signal in the block, or a deferred one.
    """
    received: list[int] = []

    def interrupt(number: int, _frame: object) -> None:
        _set(_SIGNALS, signal.SIG_IGN)  # the clean-up is not interrupted
        if not _state.is_complete:
            received.append(number)
            deliver_signal(number)

    _state.is_complete = False
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        _set(_SIGNALS, interrupt)
        if _deferred:
            interrupt(_deferred.pop(), None)
        yield
    except KeyboardInterrupt:
        if received:  # the exception was lost inside SQLite
            raise InterruptedRunError(received[0]) from None
        raise
    finally:
        for number, handler in before.items():
            if handler is not None:  # a handler that is not Python's cannot be restored
                signal.signal(number, handler)


@contextlib.contextmanager
def forward_signals(process: int) -> Iterator[None]:
    """Send each SIGINT, SIGTERM or SIGHUP in the block, and a deferred one, to a process."""

    def forward(number: int, _frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        _set(_SIGNALS, forward)
        if _deferred:
            forward(_deferred.pop(), None)
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


def mark_completed() -> None:
    """Ignore signals from here on: the operation has completed, and is to be reported."""
    if not _state.is_step:
        _state.is_complete = True
        _state.signal_number = None


@contextlib.contextmanager
def incomplete_step() -> Iterator[None]:
    """Keep `mark_completed` without effect in the block: it is a step of a longer operation."""
    before, _state.is_step = _state.is_step, True
    try:
        yield
    finally:
        _state.is_step = before


def deliver_signal(number: int) -> None:
    """End the run, now or at the end of the block that defers signals.

    Raises:
        InterruptedRunError: If no block defers it.
    """
    if _state.depth:
        _state.signal_number = number
    else:
        raise InterruptedRunError(number)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Defer signals to the end of the block.

    Raises:
        InterruptedRunError: At the end, after a signal in the block.
    """
    _state.depth += 1
    try:
        yield
    finally:
        _state.depth -= 1
        if not _state.depth and _state.signal_number is not None:
            number, _state.signal_number = _state.signal_number, None
            raise InterruptedRunError(number)


def run_interruptibly(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine in an event loop of its own, and return its result.

    Raises:
        InterruptedRunError: At a signal; the coroutine was cancelled and has cleaned up.
    """
    import asyncio

    if threading.current_thread() is not threading.main_thread():
        return asyncio.run(work)  # only the main thread gets signals
    received: list[int] = []

    async def cancellable() -> Result:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(work)

        def stop(number: int) -> None:
            received.append(number)
            task.cancel()

        for number in before:
            loop.add_signal_handler(number, stop, number)
        try:
            return await task
        finally:
            for number in before:
                loop.remove_signal_handler(number)

    # Under nohup, SIGHUP stays ignored.
    before = {
        number: handler
        for number in _SIGNALS
        if (handler := signal.getsignal(number)) is not signal.SIG_IGN
    }
    try:
        return asyncio.run(cancellable())
    except asyncio.CancelledError:
        if not received:
            raise
        raise InterruptedRunError(received[0]) from None
    finally:
        for number, handler in before.items():
            with contextlib.suppress(TypeError):  # a handler that is not Python's
                signal.signal(number, handler)


def _set(numbers: Sequence[int], handler: Any) -> None:
    for number in numbers:
        # Under nohup, SIGHUP stays ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)
