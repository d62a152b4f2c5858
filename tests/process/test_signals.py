"""Signals: those that wait, those that come before a run, and those that come too late."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sagewai_ops.errors import InterruptedRunError
from sagewai_ops.process.signals import (
    defer_signals,
    deliver_signal,
    mark_completed,
    raise_on_signals,
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
        timeout=60,
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
        timeout=60,
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
