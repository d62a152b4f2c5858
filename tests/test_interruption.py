"""Signals that wait while something is made or removed."""

import signal
import threading
from collections.abc import Iterator

import pytest

from sagewai_ops.errors import InterruptedRunError
from sagewai_ops.interruption import arrived, uninterrupted


@pytest.fixture(autouse=True)
def _handler() -> Iterator[None]:
    before = signal.signal(signal.SIGUSR1, lambda number, _frame: arrived(number))
    yield
    signal.signal(signal.SIGUSR1, before)


def test_a_signal_is_raised_where_it_comes() -> None:
    """Nothing makes it wait."""
    with pytest.raises(InterruptedRunError) as caught:
        signal.raise_signal(signal.SIGUSR1)

    assert caught.value.signal_number == signal.SIGUSR1


def test_it_waits_for_the_outermost_block_and_comes_once() -> None:
    """What is in the block is done to its end."""
    done = []

    def work() -> None:
        with uninterrupted():
            with uninterrupted():
                signal.raise_signal(signal.SIGUSR1)
                done.append("inner")
            done.append("outer")
        done.append("never")

    with pytest.raises(InterruptedRunError):
        work()
    with uninterrupted():
        done.append("again")

    assert done == ["inner", "outer", "again"]


def test_it_comes_too_where_the_block_fails() -> None:
    """The failure is told as its reason."""

    @uninterrupted()
    def work() -> None:
        signal.raise_signal(signal.SIGUSR1)
        raise ZeroDivisionError

    with pytest.raises(InterruptedRunError) as caught:
        work()

    assert isinstance(caught.value.__context__, ZeroDivisionError)


def test_another_thread_makes_nobody_wait() -> None:
    """Only the main thread is told of signals."""
    inside, over = threading.Event(), threading.Event()

    def work() -> None:
        with uninterrupted():
            inside.set()
            over.wait(30)

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait(30)
    try:
        with pytest.raises(InterruptedRunError):
            signal.raise_signal(signal.SIGUSR1)
    finally:
        over.set()
        thread.join()
