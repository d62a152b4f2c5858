"""Threads that a signal cannot leave half started."""

import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from program import PATIENCE_SECONDS
from sagewai_ops.errors import InterruptedRunError
from sagewai_ops.process.signals import deliver_signal
from sagewai_ops.process.threads import Thread, ThreadPool


@pytest.fixture(autouse=True)
def _signal_at_each_start(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Raise a signal when `threading` has begun to start a thread."""
    before = signal.signal(signal.SIGUSR1, lambda number, _frame: deliver_signal(number))
    start = threading.Thread.start

    def start_and_signal(thread: threading.Thread) -> None:
        signal.raise_signal(signal.SIGUSR1)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_and_signal)
    yield
    signal.signal(signal.SIGUSR1, before)


def _start_thread(work: Callable[[], object]) -> None:
    Thread(target=work).start()


def _submit(work: Callable[[], object]) -> None:
    with ThreadPool(1) as pool:
        pool.submit(work)


@pytest.mark.parametrize("start", [_start_thread, _submit])
def test_a_signal_waits_for_the_start_of_a_thread(
    start: Callable[[Callable[[], object]], None],
) -> None:
    """Then it is raised; the thread runs."""
    ran = threading.Event()

    with pytest.raises(InterruptedRunError):
        start(ran.set)

    assert ran.wait(PATIENCE_SECONDS)
