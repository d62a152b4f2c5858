"""Signals: those that wait, those that come before a run, and those that come too late."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest

from program import PATIENCE_SECONDS
from sagewai_ops.database.sqlite.connect import _authorize, open_connection
from sagewai_ops.errors import DamagedError, InterruptedRunError, OpsError
from sagewai_ops.process.signals import (
    defer_signals,
    deliver_signal,
    describe_interruption,
    incomplete_step,
    mark_completed,
    raise_on_signals,
    run_interruptibly,
    uninterrupted,
)


@pytest.fixture(autouse=True)
def _handler() -> Iterator[None]:
    before = signal.signal(signal.SIGUSR1, lambda number, _frame: deliver_signal(number))
    yield
    signal.signal(signal.SIGUSR1, before)


def test_signal_is_raised_at_once() -> None:
    """Outside of a block that defers it."""
    with pytest.raises(InterruptedRunError) as caught:
        signal.raise_signal(signal.SIGUSR1)

    assert caught.value.signal_number == signal.SIGUSR1


def test_deferred_signal_is_raised_once_at_the_end_of_the_outermost_block() -> None:
    """The block completes."""
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


def test_deferred_signal_is_raised_after_a_failure() -> None:
    """The failure is its context."""

    @uninterrupted()
    def work() -> None:
        signal.raise_signal(signal.SIGUSR1)
        raise ZeroDivisionError

    with pytest.raises(InterruptedRunError) as caught:
        work()

    assert isinstance(caught.value.__context__, ZeroDivisionError)


def test_block_in_another_thread_defers_nothing() -> None:
    """Only the main thread gets signals."""
    inside, over = threading.Event(), threading.Event()

    def work() -> None:
        with uninterrupted():
            inside.set()
            over.wait(PATIENCE_SECONDS)

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait(PATIENCE_SECONDS)
    try:
        with pytest.raises(InterruptedRunError):
            signal.raise_signal(signal.SIGUSR1)
    finally:
        over.set()
        thread.join()


def test_signal_before_a_run_ends_it_at_its_beginning() -> None:
    """Nothing was done."""
    defer_signals()
    signal.raise_signal(signal.SIGTERM)
    second = signal.getsignal(signal.SIGTERM)

    with pytest.raises(InterruptedRunError) as caught, raise_on_signals():
        pytest.fail("it began")

    assert caught.value.signal_number == signal.SIGTERM
    assert second is signal.SIG_DFL


def test_completed_operation_is_not_interrupted() -> None:
    """The run succeeds, and the next one can be interrupted."""
    done = []
    with raise_on_signals():
        mark_completed()
        signal.raise_signal(signal.SIGTERM)
        done.append("reported")

    with pytest.raises(InterruptedRunError), raise_on_signals():
        signal.raise_signal(signal.SIGTERM)

    assert done == ["reported"]


@contextlib.contextmanager
def _signal_at_call(function: Callable[..., object]) -> Iterator[None]:
    """Raise SIGTERM where a function is called for the first time in the block."""
    before = sys.gettrace()

    def trace(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call" and frame.f_code is function.__code__:
            sys.settrace(before)
            signal.raise_signal(signal.SIGTERM)

    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def _wait_for_interruption() -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(0.001)


def test_handler_of_errors_does_not_swallow_a_signal() -> None:
    """What continues after the failure of a step ends at a signal."""
    done = []

    def work() -> None:
        with contextlib.suppress(OpsError, OSError, Exception):
            signal.raise_signal(signal.SIGTERM)
        done.append("continued")

    with pytest.raises(InterruptedRunError), raise_on_signals():
        work()

    assert done == []


def test_signal_during_the_clean_up_after_an_error_is_raised_after_it() -> None:
    """In every form of it, and also where the error is handled by a caller."""
    done = []

    def clean_up() -> None:
        signal.raise_signal(signal.SIGTERM)
        done.append("removed")

    def in_except() -> None:
        try:
            _fail()
        except OpsError:
            clean_up()
            raise

    def in_finally() -> None:
        try:
            _fail()
        finally:
            clean_up()

    def in_stack() -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(clean_up)
            _fail()

    def work(form: Callable[[], None]) -> None:
        with contextlib.suppress(OpsError):
            form()
        _wait_for_interruption()

    for form in (in_except, in_finally, in_stack):
        done.clear()
        with pytest.raises(InterruptedRunError), raise_on_signals():
            work(form)
        assert done == ["removed"], form


def test_signal_during_a_long_clean_up_is_raised_in_it() -> None:
    """A wait there can be ended, after a second."""

    def work() -> None:
        try:
            _fail()
        except OpsError:
            signal.raise_signal(signal.SIGTERM)
            _wait_for_interruption()
            pytest.fail("not ended")

    with pytest.raises(InterruptedRunError), raise_on_signals():
        work()


def _fail() -> None:
    raise OpsError("failed")


def test_signal_in_a_callback_of_sqlite_is_raised_after_it() -> None:
    """In it, SQLite would lose it, and report that the authorizer refused the statement."""
    done = []

    def work() -> None:
        with contextlib.closing(open_connection(None)) as connection, _signal_at_call(_authorize):
            done.extend(connection.execute("SELECT 1 FROM sqlite_master").fetchall())
            done.append("selected")
        _wait_for_interruption()

    with pytest.raises(InterruptedRunError), raise_on_signals():
        work()

    assert done == ["selected"]


def test_signal_at_the_end_of_a_block_is_raised_after_it() -> None:
    """What the block removes is removed."""
    done = []

    @contextlib.contextmanager
    def block() -> Iterator[None]:
        try:
            yield
        finally:
            signal.raise_signal(signal.SIGTERM)
            done.append("removed")

    def work() -> None:
        with block():
            pass
        _wait_for_interruption()

    with pytest.raises(InterruptedRunError), raise_on_signals():
        work()

    assert done == ["removed"]


def test_signal_during_a_long_end_of_a_block_is_raised_in_it() -> None:
    """A wait there can be ended."""

    @contextlib.contextmanager
    def block() -> Iterator[None]:
        yield
        signal.raise_signal(signal.SIGTERM)
        _wait_for_interruption()
        pytest.fail("not ended")

    with pytest.raises(InterruptedRunError), raise_on_signals(), block():
        pass


def test_signal_during_the_start_of_a_process_is_raised_after_it() -> None:
    """The caller has the process, and can end it."""
    found: list[subprocess.Popen[bytes]] = []
    # Called when the process runs.
    started: Callable[..., object] = subprocess.Popen._close_pipe_fds  # type: ignore[attr-defined]

    def work() -> None:
        with _signal_at_call(started):
            found.append(subprocess.Popen([sys.executable, "-c", ""]))
        _wait_for_interruption()

    with pytest.raises(InterruptedRunError), raise_on_signals():
        work()

    assert [process.wait(PATIENCE_SECONDS) for process in found] == [0]


def test_failure_after_a_lost_interruption_is_an_interruption() -> None:
    """C code lost the exception, and failed for no other reason."""

    def lose() -> None:
        with contextlib.suppress(InterruptedRunError):
            signal.raise_signal(signal.SIGTERM)
        raise DamagedError("database: refused")

    with pytest.raises(InterruptedRunError) as caught, raise_on_signals():
        lose()

    assert isinstance(caught.value.__cause__, DamagedError)


def test_failure_of_the_clean_up_after_a_signal_is_reported() -> None:
    """It names what is left, and how to recover."""

    def fail() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except InterruptedRunError as error:
            raise OpsError("home: not rolled back") from error

    with pytest.raises(OpsError, match="not rolled back"), raise_on_signals():
        fail()


def test_failure_while_a_signal_waits_is_reported() -> None:
    """The signal is not its reason."""

    @contextlib.contextmanager
    def block() -> Iterator[None]:
        yield
        signal.raise_signal(signal.SIGTERM)
        raise DamagedError("archive: damaged")

    with pytest.raises(DamagedError), raise_on_signals(), block():
        pass

    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


@pytest.mark.parametrize("is_step", [False, True])
def test_interruption_reports_what_is_complete(*, is_step: bool) -> None:
    """Unless it is a step of a longer operation; in the next run it is forgotten."""

    def work() -> None:
        with incomplete_step() if is_step else contextlib.nullcontext():
            describe_interruption("the copy is complete")
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(InterruptedRunError) as caught, raise_on_signals():
        work()
    with pytest.raises(InterruptedRunError) as again, raise_on_signals():
        signal.raise_signal(signal.SIGTERM)

    assert ("the copy is complete" in caught.value.message) is not is_step
    assert again.value.message == "interrupted by signal 15, partial files are removed"


async def _wait_for_cancellation() -> None:
    await asyncio.sleep(PATIENCE_SECONDS)


@pytest.mark.parametrize("moment", ["before", "during"])
def test_signal_cancels_a_coroutine(monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """Also before the loop runs; no coroutine is left that was never awaited."""
    run = asyncio.run

    def run_later(work: object) -> object:
        signal.raise_signal(signal.SIGTERM)
        return run(work)  # type: ignore[arg-type]

    async def work() -> None:
        signal.raise_signal(signal.SIGTERM)
        await _wait_for_cancellation()

    if moment == "before":
        monkeypatch.setattr(asyncio, "run", run_later)

    with pytest.raises(InterruptedRunError) as caught, raise_on_signals():
        run_interruptibly(_wait_for_cancellation if moment == "before" else work)

    assert caught.value.signal_number == signal.SIGTERM


def test_signal_at_the_end_of_a_loop_does_not_end_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The default would, and leave what the run had to remove."""
    handlers = []
    remove = asyncio.SelectorEventLoop.close

    def close(loop: asyncio.SelectorEventLoop) -> None:
        remove(loop)
        handlers.append(signal.getsignal(signal.SIGTERM))

    monkeypatch.setattr(asyncio.SelectorEventLoop, "close", close)
    with raise_on_signals():
        run_interruptibly(asyncio.sleep, 0)

    assert handlers
    assert signal.SIG_DFL not in handlers


def test_deferred_signal_does_not_cancel_a_coroutine() -> None:
    """It cleans up on a server, to its end."""
    done = []

    async def work() -> None:
        signal.raise_signal(signal.SIGTERM)
        await asyncio.sleep(0)
        done.append("removed")

    with pytest.raises(InterruptedRunError), raise_on_signals(), uninterrupted():
        run_interruptibly(work)

    assert done == ["removed"]


def test_ignored_signal_stays_ignored() -> None:
    """As SIGHUP under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    defer_signals()
    with raise_on_signals():
        signal.raise_signal(signal.SIGHUP)

    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN


def test_program_started_by_nohup_survives_a_hangup(tmp_path: Path) -> None:
    """The command completes, with exit code 0."""
    home = tmp_path / "home"

    done = subprocess.run(
        [
            *("/bin/sh", "-c", "trap '' HUP; exec \"$@\"", "sh"),
            *(sys.executable, "-c", AT_A_MOMENT.format(number="SIGHUP"), "starting"),
            *("--home", os.fspath(home), "init", "--json"),
        ],
        capture_output=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )

    assert (done.returncode, done.stderr) == (0, b"")
    assert (home / "db/sagewai.db").exists()


# The program with a signal at a moment; the rest of the command line is the run.
AT_A_MOMENT = """
import atexit, os, signal, sys
from sagewai_ops.cli import main as cli

def stop():
    os.kill(os.getpid(), signal.{number})

moment, *words = sys.argv[1:]
if moment == "starting":
    build = cli.build_app
    cli.build_app = lambda *given: (stop(), build(*given))[1]
elif moment == "telling":
    from sagewai_ops.cli import command as invocation
    render = invocation._render
    invocation._render = lambda *given: (stop(), render(*given))[1]
else:
    atexit.register(stop)
cli.main(words)
"""


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("moment", ["starting", "telling", "leaving"])
def test_program_reports_its_result_whenever_a_signal_arrives(
    tmp_path: Path, moment: str, number: str
) -> None:
    """Before the run: interrupted, nothing done; after it: the result, and exit code 0."""
    home = tmp_path / "home"

    words = (moment, "--home", os.fspath(home), "init", "--json")

    done = subprocess.run(
        [sys.executable, "-c", AT_A_MOMENT.format(number=number), *words],
        capture_output=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )

    document = json.loads(done.stdout)
    assert done.stderr == b""
    assert done.returncode == document["exit_code"]
    if moment == "starting":
        assert done.returncode == 128 + getattr(signal, number)
        assert document["error"]["code"] == "interrupted"
        assert not home.exists()
    else:
        assert done.returncode == 0
        assert "db/sagewai.db" in document["result"]["made"]
