"""Signals: how they end a run, where they are deferred, and their handling under asyncio.

A signal ends the run by an exception in the main thread. Blocks that create or remove entries which
must not be left over defer it for a moment. A signal during the start of the program is deferred
until there is a run that can report it; one after the completion of the work is ignored, because
`interrupted` means that nothing was changed.

Some code cannot be left by an exception at any instruction: a callback of C code, which loses it; a
`with` statement between the start of its block and that of its clean-up; the start of a process;
and the clean-up after an error, which would be left unfinished. A signal there is raised a moment
later.

Under asyncio, an exception that a signal handler raises can be lost in a callback of the event
loop, which logs it and continues. So while the loop runs, a signal cancels the task, which cleans
up as usual; then the caller gets the interruption.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from sagewai_ops.errors import InterruptedRunError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence
    from types import CodeType, FrameType

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Function = TypeVar("Function", bound="Callable[..., Any]")

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_RETRY_SECONDS = 0.0005
# A block's beginning or end, or a clean-up, that takes longer, such as a wait, is left.
_RETRIED_SECONDS = 1.0
# Module and function, of any module if empty: what an exception at any instruction breaks. The
# first four leave a block without its clean-up; the others leave a process or a thread that nothing
# waits for, or print the exception and continue.
_UNSAFE = {
    ("contextlib", "__enter__"),
    ("contextlib", "__exit__"),
    ("contextlib", "enter_context"),
    ("contextlib", "_exit_wrapper"),
    ("subprocess", "__init__"),
    ("threading", "start"),
    ("importlib._bootstrap", "_find_and_load"),
    ("", "__del__"),
}
_UNSAFE_MODULES = {"weakref", "_weakrefset"}  # their callbacks
_callbacks: set[CodeType] = set()


class _State(threading.local):
    """Per thread, because only the main thread gets signals."""

    depth = 0
    signal_number: int | None = None
    is_complete = False
    is_step = False
    is_raised = False
    words = ""


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

    def interrupt(number: int, frame: FrameType | None) -> None:
        _set(_SIGNALS, signal.SIG_IGN)  # the clean-up is not interrupted
        if not _state.is_complete:
            received.append(number)
            _deliver_soon(number, frame, time.monotonic() + _RETRIED_SECONDS)

    _state.is_complete = _state.is_raised = False
    _state.words = ""
    before = {number: signal.getsignal(number) for number in (*_SIGNALS, signal.SIGALRM)}
    try:
        _set(_SIGNALS, interrupt)
        if _deferred:
            interrupt(_deferred.pop(), None)
        yield
    except Exception as error:
        # C code can lose an exception, and fail in another way.
        if _state.is_raised and not _is_interruption(error):
            raise _interruption(received[0]) from error
        raise
    except KeyboardInterrupt:
        if received:  # the exception was lost inside SQLite
            raise _interruption(received[0]) from None
        raise
    finally:
        if received:
            signal.setitimer(signal.ITIMER_REAL, 0)
        else:
            del before[signal.SIGALRM]
        for number, handler in before.items():
            if handler is not None:  # a handler that is not Python's cannot be restored
                signal.signal(number, handler)


def is_callback(function: Function) -> Function:
    """Declare that C code calls a function and loses its exceptions: no signal is raised in it."""
    _callbacks.add(function.__code__)
    return function


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


def describe_interruption(words: str) -> None:
    """Report these words at an interruption from here on: a part of the work is complete."""
    if not _state.is_step:
        _state.words = words


@contextlib.contextmanager
def incomplete_step() -> Iterator[None]:
    """Keep the two above without effect in the block: it is a step of a longer operation."""
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
        raise _interruption(number)


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
            raise _interruption(number)


def run_interruptibly(
    function: Callable[Arguments, Coroutine[Any, Any, Result]],
    /,
    *arguments: Arguments.args,
    **options: Arguments.kwargs,
) -> Result:
    """Run a coroutine function in an event loop of its own, and return its result.

    Raises:
        InterruptedRunError: At a signal; the coroutine was cancelled and has cleaned up.
    """
    import asyncio

    # Only the main thread gets signals, and `uninterrupted` defers them.
    if threading.current_thread() is not threading.main_thread() or _state.depth:
        return asyncio.run(function(*arguments, **options))
    received: list[int] = []
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Result]]] = []

    # Not `loop.add_signal_handler`: at its end it restores the default, which ends the process.
    def stop(number: int, _frame: object) -> None:
        received.append(number)
        for loop, task in running:
            loop.call_soon_threadsafe(task.cancel)

    async def cancellable() -> Result:
        # Made here: a signal before would leave a coroutine that Python reports as never awaited.
        task = asyncio.ensure_future(function(*arguments, **options))
        running.append((asyncio.get_running_loop(), task))
        if received:
            task.cancel()
        try:
            return await task
        finally:
            running.clear()

    # Under nohup, SIGHUP stays ignored.
    before = {
        number: handler
        for number in _SIGNALS
        if (handler := signal.getsignal(number)) is not signal.SIG_IGN
    }
    try:
        _set(list(before), stop)
        return asyncio.run(cancellable())
    except asyncio.CancelledError:
        if not received:
            raise
        raise _interruption(received[0]) from None
    finally:
        for number, handler in before.items():
            with contextlib.suppress(TypeError):  # a handler that is not Python's
                signal.signal(number, handler)


def _deliver_soon(number: int, frame: FrameType | None, deadline: float) -> None:
    """End the run where an exception breaks nothing, at the deadline anywhere.

    Args:
        frame: What the signal interrupted.
        deadline: Of `time.monotonic`.
    """

    def retry(_number: int, frame: FrameType | None) -> None:
        _deliver_soon(number, frame, deadline)

    if _state.is_complete:
        return
    if not _state.depth and time.monotonic() < deadline and _is_unsafe(frame):
        signal.signal(signal.SIGALRM, retry)
        signal.setitimer(signal.ITIMER_REAL, _RETRY_SECONDS)
    else:
        deliver_signal(number)


def _is_unsafe(frame: FrameType | None) -> bool:
    """Return whether an exception at a frame breaks something; only for a handler of signals."""
    if sys.exc_info()[0] is not None:  # what the interrupted code handles, not this function
        return True
    while frame is not None:
        name, module = frame.f_code.co_name, frame.f_globals.get("__name__")
        if (
            (module, name) in _UNSAFE
            or ("", name) in _UNSAFE
            or module in _UNSAFE_MODULES
            or frame.f_code in _callbacks
        ):
            return True
        frame = frame.f_back
    return False


def _interruption(number: int) -> InterruptedRunError:
    _state.is_raised = True
    return (
        InterruptedRunError(number, _state.words) if _state.words else InterruptedRunError(number)
    )


def _is_interruption(error: BaseException | None) -> bool:
    """Return whether an error, or one that led to it, is an interruption."""
    while error is not None:
        if isinstance(error, (InterruptedRunError, KeyboardInterrupt)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _set(numbers: Sequence[int], handler: Any) -> None:
    for number in numbers:
        # Under nohup, SIGHUP stays ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)
